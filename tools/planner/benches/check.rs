//! `cargo bench -p kvlane-plan --bench check -- [--quick]`
//!
//! The simulator beside what it simulates: a real dpu-app over the emulator with timing, engines slow enough that this
//! machine's software hides behind them (and `remember`, so that inflating costs a copy). Nothing is fitted: the rates
//! of the cores are those that `profile` measures here, the engines' are what the emulator was told.

use std::time::Duration;

use bench::{Report, Sample, Table};
use dpu_app::{Config, Ratio};
use kvlane_plan::profile::{self, MachineProfile};
use kvlane_plan::propose;
use kvlane_plan::simulate::{self, EngineModel, Model};
use rig::{Card, LAYERS, Prefix, Setup};

#[path = "../../../dpu-app/benches/rig/mod.rs"]
mod rig;

struct Case {
    recipe: &'static str,
    block_bytes: usize,
    slots: usize,
    /// Tasks in flight on either engine.
    depth: usize,
    gb_s: f64,
    task_us: f64,
    under_way: f64,
}

const BASE: Case =
    Case { recipe: "q5", block_bytes: 512 << 10, slots: 16, depth: 16, gb_s: 1.0, task_us: 20.0, under_way: 8.0 };
const CASES: [Case; 9] = [
    BASE,
    Case { block_bytes: 128 << 10, ..BASE },
    Case { block_bytes: 2 << 20, ..BASE },
    Case { block_bytes: 128 << 10, task_us: 100.0, ..BASE },
    Case { slots: 4, depth: 4, ..BASE },
    Case { slots: 8, depth: 8, gb_s: 0.5, ..BASE },
    Case { depth: 2, ..BASE },
    Case { depth: 1, under_way: 2.0, ..BASE },
    Case { recipe: "lossless", ..BASE },
];

fn main() {
    rig::be_dpu_app_where_asked();
    let quick = std::env::args().any(|word| word == "--quick");
    let (tokens, runs) = if quick { (1024, 1) } else { (2048, 5) };
    let cases = if quick { &CASES[..2] } else { &CASES[..] };
    let dir = std::env::temp_dir().join(format!("kvlane-bench-check-{}", std::process::id()));
    let prefix = Prefix::of(&dir, LAYERS, tokens);
    let mut report = Report::new("check", "The model beside the emulator", "cargo bench -p kvlane-plan --bench check");
    report.notes.push(String::from(
        "A prefix of an 8B-class model from a `dir:` store in the page cache, one request. Measured: dpu-app over the \
         emulator with `timing=1,remember=...`, median. Predicted: the simulator with the engines' figures as the emulator \
         has them and this machine's cores as `profile` measures them; no figure is fitted to the outcome.",
    ));
    let columns = [
        "recipe",
        "block KiB",
        "slots",
        "depth",
        "engine GB/s, us a task, under way",
        "measured MB/s",
        "spread",
        "predicted MB/s",
        "error",
    ];
    let mut table = Table::new("", &columns);
    let mut errors = Sample::default();
    for case in cases {
        let store = format!("dir:{}?sync=never", dir.join(format!("{}-{}", case.recipe, case.block_bytes)).display());
        let (measured, ratio) = measure(case, &store, &prefix, runs);
        let predicted = predict(case, ratio, &prefix, &dir);
        let error = predicted / measured.median() - 1.0;
        errors.push(error.abs());
        table.row(&[
            &case.recipe,
            &(case.block_bytes >> 10),
            &case.slots,
            &case.depth,
            &format!("{}, {}, {}", case.gb_s, case.task_us, case.under_way),
            &format!("{:.0}", measured.median()),
            &format!("{:.0} %", 100.0 * measured.spread()),
            &format!("{predicted:.0}"),
            &format!("{:+.0} %", 100.0 * error),
        ]);
    }
    let (median, most) = (100.0 * errors.median(), 100.0 * errors.quantile(1.0));
    table.note = format!("Error without its sign: median {median:.0} %, at most {most:.0} %.");
    report.tables.push(table);
    let _ = std::fs::remove_dir_all(&dir);
    report.publish().expect("KVLANE_BENCH_OUT is a directory");
}

/// MB/s of restored bytes, and the ratio of the stored ones.
fn measure(case: &Case, store: &str, prefix: &Prefix, runs: usize) -> (Sample, f64) {
    let emulator = format!(
        "timing=1,remember=2000000000,gigabytes_per_s={},task_ns={:.0},depth={}",
        case.gb_s,
        case.task_us * 1e3,
        case.under_way
    );
    let [block, slots, depth] = [case.block_bytes, case.slots, case.depth].map(|value| value.to_string());
    let flags = ["--block-bytes", &block, "--slots", &slots, "--inflate-depth", &depth, "--dma-depth", &depth];
    let setup = Setup { flags: &flags, emulator: &emulator, ..Setup::default() };
    let mut card = Card::start_as(&setup, store, case.recipe);
    let ratio = card.store(prefix).amounts.ratio();
    // The first finds new pages, and an engine that has nothing to remember.
    let report = card.fetch(prefix, 1 + runs);
    (report.runs[1..].iter().map(|run| run.raw_mb_s()).collect(), ratio)
}

fn predict(case: &Case, stored_ratio: f64, prefix: &Prefix, dir: &std::path::Path) -> f64 {
    let geometry = prefix.geometry();
    let chunks = (prefix.shape.tokens / rig::CHUNK_TOKENS) as u32;
    let known = Ratio::of(case.recipe).expect("a recipe of the table");
    let profile: MachineProfile = profile::measure(&profile::ProfileSettings {
        selector: &doca::Selector::First,
        geometry,
        recipe: case.recipe.parse().expect("a recipe"),
        block_sizes: &[case.block_bytes],
        directory: dir,
        time: Duration::from_millis(100),
    })
    .expect("the emulator");
    let block = &profile.blocks[0];
    let copy = block.dma.map_or(0.1, |dma| dma.alone_ns / dma.written_bytes);
    let engine = |software_ns_per_byte, threads| EngineModel {
        task_ns: case.task_us * 1e3,
        ns_per_byte: 1.0 / case.gb_s,
        depth: case.under_way,
        software_ns_per_byte,
        threads,
    };
    let model = Model {
        // Remembered: a checksum of the source and a copy.
        inflate: engine(2.0 * copy, 2),
        dma: engine(copy, 1),
        // A store of several reports the prefix as stored once more: the ratio is the recipe's then.
        ratio: if stored_ratio.is_finite() && stored_ratio > 1.0 { stored_ratio } else { known.ratio },
        tile_per_codes: known.tile_per_codes,
        ..propose::model(&profile, block, geometry, None)
    };
    let config = Config {
        block_bytes: case.block_bytes,
        inflate_depth: case.depth,
        dma_depth: case.depth,
        ..Config::for_cores(profile.cores).with_slots(case.slots)
    };
    1e3 * simulate::fetch(&model, &config, chunks).expect("a plan").gb_per_s()
}
