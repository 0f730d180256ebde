//! `dir:PATH`: chunks as files in a local directory that one dpu-app has for itself.
//!
//! The layout of the directory is in `dir/root.rs`, that of a chunk's file in `block::tail`. In memory are an index of
//! fixed size, which answers every look-up without touching the disk, two fixed tables of seats, and a ledger of bytes.
//!
//! * **Atomic.** A put goes to a file of its own in `incoming/` and is renamed into place when it is whole. With
//!   `sync=always` (the default) its bytes are on the disk before the rename, so a power cut leaves whole chunks or
//!   nothing; the directory entry itself is not forced, so the newest chunks may be missing. With `sync=never` a
//!   power cut may leave names in front of zeros: the tail's CRC and the checks of the blocks find them, at the price
//!   of one failed fetch each. The end of this process alone loses nothing in either mode. `always` costs about
//!   half of a put's speed, which is still far above what an encoder delivers (tests/speed.rs).
//! * **Bounded.** Chunks, unfinished puts and the quarantine together never exceed `bytes`; the least recently used
//!   chunks go first, one at a time, of a prompt the tail before the head (index.rs), and a file that is being read
//!   lives on until its seat is closed (so the disk may hold up to one file per open seat more). Use is counted in
//!   memory and written to the file's mtime at most once in ten minutes, which is the precision that a restart keeps;
//!   between the chunks of a prompt it keeps their order. A put is never evicted.
//! * **Disk full** (though the limit is not reached): as much as is needed is evicted, then one more try, then `Full`.
//! * **Read-only** (file system or permissions): fetches go on, puts answer `ReadOnly`.
//! * **Damage.** A tail that fails its checks three times, twice of them from the disk, and a chunk that is discarded
//!   go to `quarantine/` (16 files and a sixteenth of the bytes at most, then it is deleted), if the guard (guard.rs)
//!   lets them. A call that fails is not damage, and neither is what another version wrote: the chunk stays.
//!
//! Locks: `ledger` is never held over I/O. A stripe is held while the name of a chunk changes on disk and is taken
//! before the ledger, never after; nobody holds two. A seat's own lock is held over the I/O of that seat.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, RwLock};
use std::time::Instant;

use block::ChunkKey;
use block::tail::tail_bytes;

use super::guard::DiscardLimiter;
use super::{Direct, Limits, Lookup, OpenError, Opening, POISONED, Stats, Store, StoreError, Why};
use put::Putting;
use read::Reading;
use room::Ledger;
use root::{Found, Root};

mod index;
mod put;
mod read;
mod room;
pub(crate) mod root;
pub(crate) mod url;

/// Number of locks for names on disk: enough that two workers seldom meet.
const STRIPES: usize = 64;
/// Files that the quarantine keeps, and the share of the store's bytes.
const QUARANTINE_FILES_MAX: usize = 16;
const QUARANTINE_SHARE: u64 = 16;

/// What the URL says beside the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirOptions {
    /// Bytes of all files together; `None` is half of what the file system would have for the store.
    pub bytes_max: Option<u64>,
    pub chunks_max: usize,
    /// Whether the bytes of a chunk are forced to the disk before it is published.
    pub sync: bool,
}

impl Default for DirOptions {
    fn default() -> Self {
        Self { bytes_max: None, chunks_max: Limits::default().chunks_max, sync: true }
    }
}

/// The store. See the module's head.
#[derive(Debug)]
pub struct DirStore {
    root: Root,
    limits: Limits,
    sync: bool,
    bytes_max: u64,
    ledger: Mutex<Ledger>,
    stripes: Box<[Mutex<()>]>,
    reading: Box<[RwLock<Reading>]>,
    /// Seat of those who look at a manifest before they put.
    peeking: Mutex<Reading>,
    guard: DiscardLimiter,
    putting: Box<[Putting]>,
    counters: Counters,
}

/// See [`Stats`].
#[derive(Debug, Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    bytes_read: AtomicU64,
    bytes_put: AtomicU64,
    puts: AtomicU64,
    puts_failed: AtomicU64,
    evicted: AtomicU64,
    bytes_evicted: AtomicU64,
    corrupt: AtomicU64,
    io_errors: AtomicU64,
    read_only: AtomicBool,
    warned_chunks: AtomicBool,
}

