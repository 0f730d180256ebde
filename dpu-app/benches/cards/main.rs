//! `scripts/bench-cards.sh`, which runs `cargo bench -p dpu-app --bench cards -- --redis URL --spaces A,B,C,D [--link
//! GBIT] [--recipe R] [--requests N] [--runs N] [--dir PATH] [--quick]`
//!
//! Four cards that share one Redis over one link of limited bandwidth, first with nothing in front of it, then each
//! with its own tiers: restored bytes a second of all of them together, over the same multi-turn trace
//! (`study::tiers`'s synthetic chats), conversations routed by their system prompt. Each card is a real dpu-app with a
//! host of its own, both in a network namespace of their own (worker.rs): this process says when, and adds up.
//!
//! All chunks are in Redis before the clock starts, and what a request asks for is what somebody has computed before it
//! in the trace. So both variants restore the same bytes; stores are left out, as they are the same for both. The first
//! two thirds of the trace fill the tiers, from empty, and are measured as such; the tiers then come to rest, and the
//! last third is measured.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use bench::{Plot, PlotKind, Report, Sample, Series, Table};
use block::ElementType;
use serde_json::Value;
use work::{Work, assigned};

#[path = "../rig/mod.rs"]
mod rig;
mod work;
mod worker;

/// One chunk is 1 MiB of bf16: a thirty-second of an 8B-class model's, so that a trace has thousands of them.
const LAYERS: usize = 8;
const CHUNK_TOKENS: u16 = 32;
const SEED: u64 = 7;
/// Shares of the trace's different bytes that one card's tiers hold.
const DRAM_SHARE: f64 = 1.0 / 16.0;
const DISK_SHARE: f64 = 1.0 / 4.0;

struct Arguments {
    redis: String,
    spaces: Vec<String>,
    link: Option<f64>,
    recipe: String,
    requests: usize,
    runs: usize,
    dir: PathBuf,
}

fn geometry() -> block::Geometry {
    block::Geometry::new(LAYERS, rig::HEADS, rig::HEAD_SIZE, CHUNK_TOKENS.into(), ElementType::Bf16)
        .expect("a geometry")
}

fn main() {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "worker") {
        return worker::run(&words.split_off(1));
    }
    let arguments = parse(words.into_iter());
    let work = Work::new(arguments.requests, SEED);
    let of_wire = fill(&arguments, &work);
    let tiers = |card: usize| {
        let [dram, disk] = [DRAM_SHARE, DISK_SHARE].map(|share| (share * of_wire) as u64);
        let dir = arguments.dir.join(format!("tier-{card}"));
        // What an earlier run left would be a warm disk.
        let _ = std::fs::remove_dir_all(&dir);
        format!("tiers:dram={dram},dir:{}={disk},{}", dir.display(), arguments.redis)
    };
    let mut variants = [Variant::new("one Redis", false), Variant::new("own T0 and T1 before it", true)];
    for _ in 0..arguments.runs {
        for variant in &mut variants {
            let urls: Vec<String> = (0..arguments.spaces.len())
                .map(|card| if variant.tiered { tiers(card) } else { arguments.redis.clone() })
                .collect();
            variant.run(&arguments, &work, &urls);
        }
    }
    report(&arguments, &work, of_wire, &variants).publish().expect("KVLANE_BENCH_OUT is a directory");
}

fn parse(mut words: impl Iterator<Item = String>) -> Arguments {
    let mut arguments = Arguments {
        redis: String::new(),
        spaces: Vec::new(),
        link: None,
        recipe: String::from("q8+raw"),
        requests: 900,
        runs: 3,
        dir: std::env::temp_dir().join("kvlane-bench-cards"),
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
        match word.as_str() {
            "--redis" => arguments.redis = value(),
            "--spaces" => arguments.spaces = value().split(',').map(String::from).collect(),
            "--link" => arguments.link = Some(value().parse().expect("--link GBIT")),
            "--recipe" => arguments.recipe = value(),
            "--requests" => arguments.requests = value().parse().expect("--requests N"),
            "--runs" => arguments.runs = value().parse().expect("--runs N"),
            "--dir" => arguments.dir = value().into(),
            "--quick" => (arguments.requests, arguments.runs) = (60, 1),
            // Cargo's own.
            "--bench" => {}
            other => panic!("{other}: see the head of benches/cards/main.rs"),
        }
    }
    assert!(!arguments.redis.is_empty() && !arguments.spaces.is_empty(), "run scripts/bench-cards.sh");
    std::fs::create_dir_all(&arguments.dir).expect("the working directory");
    arguments
}

