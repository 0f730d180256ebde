//! `tiers:[dram=BYTES,][dir:PATH=BYTES,]STORE`: the card's memory (T0) and its disk (T1) in front of a store that holds
//! everything (T2). The crate `tier` decides what each tier keeps; docs/tiers.md is for operators.
//!
//! ```text
//!   fetch worker   TierReader (reader.rs): T0 lends (or is copied), T1 read, T2 asked    touch -> wishes
//!                  what comes from T2 is copied into T0 on its way, if T0 wants it (arrivals.rs); rate-limited
//!   mover          mover.rs: a thread of its own, one chunk at a time, to T1 and T0 what they want and have not;
//!                  rate-limited, after fetches
//!   encode worker  puts go to T2 alone; T0 and T1 drop what they have of that name
//! ```
//!
//! * **T2 holds everything**, so that what leaves T0 or T1 is written nowhere, and losing either costs hits only.
//! * **A tier that fails is passed over.** What cannot be opened in T0 or T1 is asked of T2; a block that cannot be
//!   read there any more is a miss, and who asks opens its chunk `anew`, in T2. While T2 is down, look-ups say what
//!   T0 and T1 have. A disk that is slow or fails again and again is left alone for a while (breaker.rs).
//! * **Bad bytes** in T0 and T1 are copies: the chunk is opened anew in T2, and the copies go, as far as T1's guard
//!   lets them. What is bad in T2 is T2's business: see the head of guard.rs.
//! * A chunk comes in whole or not at all: T1 publishes by rename, T0 by entering its name into the map last. A
//!   restart in the middle leaves nothing of it.
//!
//! What it refuses: chunks whose manifest is none of the room `block` are served from T2 and go to no tier.

use std::fmt::Write as _;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use block::{ChunkKey, Importance, Manifest};
use tier::{CandidateChunk, NAMESPACES_MAX, Worth};

use crate::backend::{Absent, AnyBackend};
use crate::namespaces::Namespaces;
use crate::node::NodeFacts;
use crate::open_error::OpenError;
use crate::secret::Url;
use crate::{Allocate, BlockMemory, Limits, POISONED, Position, Readable, Reader, Reloaded, Stats, Store, StoreError};
use arrivals::Allowance;
use disk::Disk;
use dram::Dram;
use facts::{PromotionCounts, occupancy, scores};
use fetch_cost::FetchCost;
use mover::Wishes;
use ratings::Ratings;
use reader::TierReader;

mod arrivals;
mod breaker;
mod disk;
pub(crate) mod dram;
mod facts;
mod fetch_cost;
mod mover;
mod pages;
mod parts;
mod ratings;
mod reader;
mod runs;

pub(crate) use disk::DISK_SHARE;
pub use facts::{SCORE_BUCKETS, TierFacts};
pub(crate) use parts::{Parts, SCHEME, USAGE};

/// How long the end of a store waits for its mover, which may be in a call that no thread can end.
const MOVER_LEAVES_WITHIN: Duration = Duration::from_secs(5);

/// Tier that a chunk is in, or comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tier {
    /// T2.
    Bottom,
    /// T1.
    Disk,
    /// T0.
    Dram,
}

/// What the store's threads share.
#[derive(Debug)]
struct Tiers {
    dram: Option<Dram>,
    disk: Option<Disk>,
    bottom: AnyBackend,
    /// Sizes and path of T0 and T1 in the URL.
    front: (Option<u64>, Option<(String, u64)>),
    /// Tier that each seat's chunk was opened in.
    opened_in: Box<[AtomicU8]>,
    limits: Limits,
    started: Instant,
    wishes: Wishes,
    ratings: Ratings,
    fetch_cost: FetchCost,
    allowance: Allowance,
    /// Reads of blocks that fetches have in flight at T2: the mover stands back.
    fetching: AtomicUsize,
    /// Moves into T0 and T1.
    moves: [PromotionCounts; 2],
    /// Number of readers that were made.
    readers: AtomicUsize,
}

/// The store. See the module's head.
#[derive(Debug)]
pub struct TierStore {
    tiers: Arc<Tiers>,
    mover: Option<JoinHandle<()>>,
}

