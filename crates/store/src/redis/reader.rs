//! A fetch worker's reader: its errands, and the lanes that they travel on.
//!
//! ```text
//!   begin -> errand --waiting--> dispatch -> lane -> reply -> next step, again, or answer -> poll
//!                      ^______ redirect, lost connection, try later ______|
//! ```
//!
//! To each node there is one lane for small questions (look-ups, manifests), so that these never wait behind payload, and
//! some for blocks; a block takes the lane that owes least. Everything is one thread's: nothing is locked but seats.
//!
//! **Deadlines.** At its `until` an errand is answered `Late`. Its memory is taken out of the lane first; what the server
//! still sends for it is read into the spill. A server that owes something and makes no progress for `stall-ms` loses its
//! connection, and what was due on it is asked again elsewhere or later, three times at most.
//!
//! **Wrong replies.** What a replica has not, or has otherwise, its master is asked. A block that is not there or has another
//! length makes the reader look at the master's manifest again: if it is still the one that was opened, the chunk is
//! bad; if not, it went or was replaced meanwhile, which is a miss. Nothing is deleted for either.
//!
//! **Anew.** A chunk that was found bad is opened `anew`: all of it is asked of the master alone, blocks on the connection for
//! small questions and the manifest on one for blocks, so that neither comes the way that it came before. What is bad then,
//! too, may still be the path's doing: a discard asks the server for nothing (guard.rs).

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use block::ChunkKey;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::fault::{Fault, said};
use super::greeting::Refusal;
use super::inflow::{Due, Got, Owner, SCRATCH_BYTES, Wants};
use super::lane::{Lane, Loss, OUT_BYTES};
use super::name::{MANIFEST_FIELD, Name, slot_of};
use super::options::ReadFrom;
use super::resp::{Digits, Reply};
use super::{RedisStore, advice};
use crate::{Answer, Ask, LOOKUP_KEYS_MAX, Memory, Outcome, Reader, STORE_TRIES, StoreError};

/// Lanes to one node beside those for blocks: the one for small questions.
const CONTROL: usize = 1;
/// Replies that may be due on a lane.
const DUE_MAX: usize = 256;
/// Bytes of the longest command of a reader, and of a redirected one with ASKING before it.
const COMMAND_BYTES: usize = 256;
/// What one read may put in wrong places, and the memory that this costs each reader.
const SPILL_BYTES: usize = 512 << 10;
/// Redirects that one errand follows.
const HOPS_MAX: u8 = 8;
/// How long a question waits that the server cannot answer yet: the first time, and at most.
const LATER_LEAST: Duration = Duration::from_millis(5);
const LATER_MOST: Duration = Duration::from_millis(100);
/// Keys of a look-up that a slot's move may send elsewhere at the same time.
const ASIDES: usize = 32;
const BELL: u64 = u64::MAX;
const EVENTS: usize = 64;

/// Which of a node's connections a question takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The one for small questions.
    Small,
    /// One of those for blocks, with room in its window for these.
    Block { bytes: usize },
}

/// A set of keys of a look-up.
type Keys = [u64; LOOKUP_KEYS_MAX / 64];

fn has(set: &Keys, index: usize) -> bool {
    set[index / 64] >> (index % 64) & 1 == 1
}

fn put(set: &mut Keys, index: usize, on: bool) {
    let bit = 1 << (index % 64);
    set[index / 64] = if on { set[index / 64] | bit } else { set[index / 64] & !bit };
}

/// How many are in it from 0 on without a gap.
fn leading(set: &Keys) -> usize {
    let full = set.iter().take_while(|word| **word == u64::MAX).count();
    full * 64 + set.get(full).map_or(0, |word| word.trailing_ones() as usize)
}

/// What an errand asks next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Ask,
    /// Whether the manifest still is the one that was opened: `what` was wrong with a block, and `value` was there.
    Recheck {
        what: &'static str,
        value: u64,
    },
}

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a place in a fixed table; a box would be an allocation for each look-up"
)]
enum Work<M> {
    Lookup(Look),
    Open { seat: usize },
    Read { seat: usize, index: usize, bytes: usize, memory: Option<M> },
}

#[derive(Debug)]
struct Look {
    keys: Vec<ChunkKey>,
    asked: Keys,
    present: Keys,
    /// No key from here on matters: the first that is absent or cannot be asked for, or the end.
    limit: usize,
    /// Why, if it cannot be asked for.
    error: Option<StoreError>,
    /// Keys that another node than the map's has for the moment.
    asides: heapless::Vec<(u16, u16), ASIDES>,
}

