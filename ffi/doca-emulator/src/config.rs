//! What can be set about a device, and where the settings come from. The table of keys is in `docs/emulator.md`.

use std::cell::RefCell;
use std::env;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

mod fault;
mod kind;
mod limits;
mod parse;
mod pci;

pub use fault::{FaultEffect, PlannedFault};
pub(crate) use kind::KINDS;
pub use kind::TaskKind;
pub(crate) use limits::{DATA_BYTES_MAX, IMM_BYTES_MAX, LIST_MAX, TASKS_MAX, buf_bytes_max};
pub use parse::ConfigError;
pub use pci::PciAddress;

/// The environment variable that is read at each device list.
const VARIABLE: &str = "DOCA_EMULATOR";

/// Model of the card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Decompresses deflate and LZ4, compresses nothing.
    Bf3,
    /// Compresses and decompresses deflate, knows no LZ4.
    Bf2,
}

/// Engines that a card lacks although its model has them: other models, or ones that an operator has no right to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Without {
    pub inflate: bool,
    pub lz4: bool,
    pub dma: bool,
}

/// Side of the card on which the process believes to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Both: representors are there, and Comch servers as well as clients.
    Any,
    /// No representors, no Comch servers.
    Host,
    /// No Comch clients.
    Card,
}

/// Copies of the DMA engine that may flip a bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlipWay {
    Any,
    /// Into another process's memory.
    ToHost,
    /// Out of it.
    FromHost,
}

/// Functions of the host of which a device of the card has representors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Representors {
    /// This many, from the device's own address on.
    Count(u32),
    /// The functions at these addresses.
    At(Vec<PciAddress>),
}

impl Representors {
    pub(crate) fn count(&self) -> u32 {
        match self {
            Representors::Count(count) => *count,
            Representors::At(places) => places.len() as u32,
        }
    }
}

/// Everything that can be set about a device. Start from [`Config::default`], or parse text in the form of the
/// environment variable: `"seed=42,fail=0.01".parse()`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub profile: Profile,
    pub without: Without,
    /// Smaller than the profile's largest source or destination of a task; 0: the profile's.
    pub buf_bytes_max: u64,
    /// Buffers in one list of a task of the engines.
    pub list_max: u32,
    /// Tasks of one context of the engines, all types together.
    pub tasks_max: u32,
    /// Functions of the card, 0 to 8.
    pub devices: u32,
    pub role: Role,
    /// Address at which this process sees the first of them; the others follow it.
    pub pci: PciAddress,
    /// Functions that Comch servers of the first one may serve, at the addresses that the host sees. The next device
    /// has those that follow.
    pub rep: Representors,
    /// Directory in which Comch servers and clients meet. None: one of the user's own.
    pub comch_dir: Option<PathBuf>,
    /// Longest wait of a starting Comch client for its server, in milliseconds.
    pub comch_wait_ms: u32,
    pub decompress_threads: u32,
    pub dma_threads: u32,
    /// Tasks of one context that its engine takes before a submit answers `AGAIN`. 0: all that there are.
    pub queue: u32,
    /// Map an exporter's memory where that is safe, instead of copying through the kernel.
    pub window: bool,
    /// None: from the clock.
    pub seed: Option<u64>,
    /// Probability, 0 to 1, that a task fails.
    pub fail: f64,
    /// Probability, 0 to 1, that a submit answers `AGAIN`.
    pub again: f64,
    /// Probability, 0 to 1, that a (de)compression flips one bit of its output.
    pub corrupt: f64,
    /// Probability, 0 to 1, that a copy of the DMA engine flips one bit of what it writes.
    pub dma_flip: f64,
    /// The copy that flips one for certain, counted from 1 among those that may; 0: none.
    pub dma_flip_at: u64,
    pub dma_flip_way: FlipWay,
    /// Bytes of the smallest copy that may.
    pub dma_flip_bytes: u32,
    /// Longest random delay of a task, in microseconds.
    pub delay_us: u32,
    pub reorder: bool,
    /// Faults of certain tasks.
    pub faults: Vec<PlannedFault>,
    /// The device is lost after this many tasks: all later ones fail with `DRIVER`, and no context starts. 0: never.
    pub lose_after: u64,
    /// Probability, 0 to 1, that a task that uses an import finds its exporter gone, for good.
    pub exporter_gone: f64,
    /// The timing model is on.
    pub timing: bool,
    /// Its fixed cost of a task, in nanoseconds.
    pub task_ns: u32,
    /// Its bandwidth, of what an engine writes.
    pub gigabytes_per_s: f64,
    /// Tasks that an engine has under way at once.
    pub depth: u32,
    /// Measurement only: bytes of decompressed blocks that the engines of a device keep, to copy them the next time. 0:
    /// none.
    pub remember: u64,
    /// Copies of up to so many bytes are made by submit itself.
    pub inline_bytes: u32,
    /// The shared library does not announce itself.
    pub quiet: bool,
    /// Mistakes are reported; see `docs/emulator.md`.
    pub debug: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            profile: Profile::Bf3,
            without: Without::default(),
            buf_bytes_max: 0,
            list_max: LIST_MAX,
            tasks_max: TASKS_MAX,
            devices: 1,
            role: Role::Any,
            pci: PciAddress::FIRST,
            rep: Representors::Count(1),
            comch_dir: None,
            comch_wait_ms: 0,
            decompress_threads: 2,
            dma_threads: 1,
            queue: 0,
            window: true,
            seed: None,
            fail: 0.0,
            again: 0.0,
            corrupt: 0.0,
            dma_flip: 0.0,
            dma_flip_at: 0,
            dma_flip_way: FlipWay::Any,
            dma_flip_bytes: 0,
            delay_us: 0,
            reorder: false,
            faults: Vec::new(),
            lose_after: 0,
            exporter_gone: 0.0,
            timing: false,
            task_ns: 5000,
            gigabytes_per_s: 25.0,
            depth: 8,
            remember: 0,
            inline_bytes: 4096,
            quiet: false,
            debug: false,
        }
    }
}

