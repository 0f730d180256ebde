//! T0: compressed chunks in the card's own memory. A slab of pages of one size, taken in Init; a chunk is a chain of
//! pages that holds its table of lengths, its manifest and its blocks one after the other, so that what a chunk wastes is
//! less than a page.
//!
//! A hit is **copied**, once, from the pages to where the block is wanted. Who reads holds a place in its chunk's record:
//! a chunk that has to leave meanwhile is found by nobody any more, and its pages are free when the last reader closes.
//!
//! Locks: `state` is never held while bytes are copied. Blocks of one seat are read side by side. A page's lock is for the
//! compiler's sake: nobody writes a page that others read.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, RwLock};

use block::ChunkKey;
use tier::{Chunk, Limits as Sizes, NAMESPACES_MAX, Policy, Quota, Worth};

use crate::{Limits, POISONED, StoreError};

/// Bytes of a page: small beside a chunk, large beside the 4 bytes that link it.
pub(super) const PAGE_BYTES: usize = 32 << 10;
/// The smallest chunk that the tables are made for.
const CHUNK_BYTES_LEAST: u64 = 256 << 10;
/// Pages of the largest chunk that is taken: 64 MiB.
const PAGES_PER_CHUNK_MAX: usize = (64 << 20) / PAGE_BYTES;
const NONE: u32 = u32::MAX;

/// A chunk's pages.
#[derive(Clone, Copy, Debug)]
struct Record {
    first: u32,
    pages: u32,
    users: u32,
    /// Out of the map: its pages go with the last user.
    gone: bool,
    next_free: u32,
}

/// Who has which pages.
#[derive(Debug)]
struct Slab {
    records: Box<[Record]>,
    free_record: u32,
    /// The page after each page of a chain.
    next: Box<[u32]>,
    free_page: u32,
    free_pages: usize,
}

#[derive(Debug)]
struct State {
    policy: Worth,
    map: HashMap<ChunkKey, u32>,
    slab: Slab,
}

/// One seat for reading.
#[derive(Debug)]
struct Seat {
    open: Option<(ChunkKey, u32)>,
    pages: Vec<u32>,
    /// Where each block begins, and where the last one ends.
    starts: Vec<u64>,
    manifest_at: u64,
}

