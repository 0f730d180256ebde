//! What a host says that a chunk is worth to it, beside how often it is used: a factor in steps of 1/256, from 1/256 to
//! just below 256. It travels in chunk records and is kept in the manifest; docs/tiers.md says what it does.
//!
//! Every word is some importance, so a peer cannot lie with one; 0 means that nothing was said: neutral.

use std::fmt;

const ONE: u16 = 256;

/// See the module's head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Importance(u16);

impl Importance {
    /// A factor of 1.
    pub const NEUTRAL: Self = Self(0);
    pub const LEAST: f32 = 1.0 / ONE as f32;
    pub const MOST: f32 = u16::MAX as f32 / ONE as f32;

    /// Rounds a factor to the nearest step; `None` if it is not a number, or outside [`Self::LEAST`] to [`Self::MOST`].
    pub fn of(factor: f32) -> Option<Self> {
        let fits = (Self::LEAST..=Self::MOST).contains(&factor);
        fits.then(|| Self::from_word((factor * f32::from(ONE)).round() as u16))
    }

    pub fn factor(self) -> f32 {
        if self == Self::NEUTRAL { 1.0 } else { f32::from(self.0) / f32::from(ONE) }
    }

    /// The word that travels.
    pub const fn word(self) -> u16 {
        self.0
    }

    /// The importance of a word; each word is one. A spelt-out 1 is neutral, too.
    pub const fn from_word(word: u16) -> Self {
        if word == ONE { Self::NEUTRAL } else { Self(word) }
    }
}

impl fmt::Display for Importance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.factor().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_an_importance_and_comes_back() {
        for word in 0..=u16::MAX {
            let importance = Importance::from_word(word);
            assert!((Importance::LEAST..=Importance::MOST).contains(&importance.factor()), "{word}");
            assert_eq!(Importance::of(importance.factor()), Some(importance), "{word}");
        }
        assert_eq!((Importance::of(1.0), Importance::NEUTRAL.word()), (Some(Importance::NEUTRAL), 0));
    }

    #[test]
    fn what_is_no_factor_is_none() {
        for wrong in [0.0, -1.0, 256.0, 1e-9, f32::NAN, f32::INFINITY] {
            assert_eq!(Importance::of(wrong), None, "{wrong}");
        }
    }
}
