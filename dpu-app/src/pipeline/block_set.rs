//! A set of blocks of one chunk.

use block::BLOCKS_PER_CHUNK_MAX;

const WORDS: usize = BLOCKS_PER_CHUNK_MAX.div_ceil(64);

/// A set of block numbers, and how many they are.
#[derive(Clone, Debug)]
pub struct BlockSet {
    words: [u64; WORDS],
    count: u16,
}

impl BlockSet {
    pub const EMPTY: Self = Self { words: [0; WORDS], count: 0 };

    pub fn insert(&mut self, block: u16) {
        self.count += u16::from(!self.contains(block));
        self.words[usize::from(block) / 64] |= 1 << (block % 64);
    }

    #[must_use]
    pub fn contains(&self, block: u16) -> bool {
        self.words[usize::from(block) / 64] >> (block % 64) & 1 == 1
    }

    #[must_use]
    pub fn count(&self) -> u16 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_counts_once() {
        let mut set = BlockSet::EMPTY;
        let last = BLOCKS_PER_CHUNK_MAX as u16 - 1;
        [0, 63, 64, last, 63].into_iter().for_each(|block| set.insert(block));
        assert_eq!(set.count(), 4);
        assert!([0, 63, 64, last].into_iter().all(|block| set.contains(block)));
        assert!(![1, 62, 65, last - 1].into_iter().any(|block| set.contains(block)));
    }
}
