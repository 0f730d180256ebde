//! What is in progress, and what moving it on asks of the world. No clock, no DOCA, no threads.
//!
//! ```text
//!            Scheduler (scheduler.rs): every decision, once
//!                 |                        |
//!              Pipeline                  World
//!       seats, order, slots,       workers, engines, requests
//!       queues to the engines        |               |
//!                                   Hub          Simulation
//!                             (threads, DOCA)   (virtual time)
//! ```
//! The data plane and the simulator differ in their `World` only: both run the same decisions on the same tables.

pub mod chunk;
pub mod endings;
pub mod job;
pub mod probation;
pub mod scheduler;
pub mod slots;
mod turns;
pub mod verify;

use heapless::binary_heap::{BinaryHeap, Min};

use crate::config::{CHUNKS_ACTIVE_MAX, Config, PLACES_MAX, SLOTS_MAX};
use crate::count::counters::Counters;
use crate::pipeline::chunk::{ChunkInFlight, Direction};
use crate::pipeline::job::{Failure, Job, Seat};
use crate::pipeline::slots::{SlotState, SlotTable, Ticket};
use crate::pipeline::turns::Turns;
use crate::pipeline::verify::Verifier;

/// Abilities of the engine that inflates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inflater {
    pub lz4: bool,
    /// Whether its CRC-32 stands for ours.
    pub crc_trusted: bool,
}

/// Slots that wait for an engine, whose turn comes first in front (turns.rs).
pub type Queue = BinaryHeap<(u64, Ticket), Min, SLOTS_MAX>;

/// The tables of what is in progress. All of it is allocated in Init.
#[derive(Debug)]
pub struct Pipeline {
    pub slots: SlotTable,
    /// Slots that each session holds.
    held: [usize; PLACES_MAX],
    /// Chunks in progress, by seat.
    pub chunks: Vec<Option<ChunkInFlight>>,
    /// Seats in the order in which their chunks were started.
    pub order: heapless::Vec<Seat, CHUNKS_ACTIVE_MAX>,
    pub to_inflate: Queue,
    pub to_transfer: Queue,
    turns: Turns,
    pub(crate) verifier: Verifier,
    /// `None`: software inflates everything.
    pub(crate) inflater: Option<Inflater>,
    store_slots: usize,
    sessions: usize,
    /// Session at which the next turn begins to look for requests, so that sessions take turns.
    first_session: usize,
}

impl Pipeline {
    #[must_use]
    pub fn new(config: &Config, inflater: Option<Inflater>) -> Self {
        Self {
            slots: SlotTable::new(config.slots),
            held: [0; PLACES_MAX],
            chunks: (0..config.chunks).map(|_| None).collect(),
            order: heapless::Vec::new(),
            to_inflate: Queue::new(),
            to_transfer: Queue::new(),
            turns: Turns::default(),
            verifier: Verifier::new(config.verify_dma),
            inflater,
            store_slots: config.store_slots,
            sessions: config.places(),
            first_session: 0,
        }
    }

    /// Borrows the chunk in a seat that a slot or a job names.
    pub(crate) fn chunk(&mut self, seat: Seat) -> &mut ChunkInFlight {
        self.chunks[usize::from(seat.0)].as_mut().expect("a seat stays taken while anything of it is in flight")
    }

    /// Counts the seats that chunks of this direction may take: the store path leaves most of them to fetches.
    fn seats(&self, direction: Direction) -> usize {
        match direction {
            Direction::Fetch => self.chunks.len(),
            Direction::Store => (self.chunks.len() / 4).max(1),
        }
    }

    /// Counts the seats that are kept for sessions which have none.
    fn seats_kept(&self) -> usize {
        (self.sessions - 1).min(self.chunks.len() / 4)
    }

    /// Counts the slots that are kept for sessions which hold fewer than these: what waits for the network, in all the
    /// slots that one session can have, is not what a hit in memory waits for.
    fn slots_kept(&self) -> usize {
        (self.sessions - 1).min(self.slots.size() / 8)
    }

    /// Finds a seat for one more chunk of this session and direction.
    pub fn free_seat(&self, session: usize, direction: Direction) -> Option<Seat> {
        let taken = |wanted: &dyn Fn(&ChunkInFlight) -> bool| {
            self.chunks.iter().flatten().filter(|chunk| wanted(chunk)).count()
        };
        let free = self.chunks.iter().position(Option::is_none)?;
        let kept = if taken(&|chunk| chunk.session == session) == 0 { 0 } else { self.seats_kept() };
        let may = self.chunks.len() - self.order.len() > kept
            && taken(&|chunk| chunk.direction == direction) < self.seats(direction);
        may.then_some(Seat(free as u16))
    }

    /// Puts a chunk into a seat that was free.
    pub fn sit(&mut self, seat: Seat, chunk: ChunkInFlight) {
        let place = &mut self.chunks[usize::from(seat.0)];
        assert!(place.is_none(), "{seat:?} is taken");
        *place = Some(chunk);
        self.order.push(seat).expect("a place per seat");
    }

    /// Frees a seat whose chunk is over for the store too.
    pub(crate) fn vacate(&mut self, seat: Seat) {
        debug_assert!(self.chunk(seat).concluded && self.chunk(seat).in_flight == 0);
        self.chunks[usize::from(seat.0)] = None;
        self.order.retain(|other| *other != seat);
    }

