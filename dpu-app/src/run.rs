//! Init: opens the device and the store, allocates everything, starts the threads, and hands over to the engine thread.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use block::codec::{Compressor, Decompressor};
use doca::{Area, Code, Device, DeviceInfo, Selector, Slab};
use mailbox::channel::{ChannelError, Listener, UnixListener};
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;

use crate::config::{Config, ConfigError};
use crate::count::counters::Counters;
use crate::hub::fit::{Fit, Unfit};
use crate::hub::{Crews, Hub, HubError};
use crate::metrics;
use crate::pipeline::job::Chunks;
use crate::slots::lender::open_store;
use crate::slots::ring::Ring;
use crate::workers::affinity;
use crate::workers::bell::{Bell, EventBell, WorkerBell};
use crate::workers::board::Board;
use crate::workers::compute::{Asked, BLOCK_QUEUE, Prefix, QUEUE, Shared, Worker};
use crate::workers::crew::{Crew, CrewKind};
use crate::workers::fetch::Fetcher;
use crate::workers::line::Line;
use crate::workers::unreadable::Unreadable;
use store::Readable;

/// Why the data plane did not start, or did not go on.
#[derive(Debug)]
pub enum RunError {
    Config(ConfigError),
    Cpu { name: &'static str, cpu: usize },
    Store(store::OpenError),
    Channel { socket: PathBuf, error: ChannelError },
    Metrics { address: SocketAddr, error: io::Error },
    Device(doca::Error),
    NoDevice { wanted: Selector, seen: Vec<DeviceInfo> },
    Unfit(Unfit),
    Encoder(block::codec::CodecError),
    System(io::Error),
    Hub(HubError),
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => write!(f, "{error}"),
            Self::Cpu { name, cpu } => {
                write!(
                    f,
                    "{name}: this process may not use core {cpu}: see `nproc`, the unit's CPUAffinity, or taskset"
                )
            }
            Self::Store(error) => write!(f, "{error}"),
            // Its other errors name the path themselves.
            Self::Channel { socket, error: error @ ChannelError::System { source, .. } } => {
                let what = lacking(source).unwrap_or("check that its directory exists and is yours");
                write!(f, "{error}: {}: {what}", socket.display())
            }
            Self::Channel { error, .. } => write!(f, "{error}"),
            Self::Metrics { address, error } => {
                let what = lacking(error).unwrap_or("choose another address or port with --metrics, or leave it out");
                write!(f, "metrics: {address}: {error}: {what}")
            }
            Self::Device(error) => write!(f, "device: {error}: check the device's name and its driver"),
            Self::NoDevice { wanted, seen } => {
                match wanted {
                    Selector::First => write!(f, "device: none can do DMA or export memory. ")?,
                    Selector::Named(name) => write!(f, "device: no {name}. ")?,
                }
                let names: Vec<String> = seen.iter().map(DeviceInfo::name).collect();
                match names.is_empty() {
                    true => write!(f, "DOCA sees no device: is the driver loaded and the card in DPU mode?"),
                    false => write!(f, "DOCA sees {}: name one with --device", names.join(", ")),
                }
            }
            Self::Unfit(unfit) => write!(f, "{unfit}"),
            Self::Encoder(error) => write!(f, "encoder: {error}"),
            Self::System(error) => {
                write!(f, "system: {error}")?;
                lacking(error).map_or(Ok(()), |what| write!(f, ": {what}"))
            }
            Self::Hub(HubError::System { call, errno }) => {
                write!(f, "{call}: {}", errno.desc())?;
                store::advice(*errno).map_or(Ok(()), |what| write!(f, ": {what}"))
            }
            Self::Hub(HubError::Device(error)) if error.code == Code::OPERATING_SYSTEM => write!(
                f,
                "device: {error}: see the limits of this process: descriptors (LimitNOFILE=, ulimit -n), locked memory \
                 (LimitMEMLOCK=, ulimit -l)"
            ),
            Self::Hub(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for RunError {}

impl RunError {
    /// The flag whose value is to blame, with its dashes.
    #[must_use]
    pub fn flag(&self) -> Option<&'static str> {
        match self {
            Self::Config(ConfigError { name, .. }) | Self::Cpu { name, .. } => Some(name),
            Self::Store(_) => Some("--store"),
            Self::Channel { .. } => Some("--socket"),
            Self::Metrics { .. } => Some("--metrics"),
            Self::NoDevice { wanted: Selector::Named(_), .. } => Some("--device"),
            Self::Unfit(Unfit::TooManyTasks { flag, .. }) => Some(flag),
            Self::Unfit(Unfit::BlockTooLarge { .. }) => Some("--block-bytes"),
            Self::Encoder(_) => Some("--deflate-level"),
            _ => None,
        }
    }

    /// 2: only the operator can mend it, so that starting again is of no use (the unit's RestartPreventExitStatus); 3: the
    /// device; 1: anything else, which may pass by itself.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Store(error) if error.may_pass() => 1,
            // The process before this one has not gone yet.
            Self::Channel { error: ChannelError::InUse { .. }, .. } => 1,
            Self::Metrics { error, .. } if may_pass(error) => 1,
            Self::Channel { error: ChannelError::System { source, .. }, .. } if may_pass(source) => 1,
            Self::Config(_)
            | Self::Cpu { .. }
            | Self::Store(_)
            | Self::Channel { .. }
            | Self::Metrics { .. }
            | Self::Encoder(_) => 2,
            Self::Hub(HubError::Comch(error)) if !error.is_of_the_device() => 2,
            Self::Device(_) | Self::NoDevice { .. } | Self::Unfit(_) => 3,
            Self::Hub(HubError::Comch(_) | HubError::Device(_) | HubError::EngineStuck(_)) => 3,
            Self::System(_) | Self::Hub(HubError::System { .. }) => 1,
        }
    }
}

