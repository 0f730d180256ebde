//! Command line of `dpu-app`, and the configuration that it says.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use block::Recipe;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cli::scrubbing::Scrub;
use crate::config::{Attach, Config, Reload, Verify};

/// Version, build (the scripts set it: see scripts/build-word.sh) and what it was built for: `0.1.0 (DOCA SDK
/// 2.10.0087)`, or `0.1.0 (emulator)`.
pub(super) static VERSION: LazyLock<String> = LazyLock::new(|| {
    let build = option_env!("KVLANE_BUILD").unwrap_or_default();
    format!("{}{build} ({})", env!("CARGO_PKG_VERSION"), doca::version::built_for())
});

/// Serves prefix KV to attached hosts through this card's engines.
#[derive(Debug, Parser)]
#[command(version = VERSION.as_str(), max_term_width = 120)]
#[command(after_help = "Exit codes: 0 ok, 1 runtime, 2 usage, 3 device.\n\
    Every flag of `run` has an environment variable KVLANE_<FLAG> and a line `flag = value` in the --config file.\n\
    Some defaults follow from the machine's cores: `dpu-app limits` prints those of this one.")]
pub(crate) struct CommandLine {
    #[command(subcommand)]
    pub(super) command: CliCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum CliCommand {
    /// Run the data plane until SIGTERM, SIGINT or `host-ctl stop`
    Run(Box<RunFlags>),
    /// Print every limit and the memory that `run` would have with these flags, or the error with which it would refuse
    /// them; only the device is opened
    Limits(Box<LimitsFlags>),
    /// List the devices that DOCA sees, the abilities of their engines, and the functions of the host that they
    /// represent
    Devices(Devices),
    /// Read every chunk of a `dir:` store and report what is damaged
    Scrub(Scrub),
    /// Write the manual pages into a directory, as packages have them
    #[command(hide = true)]
    Man {
        /// An existing directory
        directory: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Way {
    /// DOCA Comch and the socket
    Both,
    /// DOCA Comch: hosts over PCIe
    Comch,
    /// The socket: this machine only
    Socket,
}

#[derive(Debug, Args)]
pub(crate) struct RunFlags {
    /// File of `flag = value` lines, with the flags below without their dashes; a # at the start of a line or after a
    /// space begins a comment
    #[arg(long, env = "KVLANE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Store of the chunks: dir:PATH[?bytes=200G&...] or
    /// redis[s]://[USER:PASSWORD@]HOST[:PORT][,...][/DB][?ttl-s=N&...] or tiers:...; docs/stores.md and docs/tiers.md
    /// have all options
    #[arg(long, env = "KVLANE_STORE", value_name = "URL", hide_env_values = true)]
    store: store::Url,
    /// Exit with code 1 if the store is absent or refuses the login at start. Without this flag dpu-app starts all the
    /// same, answers with misses, and tries again
    #[arg(long, env = "KVLANE_REQUIRE_STORE")]
    require_store: bool,
    /// Share of each tier for the sessions of a namespace; may be repeated: LEAST is never taken from them, MOST never
    /// exceeded [default: 100%], both in bytes (8G) or as a part of the tier (25%). Sessions that name none of these
    /// namespaces belong to `default`
    #[arg(long, env = "KVLANE_TIER_QUOTA", value_name = "NAME=LEAST[..MOST]", value_delimiter = ',')]
    tier_quota: Vec<String>,
    /// Namespace whose chunks others never displace, up to the MOST of its quota; may be repeated
    #[arg(long, env = "KVLANE_TIER_PIN", value_name = "NAME", value_delimiter = ',')]
    tier_pin: Vec<String>,
    /// Ways by which hosts may attach
    #[arg(long, env = "KVLANE_ATTACH", value_name = "WAY", value_enum, default_value_t = Way::Both)]
    attach: Way,
    /// Name that hosts ask for by DOCA Comch
    #[arg(long, env = "KVLANE_COMCH_NAME", value_name = "NAME", default_value = mailbox::attach::SERVICE_NAME)]
    comch_name: String,
    /// Function of the host to serve by Comch: PCI address or interface of its representor; may be repeated [default:
    /// every physical function]
    #[arg(long, env = "KVLANE_REPRESENTOR", value_name = "NAME", value_delimiter = ',')]
    representor: Vec<String>,
    /// Unix socket that hosts on this machine attach to
    #[arg(long, env = "KVLANE_SOCKET", value_name = "PATH", default_value = "/run/kvlane/dpu-app.sock")]
    socket: PathBuf,
    /// Device, by PCI address or IB name [default: the first with inflate and DMA engines, or else the first with a DMA
    /// engine]
    #[arg(long, short, env = "KVLANE_DEVICE", value_name = "NAME")]
    device: Option<String>,
    /// Recipe for chunks whose host names none: lossless keeps every bit; q8, q6, q5, q4, q3, q4p and cachegen are
    /// lossy and smaller; each with +deflate, +lz4 or +raw
    #[arg(long, env = "KVLANE_RECIPE", value_name = "RECIPE", default_value = "lossless")]
    recipe: Recipe,
    /// Deflate level of the encoder, 1 (fast) to 12 (small)
    #[arg(long, env = "KVLANE_DEFLATE_LEVEL", value_name = "N", default_value_t = block::codec::DEFLATE_LEVEL_DEFAULT)]
    deflate_level: i32,
    /// Largest block, bytes of elements in host memory
    #[arg(long, env = "KVLANE_BLOCK_BYTES", value_name = "BYTES", default_value_t = defaults().block_bytes)]
    block_bytes: usize,
    /// Slots of the ring
    #[arg(long, env = "KVLANE_SLOTS", value_name = "N", default_value_t = defaults().slots)]
    slots: usize,
    /// Slots that stores may hold [default: half of the slots]
    #[arg(long, env = "KVLANE_STORE_SLOTS", value_name = "N")]
    store_slots: Option<usize>,
    /// Threads that read from the store
    #[arg(long, env = "KVLANE_FETCH_WORKERS", value_name = "N", default_value_t = defaults().fetch_workers)]
    fetch_workers: usize,
    /// Threads that dequantize
    #[arg(long, env = "KVLANE_DEQUANTIZE_WORKERS", value_name = "N", default_value_t = defaults().dequantize_workers)]
    dequantize_workers: usize,
    /// Threads that quantize, compress and write to the store
    #[arg(long, env = "KVLANE_ENCODE_WORKERS", value_name = "N", default_value_t = defaults().encode_workers)]
    encode_workers: usize,
    /// Cores of the fetch workers, given out in turn [default: any]
    #[arg(long, env = "KVLANE_FETCH_CPUS", value_name = "N,...", value_delimiter = ',')]
    fetch_cpus: Vec<usize>,
    /// Cores of the dequantize workers, given out in turn [default: any]
    #[arg(long, env = "KVLANE_DEQUANTIZE_CPUS", value_name = "N,...", value_delimiter = ',')]
    dequantize_cpus: Vec<usize>,
    /// Cores of the encode workers, given out in turn [default: any]
    #[arg(long, env = "KVLANE_ENCODE_CPUS", value_name = "N,...", value_delimiter = ',')]
    encode_cpus: Vec<usize>,
    /// Tasks in flight on the decompress engine [default: the slots]
    #[arg(long, env = "KVLANE_INFLATE_DEPTH", value_name = "N")]
    inflate_depth: Option<usize>,
    /// Transfers in flight on the DMA engine [default: a quarter of the slots, at least 4]
    #[arg(long, env = "KVLANE_DMA_DEPTH", value_name = "N")]
    dma_depth: Option<usize>,
    /// Hosts attached at the same time; one more place is for the card's operator, by the socket. A serving engine
    /// takes one for each tensor-parallel rank and one for its scheduler
    #[arg(long, env = "KVLANE_SESSIONS", value_name = "N", default_value_t = defaults().sessions)]
    sessions: usize,
    /// Let hosts that come by Comch drain, resume and stop this card, as its own operator may by the socket
    #[arg(long, env = "KVLANE_ALLOW_HOST_STOP")]
    allow_host_stop: bool,
    /// Chunks in progress at the same time [default: the slots]
    #[arg(long, env = "KVLANE_CHUNKS", value_name = "N")]
    chunks: Option<usize>,
    /// Read a chunk for each session that fetches it, even where several do at the same time and one read would serve
    /// them all
    #[arg(long, env = "KVLANE_NO_JOIN")]
    no_join: bool,
    /// Deadline of a request that names none
    #[arg(long, env = "KVLANE_DEADLINE_MS", value_name = "MS", default_value_t = 30_000)]
    deadline_ms: u64,
    /// Time after which a request is logged as slow, with the stage that it waited for longest (one that its deadline
    /// cuts always is); 0: never
    #[arg(long, env = "KVLANE_SLOW_MS", value_name = "MS", default_value_t = 2_000)]
    slow_ms: u64,
    /// Time for a host to finish its attach
    #[arg(long, env = "KVLANE_ATTACH_TIMEOUT_MS", value_name = "MS", default_value_t = 5_000)]
    attach_timeout_ms: u64,
    /// Serve /metrics (Prometheus), /healthcheck, /status and /config over HTTP: ADDR:PORT, or a port alone for
    /// loopback. Off by default. There is no password: other addresses than loopback are for trusted networks
    #[arg(long, env = "KVLANE_METRICS", value_name = "ADDR:PORT", value_parser = crate::metrics::address)]
    metrics: Option<SocketAddr>,
    /// Time for which a mailbox is polled after its last command, before it sleeps
    #[arg(long, env = "KVLANE_AWAKE_US", value_name = "US", default_value_t = 200)]
    awake_us: u64,
    /// Sleep of the engine thread while an engine has several operations queued; 0: wake for each completion
    #[arg(long, env = "KVLANE_MODERATION_US", value_name = "US", default_value_t = defaults().moderation.as_micros() as u64)]
    moderation_us: u64,
    /// Poll all the time: lowest latency, one core
    #[arg(long, env = "KVLANE_BUSY_POLL")]
    busy_poll: bool,
    /// Check codes in software even where the engine's CRC serves
    #[arg(long, env = "KVLANE_SOFTWARE_CRC")]
    software_crc: bool,
    /// Inflate in software where the device cannot
    #[arg(long, env = "KVLANE_ALLOW_SOFTWARE")]
    allow_software: bool,
    /// Level of the log: off, error, warn, info, debug or trace; RUST_LOG wins
    #[arg(long, env = "KVLANE_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub(super) log_level: log::LevelFilter,
    /// Read blocks back from the host's pages (and pages to be stored twice) and compare: off, sample (one of 64), all.
    /// PCIe has checksums of its own; docs/architecture.md, "From tile to pages", says what they leave open and what
    /// this costs
    #[arg(long, env = "KVLANE_VERIFY_DMA", value_name = "WHICH", default_value_t = Verify::Off)]
    verify_dma: Verify,
}

#[derive(Debug, Args)]
pub(crate) struct LimitsFlags {
    #[command(flatten)]
    pub(crate) run: RunFlags,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Devices {
    /// One JSON object instead of text
    #[arg(long)]
    pub(super) json: bool,
}

fn defaults() -> Config {
    Config::for_cores(std::thread::available_parallelism().map_or(1, usize::from))
}

impl RunFlags {
    pub(crate) fn config(&self) -> Result<Config, store::NamespaceError> {
        let derived = defaults().with_slots(self.slots);
        Ok(Config {
            attach: match self.attach {
                Way::Both => Attach::Both,
                Way::Comch => Attach::Comch,
                Way::Socket => Attach::Socket,
            },
            comch_name: self.comch_name.clone(),
            representors: self.representor.clone(),
            socket: self.socket.clone(),
            store: self.store.clone(),
            require_store: self.require_store,
            namespaces: store::Namespaces::new(
                self.tier_quota.iter().map(String::as_str),
                self.tier_pin.iter().map(String::as_str),
            )?,
            device: self.device.clone().map_or(doca::Selector::First, doca::Selector::Named),
            recipe: self.recipe,
            deflate_level: self.deflate_level,
            block_bytes: self.block_bytes,
            slots: self.slots,
            store_slots: self.store_slots.unwrap_or(derived.store_slots),
            fetch_workers: self.fetch_workers,
            dequantize_workers: self.dequantize_workers,
            encode_workers: self.encode_workers,
            fetch_cpus: self.fetch_cpus.clone(),
            dequantize_cpus: self.dequantize_cpus.clone(),
            encode_cpus: self.encode_cpus.clone(),
            inflate_depth: self.inflate_depth.unwrap_or(derived.inflate_depth),
            dma_depth: self.dma_depth.unwrap_or(derived.dma_depth),
            sessions: self.sessions,
            allow_host_stop: self.allow_host_stop,
            chunks: self.chunks.unwrap_or(derived.chunks),
            join: !self.no_join,
            deadline: Duration::from_millis(self.deadline_ms).into(),
            slow: (self.slow_ms > 0).then_some(Duration::from_millis(self.slow_ms)),
            attach_timeout: Duration::from_millis(self.attach_timeout_ms).into(),
            metrics: self.metrics,
            awake: Duration::from_micros(self.awake_us),
            moderation: Duration::from_micros(self.moderation_us),
            busy_poll: self.busy_poll,
            software_crc: self.software_crc,
            allow_software: self.allow_software,
            verify_dma: self.verify_dma,
            supervisor: None,
            log_level: std::env::var_os("RUST_LOG").is_none().then_some(self.log_level),
            reload: Reload::default(),
        })
    }
}
