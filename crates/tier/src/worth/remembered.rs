//! What is remembered of chunks that are not held: when and how often they were used, in 32 bytes and a place in a
//! table for each. A list in an arena: the chunk that came longest ago is forgotten for the next. They are known by
//! hash alone: of two with equal hashes, which with 64 bits nobody sees, one would be taken for the other's return.

use super::returns::History;
use super::table::{NONE, PlaceTable};

#[derive(Clone, Copy, Debug)]
struct Chunk {
    hash: u64,
    /// `None`: the place is free.
    history: Option<History>,
    /// Older and newer neighbour; `older` of a free place is the next free one.
    older: u32,
    newer: u32,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Remembered {
    chunks: Box<[Chunk]>,
    table: PlaceTable,
    oldest: u32,
    newest: u32,
    /// First of the free places.
    free: u32,
    /// Number of places that were ever taken.
    len: usize,
}

impl Remembered {
    pub(super) const fn memory_bytes(chunks: usize) -> usize {
        chunks * size_of::<Chunk>() + PlaceTable::memory_bytes(chunks)
    }

    pub(super) fn new(chunks: usize) -> Self {
        let blank = Chunk { hash: 0, history: None, older: NONE, newer: NONE };
        let (chunks, table) = (vec![blank; chunks].into(), PlaceTable::new(chunks));
        Self { chunks, table, oldest: NONE, newest: NONE, free: NONE, len: 0 }
    }

    /// Returns the number of places to look at with [`Self::get_mut`].
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Returns the history at a place, if there is one.
    pub(super) fn get_mut(&mut self, at: usize) -> Option<&mut History> {
        self.chunks[at].history.as_mut()
    }

    pub(super) fn find(&self, hash: u64) -> Option<History> {
        self.place(hash).and_then(|at| self.chunks[at as usize].history)
    }

    pub(super) fn take(&mut self, hash: u64) -> Option<History> {
        let at = self.place(hash)?;
        self.table.remove(hash, at);
        let Chunk { history, older, newer, .. } = self.chunks[at as usize];
        *self.newer_of(older) = newer;
        *self.older_of(newer) = older;
        self.chunks[at as usize] = Chunk { hash, history: None, older: self.free, newer: NONE };
        self.free = at;
        history
    }

    /// Remembers a chunk that is not there; returns the one that is forgotten for it.
    pub(super) fn put(&mut self, hash: u64, history: History) -> Option<History> {
        let full = self.free == NONE && self.len == self.chunks.len();
        let forgotten = full.then(|| self.take(self.chunks[self.oldest as usize].hash)).flatten();
        let at = match self.free {
            NONE => {
                self.len += 1;
                self.len as u32 - 1
            }
            free => {
                self.free = self.chunks[free as usize].older;
                free
            }
        };
        let older = self.newest;
        *self.newer_of(older) = at;
        self.newest = at;
        self.chunks[at as usize] = Chunk { hash, history: Some(history), older, newer: NONE };
        self.table.insert(hash, at);
        forgotten
    }

    /// Returns the link to the newer neighbour of `at`; with NONE, the list's tail.
    fn newer_of(&mut self, at: u32) -> &mut u32 {
        if at == NONE { &mut self.oldest } else { &mut self.chunks[at as usize].newer }
    }

    /// Returns the link to the older neighbour of `at`; with NONE, the list's head.
    fn older_of(&mut self, at: u32) -> &mut u32 {
        if at == NONE { &mut self.newest } else { &mut self.chunks[at as usize].older }
    }

    fn place(&self, hash: u64) -> Option<u32> {
        self.table.find(hash, |at| self.chunks[at as usize].hash == hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_came_last_is_remembered_longest() {
        let mut all = Remembered::new(4);
        let mut oracle: Vec<u64> = Vec::new();
        let mut state = 7u64;
        for now in 0..2000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let hash = (state >> 60) << 32 | 5;
            if let Some(at) = oracle.iter().position(|other| *other == hash) {
                oracle.remove(at);
                assert!(all.take(hash).is_some());
            } else {
                let full = oracle.len() == 4;
                assert_eq!(all.put(hash, History::first(now, None)).is_some(), full);
                oracle.drain(..usize::from(full));
                oracle.push(hash);
            }
            let there = |hash: &u64| all.find(*hash).is_some();
            assert_eq!((0..16).map(|n| n << 32 | 5).filter(there).count(), oracle.len());
            assert!(oracle.iter().all(there), "{now}");
            assert_eq!((0..all.len()).filter(|&at| all.get_mut(at).is_some()).count(), oracle.len());
        }
    }
}
