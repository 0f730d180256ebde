//! The knobs of a device, and the one parser for them. The table of keys is in `docs/emulator.md`.

use std::cell::RefCell;
use std::env;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

mod kind;
mod limits;
mod pci;

pub(crate) use kind::{KINDS, TaskKind};
pub(crate) use limits::{DATA_BYTES_MAX, IMM_BYTES_MAX, LIST_MAX, TASKS_MAX, buf_bytes_max};
pub use pci::PciAddress;

/// The environment variable that is read at each device list.
const VARIABLE: &str = "DOCA_EMULATOR";
/// Functions of the card that a process may see.
const DEVICES_MAX: u32 = 8;
/// Functions of the host that one of them serves.
const REPRESENTORS_MAX: u32 = 64;
const THREADS_MAX: u32 = 64;

/// Which card to be.
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

impl FromStr for Without {
    type Err = ();

    /// `inflate`, `lz4`, `dma`, joined by `+`.
    fn from_str(text: &str) -> Result<Without, ()> {
        let mut without = Without::default();
        for name in text.split('+') {
            match name {
                "inflate" => without.inflate = true,
                "lz4" => without.lz4 = true,
                "dma" => without.dma = true,
                _ => return Err(()),
            }
        }
        Ok(without)
    }
}

/// Which side of the card the process believes to be on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Both: representors are there, and Comch servers as well as clients.
    Any,
    /// No representors, no Comch servers.
    Host,
    /// No Comch clients.
    Card,
}

/// Which copies of the DMA engine may flip a bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlipWay {
    Any,
    /// Into another process's memory.
    ToHost,
    /// Out of it.
    FromHost,
}

/// Which functions of the host a device of the card has representors of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Representors {
    /// So many, from the device's own address on.
    Count(u32),
    /// At these places.
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
    /// Where this process sees the first of them; the others follow it.
    pub pci: PciAddress,
    /// Whom Comch servers of the first one may serve: the host's functions, where the host sees them. The next device
    /// has those that follow.
    pub rep: Representors,
    /// Where Comch servers and clients meet. None: a directory of the user's.
    pub comch_dir: Option<PathBuf>,
    /// How long a starting Comch client waits for its server.
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
    /// Measurement only: bytes of decompressed blocks that the engines of a device keep, to copy them the next time. 0: none.
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

/// What is wrong with a configuration text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// An item without `=`.
    NotAnAssignment(String),
    UnknownKey(String),
    BadValue {
        key: &'static str,
        value: String,
        wanted: &'static str,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::NotAnAssignment(item) => write!(f, "`{item}` is not key=value"),
            ConfigError::UnknownKey(key) => write!(f, "unknown key `{key}`"),
            ConfigError::BadValue { key, value, wanted } => write!(f, "{key}={value}: wanted {wanted}"),
        }
    }
}

impl std::error::Error for ConfigError {}

impl FromStr for Config {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let (key, value) = item.split_once('=').ok_or_else(|| ConfigError::NotAnAssignment(item.to_owned()))?;
            config.set(key.trim(), value.trim())?;
        }
        config.check_addresses()?;
        Ok(config)
    }
}

