//! Command line, environment and config file of `dpu-app`; flags win over environment, environment over file.

use std::ffi::OsString;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::LazyLock;
use std::time::Duration;

use block::Recipe;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use dpu_app::config::{Attach, Config};
use dpu_app::reload::Reload;
use dpu_app::{devices, notify};
use nix::sys::eventfd::{EfdFlags, EventFd};
use store::scrub;

use crate::forecast::{Calibrate, Simulate};

/// Version, build (the scripts set it: see scripts/build-word.sh) and what it was built for: `0.1.0 (DOCA SDK 2.10.0087)`,
/// or `0.1.0 (emulator)`.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let build = option_env!("KVLANE_BUILD").unwrap_or_default();
    format!("{}{build} ({})", env!("CARGO_PKG_VERSION"), doca::version::built_for())
});
const EXIT_RUNTIME: u8 = 1;
const EXIT_USAGE: u8 = 2;

/// Serves prefix KV to attached hosts through this card's engines.
#[derive(Debug, Parser)]
#[command(version = VERSION.as_str(), max_term_width = 120)]
#[command(after_help = "Exit codes: 0 ok, 1 runtime, 2 usage, 3 device.\n\
    Every flag of `run` has an environment variable KVLANE_<FLAG> and a line `flag = value` in the --config file.\n\
    Some defaults follow from the machine's cores: `dpu-app limits` prints those of this one.")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the data plane until SIGTERM, SIGINT or `host-ctl stop`
    Run(Box<Run>),
    /// Print every limit that `run` with these flags would have, and leave
    Limits(Box<Run>),
    /// List the devices that DOCA sees, what their engines can do, and the functions of the host that they stand for
    Devices(Devices),
    /// Read every chunk of a `dir:` store and report what is damaged
    Scrub(Scrub),
    /// Measure the stages on this machine, search the best configuration with the simulator, write it as a config file
    Calibrate(Box<Calibrate>),
    /// What a BlueField-3 would do by the model: the scheduler of `run` in virtual time
    Simulate(Simulate),
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
struct Run {
    /// File of `flag = value` lines, flags as below without the dashes; # starts a comment
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where chunks live: dir:PATH[?bytes=200G&...] or redis[s]://[USER:PASSWORD@]HOST[:PORT][,...][/DB][?ttl-s=N&...] or tiers:...; docs/stores.md and docs/tiers.md have all options
    #[arg(long, env = "KVLANE_STORE", value_name = "URL", hide_env_values = true)]
    store: store::Url,
    /// End with code 1 if the store is not there or does not take us at start. Without this dpu-app starts without it, answers
    /// misses, and tries again
    #[arg(long, env = "KVLANE_REQUIRE_STORE")]
    require_store: bool,
    /// What sessions of a namespace may hold of each tier, once or more: LEAST is never taken from them, MOST never
    /// exceeded [default: 100%], both bytes (8G) or parts of a tier (25%). Sessions that name no namespace of these are of `default`
    #[arg(long, env = "KVLANE_TIER_QUOTA", value_name = "NAME=LEAST[..MOST]", value_delimiter = ',')]
    tier_quota: Vec<String>,
    /// Namespace from which others take nothing that it holds, up to the MOST of its quota; once or more
    #[arg(long, env = "KVLANE_TIER_PIN", value_name = "NAME", value_delimiter = ',')]
    tier_pin: Vec<String>,
    /// How hosts may attach
    #[arg(long, env = "KVLANE_ATTACH", value_name = "WAY", value_enum, default_value_t = Way::Both)]
    attach: Way,
    /// Name that hosts ask for by DOCA Comch
    #[arg(long, env = "KVLANE_COMCH_NAME", value_name = "NAME", default_value = mailbox::attach::SERVICE_NAME)]
    comch_name: String,
    /// Function of the host to serve by Comch: PCI address or interface of its representor, once or more [default: every
    /// physical function]
    #[arg(long, env = "KVLANE_REPRESENTOR", value_name = "NAME", value_delimiter = ',')]
    representor: Vec<String>,
    /// Unix socket that hosts on this machine attach to
    #[arg(long, env = "KVLANE_SOCKET", value_name = "PATH", default_value = "/run/kvlane/dpu-app.sock")]
    socket: PathBuf,
    /// Device by PCI address or IB name; without it the first that can inflate and do DMA, else that can do DMA
    #[arg(long, short, env = "KVLANE_DEVICE", value_name = "NAME")]
    device: Option<String>,
    /// How chunks are stored when a host does not say: lossless, q8, q6, q5, q4, q3, q4p, cachegen, each with +deflate, +lz4 or +raw
    #[arg(long, env = "KVLANE_RECIPE", value_name = "RECIPE", default_value = "q5")]
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
    /// Hosts attached at the same time
    #[arg(long, env = "KVLANE_SESSIONS", value_name = "N", default_value_t = defaults().sessions)]
    sessions: usize,
    /// Chunks in progress at the same time [default: the slots]
    #[arg(long, env = "KVLANE_CHUNKS", value_name = "N")]
    chunks: Option<usize>,
    /// Deadline of a request that names none
    #[arg(long, env = "KVLANE_DEADLINE_MS", value_name = "MS", default_value_t = 30_000)]
    deadline_ms: u64,
    /// Time that a host has for its attach
    #[arg(long, env = "KVLANE_ATTACH_TIMEOUT_MS", value_name = "MS", default_value_t = 5_000)]
    attach_timeout_ms: u64,
    /// Serve /metrics (Prometheus), /healthcheck, /status and /config over HTTP: ADDR:PORT, or a port alone for loopback.
    /// Off by default. There is no password: other addresses than loopback are for trusted networks
    #[arg(long, env = "KVLANE_METRICS", value_name = "ADDR:PORT", value_parser = dpu_app::metrics::address)]
    metrics: Option<SocketAddr>,
    /// How long a mailbox is polled after its last command before it sleeps
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
    /// What is logged: off, error, warn, info, debug or trace; RUST_LOG wins
    #[arg(long, env = "KVLANE_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    log_level: log::LevelFilter,
}

