//! A fetch worker's reader: its errands, and the lanes that they travel on.
//!
//! ```text
//!   begin -> errand --waiting--> dispatch -> lane -> reply -> next step, again, or answer -> poll
//!                      ^______ redirect, lost connection, try later ______|
//! ```
//!
//! To each node there is one lane for small questions (look-ups, manifests), so that these never wait behind payload,
//! and some for blocks; a block takes the lane that owes least. Everything is one thread's: nothing is locked but
//! seats.
//!
//! **Deadlines.** At its `until` an errand is answered `Late`. Its memory is taken out of the lane first; what the
//! server still sends for it is read into the spill. A server that owes something and makes no progress for
//! `stall-ms` loses its connection, and what was due on it is asked again elsewhere or later, three times at most.
//!
//! **Wrong replies.** What a replica has not, or has otherwise, its master is asked. A block that is not there or has
//! another length makes the reader look at the master's manifest again: if it is still the one that was opened, the
//! chunk is bad; if not, it went or was replaced meanwhile, which is a miss. Nothing is deleted for either.
//!
//! **Anew.** A chunk that was found bad is opened `anew`: all of it is asked of the master alone, blocks on the
//! connection for small questions and the manifest on one for blocks, so that neither comes the way that it came
//! before. What is bad then, too, may still be the path's doing: a discard asks the server for nothing (guard.rs).

use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::inflow::{Due, Got, SCRATCH_BYTES};
use super::lane::{Lane, Loss, OUT_BYTES};
use super::name::slot_of;
use super::{RedisStore, advice};
use crate::{Answer, Ask, BlockMemory, Outcome, Reader, StoreError};
use dispatch::route;
use errand::{Errand, Work};
use errands::Errands;

mod dispatch;
mod errand;
mod errands;
mod lookup;
mod refusals;

/// Lanes to one node beside those for blocks: the one for small questions.
const CONTROL: usize = 1;
/// Replies that may be due on a lane.
const DUE_MAX: usize = 256;
/// What one read may put in wrong places, and the memory that this costs each reader.
const SPILL_BYTES: usize = 512 << 10;
const BELL: u64 = u64::MAX;
const EVENTS: usize = 64;

/// See the module's head.
#[derive(Debug)]
pub(super) struct RedisReader<'a, M> {
    store: &'a RedisStore,
    epoll: Epoll,
    events: Box<[EpollEvent]>,
    /// Number of `events` that `sleep` found and nobody has looked at yet.
    found: usize,
    lanes: Box<[Lane<M>]>,
    lanes_per_node: usize,
    spill: Box<[u8]>,
    errands: Errands<'a, M>,
    /// A question was begun, or something came back: there may be something to send.
    stirred: bool,
    /// Time of the next deadline.
    next_check: Instant,
    /// The time by which the last turn judged what is due.
    turned_at: Instant,
}

/// Bytes that one reader takes.
pub(super) fn memory_bytes(connections: usize, nodes: usize) -> usize {
    let lane = OUT_BYTES + SCRATCH_BYTES + DUE_MAX * size_of::<Due<Vec<u8>>>();
    SPILL_BYTES + nodes * (CONTROL + connections) * lane
}

impl<'a, M: BlockMemory> RedisReader<'a, M> {
    pub(super) fn new(store: &'a RedisStore, bell: BorrowedFd<'a>, seed: u64) -> io::Result<Self> {
        let lanes_per_node = CONTROL + store.connector.options.connections;
        let lanes = store.nodes.places() * lanes_per_node;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(bell, EpollEvent::new(EpollFlags::EPOLLIN, BELL))?;
        let mut reader = Self {
            store,
            epoll,
            events: vec![EpollEvent::empty(); EVENTS].into(),
            found: 0,
            lanes: (0..lanes).map(|lane| Lane::new((lane / lanes_per_node) as u16, DUE_MAX)).collect(),
            lanes_per_node,
            spill: vec![0; SPILL_BYTES].into(),
            errands: Errands::new(store, store.limits.asks_max, seed),
            stirred: false,
            next_check: Instant::now(),
            turned_at: Instant::now(),
        };
        for place in 0..reader.store.nodes.len() {
            reader.open_lanes(place as u16);
        }
        Ok(reader)
    }

    /// Opens the lanes to one node that are closed and may be opened.
    fn open_lanes(&mut self, node: u16) {
        let now = Instant::now();
        let first = usize::from(node) * self.lanes_per_node;
        for index in first..first + self.lanes_per_node {
            if self.lanes[index].retry_at().is_some_and(|at| at <= now) {
                let lane = &mut self.lanes[index];
                if let Err(loss) = lane.open(&self.store.connector, &self.store.nodes, &self.epoll, index as u64) {
                    self.close_lane(index, loss);
                }
            }
        }
    }

    fn close_lane(&mut self, index: usize, loss: Loss) {
        let lane = &mut self.lanes[index];
        let nodes = &self.store.nodes;
        let node = lane.node;
        let errands = &mut self.errands;
        let jitter = errands.jitter();
        lane.close(nodes, jitter, &mut |due| errands.lost(due));
        match loss {
            // No second question changes that, so nobody waits for it.
            Loss::Refused(refusal) if !refusal.later => {
                nodes.refused(node, &refusal);
                self.store.surveyor.ask();
                let error = nodes.error_of(node);
                self.errands.sweep_lost(Some(error));
                self.fail_waiting(node, error);
            }
            Loss::Refused(refusal) => {
                nodes.failed(node, &refusal);
                self.store.surveyor.ask();
                self.errands.sweep_lost(None);
            }
            Loss::Io(error) => {
                nodes.failed(node, &advice::Lost(&error, &self.store.connector.options));
                self.store.counters.io_errors.fetch_add(1, Relaxed);
                self.store.surveyor.ask();
                self.errands.sweep_lost(None);
                log::debug!("store: a connection to {} is closed: {error}", nodes.at(node).address);
            }
        }
        self.stirred = true;
    }

