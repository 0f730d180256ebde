//! `cargo bench -p kvlane-plan --bench path -- [--tokens N] [--runs N] [--recipes q5,...] [--no-sweep] [--quick]`
//!
//! The whole path from a store into another process's pages, beside what bounds it: each stage alone (the same workers,
//! engines, scheduler and ring: `kvlane_plan::trial`), the stages one after the other, and the CPU time that they take.
//! The whole path is a real dpu-app in a process of its own. Then a sweep: workers, slots, block sizes, queue depths.
//!
//! MB/s are 10^6 bytes of restored bf16 a second, for stages too: what they read and write in their own form is in the
//! report `traffic`.

use std::path::PathBuf;
use std::time::Instant;

use bench::{Plot, PlotKind, Report, Roofline, Sample, Series, Table};
use kvlane_plan::trial::{Stage, Way};
use rig::{Card, Fetching, LAYERS, Prefix, Setup};

use crate::cpu::Cpu;
use crate::process::Bench;
use crate::shelf::Shelf;

mod cpu;
mod process;
#[path = "../../../../dpu-app/benches/rig/mod.rs"]
mod rig;
mod shelf;
mod sweep;

/// Setting of the emulator that keeps what its engines inflate, and copies it the next time.
const REMEMBER: &str = "remember=2000000000";

struct Arguments {
    tokens: usize,
    runs: usize,
    recipes: Vec<String>,
    sweep: bool,
    dir: PathBuf,
}

fn main() {
    rig::be_dpu_app_where_asked();
    if let Some(job) = process::job() {
        return process::serve(&job);
    }
    let arguments = parse();
    let prefix = Prefix::of(&arguments.dir, LAYERS, arguments.tokens);
    let mut report =
        Report::new("path", "The whole path, and what bounds it", "cargo bench -p kvlane-plan --bench path");
    report.notes.push(format!(
        "{} tokens of an 8B-class geometry (bf16, {:.0} MiB) from a `dir:` store in the page cache or a redis-server on loopback into \
         shuffled pages of another process; defaults of this machine. Alone: the same workers, engines, scheduler and ring, the \
         other stages left out. In turns: all blocks of the ring are fetched, then all inflated, then dequantized, then written: \
         nothing overlaps. Whole: a real dpu-app. Each in turn within one run, medians of {}; no thread is pinned, everything \
         shares the processors.",
        arguments.tokens,
        prefix.bytes() / f64::from(1 << 20),
        arguments.runs
    ));
    report.notes.push(format!(
        "**remembering**: MEASUREMENT ONLY, `DOCA_EMULATOR={REMEMBER}`: what the engines inflated before they only copy, checked \
         by CRC, so that the rest of the path is seen at a card's speed. What they do without is in the rows without the word."
    ));
    let mut tables = Tables::new();
    for shelf in [Some(Shelf::directory(&arguments.dir, "store")), Shelf::redis()] {
        let Some(shelf) = shelf else {
            report.notes.push(String::from("No redis-server here: those rows are left out."));
            continue;
        };
        for recipe in &arguments.recipes {
            for emulator in ["", REMEMBER] {
                // Nothing to remember.
                if emulator.is_empty() || !recipe.ends_with("+raw") {
                    let case = Case { shelf: &shelf, recipe, emulator };
                    let figures = case.measure(&prefix, arguments.runs);
                    tables.add(&case, &figures);
                    report.rooflines.push(figures.roofline(&case));
                    eprintln!("{}: done", case.name());
                }
            }
        }
    }
    tables.finish(&mut report);
    if arguments.sweep {
        sweep::sweep(&mut report, &prefix, &arguments.dir, arguments.runs.min(3));
    }
    drop(prefix);
    let _ = std::fs::remove_dir_all(&arguments.dir);
    report.publish().expect("KVLANE_BENCH_OUT is a directory");
}

fn parse() -> Arguments {
    let mut arguments = Arguments {
        tokens: 2048,
        runs: 5,
        recipes: ["q5", "q4p", "q8+raw", "lossless"].map(String::from).to_vec(),
        sweep: true,
        dir: std::env::temp_dir().join(format!("kvlane-bench-path-{}", std::process::id())),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
        match word.as_str() {
            "--tokens" => arguments.tokens = value().parse().expect("--tokens N"),
            "--runs" => arguments.runs = value().parse().expect("--runs N"),
            "--recipes" => arguments.recipes = value().split(',').map(String::from).collect(),
            "--no-sweep" => arguments.sweep = false,
            "--quick" => {
                arguments.tokens = 512;
                arguments.runs = 1;
                arguments.recipes = ["q5", "q8+raw"].map(String::from).to_vec();
            }
            // Cargo's own.
            "--bench" => {}
            other => panic!("{other}: see the head of benches/path/main.rs"),
        }
    }
    arguments
}

/// What is measured in one row.
struct Case<'a> {
    shelf: &'a Shelf,
    recipe: &'a str,
    emulator: &'a str,
}

