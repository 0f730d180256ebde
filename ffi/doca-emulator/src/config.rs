//! The knobs of a device, and the one parser for them. The table of keys is in the crate's documentation.

use std::cell::RefCell;
use std::env;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

/// The environment variable that is read at each device list.
const VARIABLE: &str = "DOCA_EMULATOR";
/// One PCI function has eight at most.
const DEVICES_MAX: u32 = 8;
const THREADS_MAX: u32 = 64;

/// Which card to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Decompresses deflate and LZ4, compresses nothing.
    Bf3,
    /// Compresses and decompresses deflate, knows no LZ4.
    Bf2,
}

/// Everything that can be set about a device. Start from [`Config::default`], or parse text in the form of the
/// environment variable: `"seed=42,fail=0.01".parse()`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub profile: Profile,
    /// Functions of the card, 0 to 8.
    pub devices: u32,
    pub decompress_threads: u32,
    pub dma_threads: u32,
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
    /// Longest random delay of a task, in microseconds.
    pub delay_us: u32,
    pub reorder: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            profile: Profile::Bf3,
            devices: 1,
            decompress_threads: 2,
            dma_threads: 1,
            window: true,
            seed: None,
            fail: 0.0,
            again: 0.0,
            corrupt: 0.0,
            delay_us: 0,
            reorder: false,
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
            "devices" => self.devices = number("devices", value, 0..=DEVICES_MAX, "0 to 8")?,
            "decompress_threads" => self.decompress_threads = threads("decompress_threads", value)?,
            "dma_threads" => self.dma_threads = threads("dma_threads", value)?,
            "window" => self.window = switch("window", value)?,
            "seed" => self.seed = Some(number("seed", value, 0..=u64::MAX, "a 64-bit number")?),
            "fail" => self.fail = probability("fail", value)?,
            "again" => self.again = probability("again", value)?,
            "corrupt" => self.corrupt = probability("corrupt", value)?,
            "delay_us" => self.delay_us = number("delay_us", value, 0..=10_000_000, "up to 10000000")?,
            "reorder" => self.reorder = switch("reorder", value)?,
            _ => return Err(ConfigError::UnknownKey(key.to_owned())),
        }
        Ok(())
    }

    /// Whether chance plays a part.
    pub fn is_hostile(&self) -> bool {
        self.fail > 0.0 || self.again > 0.0 || self.corrupt > 0.0 || self.delay_us > 0 || self.reorder
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
        let text = "profile=bf2, devices=2,decompress_threads=4,dma_threads=3,window=0,seed=42,fail=0.5,again=0.25,\
                    corrupt=1,delay_us=900,reorder=1,";
        let wanted = Config {
            profile: Profile::Bf2,
            devices: 2,
            decompress_threads: 4,
            dma_threads: 3,
            window: false,
            seed: Some(42),
            fail: 0.5,
            again: 0.25,
            corrupt: 1.0,
            delay_us: 900,
            reorder: true,
        };
        assert_eq!(text.parse(), Ok(wanted));
    }

    #[test]
    fn a_typo_is_an_error_that_names_it() {
        let message = |text: &str| text.parse::<Config>().expect_err(text).to_string();
        assert_eq!(message("sead=1"), "unknown key `sead`");
        assert_eq!(message("seed"), "`seed` is not key=value");
        assert_eq!(message("fail=1.5"), "fail=1.5: wanted 0 to 1");
        assert_eq!(message("fail=NaN"), "fail=NaN: wanted 0 to 1");
        assert_eq!(message("dma_threads=0"), "dma_threads=0: wanted 1 to 64");
        assert_eq!(message("profile=bf4"), "profile=bf4: wanted bf2 or bf3");
    }
}
