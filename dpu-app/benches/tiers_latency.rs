//! `cargo bench -p dpu-app --bench tiers-latency -- [--quick] [--only TEXT]`
//!
//! How long a small hit takes in each tier: a fetch of K and V of one layer of one chunk (two blocks, the least that a
//! fetch can be), from the command posted to its completion seen, by a real dpu-app in a process of its own over a
//! Redis on loopback. **Alone**: the card polls, the host spins. **Beside** another session that fetches a chunk of 32
//! layers of an 8B-class model over and over from the same tier: nobody spins, since two spinners are all that two
//! cores can take.
//!
//! **Beside a link**: the same hit of T0 while the other session fetches from a Redis behind a link of 1 Gbit/s
//! (`tc tbf` on the loopback of a network namespace, which takes root), so that it waits for the network most of the
//! time.
//!
//! The emulator inflates in software, which no card does: every size is measured with Deflate, with an engine that
//! remembers what it inflated (`remember`: a copy instead), and with a recipe that compresses nothing. The differences
//! are Deflate's own time.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use bench::{Plot, PlotKind, Report, Sample, Series, Table};
use host_ctl::{CardStatus, Client, Options};
use nix::sched::{CloneFlags, unshare};
use nix::sys::eventfd::EventFd;
use rig::{CHUNK_TOKENS, Card, Fetching, HEADS, LAYERS, Prefix, Setup, answered};
use std::os::fd::AsFd;
use store::{Answer, Ask, Outcome};

mod rig;

const WAIT: Duration = Duration::from_secs(60);
const SPIN: Duration = Duration::from_secs(1);
/// Fewer say nothing about one in a thousand.
const RARE: usize = 2000;
/// Where a fetch of a card under load begins: anywhere in the other's.
const PAUSE: Duration = Duration::from_micros(700);

/// How blocks come out of the store: recipe, and what the emulator is told.
const WAYS: [(&str, &str, &str); 3] =
    [("q5", "q5", ""), ("q5, remembered", "q5", "remember=1000000000"), ("q8+raw", "q8+raw", "")];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tier {
    Dram,
    Disk,
    Remote,
}

impl Tier {
    const ALL: [Self; 3] = [Self::Dram, Self::Disk, Self::Remote];

    fn name(self) -> &'static str {
        match self {
            Self::Dram => "T0 dram",
            Self::Disk => "T1 dir, page cache",
            Self::Remote => "T2 redis, loopback",
        }
    }

    fn url(self, dir: &Path, server: &Server) -> String {
        match self {
            Self::Dram => format!("tiers:dram=256M,{}", server.url()),
            Self::Disk => format!("tiers:dir:{}=1G,{}", dir.display(), server.url()),
            Self::Remote => server.url(),
        }
    }
}

