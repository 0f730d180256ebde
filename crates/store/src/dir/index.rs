//! Which chunks a directory holds, how large each is and which was used last: in memory, of fixed size.
//!
//! A chunk is worth nothing without those before it in its prompt, so it counts as used just before its parent. So a
//! prompt is given up from its tail on, however its chunks were opened or put.
//!
//! It consists of an arena of entries, a hash table of arena places (open addressing, at most half full, deletion by
//! shifting back, so no tombstones and no rehash) and a doubly linked list by use. Hosts may choose keys, so the hash
//! is seeded. No I/O, and no allocation after `new`.

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
    stamp_ns: u64,
}

/// Chunks put before their parents were, and remembered until those are.
pub(super) const EARLY_MAX: usize = 64;

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
    /// The last chunks that came before their parents: chunk, parent; `None`: that has come.
    early: heapless::Deque<(ChunkKey, Option<ChunkKey>), EARLY_MAX>,
}

/// Position in its prompt of a chunk that comes in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Behind {
    /// First of its prompt, or nothing is known of that.
    Nobody,
    /// Follows this one, if that is there; else there is no way to it, and it goes first.
    Parent(ChunkKey),
    /// The same, and that one is being put: it comes later.
    Late(ChunkKey),
}

impl Index {
    /// Bytes that an index for `chunks_max` chunks takes.
    pub(super) fn memory_bytes(chunks_max: usize) -> usize {
        chunks_max * size_of::<Entry>() + table_len(chunks_max) * size_of::<u32>()
    }

