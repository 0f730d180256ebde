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

pub(crate) mod attend;
pub mod comch;
pub mod complaints;
pub mod engine;
pub mod engines;
pub mod events;
pub mod fit;
pub mod health;
mod importer;
mod mail;
mod marks;
mod notice;
pub mod notify;
pub mod request;
mod requests;
pub mod selftest;
pub mod session;
mod show;
pub(crate) mod status;
mod world;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use block::ChunkKey;
use doca::{CompressedFormat, Context, Device, ProgressEngine};
use mailbox::Status;
use mailbox::channel::Listener;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::config::Config;
use crate::count::counters::add;
use crate::count::trace::RequestTrace;
use crate::hub::attend::{OPERATORS_MAX, REFUSED_MAX, Visitor};
use crate::hub::complaints::Complaints;
use crate::hub::engine::{CardEngine, RESTARTS_MAX};
use crate::hub::events::{Events, HubEvent};
use crate::hub::fit::{Fit, InflateFit};
use crate::hub::health::{StoreWatch, StuckWorkers};
use crate::hub::marks::Marks;
use crate::hub::notice::Notices;
use crate::hub::notify::Supervisor;
use crate::hub::request::RequestInFlight;
use crate::hub::session::{Session, SessionDesk};
use crate::pipeline::job::CrewKind;
use crate::pipeline::scheduler::Scheduler;
use crate::pipeline::{Inflater, Pipeline};
use crate::workers::board::HubState;
use crate::workers::crew::{Crew, Crews, PASSED_OVER};
use crate::workers::shared::Shared;

/// Interval of looks at the sockets while there is other work.
const ATTEND_EVERY: Duration = Duration::from_micros(500);
/// Interval of looks at the deadlines.
const DEADLINE_EVERY: Duration = Duration::from_millis(5);
/// Operations on one engine from which a sleep may be a fixed time instead of until the next completion.
pub const MODERATED_DEPTH: usize = 5;
/// Time that a card that leaves gives to calls that hang, once no host waits for them.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);
/// Time without a completion, with work in flight, after which the device is given up.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(30);

/// Reason for which the data plane stops by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HubError {
    /// The device failed for good.
    Device(doca::Error),
    /// Hosts cannot come by Comch.
    Comch(comch::ComchError),
    /// An engine has not completed anything for 30 s.
    EngineStuck(doca::OperationKind),
    /// Everything has drained but a worker that does not come back.
    WorkerHangs(Hanging),
    System {
        call: &'static str,
        errno: Errno,
    },
}

/// A call of the store that does not come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hanging {
    pub crew: CrewKind,
    pub lasts: Duration,
    /// Name of the job that it is for, and the chunk.
    pub job: &'static str,
    pub key: Option<ChunkKey>,
}

impl std::fmt::Display for Hanging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (crew, lasts) = (self.crew.name(), self.lasts.as_secs_f64());
        write!(f, "a {crew} worker has been in one call for {lasts:.1} s ({}", self.job)?;
        self.key.map_or(Ok(()), |key| write!(f, " of chunk {key}"))?;
        write!(f, "), which nobody can end: left without it; does the disk or the server behind --store hang?")
    }
}

impl std::fmt::Display for HubError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Device(error) => write!(f, "device: {error}"),
            Self::Comch(error) => error.fmt(f),
            Self::EngineStuck(kind) => {
                write!(f, "device: the {kind:?} engine completed nothing for {} s", ENGINE_TIMEOUT.as_secs())
            }
            Self::WorkerHangs(hanging) => hanging.fmt(f),
            Self::System { call, errno } => write!(f, "{call}: {}", errno.desc()),
        }
    }
}

impl std::error::Error for HubError {}

impl From<doca::Error> for HubError {
    fn from(error: doca::Error) -> Self {
        Self::Device(error)
    }
}

fn system(call: &'static str) -> impl FnOnce(Errno) -> HubError {
    move |errno| HubError::System { call, errno }
}