impl DirStore {
    /// Init: takes the directory, removes what an earlier life left half-way, and rebuilds the index.
    pub fn open(path: &Path, limits: &Limits, options: DirOptions) -> Result<Self, OpenError> {
        let root = Root::open(path)?;
        let found = root.scan()?;
        let held: u64 = found.chunks.iter().map(|(_, bytes, _)| bytes).sum::<u64>() + found.quarantine_bytes;
        let bytes_max = match options.bytes_max {
            Some(bytes) => bytes,
            None if root.read_only => held,
            None => (root.free_bytes()? + held) / 2,
        };
        let counters = Counters { read_only: root.read_only.into(), ..Counters::default() };
        let store = Self {
            ledger: Mutex::new(Ledger::new(options.chunks_max, limits.puts_max, &found)),
            peeking: Mutex::new(Reading::new(limits)),
            guard: DiscardLimiter::default(),
            stripes: (0..STRIPES).map(|_| Mutex::new(())).collect(),
            reading: (0..limits.chunks_open_max).map(|_| RwLock::new(Reading::new(limits))).collect(),
            putting: (0..limits.puts_max).map(|seat| Putting::new(seat, limits)).collect(),
            limits: *limits,
            sync: options.sync,
            bytes_max,
            root,
            counters,
        };
        store.adopt(found);
        Ok(store)
    }

    /// Fills the index, evicting the least recently used chunks where not all fit.
    fn adopt(&self, found: Found) {
        let Found { chunks, leftovers_removed, strangers, .. } = found;
        let mut ledger = self.ledger();
        let (excess, kept) = chunks.split_at(chunks.len().saturating_sub(ledger.index.chunks_max()));
        for (key, bytes, used_ns) in kept {
            ledger.index.insert(key, *bytes, *used_ns).expect("what exceeds the index was cut off");
        }
        drop(ledger);
        if self.root.read_only {
            log::warn!("store: {} is read-only: nothing will be stored", self.root.path.display());
        } else {
            // One that cannot be removed is in no index, so nobody can ask for it; the next start finds it again.
            let removed = excess.iter().filter(|(key, ..)| self.unlink_chunk(key).is_ok()).count();
            if let Err(error) = self.reserve(0, 0) {
                log::warn!("store: it holds more than its limit and cannot be cut down: {error}");
            }
            let evicted = removed as u64 + self.counters.evicted.load(Relaxed);
            if evicted > 0 {
                log::warn!(
                    "store: {evicted} chunks over its limits were evicted at start: the URL's options `bytes` and \
                     `chunks` raise them"
                );
            }
        }
        if leftovers_removed > 0 {
            log::info!("store: {leftovers_removed} unfinished puts of an earlier life were removed");
        }
        if strangers > 0 {
            log::warn!("store: {strangers} files that are no chunks were left alone");
        }
    }

    /// Returns the directory.
    pub fn path(&self) -> &Path {
        &self.root.path
    }

    /// Whether a chunk is in the index. Does not touch the disk.
    pub(crate) fn holds(&self, key: &ChunkKey) -> bool {
        self.ledger().index.contains(key)
    }

    /// Shows every chunk and its bytes, from the one that was used longest ago on. Init only: others wait meanwhile.
    pub(crate) fn each(&self, show: impl FnMut(&ChunkKey, u64)) {
        self.ledger().index.each(show);
    }

    /// Whether a chunk may go that is bad or cannot be read here, and that another store has.
    pub(crate) fn evicts_copy(&self, key: &ChunkKey) -> bool {
        let why = Why { what: "a copy in this tier that was bad or could not be read", block: None };
        self.guard.admits(key, &why, &self.root.path.display())
    }

    /// Returns the most bytes that it holds.
    pub(crate) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Returns the directory of chunks that are proven bad.
    pub fn quarantine_path(&self) -> PathBuf {
        root::quarantine_of(&self.root.path)
    }

    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().expect(POISONED)
    }

    fn stripe(&self, key: &ChunkKey) -> std::sync::MutexGuard<'_, ()> {
        self.stripes[usize::from(key.bytes()[0]) % STRIPES].lock().expect(POISONED)
    }
}

/// Returns the memory of a store in a directory, whatever it holds: its index, and its seats for reading and putting.
#[must_use]
pub fn memory_bytes(limits: &Limits) -> usize {
    index::Index::memory_bytes(limits.chunks_max)
        + (limits.chunks_open_max + 1) * Reading::memory_bytes(limits)
        + limits.puts_max * Putting::memory_bytes(limits)
}