/// One question that is in flight.
#[derive(Debug)]
struct Errand<M> {
    tag: usize,
    until: Instant,
    key: ChunkKey,
    slot: u16,
    step: Step,
    work: Work<M>,
    /// The master is asked and no replica.
    owner: bool,
    /// By another way than before.
    anew: bool,
    /// Connections lost under it.
    tries: usize,
    hops: u8,
    /// How often it was told to come again later.
    delays: u32,
    not_before: Instant,
    /// The node that a redirect named, and whether that is to be told so.
    aside: Option<(u16, bool)>,
    /// In `waiting`.
    waits: bool,
    /// The connection that just closed owed it something.
    lost: bool,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct RedisReader<'a, M> {
    store: &'a RedisStore,
    epoll: Epoll,
    events: Box<[EpollEvent]>,
    /// Of those, how many `sleep` found and nobody has looked at.
    found: usize,
    lanes: Box<[Lane<M>]>,
    lanes_per_node: usize,
    spill: Box<[u8]>,
    desk: Desk<'a, M>,
    /// A question was begun, or something came back: look for what can be sent.
    stirred: bool,
    /// The next deadline.
    next_check: Instant,
    /// The time by which the last turn judged what is due.
    turned_at: Instant,
}

/// What replies change: apart from the lanes, so that a lane can hand them over.
#[derive(Debug)]
struct Desk<'a, M> {
    store: &'a RedisStore,
    errands: Box<[Option<Errand<M>>]>,
    /// By place: told with every question, so that a reply that comes too late finds nobody.
    generations: Box<[u16]>,
    free: Vec<u16>,
    /// Errands with something to send, each once.
    waiting: VecDeque<u16>,
    /// With the seat whose manifest is to be copied.
    answers: VecDeque<(Answer<M>, Option<usize>)>,
    /// The connection whose reply was taken last is not logged in any more.
    revoked: Option<Refusal>,
    random: u64,
}

/// Bytes that one reader takes.
pub(super) fn memory_bytes(connections: usize, nodes: usize) -> usize {
    let lane = OUT_BYTES + SCRATCH_BYTES + DUE_MAX * size_of::<Due<Vec<u8>>>();
    SPILL_BYTES + nodes * (CONTROL + connections) * lane
}

