//! The chunks that this card found in the store and could not read: another version's, larger than its slots, or proven
//! bad.
//!
//! A look-up of such a chunk is a miss, so that it promises what a fetch would give; a put replaces it, though its name
//! is there. It is forgotten when this card has put it, or after [`REMEMBERED_FOR`]: somebody else may have replaced
//! it. The rule is in docs/upgrades.md.
//!
//! A fixed table of sets of `WAYS`; the oldest of a set gives way. Nothing is locked while it is empty.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use block::{ChunkKey, KEY_BYTES};
use store::Lookup;

/// Time for which a chunk that could not be read counts as unreadable.
pub(crate) const REMEMBERED_FOR: Duration = Duration::from_secs(300);
/// Most chunks that are remembered.
pub(crate) const CHUNKS_MAX: usize = 1024;
const WAYS: usize = 4;
const SETS: usize = CHUNKS_MAX / WAYS;

#[derive(Clone, Copy, Debug)]
struct Entry {
    key: ChunkKey,
    /// `None`: the place is free.
    since: Option<Instant>,
}

/// Table of the chunks that this card could not read.
#[derive(Debug)]
pub struct Unreadable {
    taken: AtomicUsize,
    sets: Mutex<Box<[[Entry; WAYS]]>>,
}

impl Unreadable {
    #[must_use]
    pub fn new() -> Self {
        let free = Entry { key: ChunkKey::new([0; KEY_BYTES]), since: None };
        Self { taken: 0.into(), sets: Mutex::new(vec![[free; WAYS]; SETS].into()) }
    }

    /// Counts the bytes that it takes.
    #[must_use]
    pub const fn memory_bytes() -> usize {
        CHUNKS_MAX * size_of::<Entry>()
    }

    pub fn add(&self, key: &ChunkKey, now: Instant) {
        let mut sets = self.sets.lock().expect("panic is abort");
        let set = &mut sets[set_of(key)];
        let known = set.iter().position(|entry| entry.since.is_some() && entry.key == *key);
        // `None`, a free place, is before all times.
        let oldest = (0..WAYS).min_by_key(|way| set[*way].since).expect("a set has ways");
        let entry = &mut set[known.unwrap_or(oldest)];
        self.taken.fetch_add(usize::from(entry.since.is_none()), Relaxed);
        *entry = Entry { key: *key, since: Some(now) };
    }

    /// Forgets a chunk that this card has put.
    pub fn remove(&self, key: &ChunkKey) {
        self.with(key, |entry| entry.since.take().is_some());
    }

    #[must_use]
    pub fn has(&self, key: &ChunkKey, now: Instant) -> bool {
        let mut has = false;
        self.with(key, |entry| {
            has = entry.since.is_some_and(|since| now - since < REMEMBERED_FOR);
            !has && entry.since.take().is_some()
        });
        has
    }

    /// Notes in a look-up which of its keys are known to be unreadable: they are part of no hit.
    pub fn rule_out(&self, lookup: &mut Lookup, now: Instant) {
        for place in 0..lookup.keys().len() {
            if self.has(&lookup.keys()[place], now) {
                lookup.note(place, false);
            }
        }
    }

    /// Looks at the entry of a key; `frees` says whether that made its place free.
    fn with(&self, key: &ChunkKey, frees: impl FnOnce(&mut Entry) -> bool) {
        if self.taken.load(Relaxed) == 0 {
            return;
        }
        let mut sets = self.sets.lock().expect("panic is abort");
        let entry = sets[set_of(key)].iter_mut().find(|entry| entry.since.is_some() && entry.key == *key);
        if entry.is_some_and(frees) {
            self.taken.fetch_sub(1, Relaxed);
        }
    }
}

impl Default for Unreadable {
    fn default() -> Self {
        Self::new()
    }
}

fn set_of(key: &ChunkKey) -> usize {
    let [.., high, low] = *key.bytes();
    usize::from(u16::from_be_bytes([high, low])) % SETS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> ChunkKey {
        let mut bytes = [0; KEY_BYTES];
        bytes[24..].copy_from_slice(&(n as u64).to_be_bytes());
        ChunkKey::new(bytes)
    }

    #[test]
    fn what_could_not_be_read_is_remembered_until_it_is_put_or_for_a_while() {
        let (unreadable, now) = (Unreadable::new(), Instant::now());
        let keys: Vec<_> = (0..6).map(key).collect();
        let hit = |trailing| {
            let mut lookup = Lookup::trailing(keys.clone(), trailing);
            unreadable.rule_out(&mut lookup, now);
            lookup.ask(|_| true)
        };
        assert_eq!(hit(0), 6);
        unreadable.add(&keys[4], now);
        unreadable.add(&keys[2], now);
        unreadable.add(&keys[2], now);
        assert_eq!([hit(0), hit(1), hit(2)], [2, 6, 2]);
        unreadable.remove(&keys[2]);
        assert_eq!(hit(0), 4);
        assert!(unreadable.has(&keys[4], now + REMEMBERED_FOR / 2) && !unreadable.has(&keys[4], now + REMEMBERED_FOR));
        assert_eq!((hit(0), unreadable.taken.load(Relaxed)), (6, 0));
    }

    #[test]
    fn the_oldest_of_a_full_set_gives_way() {
        let (unreadable, now) = (Unreadable::new(), Instant::now());
        let at = |n: usize| now + Duration::from_millis(n as u64);
        (0..2 * CHUNKS_MAX).for_each(|n| unreadable.add(&key(n), at(n)));
        assert_eq!(unreadable.taken.load(Relaxed), CHUNKS_MAX);
        assert!((CHUNKS_MAX..2 * CHUNKS_MAX).all(|n| unreadable.has(&key(n), at(2 * CHUNKS_MAX))));
        assert!((0..CHUNKS_MAX).all(|n| !unreadable.has(&key(n), at(2 * CHUNKS_MAX))));
    }
}
