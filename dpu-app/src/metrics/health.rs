//! Whether this card should get new work, and if not, why: what `/healthcheck` answers.
//!
//! A miss, a corrupt chunk or a late answer is no sickness. Three store calls that failed in a row are, until one
//! succeeds; and so as not to stay sick without work, for at most half a minute after the last failure.

use std::time::Duration;

use crate::config::STORE_FAILURES_MIN;
use crate::workers::board::{HubState, Shown};

/// Restarts of an engine without a success between them from which it counts as restarting: a few damaged blocks cost
/// two each.
const RESTARTS_MIN: u32 = 8;
/// Time for which the last failure makes a card unwell.
const FRESH: Duration = Duration::from_secs(30);
/// Longest time that the engine thread may take to show itself.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// Why a card should get no new work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unwell {
    Starting,
    Draining,
    /// The engine thread does not answer.
    Silent,
    EngineRestarting,
    /// The store is not there yet, or refuses us, and the reason is known.
    Degraded,
    StoreDown,
    /// A call of the store does not come back.
    WorkerStuck,
}

impl Unwell {
    pub(super) const ALL: [Self; 7] = [
        Self::Starting,
        Self::Draining,
        Self::Silent,
        Self::EngineRestarting,
        Self::Degraded,
        Self::StoreDown,
        Self::WorkerStuck,
    ];

    /// Names it in one word, for machines.
    #[must_use]
    pub(super) fn name(self) -> &'static str {
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

    /// Says what happened and what to do about it, for people.
    #[must_use]
    pub(super) fn text(self) -> &'static str {
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

    /// Tells whether this is so, from what the engine thread has shown and how long it has owed an answer.
    #[must_use]
    pub(super) fn is_so(self, shown: &Shown, asked_for: Duration) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