/// A chunk on its way in: found by nobody until it is published.
#[derive(Debug)]
pub(super) struct Incoming {
    key: ChunkKey,
    record: u32,
    page: u32,
    offset: usize,
    left: usize,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Dram {
    pages: Box<[RwLock<Box<[u8]>>]>,
    state: Mutex<State>,
    seats: Box<[RwLock<Seat>]>,
    pub(super) hits: AtomicU64,
    pub(super) bytes_read: AtomicU64,
    pub(super) evicted: AtomicU64,
    pub(super) bytes_evicted: AtomicU64,
}

impl Dram {
    /// Init. `None`: it has no room for a page.
    pub(super) fn new(bytes_max: u64, limits: &Limits, seed: u64) -> Option<Self> {
        let count = usize::try_from(bytes_max / PAGE_BYTES as u64).ok().filter(|n| (1..NONE as usize).contains(n))?;
        let bytes_max = (count * PAGE_BYTES) as u64;
        let chunks_max = (bytes_max / CHUNK_BYTES_LEAST).max(16) as usize;
        let link = |at: usize, count: usize| if at + 1 < count { at as u32 + 1 } else { NONE };
        let record = |at| Record { first: NONE, pages: 0, users: 0, gone: false, next_free: link(at, 2 * chunks_max) };
        let seat = || Seat {
            open: None,
            pages: Vec::with_capacity(PAGES_PER_CHUNK_MAX),
            starts: Vec::with_capacity(limits.blocks_max + 1),
            manifest_at: 0,
        };
        let state = State {
            policy: Worth::new(Sizes::of(bytes_max, chunks_max), seed),
            // Twice as many as there can be: then it never grows.
            map: HashMap::with_capacity(2 * chunks_max),
            slab: Slab {
                // Those that are gone and still read have records, too.
                records: (0..2 * chunks_max).map(record).collect(),
                free_record: 0,
                next: (0..count).map(|at| link(at, count)).collect(),
                free_page: 0,
                free_pages: count,
            },
        };
        Some(Self {
            // Written to, so that the memory is there before anybody waits for it.
            pages: (0..count).map(|_| RwLock::new(vec![0xff; PAGE_BYTES].into())).collect(),
            state: Mutex::new(state),
            seats: (0..limits.chunks_open_max).map(|_| RwLock::new(seat())).collect(),
            hits: 0.into(),
            bytes_read: 0.into(),
            evicted: 0.into(),
            bytes_evicted: 0.into(),
        })
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

    pub(super) fn memory_bytes(&self) -> u64 {
        let state = self.state();
        let books = Worth::memory_bytes(state.policy.limits().chunks_max)
            + state.slab.records.len() * size_of::<Record>()
            + state.map.capacity() * (size_of::<(ChunkKey, u32)>() + 1);
        (self.pages.len() * (PAGE_BYTES + size_of::<u32>()) + books) as u64
    }

    /// Whether the chunk is worth its room; then room for `bytes` of it.
    pub(super) fn begin(&self, chunk: &Chunk, parent: Option<&ChunkKey>, now_ms: u64) -> Option<Incoming> {
        let left = chunk.bytes as usize;
        let pages = left.div_ceil(PAGE_BYTES);
        if pages > PAGES_PER_CHUNK_MAX {
            return None;
        }
        let mut state = self.state();
        let State { policy, map, slab } = &mut *state;
        let rounded = Chunk { bytes: (pages * PAGE_BYTES) as u32, ..*chunk };
        let offered = policy.offer(&rounded, parent, now_ms, &mut |key, bytes| {
            self.evicted.fetch_add(1, Relaxed);
            self.bytes_evicted.fetch_add(bytes.into(), Relaxed);
            if let Some(record) = map.remove(key) {
                slab.leave(record);
            }
        });
        offered.ok()?;
        // Those that left may still be read.
        let Some((record, page)) = slab.take(pages) else {
            policy.remove(&chunk.key);
            return None;
        };
        Some(Incoming { key: chunk.key, record, page, offset: 0, left })
    }

    /// The next bytes of a chunk.
    pub(super) fn write(&self, incoming: &mut Incoming, mut bytes: &[u8]) {
        assert!(bytes.len() <= incoming.left, "write: {} bytes where {} are left", bytes.len(), incoming.left);
        incoming.left -= bytes.len();
        while !bytes.is_empty() {
            if incoming.offset == PAGE_BYTES {
                incoming.page = self.state().slab.next[incoming.page as usize];
                incoming.offset = 0;
            }
            let (now, later) = bytes.split_at(bytes.len().min(PAGE_BYTES - incoming.offset));
            let mut page = self.pages[incoming.page as usize].write().expect(POISONED);
            page[incoming.offset..incoming.offset + now.len()].copy_from_slice(now);
            incoming.offset += now.len();
            bytes = later;
        }
    }

    /// All is written: from here on it can be found.
    pub(super) fn publish(&self, incoming: Incoming) {
        assert_eq!(incoming.left, 0, "publish: bytes are missing");
        let mut state = self.state();
        // Removed while it came in: it was put anew.
        if !state.policy.holds(&incoming.key) {
            return state.slab.release(incoming.record);
        }
        state.slab.records[incoming.record as usize].gone = false;
        let old = state.map.insert(incoming.key, incoming.record);
        assert!(old.is_none(), "publish: the policy takes no chunk twice");
    }

    pub(super) fn give_up(&self, incoming: Incoming) {
        let mut state = self.state();
        state.policy.remove(&incoming.key);
        state.slab.release(incoming.record);
    }

    /// Takes a chunk out.
    pub(super) fn remove(&self, key: &ChunkKey) {
        let mut state = self.state();
        state.policy.remove(key);
        if let Some(record) = state.map.remove(key) {
            state.slab.leave(record);
        }
    }

    /// Opens a chunk in a free seat and copies its manifest; returns its bytes. `None`: it is not here.
    pub(super) fn open(&self, at: usize, key: &ChunkKey, manifest: &mut [u8]) -> Option<Result<usize, StoreError>> {
        let mut seat = self.seats[at].write().expect(POISONED);
        assert!(seat.open.is_none(), "open: seat {at} is occupied");
        let record = {
            let mut state = self.state();
            let record = *state.map.get(key)?;
            let slab = &mut state.slab;
            slab.records[record as usize].users += 1;
            seat.pages.clear();
            let mut page = slab.records[record as usize].first;
            while page != NONE {
                seat.pages.push(page);
                page = slab.next[page as usize];
            }
            record
        };
        let mut head = [0; 8];
        self.copy(&seat.pages, 0, &mut head);
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
        let (blocks, manifest_bytes) = (word(&head[..4]) as usize, word(&head[4..]) as usize);
        seat.manifest_at = (8 + 4 * blocks) as u64;
        let mut start = seat.manifest_at + manifest_bytes as u64;
        seat.starts.clear();
        seat.starts.push(start);
        for block in 0..blocks {
            let mut length = [0; 4];
            self.copy(&seat.pages, (8 + 4 * block) as u64, &mut length);
            start += u64::from(u32::from_le_bytes(length));
            seat.starts.push(start);
        }
        let max = manifest.len();
        let Some(out) = manifest.get_mut(..manifest_bytes) else {
            self.state().slab.close(record);
            return Some(Err(StoreError::Large { what: "manifest", value: manifest_bytes, max }));
        };
        self.copy(&seat.pages, seat.manifest_at, out);
        seat.open = Some((*key, record));
        self.hits.fetch_add(1, Relaxed);
        Some(Ok(manifest_bytes))
    }

    /// Fills `into` with a whole block.
    pub(super) fn read(&self, at: usize, index: usize, into: &mut [u8]) -> Result<(), StoreError> {
        let seat = self.seats[at].read().expect(POISONED);
        assert!(seat.open.is_some(), "read_block: seat {at} is empty");
        let place = |index: usize| seat.starts.get(index).copied();
        let (Some(from), Some(until)) = (place(index), index.checked_add(1).and_then(place)) else {
            return Err(StoreError::Corrupt { what: "no such block", value: index as u64 });
        };
        if until - from != into.len() as u64 {
            return Err(StoreError::Corrupt { what: "block of another length, bytes", value: until - from });
        }
        self.copy(&seat.pages, from, into);
        self.bytes_read.fetch_add(into.len() as u64, Relaxed);
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
        self.state().slab.close(record);
    }

    /// What lies at byte `at` of a chain of pages and behind it.
    fn copy(&self, pages: &[u32], at: u64, into: &mut [u8]) {
        let mut done = 0;
        while done < into.len() {
            let position = at + done as u64;
            let from = (position % PAGE_BYTES as u64) as usize;
            let bytes = (into.len() - done).min(PAGE_BYTES - from);
            let page = pages[(position / PAGE_BYTES as u64) as usize];
            let page = self.pages[page as usize].read().expect(POISONED);
            into[done..done + bytes].copy_from_slice(&page[from..from + bytes]);
            done += bytes;
        }
    }
}

impl Slab {
    /// A record with a chain of so many pages, and the first of them; found by nobody yet.
    fn take(&mut self, pages: usize) -> Option<(u32, u32)> {
        if self.free_pages < pages || self.free_record == NONE {
            return None;
        }
        let (record, first) = (self.free_record, self.free_page);
        self.free_record = self.records[record as usize].next_free;
        let mut last = first;
        (1..pages).for_each(|_| last = self.next[last as usize]);
        self.free_page = std::mem::replace(&mut self.next[last as usize], NONE);
        self.free_pages -= pages;
        self.records[record as usize] = Record { first, pages: pages as u32, users: 0, gone: true, next_free: NONE };
        Some((record, first))
    }