#[derive(Debug, Args)]
struct Devices {
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Scrub {
    /// The store: dir:PATH
    store: String,
    /// Move damaged files to the store's quarantine (no dpu-app may be using it)
    #[arg(long)]
    repair: bool,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

fn defaults() -> Config {
    Config::for_cores(std::thread::available_parallelism().map_or(1, usize::from))
}

impl Run {
    fn config(&self) -> Result<Config, store::NamespaceError> {
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
            chunks: self.chunks.unwrap_or(derived.chunks),
            deadline: Duration::from_millis(self.deadline_ms).into(),
            attach_timeout: Duration::from_millis(self.attach_timeout_ms).into(),
            metrics: self.metrics,
            awake: Duration::from_micros(self.awake_us),
            moderation: Duration::from_micros(self.moderation_us),
            busy_poll: self.busy_poll,
            software_crc: self.software_crc,
            allow_software: self.allow_software,
            supervisor: None,
            log_level: std::env::var_os("RUST_LOG").is_none().then_some(self.log_level),
            reload: Reload::default(),
        })
    }
}

/// The command line with the lines of a `--config` file put in front of its flags, so that the flags win.
pub(crate) fn with_file(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = arguments.collect();
    let text = |index: usize| arguments.get(index).and_then(|argument| argument.to_str());
    let path = (0..arguments.len()).find_map(|index| match text(index)? {
        "--config" => text(index + 1).map(PathBuf::from),
        flag => flag.strip_prefix("--config=").map(PathBuf::from),
    });
    if let Some(lines) = path.and_then(|path| std::fs::read_to_string(path).ok()) {
        let named =
            |flag: &str| arguments.iter().any(|a| a.to_str().is_some_and(|a| a.split('=').next() == Some(flag)));
        let in_environment = |flag: &str| std::env::var_os(variable_of(flag)).is_some();
        let flags = lines.lines().filter_map(flag_of_line);
        let flags = flags.filter(|(flag, _)| !named(flag) && !in_environment(flag));
        let flags: Vec<OsString> =
            flags.flat_map(|(flag, value)| [Some(flag), value]).flatten().map(Into::into).collect();
        let at = arguments.len().min(2);
        arguments.splice(at..at, flags);
    }
    arguments
}

/// `--block-bytes` -> `KVLANE_BLOCK_BYTES`. What the environment says wins over a file, so its lines are left out.
fn variable_of(flag: &str) -> String {
    format!("KVLANE_{}", flag.trim_start_matches("--").replace('-', "_").to_uppercase())
}

