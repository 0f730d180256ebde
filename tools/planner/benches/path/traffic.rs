//! `cargo bench -p kvlane-plan --bench traffic -- [--recipes q5,...] [--quick]`
//!
//! Bytes that each stage of a fetch reads and writes for each byte that is restored: by dpu-app's own counters, by the
//! model (`Model::traffic`), and the least that would do. Then the same by valgrind's cachegrind, which counts what the
//! threads of a stage alone (`kvlane_plan::trial`) miss in a first-level cache of 32 KiB: blocks are far larger, so
//! that each line that a stage reads or writes is missed once. What the kernel copies it does not see: reading from the
//! store.

use std::path::{Path, PathBuf};
use std::process::Command;

use bench::{Report, Table};
use dpu_app::Ratio;
use host_ctl::StageDelta;
use kvlane_plan::models::{self, PRESETS};
use kvlane_plan::trial::{Stage, Way};
use process::Bench;
use rig::{CHUNK_TOKENS, Card, LAYERS, Prefix, seal};

mod process;
#[path = "../../../../dpu-app/benches/rig/mod.rs"]
mod rig;

const LINE_BYTES: f64 = 64.0;
/// Caches of the machine that the page's figures come from: what misses them goes to memory.
const CACHES: [&str; 2] = ["--D1=32768,8,64", "--LL=33554432,16,64"];

fn main() {
    rig::be_dpu_app_where_asked();
    if let Some(job) = process::job() {
        return process::serve(&job);
    }
    let quick = std::env::args().any(|word| word == "--quick");
    let named = std::env::args().skip_while(|word| word != "--recipes").nth(1);
    let recipes = named.unwrap_or_else(|| String::from(if quick { "q5" } else { "q5,q4p,q8+raw,lossless" }));
    let dir = std::env::temp_dir().join(format!("kvlane-bench-traffic-{}", std::process::id()));
    let prefix = Prefix::of(&dir, LAYERS, CHUNK_TOKENS);
    let title = "Memory traffic: bytes read and written for each restored byte";
    let mut report = Report::new("traffic", title, "cargo bench -p kvlane-plan --bench traffic");
    let mut counted = Table::new("By dpu-app's own counters", &COUNTED);
    counted.note = "Least: stored bytes are written once and read once, restored bytes are written once, and all that lies between \
                    stays in a cache. Model: what the simulator charges to the card's memory; with fetch it also counts what the network \
                    writes to the kernel's buffers, and not what DMA writes, which is the host's memory."
        .into();
    let mut checked = Table::new("By cachegrind: one stage alone, lines missed in L1 x 64 B", &CHECKED);
    checked.note = "Expected: the counters, a read of what is written where stores allocate their lines, and the emulator's two \
                    checksums over the codes, which a card's engine computes on the fly. Memory: lines that 32 MiB do not hold either."
        .into();
    for recipe in recipes.split(',') {
        let store = dir.join(format!("store-{recipe}"));
        let url = format!("dir:{}?sync=never", store.display());
        let stages = count(recipe, &url, &prefix, &mut counted);
        if has_valgrind() {
            check(recipe, &url, &prefix, &dir, &stages, &mut checked);
        }
        eprintln!("{recipe}: done");
    }
    if !has_valgrind() {
        checked.note = String::from("valgrind is not installed: nothing was checked.");
    }
    report.tables.extend([counted, checked]);
    drop(prefix);
    let _ = std::fs::remove_dir_all(&dir);
    report.publish().expect("KVLANE_BENCH_OUT is a directory");
}

const COUNTED: [&str; 8] = ["recipe", "", "fetch", "inflate", "dequantize", "write", "all", "least"];
const CHECKED: [&str; 8] =
    ["recipe", "stage", "counters: read", "counters: written", "L1 reads", "L1 writes", "of the counters", "memory"];

