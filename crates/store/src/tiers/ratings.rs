//! Importances that hosts gave to chunks after these were stored, kept until a chunk comes into a tier. Fixed memory:
//! the oldest of a set gives way to the newest. A chunk whose rating was forgotten has the importance of its
//! manifest.

use std::hash::{DefaultHasher, Hasher};
use std::sync::Mutex;

use block::{ChunkKey, Importance};

use crate::POISONED;

/// Sets, and ratings of one.
const SETS: usize = 1 << 14;
const WAYS: usize = 4;
/// Ratings that are remembered at most.
pub(super) const RATINGS_MAX: usize = SETS * WAYS;

/// The upper 48 bits are a hash of the key, never 0 where there is a rating; the lower 16 its importance.
type Word = u64;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Ratings {
    seed: u64,
    /// Newest first.
    sets: Mutex<Box<[[Word; WAYS]]>>,
}

impl Ratings {
    /// Init. `seed` is a secret: hosts choose keys.
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, sets: Mutex::new(vec![[0; WAYS]; SETS].into()) }
    }

    pub(super) const fn memory_bytes() -> usize {
        RATINGS_MAX * size_of::<Word>()
    }

    fn look(&self, key: &ChunkKey) -> (usize, Word) {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.seed);
        hasher.write(key.bytes());
        let hash = hasher.finish();
        (hash as usize % SETS, (hash & !0xffff).max(1 << 16))
    }

    pub(super) fn set(&self, key: &ChunkKey, importance: Importance) {
        let (set, tag) = self.look(key);
        let set = &mut self.sets.lock().expect(POISONED)[set];
        let old = set.iter().position(|word| word & !0xffff == tag).unwrap_or(WAYS - 1);
        set[..=old].rotate_right(1);
        set[0] = tag | Word::from(importance.word());
    }

    pub(super) fn get(&self, key: &ChunkKey) -> Option<Importance> {
        let (set, tag) = self.look(key);
        let found = self.sets.lock().expect(POISONED)[set].into_iter().find(|word| word & !0xffff == tag)?;
        Some(Importance::from_word(found as u16))
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

    #[test]
    fn the_last_rating_of_a_key_counts_and_the_newest_stay() {
        let ratings = Ratings::new(7);
        let rating = |n: u32| Importance::from_word(n as u16);
        for n in 0..4 * RATINGS_MAX as u32 {
            ratings.set(&key(n), rating(n));
            ratings.set(&key(n), rating(n + 3));
            assert_eq!(ratings.get(&key(n)), Some(rating(n + 3)));
        }
        let last = 4 * RATINGS_MAX as u32;
        let kept = (last - SETS as u32..last).filter(|&n| ratings.get(&key(n)) == Some(rating(n + 3))).count();
        assert!(kept > SETS * 9 / 10, "{kept} of the newest {SETS}");
        assert_eq!(ratings.get(&key(last)), None);
    }
}