/// The engine thread's state.
pub struct Hub<'a, 's> {
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
    /// Creates the contexts, checks the engine against a known block, allocates every table. Init only.
    ///
    /// # Errors
    /// Says what the device or the system refused.
    pub fn new(
        shared: &'a Shared<'s>,
        device: Device,
        fit: &Fit,
        crews: Crews<'a>,
        mut listeners: Vec<Box<dyn Listener>>,
    ) -> Result<Self, HubError> {
        let config = shared.config;
        let engine = ProgressEngine::new()?;
        let (inflate, crc_trusted) = Self::inflate_engine(&engine, &device, config, fit.inflate)?;
        let lz4 = fit.inflate.is_some_and(|inflate| inflate.lz4);
        let inflater = inflate.is_some().then_some(Inflater { lz4, crc_trusted });
        let mut bulk = CardEngine::new(Context::dma(&engine, &device, fit.bulk)?);
        let mut mail = CardEngine::new(Context::dma(&engine, &device, fit.mail)?);
        bulk.can_prove_itself(&device)?;
        mail.can_prove_itself(&device)?;
        let mut desks = Vec::with_capacity(config.places());
        let desks_made = SessionDesk::lay_out(&device, config.places(), &mut desks)?;
        let supervisor = Supervisor::new(config.supervisor.as_ref())
            .map_err(|error| system("socket")(Errno::try_from(error).unwrap_or(Errno::EIO)))?;
        let now = Instant::now();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(system("epoll_create"))?;
        let watch = |fd: std::os::fd::BorrowedFd<'_>, tag| {
            epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, tag)).map_err(system("epoll_ctl"))
        };
        watch(engine.fd(), tag::ENGINE)?;
        watch(shared.engine_bell.as_fd(), tag::BELL)?;
        if config.attach.has_comch() {
            for listener in comch::listen(&engine, &device, config).map_err(HubError::Comch)? {
                listeners.push(Box::new(listener));
            }
        }
        for (index, listener) in listeners.iter().enumerate() {
            listener.fd().map_or(Ok(()), |fd| watch(fd, tag::LISTENER | index as u64))?;
        }
        watch(shared.stop.as_fd(), tag::STOP)?;
        Ok(Self {
            device,
            askers: crews.askers,
            fetchers: crews.fetchers,
            dequantizers: crews.dequantizers,
            encoders: crews.encoders,
            engine,
            inflate,
            bulk,
            mail,
            pipeline: Pipeline::new(config, inflater),
            sessions: (0..config.places()).map(|_| None).collect(),
            desks,
            desks_made,
            visitors: Vec::with_capacity(config.places() + OPERATORS_MAX + REFUSED_MAX),
            rests: vec![None; listeners.len()],
            listeners,
            epoll,
            armed: false,
            state: HubState::Init,
            leaving_since: None,
            started: now,
            now,
            last_attend: now,
            last_deadline: now,
            sessions_seen: 0,
            requests_seen: 0,
            events: Events::new(now),
            trace: RequestTrace::new(now, config.slow),
            marks: Marks::new(config, now),
            notices: Notices::default(),
            store_watch: StoreWatch::default(),
            stuck: StuckWorkers::default(),
            complaints: Complaints::new(now),
            attach_buffer: vec![0; mailbox::attach::ATTACH_MESSAGE_MAX],
            supervisor,
            shared,
        })
    }

    /// Opens the inflate engine, if it is to be used, and tests whether its CRC-32 can stand for ours.
    fn inflate_engine(
        engine: &ProgressEngine,
        device: &Device,
        config: &Config,
        fit: Option<InflateFit>,
    ) -> Result<(Option<CardEngine>, bool), HubError> {
        let Some(InflateFit { lz4, depth }) = fit else { return Ok((None, false)) };
        let codecs: &[CompressedFormat] =
            if lz4 { &[CompressedFormat::Deflate, CompressedFormat::Lz4Block] } else { &[CompressedFormat::Deflate] };
        let mut context = Context::decompress(engine, device, codecs, depth)?;
        let trusted = selftest::inflates_a_known_block(engine, device, &mut context)?;
        if !trusted {
            log::warn!("the engine's CRC-32 is not the one of docs/formats.md: codes are checked in software");
        }
        Ok((Some(CardEngine::new(context)), trusted && !config.software_crc))
    }

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
    pub fn run(mut self) -> Result<(), HubError> {
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

    /// Tells whether the engines have enough to do for the time of a moderated sleep.
    fn is_deep(&self) -> bool {
        let inflating = self.inflate.as_ref().map_or(0, |engine| engine.context.in_flight());
        let deep = inflating.max(self.bulk.context.in_flight()) >= MODERATED_DEPTH;
        deep && !self.shared.config.moderation.is_zero()
    }

    /// Sleeps until an engine, a worker, a socket or the next deadline.
    fn sleep(&mut self) -> Result<(), HubError> {
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