/// The system lacks something at present: descriptors, memory, or an address that a network brings that comes up late.
fn may_pass(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EADDRNOTAVAIL | Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS))
}

/// What to do where descriptors are lacking, which says nothing of what they were for.
fn lacking(error: &io::Error) -> Option<&'static str> {
    let errno = error.raw_os_error().map(Errno::from_raw)?;
    store::advice(errno).filter(|_| matches!(errno, Errno::EMFILE | Errno::ENFILE))
}

/// Runs until `stop` is rung or a host says `Stop`, and everything has drained. `ready` is called when hosts can attach.
///
/// # Errors
/// See [`RunError`]: the operator's mistakes come before anything is allocated.
pub fn run(config: &Config, stop: &EventFd, ready: impl FnOnce()) -> Result<(), RunError> {
    let Checked { device, .. } = check(config)?;
    let (store, slab) = open_store(config, &device).map_err(RunError::Store)?;
    serve(config, device, store.as_ref(), slab, stop, ready)
}

/// What was found before anything is made.
#[derive(Debug)]
pub struct Checked {
    pub device: Device,
    pub fit: Fit,
    pub store: store::Outline,
}

/// All that can be refused in advance: `run` begins with it, and `dpu-app limits` is it. Opens the device and nothing else.
///
/// # Errors
/// See [`RunError`].
pub fn check(config: &Config) -> Result<Checked, RunError> {
    config.check().map_err(RunError::Config)?;
    check_cpus(config)?;
    let store =
        store::outline(config.store.reveal(), &store_limits(config), &config.namespaces).map_err(RunError::Store)?;
    let device = open(&config.device)?;
    let fit = Fit::of(&device, config).map_err(RunError::Unfit)?;
    Ok(Checked { device, fit, store })
}

/// The device that was named, or an error that says which there are.
fn open(wanted: &Selector) -> Result<Device, RunError> {
    Device::open(wanted).map_err(|error| match error.code {
        Code::NOT_FOUND => match Device::list() {
            Ok(seen) => RunError::NoDevice { wanted: wanted.clone(), seen },
            Err(error) => RunError::Device(error),
        },
        _ => RunError::Device(error),
    })
}

