//! `cargo bench -p dpu-app --bench link -- --store URL [--plain redis://HOST:PORT,...] [--link GBIT] [--gb N] [--runs
//! N] [--recipes q8,q5,...] [--dir PATH] [--title TEXT] [--quick]`
//!
//! How fast a prefix of an 8B-class model comes back from a store, and what that costs: the real dpu-app as a process
//! of its own, this process as the host. With `--plain`, the same stored values are also read by an ordinary client
//! (the redis crate, pipelines of HGET, two connections a node, into vectors that are dropped), in turn with the
//! fetches, so that one run shows what of the link and the server's speed the data plane gets. `--link` is what the
//! link carries, as somebody measured it (scripts/bench-links.sh does, with iperf3).
//!
//! Run once for each link, by scripts/bench-links.sh: the report `links` grows by a table each time.
//!
//! Medians of `--runs`. GB are 10^9 bytes; wire bytes are those of the stored values.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use bench::{Plot, PlotKind, Report, Sample, Series, Table};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use redis::{Client, Commands, Connection, Value};
use rig::{CHUNK_TOKENS, Card, HEAD_SIZE, HEADS, LAYERS, PAGE_TOKENS, Prefix, warm};

mod rig;

const CONNECTIONS_PER_NODE: usize = 2;
const PIPELINE: usize = 32;

/// Tokens of one GiB of bf16.
const GIB_TOKENS: usize = (1 << 30) / (2 * LAYERS * HEADS * HEAD_SIZE * 2);
const COLUMNS: [&str; 11] = [
    "recipe",
    "ratio",
    "restored MB/s",
    "spread",
    "wire Gbit/s",
    "of the link",
    "plain client Gbit/s",
    "of plain",
    "card CPU s / GB restored",
    "card CPU s / GB wire",
    "plain CPU s / GB wire",
];

struct Arguments {
    store: String,
    plain: Vec<String>,
    link: Option<f64>,
    tokens: usize,
    runs: usize,
    recipes: Vec<String>,
    dir: PathBuf,
    title: String,
}

fn main() {
    let arguments = parse();
    let prefix = Prefix::of(&arguments.dir, LAYERS, arguments.tokens);
    let mut report = Report::new("links", "Redis, and links of limited bandwidth", "scripts/bench-links.sh");
    let mut table = Table::new(
        &format!(
            "{}: {} tokens of bf16, {LAYERS} layers x {HEADS} heads x {HEAD_SIZE}, chunks of {CHUNK_TOKENS}, pages of {PAGE_TOKENS} shuffled",
            arguments.title, arguments.tokens
        ),
        &COLUMNS,
    );
    let mut lines = Vec::new();
    for recipe in &arguments.recipes {
        let restored = bench(recipe, &arguments, &prefix, &mut table);
        let points = arguments.link.map(|link| (link, restored)).into_iter().collect();
        lines.push(Series { name: recipe.clone(), points, labels: Vec::new() });
    }
    report.tables.push(table);
    if arguments.link.is_some() {
        report.plots.push(Plot {
            name: "links".into(),
            title: "Restored over links of limited bandwidth".into(),
            x: "what the link carries, Gbit/s".into(),
            y: "MB/s of restored bf16".into(),
            log_x: true,
            log_y: false,
            kind: PlotKind::Lines,
            series: lines,
        });
    }
    report.publish_behind().expect("KVLANE_BENCH_OUT is a directory");
}

fn parse() -> Arguments {
    let mut arguments = Arguments {
        store: String::new(),
        plain: Vec::new(),
        link: None,
        tokens: GIB_TOKENS,
        runs: 3,
        recipes: ["lossless", "q5", "q4", "q3", "q8+raw"].map(String::from).to_vec(),
        dir: std::env::temp_dir().join("kvlane-bench-link"),
        title: String::from("store"),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
        match word.as_str() {
            "--store" => arguments.store = value(),
            "--plain" => arguments.plain = value().split(',').map(String::from).collect(),
            "--link" => arguments.link = Some(value().parse().expect("--link GBIT")),
            "--gb" => arguments.tokens = value().parse::<usize>().expect("--gb N") * GIB_TOKENS,
            "--runs" => arguments.runs = value().parse().expect("--runs N"),
            "--recipes" => arguments.recipes = value().split(',').map(String::from).collect(),
            "--dir" => arguments.dir = value().into(),
            "--quick" => (arguments.tokens, arguments.runs) = (2 * CHUNK_TOKENS, 1),
            "--title" => arguments.title = value(),
            // Cargo's own.
            "--bench" => {}
            other => panic!("{other}: see the head of benches/link.rs"),
        }
    }
    assert!(!arguments.store.is_empty(), "--store is needed: see the head of benches/link.rs");
    arguments
}

