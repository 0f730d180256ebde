//! T0: compressed chunks in the card's own memory. A slab of pages of one size, taken in Init. Each part of a chunk has
//! pages of its own, neighbours where possible (pages.rs), so that a chunk wastes less than a page for each of its blocks:
//!
//! ```text
//!   head     u32 blocks | u32 manifest bytes | u32 length of each block | manifest
//!   block 0, block 1, ...
//! ```
//!
//! A hit **lies where it is** if whoever opened the store brought memory that can be read in place (slab.rs) and the
//! block's pages are neighbours; else it is copied, once. Who reads holds a place in its chunk's record until its seat is
//! closed: a chunk that has to leave meanwhile is found by nobody any more, and its pages are free when the last reader
//! closes.
//!
//! A chunk **on its way in** has its pages from the beginning, so its blocks may come in any order and from any thread, and
//! several chunks at a time. It is found by nobody until all of it is there.
//!
//! Locks: `state` is never held while bytes are copied, and is taken last. Blocks of one seat are read, and written, side by side.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, RwLock};

use block::ChunkKey;
use tier::{Chunk, Limits as Sizes, NAMESPACES_MAX, Policy, Quota, Worth};

use super::pages::{Pages, RUNS_PER_CHUNK_MAX};
use super::runs::Run;
use crate::slab::{Allocate, Plain, Slab};
use crate::{Limits, POISONED, StoreError};

/// Bytes of a page: small beside a block, large beside the 16 bytes of tables for it.
pub(crate) const PAGE_BYTES: usize = 4 << 10;
/// What of the slab stays free, so that there are long runs: without, most blocks would lie in pieces after a while
/// (docs/tiers.md).
pub(super) const SPARE: f64 = 1.0 / 16.0;
/// The smallest chunk that the tables are made for.
const CHUNK_BYTES_LEAST: u64 = 256 << 10;
/// The largest chunk that is taken.
const CHUNK_BYTES_MAX: usize = 64 << 20;
/// The words in front of the table.
const HEAD_BYTES: usize = 8;

#[derive(Debug)]
struct State {
    policy: Worth,
    map: HashMap<ChunkKey, u32>,
    pages: Pages,
    /// By seat.
    arrivals: Box<[Option<Arrival>]>,
}

/// A chunk on its way in.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    key: ChunkKey,
    record: u32,
    /// It had to leave meanwhile, or was put anew: what has its name now is another.
    spoilt: bool,
}

/// Where the blocks of a chunk on its way in go.
#[derive(Debug)]
struct Landing {
    parts: RwLock<Vec<Part>>,
    /// Blocks that have not come.
    missing: AtomicUsize,
}

#[derive(Debug)]
struct Part {
    run: Run,
    bytes: u32,
    is_here: AtomicBool,
}

/// One seat for reading.
#[derive(Debug)]
struct Seat {
    open: Option<(ChunkKey, u32)>,
    runs: Vec<Run>,
    /// Which run each block begins with, and its bytes.
    blocks: Vec<(usize, u32)>,
}

/// What follows from a tier's bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    page_count: usize,
    /// What the policy gives away: without the spare pages.
    pub(crate) bytes_max: u64,
    pub(crate) chunks_max: usize,
}

impl Extent {
    /// `None`: it has no room for a page, or more than can be numbered.
    pub(crate) fn of(bytes: u64) -> Option<Self> {
        let page_count = usize::try_from(bytes / PAGE_BYTES as u64).ok().filter(|n| (1..1 << 31).contains(n))?;
        let bytes_max = ((page_count - (page_count as f64 * SPARE) as usize) * PAGE_BYTES) as u64;
        Some(Self { page_count, bytes_max, chunks_max: (bytes_max / CHUNK_BYTES_LEAST).max(16) as usize })
    }

    pub(crate) fn slab_bytes(&self) -> usize {
        self.page_count * PAGE_BYTES
    }

    /// Entries that the map is made for, twice as many as there can be, so that it never grows; and records, since
    /// chunks that are gone and still read have one, too.
    fn entries(&self) -> usize {
        2 * self.chunks_max
    }