/// The same with a device and a store that the caller opened, and the slab that it lends from.
///
/// # Errors
/// See [`RunError`].
pub fn serve(
    config: &Config,
    device: Device,
    store: &dyn Readable<Area>,
    slab: Option<Slab>,
    stop: &EventFd,
    ready: impl FnOnce(),
) -> Result<(), RunError> {
    let fit = Fit::of(&device, config).map_err(RunError::Unfit)?;
    if !device.info().imports_memory {
        log::warn!("{}: says that it cannot import a host's memory: is this the card's side?", device.info().name());
    }
    if let Some(what) = fit.in_software() {
        log::warn!("{}: {what}", device.info().name());
    }
    let bind = |address| metrics::Server::bind(address).map_err(|error| RunError::Metrics { address, error });
    let metrics = config.metrics.map(bind).transpose()?;
    let mut listeners: Vec<Box<dyn Listener>> = Vec::new();
    if config.attach.has_socket() {
        let listener = UnixListener::bind(&config.socket)
            .map_err(|error| RunError::Channel { socket: config.socket.clone(), error })?;
        listeners.push(Box::new(listener));
    }
    let shared = share(config, &device, store, slab, stop)?;
    let mut lines = Lines::new(config)?;
    thread::scope(|scope| {
        let mut leaving = Leaving::of(&shared);
        let crews = lines.staff(scope, &shared, &mut leaving)?;
        let info = device.info().to_string();
        let hub = Hub::new(&shared, device, &fit, crews, listeners).map_err(RunError::Hub)?;
        hub.announce();
        let _metrics = match &metrics {
            Some(server) => Some(server.start(scope, &shared, info).map_err(RunError::System)?),
            None => None,
        };
        let _reload = config.reload.leave();
        let shared = &shared;
        let reload = move || config.reload.run(shared);
        thread::Builder::new().name("reload".into()).spawn_scoped(scope, reload).map_err(RunError::System)?;
        ready();
        hub.run().map_err(RunError::Hub)
    })
}

/// All that the threads share, allocated.
pub(crate) fn share<'a>(
    config: &'a Config,
    device: &Device,
    store: &'a dyn Readable<Area>,
    slab: Option<Slab>,
    stop: &'a EventFd,
) -> Result<Shared<'a>, RunError> {
    Ok(Shared {
        config,
        store,
        slab,
        ring: Ring::allocate(device, config.slots, config.slot_bytes()).map_err(RunError::Device)?,
        chunks: Chunks::new(config.chunks),
        lookups: (0..config.sessions).map(|_| Mutex::new(Asked::new())).collect(),
        prefixes: (0..config.sessions).map(|_| Mutex::new(Prefix::default())).collect(),
        counters: Counters::default(),
        unreadable: Unreadable::new(),
        board: Board::default(),
        engine_bell: EventBell::new().map_err(RunError::System)?,
        stop,
        leave: AtomicBool::new(false),
    })
}

fn check_cpus(config: &Config) -> Result<(), RunError> {
    for (name, cpus) in [
        ("--fetch-cpus", &config.fetch_cpus),
        ("--dequantize-cpus", &config.dequantize_cpus),
        ("--encode-cpus", &config.encode_cpus),
    ] {
        if let Some(cpu) = affinity::unusable(cpus).map_err(|errno| RunError::System(errno.into()))? {
            return Err(RunError::Cpu { name, cpu });
        }
    }
    Ok(())
}

/// The body of a worker thread, on its core.
fn on_core(cpus: &[usize], index: usize, work: impl FnOnce()) {
    if let Err(errno) = affinity::pin(cpus, index) {
        log::warn!("worker {index} stays on no core of its own: {}", errno.desc());
    }
    work();
}

/// The lines of all crews, and what wakes them.
pub(crate) struct Lines {
    ask: Vec<(Line<QUEUE>, EventBell)>,
    fetch: Vec<(Line<BLOCK_QUEUE>, EventBell)>,
    dequantize: Vec<(Line<BLOCK_QUEUE>, WorkerBell)>,
    encode: Vec<(Line<BLOCK_QUEUE>, WorkerBell)>,
}

/// Lines of workers that read from the store.
fn readers<const N: usize>(count: usize) -> Result<Vec<(Line<N>, EventBell)>, RunError> {
    let line = |_| EventBell::new().map(|bell| (Line::default(), bell));
    (0..count).map(line).collect::<Result<_, _>>().map_err(RunError::System)
}

impl Lines {
    pub(crate) fn new(config: &Config) -> Result<Self, RunError> {
        let lines = |count: usize| (0..count).map(|_| Default::default()).collect();
        Ok(Self {
            ask: readers(1)?,
            fetch: readers(config.fetch_workers)?,
            dequantize: lines(config.dequantize_workers),
            encode: lines(config.encode_workers),
        })
    }

