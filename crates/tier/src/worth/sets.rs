//! A few disjoint sets of places, all in one array, set after set, so that a member can be drawn from any of them at
//! random: entering and leaving move one member of each set behind.

use super::table::NONE;
use crate::NAMESPACES_MAX as SETS;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Sets {
    members: Box<[u32]>,
    /// Index of each place among the members, or [`NONE`].
    index: Box<[u32]>,
    ends: [u32; SETS],
}

impl Sets {
    pub(super) const fn memory_bytes(places: usize) -> usize {
        2 * places * size_of::<u32>()
    }

    pub(super) fn new(places: usize) -> Self {
        Self { members: vec![NONE; places].into(), index: vec![NONE; places].into(), ends: [0; SETS] }
    }

    pub(super) fn members(&self, set: usize) -> &[u32] {
        let start = if set == 0 { 0 } else { self.ends[set - 1] };
        &self.members[start as usize..self.ends[set] as usize]
    }

    /// Adds a place to a set; does nothing where it is in one.
    pub(super) fn insert(&mut self, set: usize, place: u32) {
        if self.index[place as usize] != NONE {
            return;
        }
        // From behind, the first of each later set becomes its last.
        let mut hole = self.ends[SETS - 1];
        for later in (set + 1..SETS).rev() {
            let start = self.ends[later - 1];
            self.shift(start, hole);
            hole = start;
            self.ends[later] += 1;
        }
        self.ends[set] += 1;
        self.put(hole, place);
    }

    /// Removes a place from a set; does nothing where it is in none. The caller knows in which it can be.
    pub(super) fn remove(&mut self, set: usize, place: u32) {
        let mut hole = std::mem::replace(&mut self.index[place as usize], NONE);
        if hole == NONE {
            return;
        }
        // The last of this set and of each later one fills the hole before it.
        for later in set..SETS {
            let last = self.ends[later] - 1;
            self.shift(last, hole);
            hole = last;
            self.ends[later] -= 1;
        }
    }

    fn shift(&mut self, from: u32, to: u32) {
        if from != to {
            self.put(to, self.members[from as usize]);
        }
    }

    fn put(&mut self, at: u32, place: u32) {
        self.members[at as usize] = place;
        self.index[place as usize] = at;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_set_has_its_members(steps in prop::collection::vec(0..24u32, 1..200)) {
            let mut sets = Sets::new(24);
            let mut oracle = vec![BTreeSet::new(); SETS];
            for place in steps {
                // The first, the last and some between; others stay empty.
                let set = [0, 1, 5, SETS - 1][place as usize % 4];
                if oracle[set].insert(place) {
                    sets.insert(set, place);
                    sets.insert(set, place);
                } else {
                    oracle[set].remove(&place);
                    sets.remove(set, place);
                    sets.remove(set, place);
                }
                for (set, members) in oracle.iter().enumerate() {
                    prop_assert_eq!(&sets.members(set).iter().copied().collect::<BTreeSet<_>>(), members);
                    prop_assert_eq!(sets.members(set).len(), members.len());
                }
            }
        }
    }
}
