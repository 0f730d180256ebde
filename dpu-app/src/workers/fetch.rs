//! A fetch worker: hands its jobs to its reader of the store while that has room, and takes answers as they come.
//!
//! ```text
//!   Fetching: the slot's wire area moves into the reader with `Read` and comes back with the answer. A block that the
//!             card's tier has is not read at all: the slot borrows it where it lies (lender.rs, wire.rs)
//! ```
//!
//! **Sleep.** It sleeps in one place, the reader's, which also ends when the bell is readable. No wake-up is lost: the
//! engine thread changes the queue, then looks at the bell's flag; this thread raises the flag, then looks at the queue
//! (bell.rs). Sockets need no flag: they are level-triggered, so whatever came before the sleep ends it at once. What a
//! reader still has to do without any event (a question just begun, an answer not yet taken) its own `sleep` sees,
//! since both are this thread's.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use block::Header;
use doca::Area;
use store::{Answer, Ask, Lookup, Outcome, Reader, StoreError, Why};

use crate::count::counters::Occupancy;
use crate::pipeline::job::{BlockFacts, Done, Failure, Job, Seat};
use crate::pipeline::slots::Ticket;
use crate::workers::bell::EventBell;
use crate::workers::line::Duties;
use crate::workers::shared::{Shared, StartedPrefix};

/// Least time for taking a bad chunk out of the store, however near its deadline: its host waits for it. One that stays
/// is found bad again.
const DISCARD_LEAST: Duration = Duration::from_millis(25);

/// Purpose of a question to the store.
#[derive(Clone, Copy, Debug)]
enum Task {
    Job(Job),
    /// A bad chunk leaves the store before its seat is given back.
    Discard {
        seat: Seat,
    },
}

/// A worker that reads from the store.
pub(crate) struct Fetcher<'a, 's> {
    shared: &'a Shared<'s>,
    bell: &'a EventBell,
    duties: Duties<'a>,
    reader: Box<dyn Reader<Area> + 'a>,
    /// Tasks by the tag that the reader gives back, with their begin.
    tasks: Vec<Option<(Task, Instant)>>,
    free: Vec<usize>,
    manifest: Vec<u8>,
    /// Reads in flight, and the time with any.
    reading: usize,
    occupancy: Occupancy,
}

impl std::fmt::Debug for Fetcher<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetcher").field("reading", &self.reading).finish_non_exhaustive()
    }
}

impl<'a, 's> Fetcher<'a, 's> {
    /// Allocates its tables. `reader` is this worker's own, and ends its sleep when `bell` rings. Init only.
    #[must_use]
    pub(crate) fn new(
        shared: &'a Shared<'s>,
        bell: &'a EventBell,
        duties: Duties<'a>,
        reader: Box<dyn Reader<Area> + 'a>,
    ) -> Self {
        let asks = crate::config::asks_max(shared.config);
        let manifest = vec![0; block::MANIFEST_BYTES_MAX];
        let (tasks, free) = ((0..asks).map(|_| None).collect(), (0..asks).rev().collect());
        let occupancy = Occupancy::default();
        Self { shared, bell, duties, reader, tasks, free, manifest, reading: 0, occupancy }
    }

    /// Runs the thread.
    pub(crate) fn run(mut self) {
        loop {
            while self.reader.has_room()
                && let Some(job) = self.duties.claim()
            {
                self.start(job);
            }
            let mut answered = false;
            while let Some(answer) = self.poll() {
                self.finish(answer);
                answered = true;
            }
            if answered {
                self.shared.engine_bell.ring();
                continue;
            }
            if self.may_leave() {
                return;
            }
            self.duties.rest();
            self.bell.going_to_sleep();
            let can_start = self.duties.wait() && self.reader.has_room();
            if !can_start && !self.may_leave() {
                self.reader.sleep();
            }
            self.bell.awake();
        }
    }

    /// Tells whether the engine thread is gone and nothing is left to do.
    fn may_leave(&self) -> bool {
        self.shared.leave.load(Ordering::Acquire) && self.reader.is_idle() && !self.duties.wait()
    }

    /// Polls the reader: a call that may hang, where the store is a disk.
    fn poll(&mut self) -> Option<Answer<Area>> {
        self.duties.beat();
        self.reader.poll(&mut self.manifest)
    }

    fn start(&mut self, job: Job) {
        let ask = match job {
            Job::Lookup { session } => {
                let mut asked = self.shared.lookups[usize::from(session)].lock().expect("panic is abort");
                let keys = std::mem::take(&mut asked.keys);
                let mut lookup = Lookup::trailing(keys, asked.trailing as usize);
                // What this card cannot read is no promise that it could keep.
                self.shared.unreadable.rule_out(&mut lookup, Instant::now());
                Ask::Lookup { lookup, until: asked.until }
            }
            Job::Touch { session } => {
                let prefix = self.shared.prefixes[usize::from(session)].lock().expect("panic is abort");
                let stated = prefix.importances.len();
                self.shared.store.rate(&prefix.keys[..stated], &prefix.importances);
                let StartedPrefix { namespace, parent, keys, fetched, .. } = &*prefix;
                self.shared.store.touch(*namespace, parent.as_ref(), keys, *fetched);
                drop(prefix);
                return self.answer(Done::Touched { session });
            }
            Job::Rate { session } => {
                let asked = self.shared.lookups[usize::from(session)].lock().expect("panic is abort");
                self.shared.store.rate(&asked.keys, &asked.importances);
                drop(asked);
                return self.answer(Done::Rated { session });
            }
            Job::Open { seat, anew } => {
                let chunk = self.shared.chunks.at(seat);
                let (key, position, until) = (chunk.key, Some(chunk.position), chunk.until);
                Ask::Open { seat: seat.0.into(), key, position, anew, until }
            }
            Job::Read { slot, seat, block } => self.read(slot, seat, block),
            Job::Close { seat, bad: Some(why) } => return self.discard(seat, why),
            Job::Close { seat, bad: None } => {
                self.shared.store.close(seat.0.into());
                return self.answer(Done::Closed { seat });
            }
            _ => unreachable!("{job:?} is not for fetch workers"),
        };
        self.ask(Task::Job(job), ask);
    }

