//! `cargo bench -p dpu-app --bench verify -- [--gb N] [--runs N] [--recipe q5] [--dir PATH] [--quick]`
//!
//! What `--verify-dma` costs: the same prefix through three dpu-app processes, one `off`, one `sample`, one `all`,
//! fetched in turn, so that what else the machine does hits all three; medians of `--runs`, and their ratio to `off`.
//! MB/s are 10^6 bytes of restored bf16 a second.

use std::path::PathBuf;
use std::time::Duration;

use bench::{Report, Sample, Table};
use rig::{CHUNK_TOKENS, Card, Fetching, HEAD_SIZE, HEADS, LAYERS, Prefix, Setup};

mod rig;

/// Tokens of one GiB of bf16.
const GIB_TOKENS: usize = (1 << 30) / (2 * LAYERS * HEADS * HEAD_SIZE * 2);
const MODES: [&str; 3] = ["off", "sample", "all"];

fn main() {
    let (mut tokens, mut runs, mut recipe) = (GIB_TOKENS, 7, String::from("q5"));
    let mut dir: PathBuf = std::env::temp_dir().join(format!("kvlane-bench-verify-{}", std::process::id()));
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
        match word.as_str() {
            "--gb" => tokens = value().parse::<usize>().expect("--gb N") * GIB_TOKENS,
            "--runs" => runs = value().parse().expect("--runs N"),
            "--recipe" => recipe = value(),
            "--dir" => dir = value().into(),
            "--quick" => (tokens, runs) = (4 * CHUNK_TOKENS, 1),
            // Cargo's own.
            "--bench" => {}
            other => panic!("{other}: see the head of benches/verify.rs"),
        }
    }
    let prefix = Prefix::of(&dir, LAYERS, tokens);
    let mut sessions: Vec<(Card, Fetching)> = MODES.iter().map(|mode| open(mode, &dir, &recipe, &prefix)).collect();
    let mut speeds: [Sample; MODES.len()] = Default::default();
    for round in 0..=runs {
        for ((_, session), speed) in sessions.iter_mut().zip(&mut speeds) {
            let took = session.once().elapsed;
            // The first finds pages that nobody has touched yet.
            if round > 0 {
                speed.push(prefix.bytes() / took.as_secs_f64() / 1e6);
            }
        }
    }
    let mut report = Report::new("verify", "What --verify-dma costs", "cargo bench -p dpu-app --bench verify");
    report.notes.push(format!(
        "{tokens} tokens of an 8B-class geometry, {recipe}, from a `dir:` store; medians of {runs}, in turn."
    ));
    let mut table = Table::new("", &["--verify-dma", "fetch MB/s", "spread", "of off"]);
    let off = speeds[0].median();
    for (mode, speed) in MODES.iter().zip(&speeds) {
        let share = format!("{:.2}", speed.median() / off);
        table.row(&[mode, &format!("{:.0}", speed.median()), &format!("{:.0} %", 100.0 * speed.spread()), &share]);
    }
    report.tables.push(table);
    report.publish().expect("KVLANE_BENCH_OUT is a directory");
    sessions.into_iter().for_each(|(_, session)| session.close());
    drop(prefix);
    let _ = std::fs::remove_dir_all(&dir);
}

/// A card of this mode with the prefix stored, met by a socket of its own.
fn open(mode: &str, dir: &std::path::Path, recipe: &str, prefix: &Prefix) -> (Card, Fetching) {
    let socket = Some(dir.join(format!("{mode}.sock")));
    // One each: a directory has one card at a time.
    let url = format!("dir:{}?sync=never", dir.join(format!("store-{mode}")).display());
    let mut card = Card::start_as(&Setup { socket, flags: &["--verify-dma", mode], ..Setup::default() }, &url, recipe);
    card.store(prefix);
    let session = Fetching::open(&card, prefix, prefix.memory(), Duration::ZERO);
    (card, session)
}
