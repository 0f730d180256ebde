//! `cargo bench -p dpu-app --bench attach -- [--rounds N] [--quick]`
//!
//! What the way to the card costs: a session opened and closed, without memory and with 64 regions, and the time of a
//! ping, over DOCA Comch and over the Unix socket. **Busy**: the card polls (`--busy-poll`) and the host spins, so no
//! doorbell is rung and the ways should not differ. **Asleep**: both sides sleep before each ping, so it takes a
//! doorbell each way. The real dpu-app runs as a process of its own; this process is the host.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use bench::{Report, Sample, Table};
use block::{ElementType, Geometry};
use host_ctl::{Arrangement, Client, Memory, Options, Route};

const REGIONS: usize = 64;
const WAIT: Duration = Duration::from_secs(10);
/// Longer than the card stays awake.
const NAP: Duration = Duration::from_millis(1);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let given = words.iter().position(|word| word == "--rounds").and_then(|at| words.get(at + 1));
    let usual = if words.iter().any(|word| word == "--quick") { 20 } else { 1000 };
    let rounds: usize = given.map_or(usual, |text| text.parse().expect("--rounds N"));
    let dir = std::env::temp_dir().join(format!("kvlane-bench-attach-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("the working directory");
    let mut report =
        Report::new("attach", "The ways to the card", "cargo bench -p dpu-app --bench attach -- --rounds 1000");
    report.notes.push(
        "A session is opened and closed; busy: the card polls and the host spins, no doorbell is rung; asleep: a doorbell each \
         way. The emulator's Comch is a Unix socket with a thread of its own on either side, which has to wake, too: this says \
         nothing of what a card's Comch costs."
            .into(),
    );
    let with_regions = format!("session with {REGIONS} regions");
    let columns = ["way", "session without memory", &with_regions, "ping, busy", "ping, asleep"];
    let mut table = Table::new("us, p50 / p99", &columns);
    for way in ["comch", "socket"] {
        let asleep = Card::start(&dir, way, &[]);
        let without = times(rounds, || asleep.open(None));
        let with = times((rounds / 4).max(1), || asleep.open(Some(memory())));
        let slow = pings(&asleep, rounds, Duration::ZERO, NAP);
        drop(asleep);
        let busy = Card::start(&dir, way, &["--busy-poll"]);
        let fast = pings(&busy, rounds * 10, Duration::from_secs(1), Duration::ZERO);
        table.row(&[&way, &show(&without), &show(&with), &show(&fast), &show(&slow)]);
    }
    let _ = std::fs::remove_dir_all(&dir);
    report.tables.push(table);
    report.publish().expect("KVLANE_BENCH_OUT is a directory");
}

struct Card {
    process: Child,
    options: Options,
}

impl Card {
    fn start(dir: &Path, way: &str, more: &[&str]) -> Card {
        let (name, socket) = (format!("bench-{}", std::process::id()), dir.join("card.sock"));
        let process = Command::new(env!("CARGO_BIN_EXE_dpu-app"))
            .args(["run", "--store", &format!("dir:{}", dir.join("store").display())])
            .args(["--attach", way, "--comch-name", &name, "--socket"])
            .arg(&socket)
            .args(more)
            .env("RUST_LOG", "error")
            .spawn()
            .expect("dpu-app starts");
        let route = if way == "comch" { Route::Comch { name } } else { Route::Socket(socket) };
        let card = Card { process, options: Options { route, ..Options::default() } };
        let until = Instant::now() + WAIT;
        while Client::attach(&card.options, None).is_err() {
            assert!(Instant::now() < until, "dpu-app does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        card
    }

    fn open(&self, memory: Option<Memory>) {
        let client = Client::attach(&self.options, memory).expect("it attached before");
        client.close(WAIT).expect("nothing is in flight");
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// 64 layers, each a region of its own, as serving engines allocate them.
fn memory() -> Memory {
    let geometry = Geometry::new(REGIONS, 2, 32, 64, ElementType::Bf16).expect("a geometry");
    let memory = Arrangement::Vllm.allocate(geometry, 16, 64).expect("room");
    assert_eq!(memory.regions.len(), REGIONS);
    memory
}

/// Microseconds.
fn times(rounds: usize, mut work: impl FnMut()) -> Sample {
    let mut time = || {
        let since = Instant::now();
        work();
        since.elapsed().as_secs_f64() * 1e6
    };
    (0..rounds).map(|_| time()).collect()
}

fn pings(card: &Card, rounds: usize, spin: Duration, nap: Duration) -> Sample {
    let mut client = Client::attach(&Options { spin, ..card.options.clone() }, None).expect("it attached before");
    let mut ping = || {
        std::thread::sleep(nap);
        let id = client.post_ping().expect("room");
        let completion = client.wait(id, WAIT).and_then(host_ctl::Completion::ok).expect("an answer");
        completion.elapsed.as_secs_f64() * 1e6
    };
    (0..rounds).map(|_| ping()).collect()
}

fn show(times: &Sample) -> String {
    format!("{:.0} / {:.0}", times.median(), times.quantile(0.99))
}