/// One recipe: a row of the table; restored MB/s.
fn bench(recipe: &str, arguments: &Arguments, prefix: &Prefix, table: &mut Table) -> f64 {
    let before = Values::keys(&arguments.plain);
    let mut card = Card::start(&arguments.store, recipe);
    let stored = card.store(prefix);
    assert_eq!(stored.known, 0, "{recipe}: the store has it already: two recipes of one transform have the same keys");
    let values = Values::since(&arguments.plain, &before);
    let [mut restored, mut wire, mut of_restored, mut of_wire, mut plain, mut of_plain]: [Sample; 6] =
        Default::default();
    card.fetch(prefix, 1);
    for _ in 0..arguments.runs {
        let cpu = cpu_seconds(card.pid());
        let report = card.fetch(prefix, 2);
        let cpu = cpu_seconds(card.pid()) - cpu;
        let run = warm(&report);
        let (raw_gb, wire_gb) = (run.raw_bytes as f64 / 1e9, run.wire_bytes as f64 / 1e9);
        restored.push(run.raw_mb_s());
        wire.push(wire_gb * 8.0 / run.elapsed.as_secs_f64());
        of_restored.push(cpu / raw_gb / 2.0);
        of_wire.push(cpu / wire_gb / 2.0);
        if !arguments.plain.is_empty() {
            let reading = values.read();
            plain.push(reading.gigabytes * 8.0 / reading.elapsed.as_secs_f64());
            of_plain.push(reading.cpu / reading.gigabytes);
        }
    }
    let two = |sample: &Sample| match sample.is_empty() {
        true => String::from("-"),
        false => format!("{:.2}", sample.median()),
    };
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    let of = |whole: Option<f64>| whole.map_or(String::from("-"), |whole| percent(wire.median() / whole));
    table.row(&[
        &recipe,
        &format!("{:.2}", stored.amounts.ratio()),
        &format!("{:.0}", restored.median()),
        &percent(restored.spread()),
        &two(&wire),
        &of(arguments.link),
        &two(&plain),
        &of((!plain.is_empty()).then(|| plain.median())),
        &two(&of_restored),
        &two(&of_wire),
        &two(&of_plain),
    ]);
    restored.median()
}

/// User and system time of a process so far.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    // After the name in parentheses: state is field 3, utime and stime are 14 and 15, in hundredths of a second.
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("a name").split(' ').collect();
    let ticks = |field: usize| fields[field - 3].parse::<f64>().expect("a number");
    (ticks(14) + ticks(15)) / 100.0
}

/// A stored hash and its fields.
type Chunk = (Vec<u8>, Vec<Vec<u8>>);

/// Stored values by node, for the plain client.
struct Values {
    nodes: Vec<(String, Vec<Chunk>)>,
}

struct Reading {
    gigabytes: f64,
    elapsed: Duration,
    cpu: f64,
}

fn connect(node: &str) -> Connection {
    Client::open(node).and_then(|client| client.get_connection()).expect("the node of --plain answers")
}

impl Values {
    fn keys(nodes: &[String]) -> Vec<Vec<u8>> {
        nodes.iter().flat_map(|node| connect(node).keys::<_, Vec<Vec<u8>>>("kvlane*").expect("keys")).collect()
    }

    /// Those that were not there before, with their fields.
    fn since(nodes: &[String], before: &[Vec<u8>]) -> Self {
        let of = |node: &String| {
            let mut connection = connect(node);
            let mut keys: Vec<Vec<u8>> = connection.keys("kvlane*").expect("keys");
            keys.retain(|key| !before.contains(key));
            let chunks = keys.into_iter().map(|key| {
                let fields = connection.hkeys(&key).expect("a hash");
                (key, fields)
            });
            (node.clone(), chunks.collect())
        };
        Self { nodes: nodes.iter().map(of).collect() }
    }

    /// Reads all of them once.
    fn read(&self) -> Reading {
        let cpu = own_cpu_seconds();
        let since = Instant::now();
        let bytes: usize = thread::scope(|scope| {
            let readers: Vec<_> = self
                .nodes
                .iter()
                .flat_map(|(node, chunks)| {
                    chunks.chunks(chunks.len().div_ceil(CONNECTIONS_PER_NODE).max(1)).map(move |part| (node, part))
                })
                .map(|(node, part)| scope.spawn(move || read(node, part)))
                .collect();
            readers.into_iter().map(|reader| reader.join().expect("read")).sum()
        });
        Reading { gigabytes: bytes as f64 / 1e9, elapsed: since.elapsed(), cpu: own_cpu_seconds() - cpu }
    }
}

fn read(node: &str, chunks: &[Chunk]) -> usize {
    let mut connection = connect(node);
    let gets: Vec<_> = chunks.iter().flat_map(|(key, fields)| fields.iter().map(move |field| (key, field))).collect();
    let mut bytes = 0;
    for gets in gets.chunks(PIPELINE) {
        let mut pipeline = redis::pipe();
        for (key, field) in gets {
            pipeline.hget(*key, *field);
        }
        let values: Vec<Value> = pipeline.query(&mut connection).expect("values");
        bytes += values
            .iter()
            .map(|value| match value {
                Value::BulkString(bytes) => bytes.len(),
                other => panic!("a value was evicted or is of another type: {other:?}"),
            })
            .sum::<usize>();
    }
    bytes
}

fn own_cpu_seconds() -> f64 {
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("our own");
    seconds(usage.user_time()) + seconds(usage.system_time())
}
