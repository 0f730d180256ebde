//! Sleep of the engine thread: until an engine, a worker, a socket or the next deadline.

use nix::sys::epoll::EpollTimeout;

use crate::count::counters::add;
use crate::hub::request::RequestInFlight;
use crate::hub::{DEADLINE_EVERY, Hub, HubError};
use crate::workers::crew::{Crew, PASSED_OVER};

/// Operations on one engine from which a sleep may be a fixed time instead of until the next completion.
pub const MODERATED_DEPTH: usize = 5;

impl Hub<'_, '_> {
    /// Tells whether the engines have enough to do for the time of a moderated sleep.
    fn is_deep(&self) -> bool {
        let inflating = self.inflate.as_ref().map_or(0, |engine| engine.context.in_flight());
        let deep = inflating.max(self.bulk.context.in_flight()) >= MODERATED_DEPTH;
        deep && !self.shared.config.moderation.is_zero()
    }

    /// Sleeps until an engine, a worker, a socket or the next deadline.
    pub(super) fn sleep(&mut self) -> Result<(), HubError> {
        if self.is_deep() {
            std::thread::sleep(self.shared.config.moderation);
            return Ok(());
        }
        let bell = &self.shared.engine_bell;
        bell.going_to_sleep();
        let answered = self.crews().into_iter().any(Crew::answered);
        // Hosts without a descriptor: callbacks run in progress only, on this thread, so this look is the last.
        let answered = answered || self.listeners.iter().any(|listener| listener.has_news());
        if answered || self.shared.board.is_asked() {
            bell.awake();
            return Ok(());
        }
        if !self.armed {
            self.engine.arm()?;
            self.armed = true;
        }
        add(&self.shared.counters.sleeps, 1);
        let attended = self.attend(self.patience());
        self.shared.engine_bell.awake();
        attended.map(|_| ())
    }

    /// Computes the longest permitted sleep.
    fn patience(&self) -> EpollTimeout {
        let requests = self.sessions.iter().flatten().flat_map(|session| session.requests.iter().flatten());
        let next = requests.map(|request: &RequestInFlight| request.until).chain(self.visitors.iter().map(|v| v.until));
        let next = next
            .chain(self.next_operator())
            .chain(self.supervisor.next_ping())
            .chain(self.rests.iter().flatten().copied());
        let working = self.crews().into_iter().any(|crew| crew.outstanding() > 0);
        let next = next.chain(working.then(|| self.now + PASSED_OVER / 2));
        let next = next.chain(self.complaints.due(&self.shared.counters.answers)).min();
        let mut engines = self.inflate.iter().chain([&self.bulk, &self.mail]);
        if engines.any(|engine| engine.context.is_waiting()) {
            // No completion has to come before the device takes more.
            return EpollTimeout::from(1_u16);
        }
        let watching = self.bulk.context.in_flight() + self.mail.context.in_flight() > 0;
        match next {
            None if watching => EpollTimeout::from(1000_u16),
            None => EpollTimeout::NONE,
            Some(next) => {
                let left = next.saturating_duration_since(self.now) + DEADLINE_EVERY;
                EpollTimeout::from(left.as_millis().clamp(1, 1000) as u16)
            }
        }
    }
}