impl Config {
    fn set(&mut self, key: &str, value: &str) -> Result<(), ConfigError> {
        match key {
            "profile" => {
                self.profile = match value {
                    "bf3" => Profile::Bf3,
                    "bf2" => Profile::Bf2,
                    _ => return Err(bad("profile", value, "bf2 or bf3")),
                }
            }
            "without" => {
                self.without = value.parse().map_err(|()| bad("without", value, "inflate, lz4, dma, joined by +"))?;
            }
            "buf_bytes_max" => self.buf_bytes_max = number("buf_bytes_max", value, 64..=u64::MAX, "64 or more")?,
            "list_max" => self.list_max = number("list_max", value, 1..=LIST_MAX, "1 to 128")?,
            "tasks_max" => self.tasks_max = number("tasks_max", value, 1..=TASKS_MAX, "1 to 8192")?,
            "devices" => self.devices = number("devices", value, 0..=DEVICES_MAX, "0 to 8")?,
            "role" => {
                self.role = match value {
                    "any" => Role::Any,
                    "host" => Role::Host,
                    "card" | "dpu" => Role::Card,
                    _ => return Err(bad("role", value, "any, host or card")),
                }
            }
            "pci" => self.pci = address("pci", value)?,
            "rep" if value.contains(':') => {
                self.rep =
                    Representors::At(value.split('+').map(|place| address("rep", place)).collect::<Result<_, _>>()?);
            }
            "rep" => {
                let wanted = "1 to 64, or PCI addresses with + between them";
                self.rep = Representors::Count(number("rep", value, 1..=REPRESENTORS_MAX, wanted)?);
            }
            "comch_dir" if value.is_empty() => return Err(bad("comch_dir", value, "a directory")),
            "comch_dir" => self.comch_dir = Some(value.into()),
            "comch_wait_ms" => self.comch_wait_ms = number("comch_wait_ms", value, 0..=600_000, "up to 600000")?,
            "decompress_threads" => self.decompress_threads = threads("decompress_threads", value)?,
            "dma_threads" => self.dma_threads = threads("dma_threads", value)?,
            "queue" => self.queue = number("queue", value, 0..=8192, "up to 8192")?,
            "window" => self.window = switch("window", value)?,
            "seed" => self.seed = Some(number("seed", value, 0..=u64::MAX, "a 64-bit number")?),
            "fail" => self.fail = probability("fail", value)?,
            "again" => self.again = probability("again", value)?,
            "corrupt" => self.corrupt = probability("corrupt", value)?,
            "dma_flip" => self.dma_flip = probability("dma_flip", value)?,
            "dma_flip_at" => self.dma_flip_at = number("dma_flip_at", value, 0..=u64::MAX, "a number of copies")?,
            "dma_flip_way" => {
                self.dma_flip_way = match value {
                    "any" => FlipWay::Any,
                    "to-host" => FlipWay::ToHost,
                    "from-host" => FlipWay::FromHost,
                    _ => return Err(bad("dma_flip_way", value, "any, to-host or from-host")),
                }
            }
            "dma_flip_bytes" => self.dma_flip_bytes = number("dma_flip_bytes", value, 0..=u32::MAX, "bytes")?,
            "delay_us" => self.delay_us = number("delay_us", value, 0..=10_000_000, "up to 10000000")?,
            "reorder" => self.reorder = switch("reorder", value)?,
            "lose_after" => self.lose_after = number("lose_after", value, 0..=u64::MAX, "a number of tasks")?,
            "exporter_gone" => self.exporter_gone = probability("exporter_gone", value)?,
            "timing" => self.timing = switch("timing", value)?,
            "task_ns" => self.task_ns = number("task_ns", value, 0..=1_000_000_000, "up to 1000000000")?,
            "gigabytes_per_s" => {
                self.gigabytes_per_s = number("gigabytes_per_s", value, 0.001..=1000.0, "0.001 to 1000")?;
            }
            "depth" => self.depth = number("depth", value, 1..=1024, "1 to 1024")?,
            "remember" => self.remember = number("remember", value, 0..=u64::MAX, "a number of bytes")?,
            "inline_bytes" => self.inline_bytes = number("inline_bytes", value, 0..=1 << 20, "up to 1048576")?,
            "quiet" => self.quiet = switch("quiet", value)?,
            "debug" => self.debug = switch("debug", value)?,
            _ => return Err(ConfigError::UnknownKey(key.to_owned())),
        }
        Ok(())
    }

    /// Where this process sees a device.
    pub(crate) fn device_address(&self, device: u32) -> Option<PciAddress> {
        self.pci.further(device)
    }

    /// Where the host sees the function of a device's representor.
    pub(crate) fn host_address(&self, device: u32, representor: u32) -> Option<PciAddress> {
        let per_device = self.rep.count();
        match &self.rep {
            Representors::Count(_) => self.pci.further(device * per_device + representor),
            Representors::At(places) => places.get(representor as usize)?.further(device * per_device),
        }
    }

