//! Notices about chunks in the log: one of each kind in [`EVERY`], however many chunks it is true of.

use std::time::{Duration, Instant};

use block::ChunkKey;

use crate::pipeline::chunk::FETCHES_MAX;

/// Least time between two notices of one kind.
pub(crate) const EVERY: Duration = Duration::from_secs(600);
/// Kinds that are told apart; further ones are counted only.
const KINDS_MAX: usize = 32;

/// Kinds of notices, and when each was given last.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    said: heapless::Vec<(&'static str, Instant), KINDS_MAX>,
}

impl Notices {
    /// Notes a chunk of another version, or one that is too large.
    pub(crate) fn foreign(&mut self, what: &'static str, key: &ChunkKey, now: Instant) {
        if self.is_due(what, now) {
            log::warn!(
                "store: chunk {key} cannot be read by this card: {what}: it is kept and a miss, and a store of it replaces it \
                 (docs/upgrades.md; said every {} s, chunks_foreign in the status counts)",
                EVERY.as_secs()
            );
        }
    }

    /// Notes a chunk that was not the same twice.
    pub(crate) fn otherwise(&mut self, key: &ChunkKey, now: Instant) {
        if self.is_due("other bytes", now) {
            log::error!(
                "store: chunk {key} was read {FETCHES_MAX} times and came with other bytes each time: nothing is taken out; \
                 look at the network, the memory and the disks on the way (said every {} s)",
                EVERY.as_secs()
            );
        }
    }

    fn is_due(&mut self, kind: &'static str, now: Instant) -> bool {
        match self.said.iter_mut().find(|(said, _)| *said == kind) {
            Some((_, at)) if now - *at < EVERY => false,
            Some((_, at)) => {
                *at = now;
                true
            }
            None => self.said.push((kind, now)).is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_said_once_in_a_while() {
        let (mut notices, now) = (Notices::default(), Instant::now());
        assert!(notices.is_due("a codec", now) && notices.is_due("a transform", now));
        assert!(!notices.is_due("a codec", now + EVERY / 2));
        assert!(notices.is_due("a codec", now + EVERY));
    }
}
