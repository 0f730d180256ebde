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

pub(crate) mod block_set;
pub(crate) mod chunk;
pub(crate) mod endings;
pub(crate) mod follow;
pub(crate) mod job;
pub(crate) mod probation;
pub(crate) mod scheduler;
pub(crate) mod slots;
mod turns;
pub(crate) mod verify;

use heapless::binary_heap::{BinaryHeap, Min};

use crate::config::{CHUNKS_ACTIVE_MAX, Config, FOLLOWERS_MAX, PLACES_MAX, SLOTS_MAX, follower_seats};
use crate::count::counters::Counters;
use crate::pipeline::chunk::{ChunkInFlight, Direction, Phase};
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
pub(crate) type Queue = BinaryHeap<(u64, Ticket), Min, SLOTS_MAX>;

/// The tables of what is in progress. All of it is allocated in Init.
#[derive(Debug)]
pub struct Pipeline {
    pub slots: SlotTable,
    /// Slots that each session holds.
    held: [usize; PLACES_MAX],
    /// Chunks in progress, by seat: first those that the store knows of, then those that follow them (follow.rs).
    pub chunks: Vec<Option<ChunkInFlight>>,
    /// Seats of chunks that the store knows of.
    openers: usize,
    /// Seats in the order in which their chunks were started.
    pub order: heapless::Vec<Seat, { CHUNKS_ACTIVE_MAX + FOLLOWERS_MAX }>,
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
            chunks: (0..config.chunks + follower_seats(config)).map(|_| None).collect(),
            openers: config.chunks,
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
            Direction::Fetch => self.openers,
            Direction::Store => (self.openers / 4).max(1),
        }
    }

    /// Counts the seats that are kept for sessions which have none.
    fn seats_kept(&self) -> usize {
        (self.sessions - 1).min(self.openers / 4)
    }

    /// Counts the slots that are kept for sessions which hold fewer than these: what waits for the network, in all the
    /// slots that one session can have, is not what a hit in memory waits for.
    fn slots_kept(&self) -> usize {
        (self.sessions - 1).min(self.slots.size() / 8)
    }

    /// Finds a seat for one more chunk of this session and direction.
    pub fn free_seat(&self, session: usize, direction: Direction) -> Option<Seat> {
        let openers = &self.chunks[..self.openers];
        let taken =
            |wanted: &dyn Fn(&ChunkInFlight) -> bool| openers.iter().flatten().filter(|chunk| wanted(chunk)).count();
        let free = openers.iter().position(Option::is_none)?;
        let kept = if taken(&|chunk| chunk.session == session) == 0 { 0 } else { self.seats_kept() };
        let may = self.openers - taken(&|_| true) > kept
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
        self.leave_leader(seat);
        let chunk = self.chunk(seat);
        debug_assert!(chunk.concluded && chunk.in_flight == 0 && chunk.followers == 0);
        self.chunks[usize::from(seat.0)] = None;
        self.order.retain(|other| *other != seat);
    }

    /// Finds the chunk whose block of this direction gets the next free slot, if any does, and the session whose turn
    /// it is: fetches by the turns of their sessions, and of those that follow them, the oldest chunk of a session
    /// first; stores by age.
    pub(crate) fn next_in_line(&mut self, direction: Direction) -> Option<(Seat, usize)> {
        let (kept, free) = (self.slots_kept(), self.slots.free());
        let may = |session: usize| free > kept || free > 0 && self.held[session] < kept;
        let at = |seat: Seat| self.chunks[usize::from(seat.0)].as_ref().expect("as in chunk()");
        let mut waiting = self.order.iter().filter_map(|&seat| {
            let chunk = at(seat);
            let reader = if chunk.phase == Phase::Following { chunk.leader? } else { seat };
            let reads = at(reader);
            let waits = reads.direction == direction && reads.wants_slot() && may(chunk.session);
            waits.then_some((reader, chunk.session))
        });
        match direction {
            Direction::Fetch => waiting.min_by_key(|&(_, session)| self.turns.of(session)),
            Direction::Store => waiting.next(),
        }
    }

    /// Takes a slot for a block, which is a turn of `payer`; one is free. Sessions that follow get the block too, and
    /// have had their turns with it.
    pub(crate) fn take_slot(&mut self, direction: Direction, (seat, payer): (Seat, usize), block: u16) -> Ticket {
        let (state, turn) = match direction {
            Direction::Fetch => (SlotState::Fetching, self.turns.take(payer)),
            Direction::Store => (SlotState::Gathering, self.turns.after_all()),
        };
        if self.chunk(seat).followers > 0 {
            self.charge_others(seat, payer);
        }
        let slot = self.slots.take(seat, block, state).expect("one is free");
        let verify = self.verifier.chooses();
        let work = self.slots.at(slot);
        (work.turn, work.verify, work.payer) = (turn, verify, payer);
        self.held[payer] += 1;
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
        self.held[work.payer] -= 1;
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

    /// Submits the slot's bytes to or from the pages of the slot's target, as its state says.
    fn transfer(&mut self, slot: Ticket) -> Launch;

    /// Gives back what was borrowed for a slot's block, which is over, however it ended.
    fn let_go(&mut self, slot: Ticket);

    /// Advances the oldest unfinished request of a session, by `free_seat` and `sit`; `true` if
    /// anything happened.
    fn start_chunks(&mut self, session: usize) -> bool;

    /// Takes note that a chunk which followed another, and now goes on by itself, has another seat.
    fn reseated(&mut self, _from: Seat, _to: Seat) {}

    /// Tells a chunk's request, once, how the chunk has ended.
    fn concluded(&mut self, seat: Seat, result: Result<(), Failure>);

    /// Takes note that a block's comparison found a difference: it goes again, or its chunk fails.
    fn differed(&mut self, slot: Ticket, goes_again: bool);

    /// Ends a session whose memory cannot be reached.
    fn unreachable(&mut self, session: usize, error: doca::Error);
}
