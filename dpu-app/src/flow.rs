//! A chunk in progress, as the engine thread sees it.
//!
//! ```text
//! fetch: Opening -> Flowing -> Closing -> (free)        store: Opening -> Flowing -> Closing -> (free)
//!        manifest   blocks     seat back                       begin put   blocks     commit or abort
//! ```

use block::{Geometry, Plan, TileOrder};
use mailbox::{PAGES_PER_CHUNK_MAX, Tokens};

use crate::job::{BlockFacts, Failure, Restored, Seat};
use crate::slot::{SlotState, Ticket};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Store to host.
    Fetch,
    /// Host to store.
    Store,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Opening,
    Flowing,
    Closing,
}

impl Phase {
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        matches!((self, next), (Self::Opening, Self::Flowing) | (Self::Flowing, Self::Closing))
    }
}

/// Host pages of one chunk.
pub type Pages = heapless::Vec<u32, PAGES_PER_CHUNK_MAX>;

/// Progress of one chunk. Its place in the table is its seat.
#[derive(Debug)]
pub struct Flow {
    pub session: usize,
    /// Place in the session's table of requests.
    pub request: usize,
    /// Which chunk of the request.
    pub index: u32,
    pub direction: Direction,
    pub pages: Pages,
    /// Tokens of this chunk that move.
    pub tokens: Tokens,
    pub geometry: Geometry,
    pub order: TileOrder,
    pub phase: Phase,
    pub plan: Plan,
    pub blocks: u16,
    /// The next block to give a slot.
    pub next: u16,
    pub in_flight: u16,
    /// Of those in flight: blocks that the DMA engine moves from or to the host's pages now.
    pub moving: u16,
    pub done: u16,
    pub failure: Option<Failure>,
    /// The request does not wait for it: its time is over, or a chunk before this one has failed.
    pub given_up: bool,
    pub wire_bytes: u64,
    /// The request has been told how the chunk ended.
    pub concluded: bool,
}

impl Flow {
    /// A fetch of a whole chunk, the first of its request, of which nothing has happened yet.
    #[must_use]
    pub fn opening(session: usize, pages: Pages, (geometry, order, plan): (Geometry, TileOrder, Plan)) -> Self {
        Self {
            session,
            request: 0,
            index: 0,
            direction: Direction::Fetch,
            pages,
            tokens: Tokens::ALL,
            geometry,
            order,
            phase: Phase::Opening,
            plan,
            blocks: plan.block_count(&geometry) as u16,
            next: 0,
            in_flight: 0,
            moving: 0,
            done: 0,
            failure: None,
            given_up: false,
            wire_bytes: 0,
            concluded: false,
        }
    }

    pub fn become_phase(&mut self, next: Phase) {
        assert!(self.phase.may_become(next), "chunk {:?} -> {next:?}", self.phase);
        self.phase = next;
    }

    #[must_use]
    pub fn wants_slot(&self) -> bool {
        self.phase == Phase::Flowing && self.failure.is_none() && self.next < self.blocks
    }

    /// Whether no token of a block is wanted.
    #[must_use]
    pub fn is_clipped(&self, block: u16) -> bool {
        let part = self.plan.part(&self.geometry, usize::from(block)).expect("blocks are counted by the plan");
        let (first, end) = (u32::from(part.first_token), u32::from(part.first_token + part.tokens));
        self.tokens.end <= first || self.tokens.start >= end
    }

    /// No block is in flight and none will be started.
    #[must_use]
    pub fn drained(&self) -> bool {
        self.phase == Phase::Flowing && self.in_flight == 0 && (self.failure.is_some() || self.done == self.blocks)
    }
}

/// What the engine thread knows of a slot.
#[derive(Clone, Copy, Debug)]
pub struct SlotWork {
    pub state: SlotState,
    pub generation: u32,
    pub seat: Seat,
    pub block: u16,
    /// When it is its turn at an engine (turns.rs).
    pub turn: u64,
    /// Failures while alone on an engine.
    pub blames: u8,
    pub facts: BlockFacts,
    pub from: Restored,
    pub moves: Moves,
    /// What the DMA engine moves of it is compared.
    pub verify: bool,
    /// Comparisons that found a difference.
    pub differed: u8,
}