    /// All functions are on their bus, and no two representors stand for the same one.
    fn check_addresses(&self) -> Result<(), ConfigError> {
        if self.rep.count() > REPRESENTORS_MAX {
            return Err(bad("rep", &self.rep.count().to_string(), "at most 64 addresses"));
        }
        let mut taken = Vec::new();
        for device in 0..self.devices {
            self.device_address(device).ok_or_else(|| bad("pci", &self.pci.to_string(), "room on the bus for all"))?;
            for representor in 0..self.rep.count() {
                let wanted = "room on the bus for all devices' representors";
                let address = self.host_address(device, representor);
                let address = address.ok_or_else(|| bad("rep", &format!("{:?}", self.rep), wanted))?;
                if taken.contains(&address) {
                    return Err(bad("rep", &address.to_string(), "each function once, over all devices"));
                }
                taken.push(address);
            }
        }
        Ok(())
    }

    /// Copies of up to so many bytes are made by submit itself: none where a task's time or fate is to be seen.
    pub fn inline_bytes_max(&self) -> usize {
        let is_plain = !self.timing && !self.debug && !self.is_hostile();
        if is_plain { self.inline_bytes as usize } else { 0 }
    }

    /// Whether chance plays a part.
    pub fn is_hostile(&self) -> bool {
        self.fail > 0.0
            || self.again > 0.0
            || self.corrupt > 0.0
            || self.dma_flip > 0.0
            || self.dma_flip_at > 0
            || self.delay_us > 0
            || self.reorder
            || self.lose_after > 0
            || self.exporter_gone > 0.0
    }
}

fn bad(key: &'static str, value: &str, wanted: &'static str) -> ConfigError {
    ConfigError::BadValue { key, value: value.to_owned(), wanted }
}

fn number<T: FromStr + PartialOrd>(
    key: &'static str,
    value: &str,
    range: std::ops::RangeInclusive<T>,
    wanted: &'static str,
) -> Result<T, ConfigError> {
    value.parse().ok().filter(|number| range.contains(number)).ok_or_else(|| bad(key, value, wanted))
}

fn threads(key: &'static str, value: &str) -> Result<u32, ConfigError> {
    number(key, value, 1..=THREADS_MAX, "1 to 64")
}

fn address(key: &'static str, value: &str) -> Result<PciAddress, ConfigError> {
    value.parse().map_err(|()| bad(key, value, "a PCI address such as 03:00.0"))
}

fn probability(key: &'static str, value: &str) -> Result<f64, ConfigError> {
    number(key, value, 0.0..=1.0, "0 to 1")
}