impl TierStore {
    /// Init: opens every tier, takes T0's memory, starts the mover.
    pub(crate) fn open(
        url: &str,
        limits: &Limits,
        namespaces: &Namespaces,
        slab: Option<Allocate<'_>>,
        absent: Absent,
    ) -> Result<Self, OpenError> {
        let bad = |what: &str| OpenError::Option { url: url.into(), what: what.into() };
        let parts = Parts::of(url).map_err(bad)?;
        let inner = limits.with_mover();
        let seed = RandomState::new().build_hasher().finish();
        let bottom = AnyBackend::open(parts.bottom, &inner, absent)?;
        let disk = parts.disk.map(|(path, bytes)| Disk::open(path, bytes, &inner, seed, namespaces)).transpose()?;
        let dram = match parts.dram {
            Some(bytes) => match Dram::new(bytes, &inner, seed, slab) {
                Ok(Some(dram)) => Some(dram),
                Ok(None) => return Err(bad("dram= is too small or too large")),
                Err(error) => return Err(bad(&format!("no memory for dram={bytes}: {error}: make it smaller"))),
            },
            None => None,
        };
        if let Some(dram) = &dram {
            dram.set_quotas(&namespaces.quotas(dram.occupancy().2)?);
        }
        let tiers = Arc::new(Tiers {
            dram,
            disk,
            bottom,
            front: parts.front(),
            opened_in: (0..inner.chunks_open_max).map(|_| AtomicU8::new(Tier::Bottom as u8)).collect(),
            limits: *limits,
            started: Instant::now(),
            wishes: Wishes::new(limits.puts_max),
            ratings: Ratings::new(seed),
            fetch_cost: FetchCost::default(),
            allowance: Allowance::default(),
            fetching: 0.into(),
            moves: Default::default(),
            readers: 0.into(),
        });
        let mover = mover::start(Arc::clone(&tiers))
            .map_err(|error| OpenError::path("start the mover of", std::path::Path::new("tiers"), &error))?;
        Ok(Self { tiers, mover: Some(mover) })
    }
}

impl Drop for TierStore {
    fn drop(&mut self) {
        self.tiers.wishes.stop();
        let Some(mover) = self.mover.take() else { return };
        let until = Instant::now() + MOVER_LEAVES_WITHIN;
        while !mover.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        if mover.is_finished() {
            // A panic of its own it has reported itself.
            let _ = mover.join();
        } else {
            // What it uses, it owns a share of.
            log::warn!("store: the mover of tiers is in a call that does not end: left without it; does a disk hang?");
        }
    }
}

/// Describes a chunk to the policies. `cost` is that of a byte, where one from T2 has the cost of 1.
fn chunk(key: &ChunkKey, bytes: u32, namespace: u8, importance: Importance, cost: f32) -> CandidateChunk {
    CandidateChunk { key: *key, bytes, namespace, importance: importance.factor(), cost_us: bytes as f32 * cost }
}

impl Tiers {
    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Returns the tier that a seat's chunk was opened in.
    fn tier_of(&self, seat: usize) -> Tier {
        match self.opened_in[seat].load(Relaxed) {
            tier if tier == Tier::Dram as u8 => Tier::Dram,
            tier if tier == Tier::Disk as u8 => Tier::Disk,
            _ => Tier::Bottom,
        }
    }

    fn dram(&self) -> &Dram {
        self.dram.as_ref().expect("a chunk was opened there")
    }

    fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("a chunk was opened there")
    }

    fn holds(&self, key: &ChunkKey) -> bool {
        self.dram.as_ref().is_some_and(|dram| dram.holds(key))
            || self.disk.as_ref().is_some_and(|disk| disk.serves(key))
    }

    /// Gives a manifest the importance that was said last, which is what counts.
    fn rated(&self, key: &ChunkKey, manifest: Manifest) -> Manifest {
        match self.ratings.get(key) {
            Some(rating) => manifest.with_importance(rating),
            None => manifest,
        }
    }

    /// Counts a use of one chunk of a prompt.
    fn used(&self, key: &ChunkKey, position: &Position) {
        let (now_ms, parent) = (self.now_ms(), position.parent.as_ref());
        if let Some(dram) = &self.dram {
            dram.used_behind(parent, key, now_ms);
        }
        if let Some(disk) = &self.disk {
            let count = |policy: &mut Worth| policy.used_behind(parent, key, now_ms);
            disk.used(position.namespace, std::slice::from_ref(key), count);
        }
    }

    /// Whether T0 or T1, where there is one, neither has a chunk nor gets it.
    fn misses(&self, key: &ChunkKey) -> bool {
        self.dram.as_ref().is_some_and(|dram| !dram.expects(key))
            || self.disk.as_ref().is_some_and(|disk| !disk.store.holds(key))
    }

    /// Takes out what T0 or T1 have of a chunk that is bad or cannot be read; a disk that is bad throughout is not
    /// emptied.
    fn doubt(&self, key: &ChunkKey) {
        if let Some(dram) = &self.dram {
            dram.remove(key);
        }
        if let Some(disk) = self.disk.as_ref().filter(|disk| disk.store.holds(key))
            && disk.store.evicts_copy(key)
        {
            disk.remove(key);
        }
    }

    /// Takes a chunk out of T0 and T1.
    fn remove(&self, key: &ChunkKey) {
        if let Some(dram) = &self.dram {
            dram.remove(key);
        }
        if let Some(disk) = &self.disk {
            disk.remove(key);
        }
    }
}