impl<'a, M: Memory> RedisReader<'a, M> {
    pub(super) fn new(store: &'a RedisStore, bell: BorrowedFd<'a>, seed: u64) -> io::Result<Self> {
        let lanes_per_node = CONTROL + store.door.options.connections;
        let lanes = store.nodes.places() * lanes_per_node;
        let asks_max = store.limits.asks_max;
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
            desk: Desk {
                store,
                errands: (0..asks_max).map(|_| None).collect(),
                generations: vec![0; asks_max].into(),
                free: (0..asks_max as u16).rev().collect(),
                waiting: VecDeque::with_capacity(asks_max),
                answers: VecDeque::with_capacity(asks_max),
                revoked: None,
                random: seed | 1,
            },
            stirred: false,
            next_check: Instant::now(),
            turned_at: Instant::now(),
        };
        for place in 0..reader.store.nodes.len() {
            reader.open_lanes(place as u16);
        }
        Ok(reader)
    }

    /// Opens what is closed and may be opened, towards one node.
    fn open_lanes(&mut self, node: u16) {
        let now = Instant::now();
        let first = usize::from(node) * self.lanes_per_node;
        for index in first..first + self.lanes_per_node {
            if self.lanes[index].retry_at().is_some_and(|at| at <= now) {
                let lane = &mut self.lanes[index];
                if let Err(loss) = lane.open(&self.store.door, &self.store.nodes, &self.epoll, index as u64) {
                    self.close_lane(index, loss);
                }
            }
        }
    }

    fn close_lane(&mut self, index: usize, loss: Loss) {
        let lane = &mut self.lanes[index];
        let nodes = &self.store.nodes;
        let node = lane.node;
        let desk = &mut self.desk;
        let jitter = desk.jitter();
        lane.close(nodes, jitter, &mut |due| desk.lost(due));
        match loss {
            // No second question changes that, so nobody waits for it.
            Loss::Refused(refusal) if !refusal.later => {
                nodes.refused(node, &refusal);
                self.store.surveyor.ask();
                let error = nodes.error_of(node);
                self.desk.sweep_lost(Some(error));
                self.fail_waiting(node, error);
            }
            Loss::Refused(refusal) => {
                nodes.failed(node, &refusal);
                self.store.surveyor.ask();
                self.desk.sweep_lost(None);
            }
            Loss::Io(error) => {
                nodes.failed(node, &advice::Lost(&error, &self.store.door.options));
                self.store.counters.io_errors.fetch_add(1, Relaxed);
                self.store.surveyor.ask();
                self.desk.sweep_lost(None);
                log::debug!("store: a connection to {} is closed: {error}", nodes.at(node).address);
            }
        }
        self.stirred = true;
    }

    /// Nothing that waits for this node can be served.
    fn fail_waiting(&mut self, node: u16, error: StoreError) {
        for place in 0..self.desk.errands.len() as u16 {
            let Some(errand) = &self.desk.errands[usize::from(place)] else { continue };
            if !errand.waits {
                continue;
            }
            match &errand.work {
                Work::Lookup(look) => {
                    let wants = |item: &usize| !has(&look.asked, *item);
                    let theirs = |item: &usize| self.route(slot_of(&look.keys[*item]), None, false) == Some(node);
                    if let Some(item) = (0..look.limit).filter(wants).find(theirs) {
                        self.desk.cut_lookup(place, item, error);
                    }
                }
                _ if self.route(errand.slot, errand.aside, errand.owner) == Some(node) => self.desk.fail(place, error),
                _ => {}
            }
        }
    }

    /// The node that a question about a slot goes to.
    fn route(&self, slot: u16, aside: Option<(u16, bool)>, owner: bool) -> Option<u16> {
        let nodes = &self.store.nodes;
        if let Some((node, _)) = aside {
            return Some(node);
        }
        let master = nodes.master(slot.into());
        if self.store.door.options.read == ReadFrom::Master || owner {
            return master;
        }
        let all = || master.into_iter().chain(nodes.replicas(slot.into()));
        let load = |node: &u16| nodes.at(*node).in_flight.load(Relaxed);
        all().filter(|node| nodes.admits(*node)).min_by_key(load).or(master)
    }

    fn handle_events(&mut self) {
        for index in 0..std::mem::take(&mut self.found) {
            let tag = self.events[index].data();
            if tag == BELL {
                continue;
            }
            let lane = &mut self.lanes[tag as usize];
            let node = lane.node;
            let desk = &mut self.desk;
            let done = &mut |due: Due<M>, got: Got<'_>| desk.take(node, due, got);
            let result = lane.event(&self.store.door, &self.store.nodes, &mut self.spill, done);
            let copied = lane.take_copied();
            if copied > 0 {
                self.store.counters.bytes_copied.fetch_add(copied, Relaxed);
            }
            self.stirred = true;
            if let Err(loss) = result {
                self.close_lane(tag as usize, loss);
            } else if let Some(refusal) = self.desk.revoked.take() {
                self.close_lane(tag as usize, Loss::Refused(refusal));
            }
        }
    }

    /// Deadlines of errands, time limits of lanes.
    fn check_times(&mut self, now: Instant) {
        for place in 0..self.desk.errands.len() as u16 {
            let Some(errand) = &mut self.desk.errands[usize::from(place)] else { continue };
            if errand.until > now {
                continue;
            }
            if let Work::Read { memory: memory @ None, .. } = &mut errand.work {
                *memory = self.lanes.iter_mut().find_map(|lane| lane.orphan(place));
            }
            let call = errand.work.call();
            self.desk.fail(place, StoreError::Late { call });
        }
        for index in 0..self.lanes.len() {
            if self.lanes[index].patience(&self.store.door).is_some_and(|until| until <= now) {
                self.close_lane(index, Loss::Io(ErrorKind::TimedOut.into()));
            }
        }
    }

    /// Sends what waits and can be sent.
    fn dispatch(&mut self, now: Instant) {
        for _ in 0..self.desk.waiting.len() {
            let place = self.desk.waiting.pop_front().expect("counted");
            let Some(errand) = &mut self.desk.errands[usize::from(place)] else { continue };
            if !errand.waits {
                continue;
            }
            let sent = errand.not_before <= now
                && match errand.work {
                    Work::Lookup(_) => self.send_lookup(place, now),
                    _ => self.send(place, now),
                };
            match &mut self.desk.errands[usize::from(place)] {
                Some(errand) if sent => errand.waits = false,
                Some(errand) if errand.waits => self.desk.waiting.push_back(place),
                _ => {}
            }
        }
        for index in 0..self.lanes.len() {
            if !self.lanes[index].is_closed()
                && let Err(loss) = self.lanes[index].flush(&self.epoll, index as u64)
            {
                self.close_lane(index, loss);
            }
        }
    }

    /// Whether a node can be asked; if it can and has no lane for it yet, one is being opened.
    fn lane_for(&mut self, node: u16, way: Way, bytes: usize, replies: usize) -> Result<Option<usize>, StoreError> {
        let nodes = &self.store.nodes;
        if !nodes.admits(node) {
            return Err(nodes.error_of(node));
        }
        self.open_lanes(node);
        let first = usize::from(node) * self.lanes_per_node;
        let window = self.store.door.options.window;
        let lanes = &self.lanes;
        let fits = |index: &usize| lanes[*index].is_ready() && lanes[*index].has_room(bytes, replies);
        Ok(match way {
            Way::Small => Some(first).filter(fits),
            Way::Block { bytes: block } => {
                let all = first + CONTROL..first + self.lanes_per_node;
                let has_window = |index: &usize| lanes[*index].owed() == 0 || lanes[*index].owed() + block <= window;
                all.filter(fits).filter(has_window).min_by_key(|index| lanes[*index].owed())
            }
        })
    }

    /// Sends the next question of an errand about one chunk. `true`: it does not wait any more.
    fn send(&mut self, place: u16, now: Instant) -> bool {
        if !self.store.nodes.is_found() {
            self.desk.fail(place, StoreError::Miss);
            return true;
        }
        let errand = self.desk.errands[usize::from(place)].as_ref().expect("the caller looked");
        let (slot, aside, step) = (errand.slot, errand.aside, errand.step);
        let way = match errand.work {
            Work::Read { bytes, .. } if step == Step::Ask && !errand.anew => Way::Block { bytes },
            Work::Open { .. } if errand.anew => Way::Block { bytes: 0 },
            _ => Way::Small,
        };
        let Some(node) = self.route(slot, aside, errand.owner) else {
            self.store.surveyor.ask();
            self.desk.later(place, now);
            return false;
        };
        let index = match self.lane_for(node, way, 2 * COMMAND_BYTES, 3) {
            Ok(Some(index)) => index,
            Ok(None) => return false,
            Err(error) => {
                self.store.surveyor.ask();
                self.desk.fail(place, error);
                return true;
            }
        };
        let (lane, nodes) = (&mut self.lanes[index], &self.store.nodes);
        let generation = self.desk.generations[usize::from(place)];
        let errand = self.desk.errands[usize::from(place)].as_mut().expect("the caller looked");
        let small = |owner| Due { owner, since: now, wants: Wants::Reply };
        if let Some((_, true)) = errand.aside {
            lane.send(nodes, &[b"ASKING"], small(Owner::Nobody));
        }
        let name = Name::of(&errand.key);
        let owner = Owner::Errand { place, generation, item: 0 };
        match (&mut errand.work, step) {
            (Work::Read { index, bytes, memory, .. }, Step::Ask) => {
                let memory = Some(memory.take().expect("it is here while the errand waits"));
                let wants = Wants::Block { bytes: *bytes, memory };
                let mut digits = Digits::default();
                let words: [&[u8]; 3] = [b"HGET", name.bytes(), digits.of(*index)];
                lane.send(nodes, &words, Due { owner, since: now, wants });
            }
            (work, _) => {
                lane.send(nodes, &[b"HGET", name.bytes(), MANIFEST_FIELD], small(owner));
                if let (Work::Open { .. }, Some(ttl)) = (work, self.store.door.options.ttl) {
                    let mut digits = Digits::default();
                    let words: [&[u8]; 3] = [b"PEXPIRE", name.bytes(), digits.of(ttl.as_millis() as usize)];
                    lane.send(nodes, &words, small(Owner::Nobody));
                }
            }
        }
        true
    }

    /// Asks for the keys of a look-up that have not been asked for. `true`: none is left.
    fn send_lookup(&mut self, place: u16, now: Instant) -> bool {
        if !self.store.nodes.is_found() {
            self.desk.end(place, Ok(0));
            return true;
        }
        let take = |errand: &mut Option<Errand<M>>| match &mut errand.as_mut().expect("the caller looked").work {
            Work::Lookup(look) => std::mem::replace(look, Look::empty()),
            _ => unreachable!("the caller looked"),
        };
        // Out of the table while lanes are opened, which may change other errands.
        let mut look = take(&mut self.desk.errands[usize::from(place)]);
        let generation = self.desk.generations[usize::from(place)];
        let mut all = true;
        let mut item = 0;
        while item < look.limit {
            if has(&look.asked, item) {
                item += 1;
                continue;
            }
            let key = look.keys[item];
            let aside = look.asides.iter().find(|(of, _)| usize::from(*of) == item).map(|(_, node)| (*node, true));
            let Some(node) = self.route(slot_of(&key), aside, false) else {
                self.store.surveyor.ask();
                self.desk.later(place, now);
                all = false;
                break;
            };
            match self.lane_for(node, Way::Small, 2 * COMMAND_BYTES, 2) {
                Ok(Some(index)) => {
                    let (lane, nodes) = (&mut self.lanes[index], &self.store.nodes);
                    let due = |owner| Due { owner, since: now, wants: Wants::Reply };
                    if aside.is_some() {
                        lane.send(nodes, &[b"ASKING"], due(Owner::Nobody));
                    }
                    let name = Name::of(&key);
                    let words: [&[u8]; 3] = [b"HEXISTS", name.bytes(), MANIFEST_FIELD];
                    lane.send(nodes, &words, due(Owner::Errand { place, generation, item: item as u16 }));
                    put(&mut look.asked, item, true);
                }
                Ok(None) => all = false,
                Err(error) => {
                    self.store.surveyor.ask();
                    (look.limit, look.error) = (item, Some(error));
                }
            }
            item += 1;
        }
        let errand = self.desk.errands[usize::from(place)].as_mut().expect("nobody ends a look-up meanwhile");
        errand.work = Work::Lookup(look);
        self.desk.settle_lookup(place);
        all
    }
}

