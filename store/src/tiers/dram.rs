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
//! Locks: `state` is never held while bytes are copied. Blocks of one seat are read side by side.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, RwLock};

use block::ChunkKey;
use tier::{Chunk, Limits as Sizes, NAMESPACES_MAX, Policy, Quota, Worth};

use super::pages::{Pages, RUNS_PER_CHUNK_MAX};
use super::runs::Run;
use crate::slab::{Allocate, Plain, Slab};
use crate::{Limits, POISONED, StoreError};

/// Bytes of a page: small beside a block, large beside the 16 bytes of tables for it.
pub(super) const PAGE_BYTES: usize = 4 << 10;
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
}

/// One seat for reading.
#[derive(Debug)]
struct Seat {
    open: Option<(ChunkKey, u32)>,
    runs: Vec<Run>,
    /// Which run each block begins with, and its bytes.
    blocks: Vec<(usize, u32)>,
}

/// A chunk on its way in: found by nobody until it is published.
#[derive(Debug)]
pub(super) struct Incoming {
    key: ChunkKey,
    record: u32,
    blocks_left: usize,
    /// There was no room for a part.
    failed: bool,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Dram {
    slab: Box<dyn Slab>,
    /// Others can read the slab in place.
    lends: bool,
    page_count: usize,
    state: Mutex<State>,
    seats: Box<[RwLock<Seat>]>,
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
        let count = usize::try_from(bytes_max / PAGE_BYTES as u64).ok();
        let Some(count) = count.filter(|n| (1..1 << 31).contains(n)) else { return Ok(None) };
        let bytes_max = ((count - (count as f64 * SPARE) as usize) * PAGE_BYTES) as u64;
        let chunks_max = (bytes_max / CHUNK_BYTES_LEAST).max(16) as usize;
        let seat = || Seat {
            open: None,
            runs: Vec::with_capacity(RUNS_PER_CHUNK_MAX),
            blocks: Vec::with_capacity(limits.blocks_max),
        };
        let state = State {
            policy: Worth::new(Sizes::of(bytes_max, chunks_max), seed),
            // Twice as many as there can be: then it never grows.
            map: HashMap::with_capacity(2 * chunks_max),
            // Those that are gone and still read have records, too.
            pages: Pages::new(count, 2 * chunks_max),
        };
        let slab = match allocate {
            Some(allocate) => allocate(count, PAGE_BYTES)?,
            None => Box::new(Plain::new(count, PAGE_BYTES)),
        };
        Ok(Some(Self {
            slab,
            lends: allocate.is_some(),
            page_count: count,
            state: Mutex::new(state),
            seats: (0..limits.chunks_open_max).map(|_| RwLock::new(seat())).collect(),
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

    pub(super) fn used(&self, keys: &[ChunkKey], now_ms: u64) {
        self.state().policy.used(keys, now_ms);
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
        let state = self.state();
        let books = Worth::memory_bytes(state.policy.limits().chunks_max)
            + state.pages.memory_bytes()
            + state.map.capacity() * (size_of::<(ChunkKey, u32)>() + 1);
        ((self.page_count * PAGE_BYTES) as u64, books as u64)
    }

    /// Whether the chunk is worth its room; then room for a manifest and blocks of these lengths. `chunk.bytes` is not read.
    pub(super) fn begin(
        &self,
        chunk: &Chunk,
        parent: Option<&ChunkKey>,
        now_ms: u64,
        (manifest, lengths): (&[u8], &[u32]),
    ) -> Option<Incoming> {
        let head_bytes = HEAD_BYTES + 4 * lengths.len() + manifest.len();
        let count = lengths.iter().fold(pages_of(head_bytes), |count, &length| count + pages_of(length as usize));
        let bytes = Some(count * PAGE_BYTES).filter(|&bytes| bytes <= CHUNK_BYTES_MAX)? as u32;
        let record = {
            let mut state = self.state();
            let State { policy, map, pages } = &mut *state;
            let offered = policy.offer(&Chunk { bytes, ..*chunk }, parent, now_ms, &mut |key, bytes| {
                self.evicted.fetch_add(1, Relaxed);
                self.bytes_evicted.fetch_add(bytes.into(), Relaxed);
                if let Some(record) = map.remove(key) {
                    pages.leave(record);
                }
            });
            offered.ok()?;
            // Those that left may still be read. One chunk comes in at a time, so that what is free stays free for it.
            let record = if pages.free_pages() < count { None } else { pages.begin() };
            let Some(record) = record else {
                policy.remove(&chunk.key);
                return None;
            };
            record
        };
        let mut incoming = Incoming { key: chunk.key, record, blocks_left: lengths.len(), failed: false };
        let words = [lengths.len() as u32, manifest.len() as u32].into_iter().chain(lengths.iter().copied());
        let run = self.room(&mut incoming, head_bytes);
        let mut at = 0;
        words.for_each(|word| at = self.write(run, at, &word.to_le_bytes()));
        self.write(run, at, manifest);
        Some(incoming)
    }

    /// The next block of a chunk.
    pub(super) fn write_block(&self, incoming: &mut Incoming, block: &[u8]) {
        incoming.blocks_left -= 1;
        let run = self.room(incoming, block.len());
        self.write(run, 0, block);
    }

    /// The first run of room for the next part.
    fn room(&self, incoming: &mut Incoming, bytes: usize) -> Option<Run> {
        let run = self.state().pages.extend(incoming.record, pages_of(bytes)).filter(|_| !incoming.failed);
        incoming.failed |= run.is_none();
        run
    }

    /// Writes to byte `at` of the part that begins with this run; where the next bytes go.
    fn write(&self, run: Option<Run>, at: usize, bytes: &[u8]) -> usize {
        let Some(mut run) = run else { return at };
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

    /// All is written: from here on it can be found. `false`: there was no room for it.
    pub(super) fn publish(&self, incoming: Incoming) -> bool {
        assert_eq!(incoming.blocks_left, 0, "publish: blocks are missing");
        if incoming.failed {
            self.give_up(incoming);
            return false;
        }
        let mut state = self.state();
        // Removed while it came in: it was put anew.
        if !state.policy.holds(&incoming.key) {
            state.pages.release(incoming.record);
            return true;
        }
        state.pages.publish(incoming.record);
        let old = state.map.insert(incoming.key, incoming.record);
        assert!(old.is_none(), "publish: the policy takes no chunk twice");
        true
    }

    pub(super) fn give_up(&self, incoming: Incoming) {
        let mut state = self.state();
        state.policy.remove(&incoming.key);
        state.pages.release(incoming.record);
    }

    /// Takes a chunk out.
    pub(super) fn remove(&self, key: &ChunkKey) {
        let mut state = self.state();
        state.policy.remove(key);
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
        self.hits.fetch_add(1, Relaxed);
        Some(Ok(manifest_bytes))
    }

    /// Where in the slab a whole block lies until the seat is closed; where it cannot be read there, `into` is filled
    /// with it instead.
    pub(super) fn read(&self, at: usize, index: usize, into: &mut [u8]) -> Result<Option<usize>, StoreError> {
        let seat = self.seats[at].read().expect(POISONED);
        assert!(seat.open.is_some(), "read_block: seat {at} is empty");
        let Some(&(first, bytes)) = seat.blocks.get(index) else {
            return Err(StoreError::Corrupt { what: "no such block", value: index as u64 });
        };
        if bytes as usize != into.len() {
            return Err(StoreError::Corrupt { what: "block of another length, bytes", value: bytes.into() });
        }
        self.bytes_read.fetch_add(bytes.into(), Relaxed);
        let run = seat.runs[first];
        let lies = (self.lends && run.pages as usize >= pages_of(into.len())).then(|| start(run));
        if lies.is_none() {
            self.copy(&seat.runs[first..], 0, into);
            self.bytes_copied.fetch_add(bytes.into(), Relaxed);
        }
        Ok(lies)
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
        let parts = (&n.to_le_bytes()[..], &lengths[..]);
        let Some(mut incoming) = dram.begin(&offered(n), None, now_ms, parts) else { return false };
        blocks.iter().for_each(|block| dram.write_block(&mut incoming, block));
        dram.publish(incoming);
        true
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
        let (pages, mut read, mut in_place) = (dram.page_count, 0, 0);
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
            let mut incoming = dram.begin(&offered(1), None, 0, (&[], &[100])).expect("an empty tier");
            dram.write_block(&mut incoming, &[0; 100]);
            if remove {
                dram.remove(&key(1));
                dram.publish(incoming);
            } else {
                dram.give_up(incoming);
            }
            assert!(!dram.holds(&key(1)));
            assert_eq!(dram.state().pages.free_pages(), 256);
        }
        assert!(Dram::new(100, &Limits::default(), 1, None).expect("memory").is_none());
    }
}
