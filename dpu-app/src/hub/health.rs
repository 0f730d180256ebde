//! Whether this card should get new work, and if not, why: what `/healthcheck` answers.
//!
//! A miss, a corrupt chunk or a late answer is no sickness. Three store calls that failed in a row are, until one
//! succeeds; and so as not to stay sick without work, for at most half a minute after the last failure.

use std::time::{Duration, Instant};

use crate::hub::HubState;
use crate::pipeline::job::{Done, Failure};
use crate::workers::board::Shown;
use crate::workers::crew::{CrewKind, Sight};
use store::Blame;

/// Store calls that failed in a row, each after its retries, from which the store counts as down.
const STORE_FAILURES_MIN: u32 = 3;
/// Restarts of an engine without a success between them from which it counts as restarting: a few damaged blocks cost
/// two each.
const RESTARTS_MIN: u32 = 8;
/// How long the last failure makes a card sick.
const FRESH: Duration = Duration::from_secs(30);
/// How long a worker may be in one call before it counts as stuck.
pub const STUCK: Duration = Duration::from_secs(1);
/// How long the engine thread may take to show itself.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// Why a card should get no new work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unwell {
    Starting,
    Draining,
    /// The engine thread does not look up from what it does.
    Silent,
    EngineRestarting,
    /// The store is not there yet, or refuses us: it is known without asking, and why.
    Degraded,
    StoreDown,
    /// A call of the store does not come back.
    WorkerStuck,
}

impl Unwell {
    pub const ALL: [Self; 7] = [
        Self::Starting,
        Self::Draining,
        Self::Silent,
        Self::EngineRestarting,
        Self::Degraded,
        Self::StoreDown,
        Self::WorkerStuck,
    ];

    /// One word for machines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Draining => "draining",
            Self::Silent => "silent",
            Self::EngineRestarting => "engine_restarting",
            Self::Degraded => "degraded",
            Self::StoreDown => "store_down",
            Self::WorkerStuck => "worker_stuck",
        }
    }

    /// What happened and what to do about it, for people.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Starting => "starting: not ready yet",
            Self::Draining => "draining: finishes what runs and takes nothing new",
            Self::Silent => {
                "silent: the engine thread does not answer: look at the card's log, restart dpu-app if it lasts"
            }
            Self::EngineRestarting => "engine restarting: an engine fails again and again: look at the card's log",
            Self::Degraded => "degraded: fetches are misses until the store takes us",
            Self::StoreDown => "store down: the store does not answer: check the one that --store names",
            Self::WorkerStuck => {
                "worker stuck: a call of the store has not come back for a second: does the disk or the server behind \
                 --store hang?"
            }
        }
    }

    /// Whether this is so, by what the engine thread has shown and how long it has been asked to show itself.
    #[must_use]
    pub fn is_so(self, shown: &Shown, asked_for: Duration) -> bool {
        match self {
            Self::Starting => shown.state == HubState::Init,
            Self::Draining => matches!(shown.state, HubState::Draining { .. }),
            Self::Silent => asked_for >= SILENCE_MAX,
            Self::EngineRestarting => shown.restarts_in_a_row >= RESTARTS_MIN && shown.engine_moved_ago < FRESH,
            Self::Degraded => shown.degraded,
            Self::StoreDown => shown.store_failures >= STORE_FAILURES_MIN && shown.store_failed_ago < FRESH,
            Self::WorkerStuck => shown.workers_stuck > 0,
        }
    }
}

/// Failures of the store since its last answer, as the engine thread sees them go by.
#[derive(Clone, Copy, Debug, Default)]
pub struct StoreWatch {
    failures: u32,
    last: Option<Instant>,
}

impl StoreWatch {
    /// Takes note of a worker's answer.
    pub fn saw(&mut self, done: &Done, now: Instant) {
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
            Some(Failure::Store(error)) if error.blame() == Blame::Store => {
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
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Since the last failure.
    #[must_use]
    pub fn failed_ago(&self, now: Instant) -> Duration {
        self.last.map_or(Duration::MAX, |last| now.saturating_duration_since(last))
    }
}

/// Workers whose call has lasted for [`STUCK`], by crew: what the log was told.
#[derive(Clone, Copy, Debug, Default)]
pub struct StuckWorkers {
    by_crew: [usize; 4],
}

impl StuckWorkers {
    /// Takes note of a look at a crew, and says when the first is stuck and when none is any more; `true` at the first.
    pub fn saw(&mut self, kind: CrewKind, sight: &Sight) -> bool {
        let before = std::mem::replace(&mut self.by_crew[kind as usize], sight.stuck);
        if before > 0 && sight.stuck == 0 {
            log::info!("no {} worker is stuck any more", kind.name());
        }
        let begins = before == 0 && sight.stuck > 0;
        if begins {
            let (name, lasts) = (kind.name(), sight.longest.as_secs_f64());
            log::warn!(
                "a {name} worker has been in one call for {lasts:.1} s; what waited behind it went to others: does the disk or \
                 the server behind --store hang?"
            );
        }
        begins
    }

    #[must_use]
    pub fn total(&self) -> usize {
        self.by_crew.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;
    use store::StoreError;

    fn well() -> Shown {
        Shown { state: HubState::Steady, ..Shown::new() }
    }

    fn reasons(shown: &Shown, asked_for: Duration) -> Vec<&'static str> {
        Unwell::ALL.iter().filter(|unwell| unwell.is_so(shown, asked_for)).map(|unwell| unwell.name()).collect()
    }

    #[test]
    fn each_reason_is_named_and_passes() {
        let (none, second) = (Vec::<&str>::new(), Duration::from_secs(1));
        assert_eq!(reasons(&well(), Duration::ZERO), none);
        assert_eq!(reasons(&Shown::new(), Duration::ZERO), ["starting"]);
        assert_eq!(reasons(&well(), SILENCE_MAX), ["silent"]);
        let draining = Shown { state: HubState::Draining { leave: false }, ..well() };
        assert_eq!(reasons(&draining, second), ["draining"]);
        let failing = Shown { restarts_in_a_row: RESTARTS_MIN, engine_moved_ago: second, ..well() };
        assert_eq!(reasons(&failing, second), ["engine_restarting"]);
        assert_eq!(reasons(&Shown { engine_moved_ago: FRESH, ..failing }, second), none);
        let down = Shown { store_failures: STORE_FAILURES_MIN, store_failed_ago: second, ..well() };
        assert_eq!(reasons(&down, second), ["store_down"]);
        assert_eq!(reasons(&Shown { store_failed_ago: FRESH, ..down }, second), none);
        assert_eq!(reasons(&Shown { degraded: true, ..down }, second), ["degraded", "store_down"]);
        assert_eq!(reasons(&Shown { workers_stuck: 1, ..well() }, second), ["worker_stuck"]);
    }

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
            &Done::Encoded { slot: crate::slots::ring::Ticket { index: 0, generation: 0 }, wire_bytes: Ok(1) },
            now,
        );
        assert_eq!(watch.failures(), 0);
    }
}