/// A card and its host, in a process and a namespace of their own.
struct Worker {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    fn start(arguments: &Arguments, card: usize, url: &str) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &arguments.spaces[card]]);
        command.arg(std::env::current_exe().expect("this program has a path")).arg("worker");
        command.args([url, &arguments.recipe, &arguments.requests.to_string(), &card.to_string()]);
        command.arg(arguments.spaces.len().to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("ip netns exec");
        let orders = child.stdin.take().expect("piped");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        let mut worker = Self { child, orders, answers };
        worker.answer();
        worker
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").expect("it listens");
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("it answers");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("worker said {line:?}: {error}"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It ends its card when nobody listens any more.
        let _ = writeln!(self.orders, "end");
        let _ = self.child.wait();
    }
}

/// Puts all of the trace's chunks into Redis; their bytes there.
fn fill(arguments: &Arguments, work: &Work) -> f64 {
    let mut worker = Worker::start(arguments, 0, &arguments.redis);
    worker.order("fill");
    let stored = worker.answer();
    assert_eq!(stored["chunks"].as_u64(), Some(work.different.len() as u64));
    number(&stored, "bytes")
}

/// A way to serve the trace, and what came of it.
struct Variant {
    name: &'static str,
    tiered: bool,
    /// GB/s of the first two thirds, and of the last.
    filling: Sample,
    restored: Sample,
    carried: Sample,
    /// Shares of chunks from T0, T1, Redis.
    from: [Sample; 3],
    latency_p50: Sample,
    latency_p99: Sample,
}

impl Variant {
    fn new(name: &'static str, tiered: bool) -> Self {
        let empty = Sample::default;
        let from = [empty(), empty(), empty()];
        let [filling, restored, carried, latency_p50, latency_p99] = std::array::from_fn(|_| empty());
        Self { name, tiered, filling, restored, carried, from, latency_p50, latency_p99 }
    }

    fn run(&mut self, arguments: &Arguments, work: &Work, urls: &[String]) {
        let mut cards: Vec<Worker> =
            urls.iter().enumerate().map(|(card, url)| Worker::start(arguments, card, url)).collect();
        let since = Instant::now();
        let restored: f64 = all(&mut cards, "warm").iter().map(|answer| number(answer, "bytes")).sum();
        self.filling.push(restored / 1e9 / since.elapsed().as_secs_f64());
        if self.tiered {
            all(&mut cards, "settle");
        }
        let before = sent(&arguments.redis);
        let since = Instant::now();
        let answers = all(&mut cards, "measure");
        let seconds = since.elapsed().as_secs_f64();
        self.carried.push((sent(&arguments.redis) - before) * 8.0 / 1e9 / seconds);
        let sum = |name: &str| answers.iter().map(|answer| number(answer, name)).sum::<f64>();
        let chunks = sum("chunks");
        let expected: usize = work.requests[work.measured..].iter().map(|request| request.known).sum();
        assert_eq!(chunks as usize, expected, "every chunk that somebody had computed came");
        self.restored.push(sum("bytes") / 1e9 / seconds);
        let [dram, disk] = ["dram", "dir"].map(|tier| sum(tier) / chunks);
        for (sample, share) in self.from.iter_mut().zip([dram, disk, 1.0 - dram - disk]) {
            sample.push(share);
        }
        let latencies = answers.iter().flat_map(|answer| answer["ms"].as_array().expect("a list"));
        let latencies: Sample = latencies.map(|ms| ms.as_f64().expect("a number")).collect();
        self.latency_p50.push(latencies.median());
        self.latency_p99.push(latencies.quantile(0.99));
    }
}

