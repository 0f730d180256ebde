//! `cargo bench -p kvlane-plan --bench calibrate -- [--quick]`
//!
//! What `kvlane-plan calibrate` proposes for this machine beside a sweep of block sizes and slots: each a real dpu-app
//! over the emulator as it comes (engines of software), in turn, medians.

use std::time::Duration;

use bench::{Report, Sample, Table};
use kvlane_plan::profile;
use kvlane_plan::propose::propose;
use rig::{Card, LAYERS, Prefix, Setup, warm};

#[path = "../../../dpu-app/benches/rig/mod.rs"]
mod rig;

const BLOCKS: [usize; 3] = [128 << 10, 512 << 10, 2 << 20];
const SLOTS: [usize; 3] = [4, 8, 16];

fn main() {
    rig::be_dpu_app_where_asked();
    let quick = std::env::args().any(|word| word == "--quick");
    let (tokens, rounds, ms) = if quick { (512, 1, 20) } else { (2048, 5, 200) };
    let slots = if quick { &SLOTS[2..] } else { &SLOTS[..] };
    let dir = std::env::temp_dir().join(format!("kvlane-bench-calibrate-{}", std::process::id()));
    let prefix = Prefix::of(&dir, LAYERS, tokens);
    let geometry = prefix.geometry();
    let profile = profile::measure(&profile::ProfileSettings {
        selector: &doca::Selector::First,
        geometry,
        recipe: "q5".parse().expect("a recipe"),
        block_sizes: &BLOCKS,
        directory: &dir,
        time: Duration::from_millis(ms),
    })
    .expect("the emulator");
    let proposal = propose(&profile, geometry, None).chosen;
    let proposed = (proposal.config.block_bytes, proposal.config.slots);
    let sweep = BLOCKS.iter().flat_map(|&block| slots.iter().map(move |&slots| (block, slots)));
    let mut cases: Vec<((usize, usize), Sample)> = sweep.map(|case| (case, Sample::default())).collect();
    if cases.iter().all(|(case, _)| *case != proposed) {
        cases.push((proposed, Sample::default()));
    }
    for _ in 0..rounds {
        for ((block, slots), sample) in &mut cases {
            sample.push(fetch_mb_s(*block, *slots, &dir, &prefix));
        }
    }
    let best = cases.iter().map(|(_, sample)| sample.median()).fold(0.0, f64::max);
    let mut report = Report::new(
        "calibrate",
        "What calibrate proposes, beside a sweep",
        "cargo bench -p kvlane-plan --bench calibrate",
    );
    report.notes.push(format!(
        "q5, one request of {tokens} tokens of an 8B-class model, `dir:` store in the page cache, engines of software. \
         Proposed: blocks of {} KiB, {} slots, {} fetch and {} dequantize workers; expected {:.0} MB/s. The sweep has the \
         default workers.",
        proposed.0 >> 10,
        proposed.1,
        proposal.config.fetch_workers,
        proposal.config.dequantize_workers,
        1e3 * proposal.gb_per_s
    ));
    let mut table = Table::new("", &["block KiB", "slots", "MB/s", "spread", "of the best", ""]);
    for (case, sample) in &cases {
        table.row(&[
            &(case.0 >> 10),
            &case.1,
            &format!("{:.0}", sample.median()),
            &format!("{:.0} %", 100.0 * sample.spread()),
            &format!("{:.0} %", 100.0 * sample.median() / best),
            &if *case == proposed { "proposed" } else { "" },
        ]);
    }
    report.tables.push(table);
    let _ = std::fs::remove_dir_all(&dir);
    report.publish().expect("KVLANE_BENCH_OUT is a directory");
}

fn fetch_mb_s(block: usize, slots: usize, dir: &std::path::Path, prefix: &Prefix) -> f64 {
    let store = format!("dir:{}?sync=never", dir.join(format!("store-{block}")).display());
    let [block, slots] = [block, slots].map(|value| value.to_string());
    let setup = Setup { flags: &["--block-bytes", &block, "--slots", &slots], ..Setup::default() };
    let mut card = Card::start_as(&setup, &store, "q5");
    card.store(prefix);
    warm(&card.fetch(prefix, 2)).raw_mb_s()
}
