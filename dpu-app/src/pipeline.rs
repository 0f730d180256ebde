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

use heapless::Deque;

use crate::config::{CHUNKS_ACTIVE_MAX, Config};
use crate::counters::Counters;
use crate::flow::{Direction, Flow, SlotTable};
use crate::job::{Failure, Job, Seat};
use crate::slot::{SLOTS_MAX, Ticket};

/// What the engine that inflates can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inflater {
    pub lz4: bool,
    /// Its CRC-32 stands for ours.
    pub crc_trusted: bool,
}

/// The tables of what is in progress. All of it is allocated in Init.
#[derive(Debug)]
pub struct Pipeline {
    pub(crate) slots: SlotTable,
    /// Chunks in progress, by seat.
    pub(crate) flows: Vec<Option<Flow>>,
    /// Seats in the order in which their chunks were started.
    pub(crate) order: heapless::Vec<Seat, CHUNKS_ACTIVE_MAX>,
    pub(crate) to_inflate: Deque<Ticket, SLOTS_MAX>,
    pub(crate) to_transfer: Deque<Ticket, SLOTS_MAX>,
    /// `None`: software inflates everything.
    pub(crate) inflater: Option<Inflater>,
    store_slots: usize,
    sessions: usize,
    /// Where the next turn begins to look for requests, so that sessions take turns.
    first_session: usize,
}

impl Pipeline {
    #[must_use]
    pub fn new(config: &Config, inflater: Option<Inflater>) -> Self {
        Self {
            slots: SlotTable::new(config.slots),
            flows: (0..config.chunks).map(|_| None).collect(),
            order: heapless::Vec::new(),
            to_inflate: Deque::new(),
            to_transfer: Deque::new(),
            inflater,
            store_slots: config.store_slots,
            sessions: config.sessions,
            first_session: 0,
        }
    }

    /// The chunk in a seat that a slot or a job names.
    pub(crate) fn flow(&mut self, seat: Seat) -> &mut Flow {
        self.flows[usize::from(seat.0)].as_mut().expect("a seat stays taken while anything of it is in flight")
    }

    /// Seats that chunks of this direction may take: the store path leaves most of them to fetches.
    fn seats(&self, direction: Direction) -> usize {
        match direction {
            Direction::Fetch => self.flows.len(),
            Direction::Store => (self.flows.len() / 4).max(1),
        }
    }

    /// A seat for one more chunk of this direction.
    pub(crate) fn free_seat(&self, direction: Direction) -> Option<Seat> {
        let taken = self.flows.iter().flatten().filter(|flow| flow.direction == direction).count();
        let free = self.flows.iter().position(Option::is_none)?;
        (taken < self.seats(direction)).then_some(Seat(free as u16))
    }

    /// A chunk takes a seat that was free.
    pub(crate) fn sit(&mut self, seat: Seat, flow: Flow) {
        let place = &mut self.flows[usize::from(seat.0)];
        assert!(place.is_none(), "{seat:?} is taken");
        *place = Some(flow);
        self.order.push(seat).expect("a place per seat");
    }

    /// Frees a seat whose chunk is over for the store too.
    pub(crate) fn vacate(&mut self, seat: Seat) {
        debug_assert!(self.flow(seat).concluded && self.flow(seat).in_flight == 0);
        self.flows[usize::from(seat.0)] = None;
        self.order.retain(|other| *other != seat);
    }

    /// Whether the store path holds as many slots as it may.
    pub(crate) fn stores_are_full(&self) -> bool {
        self.slots.storing() >= self.store_slots
    }

    /// The sessions, each once; another one comes first at each call.
    pub(crate) fn sessions_in_turn(&mut self) -> impl Iterator<Item = usize> + use<> {
        let (first, sessions) = (self.first_session, self.sessions);
        self.first_session = (first + 1) % sessions;
        (0..sessions).map(move |turn| (first + turn) % sessions)
    }
}

/// How an engine answered a submission.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Launch {
    Started,
    /// Nothing of the block is to move.
    Nothing,
    /// Not now: the ticket waits in front.
    NoRoom,
    Failed(Failure),
}

/// What an inflate operation came to.
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

/// What came of a transfer that failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unreached {
    pub error: doca::Error,
    pub to_blame: bool,
}

/// What the pipeline asks of whatever it runs in. Nothing here decides anything.
pub trait World {
    fn pipeline(&mut self) -> &mut Pipeline;

    fn counters(&self) -> &Counters;

    /// Gives a job to a worker of its crew; exactly one [`crate::job::Done`] comes back later.
    fn give(&mut self, job: Job);

    /// Whether the inflate engine takes one more operation now. Asked only where there is an engine.
    fn inflate_has_room(&self) -> bool;

    /// Submits wire -> codes of a slot.
    fn inflate(&mut self, slot: Ticket) -> Launch;

    /// Whether the DMA engine takes one more operation now.
    fn transfer_has_room(&self) -> bool;

    /// Submits the slot's bytes to or from the host's pages.
    fn transfer(&mut self, slot: Ticket) -> Launch;

    /// A slot's block is over, however it ended: what was borrowed for it goes back.
    fn let_go(&mut self, slot: Ticket);

    /// Moves the oldest unfinished request of a session on, by `free_seat` and `sit`; `true` if
    /// anything happened.
    fn start_chunks(&mut self, session: usize) -> bool;

    /// A chunk has ended, the first time that this is known of it: its request is to hear.
    fn concluded(&mut self, seat: Seat, result: Result<(), Failure>);

    /// A session's memory cannot be reached: it ends.
    fn unreachable(&mut self, session: usize, error: doca::Error);
}