    /// Fails all that waits for this node.
    fn fail_waiting(&mut self, node: u16, error: StoreError) {
        for place in self.errands.places() {
            let (store, errands) = (self.store, &mut self.errands);
            let Some(errand) = errands.get(place).filter(|errand| errand.waits) else { continue };
            match &mut errand.work {
                Work::Lookup(asked) => {
                    for item in 0..asked.lookup.keys().len() {
                        let key = asked.lookup.keys()[item];
                        if asked.wants(item) && route(store, slot_of(&key), None, false) == Some(node) {
                            asked.cut(item, error);
                        }
                    }
                    errands.settle_lookup(place);
                }
                _ if route(store, errand.slot, errand.aside, errand.owner) == Some(node) => errands.fail(place, error),
                _ => {}
            }
        }
    }

    fn handle_events(&mut self) {
        for index in 0..std::mem::take(&mut self.found) {
            let tag = self.events[index].data();
            if tag == BELL {
                continue;
            }
            let lane = &mut self.lanes[tag as usize];
            let node = lane.node;
            let errands = &mut self.errands;
            let done = &mut |due: Due<M>, got: Got<'_>| errands.take(node, due, got);
            let result = lane.event(&self.store.connector, &self.store.nodes, &mut self.spill, done);
            let copied = lane.take_copied();
            if copied > 0 {
                self.store.counters.bytes_copied.fetch_add(copied, Relaxed);
            }
            self.stirred = true;
            if let Err(loss) = result {
                self.close_lane(tag as usize, loss);
            } else if let Some(refusal) = self.errands.revoked.take() {
                self.close_lane(tag as usize, Loss::Refused(refusal));
            }
        }
    }

    /// Enforces the deadlines of errands and the time limits of lanes.
    fn check_times(&mut self, now: Instant) {
        for place in self.errands.places() {
            let Some(errand) = self.errands.get(place).filter(|errand| errand.until <= now) else { continue };
            if let Work::Read { memory: memory @ None, .. } = &mut errand.work {
                *memory = self.lanes.iter_mut().find_map(|lane| lane.orphan(place));
            }
            let call = errand.work.call();
            self.errands.fail(place, StoreError::Late { call });
        }
        for index in 0..self.lanes.len() {
            if self.lanes[index].patience(&self.store.connector).is_some_and(|until| until <= now) {
                self.close_lane(index, Loss::Io(ErrorKind::TimedOut.into()));
            }
        }
    }
}

impl<M> Drop for RedisReader<'_, M> {
    /// Takes back what the nodes count of this reader.
    fn drop(&mut self) {
        self.lanes.iter().for_each(|lane| lane.leave(&self.store.nodes));
    }
}

impl<M: BlockMemory> Reader<M> for RedisReader<'_, M> {
    fn has_room(&self) -> bool {
        self.errands.has_room()
    }

    fn is_idle(&self) -> bool {
        self.errands.is_idle()
    }

    fn begin(&mut self, tag: usize, ask: Ask<M>) {
        self.errands.begin(tag, ask);
        self.stirred = true;
    }

    fn poll(&mut self, manifest: &mut [u8]) -> Option<Answer<M>> {
        if self.errands.answers.is_empty() {
            self.turn();
        }
        let (answer, seat) = self.errands.answers.pop_front()?;
        if let (Some(seat), Outcome::Opened(Ok(bytes))) = (seat, &answer.outcome) {
            manifest[..*bytes].copy_from_slice(self.store.seat(seat).manifest());
        }
        Some(answer)
    }

    fn sleep(&mut self) {
        if self.stirred || !self.errands.answers.is_empty() {
            return;
        }
        let now = Instant::now();
        let next = self.patience();
        self.next_check = next.unwrap_or(now + Duration::from_secs(3600));
        let timeout = match next {
            None => EpollTimeout::NONE,
            // Rounded up, so that nobody turns in circles for the last fraction.
            Some(next) => EpollTimeout::from((next - now.min(next)).as_micros().div_ceil(1000).min(60_000) as u16),
        };
        // Interrupted: nothing was found, and the caller looks again.
        self.found = self.epoll.wait(&mut self.events, timeout).unwrap_or(0);
    }
}

impl<M: BlockMemory> RedisReader<'_, M> {
    /// Moves on what can be moved on without waiting.
    fn turn(&mut self) {
        self.handle_events();
        let now = Instant::now();
        self.turned_at = now;
        if now >= self.next_check {
            self.check_times(now);
        }
        if std::mem::take(&mut self.stirred) || !self.errands.waiting.is_empty() {
            self.dispatch(now);
        }
    }

    /// Returns the next moment at which something has to be done even if nothing comes.
    fn patience(&self) -> Option<Instant> {
        let errands = self.errands.iter();
        let errands =
            errands.map(|errand| if errand.waits { errand.until.min(self.wakes_at(errand)) } else { errand.until });
        let lanes = self.lanes.iter().filter_map(|lane| lane.patience(&self.store.connector));
        errands.chain(lanes).min()
    }

    /// Returns when an errand that waits has another chance without an event: it may be asked again, or a lane may be
    /// opened again. What was due at the last turn was done then: lanes that are still closed are of nodes that
    /// nobody waits for.
    fn wakes_at(&self, errand: &Errand<M>) -> Instant {
        if errand.not_before > self.turned_at {
            return errand.not_before;
        }
        self.lanes.iter().filter_map(Lane::retry_at).filter(|at| *at > self.turned_at).min().unwrap_or(errand.until)
    }
}