    /// Nobody finds it any more.
    fn leave(&mut self, record: u32) {
        self.records[record as usize].gone = true;
        self.release(record);
    }

    /// One reader less.
    fn close(&mut self, record: u32) {
        self.records[record as usize].users -= 1;
        self.release(record);
    }

    /// Frees the pages of a record that is gone and that nobody reads.
    fn release(&mut self, record: u32) {
        let Record { first, pages, users, gone, .. } = self.records[record as usize];
        if !gone || users > 0 {
            return;
        }
        let mut last = first;
        while self.next[last as usize] != NONE {
            last = self.next[last as usize];
        }
        self.next[last as usize] = std::mem::replace(&mut self.free_page, first);
        self.free_pages += pages as usize;
        self.records[record as usize].next_free = std::mem::replace(&mut self.free_record, record);
    }
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
        let all = 8 + 8 + 4 + blocks[0].len() + blocks[1].len();
        let chunk = Chunk { key: key(n), bytes: all as u32, namespace: 0, importance: 1.0, cost_us: 1.0 };
        dram.used(&[key(n)], now_ms);
        let Some(mut incoming) = dram.begin(&chunk, None, now_ms) else { return false };
        dram.write(&mut incoming, &2u32.to_le_bytes());
        dram.write(&mut incoming, &4u32.to_le_bytes());
        blocks.iter().for_each(|block| dram.write(&mut incoming, &(block.len() as u32).to_le_bytes()));
        dram.write(&mut incoming, &n.to_le_bytes());
        blocks.iter().for_each(|block| dram.write(&mut incoming, block));
        dram.publish(incoming);
        true
    }