fn has_valgrind() -> bool {
    Command::new("valgrind").arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Read and written for each restored byte, by stage.
type Counted = [(f64, f64); Stage::ALL.len()];

fn count(recipe: &str, url: &str, prefix: &Prefix, table: &mut Table) -> Counted {
    let mut card = Card::start(url, recipe);
    card.store(prefix);
    let fetched = card.fetch(prefix, 1);
    let restored = prefix.bytes();
    let of = |delta: &StageDelta| (delta.bytes_in as f64 / restored, delta.bytes_out as f64 / restored);
    let stages =
        Stage::ALL.map(|stage| fetched.stages.iter().find(|delta| delta.name == stage.name()).map_or((0.0, 0.0), of));
    let cell = |bytes: f64| format!("{bytes:.3}");
    let mut row = |what: &str, of: &dyn Fn(usize) -> f64, least: f64| {
        let mut cells = vec![String::from(recipe), String::from(what)];
        cells.extend((0..stages.len()).map(|at| cell(of(at))));
        cells.push(cell((0..stages.len()).map(of).sum()));
        cells.push(if least > 0.0 { cell(least) } else { String::new() });
        table.rows.push(cells);
    };
    let stored = stages[0].1;
    row("read", &|at| stages[at].0, 0.0);
    row("written", &|at| stages[at].1, 0.0);
    row("both", &|at| stages[at].0 + stages[at].1, 2.0 * stored + 1.0);
    if let Some(model) = model(recipe, 1.0 / stored, &stages) {
        row("model", &|at| model[at], 0.0);
    }
    stages
}

/// The simulator's traffic with the ratios that were counted.
fn model(recipe: &str, ratio: f64, stages: &Counted) -> Option<[f64; 4]> {
    let known = Ratio::of(recipe)?;
    let ratio = Ratio { ratio, tile_per_codes: 1.0 / stages[Stage::Inflate as usize].1, ..*known };
    Some(models::card(&PRESETS[0], &ratio, 100.0, 40.0).traffic())
}

fn check(recipe: &str, url: &str, prefix: &Prefix, dir: &Path, counted: &Counted, table: &mut Table) {
    for stage in Stage::ALL {
        let (read, written) = counted[stage as usize];
        if stage == Stage::Fetch || read + written == 0.0 {
            continue;
        }
        let few = cachegrind(url, recipe, prefix, dir, stage, 1);
        let more = cachegrind(url, recipe, prefix, dir, stage, 3);
        let bytes = |name: &str| (more.event(name) - few.event(name)) * LINE_BYTES / 2.0 / prefix.bytes();
        let (reads, writes) = (bytes("D1mr"), bytes("D1mw"));
        let cell = |bytes: f64| format!("{bytes:.3}");
        let times = format!("{:.2}", (reads + writes) / (read + written));
        let memory = cell(bytes("DLmr") + bytes("DLmw"));
        let cells = [cell(read), cell(written), cell(reads), cell(writes), times, memory];
        table.rows.push([recipe, stage.name()].map(String::from).into_iter().chain(cells).collect());
    }
}

/// Totals of a run under cachegrind.
struct Totals {
    events: Vec<String>,
    counts: Vec<f64>,
}

impl Totals {
    fn event(&self, name: &str) -> f64 {
        let place = self.events.iter().position(|event| event == name).expect("--cache-sim=yes counts it");
        self.counts[place]
    }
}

fn cachegrind(url: &str, recipe: &str, prefix: &Prefix, dir: &Path, stage: Stage, times: usize) -> Totals {
    let out: PathBuf = dir.join("cachegrind.out");
    let mut command = Command::new("valgrind");
    command.args(["--quiet", "--tool=cachegrind", "--cache-sim=yes"]).args(CACHES);
    command.arg(format!("--cachegrind-out-file={}", out.display()));
    command.arg(std::env::current_exe().expect("this program"));
    let mut memory = prefix.memory();
    seal(&mut memory);
    let mut bench = Bench::start_as(&mut command, url, recipe, prefix, memory);
    (0..times).for_each(|_| _ = bench.fetch(Way::Alone(stage)));
    bench.finish();
    let text = std::fs::read_to_string(&out).expect("cachegrind writes it");
    let words = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a line of cachegrind");
        line.split_whitespace().map(String::from).collect::<Vec<_>>()
    };
    let counts = words("summary:").iter().map(|count| count.replace(',', "").parse().expect("a number")).collect();
    Totals { events: words("events:"), counts }
}