impl<M> Drop for RedisReader<'_, M> {
    /// What the nodes count of this reader goes with it.
    fn drop(&mut self) {
        self.lanes.iter().for_each(|lane| lane.leave(&self.store.nodes));
    }
}

impl<M: Memory> Reader<M> for RedisReader<'_, M> {
    fn has_room(&self) -> bool {
        !self.desk.free.is_empty()
    }

    fn is_idle(&self) -> bool {
        self.desk.free.len() == self.desk.errands.len() && self.desk.answers.is_empty()
    }

    fn begin(&mut self, tag: usize, ask: Ask<M>) {
        self.desk.begin(tag, ask);
        self.stirred = true;
    }

    fn poll(&mut self, manifest: &mut [u8]) -> Option<Answer<M>> {
        if self.desk.answers.is_empty() {
            self.turn();
        }
        let (answer, seat) = self.desk.answers.pop_front()?;
        if let (Some(seat), Outcome::Opened(Ok(bytes))) = (seat, &answer.outcome) {
            manifest[..*bytes].copy_from_slice(self.store.seat(seat).manifest());
        }
        Some(answer)
    }

    fn sleep(&mut self) {
        if self.stirred || !self.desk.answers.is_empty() {
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

impl<M: Memory> RedisReader<'_, M> {
    /// Moves on what can be moved on without waiting.
    fn turn(&mut self) {
        self.handle_events();
        let now = Instant::now();
        self.turned_at = now;
        if now >= self.next_check {
            self.check_times(now);
        }
        if std::mem::take(&mut self.stirred) || !self.desk.waiting.is_empty() {
            self.dispatch(now);
        }
    }

    /// The next moment at which something has to be done even if nothing comes.
    fn patience(&self) -> Option<Instant> {
        let errands = self.desk.errands.iter().flatten();
        let errands =
            errands.map(|errand| if errand.waits { errand.until.min(self.wakes_at(errand)) } else { errand.until });
        let lanes = self.lanes.iter().filter_map(|lane| lane.patience(&self.store.door));
        errands.chain(lanes).min()
    }

    /// When an errand that waits has another chance without an event: it may be asked again, or a lane may be opened
    /// again. What was due at the last turn was done then: lanes that are still closed are of nodes that
    /// nobody waits for.
    fn wakes_at(&self, errand: &Errand<M>) -> Instant {
        if errand.not_before > self.turned_at {
            return errand.not_before;
        }
        self.lanes.iter().filter_map(Lane::retry_at).filter(|at| *at > self.turned_at).min().unwrap_or(errand.until)
    }
}

impl<M: Memory> Desk<'_, M> {
    fn begin(&mut self, tag: usize, ask: Ask<M>) {
        let now = Instant::now();
        let (mut owner, mut anew) = (false, false);
        let (key, until, work) = match ask {
            Ask::Lookup { keys, until } => {
                assert!(keys.len() <= LOOKUP_KEYS_MAX, "lookup: {} keys exceed {LOOKUP_KEYS_MAX}", keys.len());
                let key = keys.first().copied().unwrap_or(ChunkKey::new([0; block::KEY_BYTES]));
                let look = Look { limit: keys.len(), keys, ..Look::empty() };
                (key, until, Work::Lookup(look))
            }
            Ask::Open { seat, key, anew: by_another_way, until, .. } => {
                assert!(self.store.seat(seat).key.is_none(), "open: seat {seat} is occupied");
                (owner, anew) = (by_another_way, by_another_way);
                (key, until, Work::Open { seat })
            }
            Ask::Read { seat, index, bytes, memory, until } => {
                assert!(bytes > 0 && bytes <= memory.len(), "read_block: {bytes} bytes into {}", memory.len());
                let key = self.store.key_of(seat, "read_block");
                anew = self.store.seat(seat).anew;
                owner = anew;
                (key, until, Work::Read { seat, index, bytes, memory: Some(memory) })
            }
            Ask::Discard { seat, why, .. } => {
                self.store.withhold(seat, &why);
                self.answers.push_back((Answer { tag, outcome: Outcome::Discarded }, None));
                return;
            }
        };
        let place = self.free.pop().expect("the caller asked for room");
        self.errands[usize::from(place)] = Some(Errand {
            tag,
            until,
            key,
            slot: slot_of(&key),
            step: Step::Ask,
            work,
            owner,
            anew,
            tries: 0,
            hops: 0,
            delays: 0,
            not_before: now,
            aside: None,
            waits: true,
            lost: false,
        });
        self.waiting.push_back(place);
        if until <= now {
            let call = self.errands[usize::from(place)].as_ref().expect("just put").work.call();
            self.fail(place, StoreError::Late { call });
        } else {
            self.settle_lookup(place);
        }
    }

    fn errand(&mut self, place: u16) -> &mut Errand<M> {
        self.errands[usize::from(place)].as_mut().expect("an errand that is under way")
    }

    /// A reply of `node` is whole.
    fn take(&mut self, node: u16, due: Due<M>, got: Got<'_>) {
        let Owner::Errand { place, generation, item } = due.owner else { return };
        let facts = self.store.nodes.at(node);
        facts.latency.count(due.since.elapsed());
        if self.generations[usize::from(place)] != generation {
            return;
        }
        let store = self.store;
        let errand = self.errand(place);
        if let (Wants::Block { memory, .. }, Work::Read { memory: home, .. }) = (due.wants, &mut errand.work) {
            *home = memory;
        }
        let (step, key, slot, owner, anew) = (errand.step, errand.key, errand.slot, errand.owner, errand.anew);
        match (got, &mut errand.work) {
            (Got::Block, work) => {
                let Work::Read { bytes, .. } = work else { unreachable!("only reads wait for blocks") };
                let bytes = *bytes as u64;
                facts.bytes_read.fetch_add(bytes, Relaxed);
                store.counters.bytes_read.fetch_add(bytes, Relaxed);
                self.end(place, Ok(0));
            }
            (Got::Reply(Reply::Error(text)), _) => self.take_fault(node, place, item, text),
            (Got::Reply(reply), Work::Lookup(look)) => {
                match reply {
                    Reply::Number(1) => put(&mut look.present, item.into(), true),
                    _ => look.limit = look.limit.min(item.into()),
                }
                self.settle_lookup(place);
            }
            // A replica may lag and a map may be old: only who owns the chunk can say that it is not as it should be.
            (Got::Reply(Reply::Null) | Got::Odd(_), Work::Open { .. } | Work::Read { .. })
                if !owner && store.nodes.master(slot.into()) != Some(node) =>
            {
                let errand = self.errand(place);
                (errand.owner, errand.aside) = (true, None);
                self.wait(place);
            }
            (Got::Reply(reply), Work::Read { seat, .. }) if step != Step::Ask => {
                let Step::Recheck { what, value } = step else { unreachable!("the arm says so") };
                let same = matches!(reply, Reply::Bulk(bytes) if store.seat(*seat).manifest() == bytes);
                self.end(place, Err(if same { StoreError::Corrupt { what, value } } else { StoreError::Miss }));
            }
            (Got::Reply(Reply::Bulk(bytes)), Work::Open { seat }) => {
                let result = store.occupy(*seat, &key, bytes, anew);
                self.end(place, result);
            }
            (Got::Odd(value), Work::Open { .. }) => {
                let max = store.limits.manifest_bytes_max;
                self.end(place, Err(StoreError::Large { what: "manifest", value, max }));
            }
            // Another manifest than the one that was opened.
            (Got::Odd(_), Work::Read { .. }) if step != Step::Ask => self.end(place, Err(StoreError::Miss)),
            (_, Work::Open { .. }) => self.end(place, Err(StoreError::Miss)),
            (Got::Odd(_), Work::Lookup(look)) => {
                look.limit = look.limit.min(item.into());
                self.settle_lookup(place);
            }
            // The block is not what the manifest said, or not there.
            (got, Work::Read { .. }) => {
                let (what, value) = match got {
                    Got::Odd(bytes) => ("a block of another length, bytes", bytes as u64),
                    _ => ("a block that is missing", 0),
                };
                let errand = self.errand(place);
                (errand.owner, errand.step) = (true, Step::Recheck { what, value });
                self.wait(place);
            }
        }
    }

    fn take_fault(&mut self, node: u16, place: u16, item: u16, text: &[u8]) {
        let fault = Fault::read(text);
        let store = self.store;
        let facts = store.nodes.at(node);
        let now = Instant::now();
        let errand = self.errand(place);
        if let Work::Lookup(look) = &mut errand.work {
            put(&mut look.asked, item.into(), false);
        }
        let (call, command) = (errand.work.call(), errand.command());
        match fault {
            Fault::Moved { slot, to } => {
                facts.redirects.fetch_add(1, Relaxed);
                let target = store.place_of(node, to);
                if let Some(target) = target {
                    store.nodes.moved(slot.into(), target);
                }
                store.surveyor.ask();
                let errand = self.errand(place);
                errand.aside = None;
                errand.hops += 1;
                if let Work::Lookup(look) = &mut errand.work {
                    look.asides.retain(|(of, _)| *of != item);
                }
                if target.is_none() || errand.hops > HOPS_MAX { self.later(place, now) } else { self.wait(place) }
            }
            Fault::Ask { to } => {
                facts.redirects.fetch_add(1, Relaxed);
                let target = store.place_of(node, to);
                let errand = self.errand(place);
                errand.hops += 1;
                let many = errand.hops > HOPS_MAX;
                let known = match (target, &mut errand.work) {
                    (None, _) => false,
                    (Some(target), Work::Lookup(look)) => look.asides.push((item, target)).is_ok(),
                    (Some(target), _) => {
                        errand.aside = Some((target, true));
                        !many
                    }
                };
                if known { self.wait(place) } else { self.later(place, now) }
            }
            Fault::Later | Fault::Replica => {
                store.surveyor.ask();
                self.later(place, now);
            }
            Fault::WrongType => match &mut self.errand(place).work {
                Work::Lookup(look) => {
                    put(&mut look.asked, item.into(), true);
                    look.limit = look.limit.min(item.into());
                    self.settle_lookup(place);
                }
                // No chunk, whatever else it is.
                _ => self.end(place, Err(StoreError::Miss)),
            },
            // Whoever waits for this connection hears so when it is closed.
            Fault::Login => {
                self.revoked = Some(Refusal { later: false, asked: command, said: said(text, &store.door.login()) });
                self.fail(place, StoreError::Denied { call });
            }
            Fault::Permission | Fault::Unknown => {
                facts.errors.fetch_add(1, Relaxed);
                store.complain(node, command, fault, &said(text, &store.door.login()));
                self.fail(place, StoreError::Denied { call });
            }
            Fault::Full | Fault::ReadOnly | Fault::NoSuchKey | Fault::Other => {
                facts.errors.fetch_add(1, Relaxed);
                store.counters.io_errors.fetch_add(1, Relaxed);
                let errand = self.errand(place);
                errand.tries += 1;
                if errand.tries >= STORE_TRIES {
                    self.fail(place, StoreError::Io { call, errno: Errno::EPROTO });
                } else {
                    self.later(place, now);
                }
            }
        }
    }

    /// A connection closed that owed this.
    fn lost(&mut self, due: Due<M>) {
        let Owner::Errand { place, generation, item } = due.owner else { return };
        if self.generations[usize::from(place)] != generation {
            return;
        }
        let errand = self.errand(place);
        errand.lost = true;
        match (due.wants, &mut errand.work) {
            (Wants::Block { memory, .. }, Work::Read { memory: home, .. }) => *home = memory,
            (_, Work::Lookup(look)) => put(&mut look.asked, item.into(), false),
            _ => {}
        }
    }

    /// Asks again what a closed connection owed, or ends it with `error`.
    fn sweep_lost(&mut self, error: Option<StoreError>) {
        let now = Instant::now();
        for place in 0..self.errands.len() as u16 {
            let Some(errand) = self.errands[usize::from(place)].as_mut().filter(|errand| errand.lost) else { continue };
            errand.lost = false;
            errand.tries += 1;
            let (call, tries) = (errand.work.call(), errand.tries);
            if let Some(node) = self.store.nodes.master(errand.slot.into()) {
                self.store.nodes.at(node).retries.fetch_add(1, Relaxed);
            }
            match error {
                Some(error) => self.fail(place, error),
                None if tries >= STORE_TRIES => self.fail(place, StoreError::Down { call, errno: Errno::ECONNRESET }),
                None => self.later(place, now),
            }
        }
    }

    /// It has something to send.
    fn wait(&mut self, place: u16) {
        let errand = self.errand(place);
        if !std::mem::replace(&mut errand.waits, true) {
            self.waiting.push_back(place);
        }
    }

    /// The same, but not at once.
    fn later(&mut self, place: u16, now: Instant) {
        let jitter = self.jitter();
        let errand = self.errand(place);
        let wait = LATER_LEAST.saturating_mul(1 << errand.delays.min(10)).min(LATER_MOST);
        errand.delays += 1;
        errand.not_before = now + wait.mul_f64(0.5 + jitter / 2.0);
        self.wait(place);
    }

    /// A key of a look-up cannot be asked for, so those behind it do not matter.
    fn cut_lookup(&mut self, place: u16, item: usize, error: StoreError) {
        if let Work::Lookup(look) = &mut self.errand(place).work {
            (look.limit, look.error) = (item, Some(error));
            self.settle_lookup(place);
        }
    }

    /// Ends a look-up of which all that matters is known.
    fn settle_lookup(&mut self, place: u16) {
        let Work::Lookup(look) = &self.errand(place).work else { return };
        if leading(&look.present) < look.limit {
            return;
        }
        match look.error {
            Some(error) if look.limit == 0 => self.fail(place, error),
            _ => {
                let found = look.limit;
                self.end(place, Ok(found));
            }
        }
    }

    fn fail(&mut self, place: u16, error: StoreError) {
        self.end(place, Err(error));
    }

    /// The errand is over: `Ok` is what was found, the manifest's bytes, or nothing, by its kind.
    fn end(&mut self, place: u16, result: Result<usize, StoreError>) {
        let index = usize::from(place);
        let errand = self.errands[index].take().expect("an errand that is under way");
        self.generations[index] = self.generations[index].wrapping_add(1);
        self.free.push(place);
        if errand.waits {
            self.waiting.retain(|other| *other != place);
        }
        let counters = &self.store.counters;
        let mut opened = None;
        let outcome = match errand.work {
            Work::Lookup(look) => Outcome::Looked { keys: look.keys, found: result },
            Work::Open { seat } => {
                match result {
                    Ok(_) => drop(counters.hits.fetch_add(1, Relaxed)),
                    Err(StoreError::Miss) => drop(counters.misses.fetch_add(1, Relaxed)),
                    Err(_) => {}
                }
                opened = Some(seat);
                Outcome::Opened(result)
            }
            Work::Read { memory, .. } => {
                let memory = memory.expect("memory comes home before its errand ends");
                Outcome::Read { memory, result: result.map(|_| ()) }
            }
        };
        self.answers.push_back((Answer { tag: errand.tag, outcome }, opened));
    }

    /// From 0 to 1.
    fn jitter(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1_u64 << 53) as f64
    }
}

impl Look {
    fn empty() -> Self {
        let none = [0; LOOKUP_KEYS_MAX / 64];
        Self { keys: Vec::new(), asked: none, present: none, limit: 0, error: None, asides: heapless::Vec::new() }
    }
}

impl<M> Errand<M> {
    /// What it asks its server.
    fn command(&self) -> &'static str {
        match &self.work {
            Work::Lookup(_) => "HEXISTS",
            _ => "HGET",
        }
    }
}

impl<M> Work<M> {
    fn call(&self) -> &'static str {
        match self {
            Self::Lookup(_) => "lookup",
            Self::Open { .. } => "open",
            Self::Read { .. } => "read_block",
        }
    }
}
