//! T0: compressed chunks in the card's own memory. A slab of pages of one size, taken in Init. Each part of a chunk
//! has pages of its own, neighbours where possible (pages.rs), so that a chunk wastes less than a page for each of
//! its blocks:
//!
//! ```text
//!   head     u32 blocks | u32 manifest bytes | u32 length of each block | manifest
//!   block 0, block 1, ...
//! ```
//!
//! A hit **lies where it is** if whoever opened the store brought memory that can be read in place (slab.rs) and the
//! block's pages are neighbours; else it is copied, once. Who reads holds a place in its chunk's record until its
//! seat is closed: a chunk that has to leave meanwhile is found by nobody any more, and its pages are free when the
//! last reader closes.
//!
//! Locks: `state` is never held while bytes are copied, and is taken last. Blocks of one seat are read, and written,
//! side by side.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, RwLock};

use block::ChunkKey;
use tier::{NAMESPACES_MAX, Policy, Quota, Sizes, Worth};

use super::facts::{SCORE_BUCKETS, occupancy, scores, set_quotas};
use super::pages::{ChunkPages, RUNS_PER_CHUNK_MAX};
use super::runs::PageRun;
use crate::slab::{Allocate, PlainSlab, TierSlab};
use crate::{Limits, POISONED, StoreError};
use landing::{Arrival, Landing, spoil};

mod extent;
mod landing;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(super) use extent::SPARE;
pub(crate) use extent::{Extent, PAGE_BYTES};

/// Bytes of the words in front of the table.
const HEAD_BYTES: usize = 8;

#[derive(Debug)]
struct State {
    policy: Worth,
    map: HashMap<ChunkKey, u32>,
    pages: ChunkPages,
    /// Chunks on their way in, by seat.
    arrivals: Box<[Option<Arrival>]>,
}

