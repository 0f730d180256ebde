//! Init: opens the device and the store, allocates everything, starts the threads, and hands over to the engine thread.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use block::codec::{Compressor, Decompressor};
use doca::{Code, Device, DeviceInfo, Selector};
use heapless::spsc::Queue;
use mailbox::channel::{ChannelError, UnixListener};
use nix::sys::eventfd::EventFd;

use crate::bell::{EngineBell, WorkerBell};
use crate::config::{Config, ConfigError};
use crate::counters::Counters;
use crate::crew::{Crew, Hand};
use crate::fit::{Fit, Unfit};
use crate::hub::{Crews, Hub, HubError};
use crate::job::{Chunks, Done, Job};
use crate::slot::Ring;
use crate::store::{self, Store};
use crate::worker::{LookupKeys, PrefixKeys, QUEUE, Shared, Worker};

/// Why the data plane did not start, or did not go on.
#[derive(Debug)]
pub enum RunError {
    Config(ConfigError),
    Store(store::OpenError),
    Channel { socket: PathBuf, error: ChannelError },
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
            Self::Store(error) => write!(f, "{error}"),
            // Its other errors name the path themselves.
            Self::Channel { socket, error: error @ ChannelError::System { .. } } => {
                write!(f, "{error}: {}: check that its directory exists and is yours", socket.display())
            }
            Self::Channel { error, .. } => write!(f, "{error}"),
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
            Self::System(error) => write!(f, "system: {error}"),
            Self::Hub(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for RunError {}

impl RunError {
    /// 2: the operator can fix it in the command line; 3: the device; 1: anything else.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Store(_) | Self::Channel { .. } | Self::Encoder(_) => 2,
            Self::Device(_) | Self::NoDevice { .. } | Self::Unfit(_) => 3,
            Self::Hub(HubError::Device(_) | HubError::EngineStuck(_)) => 3,
            Self::System(_) | Self::Hub(HubError::System { .. }) => 1,
        }
    }
}

/// Runs until `stop` is rung or a host says `Stop`, and everything has drained. `ready` is called when hosts can attach.
///
/// # Errors
/// See [`RunError`]: the operator's mistakes come before anything is allocated.
pub fn run(config: &Config, stop: &EventFd, ready: impl FnOnce()) -> Result<(), RunError> {
    config.check().map_err(RunError::Config)?;
    let device = open(&config.device)?;
    let store = store::open(&config.store, &store_limits(config)).map_err(RunError::Store)?;
    serve(config, device, store.as_ref(), stop, ready)
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

/// The same with a device and a store that the caller opened.
///
/// # Errors
/// See [`RunError`].
pub fn serve(
    config: &Config,
    device: Device,
    store: &dyn Store,
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
    let listener = UnixListener::bind(&config.socket)
        .map_err(|error| RunError::Channel { socket: config.socket.clone(), error })?;
    let shared = Shared {
        config,
        store,
        ring: Ring::allocate(&device, config.slots, config.slot_bytes()).map_err(RunError::Device)?,
        chunks: Chunks::new(config.chunks),
        lookups: (0..config.sessions).map(|_| Mutex::new((LookupKeys::new(), Instant::now()))).collect(),
        prefixes: (0..config.sessions).map(|_| Mutex::new(PrefixKeys::new())).collect(),
        counters: Counters::default(),
        engine_bell: EngineBell::new().map_err(RunError::System)?,
        stop,
        leave: AtomicBool::new(false),
    };
    let lines = |count: usize| (0..count).map(|_| Line::default()).collect::<Vec<_>>();
    let mut fetch = lines(config.fetch_workers);
    let mut dequantize = lines(config.dequantize_workers);
    let mut encode = lines(config.encode_workers);
    thread::scope(|scope| {
        let mut leaving = Leaving { shared: &shared, bells: Vec::new() };
        let fetchers = start_crew(scope, &shared, "fetch", &mut fetch, &mut leaving)?;
        let dequantizers = start_crew(scope, &shared, "dequantize", &mut dequantize, &mut leaving)?;
        let encoders = start_crew(scope, &shared, "encode", &mut encode, &mut leaving)?;
        let crews = Crews { fetchers, dequantizers, encoders };
        let hub = Hub::new(&shared, device, &fit, crews, Box::new(listener)).map_err(RunError::Hub)?;
        hub.announce();
        ready();
        hub.run().map_err(RunError::Hub)
    })
}

/// What lies between the engine thread and one worker.
#[derive(Default)]
struct Line {
    jobs: Queue<Job, QUEUE>,
    answers: Queue<Done, QUEUE>,
    bell: WorkerBell,
}

/// Sends all workers home when the engine thread is done, however that came about.
struct Leaving<'a, 's> {
    shared: &'a Shared<'s>,
    bells: Vec<&'a WorkerBell>,
}

impl Drop for Leaving<'_, '_> {
    fn drop(&mut self) {
        self.shared.leave.store(true, Ordering::Release);
        self.bells.iter().for_each(|bell| bell.ring());
    }
}

fn start_crew<'scope, 'env, 's: 'env>(
    scope: &'scope thread::Scope<'scope, 'env>,
    shared: &'env Shared<'s>,
    kind: &'static str,
    lines: &'env mut [Line],
    leaving: &mut Leaving<'env, 's>,
) -> Result<Crew<'env>, RunError> {
    let config = shared.config;
    let mut hands = Vec::with_capacity(lines.len());
    for (index, line) in lines.iter_mut().enumerate() {
        let Line { jobs, answers, bell } = line;
        let bell = &*bell;
        let (to_worker, jobs) = jobs.split();
        let (answers, from_worker) = answers.split();
        let compressor = match kind {
            "encode" => Some(Compressor::new(config.deflate_level, config.block_bytes).map_err(RunError::Encoder)?),
            _ => None,
        };
        let manifest = vec![0; block::MANIFEST_BYTES_MAX];
        let worker = Worker { shared, bell, jobs, answers, compressor, decompressor: Decompressor::new(), manifest };
        let name = format!("{kind}-{index}");
        thread::Builder::new().name(name).spawn_scoped(scope, || worker.run()).map_err(RunError::System)?;
        leaving.bells.push(bell);
        hands.push(Hand { jobs: to_worker, answers: from_worker, bell, outstanding: 0 });
    }
    Ok(Crew::new(hands))
}

fn store_limits(config: &Config) -> store::Limits {
    store::Limits {
        chunks_open_max: config.chunks,
        puts_max: config.chunks,
        blocks_max: block::BLOCKS_PER_CHUNK_MAX,
        block_bytes_max: config.slot_bytes().wire,
        manifest_bytes_max: block::MANIFEST_BYTES_MAX,
        ..store::Limits::default()
    }
}
