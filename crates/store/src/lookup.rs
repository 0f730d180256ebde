//! A look-up: which of its keys are there, and where the longest hit among them ends.
//!
//! ```text
//!   a hit that ends at n needs the chunks n-k .. n   k = all of them: a prefix without a gap
//!                                                    k = a few: the last of a window, or one saved state
//!   0 1 2 3 4 5 6 7 8   k = 2
//!   x x . x x x . x .   the longest hit ends at 6: 4 and 5 are there
//! ```
//! Whoever asks notes what it knows, in any order; the end of the longest possible hit only moves to the front, so
//! every answer may be given as soon as it is known.

use std::ops::Range;

use block::ChunkKey;

use crate::LOOKUP_KEYS_MAX;

/// A set of a look-up's keys, by their place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeySet([u64; LOOKUP_KEYS_MAX / 64]);

impl KeySet {
    pub(crate) fn has(&self, place: usize) -> bool {
        self.0[place / 64] >> (place % 64) & 1 == 1
    }

    pub(crate) fn add(&mut self, place: usize) {
        self.0[place / 64] |= 1 << (place % 64);
    }

    pub(crate) fn remove(&mut self, place: usize) {
        self.0[place / 64] &= !(1 << (place % 64));
    }

    /// Finds the first place of `range` that is in the set.
    fn first_in(&self, range: Range<usize>) -> Option<usize> {
        let found = words(range).map(|(word, mask)| (word, self.0[word] & mask)).find(|(_, bits)| *bits != 0);
        found.map(|(word, bits)| word * 64 + bits.trailing_zeros() as usize)
    }

    /// Finds the first place of `range` that is not in the set.
    fn first_gap(&self, range: Range<usize>) -> Option<usize> {
        let inverse = Self(self.0.map(|word| !word));
        inverse.first_in(range)
    }

    fn union(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] | other.0[word]))
    }
}

/// Lists the words that a range of places is in, and which of their bits.
fn words(range: Range<usize>) -> impl Iterator<Item = (usize, u64)> {
    let Range { start, end } = range;
    (start / 64..end.div_ceil(64)).map(move |word| {
        let (low, high) = (start.saturating_sub(word * 64), (end - word * 64).min(64));
        (word, u64::MAX << low & u64::MAX >> (64 - high))
    })
}

/// See the module's head.
#[derive(Clone, Debug)]
pub struct Lookup {
    keys: Vec<ChunkKey>,
    /// Chunks before its end that a hit needs, at least 1.
    trailing: usize,
    there: KeySet,
    absent: KeySet,
    /// No hit ends behind this place.
    end: usize,
}

impl Lookup {
    /// Asks how many of `keys`, which are a prompt's in their order, are there without a gap from the first on.
    ///
    /// # Panics
    /// When there are more than [`LOOKUP_KEYS_MAX`] keys.
    #[must_use]
    pub fn leading(keys: Vec<ChunkKey>) -> Self {
        Self::trailing(keys, 0)
    }

    /// Asks for the greatest n of which the `trailing` chunks before it are there, or all if there are fewer. 0: as
    /// [`Self::leading`].
    ///
    /// # Panics
    /// When there are more than [`LOOKUP_KEYS_MAX`] keys.
    #[must_use]
    pub fn trailing(keys: Vec<ChunkKey>, trailing: usize) -> Self {
        assert!(keys.len() <= LOOKUP_KEYS_MAX, "lookup: {} keys exceed {LOOKUP_KEYS_MAX}", keys.len());
        let trailing = if trailing == 0 { LOOKUP_KEYS_MAX } else { trailing };
        Self { trailing, there: KeySet::default(), absent: KeySet::default(), end: keys.len(), keys }
    }

    #[must_use]
    pub fn keys(&self) -> &[ChunkKey] {
        &self.keys
    }

    /// Gives the keys back.
    #[must_use]
    pub fn into_keys(self) -> Vec<ChunkKey> {
        self.keys
    }

    /// Notes whether the key at a place is there.
    pub fn note(&mut self, place: usize, is_there: bool) {
        if is_there {
            self.there.add(place);
            return;
        }
        self.absent.add(place);
        // A hit that ends behind the first absent chunk of a window needs that chunk or one further on.
        while let Some(gap) = self.absent.first_in(self.window(self.end)) {
            self.end = gap;
        }
    }

    /// Returns where the longest hit ends, once that is known.
    #[must_use]
    pub fn answer(&self) -> Option<usize> {
        self.there.first_gap(self.window(self.end)).is_none().then_some(self.end)
    }

    /// Returns where the longest hit ends if what is not known is not there.
    #[must_use]
    pub fn at_least(&self) -> usize {
        let mut end = self.end;
        while let Some(gap) = self.there.first_gap(self.window(end)) {
            end = gap;
        }
        end
    }

    /// Asks `has` for keys until the answer is known.
    pub fn ask(&mut self, mut has: impl FnMut(&ChunkKey) -> bool) -> usize {
        loop {
            let unknown = self.there.union(&self.absent).first_gap(self.window(self.end));
            let Some(place) = unknown else { return self.end };
            let is_there = has(&self.keys[place]);
            self.note(place, is_there);
        }
    }

