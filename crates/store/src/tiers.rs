//! `tiers:[dram=BYTES,][dir:PATH=BYTES,]STORE`: the card's memory (T0) and its disk (T1) in front of a store that holds
//! everything (T2). What each tier keeps is decided by the room `tier`; what it means to operators is in docs/tiers.md.
//!
//! ```text
//!   fetch worker   TierReader (reader.rs): T0 lends (or is copied), T1 read, T2 asked    touch -> wishes
//!                  what comes from T2 is copied into T0 on its way, if T0 wants it (arrivals.rs); rate-limited
//!   mover          mover.rs: a thread of its own, one chunk at a time, to T1 and T0 what they want and have not; rate-limited,
//!                  after fetches
//!   encode worker  puts go to T2 alone; what T0 and T1 have of that name goes
//! ```
//!
//! * **T2 holds everything**, so that what leaves T0 or T1 is written nowhere, and losing either costs hits only.
//! * **A tier that fails is passed over.** What cannot be opened in T0 or T1 is asked of T2; a block that cannot be read
//!   there any more is a miss, and who asks opens its chunk `anew`, in T2. While T2 is down, look-ups say what T0 and T1 have. A disk
//!   that is slow or fails again and again is left alone for a while (breaker.rs).
//! * **Bad bytes** in T0 and T1 are copies: the chunk is opened anew in T2, and the copies go, as far as T1's guard lets
//!   them. What is bad in T2 is T2's business: see the head of guard.rs.
//! * A chunk comes in whole or not at all: T1 publishes by rename, T0 by entering its name into the map last. A restart in
//!   the middle leaves nothing of it.
//!
//! What it refuses: chunks whose manifest is none of the room `block` are served from T2 and go to no tier.

use std::fmt::Write as _;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use block::{ChunkKey, Importance, Manifest};
use tier::{Chunk, Limits as Sizes, NAMESPACES_MAX, Policy, Quota, Worth};

use crate::dir::{DirStore, Options};
use crate::namespaces::{Namespaces, UNCLAIMED};
use crate::node::NodeFacts;
use crate::redis::RedisStore;
use crate::secret::{Url, looks_like_a_login};
use crate::url::{Absent, OpenError, bytes, dir_options};
use crate::{Allocate, Limits, Memory, POISONED, Position, Readable, Reader, Reloaded, Stats, Store, StoreError};
use arrivals::Allowance;
use breaker::Breaker;
use dram::Dram;
use mover::Wishes;
use ratings::Ratings;
use reader::TierReader;
use returns::Returns;

mod arrivals;
mod breaker;
pub(crate) mod dram;
mod mover;
mod pages;
mod ratings;
mod reader;
mod returns;
mod runs;

/// What of a disk tier the policy gives away: the rest is for the quarantine, a chunk on its way in, and tails of files.
pub(crate) const DISK_SHARE: f64 = 15.0 / 16.0;
/// Buckets of scores: the first below 2^-7, each of the others twice the one before it.
pub const SCORE_BUCKETS: usize = 16;

/// One tier, as it is now; counters since the store was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TierFacts {
    /// `dram` or `dir`.
    pub name: &'static str,
    pub chunks: u64,
    pub bytes: u64,
    pub bytes_max: u64,
    /// Chunks opened there, and bytes of blocks read.
    pub hits: u64,
    pub bytes_read: u64,
    /// Chunks that came in, were not worth it, and could not be brought.
    pub promoted: u64,
    pub refused: u64,
    pub failed: u64,
    pub bytes_promoted: u64,
    /// Chunks that left for others, and their bytes.
    pub evicted: u64,
    pub bytes_evicted: u64,
    /// Calls that took long, and whether the tier is passed over now, for reading or writing.
    pub slow: u64,
    pub out: bool,
    /// Bytes by namespace ([`Namespaces::names`]).
    pub namespaces: [u64; NAMESPACES_MAX],
    /// Chunks by score, where it was asked for. A score of 1 is one use just now of a chunk of neutral importance.
    pub scores: [u32; SCORE_BUCKETS],
}

/// What came into a tier and what did not.
#[derive(Debug, Default)]
struct Moves {
    promoted: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    bytes_promoted: AtomicU64,
}