/// Returns the bytes of the largest tail under `limits`.
fn tail_bytes_max(limits: &Limits) -> usize {
    tail_bytes(limits.blocks_max, limits.manifest_bytes_max)
}

fn on_time(call: &'static str, until: Instant) -> Result<(), StoreError> {
    if Instant::now() < until { Ok(()) } else { Err(StoreError::Late { call }) }
}

impl Direct for DirStore {
    fn look(&self, lookup: &mut Lookup, until: Instant) -> Result<usize, StoreError> {
        on_time("lookup", until)?;
        let ledger = self.ledger();
        Ok(lookup.ask(|key| ledger.index.contains(key)))
    }

    fn open(&self, seat: usize, opening: &Opening, manifest: &mut [u8], until: Instant) -> Result<usize, StoreError> {
        on_time("open", until)?;
        self.open_chunk(seat, opening, manifest)
    }

    fn read_block(&self, seat: usize, index: usize, into: &mut [u8], until: Instant) -> Result<(), StoreError> {
        on_time("read_block", until)?;
        self.read_chunk(seat, index, into)
    }

    fn discard(&self, seat: usize, why: &Why) {
        self.discard_chunk(seat, why);
    }
}

impl Store for DirStore {
    fn close(&self, seat: usize) {
        self.close_chunk(seat);
    }

    fn peek(&self, key: &ChunkKey, manifest: &mut [u8], until: Instant) -> Result<usize, StoreError> {
        on_time("peek", until)?;
        self.peek_chunk(key, manifest)
    }

    fn touch(&self, _namespace: u8, parent: Option<&ChunkKey>, keys: &[ChunkKey], _opened: bool) {
        let mut ledger = self.ledger();
        let mut before = parent;
        for key in keys {
            if ledger.index.touch(key, before) {
                before = Some(key);
            }
        }
    }

    /// A local disk has no deadline that could be kept: `until` is passed over.
    fn begin_put(
        &self,
        seat: usize,
        key: &ChunkKey,
        parent: Option<&ChunkKey>,
        _until: Instant,
    ) -> Result<(), StoreError> {
        self.start(seat, key, parent)
    }

    fn put_block(&self, seat: usize, index: usize, bytes: &[u8]) -> Result<(), StoreError> {
        self.add(seat, index, bytes)
    }

    fn commit_put(&self, seat: usize, blocks: usize, manifest: &[u8]) -> Result<(), StoreError> {
        self.publish(seat, blocks, manifest)
    }

    fn abort_put(&self, seat: usize) {
        self.give_up(seat);
    }

    fn stats(&self) -> Stats {
        let ledger = self.ledger();
        let (chunks, bytes) = (ledger.index.len() as u64, ledger.bytes());
        drop(ledger);
        let counters = &self.counters;
        Stats {
            chunks,
            bytes,
            bytes_max: self.bytes_max,
            hits: counters.hits.load(Relaxed),
            misses: counters.misses.load(Relaxed),
            bytes_read: counters.bytes_read.load(Relaxed),
            bytes_put: counters.bytes_put.load(Relaxed),
            puts: counters.puts.load(Relaxed),
            puts_failed: counters.puts_failed.load(Relaxed),
            evicted: counters.evicted.load(Relaxed),
            bytes_evicted: counters.bytes_evicted.load(Relaxed),
            corrupt: counters.corrupt.load(Relaxed),
            withheld: self.guard.withheld(),
            io_errors: counters.io_errors.load(Relaxed),
            read_only: counters.read_only.load(Relaxed),
            bytes_copied: 0,
        }
    }

    fn describe(&self) -> String {
        let ledger = self.ledger();
        let (chunks, bytes, chunks_max) = (ledger.index.len(), ledger.bytes(), ledger.index.chunks_max());
        drop(ledger);
        let memory = memory_bytes(&Limits { chunks_max, ..self.limits });
        let mut text = format!("dir:{}", self.root.path.display());
        let sync = if self.sync { "always" } else { "never" };
        let _ = write!(
            text,
            " holds {chunks} chunks, {bytes} bytes; bytes max {}, chunks max {chunks_max}",
            self.bytes_max
        );
        let _ = write!(text, ", sync {sync}, memory {memory} bytes");
        if self.root.read_only {
            text.push_str(", read-only");
        }
        text
    }
}