    pub(super) fn new(chunks_max: usize) -> Self {
        assert!(chunks_max > 0 && chunks_max < NONE as usize / 4, "chunks_max {chunks_max} is out of range");
        let link = |i: usize| if i + 1 < chunks_max { i as u32 + 1 } else { NONE };
        let blank = |i| Entry { key: NO_KEY, bytes: 0, older: NONE, newer: link(i), stamp_ns: 0 };
        Self {
            entries: (0..chunks_max).map(blank).collect(),
            table: vec![NONE; table_len(chunks_max)].into(),
            seed: RandomState::new(),
            oldest: NONE,
            newest: NONE,
            free: 0,
            len: 0,
            bytes: 0,
            early: heapless::Deque::new(),
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

    /// Counts a use: makes the chunk the newest, or the next behind its parent where that is given and here.
    pub(super) fn touch(&mut self, key: &ChunkKey, parent: Option<&ChunkKey>) -> bool {
        let Some((_, at)) = self.find(key) else { return false };
        let parent = parent.and_then(|parent| self.find(parent)).map(|(_, at)| at).filter(|parent| *parent != at);
        self.unlink(at);
        match parent {
            Some(parent) => self.link_behind(at, parent),
            None => self.link_newest(at),
        }
        true
    }

    /// Takes the right to write the time of use down, which is returned: at most once in `interval_ns` for one chunk.
    pub(super) fn stamp(
        &mut self,
        key: &ChunkKey,
        parent: Option<&ChunkKey>,
        now_ns: u64,
        interval_ns: u64,
    ) -> Option<u64> {
        let (_, at) = self.find(key)?;
        if now_ns.saturating_sub(self.entries[at as usize].stamp_ns) < interval_ns {
            return None;
        }
        let stamp_ns = self.stamp_behind(parent, now_ns, interval_ns);
        self.entries[at as usize].stamp_ns = stamp_ns;
        Some(stamp_ns)
    }

    /// A time of use for a chunk that was used now, as its parent was: just before that, which a restart keeps.
    fn stamp_behind(&self, parent: Option<&ChunkKey>, now_ns: u64, interval_ns: u64) -> u64 {
        let parent = parent.and_then(|parent| self.find(parent)).map(|(_, at)| self.entries[at as usize].stamp_ns);
        parent
            .filter(|stamp_ns| now_ns.saturating_sub(*stamp_ns) < interval_ns)
            .map_or(now_ns, |stamp_ns| stamp_ns.saturating_sub(1))
    }

    /// Enters or replaces a chunk that was put now, behind its parent. Shows it, and those that were put before it and
    /// belong behind it, with their times of use. `ArenaFull` when the arena is full.
    pub(super) fn enter(
        &mut self,
        key: &ChunkKey,
        bytes: u64,
        behind: Behind,
        now_ns: u64,
        interval_ns: u64,
        show: &mut dyn FnMut(&ChunkKey, u64),
    ) -> Result<(), ArenaFull> {
        let (Behind::Parent(parent) | Behind::Late(parent)) = behind else {
            self.insert(key, bytes, now_ns)?;
            show(key, now_ns);
            self.follow(key, now_ns, interval_ns, show);
            return Ok(());
        };
        let stamp_ns = self.stamp_behind(Some(&parent), now_ns, interval_ns);
        self.insert(key, bytes, stamp_ns)?;
        show(key, stamp_ns);
        let here = self.contains(&parent);
        // Also one whose parent is here and waits for its own: it moves with that.
        let waits = self.early.iter().any(|(early, of)| *early == parent && of.is_some());
        if here {
            self.touch(key, Some(&parent));
        }
        if behind == Behind::Late(parent) || waits {
            if self.early.is_full() {
                self.early.pop_front();
            }
            self.early.push_back((*key, Some(parent))).expect("there is room");
        } else if !here {
            let (_, at) = self.find(key).expect("it was just entered");
            self.unlink(at);
            self.link_oldest(at);
        }
        self.follow(key, now_ns, interval_ns, show);
        Ok(())
    }

    /// Places what came before its parent behind that, now that it is here, and so on.
    fn follow(&mut self, parent: &ChunkKey, now_ns: u64, interval_ns: u64, show: &mut dyn FnMut(&ChunkKey, u64)) {
        let mut last = *parent;
        while let Some(at) = self.early.iter().position(|(_, parent)| *parent == Some(last)) {
            let (first, second) = self.early.as_mut_slices();
            let (key, parent) = if at < first.len() { &mut first[at] } else { &mut second[at - first.len()] };
            let (child, before) = (*key, last);
            *parent = None;
            self.touch(&child, Some(&before));
            let stamp_ns = self.stamp_behind(Some(&before), now_ns, interval_ns);
            if let Some((_, at)) = self.find(&child) {
                self.entries[at as usize].stamp_ns = stamp_ns;
                show(&child, stamp_ns);
            }
            last = child;
        }
    }

    /// Enters or replaces a chunk as the newest; gives it back when the arena is full.
    pub(super) fn insert(&mut self, key: &ChunkKey, bytes: u64, stamp_ns: u64) -> Result<(), ArenaFull> {
        if self.find(key).is_some() {
            self.remove(key);
        }
        let at = self.free;
        if at == NONE {
            return Err(ArenaFull);
        }
        self.free = self.entries[at as usize].newer;
        self.entries[at as usize] = Entry { key: *key, bytes, older: NONE, newer: NONE, stamp_ns };
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

    fn link_oldest(&mut self, at: u32) {
        let newer = std::mem::replace(&mut self.oldest, at);
        match self.entries.get_mut(newer as usize) {
            Some(entry) => entry.older = at,
            None => self.newest = at,
        }
        self.entries[at as usize].older = NONE;
        self.entries[at as usize].newer = newer;
    }

    /// The next older than `newer`.
    fn link_behind(&mut self, at: u32, newer: u32) {
        let older = std::mem::replace(&mut self.entries[newer as usize].older, at);
        match self.entries.get_mut(older as usize) {
            Some(entry) => entry.newer = at,
            None => self.oldest = at,
        }
        self.entries[at as usize].older = older;
        self.entries[at as usize].newer = newer;
    }
}

/// The arena has no free entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ArenaFull;

fn table_len(chunks_max: usize) -> usize {
    (chunks_max * 2).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_NS: u64 = 3_600_000_000_000;

    fn key(n: u8) -> ChunkKey {
        ChunkKey::new([n; KEY_BYTES])
    }

    fn order(index: &Index) -> Vec<u8> {
        let mut keys = Vec::new();
        index.each(|key, _| keys.push(key.bytes()[0]));
        keys
    }

    fn enter(index: &mut Index, n: u8, behind: Behind, now_ns: u64) -> Vec<(u8, u64)> {
        let mut shown = Vec::new();
        let show = &mut |key: &ChunkKey, stamp_ns| shown.push((key.bytes()[0], stamp_ns));
        index.enter(&key(n), 1, behind, now_ns, HOUR_NS, show).expect("there is room");
        shown
    }

    #[test]
    fn a_tail_is_older_than_its_head_in_whatever_order_it_was_put() {
        for puts in [[1, 2, 3, 4], [4, 3, 2, 1], [3, 1, 4, 2]] {
            let mut index = Index::new(8);
            enter(&mut index, 9, Behind::Nobody, 50);
            let mut stamps = [0; 5];
            for (at, n) in puts.into_iter().enumerate() {
                let late = puts[at..].contains(&(n - 1));
                let parent = key(n - 1);
                let behind = match n {
                    1 => Behind::Nobody,
                    _ if late => Behind::Late(parent),
                    _ => Behind::Parent(parent),
                };
                for (n, stamp_ns) in enter(&mut index, n, behind, 100 + at as u64) {
                    stamps[usize::from(n)] = stamp_ns;
                }
            }
            assert_eq!(order(&index), [9, 4, 3, 2, 1], "{puts:?}");
            assert!(stamps[1..].is_sorted_by(|one, next| one > next), "{puts:?}: {stamps:?}");
        }
    }

    #[test]
    fn a_use_keeps_the_tail_behind_the_head_and_an_orphan_goes_first() {
        let mut index = Index::new(8);
        enter(&mut index, 1, Behind::Nobody, 10);
        enter(&mut index, 2, Behind::Parent(key(1)), 10);
        enter(&mut index, 3, Behind::Parent(key(2)), 10);
        enter(&mut index, 9, Behind::Nobody, 20);
        assert!(
            index.touch(&key(1), None) && index.touch(&key(2), Some(&key(1))) && index.touch(&key(3), Some(&key(2)))
        );
        assert_eq!(order(&index), [9, 3, 2, 1]);
        enter(&mut index, 7, Behind::Parent(key(6)), 30);
        assert_eq!(order(&index), [7, 9, 3, 2, 1], "nobody gets to it");
        assert_eq!(index.stamp(&key(1), None, HOUR_NS, HOUR_NS), None, "too soon");
        assert_eq!(index.stamp(&key(1), None, 2 * HOUR_NS, HOUR_NS), Some(2 * HOUR_NS));
        assert_eq!(index.stamp(&key(2), Some(&key(1)), 2 * HOUR_NS + 5, HOUR_NS), Some(2 * HOUR_NS - 1));
        assert_eq!(index.pop_oldest(), Some((key(7), 1)));
    }
}