    /// Finds the chunk whose block of this direction gets the next free slot, if any does: fetches by the turns of
    /// their sessions, the oldest chunk of a session first; stores by age.
    pub(crate) fn next_in_line(&mut self, direction: Direction) -> Option<Seat> {
        let (kept, free) = (self.slots_kept(), self.slots.free());
        let may = |session: usize| free > kept || free > 0 && self.held[session] < kept;
        let mut waiting = self.order.iter().filter_map(|&seat| {
            let chunk = self.chunks[usize::from(seat.0)].as_ref().expect("as in chunk()");
            (chunk.direction == direction && chunk.wants_slot() && may(chunk.session)).then_some((seat, chunk.session))
        });
        let first = match direction {
            Direction::Fetch => waiting.min_by_key(|&(_, session)| self.turns.of(session)),
            Direction::Store => waiting.next(),
        };
        first.map(|(seat, _)| seat)
    }

    /// Takes a slot for a block; one is free.
    pub(crate) fn take_slot(&mut self, direction: Direction, seat: Seat, block: u16) -> Ticket {
        let session = self.chunk(seat).session;
        let (state, turn) = match direction {
            Direction::Fetch => (SlotState::Fetching, self.turns.take(session)),
            Direction::Store => (SlotState::Gathering, self.turns.after_all()),
        };
        let slot = self.slots.take(seat, block, state).expect("one is free");
        let verify = self.verifier.chooses();
        let work = self.slots.at(slot);
        (work.turn, work.verify) = (turn, verify);
        self.held[session] += 1;
        slot
    }

    pub(crate) fn queue_inflate(&mut self, slot: Ticket) {
        self.to_inflate.push((self.slots.at(slot).turn, slot)).expect("a place per slot");
    }

    pub(crate) fn queue_transfer(&mut self, slot: Ticket) {
        self.to_transfer.push((self.slots.at(slot).turn, slot)).expect("a place per slot");
    }

    /// Frees a slot.
    pub(crate) fn free_slot(&mut self, slot: Ticket) {
        let work = *self.slots.at(slot);
        let session = self.chunk(work.seat).session;
        self.held[session] -= 1;
        if !work.state.stores() {
            self.turns.passed(work.turn);
        }
        self.slots.set(slot, SlotState::Free);
    }

    /// Tells whether the store path holds as many slots as it may.
    pub(crate) fn stores_are_full(&self) -> bool {
        self.slots.storing() >= self.store_slots
    }

    /// Lists the sessions, each once; another one comes first at each call.
    pub(crate) fn sessions_in_turn(&mut self) -> impl Iterator<Item = usize> + use<> {
        let (first, sessions) = (self.first_session, self.sessions);
        self.first_session = (first + 1) % sessions;
        (0..sessions).map(move |turn| (first + turn) % sessions)
    }
}

/// Answer of an engine to a submission.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Launch {
    Started,
    /// Nothing of the block is to move.
    Nothing,
    /// Not now: the ticket waits.
    NoRoom,
    Failed(Failure),
}

/// Result of an inflate operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inflated {
    Right,
    /// It succeeded, with other bytes than the header says.
    Wrong,
    /// The operation failed, or a neighbour's failure took it along.
    Failed {
        to_blame: bool,
    },
}

/// Result of a transfer that failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unreached {
    pub error: doca::Error,
    pub to_blame: bool,
}

/// What the pipeline asks of whatever it runs in. Nothing here decides anything.
pub trait World {
    fn pipeline(&mut self) -> &mut Pipeline;

    fn counters(&self) -> &Counters;

    /// Gives a job to a worker of its crew; exactly one [`crate::pipeline::job::Done`] comes back later.
    fn give(&mut self, job: Job);

    /// Takes note that a block has been given its slot. For worlds that take the time.
    fn slot_taken(&mut self, _slot: Ticket) {}

    /// Tells whether the inflate engine takes one more operation now. Asked only where there is an engine.
    fn inflate_has_room(&self) -> bool;

    /// Submits wire -> codes of a slot.
    fn inflate(&mut self, slot: Ticket) -> Launch;

    /// Tells whether the DMA engine takes one more operation now.
    fn transfer_has_room(&self) -> bool;

    /// Submits the slot's bytes to or from the host's pages, as its state says.
    fn transfer(&mut self, slot: Ticket) -> Launch;

    /// Gives back what was borrowed for a slot's block, which is over, however it ended.
    fn let_go(&mut self, slot: Ticket);

    /// Advances the oldest unfinished request of a session, by `free_seat` and `sit`; `true` if
    /// anything happened.
    fn start_chunks(&mut self, session: usize) -> bool;

    /// Tells a chunk's request, once, how the chunk has ended.
    fn concluded(&mut self, seat: Seat, result: Result<(), Failure>);

    /// Takes note that a block's comparison found a difference: it goes again, or its chunk fails.
    fn differed(&mut self, slot: Ticket, goes_again: bool);

    /// Ends a session whose memory cannot be reached.
    fn unreachable(&mut self, session: usize, error: doca::Error);
}
