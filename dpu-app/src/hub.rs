//! The engine thread: the one thread that decides anything in the data plane.
//!
//! It owns the progress engine and its three contexts (inflate, bulk DMA, mailbox DMA), the sessions, and the pipeline:
//! the chunks in progress and the states of the slots, whose decisions (scheduler.rs) the simulator runs too. Each turn
//! it takes what has completed, gives out what can start, and sleeps when there was nothing to do. Bytes are touched by
//! workers and engines only.
//!
//! ```text
//!             +------------------------- Hub::turn -------------------------+
//!   hosts   ->| attend    accept, attach, doorbells, hang-ups     (attend.rs) |
//!   engines ->| progress  completions of the three contexts      (engines.rs) |
//!   workers ->| collect   answers of the crews                   (requests.rs) |
//!             | mail      mailbox reads and writes by DMA            (mail.rs) |
//!             | schedule  requests -> seats -> slots -> jobs    (scheduler.rs) |
//!             +--------------------------------------------------------------+
//! ```

mod admission;
mod attached;
mod attend;
pub(crate) mod comch;
pub(crate) mod complaints;
pub(crate) mod engine;
pub(crate) mod engines;
mod error;
pub(crate) mod events;
pub(crate) mod fit;
pub(crate) mod health;
mod importer;
mod init;
mod mail;
mod marks;
mod notice;
pub(crate) mod notify;
pub(crate) mod request;
mod requests;
pub(crate) mod selftest;
pub(crate) mod session;
mod show;
mod sleep;
pub(crate) mod status;
mod together;
pub(crate) mod visitors;
mod world;

pub(crate) use error::{Hanging, HubError};
pub use sleep::MODERATED_DEPTH;

use std::time::{Duration, Instant};

use doca::{Device, ProgressEngine};
use mailbox::Status;
use mailbox::channel::Listener;
use nix::sys::epoll::{Epoll, EpollTimeout};

use crate::count::trace::RequestTrace;
use crate::hub::complaints::Complaints;
use crate::hub::engine::{CardEngine, RESTARTS_MAX};
use crate::hub::events::{Events, HubEvent};
use crate::hub::health::{StoreWatch, StuckWorkers};
use crate::hub::marks::Marks;
use crate::hub::notice::Notices;
use crate::hub::notify::Supervisor;
use crate::hub::session::{Session, SessionDesk};
use crate::hub::visitors::Visitor;
use crate::pipeline::Pipeline;
use crate::pipeline::scheduler::Scheduler;
use crate::workers::board::HubState;
use crate::workers::crew::Crew;
use crate::workers::shared::Shared;

/// Interval of looks at the sockets while there is other work.
const ATTEND_EVERY: Duration = Duration::from_micros(500);
/// Interval of looks at the deadlines.
const DEADLINE_EVERY: Duration = Duration::from_millis(5);
/// Time that a card that leaves gives to calls that hang, once no host waits for them.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);
/// Time without a completion, with work in flight, after which the device is given up.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(30);

/// The engine thread's state.
pub(crate) struct Hub<'a, 's> {
    pub(crate) shared: &'a Shared<'s>,
    pub(crate) device: Device,
    pub(crate) askers: Crew<'a>,
    pub(crate) fetchers: Crew<'a>,
    pub(crate) dequantizers: Crew<'a>,
    pub(crate) encoders: Crew<'a>,
    pub(crate) engine: ProgressEngine,
    /// `None`: the device inflates nothing and software does (`--allow-software`).
    pub(crate) inflate: Option<CardEngine>,
    pub(crate) bulk: CardEngine,
    pub(crate) mail: CardEngine,
    /// Chunks, slots and queues in progress.
    pub(crate) pipeline: Pipeline,
    pub(crate) sessions: Vec<Option<Session>>,
    /// Desks that no session has, and the number of all desks.
    pub(crate) desks: Vec<SessionDesk>,
    pub(crate) desks_made: usize,
    pub(crate) visitors: Vec<Visitor>,
    pub(crate) listeners: Vec<Box<dyn Listener>>,
    /// End of each listener's rest, which it takes when it is out of descriptors.
    pub(crate) rests: Vec<Option<Instant>>,
    pub(crate) epoll: Epoll,
    /// Whether a wake-up was asked of the progress engine and has not come.
    pub(crate) armed: bool,
    pub(crate) state: HubState,
    leaving_since: Option<Instant>,
    pub(crate) started: Instant,
    pub(crate) now: Instant,
    pub(crate) last_attend: Instant,
    pub(crate) last_deadline: Instant,
    pub(crate) sessions_seen: u32,
    pub(crate) requests_seen: u64,
    pub(crate) events: Events,
    pub(crate) trace: RequestTrace,
    pub(crate) marks: Marks,
    pub(crate) notices: Notices,
    pub(crate) store_watch: StoreWatch,
    /// Findings of the last look at the workers.
    pub(crate) stuck: StuckWorkers,
    complaints: Complaints,
    pub(crate) attach_buffer: Vec<u8>,
    supervisor: Supervisor,
}

impl std::fmt::Debug for Hub<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("state", &self.state).field("slots", &self.pipeline.slots).finish_non_exhaustive()
    }
}

/// Reasons for a wake-up in epoll's user data: these, or a session or visitor by its place.
pub(crate) mod tag {
    pub(crate) const ENGINE: u64 = 1 << 32;
    pub(crate) const BELL: u64 = 2 << 32;
    pub(crate) const LISTENER: u64 = 3 << 32;
    pub(crate) const STOP: u64 = 4 << 32;
    pub(crate) const SESSION: u64 = 5 << 32;
    pub(crate) const VISITOR: u64 = 6 << 32;
    pub(crate) const PLACE: u64 = (1 << 32) - 1;
}