    /// Bytes of the books of the slab.
    pub(crate) fn books_bytes(&self, limits: &Limits) -> usize {
        // What a hash map takes for so many entries: a power of two, an eighth of it spare.
        let map = (self.entries() * 8 / 7).next_power_of_two() * (size_of::<(ChunkKey, u32)>() + 1);
        let landing = size_of::<Landing>() + limits.blocks_max * size_of::<Part>();
        Worth::memory_bytes(self.chunks_max)
            + Pages::memory_bytes(self.page_count, self.entries())
            + map
            + limits.chunks_open_max * landing
    }
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Dram {
    slab: Box<dyn Slab>,
    /// Others can read the slab in place.
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

/// Pages of a part; one that is empty has one, too.
fn pages_of(bytes: usize) -> usize {
    bytes.div_ceil(PAGE_BYTES).max(1)
}

/// Where a block begins in the slab.
fn start(run: Run) -> usize {
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
            pages: Pages::new(count, extent.entries()),
            arrivals: vec![None; limits.chunks_open_max].into(),
        };
        let landing =
            || Landing { parts: RwLock::new(Vec::with_capacity(limits.blocks_max)), missing: AtomicUsize::new(0) };
        let slab = match allocate {
            Some(allocate) => allocate(count, PAGE_BYTES)?,
            None => Box::new(Plain::new(count, PAGE_BYTES)),
        };
        Ok(Some(Self {
            slab,
            lends: allocate.is_some(),
            extent,
            books_bytes: extent.books_bytes(limits),
            state: Mutex::new(state),
            seats: (0..limits.chunks_open_max).map(|_| RwLock::new(seat())).collect(),
            landings: (0..limits.chunks_open_max).map(|_| landing()).collect(),
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
        super::set_quotas(&mut self.state().policy, quotas);
    }

    pub(super) fn namespaces(&self) -> [u64; NAMESPACES_MAX] {
        super::occupancy(&self.state().policy)
    }

    pub(super) fn rate(&self, key: &ChunkKey, importance: f32) {
        self.state().policy.rate(key, importance);
    }

    /// Chunks, bytes, and bytes at most.
    pub(super) fn occupancy(&self) -> (u64, u64, u64) {
        let state = self.state();
        (state.map.len() as u64, state.policy.bytes(), state.policy.limits().bytes_max)
    }

    pub(super) fn scores(&self, now_ms: u64) -> [u32; super::SCORE_BUCKETS] {
        super::scores(&self.state().policy, now_ms)
    }

    /// The slab, and the books of it.
    pub(super) fn memory_bytes(&self) -> (u64, u64) {
        (self.extent.slab_bytes() as u64, self.books_bytes as u64)
    }

    /// Whether the chunk is worth its room. Then a chunk with this manifest and blocks of these lengths is on its way in at seat
    /// `at`, where nothing else is. `chunk.bytes` is not read.
    pub(super) fn begin(
        &self,
        at: usize,
        chunk: &Chunk,
        parent: Option<&ChunkKey>,
        now_ms: u64,
        (manifest, lengths): (&[u8], &[u32]),
    ) -> bool {
        let head_bytes = HEAD_BYTES + 4 * lengths.len() + manifest.len();
        let parts = || std::iter::once(head_bytes).chain(lengths.iter().map(|&length| length as usize));
        let count: usize = parts().map(pages_of).sum();
        let Some(bytes) = Some(count * PAGE_BYTES).filter(|&bytes| bytes <= CHUNK_BYTES_MAX) else { return false };
        let landing = &self.landings[at];
        let mut blocks = landing.parts.write().expect(POISONED);
        blocks.clear();
        let head = {
            let mut state = self.state();
            assert!(state.arrivals[at].is_none(), "begin: something is on its way in at seat {at}");
            let State { policy, map, pages, arrivals } = &mut *state;
            let offered = policy.offer(&Chunk { bytes: bytes as u32, ..*chunk }, parent, now_ms, &mut |key, bytes| {
                self.evicted.fetch_add(1, Relaxed);
                self.bytes_evicted.fetch_add(bytes.into(), Relaxed);
                spoil(arrivals, key);
                if let Some(record) = map.remove(key) {
                    pages.leave(record);
                }
            });
            if offered.is_err() {
                return false;
            }
            // Those that left may still be read.
            let record = if pages.free_pages() < count { None } else { pages.begin() };
            let Some(record) = record else {
                policy.remove(&chunk.key);
                return false;
            };
            let mut head = None;
            for (index, bytes) in parts().enumerate() {
                let Some(run) = pages.extend(record, pages_of(bytes)) else {
                    policy.remove(&chunk.key);
                    pages.release(record);
                    return false;
                };
                match index {
                    0 => head = Some(run),
                    _ => blocks.push(Part { run, bytes: bytes as u32, is_here: false.into() }),
                }
            }
            arrivals[at] = Some(Arrival { key: chunk.key, record, spoilt: false });
            head.expect("a head is the first part")
        };
        let words = [lengths.len() as u32, manifest.len() as u32].into_iter().chain(lengths.iter().copied());
        let mut to = 0;
        words.for_each(|word| to = self.write(head, to, &word.to_le_bytes()));
        self.write(head, to, manifest);
        landing.missing.store(lengths.len(), Relaxed);
        true
    }

    /// A block of the chunk that is on its way in at this seat; if there is one.
    pub(super) fn write_block(&self, at: usize, index: usize, block: &[u8]) {
        let landing = &self.landings[at];
        if landing.missing.load(Acquire) == 0 {
            return;
        }
        let parts = landing.parts.read().expect(POISONED);
        let part = &parts[index];
        assert_eq!(part.bytes as usize, block.len(), "write_block: block {index} has another length than was said");
        if !part.is_here.swap(true, Relaxed) {
            self.write(part.run, 0, block);
            landing.missing.fetch_sub(1, AcqRel);
        }
    }

    /// How many blocks of what is on its way in at this seat have not come.
    pub(super) fn missing(&self, at: usize) -> Option<usize> {
        let arrives = self.state().arrivals[at].is_some();
        arrives.then(|| self.landings[at].missing.load(Acquire))
    }

    /// Writes to byte `at` of the part that begins with this run; where the next bytes go.
    fn write(&self, mut run: Run, at: usize, bytes: &[u8]) -> usize {
        let (mut from, mut done) = (at, 0);
        while done < bytes.len() {
            let length = run.pages as usize * PAGE_BYTES;
            if from >= length {
                (from, run) = (from - length, self.state().pages.after(run).expect("room for the whole part"));
                continue;
            }
            let now = (bytes.len() - done).min(length - from);
            self.slab.write(start(run) + from, &bytes[done..done + now]);
            (from, done) = (from + now, done + now);
        }
        at + done
    }

    /// All of what is on its way in at this seat is there: from here on it can be found. Returns the bytes of its blocks.
    pub(super) fn publish(&self, at: usize) -> u64 {
        let landing = &self.landings[at];
        assert_eq!(landing.missing.load(Acquire), 0, "publish: blocks are missing");
        let bytes = landing.parts.read().expect(POISONED).iter().map(|part| u64::from(part.bytes)).sum();
        let mut state = self.state();
        let Arrival { key, record, spoilt } = state.arrivals[at].take().expect("something is on its way in");
        if spoilt {
            state.pages.release(record);
            return bytes;
        }
        state.pages.publish(record);
        let old = state.map.insert(key, record);
        assert!(old.is_none(), "publish: the policy takes no chunk twice");
        bytes
    }

    /// What is on its way in at this seat, if anything, does not come.
    pub(super) fn give_up(&self, at: usize) -> bool {
        let mut state = self.state();
        let Some(Arrival { key, record, spoilt }) = state.arrivals[at].take() else { return false };
        self.landings[at].missing.store(0, Relaxed);
        if !spoilt {
            state.policy.remove(&key);
        }
        state.pages.release(record);
        true
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

    /// Where in the slab a whole block lies until the seat is closed; where it cannot be read there, `into` is filled
    /// with it instead.
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

    /// The chunk in a seat.
    pub(super) fn key_of(&self, at: usize) -> ChunkKey {
        let seat = self.seats[at].read().expect(POISONED);
        seat.open.unwrap_or_else(|| panic!("discard: seat {at} is empty")).0
    }

    pub(super) fn close(&self, at: usize) {
        let open = self.seats[at].write().expect(POISONED).open.take();
        let (_, record) = open.unwrap_or_else(|| panic!("close: seat {at} is empty"));
        self.state().pages.close(record);
    }

    /// What lies at byte `at` of the part that begins with the first of these runs.
    fn copy(&self, runs: &[Run], mut at: usize, into: &mut [u8]) {
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
    /// The runs from a block's first on; the block has so many bytes.
    fn runs_of(&self, at: usize, index: usize, bytes: usize) -> Result<&[Run], StoreError> {
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

/// What is on its way in under this name is not what it will be.
fn spoil(arrivals: &mut [Option<Arrival>], key: &ChunkKey) {
    arrivals.iter_mut().flatten().filter(|arrival| arrival.key == *key).for_each(|arrival| arrival.spoilt = true);
}

/// The run behind those of a part that begins with run `first`.
fn behind(runs: &[Run], first: usize, bytes: usize) -> usize {
    let (mut left, mut run) = (pages_of(bytes), first);
    while left > 0 {
        (left, run) = (left - runs[run].pages as usize, run + 1);
    }
    run
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> ChunkKey {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&n.to_le_bytes());
        ChunkKey::new(bytes)
    }

    fn block(n: u32, bytes: usize) -> Vec<u8> {
        (0..bytes).map(|i| (i as u32).wrapping_mul(n + 7).to_le_bytes()[1]).collect()
    }

    /// Two blocks and a manifest of four bytes.
    fn bring(dram: &Dram, n: u32, bytes: usize, now_ms: u64) -> bool {
        let blocks = [block(n, bytes), block(n + 1, bytes / 2 + 1)];
        let lengths = [blocks[0].len() as u32, blocks[1].len() as u32];
        dram.used(&[key(n)], now_ms);
        let began = dram.begin(0, &offered(n), None, now_ms, (&n.to_le_bytes()[..], &lengths[..]));
        if began {
            blocks.iter().enumerate().rev().for_each(|(index, block)| dram.write_block(0, index, block));
            dram.publish(0);
        }
        began
    }

    fn offered(n: u32) -> Chunk {
        Chunk { key: key(n), bytes: 1, namespace: 0, importance: 1.0, cost_us: 1.0 }
    }

    /// Whether both blocks are right; how many of them lie where they can be read in place.
    fn check(dram: &Dram, seat: usize, n: u32, bytes: usize) -> usize {
        let mut in_place = 0;
        for (index, right) in [block(n, bytes), block(n + 1, bytes / 2 + 1)].iter().enumerate() {
            let mut into = vec![0; right.len()];
            if let Some(at) = dram.read(seat, index, &mut into).expect("a block") {
                assert!(into.iter().all(|&byte| byte == 0) && at.is_multiple_of(PAGE_BYTES));
                dram.slab.read(at, &mut into);
                in_place += 1;
            }
            assert!(into == *right, "block {index} of {n}");
        }
        in_place
    }

    #[test]
    fn what_is_found_is_right_through_any_eviction_and_no_page_is_lost() {
        let (read, in_place) = churned(None);
        assert!(read > 300 && in_place == 0, "plain memory is copied: {in_place} of {read}");
        let (read, in_place) = churned(Some(&|pages, page_bytes| Ok(Box::new(Plain::new(pages, page_bytes)))));
        assert!(read > 300 && in_place > read / 2, "{in_place} of {read}");
    }

    #[test]
    fn a_block_that_had_to_be_cut_is_copied_and_right() {
        let allocate: Allocate<'_> = &|pages, page_bytes| Ok(Box::new(Plain::new(pages, page_bytes)));
        let dram = Dram::new(1 << 20, &Limits::default(), 1, Some(allocate)).expect("memory").expect("256 pages");
        // 16 chunks of 13 pages; then 8 holes of 13 pages, and 48 at the end.
        assert!((0..16).all(|n| bring(&dram, n, 30_000, n.into())));
        (0..16).step_by(2).for_each(|n| dram.remove(&key(n)));
        dram.used(&[key(200)], 900);
        assert!(bring(&dram, 200, 240_000, 1000), "there is room");
        for (n, bytes, in_place) in [(200, 240_000, 0), (1, 30_000, 2)] {
            dram.open(0, &key(n), &mut [0; 64]).expect("it is there").expect("room for its manifest");
            assert_eq!(check(&dram, 0, n, bytes), in_place);
            dram.close(0);
        }
    }

    /// How many blocks were read, and how many of them where they lie.
    fn churned(allocate: Option<Allocate<'_>>) -> (usize, usize) {
        let limits = Limits { chunks_open_max: 2, ..Limits::default() };
        let dram = Dram::new(2 << 20, &limits, 1, allocate).expect("memory").expect("512 pages");
        let (pages, mut read, mut in_place) = (dram.extent.page_count, 0, 0);
        let sizes = [1, 1000, 32 << 10, 100_000, 200_000];
        let size = |n: u32| sizes[n as usize % sizes.len()];
        let mut manifest = [0; 64];
        assert!(bring(&dram, 3, size(3), 0));
        dram.open(1, &key(3), &mut manifest).expect("it came in").expect("room for its manifest");
        for n in 10..2000 {
            bring(&dram, n, size(n), u64::from(n) * 10);
            for old in [n, n - 1, n / 2] {
                if let Some(opened) = dram.open(0, &key(old), &mut manifest) {
                    assert_eq!(opened, Ok(4));
                    assert_eq!(manifest[..4], old.to_le_bytes());
                    in_place += check(&dram, 0, old, size(old));
                    read += 2;
                    dram.close(0);
                }
            }
            if n % 97 == 0 {
                dram.remove(&key(n));
            }
        }
        assert!(!dram.holds(&key(3)), "it had to leave");
        check(&dram, 1, 3, size(3));
        dram.close(1);
        let state = dram.state();
        let held: usize =
            state.map.values().flat_map(|&record| state.pages.of(record)).map(|run| run.pages as usize).sum();
        assert_eq!(held + state.pages.free_pages(), pages);
        assert_eq!(state.policy.bytes(), (held * PAGE_BYTES) as u64);
        assert_eq!(state.policy.len(), state.map.len());
        (read, in_place)
    }

    #[test]
    fn a_chunk_that_was_removed_while_it_came_in_is_not_found() {
        let dram = Dram::new(1 << 20, &Limits::default(), 1, None).expect("memory").expect("256 pages");
        for remove in [false, true] {
            assert!(dram.begin(0, &offered(1), None, 0, (&[], &[100])), "an empty tier");
            dram.write_block(0, 0, &[0; 100]);
            if remove {
                dram.remove(&key(1));
                dram.publish(0);
            } else {
                assert!(dram.give_up(0));
            }
            assert!(!dram.holds(&key(1)) && !dram.expects(&key(1)) && dram.missing(0).is_none());
            assert_eq!(dram.state().pages.free_pages(), 256);
        }
        assert!(Dram::new(100, &Limits::default(), 1, None).expect("memory").is_none());
    }

    #[test]
    fn what_has_the_name_of_a_chunk_that_left_on_its_way_in_is_another() {
        let dram = Dram::new(1 << 20, &Limits::default(), 1, None).expect("memory").expect("256 pages");
        let begin = |at| dram.begin(at, &offered(1), None, 0, (&[], &[100, 50]));
        assert!(begin(0));
        assert!(!begin(1), "it comes already");
        dram.remove(&key(1));
        assert!(begin(1), "put anew");
        for (at, byte) in [(0, 1), (1, 2)] {
            dram.write_block(at, 1, &[byte; 50]);
            assert_eq!(dram.missing(at), Some(1));
            // A block that comes twice is one.
            dram.write_block(at, 1, &[byte; 50]);
            dram.write_block(at, 0, &[byte; 100]);
            dram.publish(at);
        }
        dram.open(0, &key(1), &mut []).expect("the later one").expect("room for its manifest");
        let mut into = [0; 100];
        assert_eq!(dram.read(0, 0, &mut into), Ok(None));
        assert_eq!(into, [2; 100]);
        dram.close(0);
        dram.remove(&key(1));
        assert_eq!(dram.state().pages.free_pages(), 256);
    }

    #[test]
    fn many_come_in_at_once_from_many_threads() {
        let limits = Limits { chunks_open_max: 8, ..Limits::default() };
        let dram = Dram::new(2 << 20, &limits, 1, None).expect("memory").expect("512 pages");
        std::thread::scope(|scope| {
            for at in 0..4 {
                let dram = &dram;
                scope.spawn(move || {
                    let mut next = super::super::pages::numbers(at as u64);
                    for _ in 0..2000 {
                        let n = next(40) as u32;
                        let bytes = 1000 * (1 + n as usize % 7);
                        let content = [block(n, bytes), block(n + 1, bytes / 2 + 1)];
                        let lengths = [bytes as u32, bytes as u32 / 2 + 1];
                        dram.used(&[key(n)], 0);
                        if dram.begin(at, &offered(n), None, 0, (&n.to_le_bytes()[..], &lengths[..])) {
                            let blocks = if next(5) == 0 { 1 } else { 2 };
                            (0..blocks).for_each(|index| dram.write_block(at, index, &content[index]));
                            if blocks == 2 {
                                dram.publish(at);
                            } else {
                                assert!(dram.give_up(at));
                            }
                        }
                        if dram.open(4 + at, &key(n), &mut [0; 4]).is_some() {
                            check(dram, 4 + at, n, bytes);
                            dram.close(4 + at);
                        }
                        if next(10) == 0 {
                            dram.remove(&key(next(40) as u32));
                        }
                    }
                });
            }
        });
        (0..40).for_each(|n| dram.remove(&key(n)));
        assert_eq!(dram.state().pages.free_pages(), 512);
        assert!(dram.state().map.is_empty() && dram.state().policy.is_empty());
    }
}