fn switch(key: &'static str, value: &str) -> Result<bool, ConfigError> {
    number(key, value, 0..=1, "0 or 1").map(|number: u8| number == 1)
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

/// As [`configure`], for device lists that this thread creates, and stronger: tests of one process can differ.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_text_is_the_default_card() {
        assert_eq!("".parse(), Ok(Config::default()));
        assert!(!Config::default().is_hostile());
    }

    #[test]
    fn every_key_is_read() {
        let text = "profile=bf2, without=lz4+dma,buf_bytes_max=4096,list_max=2,tasks_max=99,devices=2,role=host,pci=b1:00.2,rep=0001:3b:1f+0001:3b:02.1,comch_dir=/run/x,comch_wait_ms=5,decompress_threads=4,dma_threads=3,queue=9,window=0,seed=42,fail=0.5,again=0.25,\
                    corrupt=1,dma_flip=0.75,dma_flip_at=3,dma_flip_way=to-host,dma_flip_bytes=9000,delay_us=900,reorder=1,lose_after=7,exporter_gone=0.125,timing=1,task_ns=1,\
                    gigabytes_per_s=2.5,depth=3,inline_bytes=64,remember=4096,quiet=1,debug=1,";
        let wanted = Config {
            profile: Profile::Bf2,
            without: Without { inflate: false, lz4: true, dma: true },
            buf_bytes_max: 4096,
            list_max: 2,
            tasks_max: 99,
            devices: 2,
            role: Role::Host,
            pci: PciAddress { domain: 0, bus: 0xb1, devfn: 2 },
            rep: Representors::At(vec![
                PciAddress { domain: 1, bus: 0x3b, devfn: 0x1f << 3 },
                PciAddress { domain: 1, bus: 0x3b, devfn: 0x02 << 3 | 1 },
            ]),
            comch_dir: Some("/run/x".into()),
            comch_wait_ms: 5,
            decompress_threads: 4,
            dma_threads: 3,
            queue: 9,
            window: false,
            seed: Some(42),
            fail: 0.5,
            again: 0.25,
            corrupt: 1.0,
            dma_flip: 0.75,
            dma_flip_at: 3,
            dma_flip_way: FlipWay::ToHost,
            dma_flip_bytes: 9000,
            delay_us: 900,
            reorder: true,
            lose_after: 7,
            exporter_gone: 0.125,
            timing: true,
            task_ns: 1,
            gigabytes_per_s: 2.5,
            depth: 3,
            remember: 4096,
            inline_bytes: 64,
            quiet: true,
            debug: true,
        };
        assert_eq!(text.parse(), Ok(wanted));
    }

    #[test]
    #[cfg_attr(miri, ignore = "much text, and nothing that miri could find")]
    fn every_key_is_documented() {
        let page = include_str!("../../../docs/emulator.md");
        let source = include_str!("config.rs");
        let keys = source.split("fn set(").nth(1).and_then(|rest| rest.split("Whether chance").next());
        let keys = keys.into_iter().flat_map(str::lines).filter_map(|line| line.trim().strip_prefix('"'));
        let keys: Vec<&str> =
            keys.filter(|line| line.contains("=> ")).filter_map(|line| line.split('"').next()).collect();
        assert!(keys.len() > 20, "{keys:?}");
        for key in keys {
            assert!(page.contains(&format!("`{key}`")), "{key} is not in docs/emulator.md");
        }
    }

    #[test]
    fn the_representors_of_the_next_device_are_the_next_functions() {
        let places = |text: &str| -> Vec<String> {
            let config: Config = text.parse().expect(text);
            let all = (0..config.devices).flat_map(|device| (0..config.rep.count()).map(move |rep| (device, rep)));
            all.map(|(device, rep)| config.host_address(device, rep).expect("checked").to_string()[5..].to_owned())
                .collect()
        };
        assert_eq!(places("devices=2"), ["03:00.0", "03:00.1"]);
        assert_eq!(places("devices=2,rep=b1:00.0"), ["b1:00.0", "b1:00.1"]);
        assert_eq!(places("rep=3"), ["03:00.0", "03:00.1", "03:00.2"]);
        assert_eq!(places("rep=b1:00.0+b1:00.1,devices=2"), ["b1:00.0", "b1:00.1", "b1:00.2", "b1:00.3"]);
        assert_eq!(places("rep=b1:00.0+3b:00.0"), ["b1:00.0", "3b:00.0"]);
    }

    #[test]
    fn a_function_of_the_host_has_one_representor_and_is_on_its_bus() {
        let message = |text: &str| text.parse::<Config>().expect_err(text).to_string();
        let once = "wanted each function once, over all devices";
        assert_eq!(message("rep=b1:00.0+b1:00.0"), format!("rep=0000:b1:00.0: {once}"));
        assert_eq!(message("devices=2,rep=b1:00.0+b1:00.2"), format!("rep=0000:b1:00.2: {once}"));
        assert_eq!(message("pci=03:1f.7,devices=2"), "pci=0000:03:1f.7: wanted room on the bus for all");
        assert_eq!(message(&format!("rep=b1:00.0{}", "+b1:00.0".repeat(64))), "rep=65: wanted at most 64 addresses");
    }

    #[test]
    fn a_typo_is_an_error_that_names_it() {
        let message = |text: &str| text.parse::<Config>().expect_err(text).to_string();
        assert_eq!(message("sead=1"), "unknown key `sead`");
        assert_eq!(message("seed"), "`seed` is not key=value");
        assert_eq!(message("fail=1.5"), "fail=1.5: wanted 0 to 1");
        assert_eq!(message("fail=NaN"), "fail=NaN: wanted 0 to 1");
        assert_eq!(message("dma_threads=0"), "dma_threads=0: wanted 1 to 64");
        assert_eq!(message("pci=3:0.0"), "pci=3:0.0: wanted a PCI address such as 03:00.0");
        assert_eq!(message("rep=0"), "rep=0: wanted 1 to 64, or PCI addresses with + between them");
        assert_eq!(message("rep=b1:00.0+"), "rep=: wanted a PCI address such as 03:00.0");
        assert_eq!(message("profile=bf4"), "profile=bf4: wanted bf2 or bf3");
        assert_eq!(message("without=flow"), "without=flow: wanted inflate, lz4, dma, joined by +");
    }
}
