//! Every limit of the data plane, named, with its default and its range. Nothing is sized anywhere else.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use block::Recipe;
pub use limits::*;
pub(crate) use reload::{Live, Reload};
pub(crate) use verify::VERIFY_TRIES;
pub use verify::{SAMPLE_BLOCKS, Verify};
pub(crate) use watchdog::Watchdog;

mod limits;
pub(crate) mod ratios;
mod reload;
mod verify;
mod watchdog;

/// Default of [`Config::sessions`]: three engines with tensor parallelism 8.
const SESSIONS: usize = 27;
/// Cores from which on the defaults suit a BlueField-3 (16 Cortex-A78) instead of a laptop.
const CARD_CORES: usize = 12;

/// How hosts may come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attach {
    /// DOCA Comch, from the host's functions.
    Comch,
    /// A Unix socket of this machine.
    Socket,
    Both,
}

impl Attach {
    #[must_use]
    pub fn has_comch(self) -> bool {
        self != Self::Socket
    }

    #[must_use]
    pub fn has_socket(self) -> bool {
        self != Self::Comch
    }
}

/// What `dpu-app` runs with. `Config::for_cores` gives the defaults; flags, environment and file change them.
#[derive(Clone, Debug)]
pub struct Config {
    pub attach: Attach,
    /// Name of the Comch servers.
    pub comch_name: String,
    /// Functions of the host to serve, by PCI address or interface of their representors; empty: all physical ones.
    pub representors: Vec<String>,
    /// Unix socket that hosts of this machine attach to.
    pub socket: PathBuf,
    /// Store URL, e.g. `dir:/var/lib/kvlane?bytes=200G`.
    pub store: store::Url,
    /// Refusal to start without a store that answers.
    pub require_store: bool,
    /// Shares of the store's tiers, by namespace.
    pub namespaces: store::Namespaces,
    /// Device to open.
    pub device: doca::Selector,
    /// Recipe for chunks whose host names none.
    pub recipe: Recipe,
    /// Deflate level of the encoder, 1 (fast) to 12 (small).
    pub deflate_level: i32,
    /// Largest block, bytes of elements in host memory.
    pub block_bytes: usize,
    /// Slots of the ring.
    pub slots: usize,
    /// Slots that the store path may hold, so that fetches always find some.
    pub store_slots: usize,
    pub fetch_workers: usize,
    pub dequantize_workers: usize,
    pub encode_workers: usize,
    /// Cores of the workers, given out in turn; empty: where the kernel likes.
    pub fetch_cpus: Vec<usize>,
    pub dequantize_cpus: Vec<usize>,
    pub encode_cpus: Vec<usize>,
    /// Tasks in flight on the decompress engine.
    pub inflate_depth: usize,
    /// Block transfers in flight on the DMA engine.
    pub dma_depth: usize,
    /// Hosts attached at the same time, the operator's session beside them.
    pub sessions: usize,
    /// Whether hosts that come by Comch may drain, resume and stop the card, as the operator may by its socket.
    pub allow_host_stop: bool,
    /// Chunks in progress.
    pub chunks: usize,
    /// Whether a chunk that several sessions fetch at one time is read once, and written to the pages of all.
    pub join: bool,
    /// Deadline of a request that names none.
    pub deadline: Live,
    /// Age from which on a request counts as slow; with `None`, only its deadline counts.
    pub slow: Option<Duration>,
    /// Time for a host to finish its attach.
    pub attach_timeout: Live,
    /// Address of the metrics server; `None`: there is none.
    pub metrics: Option<SocketAddr>,
    /// Time for which a session's mailbox is polled after its last command, before it goes to sleep.
    pub awake: Duration,
    /// How long the engine thread sleeps, undisturbed by completions, while an engine has several operations queued:
    /// fewer wake-ups where cores are few. 0 wakes for each.
    pub moderation: Duration,
    /// Whether mailboxes are polled all the time, without sleep.
    pub busy_poll: bool,
    /// Whether codes are checked in software even if the engine's CRC is trusted.
    pub software_crc: bool,
    /// Whether software inflates where the device cannot.
    pub allow_software: bool,
    /// Blocks to read back from the host's pages and compare.
    pub verify_dma: Verify,
    /// Watchdog to notify (systemd).
    pub supervisor: Option<Watchdog>,
    /// Level of the log; `None`: as RUST_LOG says.
    pub log_level: Option<log::LevelFilter>,
    /// Channel by which a changed configuration comes.
    pub reload: Reload,
}