    fn check(dram: &Dram, seat: usize, n: u32, bytes: usize) {
        let mut into = vec![0; bytes];
        dram.read(seat, 0, &mut into).expect("block 0");
        assert!(into == block(n, bytes), "block 0 of {n}");
        into.resize(bytes / 2 + 1, 0);
        dram.read(seat, 1, &mut into).expect("block 1");
        assert!(into == block(n + 1, bytes / 2 + 1), "block 1 of {n}");
    }

    #[test]
    fn what_is_found_is_right_through_any_eviction_and_no_page_is_lost() {
        let limits = Limits { chunks_open_max: 2, ..Limits::default() };
        let dram = Dram::new(2 << 20, &limits, 1).expect("64 pages");
        let pages = dram.pages.len();
        let sizes = [1, 1000, PAGE_BYTES, 3 * PAGE_BYTES + 5, 200_000];
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
                    check(&dram, 0, old, size(old));
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
        let held: usize = state.map.values().map(|&record| state.slab.records[record as usize].pages as usize).sum();
        assert_eq!(held + state.slab.free_pages, pages);
        assert_eq!(state.policy.bytes(), (held * PAGE_BYTES) as u64);
        assert_eq!(state.policy.len(), state.map.len());
    }

    #[test]
    fn a_chunk_that_was_removed_while_it_came_in_is_not_found() {
        let dram = Dram::new(1 << 20, &Limits::default(), 1).expect("32 pages");
        let chunk = Chunk { key: key(1), bytes: 100, namespace: 0, importance: 1.0, cost_us: 1.0 };
        for remove in [false, true] {
            let mut incoming = dram.begin(&chunk, None, 0).expect("an empty tier");
            dram.write(&mut incoming, &[0; 100]);
            if remove {
                dram.remove(&key(1));
                dram.publish(incoming);
            } else {
                dram.give_up(incoming);
            }
            assert!(!dram.holds(&key(1)));
            assert_eq!(dram.state().slab.free_pages, 32);
        }
        assert!(Dram::new(100, &Limits::default(), 1).is_none());
    }
}