/// Gives all cards one order, and waits for the last answer.
fn all(cards: &mut [Worker], order: &str) -> Vec<Value> {
    cards.iter_mut().for_each(|card| card.order(order));
    cards.iter_mut().map(Worker::answer).collect()
}

fn number(value: &Value, name: &str) -> f64 {
    value[name].as_f64().unwrap_or_else(|| panic!("no {name} in {value}"))
}

/// Bytes that the server has sent so far.
fn sent(url: &str) -> f64 {
    let client = redis::Client::open(url).and_then(|client| client.get_connection());
    let info: redis::InfoDict = redis::cmd("INFO").arg("stats").query(&mut client.expect("Redis")).expect("INFO");
    info.get::<u64>("total_net_output_bytes").expect("Redis counts what it sends") as f64
}

fn report(arguments: &Arguments, work: &Work, of_wire: f64, variants: &[Variant]) -> Report {
    let cards = arguments.spaces.len();
    let mut report =
        Report::new("tiers-cards", &format!("{cards} cards with tiers, and on one Redis"), "scripts/bench-cards.sh");
    let (chunks, different) = (work.known(), work.different.len());
    let load = (0..cards).map(|card| assigned(work, card, cards).map(|request| request.known).sum::<usize>());
    let load: Vec<String> = load.map(|chunks| chunks.to_string()).collect();
    report.notes.push(format!(
        "SYNTHETIC chats of several turns under shared system prompts of Zipf popularity ({} requests, seed {SEED}; {chunks} \
         chunks asked for, {different} different); conversations go to cards by their system prompt ({} chunks). A chunk \
         is 1 MiB of bf16, a thirty-second of an 8B-class model's; recipe {}, so that no inflating in software hides the \
         link. Each card has one request in flight. All chunks are in Redis before the clock starts, stores are left out, \
         the first two thirds of the trace fill the tiers from empty (\"filling\"), which then come to rest (30 s at most), the last is measured. T0 has a sixteenth and T1 a quarter of the {:.0} \
         MB that Redis holds.",
        arguments.requests,
        load.join(", "),
        arguments.recipe,
        of_wire / 1e6,
    ));
    if let Some(link) = arguments.link {
        report.notes.push(format!(
            "One link for all: what the server sends goes through `tc tbf` and carries {link} Gbit/s by iperf3. The \
             server, four cards and four hosts share this machine's processors."
        ));
    }
    let columns = [
        "cards",
        "filling GB/s",
        "x",
        "restored GB/s",
        "spread",
        "x",
        "from T0",
        "T1",
        "Redis",
        "link Gbit/s",
        "fetch p50 ms",
        "p99",
    ];
    let mut table = Table::new("Together, median of runs", &columns);
    let (base, base_filling) = (variants[0].restored.median(), variants[0].filling.median());
    for variant in variants {
        let percent = |share: f64| format!("{:.0} %", 100.0 * share);
        let [dram, disk, redis] = [0, 1, 2].map(|tier| percent(variant.from[tier].median()));
        table.row(&[
            &variant.name,
            &format!("{:.3}", variant.filling.median()),
            &format!("{:.2}", variant.filling.median() / base_filling),
            &format!("{:.3}", variant.restored.median()),
            &percent(variant.restored.spread()),
            &format!("{:.2}", variant.restored.median() / base),
            &dram,
            &disk,
            &redis,
            &format!("{:.3}", variant.carried.median()),
            &format!("{:.0}", variant.latency_p50.median()),
            &format!("{:.0}", variant.latency_p99.median()),
        ]);
    }
    table.note = String::from("Link: what the server sent while it was measured, promotions into tiers among it.");
    report.tables.push(table);
    report.plots.push(Plot {
        name: "tiers-cards".into(),
        title: format!("{cards} cards together"),
        x: "variant".into(),
        y: "restored GB/s".into(),
        log_x: false,
        log_y: false,
        kind: PlotKind::Bars,
        series: vec![Series {
            name: "restored".into(),
            points: variants.iter().enumerate().map(|(at, variant)| (at as f64, variant.restored.median())).collect(),
            labels: variants.iter().map(|variant| variant.name.into()).collect(),
        }],
    });
    report
}