impl Config {
    /// Defaults for a machine of this many cores.
    #[must_use]
    pub fn for_cores(cores: usize) -> Self {
        let card = cores >= CARD_CORES;
        Self {
            attach: Attach::Both,
            comch_name: String::from(mailbox::attach::SERVICE_NAME),
            representors: Vec::new(),
            socket: PathBuf::from("/run/kvlane/dpu-app.sock"),
            store: store::Url::default(),
            require_store: false,
            namespaces: store::Namespaces::default(),
            device: doca::Selector::First,
            recipe: "lossless".parse().expect("a recipe of our own"),
            deflate_level: block::codec::DEFLATE_LEVEL_DEFAULT,
            block_bytes: 512 << 10,
            slots: 0,
            store_slots: 0,
            fetch_workers: if card { 5 } else { 1 },
            dequantize_workers: if card { 7 } else { 1 },
            encode_workers: if card { 3 } else { 2 },
            fetch_cpus: Vec::new(),
            dequantize_cpus: Vec::new(),
            encode_cpus: Vec::new(),
            inflate_depth: 0,
            dma_depth: 0,
            sessions: SESSIONS,
            allow_host_stop: false,
            chunks: 0,
            join: true,
            deadline: Duration::from_secs(30).into(),
            slow: Some(Duration::from_secs(2)),
            attach_timeout: Duration::from_secs(5).into(),
            metrics: None,
            awake: Duration::from_micros(200),
            moderation: Duration::from_micros(if card { 0 } else { 200 }),
            busy_poll: false,
            software_crc: false,
            allow_software: false,
            verify_dma: Verify::Off,
            supervisor: None,
            log_level: None,
            reload: Reload::default(),
        }
        .with_slots(if card { 32 } else { 16 })
    }

    /// Sets the slots, and what follows from their number by default: stores hold half of them, the decompress
    /// engine and chunks have one each. The DMA engine, in whose queue the mailbox stands too, has enough with a
    /// quarter.
    #[must_use]
    pub fn with_slots(self, slots: usize) -> Self {
        let (store_slots, chunks) = ((slots / 2).max(1), slots.min(CHUNKS_ACTIVE_MAX));
        Self { slots, store_slots, inflate_depth: slots, dma_depth: (slots / 4).max(slots.min(4)), chunks, ..self }
    }

    /// Counts the places for sessions: those of hosts, then the operator's.
    #[must_use]
    pub fn places(&self) -> usize {
        self.sessions + SESSIONS_OF_OPERATOR
    }

    /// Computes the sizes of one slot's areas.
    #[must_use]
    pub fn slot_bytes(&self) -> SlotBytes {
        SlotBytes::for_blocks(self.block_bytes)
    }

    /// Checks that every value is in its range.
    ///
    /// # Errors
    /// The first value that is out of its range, and the range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let ranges = [
            ("--deflate-level", usize::try_from(self.deflate_level).unwrap_or(0), 1, 12),
            ("--block-bytes", self.block_bytes, 4 << 10, 2 << 20),
            ("--slots", self.slots, 2, SLOTS_MAX),
            ("--store-slots", self.store_slots, 1, self.slots.saturating_sub(1)),
            ("--fetch-workers", self.fetch_workers, 1, WORKERS_MAX),
            ("--dequantize-workers", self.dequantize_workers, 1, WORKERS_MAX),
            ("--encode-workers", self.encode_workers, 1, WORKERS_MAX),
            ("--inflate-depth", self.inflate_depth, 1, SLOTS_MAX),
            ("--dma-depth", self.dma_depth, 1, SLOTS_MAX),
            ("--sessions", self.sessions, 1, SESSIONS_MAX),
            ("--chunks", self.chunks, 1, CHUNKS_ACTIVE_MAX),
        ];
        for (name, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                return Err(ConfigError { name, value, least, most });
            }
        }
        Ok(())
    }
}

/// A value outside its range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConfigError {
    pub name: &'static str,
    pub value: usize,
    pub least: usize,
    pub most: usize,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} is outside {}..={}", self.name, self.value, self.least, self.most)
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_fit_their_ranges_and_the_memory_promise() {
        for cores in [1, 2, 8, 16, 128] {
            let config = Config::for_cores(cores);
            assert_eq!(config.check(), Ok(()));
            assert!(config.slots * config.slot_bytes().total() <= 64 << 20, "the ring stays within 64 MiB");
        }
    }

    #[test]
    fn a_value_out_of_range_is_named_with_its_range() {
        let mut config = Config::for_cores(2);
        config.slots = 65;
        config.store_slots = 1;
        assert_eq!(config.check().unwrap_err().to_string(), "--slots 65 is outside 2..=64");
    }
}