impl<M: BlockMemory> Readable<M> for TierStore {
    fn reader<'a>(&'a self, bell: BorrowedFd<'a>) -> io::Result<Box<dyn Reader<M> + 'a>> {
        Ok(Box::new(TierReader::new(&self.tiers, self.tiers.bottom.readable().reader(bell)?)))
    }
}

impl Store for TierStore {
    fn close(&self, seat: usize) {
        match self.tiers.tier_of(seat) {
            Tier::Dram => self.tiers.dram().close(seat),
            Tier::Disk => self.tiers.disk().store.close(seat),
            Tier::Bottom => {
                self.tiers.end_arrival(seat, true);
                self.tiers.bottom.store().close(seat);
            }
        }
    }

    fn touch(&self, namespace: u8, parent: Option<&ChunkKey>, keys: &[ChunkKey], opened: bool) {
        let now_ms = self.tiers.now_ms();
        if let Some(dram) = self.tiers.dram.as_ref().filter(|_| !opened) {
            dram.used(keys, now_ms);
        }
        if let Some(disk) = self.tiers.disk.as_ref().filter(|_| !opened) {
            disk.used(namespace, keys, |policy| policy.used(keys, now_ms));
        }
        self.tiers.bottom.store().touch(namespace, parent, keys, opened);
        self.tiers.wishes.add(namespace, keys, |key| self.tiers.misses(key));
    }

    fn rate(&self, keys: &[ChunkKey], importances: &[Importance]) {
        for (key, importance) in keys.iter().zip(importances) {
            self.tiers.ratings.set(key, *importance);
            if let Some(dram) = &self.tiers.dram {
                dram.rate(key, importance.factor());
            }
            if let Some(disk) = &self.tiers.disk {
                disk.policy.lock().expect(POISONED).rate(key, importance.factor());
            }
        }
    }

    fn has_off_disk(&self, key: &ChunkKey) -> bool {
        self.tiers.bottom.is_off_disk() || self.tiers.dram.as_ref().is_some_and(|dram| dram.holds(key))
    }

    fn is_off_disk(&self, seat: usize) -> bool {
        match self.tiers.tier_of(seat) {
            Tier::Dram => true,
            Tier::Disk => false,
            Tier::Bottom => self.tiers.bottom.is_off_disk(),
        }
    }

    fn peek(&self, key: &ChunkKey, manifest: &mut [u8], until: Instant) -> Result<usize, StoreError> {
        self.tiers.bottom.store().peek(key, manifest, until)
    }

    fn begin_put(
        &self,
        seat: usize,
        key: &ChunkKey,
        parent: Option<&ChunkKey>,
        until: Instant,
    ) -> Result<(), StoreError> {
        self.tiers.bottom.store().begin_put(seat, key, parent, until)?;
        self.tiers.wishes.forget(key, seat);
        Ok(())
    }

    fn put_block(&self, seat: usize, index: usize, bytes: &[u8]) -> Result<(), StoreError> {
        self.tiers.bottom.store().put_block(seat, index, bytes)
    }

    fn commit_put(&self, seat: usize, blocks: usize, manifest: &[u8]) -> Result<(), StoreError> {
        let done = self.tiers.bottom.store().commit_put(seat, blocks, manifest);
        // What T0 and T1 have is the old one.
        if let Some(key) = self.tiers.wishes.forgotten(seat) {
            self.tiers.remove(&key);
        }
        done
    }

    fn abort_put(&self, seat: usize) {
        self.tiers.bottom.store().abort_put(seat);
        self.tiers.wishes.forgotten(seat);
    }