/// A redis-server on loopback, ended with this.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(dir: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|any| any.local_addr()).expect("a port").port();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--dir"])
            .arg(dir)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server: scripts/setup.sh --test installs one");
        let end = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < end, "redis-server does not answer");
            thread::sleep(Duration::from_millis(20));
        }
        Self { child, port }
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Run {
    dir: PathBuf,
    server: Server,
    quick: bool,
    only: String,
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let only = words.iter().position(|word| word == "--only").and_then(|at| words.get(at + 1)).cloned();
    let dir = std::env::temp_dir().join(format!("kvlane-bench-tiers-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("the working directory");
    let quick = words.iter().any(|word| word == "--quick");
    let run = Run { server: Server::start(&dir), dir, quick, only: only.unwrap_or_default() };
    let command = "cargo bench -p dpu-app --bench tiers-latency";
    let mut report = Report::new("tiers-latency", "Tiers: latency of a small hit", command);
    report.notes.push(
        "A fetch of K and V of one layer of one chunk: two blocks. Command posted to completion seen, all CPUs. Alone: the card \
         polls, the host spins. Beside: another session fetches a chunk of 32 layers (64 blocks of 512 KiB of bf16) over and \
         over, and everybody sleeps who waits. Inflating is software here: `remembered` has a copy instead, `q8+raw` nothing."
            .into(),
    );
    let heads: &[usize] = if quick { &[1] } else { &[1, HEADS] };
    for &heads in heads {
        let (table, plot) = hits(&run, heads);
        report.tables.push(table);
        report.plots.push(plot);
    }
    report.tables.push(beside_a_link(&run));
    report.tables.push(store_alone(&run));
    report.publish().expect("KVLANE_BENCH_OUT is a directory");
    let _ = std::fs::remove_dir_all(&run.dir);
}

fn hits(run: &Run, heads: usize) -> (Table, Plot) {
    let size = heads * 64;
    let title = format!("Hits of two blocks of {size} KiB of bf16, us");
    let mut table = Table::new(
        &title,
        &["tier", "recipe", "fetches", "alone p50", "p99", "p99.9", "beside: fetches", "p50", "p99", "p99.9"],
    );
    let (small, long) = (Prefix::shaped(&run.dir, 1, heads, CHUNK_TOKENS), Prefix::of(&run.dir, LAYERS, CHUNK_TOKENS));
    let mut series: Vec<Series> = Vec::new();
    for (name, recipe, emulator) in WAYS {
        let (mut labels, mut points) = (Vec::new(), Vec::new());
        for tier in Tier::ALL {
            if !format!("{name} {}", tier.name()).contains(&run.only) {
                continue;
            }
            let dir = run.dir.join(format!("tier-{heads}-{}", name.replace([' ', ',', '+'], "-")));
            let start = |flags: &'static [&'static str]| {
                let setup = Setup { flags, emulator, ..Setup::default() };
                let mut card = Card::start_as(&setup, &tier.url(&dir, &run.server), recipe);
                card.store(&small);
                card.store(&long);
                warm(&card, tier, &[&small, &long]);
                card
            };
            let card = start(&["--busy-poll"]);
            let alone = fetches(&card, &small, if run.quick { 100 } else { 5000 }, SPIN, Duration::ZERO);
            drop(card);
            let card = start(&[]);
            let spin = card.options().spin;
            let (beside, _) =
                beside(&card, &long, || fetches(&card, &small, if run.quick { 20 } else { 2000 }, spin, PAUSE));
            points.push((points.len() as f64, alone.quantile(0.5)));
            labels.push(tier.name().to_owned());
            let ([a50, a99, a999], [b50, b99, b999]) = (cells(&alone), cells(&beside));
            table.row(&[&tier.name(), &name, &alone.len(), &a50, &a99, &a999, &beside.len(), &b50, &b99, &b999]);
        }
        series.push(Series { name: name.into(), points, labels });
    }
    let plot = Plot {
        name: format!("tiers-latency-{size}"),
        title: format!("Two blocks of {size} KiB, alone, p50"),
        x: String::new(),
        y: "us".into(),
        log_x: false,
        log_y: true,
        kind: PlotKind::Bars,
        series,
    };
    (table, plot)
}

/// Hits of T0 while another session fetches what is in T2 alone, over a link.
fn beside_a_link(run: &Run) -> Table {
    let mut table = Table::new(
        "Hits in T0 beside a long fetch from T2 over 1 Gbit/s, us",
        &["bf16 of a block", "recipe", "fetches", "p50", "p99", "p99.9", "the long fetch, MB/s of bf16"],
    );
    // What a thread starts is in its network namespace.
    let in_namespace = || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|error| format!("no network namespace: {error}; it takes root"))?;
        for words in ["ip link set lo up mtu 1500", "tc qdisc add dev lo root tbf rate 1gbit burst 256kb latency 50ms"]
        {
            let mut words = words.split(' ');
            let status = Command::new(words.next().expect("a program")).args(words).status();
            status.ok().filter(ExitStatus::success).ok_or("ip and tc of iproute2 are needed")?;
        }
        let server = Server::start(&run.dir);
        for (heads, (name, recipe, emulator)) in [1, HEADS].into_iter().flat_map(|heads| WAYS.map(|way| (heads, way))) {
            if !format!("{name} link").contains(&run.only) {
                continue;
            }
            let (small, long) =
                (Prefix::shaped(&run.dir, 1, heads, CHUNK_TOKENS), Prefix::of(&run.dir, LAYERS, CHUNK_TOKENS));
            let setup = Setup { emulator, ..Setup::default() };
            // The long chunk is larger than the tier.
            let mut card = Card::start_as(&setup, &format!("tiers:dram=4M,{}", server.url()), recipe);
            card.store(&small);
            card.store(&long);
            warm(&card, Tier::Dram, &[&small]);
            let (spin, rounds) = (card.options().spin, if run.quick { 20 } else { 2000 });
            let (hits, speed) = beside(&card, &long, || fetches(&card, &small, rounds, spin, PAUSE));
            let [p50, p99, p999] = cells(&hits);
            table.row(&[&format!("{} KiB", heads * 64), &name, &hits.len(), &p50, &p99, &p999, &format!("{speed:.0}")]);
        }
        Ok::<(), String>(())
    };
    let outcome = thread::scope(|scope| scope.spawn(in_namespace).join().expect("it does not panic"));
    if let Err(why) = outcome {
        table.row(&[&why, &"", &"", &"", &"", &"", &""]);
    }
    table
}