    fn ask(&mut self, task: Task, ask: Ask<Area>) {
        let tag = self.free.pop().expect("a reader takes no more questions than it was opened for");
        self.tasks[tag] = Some((task, self.duties.began()));
        self.reader.begin(tag, ask);
    }

    /// Answers at once; the engine thread is woken as if the store had answered.
    fn answer(&mut self, done: Done) {
        self.duties.answer(done);
        self.shared.engine_bell.ring();
    }

    fn read(&mut self, slot: Ticket, seat: Seat, block: u16) -> Ask<Area> {
        let (bytes, until) = {
            let chunk = self.shared.chunks.at(seat);
            (chunk.lengths[usize::from(block)] as usize, chunk.until)
        };
        let memory = self.shared.ring.memory(slot).wire.take_area().expect("no engine holds a slot in Fetching");
        self.reading += 1;
        self.occupancy.observe(self.reading, &self.shared.counters.fetch);
        Ask::Read { seat: seat.0.into(), index: block.into(), bytes, memory, until }
    }

    fn discard(&mut self, seat: Seat, why: Why) {
        // The host waits for this: not much longer than it said that it would.
        let until = self.shared.chunks.at(seat).until.max(Instant::now() + DISCARD_LEAST);
        self.ask(Task::Discard { seat }, Ask::Discard { seat: seat.0.into(), why, until });
    }

    fn finish(&mut self, answer: Answer<Area>) {
        let Answer { tag, outcome } = answer;
        let (task, began) = self.tasks[tag].take().expect("one answer for each question");
        self.free.push(tag);
        let done = match (task, outcome) {
            (Task::Job(Job::Lookup { session }), Outcome::Looked { keys, found }) => {
                self.shared.lookups[usize::from(session)].lock().expect("panic is abort").keys = keys;
                Done::Looked { session, found: found.map_err(Failure::from) }
            }
            (Task::Job(Job::Open { seat, .. }), Outcome::Opened(Ok(bytes))) => match self.adopt(seat, bytes) {
                Ok(blocks) => Done::Opened { seat, blocks: Ok(blocks) },
                Err(failure) => Done::Misread { seat, failure },
            },
            (Task::Job(Job::Open { seat, .. }), Outcome::Opened(Err(StoreError::Large { what, .. }))) => {
                Done::Opened { seat, blocks: Err(Failure::Foreign(what)) }
            }
            (Task::Job(Job::Open { seat, .. }), Outcome::Opened(Err(error))) => {
                Done::Opened { seat, blocks: Err(error.into()) }
            }
            (Task::Job(Job::Read { slot, seat, block }), Outcome::Read { memory, result }) => {
                let bytes = self.arrived(slot, seat, block, memory);
                let facts = result.map_err(Failure::from).and_then(|()| self.check(slot, seat, block, bytes));
                Done::Read { slot, facts }
            }
            (Task::Job(Job::Read { slot, seat, block }), Outcome::Lies { memory, at }) => {
                let bytes = self.arrived(slot, seat, block, memory);
                let slab = self.shared.slab.as_ref().expect("a store lends from the slab that it was opened with");
                self.shared.ring.memory(slot).wire.lend(slab.lend(at, bytes));
                Done::Read { slot, facts: self.check(slot, seat, block, bytes) }
            }
            (Task::Discard { seat }, Outcome::Discarded) => {
                self.shared.store.close(seat.0.into());
                Done::Closed { seat }
            }
            (task, outcome) => unreachable!("{task:?} was answered with {outcome:?}"),
        };
        self.duties.answer_since(began, done);
    }

    /// Takes the wire area back after a read; returns the bytes of the block.
    fn arrived(&mut self, slot: Ticket, seat: Seat, block: u16, memory: Area) -> usize {
        let bytes = self.shared.chunks.at(seat).lengths[usize::from(block)] as usize;
        self.reading -= 1;
        self.occupancy.observe(self.reading, &self.shared.counters.fetch);
        self.shared.counters.fetch.tally(bytes, bytes);
        self.shared.ring.memory(slot).wire.put_area(memory);
        bytes
    }

    fn adopt(&mut self, seat: Seat, bytes: usize) -> Result<(block::Plan, u16), Failure> {
        let sizes = self.shared.ring.slot_bytes();
        let mut chunk = self.shared.chunks.at(seat);
        chunk.adopt(&self.manifest[..bytes], sizes.wire, sizes.tile)?;
        Ok((chunk.plan, chunk.blocks as u16))
    }

    /// Checks header and scales, while they are in the cache.
    fn check(&self, slot: Ticket, seat: Seat, block: u16, bytes: usize) -> Result<BlockFacts, Failure> {
        let (key, geometry, part) = {
            let chunk = self.shared.chunks.at(seat);
            (chunk.key, chunk.geometry, chunk.part(block))
        };
        let mut memory = self.shared.ring.memory(slot);
        let memory = &mut *memory;
        let wire = &memory.wire.block().expect("it just came home")[..bytes];
        let header = Header::open(wire, &key, &geometry, block.into(), &part).map_err(|error| (error, wire))?;
        if header.codes_bytes as usize > self.shared.ring.slot_bytes().codes {
            return Err(Failure::Foreign("blocks larger than --block-bytes"));
        }
        memory.header = Some(header);
        Ok(BlockFacts::of(&header))
    }
}
