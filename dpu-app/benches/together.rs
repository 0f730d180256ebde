//! `cargo bench -p dpu-app --bench together -- [--tokens N] [--runs N] [--recipe q5] [--store URL] [--dir PATH]
//! [--quick]`
//!
//! What it costs that 1, 2, 4 and 8 sessions fetch one prefix at one time, with one dpu-app that joins their fetches
//! and one with `--no-join`, in turn: time until the first and until the last has it (medians), and the bytes that were
//! fetched, inflated and dequantized, beside those of one session. Of an 8B-class model, and of one with a quarter of
//! its KV heads, whose tokens are about as large as an MLA latent. `--store` names a server; else a directory each.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bench::{Report, Sample, Table};
use host_ctl::{CardStatus, Client, Transfer};
use rig::{CHUNK_TOKENS, Card, HEADS, LAYERS, Prefix, Setup, answered};

mod rig;

const PATIENCE: Duration = Duration::from_secs(600);
const SESSIONS: [usize; 4] = [1, 2, 4, 8];
const WAYS: [(&str, &[&str]); 2] = [("joined", &[]), ("apart", &["--no-join"])];

fn main() {
    let (mut tokens, mut runs, mut recipe) = (8 * CHUNK_TOKENS, 5, String::from("q5"));
    let mut dir: PathBuf = std::env::temp_dir().join(format!("kvlane-bench-together-{}", std::process::id()));
    let mut store = None;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
        match word.as_str() {
            "--tokens" => tokens = value().parse().expect("--tokens N"),
            "--runs" => runs = value().parse().expect("--runs N"),
            "--recipe" => recipe = value(),
            "--store" => store = Some(value()),
            "--dir" => dir = value().into(),
            "--quick" => (tokens, runs) = (2 * CHUNK_TOKENS, 1),
            // Cargo's own.
            "--bench" => {}
            other => panic!("{other}: see the head of benches/together.rs"),
        }
    }
    let mut report = Report::new("together", "One prefix for many", "cargo bench -p dpu-app --bench together");
    report.notes.push(format!("{recipe}; medians of {runs}; work is beside that of one session."));
    for (model, heads, factor) in [("8B-class", HEADS, 1), ("MLA-like", HEADS / 4, 4)] {
        let prefix = Prefix::shaped(&dir, LAYERS, heads, factor * tokens);
        let columns =
            ["fetches", "sessions", "first ms", "last ms", "last/first", "fetched", "inflated", "dequantized"];
        let mut table = Table::new(&format!("{model}, {} tokens", factor * tokens), &columns);
        for (way, flags) in WAYS {
            let url = store.clone();
            let url = url.unwrap_or_else(|| format!("dir:{}?sync=never", dir.join(format!("{way}-{heads}")).display()));
            measure(&dir, &url, (way, flags), &recipe, &prefix, runs, &mut table);
        }
        report.tables.push(table);
    }
    report.publish().expect("KVLANE_BENCH_OUT is a directory");
    let _ = std::fs::remove_dir_all(&dir);
}

fn measure(
    dir: &Path,
    url: &str,
    (way, flags): (&str, &[&str]),
    recipe: &str,
    prefix: &Prefix,
    runs: usize,
    table: &mut Table,
) {
    let socket = Some(dir.join(format!("{way}.sock")));
    let mut card = Card::start_as(&Setup { socket, flags, ..Setup::default() }, url, recipe);
    card.store(prefix);
    let keys = prefix.keys(recipe.parse().expect("a recipe"));
    let pages = prefix.pages();
    let transfer = Transfer { deadline: Some(PATIENCE), ..Transfer::new(&keys, &pages) };
    let most = SESSIONS[SESSIONS.len() - 1];
    let mut clients: Vec<Client> = (0..most)
        .map(|_| {
            let mut client = Client::attach(card.options(), Some(prefix.memory())).expect("it attached before");
            // Pages that nobody has touched yet are no serving engine's.
            answered(&mut client, |client| client.post_fetch(&transfer));
            client
        })
        .collect();
    let mut one = [0; 3];
    for sessions in SESSIONS {
        let (mut first, mut last) = (Sample::default(), Sample::default());
        let before = work(&mut clients[0]);
        for _ in 0..runs {
            let since = Instant::now();
            let team = &mut clients[..sessions];
            let mut posted: Vec<_> =
                team.iter_mut().map(|client| Some(client.post_fetch(&transfer).expect("room"))).collect();
            let mut ends = Vec::with_capacity(sessions);
            while ends.len() < sessions {
                for (client, id) in team.iter_mut().zip(&mut posted) {
                    let Some(done) = id.and_then(|_| client.poll().expect("the card answers")) else { continue };
                    assert_eq!(done.chunks_done, keys.len(), "all of it");
                    *id = None;
                    ends.push(since.elapsed().as_secs_f64() * 1e3);
                }
                std::thread::sleep(Duration::from_micros(200));
            }
            first.push(ends[0]);
            last.push(ends[sessions - 1]);
        }
        let after = work(&mut clients[0]);
        let did = [0, 1, 2].map(|stage| after[stage] - before[stage]);
        if sessions == 1 {
            one = did;
        }
        let share = |stage: usize| format!("{:.2}", did[stage] as f64 / one[stage].max(1) as f64);
        let (first, last) = (first.median(), last.median());
        table.row(&[
            &way,
            &sessions.to_string(),
            &format!("{first:.1}"),
            &format!("{last:.1}"),
            &format!("{:.3}", last / first),
            &share(0),
            &share(1),
            &share(2),
        ]);
    }
    clients.into_iter().for_each(|client| client.close(PATIENCE).expect("nothing is in flight"));
}

/// Bytes that fetch, inflate and dequantize have made so far.
fn work(client: &mut Client) -> [u64; 3] {
    let text = answered(client, Client::post_status).answer;
    let status = CardStatus::parse(&text).expect("a status");
    ["fetch", "inflate", "dequantize"].map(|stage| status.value()["stages"][stage]["bytes_out"].as_u64().expect("it"))
}