/// p50, p99 and p99.9.
fn cells(sample: &Sample) -> [String; 3] {
    let at = |rank: f64| format!("{:.0}", sample.quantile(rank));
    [at(0.5), at(0.99), if sample.len() < RARE { "-".into() } else { at(0.999) }]
}

/// us of each fetch, after a tenth of them for warming up.
fn fetches(card: &Card, prefix: &Prefix, rounds: usize, spin: Duration, pause: Duration) -> Sample {
    let mut fetching = Fetching::open(card, prefix, prefix.memory(), spin);
    (0..rounds / 10 + 2).for_each(|_| drop(fetching.once()));
    let mut once = || {
        thread::sleep(pause);
        fetching.once().elapsed.as_secs_f64() * 1e6
    };
    let sample = (0..rounds).map(|_| once()).collect();
    fetching.close();
    sample
}

/// Does something while a session fetches a prefix over and over, with so many MB/s.
fn beside<T>(card: &Card, prefix: &Prefix, work: impl FnOnce() -> T) -> (T, f64) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut fetching = Fetching::open(card, prefix, prefix.memory(), card.options().spin);
            let (since, mut bytes) = (Instant::now(), 0.0);
            while !over.load(Relaxed) {
                fetching.once();
                bytes += prefix.bytes();
            }
            let speed = bytes / since.elapsed().as_secs_f64() / 1e6;
            fetching.close();
            speed
        });
        let done = work();
        over.store(true, Relaxed);
        (done, other.join().expect("the other session"))
    })
}

/// Fetches until the tier has all of it.
fn warm(card: &Card, tier: Tier, prefixes: &[&Prefix]) {
    if tier == Tier::Remote {
        return;
    }
    let mut control = Client::attach(&Options { recipe: None, ..card.options().clone() }, None).expect("room");
    let mut hits = || {
        let answer = answered(&mut control, Client::post_status).answer;
        CardStatus::parse(&answer).expect("a status").value()["tiers"][0]["hits"].as_u64().expect("a tier")
    };
    for prefix in prefixes {
        let mut fetching = Fetching::open(card, prefix, prefix.memory(), SPIN);
        let end = Instant::now() + WAIT;
        loop {
            let before = hits();
            fetching.once();
            if hits() > before {
                break;
            }
            assert!(Instant::now() < end, "it does not come into the tier");
            thread::sleep(Duration::from_millis(10));
        }
        fetching.close();
    }
}