impl Case<'_> {
    fn remembers(&self) -> &'static str {
        if self.emulator.is_empty() { "" } else { "remembering" }
    }

    fn name(&self) -> String {
        let name = format!("{}, {}", self.recipe, self.shelf.name());
        if self.emulator.is_empty() { name } else { format!("{name}, {}", self.remembers()) }
    }

    /// The stages that a block of this recipe goes through.
    fn stages(&self) -> Vec<Stage> {
        let all = Stage::ALL.into_iter();
        all.filter(|&stage| stage != Stage::Inflate || !self.recipe.ends_with("+raw")).collect()
    }

    fn measure(&self, prefix: &Prefix, runs: usize) -> Figures {
        let url = self.shelf.url();
        let setup = Setup { emulator: self.emulator, ..Setup::default() };
        let mut card = Card::start_as(&setup, &url, self.recipe);
        card.store(prefix);
        let mut fetching = Fetching::open(&card, prefix, prefix.memory(), card.options().spin);
        let mut bench = Bench::start(&self.shelf.twin(), self.recipe, prefix, self.emulator);
        let stages = self.stages();
        let mut figures = Figures::new(&stages);
        // Warm: pages of the host are there, and a remembering engine has seen all blocks.
        (0..2).for_each(|_| drop(fetching.once()));
        (0..2).for_each(|_| _ = bench.fetch(Way::Together));
        for _ in 0..runs {
            for alone in &mut figures.alone {
                let before = (Cpu::of(bench.pid()), self.shelf.cpu());
                let speed = bench.fetch(Way::Alone(alone.stage));
                let after = (Cpu::of(bench.pid()), self.shelf.cpu());
                let cpu = after.0.since(&before.0).kind(thread_of(alone.stage)) + after.1 - before.1;
                alone.speed.push(speed);
                alone.cpu.push(cpu / (prefix.bytes() / 1e9));
            }
            figures.in_turns.push(bench.fetch(Way::InTurns));
            figures.whole(&card, &mut fetching, prefix, self.shelf);
            figures.memcpy.push(memcpy_mb_s());
        }
        fetching.close();
        figures
    }
}

/// The kind of thread whose CPU time is a stage's own.
fn thread_of(stage: Stage) -> &'static str {
    ["fetch", "compress", "dequantize", "dma"][stage as usize]
}

/// A stage without the others.
struct Alone {
    stage: Stage,
    speed: Sample,
    /// CPU seconds for each GB restored, of its own threads and of the store's server.
    cpu: Sample,
}

struct Figures {
    alone: Vec<Alone>,
    in_turns: Sample,
    whole: Sample,
    /// Seconds a GB restored of the whole path, by kind of thread.
    cpu: [Sample; KINDS.len()],
    memcpy: Sample,
}

/// Threads of dpu-app by what they are to the path; the store's server and the host's process come last.
const KINDS: [&str; 7] = ["fetch", "compress", "dequantize", "dma", "engine", "server", "host"];

impl Figures {
    fn new(stages: &[Stage]) -> Self {
        let alone = |&stage: &Stage| Alone { stage, speed: Sample::default(), cpu: Sample::default() };
        Self {
            alone: stages.iter().map(alone).collect(),
            in_turns: Sample::default(),
            whole: Sample::default(),
            cpu: Default::default(),
            memcpy: Sample::default(),
        }
    }

    /// One fetch through the real thing.
    fn whole(&mut self, card: &Card, fetching: &mut Fetching, prefix: &Prefix, shelf: &Shelf) {
        let now = || (Cpu::of(card.pid()), shelf.cpu(), Cpu::of(std::process::id()).total());
        let before = now();
        let since = Instant::now();
        fetching.once();
        let seconds = since.elapsed().as_secs_f64();
        let after = now();
        let (card, gb) = (after.0.since(&before.0), prefix.bytes() / 1e9);
        for (kind, sample) in KINDS.iter().zip(&mut self.cpu) {
            let cpu = match *kind {
                "server" => after.1 - before.1,
                "host" => after.2 - before.2,
                // Whatever else runs there (Comch) belongs to nobody's stage.
                "engine" => {
                    card.total()
                        - ["fetch", "compress", "dequantize", "dma"].map(|kind| card.kind(kind)).iter().sum::<f64>()
                }
                kind => card.kind(kind),
            };
            sample.push(cpu / gb);
        }
        self.whole.push(prefix.bytes() / 1e6 / seconds);
    }

    fn slowest(&self) -> &Alone {
        self.alone.iter().min_by(|a, b| a.speed.median().total_cmp(&b.speed.median())).expect("two stages at least")
    }

    /// MB/s of processors that do nothing but what the stages do alone.
    fn processors(&self) -> f64 {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        1e3 * cores / self.alone.iter().map(|alone| alone.cpu.median()).sum::<f64>()
    }

    /// What overlap could gain at most: the sum of the stages' times over the slowest's.
    fn overlap(&self) -> f64 {
        self.alone.iter().map(|alone| 1.0 / alone.speed.median()).sum::<f64>() * self.slowest().speed.median()
    }