    /// Starts the threads of all crews.
    pub(crate) fn staff<'scope, 'env, 's: 'env>(
        &'env mut self,
        scope: &'scope thread::Scope<'scope, 'env>,
        shared: &'env Shared<'s>,
        leaving: &mut Leaving<'env, 's>,
    ) -> Result<Crews<'env>, RunError> {
        Ok(Crews {
            askers: start_readers(scope, shared, CrewKind::Ask, &mut self.ask, leaving)?,
            fetchers: start_readers(scope, shared, CrewKind::Fetch, &mut self.fetch, leaving)?,
            dequantizers: start_crew(scope, shared, "dequantize", &mut self.dequantize, leaving)?,
            encoders: start_crew(scope, shared, "encode", &mut self.encode, leaving)?,
        })
    }
}

/// Sends all workers home when the engine thread is done, however that came about.
pub(crate) struct Leaving<'a, 's> {
    shared: &'a Shared<'s>,
    bells: Vec<&'a dyn Bell>,
}

impl<'a, 's> Leaving<'a, 's> {
    pub(crate) fn of(shared: &'a Shared<'s>) -> Self {
        Self { shared, bells: Vec::new() }
    }
}

impl Drop for Leaving<'_, '_> {
    fn drop(&mut self) {
        self.shared.leave.store(true, Ordering::Release);
        self.bells.iter().for_each(|bell| bell.ring());
    }
}

fn start_readers<'scope, 'env, 's: 'env, const N: usize>(
    scope: &'scope thread::Scope<'scope, 'env>,
    shared: &'env Shared<'s>,
    kind: CrewKind,
    lines: &'env mut [(Line<N>, EventBell)],
    leaving: &mut Leaving<'env, 's>,
) -> Result<Crew<'env>, RunError> {
    let mut hands = Vec::with_capacity(lines.len());
    for (index, (line, bell)) in lines.iter_mut().enumerate() {
        let bell = &*bell;
        let (hand, duties) = line.ends(bell);
        let mut reader = shared.store.reader(bell.as_fd()).map_err(RunError::System)?;
        if kind == CrewKind::Ask {
            reader.keep_off_disks();
        }
        let fetcher = Fetcher::new(shared, bell, duties, reader);
        let name = format!("{}-{index}", kind.name());
        let body = move || on_core(&shared.config.fetch_cpus, index, || fetcher.run());
        thread::Builder::new().name(name).spawn_scoped(scope, body).map_err(RunError::System)?;
        leaving.bells.push(bell);
        hands.push(hand);
    }
    Ok(Crew::new(hands))
}

fn start_crew<'scope, 'env, 's: 'env>(
    scope: &'scope thread::Scope<'scope, 'env>,
    shared: &'env Shared<'s>,
    kind: &'static str,
    lines: &'env mut [(Line<BLOCK_QUEUE>, WorkerBell)],
    leaving: &mut Leaving<'env, 's>,
) -> Result<Crew<'env>, RunError> {
    let config = shared.config;
    let mut hands = Vec::with_capacity(lines.len());
    for (index, line) in lines.iter_mut().enumerate() {
        let (line, bell) = line;
        let bell = &*bell;
        let (hand, duties) = line.ends(bell);
        let compressor = match kind {
            "encode" => Some(Compressor::new(config.deflate_level, config.block_bytes).map_err(RunError::Encoder)?),
            _ => None,
        };
        let manifest = vec![0; block::MANIFEST_BYTES_MAX];
        let worker = Worker { shared, bell, duties, compressor, decompressor: Decompressor::new(), manifest };
        let name = format!("{kind}-{index}");
        let cpus = if kind == "encode" { &config.encode_cpus } else { &config.dequantize_cpus };
        let body = move || on_core(cpus, index, || worker.run());
        thread::Builder::new().name(name).spawn_scoped(scope, body).map_err(RunError::System)?;
        leaving.bells.push(bell);
        hands.push(hand);
    }
    Ok(Crew::new(hands))
}

/// Questions to the store that one fetch worker can have: a block for each slot, an open or a close for each seat, a look-up
/// for each session.
pub(crate) fn asks_max(config: &Config) -> usize {
    config.slots + config.chunks + config.sessions
}

/// What the store allocates for.
#[must_use]
pub fn store_limits(config: &Config) -> store::Limits {
    store::Limits {
        chunks_open_max: config.chunks,
        puts_max: config.chunks,
        blocks_max: block::BLOCKS_PER_CHUNK_MAX,
        block_bytes_max: config.slot_bytes().wire,
        manifest_bytes_max: block::MANIFEST_BYTES_MAX,
        asks_max: asks_max(config),
        writers_max: config.encode_workers,
        ..store::Limits::default()
    }
}
