//! Init: opens the device and the store, allocates everything, starts the threads, and hands over to the engine thread.

use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use block::codec::{Compressor, Decompressor};
use doca::{Area, Code, Device, Selector, Slab};
use mailbox::channel::{Listener, UnixListener};
use nix::sys::eventfd::EventFd;

use crate::config::{Config, store_limits};
use crate::count::counters::Counters;
use crate::error::RunError;
use crate::hub::fit::Fit;
use crate::hub::{Crews, Hub};
use crate::metrics;
use crate::pipeline::job::CrewKind;
use crate::settings;
use crate::slots::lender::open_store;
use crate::slots::ring::Ring;
use crate::workers::affinity;
use crate::workers::bell::{Bell, EventBell, WorkerBell};
use crate::workers::board::Board;
use crate::workers::chunks::Chunks;
use crate::workers::compute::Worker;
use crate::workers::crew::Crew;
use crate::workers::fetch::Fetcher;
use crate::workers::line::{BLOCK_QUEUE, Line, QUEUE};
use crate::workers::shared::{Prefix, Question, Shared};
use crate::workers::unreadable::Unreadable;
use store::Readable;

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
        let (info, settings) = (device.info().to_string(), settings::lines(config));
        let hub = Hub::new(&shared, device, &fit, crews, listeners).map_err(RunError::Hub)?;
        announce(&info, &shared, &settings);
        let _metrics = match &metrics {
            Some(server) => Some(server.start(scope, &shared, &info, &settings).map_err(RunError::System)?),
            None => None,
        };
        let _reload = config.reload.leave();
        let shared = &shared;
        let reload = move || config.reload.run(shared.config, shared.store);
        thread::Builder::new().name("reload".into()).spawn_scoped(scope, reload).map_err(RunError::System)?;
        ready();
        hub.run().map_err(RunError::Hub)
    })
}

/// Says what is about to run, once everything was allocated.
fn announce(device: &str, shared: &Shared<'_>, settings: &[(&str, String)]) {
    log::info!("device {device}");
    log::info!("store {}", shared.store.describe());
    log::info!("{}", crate::models::words(shared.config.recipe));
    for (name, value) in settings {
        log::info!("limit {name}: {value}");
    }
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
        lookups: (0..config.sessions).map(|_| Mutex::new(Question::new())).collect(),
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
