//! What the engine thread notices about the store and its workers: whether the store fails, and which workers hang in a
//! call. metrics/health.rs draws the conclusion for the health check.

use std::time::{Duration, Instant};

use crate::config::STORE_FAILURES_MIN;
use crate::pipeline::job::{CrewKind, Done, Failure};
use crate::workers::crew::Sight;
use store::ResponsibleParty;

/// Time in one call from which on a worker counts as stuck.
pub(crate) const STUCK: Duration = Duration::from_secs(1);
/// Failures of the store since its last answer, as the engine thread sees them go by.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StoreWatch {
    failures: u32,
    last: Option<Instant>,
}

impl StoreWatch {
    /// Takes note of a worker's answer.
    pub(crate) fn saw(&mut self, done: &Done, now: Instant) {
        let failure = match *done {
            Done::Looked { found, .. } => found.err(),
            Done::Opened { blocks, .. } => blocks.err(),
            Done::Read { facts, .. } => facts.err(),
            Done::Began { started, .. } => started.err(),
            Done::Encoded { wire_bytes, .. } => wire_bytes.err(),
            Done::Committed { result, .. } => result.err(),
            _ => return,
        };
        match failure {
            Some(Failure::Store(error)) if error.blame() == ResponsibleParty::Store => {
                self.failures = self.failures.saturating_add(1);
                self.last = Some(now);
                if self.failures == STORE_FAILURES_MIN {
                    log::error!("store down: {error}: look at the one that --store names");
                }
            }
            // A deadline is the host's: it says nothing of the store.
            Some(Failure::Store(store::StoreError::Late { .. })) => {}
            _ => {
                if self.failures >= STORE_FAILURES_MIN {
                    log::info!("store: it answers again");
                }
                self.failures = 0;
            }
        }
    }

    #[must_use]
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// Returns the time since the last failure.
    #[must_use]
    pub(crate) fn failed_ago(&self, now: Instant) -> Duration {
        self.last.map_or(Duration::MAX, |last| now.saturating_duration_since(last))
    }
}

/// Workers whose call has lasted for [`STUCK`], by crew: what the log was told.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StuckWorkers {
    by_crew: [Sight; CrewKind::ALL.len()],
}

impl StuckWorkers {
    /// Takes note of a look at a crew, and logs when the first worker is stuck and when none is any more; `true` at the
    /// first.
    pub(crate) fn saw(&mut self, kind: CrewKind, sight: &Sight) -> bool {
        let before = std::mem::replace(&mut self.by_crew[kind as usize], *sight).stuck;
        if before > 0 && sight.stuck == 0 {
            log::info!("no {} worker is stuck any more", kind.name());
        }
        let begins = before == 0 && sight.stuck > 0;
        if begins {
            let (name, lasts) = (kind.name(), sight.longest.as_secs_f64());
            log::warn!(
                "one {name} worker has been in one call for {lasts:.1} s; what waited behind it went to others: does the disk or \
                 the server behind --store hang?"
            );
        }
        begins
    }

    #[must_use]
    pub(crate) fn total(&self) -> usize {
        self.by_crew.iter().map(|sight| sight.stuck).sum()
    }

    /// The call that has lasted longest of those that count as stuck, and whose it is.
    #[must_use]
    pub(crate) fn longest(&self) -> Option<(CrewKind, &Sight)> {
        let stuck = CrewKind::ALL.into_iter().zip(&self.by_crew).filter(|(_, sight)| sight.stuck > 0);
        stuck.max_by_key(|(_, sight)| sight.longest)
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;
    use store::StoreError;

    #[test]
    fn a_stuck_worker_is_said_once_until_it_is_back() {
        let (mut stuck, one) = (StuckWorkers::default(), Sight { stuck: 1, longest: STUCK, ..Sight::default() });
        let said: Vec<bool> = [one, one, Sight { stuck: 2, ..one }, Sight::default(), one]
            .iter()
            .map(|s| stuck.saw(CrewKind::Fetch, s))
            .collect();
        assert_eq!((said, stuck.total()), (vec![true, false, false, false, true], 1));
    }

    #[test]
    fn a_store_is_down_from_failures_in_a_row_and_up_from_its_first_answer() {
        let now = Instant::now();
        let mut watch = StoreWatch::default();
        assert_eq!((watch.failures(), watch.failed_ago(now)), (0, Duration::MAX));
        let looked = |found| Done::Looked { session: 0, found };
        let down = looked(Err(StoreError::Down { call: "get", errno: Errno::ECONNREFUSED }.into()));
        let late = looked(Err(StoreError::Late { call: "get" }.into()));
        for _ in 0..3 {
            watch.saw(&down, now);
            watch.saw(&late, now);
            watch.saw(&Done::Touched { session: 0 }, now);
        }
        assert_eq!((watch.failures(), watch.failed_ago(now)), (3, Duration::ZERO));
        watch.saw(&looked(Err(Failure::Miss)), now);
        assert_eq!(watch.failures(), 0, "a miss is an answer");
        watch.saw(&down, now);
        watch.saw(
            &Done::Encoded { slot: crate::pipeline::slots::Ticket { index: 0, generation: 0 }, wire_bytes: Ok(1) },
            now,
        );
        assert_eq!(watch.failures(), 0);
    }
}
