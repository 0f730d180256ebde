//! A look-up under way: which of its keys were asked for, and which are there.

use block::ChunkKey;

use crate::{LOOKUP_KEYS_MAX, StoreError};

/// Keys that a slot's move may send elsewhere at the same time.
const ASIDES: usize = 32;

/// A set of keys, by their place in the look-up.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KeySet([u64; LOOKUP_KEYS_MAX / 64]);

impl KeySet {
    pub(super) fn has(&self, item: usize) -> bool {
        self.0[item / 64] >> (item % 64) & 1 == 1
    }

    pub(super) fn add(&mut self, item: usize) {
        self.0[item / 64] |= 1 << (item % 64);
    }

    pub(super) fn remove(&mut self, item: usize) {
        self.0[item / 64] &= !(1 << (item % 64));
    }

    /// Counts those from 0 on without a gap.
    fn leading(&self) -> usize {
        let full = self.0.iter().take_while(|word| **word == u64::MAX).count();
        full * 64 + self.0.get(full).map_or(0, |word| word.trailing_ones() as usize)
    }
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Lookup {
    pub(super) keys: Vec<ChunkKey>,
    pub(super) asked: KeySet,
    pub(super) present: KeySet,
    /// No key from here on matters: the first that is absent or cannot be asked for, or the end.
    pub(super) limit: usize,
    /// Why the key at `limit` cannot be asked for, if that is so.
    error: Option<StoreError>,
    /// Keys that another node than the map's has for the moment, and that node.
    asides: heapless::Vec<(u16, u16), ASIDES>,
}

impl Lookup {
    pub(super) fn new(keys: Vec<ChunkKey>) -> Self {
        assert!(keys.len() <= LOOKUP_KEYS_MAX, "lookup: {} keys exceed {LOOKUP_KEYS_MAX}", keys.len());
        Self { limit: keys.len(), keys, ..Self::default() }
    }

    /// Notes that a key is not there.
    pub(super) fn absent(&mut self, item: u16) {
        self.limit = self.limit.min(item.into());
    }

    /// Notes that a key cannot be asked for, so that those behind it do not matter.
    pub(super) fn cut(&mut self, item: usize, error: StoreError) {
        (self.limit, self.error) = (item, Some(error));
    }

    /// The node that has a key for the moment, where it is not the map's.
    pub(super) fn aside(&self, item: usize) -> Option<u16> {
        self.asides.iter().find(|(of, _)| usize::from(*of) == item).map(|(_, node)| *node)
    }

    /// Notes a key's node of the moment. `false`: too many have one.
    pub(super) fn set_aside(&mut self, item: u16, node: u16) -> bool {
        self.asides.push((item, node)).is_ok()
    }

    pub(super) fn forget_aside(&mut self, item: u16) {
        self.asides.retain(|(of, _)| *of != item);
    }

    /// The answer, when all that matters is known.
    pub(super) fn answer(&self) -> Option<Result<usize, StoreError>> {
        if self.present.leading() < self.limit {
            return None;
        }
        Some(match self.error {
            Some(error) if self.limit == 0 => Err(error),
            _ => Ok(self.limit),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lookup_is_over_when_the_first_gap_is_known() {
        let mut lookup = Lookup::new(vec![ChunkKey::new([0; block::KEY_BYTES]); 130]);
        assert_eq!(lookup.answer(), None);
        (0..129).for_each(|item| lookup.present.add(item));
        lookup.present.remove(64);
        lookup.absent(129);
        assert_eq!(lookup.answer(), None, "64 is not known");
        lookup.present.add(64);
        assert_eq!(lookup.answer(), Some(Ok(129)));
        lookup.cut(70, StoreError::Late { call: "lookup" });
        assert_eq!(lookup.answer(), Some(Ok(70)));
        lookup.cut(0, StoreError::Late { call: "lookup" });
        assert_eq!(lookup.answer(), Some(Err(StoreError::Late { call: "lookup" })));
        assert_eq!(Lookup::new(Vec::new()).answer(), Some(Ok(0)));
    }
}
