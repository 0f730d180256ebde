//! Who is to blame when a context stops.
//!
//! DOCA stops a whole context when one task fails, and completes its neighbours with an error too; the codes do not say
//! which was which. So after a failure the next operations run alone: whoever fails alone is to blame, the rest
//! succeed. The price is a queue depth of one for a moment, paid only after a failure.

/// Failures of an operation, alone on its engine, after which it is given up.
pub(crate) const BLAMES_MAX: u8 = 2;

/// Failures of a copy to or from host memory, alone, after which its session ends: more, because an engine that fails
/// now and then hits one copy twice soon enough, while memory that is gone fails every time.
pub(crate) const UNREACHABLE_MIN: u8 = 6;

/// The state of one context.
#[derive(Debug, Default)]
pub(crate) struct Probation {
    /// Operations that still run alone.
    left: usize,
    /// The operation in flight was submitted alone.
    alone: bool,
}

impl Probation {
    /// Tells whether one more operation may be submitted beside those in flight.
    #[must_use]
    pub(crate) fn admits(&self, in_flight: usize) -> bool {
        self.left == 0 || in_flight == 0
    }

    /// Takes note of an operation that was submitted; `in_flight` counts it.
    pub(crate) fn submitted(&mut self, in_flight: usize) {
        self.alone = self.left > 0 && in_flight == 1;
    }

    pub(crate) fn succeeded(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    /// Takes note of an operation that failed, with up to `depth` neighbours; `true` if it was alone, and so to blame.
    pub(crate) fn failed(&mut self, depth: usize) -> bool {
        let alone = std::mem::take(&mut self.alone);
        self.left = if alone { self.left } else { depth + 1 };
        alone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_culprit_is_found_and_the_innocent_go_on() {
        let mut probation = Probation::default();
        assert!(probation.admits(7));
        for _ in 0..4 {
            assert!(!probation.failed(4), "together nobody is to blame");
        }
        assert!(!probation.admits(1) && probation.admits(0));
        for culprit in [false, true, false, false] {
            assert!(probation.admits(0));
            probation.submitted(1);
            match culprit {
                true => assert!(probation.failed(4)),
                false => probation.succeeded(),
            }
        }
        for _ in 0..2 {
            probation.submitted(1);
            probation.succeeded();
        }
        assert!(probation.admits(3), "the probation ends");
    }
}