impl Moves {
    /// Counts a refusal.
    fn admitted(&self, admitted: bool) -> bool {
        if !admitted {
            self.refused.fetch_add(1, Relaxed);
        }
        admitted
    }
}

/// T1: a directory store, and who decides what it keeps.
#[derive(Debug)]
struct Disk {
    store: DirStore,
    policy: Mutex<Worth>,
    /// What the policy has taken in and the store has not got yet. Set under the policy's lock.
    coming: Mutex<Option<ChunkKey>>,
    /// A disk that cannot take what is written may still be good to read from.
    reads: Breaker,
    writes: Breaker,
}

/// T2.
#[derive(Debug)]
enum Bottom {
    Dir(Box<DirStore>),
    Redis(Box<RedisStore>),
}

impl Bottom {
    fn store(&self) -> &dyn Store {
        match self {
            Self::Dir(store) => store.as_ref(),
            Self::Redis(store) => store.as_ref(),
        }
    }

    /// Whether no call on it is one on a local disk.
    fn is_off_disk(&self) -> bool {
        matches!(self, Self::Redis(_))
    }

    fn reader<'a, M: Memory>(&'a self, bell: BorrowedFd<'a>) -> io::Result<Box<dyn Reader<M> + 'a>> {
        match self {
            Self::Dir(store) => Readable::<M>::reader(store.as_ref(), bell),
            Self::Redis(store) => Readable::<M>::reader(store.as_ref(), bell),
        }
    }
}

/// Which tier a seat's chunk was opened in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Bottom,
    Disk,
    Dram,
}

/// What the store's threads share.
#[derive(Debug)]
struct Tiers {
    dram: Option<Dram>,
    disk: Option<Disk>,
    bottom: Bottom,
    /// What the URL says of T0 and T1.
    front: (Option<u64>, Option<(String, u64)>),
    places: Box<[AtomicU8]>,
    limits: Limits,
    started: Instant,
    wishes: Wishes,
    ratings: Ratings,
    returns: Returns,
    allowance: Allowance,
    /// Reads of blocks that fetches have in flight at T2: the mover stands back.
    fetching: AtomicUsize,
    /// By tier: T0, T1.
    moves: [Moves; 2],
    /// Readers that were made.
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
        let bottom = match parts.bottom.split_once(':') {
            Some(("dir", rest)) => {
                let (path, options) = dir_options(parts.bottom, rest, limits)?;
                Bottom::Dir(Box::new(DirStore::open(&path, &inner, options)?))
            }
            Some(("redis" | "rediss", _)) => Bottom::Redis(Box::new(absent.redis(parts.bottom, &inner)?)),
            _ => return Err(bad(NO_STORE)),
        };
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
            places: (0..inner.chunks_open_max).map(|_| AtomicU8::new(Place::Bottom as u8)).collect(),
            limits: *limits,
            started: Instant::now(),
            wishes: Wishes::new(limits.puts_max),
            ratings: Ratings::new(seed),
            returns: Returns::default(),
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
        if let Some(mover) = self.mover.take() {
            // A panic of its own it has reported itself.
            let _ = mover.join();
        }
    }
}

const NO_STORE: &str = "it must end in a store, dir:PATH or redis://..., which holds everything";

/// The parts of the URL.
pub(crate) struct Parts<'a> {
    pub(crate) dram: Option<u64>,
    pub(crate) disk: Option<(&'a str, u64)>,
    pub(crate) bottom: &'a str,
}

