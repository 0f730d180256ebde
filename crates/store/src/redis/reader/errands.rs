//! The errands of a reader, and what replies make of them: apart from the lanes, so that a lane can hand its replies
//! over.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use block::ChunkKey;

use super::errand::{Errand, ErrandStep, Work};
use super::lookup::AskedLookup;
use crate::redis::RedisStore;
use crate::redis::greeting::LoginRefusal;
use crate::redis::inflow::{Due, Got, Recipient, Wants};
use crate::redis::name::slot_of;
use crate::redis::resp::Reply;
use crate::{Answer, Ask, BlockMemory, Outcome, StoreError};

/// How long a question waits that the server cannot answer yet: the first time, and at most.
const LATER_LEAST: Duration = Duration::from_millis(5);
const LATER_MOST: Duration = Duration::from_millis(100);

/// See the module's head.
#[derive(Debug)]
pub(super) struct Errands<'a, M> {
    pub(super) store: &'a RedisStore,
    /// Errands, by place.
    table: Box<[Option<Errand<M>>]>,
    /// Generation of each place, sent along with every question, so that a reply that comes too late finds nobody.
    pub(super) generations: Box<[u16]>,
    free: Vec<u16>,
    /// Errands with something to send, each once.
    pub(super) waiting: VecDeque<u16>,
    /// Answers to be given, each with the seat whose manifest is to be copied, if any.
    pub(super) answers: VecDeque<(Answer<M>, Option<usize>)>,
    /// Why the connection whose reply was taken last is not logged in any more, if so.
    pub(super) revoked: Option<LoginRefusal>,
    random: u64,
}

impl<'a, M: BlockMemory> Errands<'a, M> {
    pub(super) fn new(store: &'a RedisStore, errands_max: usize, seed: u64) -> Self {
        Self {
            store,
            table: (0..errands_max).map(|_| None).collect(),
            generations: vec![0; errands_max].into(),
            free: (0..errands_max as u16).rev().collect(),
            waiting: VecDeque::with_capacity(errands_max),
            answers: VecDeque::with_capacity(errands_max),
            revoked: None,
            random: seed | 1,
        }
    }

    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.free.len() == self.table.len() && self.answers.is_empty()
    }

    /// Places of errands, whether there is one or not.
    pub(super) fn places(&self) -> Range<u16> {
        0..self.table.len() as u16
    }

    pub(super) fn get(&mut self, place: u16) -> Option<&mut Errand<M>> {
        self.table[usize::from(place)].as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Errand<M>> {
        self.table.iter().flatten()
    }

    pub(super) fn begin(&mut self, tag: usize, ask: Ask<M>) {
        let now = Instant::now();
        let (mut owner, mut anew) = (false, false);
        let (key, until, work) = match ask {
            Ask::Lookup { lookup, until } => {
                let key = lookup.keys().first().copied().unwrap_or(ChunkKey::new([0; block::KEY_BYTES]));
                (key, until, Work::Lookup(AskedLookup::new(lookup)))
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
        let errand = self.table[usize::from(place)].insert(Errand {
            tag,
            until,
            key,
            slot: slot_of(&key),
            step: ErrandStep::Ask,
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
        let call = errand.work.call();
        self.waiting.push_back(place);
        if until <= now {
            self.fail(place, StoreError::Late { call });
        } else {
            self.settle_lookup(place);
        }
    }

    pub(super) fn errand(&mut self, place: u16) -> &mut Errand<M> {
        self.get(place).expect("an errand that is under way")
    }

    /// Takes a whole reply of `node`.
    pub(super) fn take(&mut self, node: u16, due: Due<M>, got: Got<'_>) {
        let Recipient::Errand { place, generation, item } = due.owner else { return };
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
            (Got::Reply(reply), Work::Lookup(lookup)) => {
                lookup.lookup.note(item.into(), matches!(reply, Reply::Number(1)));
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
            (Got::Reply(reply), Work::Read { seat, .. }) if step != ErrandStep::Ask => {
                let ErrandStep::Recheck { what, value } = step else { unreachable!("the arm says so") };
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
            (Got::Odd(_), Work::Read { .. }) if step != ErrandStep::Ask => self.end(place, Err(StoreError::Miss)),
            (_, Work::Open { .. }) => self.end(place, Err(StoreError::Miss)),
            (Got::Odd(_), Work::Lookup(lookup)) => {
                lookup.lookup.note(item.into(), false);
                self.settle_lookup(place);
            }
            // The block is not what the manifest said, or not there.
            (got, Work::Read { .. }) => {
                let (what, value) = match got {
                    Got::Odd(bytes) => ("a block of another length, bytes", bytes as u64),
                    _ => ("a block that is missing", 0),
                };
                let errand = self.errand(place);
                (errand.owner, errand.step) = (true, ErrandStep::Recheck { what, value });
                self.wait(place);
            }
        }
    }

    /// Puts an errand among those that have something to send.
    pub(super) fn wait(&mut self, place: u16) {
        let errand = self.errand(place);
        if !std::mem::replace(&mut errand.waits, true) {
            self.waiting.push_back(place);
        }
    }

    /// The same, to be sent after a pause.
    pub(super) fn later(&mut self, place: u16, now: Instant) {
        let jitter = self.jitter();
        let errand = self.errand(place);
        let wait = LATER_LEAST.saturating_mul(1 << errand.delays.min(10)).min(LATER_MOST);
        errand.delays += 1;
        errand.not_before = now + wait.mul_f64(0.5 + jitter / 2.0);
        self.wait(place);
    }

    /// Ends a look-up of which all that matters is known.
    pub(super) fn settle_lookup(&mut self, place: u16) {
        if let Work::Lookup(lookup) = &self.errand(place).work
            && let Some(answer) = lookup.answer()
        {
            self.end(place, answer);
        }
    }

    pub(super) fn fail(&mut self, place: u16, error: StoreError) {
        self.end(place, Err(error));
    }

    /// Ends an errand: `Ok` is what was found, the manifest's bytes, or nothing, by its kind.
    pub(super) fn end(&mut self, place: u16, result: Result<usize, StoreError>) {
        let index = usize::from(place);
        let errand = self.table[index].take().expect("an errand that is under way");
        self.generations[index] = self.generations[index].wrapping_add(1);
        self.free.push(place);
        if errand.waits {
            self.waiting.retain(|other| *other != place);
        }
        let counters = &self.store.counters;
        let mut opened = None;
        let outcome = match errand.work {
            Work::Lookup(lookup) => Outcome::Looked { keys: lookup.lookup.into_keys(), found: result },
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

    /// Draws a number from 0 to 1.
    pub(super) fn jitter(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1_u64 << 53) as f64
    }
}
