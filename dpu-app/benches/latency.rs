//! `cargo bench -p dpu-app --bench latency -- [--quick]`
//!
//! From a command posted to its completion seen, by the mailbox of a real dpu-app in a process of its own: an empty
//! command, a look-up, and fetches of K and V of one layer of a chunk (two blocks of 512 KiB of bf16), of one chunk and
//! of 32 chunks of an 8B-class model. **Busy**: the card polls (`--busy-poll`), the host spins. **Asleep**: both sides
//! sleep before each command, so that it takes a doorbell each way. Beside it the least that two processes can do: 64
//! bytes there and back through a Unix socket, spinning and sleeping. With two CPUs or more, empty commands and the
//! socket have the host on CPU 0 and its peer on CPU 1; fetches have all CPUs.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bench::{Plot, PlotKind, Report, Sample, Series, Table};
use block::ChunkKey;
use host_ctl::{Client, Completion, Options};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use rig::{CHUNK_TOKENS, Card, Fetching, LAYERS, Prefix, Setup, answered};

mod rig;

const ECHO: &str = "KVLANE_BENCH_ECHO";
const WAIT: Duration = Duration::from_secs(60);
/// Longer than the card stays awake.
const NAP: Duration = Duration::from_millis(1);
/// Longer than any answer takes: the host looks at the page until then.
const SPIN: Duration = Duration::from_secs(1);
const MESSAGE: usize = 64;
const CHUNKS: usize = 32;
/// Fewer say nothing about one in a thousand.
const RARE: usize = 2000;

fn main() {
    if let Ok(way) = std::env::var(ECHO) {
        return echo(way == "spin");
    }
    let quick = std::env::args().any(|word| word == "--quick");
    let rounds = if quick { 50 } else { 10_000 };
    let command = "cargo bench -p dpu-app --bench latency";
    let mut report = Report::new("latency", "Latency: command posted to completion seen", command);
    report.notes.push(
        "Busy: the card polls and the host spins. Asleep: both sleep before each command, and a doorbell goes each way \
         (Unix socket as the way to the card). Empty commands and the socket's ping-pong: host on CPU 0, peer on CPU 1; fetches: \
         all CPUs, `dir:` store in the page cache. Inflating is software here: `q8+raw` shows a fetch without it."
            .into(),
    );
    let mut bars = Vec::new();
    report.tables.push(empty(rounds, &mut bars));
    report.tables.push(fetches(quick));
    report.plots.push(Plot {
        name: "latency-empty".into(),
        title: "64 bytes there and back".into(),
        x: String::new(),
        y: "us".into(),
        log_x: false,
        log_y: true,
        kind: PlotKind::Bars,
        series: bars,
    });
    report.publish().expect("KVLANE_BENCH_OUT is a directory");
}

/// p50, p99 and p99.9 in units of `unit` us.
fn cells(sample: &Sample, unit: f64) -> [String; 3] {
    let at = |rank: f64| format!("{:.2}", sample.quantile(rank) / unit);
    [at(0.5), at(0.99), if sample.len() < RARE { "-".into() } else { at(0.999) }]
}

