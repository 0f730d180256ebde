//! A look-up under way: which of its keys were asked for, and of whom.

use crate::lookup::KeySet;
use crate::{Lookup, StoreError};

/// Keys that a slot's move may send elsewhere at the same time.
const ASIDES: usize = 32;

/// See the module's head.
#[derive(Debug)]
pub(super) struct AskedLookup {
    pub(super) lookup: Lookup,
    pub(super) asked: KeySet,
    /// Why a key cannot be asked for, if that is so of any.
    error: Option<StoreError>,
    /// Keys that another node than the map's has for the moment, and that node.
    asides: heapless::Vec<(u16, u16), ASIDES>,
}

impl AskedLookup {
    pub(super) fn new(lookup: Lookup) -> Self {
        Self { lookup, asked: KeySet::default(), error: None, asides: heapless::Vec::new() }
    }

    /// Whether a key is to be asked for.
    pub(super) fn wants(&self, item: usize) -> bool {
        !self.asked.has(item) && self.lookup.matters(item)
    }

    /// Notes that a key cannot be asked for: it is no part of a hit.
    pub(super) fn cut(&mut self, item: usize, error: StoreError) {
        self.lookup.note(item, false);
        self.error = Some(error);
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
        let found = self.lookup.answer()?;
        Some(self.error.filter(|_| found == 0).map_or(Ok(found), Err))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use block::ChunkKey;

    #[test]
    fn what_cannot_be_asked_for_is_an_error_where_nothing_else_is_found() {
        let keys = || vec![ChunkKey::new([0; block::KEY_BYTES]); 130];
        let late = StoreError::Late { call: "lookup" };
        let mut lookup = AskedLookup::new(Lookup::leading(keys()));
        assert_eq!(lookup.answer(), None);
        (0..100).for_each(|item| lookup.lookup.note(item, true));
        lookup.cut(70, late);
        assert_eq!((lookup.answer(), lookup.wants(70)), (Some(Ok(70)), false));
        lookup.cut(0, late);
        assert_eq!(lookup.answer(), Some(Err(late)));
        // Of a window that ends before it there may be one.
        let mut lookup = AskedLookup::new(Lookup::trailing(keys(), 2));
        lookup.cut(129, late);
        assert_eq!(lookup.answer(), None);
        (127..129).for_each(|item| lookup.lookup.note(item, true));
        assert_eq!(lookup.answer(), Some(Ok(129)));
    }
}