/// One seat for reading.
#[derive(Debug)]
struct Seat {
    open: Option<(ChunkKey, u32)>,
    runs: Vec<PageRun>,
    /// First run of each block, and its bytes.
    blocks: Vec<(usize, u32)>,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Dram {
    slab: Box<dyn TierSlab>,
    /// Whether others can read the slab in place.
    lends: bool,
    extent: Extent,
    books_bytes: usize,
    state: Mutex<State>,
    seats: Box<[RwLock<Seat>]>,
    landings: Box<[Landing]>,
    pub(super) hits: AtomicU64,
    pub(super) bytes_read: AtomicU64,
    pub(super) bytes_copied: AtomicU64,
    pub(super) evicted: AtomicU64,
    pub(super) bytes_evicted: AtomicU64,
}

/// Returns the pages of a part; one that is empty has one, too.
fn pages_of(bytes: usize) -> usize {
    bytes.div_ceil(PAGE_BYTES).max(1)
}

/// Returns where a block begins in the slab.
fn start(run: PageRun) -> usize {
    run.first as usize * PAGE_BYTES
}

impl Dram {
    /// Init. `None`: it has no room for a page.
    pub(super) fn new(
        bytes_max: u64,
        limits: &Limits,
        seed: u64,
        allocate: Option<Allocate<'_>>,
    ) -> io::Result<Option<Self>> {
        let Some(extent) = Extent::of(bytes_max) else { return Ok(None) };
        let Extent { page_count: count, bytes_max, chunks_max } = extent;
        let seat = || Seat {
            open: None,
            runs: Vec::with_capacity(RUNS_PER_CHUNK_MAX),
            blocks: Vec::with_capacity(limits.blocks_max),
        };
        let state = State {
            policy: Worth::new(Sizes { bytes_max, chunks_max }, seed),
            map: HashMap::with_capacity(extent.entries()),
            pages: ChunkPages::new(count, extent.entries()),
            arrivals: vec![None; limits.chunks_open_max].into(),
        };
        let slab = match allocate {
            Some(allocate) => allocate(count, PAGE_BYTES)?,
            None => Box::new(PlainSlab::new(count, PAGE_BYTES)),
        };
        Ok(Some(Self {
            slab,
            lends: allocate.is_some(),
            extent,
            books_bytes: extent.books_bytes(limits),
            state: Mutex::new(state),
            seats: (0..limits.chunks_open_max).map(|_| RwLock::new(seat())).collect(),
            landings: (0..limits.chunks_open_max).map(|_| Landing::new(limits)).collect(),
            hits: 0.into(),
            bytes_read: 0.into(),
            bytes_copied: 0.into(),
            evicted: 0.into(),
            bytes_evicted: 0.into(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(POISONED)
    }

    pub(super) fn holds(&self, key: &ChunkKey) -> bool {
        self.state().map.contains_key(key)
    }

    /// Whether a chunk is here or on its way.
    pub(super) fn expects(&self, key: &ChunkKey) -> bool {
        self.state().policy.holds(key)
    }

    pub(super) fn used(&self, keys: &[ChunkKey], now_ms: u64) {
        self.state().policy.used(keys, now_ms);
    }

    pub(super) fn used_behind(&self, parent: Option<&ChunkKey>, key: &ChunkKey, now_ms: u64) {
        self.state().policy.used_behind(parent, key, now_ms);
    }

    /// Init.
    pub(super) fn set_quotas(&self, quotas: &[Quota]) {
        set_quotas(&mut self.state().policy, quotas);
    }

    pub(super) fn namespaces(&self) -> [u64; NAMESPACES_MAX] {
        occupancy(&self.state().policy)
    }

    pub(super) fn rate(&self, key: &ChunkKey, importance: f32) {
        self.state().policy.rate(key, importance);
    }

    /// Returns the chunks, the bytes, and the most bytes.
    pub(super) fn occupancy(&self) -> (u64, u64, u64) {
        let state = self.state();
        (state.map.len() as u64, state.policy.bytes(), state.policy.limits().bytes_max)
    }

    pub(super) fn scores(&self, now_ms: u64) -> [u32; SCORE_BUCKETS] {
        scores(&self.state().policy, now_ms)
    }

    /// Returns the bytes of the slab and of its books.
    pub(super) fn memory_bytes(&self) -> (u64, u64) {
        (self.extent.slab_bytes() as u64, self.books_bytes as u64)
    }

    /// Takes a chunk out.
    pub(super) fn remove(&self, key: &ChunkKey) {
        let mut state = self.state();
        state.policy.remove(key);
        spoil(&mut state.arrivals, key);
        if let Some(record) = state.map.remove(key) {
            state.pages.leave(record);
        }
    }

    /// Opens a chunk in a free seat and copies its manifest; returns its bytes. `None`: it is not here.
    pub(super) fn open(&self, at: usize, key: &ChunkKey, manifest: &mut [u8]) -> Option<Result<usize, StoreError>> {
        let mut seat = self.seats[at].write().expect(POISONED);
        assert!(seat.open.is_none(), "open: seat {at} is occupied");
        let Seat { open, runs, blocks } = &mut *seat;
        let record = {
            let mut state = self.state();
            let record = *state.map.get(key)?;
            state.pages.open(record);
            runs.clear();
            runs.extend(state.pages.of(record));
            record
        };
        let word = |at: usize| {
            let mut word = [0; 4];
            self.copy(runs, at, &mut word);
            u32::from_le_bytes(word)
        };
        let (count, manifest_bytes) = (word(0) as usize, word(4) as usize);
        let max = manifest.len();
        let Some(out) = manifest.get_mut(..manifest_bytes) else {
            self.state().pages.close(record);
            return Some(Err(StoreError::Large { what: "manifest", value: manifest_bytes, max }));
        };
        let head_bytes = HEAD_BYTES + 4 * count + manifest_bytes;
        self.copy(runs, head_bytes - manifest_bytes, out);
        let mut run = behind(runs, 0, head_bytes);
        blocks.clear();
        for block in 0..count {
            let bytes = word(HEAD_BYTES + 4 * block);
            blocks.push((run, bytes));
            run = behind(runs, run, bytes as usize);
        }
        *open = Some((*key, record));
        Some(Ok(manifest_bytes))
    }

    /// Says where in the slab a whole block lies until the seat is closed; where it cannot be read there, `into` is
    /// filled with it instead.
    pub(super) fn read(&self, at: usize, index: usize, into: &mut [u8]) -> Result<Option<usize>, StoreError> {
        let seat = self.seats[at].read().expect(POISONED);
        let runs = seat.runs_of(at, index, into.len())?;
        self.bytes_read.fetch_add(into.len() as u64, Relaxed);
        let lies = (self.lends && runs[0].pages as usize >= pages_of(into.len())).then(|| start(runs[0]));
        if lies.is_none() {
            self.copy(runs, 0, into);
            self.bytes_copied.fetch_add(into.len() as u64, Relaxed);
        }
        Ok(lies)
    }

    /// Copies a block for a tier below: no hit.
    pub(super) fn copy_block(&self, at: usize, index: usize, into: &mut [u8]) -> Result<(), StoreError> {
        let seat = self.seats[at].read().expect(POISONED);
        self.copy(seat.runs_of(at, index, into.len())?, 0, into);
        Ok(())
    }

    /// Returns the chunk in a seat.
    pub(super) fn key_of(&self, at: usize) -> ChunkKey {
        let seat = self.seats[at].read().expect(POISONED);
        seat.open.unwrap_or_else(|| panic!("discard: seat {at} is empty")).0
    }

    pub(super) fn close(&self, at: usize) {
        let open = self.seats[at].write().expect(POISONED).open.take();
        let (_, record) = open.unwrap_or_else(|| panic!("close: seat {at} is empty"));
        self.state().pages.close(record);
    }

    /// Copies what lies at byte `at` of the part that begins with the first of these runs.
    fn copy(&self, runs: &[PageRun], mut at: usize, into: &mut [u8]) {
        let mut done = 0;
        for run in runs {
            let length = run.pages as usize * PAGE_BYTES;
            let now = (into.len() - done).min(length.saturating_sub(at));
            if now > 0 {
                self.slab.read(start(*run) + at, &mut into[done..done + now]);
            }
            (at, done) = (at.saturating_sub(length), done + now);
            if done == into.len() {
                return;
            }
        }
        unreachable!("a part has runs for all of its bytes");
    }
}

impl Seat {
    /// Returns the runs from a block's first on; the block has so many bytes.
    fn runs_of(&self, at: usize, index: usize, bytes: usize) -> Result<&[PageRun], StoreError> {
        assert!(self.open.is_some(), "read_block: seat {at} is empty");
        match self.blocks.get(index) {
            None => Err(StoreError::Corrupt { what: "no such block", value: index as u64 }),
            Some(&(_, length)) if length as usize != bytes => {
                Err(StoreError::Corrupt { what: "block of another length, bytes", value: length.into() })
            }
            Some(&(first, _)) => Ok(&self.runs[first..]),
        }
    }
}

/// Returns the run behind those of a part that begins with run `first`.
fn behind(runs: &[PageRun], first: usize, bytes: usize) -> usize {
    let (mut left, mut run) = (pages_of(bytes), first);
    while left > 0 {
        (left, run) = (left - runs[run].pages as usize, run + 1);
    }
    run
}