impl<'a> Parts<'a> {
    pub(crate) fn of(url: &'a str) -> Result<Self, &'static str> {
        let mut rest = url.strip_prefix("tiers:").ok_or("it begins with tiers:")?;
        let mut parts = Parts { dram: None, disk: None, bottom: "" };
        // What redis:// has behind it may hold commas, so tiers are taken from the front.
        while let Some((part, behind)) = rest.split_once(',') {
            if let Some(text) = part.strip_prefix("dram=") {
                let size = bytes(text).ok_or("dram= is not a number of bytes like 8G")?;
                if parts.dram.replace(size).is_some() || parts.disk.is_some() {
                    return Err("dram= stands once, before dir:");
                }
            } else if let Some(text) = part.strip_prefix("dir:") {
                let (path, size) = text.rsplit_once('=').ok_or("a dir: tier is dir:PATH=BYTES")?;
                let size = bytes(size).ok_or("dir:PATH= is not a number of bytes like 200G")?;
                if path.is_empty()
                    || path.contains('?')
                    || looks_like_a_login(path)
                    || parts.disk.replace((path, size)).is_some()
                {
                    return Err("a dir: tier is dir:PATH=BYTES, once, without options");
                }
            } else {
                break;
            }
            rest = behind;
        }
        parts.bottom = rest;
        match rest.split_once(':') {
            // One that ends in a size is meant as a tier, and the store was forgotten.
            Some(("dir", rest))
                if rest.rsplit_once('=').is_some_and(|(path, size)| !path.contains('?') && bytes(size).is_some()) =>
            {
                Err(
                    "dir:PATH=BYTES is a tier and no store stands behind it: add dir:PATH or redis://..., which holds everything",
                )
            }
            Some(("dir" | "redis" | "rediss", _)) => Ok(parts),
            _ => Err(NO_STORE),
        }
    }

    /// Of T0 and T1.
    fn front(&self) -> (Option<u64>, Option<(String, u64)>) {
        (self.dram, self.disk.map(|(path, bytes)| (path.to_owned(), bytes)))
    }
}

impl Disk {
    fn open(
        path: &str,
        bytes_max: u64,
        limits: &Limits,
        seed: u64,
        namespaces: &Namespaces,
    ) -> Result<Self, OpenError> {
        // A tier that loses what was written last before a power cut loses nothing: bad bytes are found, T2 has the rest.
        let options = Options { bytes_max: Some(bytes_max), chunks_max: limits.chunks_max, sync: false };
        let store = DirStore::open(std::path::Path::new(path), limits, options)?;
        let bytes_max = ((store.bytes_max() as f64 * DISK_SHARE) as u64).max(1);
        let sizes = Sizes { bytes_max, chunks_max: limits.chunks_max };
        let mut policy = Worth::new(sizes, seed);
        set_quotas(&mut policy, &namespaces.quotas(bytes_max)?);
        let mut excess = Vec::new();
        store.each(|key, bytes| {
            // Of what an earlier life left only the order is known: all of it is as old as this start, and nobody's.
            if !policy.adopt(&chunk(key, bytes as u32, UNCLAIMED, Importance::NEUTRAL, 1.0), 0) {
                excess.push(*key);
            }
        });
        for key in &excess {
            // One that stays is found again by the next start.
            let _ = store.evict_chunk(key);
        }
        let (policy, coming) = (Mutex::new(policy), Mutex::new(None));
        Ok(Self { store, policy, coming, reads: Breaker::new(), writes: Breaker::new() })
    }

    /// Whether a fetch would get this chunk from here.
    fn serves(&self, key: &ChunkKey) -> bool {
        self.store.holds(key) && self.reads.serves()
    }

    /// Counts uses, by `count`; what the store lost by itself, the policy forgets, and what was nobody's is the user's.
    fn used(&self, namespace: u8, keys: &[ChunkKey], count: impl FnOnce(&mut Worth)) {
        let mut policy = self.policy.lock().expect(POISONED);
        let coming = *self.coming.lock().expect(POISONED);
        for key in keys {
            if policy.holds(key) && !self.store.holds(key) && coming.as_ref() != Some(key) {
                policy.remove(key);
            }
            policy.hand_over(key, UNCLAIMED, namespace);
        }
        count(&mut policy);
    }

    /// A chunk that an earlier life left was opened: its manifest says what it was worth then.
    fn recall(&self, key: &ChunkKey, manifest: &[u8], rating: Option<Importance>) {
        let mut policy = self.policy.lock().expect(POISONED);
        if policy.namespace_of(key) == Some(UNCLAIMED)
            && let Some(importance) = rating.or(Manifest::parse(manifest).ok().map(|manifest| manifest.importance()))
        {
            policy.rate(key, importance.factor());
        }
    }