/// `slots = 32` -> `--slots 32`; `busy-poll = true` -> `--busy-poll`.
fn flag_of_line(line: &str) -> Option<(String, Option<String>)> {
    let line = line.split('#').next()?.trim();
    let (name, value) = line.split_once('=')?;
    let (flag, value) = (format!("--{}", name.trim()), value.trim());
    match value {
        "true" => Some((flag, None)),
        "false" => None,
        value => Some((flag, Some(value.to_owned()))),
    }
}

pub(crate) fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments = match parse(arguments) {
        Ok(arguments) => arguments,
        Err(Complaint { error, text }) => {
            // Help is no complaint.
            let _ = if error.use_stderr() { std::io::stderr().write_all(text.as_bytes()) } else { error.print() };
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    // All of it passes the logger; what is logged is decided by the level, which SIGHUP may change.
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("trace")).format_target(false).init();
    if std::env::var_os("RUST_LOG").is_none() {
        log::set_max_level(match &arguments.command {
            Command::Run(run) => run.log_level,
            _ => log::LevelFilter::Info,
        });
    }
    match arguments.command {
        Command::Run(run) => run_data_plane(&run),
        Command::Limits(run) => match run.config() {
            Ok(config) => {
                config.limits().iter().for_each(|(name, value)| say!("{name}: {value}"));
                ExitCode::SUCCESS
            }
            Err(error) => fail(EXIT_USAGE, error),
        },
        Command::Devices(Devices { json }) => list_devices(json),
        Command::Scrub(scrub) => scrub_store(&scrub),
        Command::Calibrate(calibrate) => {
            calibrate.run().map_or_else(|error| fail(EXIT_RUNTIME, error), |()| ExitCode::SUCCESS)
        }
        Command::Simulate(simulate) => {
            simulate.run().map_or_else(|error| fail(EXIT_USAGE, error), |()| ExitCode::SUCCESS)
        }
        Command::Man { directory } => match clap_mangen::generate_to(Arguments::command(), &directory) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(EXIT_USAGE, format_args!("{}: {error}", directory.display())),
        },
    }
}

fn fail(code: u8, what: impl std::fmt::Display) -> ExitCode {
    eprintln!("dpu-app: {what}");
    ExitCode::from(code)
}

fn run_data_plane(run: &Run) -> ExitCode {
    if let Some(path) = run.config.as_ref().filter(|path| !path.is_file()) {
        return fail(EXIT_USAGE, format_args!("config file {}: not found", path.display()));
    }
    let mut config = match run.config() {
        Ok(config) => config,
        Err(error) => return fail(EXIT_USAGE, error),
    };
    config.supervisor = match notify::Target::from_environment() {
        Ok(target) => target,
        Err(what) => return fail(EXIT_USAGE, what),
    };
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let stop = match EventFd::from_value_and_flags(0, flags) {
        Ok(stop) => stop,
        Err(errno) => return fail(EXIT_RUNTIME, format_args!("eventfd: {}", errno.desc())),
    };
    if let Err(error) = heed_signals(&stop, &config.reload) {
        return fail(EXIT_RUNTIME, error);
    }
    announce_version();
    let ready = || match config.attach {
        Attach::Socket => log::info!("ready: hosts attach to {}", config.socket.display()),
        Attach::Comch => log::info!("ready: hosts attach by Comch `{}`", config.comch_name),
        Attach::Both => {
            log::info!("ready: hosts attach by Comch `{}` and to {}", config.comch_name, config.socket.display());
        }
    };
    match dpu_app::run(&config, &stop, ready) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error.exit_code(), error),
    }
}

/// Who runs here, and loudly if it is not a card.
fn announce_version() {
    let running = doca::version::running_with();
    log::info!("dpu-app {}, running with DOCA {running}", *VERSION);
    if doca::version::is_emulator() {
        log::warn!(
            "EMULATOR: there is no card, all engines run in software; a card needs a build with the feature `sdk`"
        );
    } else if !VERSION.ends_with(&format!(" {running})")) {
        log::warn!("built for another DOCA than it runs with: build again if anything is odd");
    }
}