impl<'a, 's> Hub<'a, 's> {
    /// Tells whether the engine's CRC-32 can stand for ours.
    pub(crate) fn crc_trusted(&self) -> bool {
        self.pipeline.inflater.is_some_and(|inflater| inflater.crc_trusted)
    }

    pub(crate) fn become_state(&mut self, next: HubState) {
        assert!(self.state.may_become(next), "{:?} -> {next:?}", self.state);
        self.events.add(HubEvent::State(next.name()), 0);
        self.state = next;
    }

    /// Runs until somebody asks to stop and everything has drained.
    ///
    /// # Errors The device or the system failed for good; what was in flight is lost to its hosts, who find the channel
    /// closed. Or all has drained but a worker that hangs, and whoever waits for its thread waits as long.
    pub(crate) fn run(mut self) -> Result<(), HubError> {
        self.become_state(HubState::Steady);
        self.supervisor.ready();
        while !self.drained_for_good() {
            let busy = self.turn()?;
            if let Some(hanging) = self.hangs_for_good() {
                self.say_goodbye();
                return Err(HubError::WorkerHangs(hanging));
            }
            if !busy && !self.shared.config.busy_poll {
                self.sleep()?;
            }
        }
        self.say_goodbye();
        Ok(())
    }

    /// Runs one turn; `true` if anything happened.
    fn turn(&mut self) -> Result<bool, HubError> {
        self.now = Instant::now();
        self.supervisor.alive(self.now);
        let mut busy = false;
        if self.now - self.last_attend >= ATTEND_EVERY {
            busy |= self.attend(EpollTimeout::ZERO)?;
        }
        busy |= self.progress()?;
        busy |= self.attend_progressed();
        busy |= self.collect();
        busy |= self.mail();
        busy |= self.schedule();
        if self.now - self.last_deadline >= DEADLINE_EVERY {
            self.last_deadline = self.now;
            busy |= self.expire();
            self.watch_workers();
            self.complaints.look(&self.shared.counters.answers, self.now, |level, line| log::log!(level, "{line}"));
            self.check_engines()?;
        }
        busy |= self.bury();
        self.show();
        Ok(busy)
    }

    /// Borrows the session in a place that a copy, a job or a command of it names.
    pub(crate) fn session(&mut self, index: usize) -> &mut Session {
        self.sessions[index].as_mut().expect("a session stays while a copy, a job or a command of it is in progress")
    }

    fn crews(&self) -> [&Crew<'a>; 4] {
        [&self.askers, &self.fetchers, &self.dequantizers, &self.encoders]
    }

    /// Gives the device up if an engine sits on its work for too long: it will not come back by itself.
    fn check_engines(&self) -> Result<(), HubError> {
        for engine in self.inflate.iter().chain([&self.bulk, &self.mail]) {
            if engine.context.in_flight() > 0 && self.now - engine.last_progress > ENGINE_TIMEOUT {
                return Err(HubError::EngineStuck(engine.context.kind()));
            }
            if engine.restarts > RESTARTS_MAX {
                return Err(HubError::Device(doca::Error { call: "doca_ctx_start", code: doca::Code::IO_FAILED }));
            }
        }
        Ok(())
    }

    /// Leaving, and what is not done is in calls that do not come back: no host waits for it, and no engine moves
    /// anything.
    fn hangs_for_good(&mut self) -> Option<Hanging> {
        let leaving_for = self.now.saturating_duration_since(self.leaving_since?);
        let moves = |engine: &CardEngine| engine.context.in_flight() > 0;
        if leaving_for < LEAVE_PATIENCE
            || self.sessions.iter().flatten().any(Session::awaits_answers)
            || self.inflate.iter().chain([&self.bulk, &self.mail]).any(moves)
        {
            return None;
        }
        self.watch_workers();
        let (crew, sight) = self.stuck.longest()?;
        let key = sight.call.and_then(|job| job.seat()).map(|seat| self.shared.chunks.at(seat).key);
        Some(Hanging { crew, lasts: sight.longest, job: sight.call.map_or("unknown", |job| job.name()), key })
    }

    fn drained_for_good(&self) -> bool {
        let waiting = |session: &Session| session.awaits_answers() || !session.is_idle();
        self.state == HubState::Draining { leave: true }
            && self.pipeline.order.is_empty()
            && !self.sessions.iter().flatten().any(waiting)
    }

    /// Stops taking anything new; hosts see it in the card's line.
    pub(crate) fn drain(&mut self, leave: bool) {
        let next = HubState::Draining { leave };
        if !self.state.may_become(next) {
            return;
        }
        log::info!("draining{}", if leave { ", then leaving" } else { "" });
        self.become_state(next);
        if leave {
            self.leaving_since = Some(self.now);
            self.supervisor.stopping();
        }
        for session in self.sessions.iter_mut().flatten().filter(|session| session.is_live()) {
            session.ring.drain();
            session.wake = crate::hub::session::SessionWake::Saying;
        }
    }

    /// Ends a drain: new requests are taken again, and hosts see it in the card's line.
    pub(crate) fn resume(&mut self) -> Status {
        match self.state {
            HubState::Steady => return Status::Ok,
            HubState::Draining { leave: false } => {}
            // It ends, or has not begun.
            HubState::Draining { leave: true } | HubState::Init => return Status::Draining,
        }
        log::info!("resumed: taking requests again");
        self.become_state(HubState::Steady);
        for session in self.sessions.iter_mut().flatten().filter(|session| session.is_live()) {
            session.ring.resume();
            session.wake = crate::hub::session::SessionWake::Saying;
        }
        Status::Ok
    }
}