/// Pings, look-ups, and the socket, in turn within one run.
fn empty(rounds: usize, bars: &mut Vec<Series>) -> Table {
    let two = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
    let dir = std::env::temp_dir().join(format!("kvlane-bench-latency-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("the working directory");
    let store = format!("dir:{}?sync=never", dir.join("store").display());
    let cpus = if two { "1" } else { "" };
    let busy = Card::start_as(&Setup { flags: &["--busy-poll"], cpus, ..Setup::default() }, &store, "q5");
    pin(two.then_some(0));
    let spinning = Options { spin: SPIN, ..busy.options().clone() };
    let mut client = Client::attach(&spinning, None).expect("it attached before");
    let ping_busy = times(rounds, Duration::ZERO, || answered(&mut client, Client::post_ping));
    let keys = vec![ChunkKey::new([7; 32]); CHUNKS];
    let lookup_busy = times(rounds, Duration::ZERO, || answered(&mut client, |client| client.post_lookup(&keys)));
    client.close(WAIT).expect("nothing is in flight");
    drop(busy);
    let asleep = Card::start_as(&Setup { socket: Some(dir.join("card.sock")), cpus, ..Setup::default() }, &store, "q5");
    let mut client = Client::attach(asleep.options(), None).expect("it attached before");
    let ping_asleep = times(rounds / 5, NAP, || answered(&mut client, Client::post_ping));
    client.close(WAIT).expect("nothing is in flight");
    drop(asleep);
    let (socket_spin, socket_sleep) =
        (Echo::start(true, cpus).times(rounds, Duration::ZERO), Echo::start(false, cpus).times(rounds / 5, NAP));
    pin(None);
    let _ = std::fs::remove_dir_all(&dir);

    let mut table = Table::new("Empty commands, us", &["what", "p50", "p99", "p99.9"]);
    let rows = [
        ("ping, busy", ping_busy),
        ("look-up of 32 keys, busy", lookup_busy),
        ("ping, both asleep", ping_asleep),
        ("Unix socket, both spin", socket_spin),
        ("Unix socket, both asleep", socket_sleep),
    ];
    let labels: Vec<String> = rows.iter().map(|(name, _)| String::from(*name)).collect();
    for (name, rank) in [("p50", 0.5), ("p99", 0.99)] {
        let points = rows.iter().enumerate().map(|(at, (_, sample))| (at as f64, sample.quantile(rank))).collect();
        bars.push(Series { name: name.into(), points, labels: labels.clone() });
    }
    for (name, sample) in &rows {
        let [p50, p99, rare] = cells(sample, 1.0);
        table.row(&[name, &p50, &p99, &rare]);
    }
    table
}

/// Fetches of a little, of a chunk, and of a prefix.
fn fetches(quick: bool) -> Table {
    let dir = std::env::temp_dir().join(format!("kvlane-bench-latency-{}", std::process::id()));
    let mut table = Table::new("Fetches, ms", &["recipe", "what", "bf16", "fetches", "card", "p50", "p99", "p99.9"]);
    let sizes: [(&str, usize, usize, usize); 3] = [
        ("K and V of one layer", 1, 1, if quick { 20 } else { 2000 }),
        ("one chunk of 32 layers", LAYERS, 1, if quick { 3 } else { 200 }),
        ("32 chunks of 32 layers", LAYERS, if quick { 2 } else { CHUNKS }, if quick { 2 } else { 12 }),
    ];
    for recipe in ["q8+raw", "q5"] {
        for (name, layers, chunks, rounds) in sizes {
            let prefix = Prefix::of(&dir, layers, chunks * CHUNK_TOKENS);
            for way in ["busy", "asleep"] {
                let flags: &[&str] = if way == "busy" { &["--busy-poll"] } else { &[] };
                let store = format!("dir:{}?sync=never", dir.join(format!("store-{layers}-{recipe}")).display());
                let mut card = Card::start_as(&Setup { flags, ..Setup::default() }, &store, recipe);
                card.store(&prefix);
                let sample = fetch(&card, &prefix, rounds, way == "busy");
                let [p50, p99, rare] = cells(&sample, 1e3);
                let mib = format!("{} MiB", layers * chunks);
                table.row(&[&recipe, &name, &mib, &rounds, &way, &p50, &p99, &rare]);
            }
        }
    }
    let _ = std::fs::remove_dir_all(&dir);
    table.note = "The whole of a fetch: command, look-up, reading, inflating, dequantizing, DMA, completion.".into();
    table
}

fn fetch(card: &Card, prefix: &Prefix, rounds: usize, spin: bool) -> Sample {
    let looks = if spin { SPIN } else { card.options().spin };
    let mut fetching = Fetching::open(card, prefix, prefix.memory(), looks);
    (0..2).for_each(|_| drop(fetching.once()));
    let sample = times(rounds, if spin { Duration::ZERO } else { NAP }, || fetching.once());
    fetching.close();
    sample
}

/// us of each round after a tenth of them for warming up.
fn times(rounds: usize, nap: Duration, mut work: impl FnMut() -> Completion) -> Sample {
    (0..rounds / 10).for_each(|_| drop(work()));
    let mut time = || {
        std::thread::sleep(nap);
        work().elapsed.as_secs_f64() * 1e6
    };
    (0..rounds).map(|_| time()).collect()
}

fn pin(cpu: Option<usize>) {
    let mut set = CpuSet::new();
    match cpu {
        Some(cpu) => set.set(cpu).expect("a CPU number"),
        None => (0..CpuSet::count()).for_each(|cpu| set.set(cpu).expect("a CPU number")),
    }
    sched_setaffinity(Pid::from_raw(0), &set).expect("this thread's own");
}

/// The other end of a socket, in a process of its own.
struct Echo {
    process: Child,
    stream: UnixStream,
    spin: bool,
}

impl Echo {
    fn start(spin: bool, cpus: &str) -> Self {
        let (stream, other) = UnixStream::pair().expect("a socket pair");
        stream.set_nonblocking(true).expect("a flag");
        let program = std::env::current_exe().expect("a path");
        let mut command = Command::new(if cpus.is_empty() { program.as_os_str() } else { "taskset".as_ref() });
        if !cpus.is_empty() {
            command.args(["--cpu-list", cpus]).arg(&program);
        }
        let process = command
            .env(ECHO, if spin { "spin" } else { "sleep" })
            .stdin(Stdio::from(OwnedFd::from(other)))
            .spawn()
            .expect("this program again");
        Self { process, stream, spin }
    }

    fn times(mut self, rounds: usize, nap: Duration) -> Sample {
        let mut once = || {
            std::thread::sleep(nap);
            let since = Instant::now();
            self.stream.write_all(&[1; MESSAGE]).expect("room in the socket");
            receive(&mut self.stream, self.spin);
            since.elapsed().as_secs_f64() * 1e6
        };
        let warm_up = rounds / 10;
        (0..warm_up + rounds).map(|_| once()).skip(warm_up).collect()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        let _ = self.process.wait();
    }
}

/// Takes one message; false at the end.
fn receive(stream: &mut UnixStream, spin: bool) -> bool {
    let mut message = [0; MESSAGE];
    loop {
        match stream.read(&mut message) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(error) if error.kind() != ErrorKind::WouldBlock => return false,
            Err(_) if spin => std::hint::spin_loop(),
            Err(_) => drop(poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)),
        }
    }
}

fn echo(spin: bool) {
    let input = std::io::stdin().as_fd().try_clone_to_owned().expect("the socket");
    let mut stream = UnixStream::from(input);
    stream.set_nonblocking(true).expect("a flag");
    while receive(&mut stream, spin) {
        stream.write_all(&[2; MESSAGE]).expect("room in the socket");
    }
}