impl Config {
    /// Address at which this process sees a device.
    pub(crate) fn device_address(&self, device: u32) -> Option<PciAddress> {
        self.pci.further(device)
    }

    /// Address at which the host sees the function of a device's representor.
    pub(crate) fn host_address(&self, device: u32, representor: u32) -> Option<PciAddress> {
        let per_device = self.rep.count();
        match &self.rep {
            Representors::Count(_) => self.pci.further(device * per_device + representor),
            Representors::At(places) => places.get(representor as usize)?.further(device * per_device),
        }
    }

    /// Copies of up to so many bytes are made by submit itself: none where a task's time or fate is to be seen.
    pub fn inline_bytes_max(&self) -> usize {
        let is_plain = !self.timing && !self.debug && !self.is_hostile();
        if is_plain { self.inline_bytes as usize } else { 0 }
    }

    /// Whether tasks may fail, change or be late.
    pub fn is_hostile(&self) -> bool {
        self.fail > 0.0
            || self.again > 0.0
            || self.corrupt > 0.0
            || self.dma_flip > 0.0
            || self.dma_flip_at > 0
            || self.delay_us > 0
            || self.reorder
            || !self.faults.is_empty()
            || self.lose_after > 0
            || self.exporter_gone > 0.0
    }
}

static PROCESS: Mutex<Option<Arc<Config>>> = Mutex::new(None);

thread_local! {
    static THREAD: RefCell<Option<Arc<Config>>> = const { RefCell::new(None) };
}

/// Replaces the environment variable for all device lists of this process from now on; `None` gives it back its say.
/// Devices that are open keep what they were opened with.
pub fn configure(config: impl Into<Option<Config>>) {
    *PROCESS.lock().unwrap_or_else(PoisonError::into_inner) = config.into().map(Arc::new);
}

/// Replaces the configuration for device lists that this thread creates; takes precedence over [`configure`], so that
/// tests of one process can differ.
pub fn configure_thread(config: impl Into<Option<Config>>) {
    let config = config.into().map(Arc::new);
    THREAD.with(|slot| *slot.borrow_mut() = config);
}

/// What the next device list shows: the thread's, else the process's, else the environment's.
pub(crate) fn current() -> Result<Arc<Config>, ConfigError> {
    let replaced = THREAD
        .with(|slot| slot.borrow().clone())
        .or_else(|| PROCESS.lock().unwrap_or_else(PoisonError::into_inner).clone());
    match replaced {
        Some(config) => Ok(config),
        None => env::var(VARIABLE).unwrap_or_default().parse().map(Arc::new),
    }
}