    fn roofline(&self, case: &Case<'_>) -> Roofline {
        let stage = |alone: &Alone| (String::from(alone.stage.name()), alone.speed.median());
        Roofline {
            name: case.name(),
            stages: self.alone.iter().map(stage).collect(),
            memcpy: self.memcpy.median(),
            processors: Some(self.processors()),
            whole: self.whole.median(),
        }
    }
}

/// One core, buffers beyond its caches, as many bytes as are restored.
fn memcpy_mb_s() -> f64 {
    const BYTES: usize = 64 << 20;
    let (from, mut to) = (vec![1_u8; BYTES], vec![0_u8; BYTES]);
    let mut copy = || {
        let since = Instant::now();
        to.copy_from_slice(&from);
        std::hint::black_box(&mut to);
        BYTES as f64 / 1e6 / since.elapsed().as_secs_f64()
    };
    (0..4).map(|_| copy()).collect::<Sample>().median()
}

/// The report's tables and plots, as rows come.
struct Tables {
    speeds: Table,
    cpu: Table,
    labels: Vec<String>,
    bars: [Vec<f64>; 3],
}

impl Tables {
    fn new() -> Self {
        let mut speeds = vec!["recipe", "store", "engines"];
        speeds.extend(Stage::ALL.map(Stage::name));
        speeds.extend(["whole path", "spread", "slowest", "share of it"]);
        speeds.extend(["in turns", "gain of overlap", "at most", "processors", "share of the bound"]);
        let mut cpu = vec!["recipe", "store", "engines"];
        let alone = Stage::ALL.map(|stage| format!("{} alone", stage.name()));
        cpu.extend(alone.iter().map(String::as_str));
        cpu.extend(["fetch", "inflate", "dequantize", "dma", "engine thread", "server", "host", "all"]);
        let mut speeds = Table::new("Stages alone, in turns, and the whole path: MB/s of restored bf16", &speeds);
        speeds.note = "Gain of overlap: the whole path over the stages in turns; at most: the sum of the stages' times alone over the \
                       slowest's, what stages that share nothing would gain. Processors: their number over the CPU time of all stages \
                       alone; the bound is the less of that and the slowest stage."
            .into();
        let mut cpu = Table::new("CPU time, ms for each GB restored", &cpu);
        cpu.note = "Alone: of the stage's own threads, and of the store's server with fetch. Then the whole path, by kind of thread; \
                    engines are software here. Engine thread: scheduling, mailbox, Comch."
            .into();
        Self { speeds, cpu, labels: Vec::new(), bars: Default::default() }
    }

    fn add(&mut self, case: &Case<'_>, figures: &Figures) {
        let mb_s = |sample: &Sample| format!("{:.0}", sample.median());
        let percent = |share: f64| format!("{:.0} %", 100.0 * share);
        let of_stage = |stage, cell: &dyn Fn(&Alone) -> String| {
            figures.alone.iter().find(|alone| alone.stage == stage).map_or(String::from("-"), cell)
        };
        let (slowest, whole) = (figures.slowest(), figures.whole.median());
        let bound = figures.processors().min(slowest.speed.median());
        let head = [case.recipe, case.shelf.name(), case.remembers()].map(String::from);
        let mut row = head.to_vec();
        row.extend(Stage::ALL.map(|stage| of_stage(stage, &|alone| mb_s(&alone.speed))));
        row.extend([mb_s(&figures.whole), percent(figures.whole.spread()), slowest.stage.name().into()]);
        row.extend([percent(whole / slowest.speed.median()), mb_s(&figures.in_turns)]);
        row.extend([whole / figures.in_turns.median(), figures.overlap()].map(|times| format!("{times:.2}")));
        row.extend([format!("{:.0}", figures.processors()), percent(whole / bound)]);
        self.speeds.rows.push(row);
        let ms = |sample: &Sample| format!("{:.0}", 1e3 * sample.median());
        let mut row = head.to_vec();
        row.extend(Stage::ALL.map(|stage| of_stage(stage, &|alone| ms(&alone.cpu))));
        row.extend(figures.cpu.iter().map(ms));
        row.push(format!("{:.0}", 1e3 * figures.cpu.iter().map(Sample::median).sum::<f64>()));
        self.cpu.rows.push(row);
        self.labels.push(case.name());
        let bars = [slowest.speed.median(), figures.processors(), whole];
        self.bars.iter_mut().zip(bars).for_each(|(bar, value)| bar.push(value));
    }

    fn finish(self, report: &mut Report) {
        report.tables.extend([self.speeds, self.cpu]);
        let names = ["slowest stage alone", "processors", "whole path"];
        let series = names.into_iter().zip(&self.bars).map(|(name, bars)| Series {
            name: name.into(),
            points: bars.iter().enumerate().map(|(at, &value)| (at as f64, value)).collect(),
            labels: self.labels.clone(),
        });
        report.plots.push(Plot {
            name: "path".into(),
            title: "The whole path beside what bounds it".into(),
            x: String::new(),
            y: "MB/s of restored bf16".into(),
            log_x: false,
            log_y: false,
            kind: PlotKind::Bars,
            series: series.collect(),
        });
    }
}