/// What of a hit in T0 is the store's: no card, no engine, one thread.
fn store_alone(run: &Run) -> Table {
    let mut table = Table::new("A hit in T0, the store alone, ns", &["what", "p50", "p99"]);
    let prefix = Prefix::of(&run.dir, LAYERS, CHUNK_TOKENS);
    let bottom = format!("dir:{}?sync=never", run.dir.join("alone").display());
    let (key, blocks) = {
        let mut card = Card::start(&bottom, "q5");
        card.store(&prefix);
        (Fetching::open(&card, &prefix, prefix.memory(), SPIN).key(), 2 * LAYERS)
    };
    for lends in [true, false] {
        let url = format!("tiers:dram=256M,{bottom}");
        let config = dpu_app::Config { store: url.clone().into(), ..dpu_app::Config::for_cores(2) };
        let device = doca::Device::open(&doca::Selector::First).expect("the emulator");
        let limits = dpu_app::store_limits(&config);
        let (store, slab) = if lends {
            dpu_app::open_store(&config, &device).expect("it opens")
        } else {
            (store::open(&url, &limits).expect("it opens"), None)
        };
        let bell = EventFd::new().expect("an eventfd");
        let mut reader = store.reader(bell.as_fd()).expect("a reader");
        let mut region = doca::Arena::allocate(&device, config.slot_bytes().wire).expect("memory");
        let mut memory = region.carve(config.slot_bytes().wire);
        let mut manifest = vec![0; block::MANIFEST_BYTES_MAX];
        let (mut opens, mut reads) = (Sample::default(), Sample::default());
        let dram_hits = || {
            let mut hits = 0;
            store.tiers(false, &mut |tier| hits = tier.hits);
            hits
        };
        let (end, rounds) = (Instant::now() + WAIT, if run.quick { 20 } else { 200 });
        while opens.len() < rounds {
            let until = Instant::now() + WAIT;
            let before = dram_hits();
            let since = Instant::now();
            reader.begin(0, Ask::Open { seat: 0, key, position: None, anew: false, until });
            let Some(Answer { outcome: Outcome::Opened(Ok(bytes)), .. }) = reader.poll(&mut manifest) else {
                panic!("it is there")
            };
            let took = since.elapsed();
            if dram_hits() == before {
                assert!(Instant::now() < end, "it does not come into the tier");
                store.close(0);
                store.touch(0, None, &[key], false);
                thread::sleep(Duration::from_millis(50));
                continue;
            }
            opens.push(took.as_nanos() as f64);
            let lengths = block::Manifest::parse(&manifest[..bytes]).expect("a manifest").lengths().to_vec();
            for (index, &bytes) in lengths.iter().enumerate() {
                let (given, bytes) = (memory.take().expect("it came back"), bytes as usize);
                let since = Instant::now();
                reader.begin(0, Ask::Read { seat: 0, index, bytes, memory: given, until });
                match reader.poll(&mut manifest).expect("at once").outcome {
                    Outcome::Lies { memory: back, at } => {
                        drop(slab.as_ref().expect("it lends").lend(at, bytes));
                        memory = Some(back);
                    }
                    Outcome::Read { memory: back, result: Ok(()) } => memory = Some(back),
                    other => panic!("{other:?}"),
                }
                reads.push(since.elapsed().as_nanos() as f64);
            }
            store.close(0);
        }
        let kind = if lends { "lent and given back" } else { "copied" };
        let mut row = |what: String, sample: &Sample| {
            table.row(&[&what, &format!("{:.0}", sample.median()), &format!("{:.0}", sample.quantile(0.99))]);
        };
        if lends {
            row(format!("open a chunk of {blocks} blocks"), &opens);
        }
        row(format!("a block of 512 KiB of bf16, {kind}"), &reads);
    }
    table
}