/// A thread of its own waits for SIGTERM, SIGINT and SIGHUP, so that no handler runs in the data plane.
fn heed_signals(stop: &EventFd, reload: &Reload) -> Result<(), String> {
    use std::os::fd::AsFd;

    use nix::sys::signal::{SigSet, Signal};
    let mut signals = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().for_each(|signal| signals.add(signal));
    signals.thread_block().map_err(|errno| format!("sigmask: {}", errno.desc()))?;
    let stop = stop.as_fd().try_clone_to_owned().map_err(|error| format!("eventfd: {error}"))?;
    let reload = reload.clone();
    let wait = move || {
        let stop = std::fs::File::from(stop);
        while let Ok(signal) = signals.wait() {
            if signal == Signal::SIGHUP {
                read_again(&reload);
                continue;
            }
            log::info!("{signal}: stopping");
            let _ = std::io::Write::write(&mut &stop, &1_u64.to_ne_bytes());
        }
    };
    std::thread::Builder::new()
        .name(String::from("signals"))
        .spawn(wait)
        .map_err(|error| format!("thread: {error}"))?;
    Ok(())
}

/// Reads command line, environment and file again, and hands on what they say.
fn read_again(reload: &Reload) {
    log::info!("SIGHUP: reading the configuration again");
    let config = match parse(std::env::args_os()).map(|arguments| arguments.command) {
        Ok(Command::Run(run)) => run.config().map_err(|error| error.to_string()),
        Ok(_) => return,
        Err(complaint) => Err(complaint.text),
    };
    match config.and_then(|config| config.check().map(|()| config).map_err(|error| error.to_string())) {
        Ok(config) => reload.ask(config),
        Err(text) => log::error!("reload: {}: nothing was changed", text.trim_end().replace('\n', " ")),
    }
}

/// What is wrong with a command line: `text` says it without what may be a part of a password.
struct Complaint {
    error: clap::Error,
    text: String,
}

/// The arguments with those of the file.
fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Arguments, Complaint> {
    let arguments = with_file(arguments);
    Arguments::try_parse_from(&arguments).map_err(|error| {
        let texts = |texts: Vec<OsString>| -> Vec<String> {
            texts.iter().map(|text| text.to_string_lossy().into_owned()).collect()
        };
        let ours = std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("KVLANE_"));
        let environment = texts(ours.map(|(_, value)| value).collect());
        let text = store::scrub_secrets(&error.to_string(), &texts(arguments));
        Complaint { error, text: store::scrub_secrets(&text, &environment) }
    })
}

fn list_devices(json: bool) -> ExitCode {
    match devices::list() {
        Ok(list) if list.is_empty() => fail(3, "no device: is the driver loaded and the card in DPU mode?"),
        Ok(list) => {
            match json {
                true => say!("{}", devices::json(&list)),
                false => list.iter().for_each(|device| say!("{device}")),
            }
            ExitCode::SUCCESS
        }
        Err(error) => fail(3, format_args!("device: {error}")),
    }
}

fn scrub_store(scrub: &Scrub) -> ExitCode {
    let Some(path) = scrub.store.strip_prefix("dir:").map(|path| path.split('?').next().unwrap_or(path)) else {
        return fail(
            EXIT_USAGE,
            format_args!("{}: only dir:PATH stores can be scrubbed", store::Url::from(&*scrub.store)),
        );
    };
    let mode = if scrub.repair { scrub::Mode::Repair } else { scrub::Mode::Report };
    let mut findings = Vec::new();
    let report = scrub::run(Path::new(path), mode, &mut |event| {
        if let scrub::Event::Finding(finding) = event {
            match scrub.json {
                true => findings.push(finding.to_string()),
                false => say!("{finding}"),
            }
        }
    });
    let report = match report {
        Ok(report) => report,
        Err(error) => return fail(EXIT_USAGE, error),
    };
    if scrub.json {
        let numbers = [
            ("files", report.files),
            ("bytes", report.bytes),
            ("blocks", report.blocks),
            ("good", report.good),
            ("damaged", report.damaged),
            ("moved", report.moved),
            ("unreadable", report.unreadable),
            ("misnamed", report.misnamed),
            ("unfinished", report.unfinished),
            ("quarantined", report.quarantined),
        ];
        let numbers: Vec<_> = numbers.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        let findings: Vec<_> = findings.iter().map(|finding| format!("{finding:?}")).collect();
        say!("{{{},\"findings\":[{}]}}", numbers.join(","), findings.join(","));
    } else {
        say!(
            "{} files, {} blocks, {} bytes: {} good, {} damaged ({} moved), {} unreadable, {} misnamed",
            report.files,
            report.blocks,
            report.bytes,
            report.good,
            report.damaged,
            report.moved,
            report.unreadable,
            report.misnamed
        );
    }
    if report.damaged > report.moved || report.unreadable > 0 {
        ExitCode::from(EXIT_RUNTIME)
    } else {
        ExitCode::SUCCESS
    }
}
