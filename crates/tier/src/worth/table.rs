//! From a key's hash to its place in an arena: open addressing, at most half full, deletion by shifting back, so no
//! tombstones and no rehash. Fixed memory. It knows places and hashes, not keys: whoever asks compares.

/// No place.
pub(super) const NONE: u32 = u32::MAX;

/// See the module's head.
#[derive(Debug)]
pub(super) struct PlaceTable {
    slots: Box<[Slot]>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    place: u32,
    /// Hash of its key, which tells where its search begins.
    hash: u32,
}

impl PlaceTable {
    pub(super) const fn memory_bytes(places: usize) -> usize {
        (places * 2).next_power_of_two() * size_of::<Slot>()
    }

    pub(super) fn new(places: usize) -> Self {
        Self { slots: vec![Slot { place: NONE, hash: 0 }; (places * 2).next_power_of_two()].into() }
    }

    fn mask(&self) -> usize {
        self.slots.len() - 1
    }

    /// Finds the place whose key has this hash and satisfies `is_it`.
    pub(super) fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let mut at = hash as u32 as usize & self.mask();
        loop {
            let slot = self.slots[at];
            if slot.place == NONE {
                return None;
            }
            if slot.hash == hash as u32 && is_it(slot.place) {
                return Some(slot.place);
            }
            at = (at + 1) & self.mask();
        }
    }

    /// Enters a place. The caller has seen that it is not there and that places are fewer than the table was made for.
    pub(super) fn insert(&mut self, hash: u64, place: u32) {
        let mut at = hash as u32 as usize & self.mask();
        while self.slots[at].place != NONE {
            at = (at + 1) & self.mask();
        }
        self.slots[at] = Slot { place, hash: hash as u32 };
    }

    /// # Panics
    /// The place is not there.
    pub(super) fn remove(&mut self, hash: u64, place: u32) {
        let mask = self.mask();
        let mut hole = hash as u32 as usize & mask;
        while self.slots[hole].place != place {
            assert!(self.slots[hole].place != NONE, "remove: place {place} is in no slot");
            hole = (hole + 1) & mask;
        }
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let slot = self.slots[at];
            if slot.place == NONE {
                break;
            }
            // It may move to the hole unless that lies before the slot where its search begins.
            let home = slot.hash as usize & mask;
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(hole) & mask) {
                self.slots[hole] = slot;
                hole = at;
            }
        }
        self.slots[hole].place = NONE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_one_home_are_found_after_any_of_them_left() {
        for gone in 0..8 {
            let mut table = PlaceTable::new(8);
            // All want the last slot or the one before it, so that the run wraps around.
            let hash = |n: u32| u64::from(14 + n % 2);
            (0..8).for_each(|n| table.insert(hash(n), n));
            table.remove(hash(gone), gone);
            for n in 0..8 {
                assert_eq!(table.find(hash(n), |place| place == n).is_some(), n != gone, "{n} after {gone}");
            }
        }
    }
}
