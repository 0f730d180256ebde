//! The slots of the ring, as the engine thread sees them: the states that they go through, and whose block is in each.
//!
//! ```text
//!           fetch                                     store
//!   Free -> Fetching -> Inflating -> Restoring -> Writing -> Free
//!                 \______raw______/               |    ^
//!                                                 v    |
//!                                               Verifying -> Free
//!   Free -> Gathering -> Encoding -> Free
//!            |    ^         ^
//!            v    |         |
//!           Confirming -----'
//! ```
//!
//! Verifying and Confirming: with `--verify-dma` only (verify.rs).
//! A block whose codes fail their check goes back from Restoring to Inflating once: software then says whose fault it
//! is. Any state may also go back to Free: that is what happens to a block that failed. Only the engine thread changes
//! states.

use crate::pipeline::job::{BlockFacts, Restored, Seat};

/// A slot and its generation: the only thing that travels.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Ticket {
    pub index: u16,
    pub generation: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotState {
    Free,
    /// A fetch worker reads the block from the store into `wire`, or borrows it where the card's tier has it.
    Fetching,
    /// Waits for the decompress engine, or is in it: `wire` -> `codes`.
    Inflating,
    /// A dequantize worker writes `tile` from `codes` (or from a raw `wire`).
    Restoring,
    /// Waits for the DMA engine, or is in it: `tile` -> host pages.
    Writing,
    /// Waits for the DMA engine, or is in it: host pages -> `tile`.
    Gathering,
    /// The pages that were written come back into `codes`, and a dequantize worker compares them with `tile`.
    Verifying,
    /// The pages that were gathered come again, into `codes`, and a dequantize worker compares them with `tile`.
    Confirming,
    /// An encode worker goes `tile` -> `codes` -> `wire` -> store.
    Encoding,
}

impl SlotState {
    pub const ALL: [Self; 9] = [
        Self::Free,
        Self::Fetching,
        Self::Inflating,
        Self::Restoring,
        Self::Writing,
        Self::Verifying,
        Self::Gathering,
        Self::Confirming,
        Self::Encoding,
    ];

    /// Tells whether a block on its way into the store holds the slot.
    #[must_use]
    pub fn stores(self) -> bool {
        matches!(self, Self::Gathering | Self::Confirming | Self::Encoding)
    }

    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        use SlotState::{Confirming, Encoding, Fetching, Free, Gathering, Inflating, Restoring, Verifying, Writing};
        match (self, next) {
            (Free, to) => matches!(to, Fetching | Gathering),
            (_, Free) => true,
            (from, to) => matches!(
                (from, to),
                (Fetching, Inflating | Restoring)
                    | (Inflating, Restoring)
                    | (Restoring, Writing | Inflating)
                    | (Writing, Verifying)
                    | (Verifying, Writing)
                    | (Gathering, Confirming | Encoding)
                    | (Confirming, Gathering | Encoding)
            ),
        }
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Fetching => "fetching",
            Self::Inflating => "inflating",
            Self::Restoring => "restoring",
            Self::Writing => "writing",
            Self::Verifying => "verifying",
            Self::Gathering => "gathering",
            Self::Confirming => "confirming",
            Self::Encoding => "encoding",
        }
    }
}

/// What the engine thread knows of a slot.
#[derive(Clone, Copy, Debug)]
pub struct SlotWork {
    pub state: SlotState,
    pub generation: u32,
    pub seat: Seat,
    pub block: u16,
    /// Seat of the chunk whose pages it is moved to or from: its own, or one that follows it (follow.rs).
    pub target: Seat,
    /// Session whose turn it was, and which it counts for.
    pub payer: usize,
    /// Its turn at an engine (turns.rs).
    pub turn: u64,
    /// Failures while alone on an engine.
    pub blames: u8,
    pub facts: BlockFacts,
    pub from: Restored,
    pub moves: Moves,
    /// Whether what the DMA engine moves of it is compared.
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
    /// Whether more are left after it.
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
        target: Seat(0),
        payer: 0,
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
        *work = SlotWork { generation, seat, target: seat, block, ..SlotWork::FREE };
        let ticket = Ticket { index, generation };
        self.set(ticket, state);
        self.storing += usize::from(state == SlotState::Gathering);
        Some(ticket)
    }

    /// Borrows the work of a ticket.
    ///
    /// # Panics
    /// Panics if the ticket is stale: a slot changes hands only after its last job was answered.
    pub fn at(&mut self, ticket: Ticket) -> &mut SlotWork {
        let work = &mut self.works[usize::from(ticket.index)];
        assert!(work.generation == ticket.generation, "stale {ticket:?}, the slot is at {}", work.generation);
        work
    }

    /// Changes a state: the one place that does.
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

    /// Has a block that is in its target's pages written to those of another chunk, too.
    pub fn aim(&mut self, ticket: Ticket, target: Seat) {
        if self.at(ticket).state != SlotState::Writing {
            self.set(ticket, SlotState::Writing);
        }
        let work = self.at(ticket);
        *work = SlotWork { target, moves: Moves::NONE, blames: 0, differed: 0, ..*work };
    }

    /// Iterates over the slots that are not free, by number.
    pub fn taken(&self) -> impl Iterator<Item = (usize, &SlotWork)> {
        self.works.iter().enumerate().filter(|(_, work)| work.state != SlotState::Free)
    }

    #[must_use]
    pub fn size(&self) -> usize {
        self.works.len()
    }

    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Counts the slots that the store path holds.
    #[must_use]
    pub fn storing(&self) -> usize {
        self.storing
    }

    /// Counts the slots in a state.
    #[must_use]
    pub fn count(&self, state: SlotState) -> usize {
        self.works.iter().filter(|work| work.state == state).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_can_fail_back_to_free_and_none_skips_its_checks() {
        for from in SlotState::ALL {
            assert_eq!(from.may_become(SlotState::Free), from != SlotState::Free, "{from:?}");
            assert!(!from.may_become(from), "{from:?}");
        }
        assert!(!SlotState::Fetching.may_become(SlotState::Writing), "unchecked bytes must not reach the host");
        assert!(!SlotState::Inflating.may_become(SlotState::Writing));
        assert!(!SlotState::Gathering.may_become(SlotState::Writing));
    }

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