    fn stats(&self) -> Stats {
        let mut stats = self.tiers.bottom.store().stats();
        if let Some(dram) = &self.tiers.dram {
            stats.hits += dram.hits.load(Relaxed);
            stats.bytes_read += dram.bytes_read.load(Relaxed);
            stats.bytes_copied += dram.bytes_copied.load(Relaxed);
        }
        if let Some(disk) = &self.tiers.disk {
            let disk = disk.store.stats();
            stats.hits += disk.hits;
            stats.bytes_read += disk.bytes_read;
            stats.corrupt += disk.corrupt;
            stats.withheld += disk.withheld;
            stats.io_errors += disk.io_errors;
        }
        stats
    }

    fn trouble(&self, show: &mut dyn FnMut(&str)) {
        self.tiers.bottom.store().trouble(show);
    }

    fn reload(&self, url: &Url) -> Result<Reloaded, OpenError> {
        let bad = |what: &str| OpenError::Option { url: url.clone(), what: what.into() };
        let parts = Parts::of(url.reveal()).map_err(bad)?;
        match parts.front() == self.tiers.front {
            true => self.tiers.bottom.store().reload(&parts.bottom.into()),
            false => Ok(Reloaded::NeedsRestart),
        }
    }

    fn nodes(&self, each: &mut dyn FnMut(&NodeFacts<'_>)) {
        self.tiers.bottom.store().nodes(each);
    }

    fn tiers(&self, with_scores: bool, each: &mut dyn FnMut(&TierFacts)) {
        let now_ms = self.tiers.now_ms();
        let facts = |name, moves: &PromotionCounts, (chunks, bytes, bytes_max)| TierFacts {
            name,
            chunks,
            bytes,
            bytes_max,
            hits: 0,
            bytes_read: 0,
            promoted: moves.promoted.load(Relaxed),
            refused: moves.refused.load(Relaxed),
            failed: moves.failed.load(Relaxed),
            bytes_promoted: moves.bytes_promoted.load(Relaxed),
            evicted: 0,
            bytes_evicted: 0,
            slow: 0,
            out: false,
            namespaces: [0; NAMESPACES_MAX],
            scores: [0; SCORE_BUCKETS],
        };
        if let Some(dram) = &self.tiers.dram {
            each(&TierFacts {
                hits: dram.hits.load(Relaxed),
                bytes_read: dram.bytes_read.load(Relaxed),
                evicted: dram.evicted.load(Relaxed),
                bytes_evicted: dram.bytes_evicted.load(Relaxed),
                namespaces: dram.namespaces(),
                scores: if with_scores { dram.scores(now_ms) } else { [0; SCORE_BUCKETS] },
                ..facts("dram", &self.tiers.moves[0], dram.occupancy())
            });
        }
        if let Some(disk) = &self.tiers.disk {
            let stats = disk.store.stats();
            let policy = disk.policy.lock().expect(POISONED);
            let (namespaces, scores) = (occupancy(&policy), with_scores.then(|| scores(&policy, now_ms)));
            drop(policy);
            each(&TierFacts {
                hits: stats.hits,
                bytes_read: stats.bytes_read,
                evicted: stats.evicted,
                bytes_evicted: stats.bytes_evicted,
                slow: disk.reads.slow.load(Relaxed) + disk.writes.slow.load(Relaxed),
                out: !disk.reads.serves() || !disk.writes.serves(),
                namespaces,
                scores: scores.unwrap_or_default(),
                ..facts("dir", &self.tiers.moves[1], (stats.chunks, stats.bytes, stats.bytes_max))
            });
        }
    }

    fn describe(&self) -> String {
        let mut text = String::from("tiers: ");
        if let Some(dram) = &self.tiers.dram {
            let (slab, books) = dram.memory_bytes();
            let _ = write!(text, "dram {slab} bytes in pages of {}, books {books} bytes; ", dram::PAGE_BYTES,);
        }
        if let Some(disk) = &self.tiers.disk {
            let _ = write!(
                text,
                "{}, books {} bytes; ",
                disk.store.describe(),
                Worth::memory_bytes(self.tiers.limits.chunks_max)
            );
        }
        let _ = write!(text, "ratings {} bytes; ", Ratings::memory_bytes());
        let (moved, copied) = (mover::BYTES_PER_S, arrivals::BYTES_PER_S);
        let _ = write!(text, "moved at {moved} bytes/s at most, copied by fetches at {copied}; behind them ");
        text + &self.tiers.bottom.store().describe()
    }
}