/// How far the transfer of a block is. One that needs more tasks than the device has goes in several operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moves {
    /// Runs that earlier operations have moved.
    pub before: usize,
    /// Runs of the operation in flight.
    pub now: usize,
    /// More are left after it.
    pub more: bool,
}

impl Moves {
    pub const NONE: Self = Self { before: 0, now: 0, more: false };
}

impl SlotWork {
    pub const FREE: Self = Self {
        state: SlotState::Free,
        generation: 0,
        seat: Seat(0),
        block: 0,
        turn: 0,
        blames: 0,
        facts: BlockFacts {
            codec: block::Codec::Raw,
            payload_start: 0,
            payload_bytes: 0,
            codes_bytes: 0,
            codes_crc: 0,
        },
        from: Restored::Tile,
        moves: Moves::NONE,
        verify: false,
        differed: 0,
    };
}

/// The states of all slots. The only place where a state changes.
#[derive(Debug)]
pub struct SlotTable {
    works: Vec<SlotWork>,
    free: Vec<u16>,
    storing: usize,
}

impl SlotTable {
    #[must_use]
    pub fn new(slots: usize) -> Self {
        Self { works: vec![SlotWork::FREE; slots], free: (0..slots as u16).rev().collect(), storing: 0 }
    }

    /// Takes a free slot for a block.
    pub fn take(&mut self, seat: Seat, block: u16, state: SlotState) -> Option<Ticket> {
        let index = self.free.pop()?;
        let work = &mut self.works[usize::from(index)];
        let generation = work.generation.wrapping_add(1);
        *work = SlotWork { generation, seat, block, ..SlotWork::FREE };
        let ticket = Ticket { index, generation };
        self.set(ticket, state);
        self.storing += usize::from(state == SlotState::Gathering);
        Some(ticket)
    }

    /// The work of a ticket.
    ///
    /// # Panics
    /// If the ticket is stale: a slot changes hands only after its last job was answered.
    pub fn at(&mut self, ticket: Ticket) -> &mut SlotWork {
        let work = &mut self.works[usize::from(ticket.index)];
        assert!(work.generation == ticket.generation, "stale {ticket:?}, the slot is at {}", work.generation);
        work
    }

    /// The single setter.
    pub fn set(&mut self, ticket: Ticket, next: SlotState) {
        let work = self.at(ticket);
        assert!(work.state.may_become(next), "slot {} {:?} -> {next:?}", ticket.index, work.state);
        let storing = work.state.stores();
        work.state = next;
        if next == SlotState::Free {
            self.free.push(ticket.index);
            self.storing -= usize::from(storing);
        }
    }

    #[must_use]
    pub fn size(&self) -> usize {
        self.works.len()
    }

    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Slots that the store path holds.
    #[must_use]
    pub fn storing(&self) -> usize {
        self.storing
    }

    /// How many slots are in a state.
    #[must_use]
    pub fn count(&self, state: SlotState) -> usize {
        self.works.iter().filter(|work| work.state == state).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_comes_back_with_a_new_generation() {
        let mut table = SlotTable::new(1);
        let first = table.take(Seat(0), 0, SlotState::Fetching).unwrap();
        assert!(table.take(Seat(0), 1, SlotState::Fetching).is_none());
        table.set(first, SlotState::Free);
        let second = table.take(Seat(0), 1, SlotState::Gathering).unwrap();
        assert_eq!(first.index, second.index);
        assert_ne!(first.generation, second.generation);
        assert_eq!((table.storing(), table.free()), (1, 0));
        table.set(second, SlotState::Encoding);
        table.set(second, SlotState::Free);
        assert_eq!((table.storing(), table.free()), (0, 1));
    }

    #[test]
    #[should_panic(expected = "stale")]
    fn a_stale_ticket_is_caught() {
        let mut table = SlotTable::new(1);
        let first = table.take(Seat(0), 0, SlotState::Fetching).unwrap();
        table.set(first, SlotState::Free);
        table.take(Seat(0), 0, SlotState::Fetching).unwrap();
        table.at(first);
    }
}