    /// Takes a chunk out of the tier.
    fn remove(&self, key: &ChunkKey) {
        self.policy.lock().expect(POISONED).remove(key);
        // One that cannot be removed is evicted by the directory's own LRU some day; it is not wrong.
        let _ = self.store.evict_chunk(key);
    }
}

/// What the policies are told of a chunk. `cost` is that of a byte, where one from T2 has the cost of 1.
fn chunk(key: &ChunkKey, bytes: u32, namespace: u8, importance: Importance, cost: f32) -> Chunk {
    Chunk { key: *key, bytes, namespace, importance: importance.factor(), cost_us: bytes as f32 * cost }
}

fn set_quotas(policy: &mut Worth, quotas: &[Quota]) {
    quotas.iter().enumerate().for_each(|(namespace, quota)| policy.set_quota(namespace as u8, *quota));
}

/// Bytes by namespace.
fn occupancy(policy: &Worth) -> [u64; NAMESPACES_MAX] {
    std::array::from_fn(|namespace| policy.bytes_of(namespace as u8))
}

/// Chunks by score.
fn scores(policy: &Worth, now_ms: u64) -> [u32; SCORE_BUCKETS] {
    let mut buckets = [0; SCORE_BUCKETS];
    let middle = (SCORE_BUCKETS / 2) as f64;
    policy.each(now_ms, |view| {
        let bucket = view.score.log2().floor() + middle;
        buckets[bucket.clamp(0.0, (SCORE_BUCKETS - 1) as f64) as usize] += 1;
    });
    buckets
}

impl Tiers {
    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn place(&self, seat: usize) -> Place {
        match self.places[seat].load(Relaxed) {
            at if at == Place::Dram as u8 => Place::Dram,
            at if at == Place::Disk as u8 => Place::Disk,
            _ => Place::Bottom,
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

    /// With the importance that was said last, which is what counts.
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

    /// Whether a tier that is there has not got it, nor gets it.
    fn misses(&self, key: &ChunkKey) -> bool {
        self.dram.as_ref().is_some_and(|dram| !dram.expects(key))
            || self.disk.as_ref().is_some_and(|disk| !disk.store.holds(key))
    }

    /// What T0 or T1 have of a chunk is bad or cannot be read: it goes, but a disk that is bad throughout is not emptied.
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

impl<M: Memory> Readable<M> for TierStore {
    fn reader<'a>(&'a self, bell: BorrowedFd<'a>) -> io::Result<Box<dyn Reader<M> + 'a>> {
        Ok(Box::new(TierReader::new(&self.tiers, self.tiers.bottom.reader(bell)?)))
    }
}

impl Store for TierStore {
    fn close(&self, seat: usize) {
        match self.tiers.place(seat) {
            Place::Dram => self.tiers.dram().close(seat),
            Place::Disk => self.tiers.disk().store.close(seat),
            Place::Bottom => {
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
        match self.tiers.place(seat) {
            Place::Dram => true,
            Place::Disk => false,
            Place::Bottom => self.tiers.bottom.is_off_disk(),
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
        let facts = |name, moves: &Moves, (chunks, bytes, bytes_max)| TierFacts {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_tiers_from_the_fastest_on() {
        let parts = Parts::of("tiers:dram=8G,dir:/a=b=200G,redis://h1,h2:7?window=1M").ok().unwrap();
        assert_eq!(parts.dram, Some(8 << 30));
        assert_eq!(parts.disk, Some(("/a=b", 200 << 30)));
        assert_eq!(parts.bottom, "redis://h1,h2:7?window=1M");
        assert_eq!(Parts::of("tiers:redis://h").ok().unwrap().bottom, "redis://h");
        for wrong in [
            "tiers:dram=x,redis://h",
            "tiers:dir:/a=1G,dram=1G,redis://h",
            "tiers:dram=1G,dram=1G,dir:/a",
            "tiers:dir:/a,redis://h",
            "tiers:dir:=1G,redis://h",
        ] {
            assert!(Parts::of(wrong).is_err(), "{wrong}");
        }
        assert!(
            TierStore::open("tiers:dram=1G", &Limits::default(), &Namespaces::default(), None, Absent::Refuse)
                .unwrap_err()
                .to_string()
                .contains("holds everything")
        );
    }
}