    /// Notes the keys that `has` knows of, as far as they matter; what it does not know may still be there.
    pub(crate) fn note_those_of(&mut self, mut has: impl FnMut(&ChunkKey) -> bool) {
        let mut turn = 0;
        while let Some(place) = self.place(turn).filter(|_| self.answer().is_none()) {
            if self.matters(place) && has(&self.keys[place]) {
                self.there.add(place);
            }
            turn += 1;
        }
    }

    /// Returns the place that comes in this turn where all that may matter are asked for at once: those that may answer
    /// first come first.
    pub(crate) fn place(&self, turn: usize) -> Option<usize> {
        let last = self.keys.len().checked_sub(turn + 1)?;
        Some(if self.trailing < self.keys.len() { last } else { turn })
    }

    /// Whether the key at a place is not known and may be part of the longest hit.
    pub(crate) fn matters(&self, place: usize) -> bool {
        place < self.end && !self.there.has(place) && !self.absent.has(place)
    }

    /// Returns the chunks that a hit with this end needs.
    fn window(&self, end: usize) -> Range<usize> {
        end.saturating_sub(self.trailing)..end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(place: usize) -> ChunkKey {
        let mut bytes = [0; block::KEY_BYTES];
        bytes[..8].copy_from_slice(&(place as u64).to_le_bytes());
        ChunkKey::new(bytes)
    }

    fn keys(count: usize) -> Vec<ChunkKey> {
        (0..count).map(key).collect()
    }

    #[test]
    fn a_lookup_is_over_when_the_first_gap_is_known() {
        let mut lookup = Lookup::leading(keys(130));
        assert_eq!(lookup.answer(), None);
        (0..129).filter(|place| *place != 64).for_each(|place| lookup.note(place, true));
        lookup.note(129, false);
        assert_eq!((lookup.answer(), lookup.at_least()), (None, 64), "64 is not known");
        lookup.note(64, true);
        assert_eq!(lookup.answer(), Some(129));
        lookup.note(70, false);
        assert_eq!(lookup.answer(), Some(70));
        assert_eq!(Lookup::leading(Vec::new()).answer(), Some(0));
    }

    #[test]
    fn a_window_is_found_wherever_the_prefix_has_gaps() {
        let there = [true, true, false, true, true, true, false, true, false];
        for (trailing, found) in [(0, 2), (1, 8), (2, 6), (3, 6), (4, 2), (9, 2), (5000, 2)] {
            let mut lookup = Lookup::trailing(keys(there.len()), trailing);
            let has = |wanted: &ChunkKey| (0..there.len()).any(|place| there[place] && key(place) == *wanted);
            assert_eq!(lookup.ask(has), found, "the last {trailing}");
        }
        assert_eq!(Lookup::trailing(keys(5), 2).ask(|_| false), 0);
        // At the front a prefix that is shorter than the window is a hit.
        assert_eq!(Lookup::trailing(keys(5), 3).ask(|wanted| *wanted == key(0)), 1);
    }

    #[test]
    fn a_hot_window_costs_as_many_questions_as_it_has_chunks() {
        let mut asked = 0;
        let mut lookup = Lookup::trailing(keys(1000), 4);
        lookup.note_those_of(|_| {
            asked += 1;
            true
        });
        assert_eq!((asked, lookup.answer()), (4, Some(1000)));
        let mut lookup = Lookup::leading(keys(1000));
        assert_eq!((lookup.place(0), lookup.place(999), lookup.place(1000)), (Some(0), Some(999), None));
        assert_eq!(lookup.ask(|wanted| *wanted != key(10)), 10);
    }

    /// The greatest n as it is defined.
    fn by_definition(there: &[bool], trailing: usize) -> usize {
        let needs = |n: usize| if trailing == 0 { 0..n } else { n - trailing.min(n)..n };
        (0..=there.len())
            .rev()
            .find(|&n| there[needs(n)].iter().all(|is_there| *is_there))
            .expect("n = 0 needs nothing")
    }

    proptest! {
        /// Whatever is learned in whatever order: an answer is right as soon as it is given, and it is given at last.
        #[test]
        fn every_order_of_news_leads_to_the_answer(
            there in prop::collection::vec(prop::bool::weighted(0.8), 0..200),
            trailing in prop_oneof![Just(0), 1..8_usize, 100..300_usize],
            order in any::<prop::sample::Index>(),
        ) {
            let right = by_definition(&there, trailing);
            let mut lookup = Lookup::trailing(keys(there.len()), trailing);
            prop_assert!(lookup.at_least() <= right);
            let step = [1, 3, 7, 11][order.index(4)];
            let count = there.len();
            let mut places: Vec<usize> = (0..count).collect();
            places.sort_by_key(|place| (place * step) % (count + 1));
            for place in places {
                if let Some(answer) = lookup.answer() {
                    prop_assert_eq!(answer, right);
                }
                lookup.note(place, there[place]);
                prop_assert!(lookup.at_least() <= right);
            }
            prop_assert_eq!((lookup.answer(), lookup.at_least()), (Some(right), right));
            let has = |wanted: &ChunkKey| (0..count).any(|place| there[place] && key(place) == *wanted);
            prop_assert_eq!(Lookup::trailing(keys(count), trailing).ask(has), right);
        }
    }
}
