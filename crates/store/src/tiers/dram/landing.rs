//! Chunks on their way into T0. Each has its pages from the beginning, so its blocks may come in any order and from any
//! thread, and several chunks at a time. It is found by nobody until all of it is there.

use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};

use block::ChunkKey;
use tier::CandidateChunk;

use super::{Dram, HEAD_BYTES, PAGE_BYTES, State, pages_of, start};
use crate::tiers::runs::PageRun;
use crate::{Limits, POISONED};

/// Bytes of the largest chunk that is taken.
const CHUNK_BYTES_MAX: usize = 64 << 20;

/// A chunk on its way in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    key: ChunkKey,
    record: u32,
    /// The chunk had to leave meanwhile, or was put anew: what has its name now is another.
    spoilt: bool,
}

/// Places of the blocks of a chunk on its way in.
#[derive(Debug)]
pub(super) struct Landing {
    parts: RwLock<Vec<Part>>,
    /// Number of blocks that have not come.
    missing: AtomicUsize,
}

#[derive(Debug)]
struct Part {
    run: PageRun,
    bytes: u32,
    is_here: AtomicBool,
}

impl Landing {
    pub(super) fn new(limits: &Limits) -> Self {
        Self { parts: RwLock::new(Vec::with_capacity(limits.blocks_max)), missing: AtomicUsize::new(0) }
    }

    pub(super) const fn memory_bytes(limits: &Limits) -> usize {
        size_of::<Self>() + limits.blocks_max * size_of::<Part>()
    }
}

impl Dram {
    /// Asks whether the chunk is worth its room. Then one with this manifest and blocks of these lengths is on its
    /// way in at seat `at`, where nothing else is. `chunk.bytes` is not read.
    pub(in crate::tiers) fn begin(
        &self,
        at: usize,
        chunk: &CandidateChunk,
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
            let offered =
                policy.offer(&CandidateChunk { bytes: bytes as u32, ..*chunk }, parent, now_ms, &mut |key, bytes| {
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

    /// Writes a block of the chunk that is on its way in at this seat, if there is one.
    pub(in crate::tiers) fn write_block(&self, at: usize, index: usize, block: &[u8]) {
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

    /// Returns how many blocks of what is on its way in at this seat have not come.
    pub(in crate::tiers) fn missing(&self, at: usize) -> Option<usize> {
        let arrives = self.state().arrivals[at].is_some();
        arrives.then(|| self.landings[at].missing.load(Acquire))
    }

    /// Writes to byte `at` of the part that begins with this run; returns where the next bytes go.
    fn write(&self, mut run: PageRun, at: usize, bytes: &[u8]) -> usize {
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

    /// Lets what is on its way in at this seat be found, now that all of it is there. Returns the bytes of its blocks.
    pub(in crate::tiers) fn publish(&self, at: usize) -> u64 {
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

    /// Gives up what is on its way in at this seat, if anything.
    pub(in crate::tiers) fn give_up(&self, at: usize) -> bool {
        let mut state = self.state();
        let Some(Arrival { key, record, spoilt }) = state.arrivals[at].take() else { return false };
        self.landings[at].missing.store(0, Relaxed);
        if !spoilt {
            state.policy.remove(&key);
        }
        state.pages.release(record);
        true
    }
}

/// Marks what is on its way in under this name: it is not what the name stands for any more.
pub(super) fn spoil(arrivals: &mut [Option<Arrival>], key: &ChunkKey) {
    arrivals.iter_mut().flatten().filter(|arrival| arrival.key == *key).for_each(|arrival| arrival.spoilt = true);
}
