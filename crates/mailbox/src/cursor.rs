//! Where a reader or a writer stands in a ring of sealed lines.
//!
//! Slot index and sequence advance together but are kept apart, because the sequence skips 0 when it wraps.

use crate::limits::LINE_BYTES;
use crate::peer::PeerError;
use crate::words::{Line, after, generation, is_whole, seal, sequence};

/// The next slot of a ring of `slots` lines and the sequence that belongs in it.
#[derive(Debug)]
pub(crate) struct Cursor {
    what: &'static str,
    base: usize,
    slots: usize,
    index: usize,
    sequence: u32,
    /// Sequence that the slot holds until then: 0 in the first lap, else the one a lap back.
    lap: u32,
    /// Slots passed, modulo 2^32.
    passed: u32,
}

/// Judgement of a private copy of the next slot.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Still the line of the last lap, or never written.
    Empty,
    /// The line that is due, whole.
    Fresh,
    /// Caught in the middle of being written, or a liar's. Copy it again, a bounded number of times.
    Torn,
}

impl Cursor {
    pub(crate) fn new(what: &'static str, base: usize, slots: usize) -> Cursor {
        Cursor { what, base, slots, index: 0, sequence: 1, lap: 0, passed: 0 }
    }

    /// Begins as if the ring had run for a long time. `sequence` is at least one lap.
    #[cfg(test)]
    pub(crate) fn starting_at(mut self, sequence: u32) -> Cursor {
        self.sequence = sequence;
        self.passed = sequence.wrapping_sub(1);
        self
    }

    pub(crate) fn offset(&self) -> usize {
        self.base + self.index * LINE_BYTES
    }

    /// Slots from here to the end of the ring, without wrapping.
    pub(crate) fn slots_to_end(&self) -> usize {
        self.slots - self.index
    }

    pub(crate) fn passed(&self) -> u32 {
        self.passed
    }

    pub(crate) fn advance(&mut self) {
        self.index += 1;
        self.passed = self.passed.wrapping_add(1);
        self.sequence = after(self.sequence);
        if self.index == self.slots {
            self.index = 0;
        }
        self.lap = match self.lap {
            0 if self.index != 0 => 0,
            // The first slot of the second lap holds what began the first.
            0 => back(self.sequence, self.slots as u32),
            lap => after(lap),
        };
    }

    pub(crate) fn seal(&self, line: &mut Line, generation: u64) {
        seal(line, self.sequence, generation);
    }

    pub(crate) fn judge(&self, line: &Line, page_generation: u64) -> Result<Verdict, PeerError> {
        let (what, found) = (self.what, sequence(line));
        if found == self.lap && found != self.sequence {
            return Ok(Verdict::Empty);
        }
        if !is_whole(line) {
            return Ok(Verdict::Torn);
        }
        if generation(line) != page_generation {
            return Err(PeerError::Generation { what, expected: page_generation, found: generation(line) });
        }
        if found != self.sequence {
            return Err(PeerError::Sequence { what, expected: self.sequence, found });
        }
        Ok(Verdict::Fresh)
    }
}

/// The running number `steps` before this one, over the gap at 0.
fn back(sequence: u32, steps: u32) -> u32 {
    if sequence > steps { sequence - steps } else { u32::MAX - (steps - sequence) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lap_back_is_what_the_slot_was_left_with_even_over_the_wrap() {
        for start in [1, 5, u32::MAX - 70, u32::MAX - 3, u32::MAX] {
            let mut cursor = Cursor::new("test", 0, 8).starting_at(start);
            let mut slots = [0_u32; 8];
            for _ in 0..100 {
                assert_eq!(slots[cursor.index], cursor.lap, "start {start}");
                slots[cursor.index] = cursor.sequence;
                cursor.advance();
                assert_ne!(cursor.sequence, 0);
            }
        }
    }

    #[test]
    fn the_next_line_is_fresh_the_last_laps_is_empty_and_any_other_is_an_error() {
        let mut cursor = Cursor::new("test", 0, 4);
        let mut line = [0; LINE_BYTES];
        assert_eq!(cursor.judge(&line, 1), Ok(Verdict::Empty));
        cursor.seal(&mut line, 1);
        assert_eq!(cursor.judge(&line, 1), Ok(Verdict::Fresh));
        assert!(matches!(cursor.judge(&line, 2), Err(PeerError::Generation { expected: 2, found: 1, .. })));
        let mut torn = line;
        torn[63] ^= 1;
        assert_eq!(cursor.judge(&torn, 1), Ok(Verdict::Torn));
        let mut ahead = line;
        seal(&mut ahead, 9, 1);
        assert_eq!(
            cursor.judge(&ahead, 1),
            Err(PeerError::Sequence { what: "test", expected: 1, found: 9 }),
            "runaway cursor"
        );
        for _ in 0..4 {
            cursor.advance();
        }
        assert_eq!(cursor.judge(&line, 1), Ok(Verdict::Empty));
    }
}
