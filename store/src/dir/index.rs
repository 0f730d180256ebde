//! Which chunks a directory holds, how large each is and which was used last: in memory, of fixed size.
//!
//! An arena of entries made once, a hash table of arena places (open addressing, at most half full, deletion by
//! shifting back, so no tombstones and no rehash) and a doubly linked list by use, both made of arena indices. Keys
//! come from hosts that may choose them, so the hash is seeded. No I/O and no allocation after `new`.

use std::hash::{BuildHasher, RandomState};

use block::{ChunkKey, KEY_BYTES};

const NONE: u32 = u32::MAX;
const NO_KEY: ChunkKey = ChunkKey::new([0; KEY_BYTES]);

/// One chunk.
#[derive(Clone, Copy, Debug)]
struct Entry {
    key: ChunkKey,
    bytes: u64,
    older: u32,
    newer: u32,
    stamped_s: u32,
}

/// The fixed table. Oldest and newest are by use.
#[derive(Debug)]
pub(super) struct Index {
    entries: Box<[Entry]>,
    /// Arena place by hash; a power of two in length, at least twice the arena.
    table: Box<[u32]>,
    seed: RandomState,
    oldest: u32,
    newest: u32,
    /// Head of the free entries, linked by `newer`.
    free: u32,
    len: usize,
    bytes: u64,
}

impl Index {
    /// Bytes that an index for `chunks_max` chunks takes.
    pub(super) fn memory_bytes(chunks_max: usize) -> usize {
        chunks_max * size_of::<Entry>() + table_len(chunks_max) * size_of::<u32>()
    }

    pub(super) fn new(chunks_max: usize) -> Self {
        assert!(chunks_max > 0 && chunks_max < NONE as usize / 4, "chunks_max {chunks_max} is out of range");
        let link = |i: usize| if i + 1 < chunks_max { i as u32 + 1 } else { NONE };
        let blank = |i| Entry { key: NO_KEY, bytes: 0, older: NONE, newer: link(i), stamped_s: 0 };
        Self {
            entries: (0..chunks_max).map(blank).collect(),
            table: vec![NONE; table_len(chunks_max)].into(),
            seed: RandomState::new(),
            oldest: NONE,
            newest: NONE,
            free: 0,
            len: 0,
            bytes: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn chunks_max(&self) -> usize {
        self.entries.len()
    }

    /// Sum of the bytes of all chunks.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn contains(&self, key: &ChunkKey) -> bool {
        self.find(key).is_some()
    }

    /// Shows every chunk and its bytes, from the one that was used longest ago on.
    pub(super) fn each(&self, mut show: impl FnMut(&ChunkKey, u64)) {
        let mut at = self.oldest;
        while let Some(entry) = self.entries.get(at as usize) {
            show(&entry.key, entry.bytes);
            at = entry.newer;
        }
    }

    /// Makes the chunk the newest.
    pub(super) fn touch(&mut self, key: &ChunkKey) -> bool {
        let Some((_, at)) = self.find(key) else { return false };
        self.unlink(at);
        self.link_newest(at);
        true
    }

    /// Takes the right to write the time of use down: at most once in `interval_s` for one chunk.
    pub(super) fn stamp(&mut self, key: &ChunkKey, now_s: u32, interval_s: u32) -> bool {
        let Some((_, at)) = self.find(key) else { return false };
        let due = now_s.wrapping_sub(self.entries[at as usize].stamped_s) >= interval_s;
        if due {
            self.entries[at as usize].stamped_s = now_s;
        }
        due
    }

    /// Enters or replaces a chunk as the newest; gives it back when the arena is full.
    pub(super) fn insert(&mut self, key: &ChunkKey, bytes: u64, stamped_s: u32) -> Result<(), Refused> {
        if self.find(key).is_some() {
            self.remove(key);
        }
        let at = self.free;
        if at == NONE {
            return Err(Refused);
        }
        self.free = self.entries[at as usize].newer;
        self.entries[at as usize] = Entry { key: *key, bytes, older: NONE, newer: NONE, stamped_s };
        let mut slot = self.home(key);
        while self.table[slot] != NONE {
            slot = (slot + 1) & self.mask();
        }
        self.table[slot] = at;
        self.link_newest(at);
        self.len += 1;
        self.bytes += bytes;
        Ok(())
    }

    /// Forgets a chunk; returns its bytes.
    pub(super) fn remove(&mut self, key: &ChunkKey) -> Option<u64> {
        let (mut hole, at) = self.find(key)?;
        // Shift back every later member of the run that may lie in the hole.
        let mut next = hole;
        loop {
            next = (next + 1) & self.mask();
            let Some(moved) = self.entries.get(self.table[next] as usize) else { break };
            let home = self.home(&moved.key);
            if (next.wrapping_sub(home) & self.mask()) >= (next.wrapping_sub(hole) & self.mask()) {
                self.table[hole] = self.table[next];
                hole = next;
            }
        }
        self.table[hole] = NONE;
        self.unlink(at);
        let bytes = self.entries[at as usize].bytes;
        self.entries[at as usize].newer = self.free;
        self.free = at;
        self.len -= 1;
        self.bytes -= bytes;
        Some(bytes)
    }

    /// Forgets the chunk that was not used for the longest time.
    pub(super) fn pop_oldest(&mut self) -> Option<(ChunkKey, u64)> {
        let key = self.entries.get(self.oldest as usize)?.key;
        let bytes = self.remove(&key)?;
        Some((key, bytes))
    }

    fn mask(&self) -> usize {
        self.table.len() - 1
    }

    fn home(&self, key: &ChunkKey) -> usize {
        self.seed.hash_one(key) as usize & self.mask()
    }

    /// Table slot and arena place of a chunk.
    fn find(&self, key: &ChunkKey) -> Option<(usize, u32)> {
        let mut slot = self.home(key);
        loop {
            let at = self.table[slot];
            if self.entries.get(at as usize)?.key == *key {
                return Some((slot, at));
            }
            slot = (slot + 1) & self.mask();
        }
    }

    fn unlink(&mut self, at: u32) {
        let Entry { older, newer, .. } = self.entries[at as usize];
        match self.entries.get_mut(older as usize) {
            Some(entry) => entry.newer = newer,
            None => self.oldest = newer,
        }
        match self.entries.get_mut(newer as usize) {
            Some(entry) => entry.older = older,
            None => self.newest = older,
        }
    }

    fn link_newest(&mut self, at: u32) {
        let older = std::mem::replace(&mut self.newest, at);
        match self.entries.get_mut(older as usize) {
            Some(entry) => entry.newer = at,
            None => self.oldest = at,
        }
        self.entries[at as usize].older = older;
        self.entries[at as usize].newer = NONE;
    }
}

/// The arena has no free entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused;

fn table_len(chunks_max: usize) -> usize {
    (chunks_max * 2).next_power_of_two()
}
