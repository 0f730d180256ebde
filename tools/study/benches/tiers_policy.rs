//! Policies on synthetic traces: hit rates over sizes, memory for equal hit rate, cost of the bookkeeping.
//!
//! The policy's few constants were tried on seeds [`TRAINED_ON`]; every figure is of other seeds.
//! `--trace FILE` adds a trace of requests as `kvlane-plan tiers simulate` reads it, on which nothing was chosen.

use std::time::Instant;

use bench::{Plot, PlotKind, Report, Sample, Series, Table};
use study::tiers::{Curve, PolicyKind, Scenario, Trace, bytes_for, synthetic};
use tier::{CandidateChunk, Sizes, Worth};

const KINDS: [PolicyKind; 5] =
    [PolicyKind::Ours, PolicyKind::Lru, PolicyKind::Lfu, PolicyKind::S3fifo, PolicyKind::Best];
/// A 256-token chunk of an 8B-class model in bf16, and what q5 with Deflate makes of it (docs/measurements.md).
const RAW_CHUNK_BYTES: u32 = 32 << 20;
const RATIO: f64 = 3.5;
const GIB: f64 = (1u64 << 30) as f64;

const TRAINED_ON: [u64; 2] = [101, 102];
const MEASURED_ON: [u64; 3] = [1, 2, 3];
const SCENARIOS: [Scenario; 3] = [Scenario::Chat, Scenario::Scan, Scenario::Agents];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let quick = has("--quick");
    let requests = if quick { 4_000 } else { 20_000 };
    let seeds = if quick { &MEASURED_ON[..1] } else { &MEASURED_ON[..] };
    let mut report =
        Report::new("tiers-policy", "Tiers: which chunks to keep", "cargo bench --package study --bench tiers-policy");
    report.notes.push(format!(
        "{requests} requests of each SYNTHETIC trace (`kvlane-plan tiers simulate --synthetic NAME --seed N`, seeds {seeds:?}; the \
         policy's constants were tried on seeds {TRAINED_ON:?}), one tier of compressed chunks ({RATIO} times smaller than \
         bf16). A chunk counts as a hit if all chunks before it are hits."
    ));
    let chunk_bytes = (f64::from(RAW_CHUNK_BYTES) / RATIO) as u32;
    let mut memory = Table::new(
        "Memory for the hit rate that ours has",
        &[
            "trace",
            "tier GiB",
            "hit rate",
            "LRU of compressed GiB",
            "LRU of bf16 GiB",
            "less than LRU compressed",
            "less than LRU bf16",
            "best: less than LRU compressed",
        ],
    );
    for scenario in SCENARIOS {
        for &seed in seeds {
            let mut trace = synthetic(scenario, requests, seed);
            if seed == seeds[0] {
                curves(&trace, chunk_bytes, &[128, 64, 32, 16, 8], &mut report);
            }
            trace.name = format!("{}, seed {seed}", trace.name);
            equal_hits(&trace, chunk_bytes, &[128, 32, 8], &mut memory);
        }
    }
    if let Some(file) = arguments.iter().skip_while(|argument| *argument != "--trace").nth(1) {
        let trace = Trace::read(std::path::Path::new(file)).expect("--trace FILE is a trace");
        curves(&trace, chunk_bytes, &[64, 32, 16, 8, 4, 2], &mut report);
        equal_hits(&trace, chunk_bytes, &[64, 16, 4], &mut memory);
    }
    report.tables.push(memory);
    report.tables.push(bookkeeping(quick));
    report.publish().expect("KVLANE_BENCH_OUT is a directory that can be written");
}

/// One tier of each of these parts of all that is asked for.
fn tier_bytes(trace: &Trace, chunk_bytes: u32, parts: &[u64]) -> Vec<u64> {
    let all = trace.chunks().1 * u64::from(chunk_bytes);
    parts.iter().map(|part| all / part).collect()
}

fn curves(trace: &Trace, chunk_bytes: u32, parts: &[u64], report: &mut Report) {
    let bytes = tier_bytes(trace, chunk_bytes, parts);
    let curves: Vec<_> = KINDS.iter().map(|&kind| Curve::of(trace, kind, &bytes, chunk_bytes)).collect();
    let mut columns = vec!["tier GiB", "share of all different chunks"];
    columns.extend(KINDS.iter().map(|kind| kind.name()));
    let mut table = Table::new(&format!("Hit rate, {}", trace.name), &columns);
    for (row, &size) in bytes.iter().enumerate() {
        let mut cells = vec![format!("{:.1}", size as f64 / GIB), format!("1/{}", parts[row])];
        cells.extend(curves.iter().map(|curve| format!("{:.3}", curve.points[row].1)));
        table.rows.push(cells);
    }
    report.tables.push(table);
    let series = |curve: &Curve| Series {
        name: curve.kind.name().into(),
        points: curve.points.iter().map(|&(bytes, rate)| (bytes as f64 / GIB, rate)).collect(),
        labels: Vec::new(),
    };
    report.plots.push(Plot {
        name: format!("tiers-policy-{}", trace.name),
        title: format!("Hit rate of one tier, {}", trace.name),
        x: "tier, GiB".into(),
        y: "share of chunks".into(),
        log_x: true,
        log_y: false,
        kind: PlotKind::Lines,
        series: curves.iter().map(series).collect(),
    });
}

fn equal_hits(trace: &Trace, chunk_bytes: u32, parts: &[u64], table: &mut Table) {
    let all = trace.chunks().1 * u64::from(chunk_bytes);
    let gib = |bytes: Option<u64>| bytes.map_or("never".into(), |bytes| format!("{:.1}", bytes as f64 / GIB));
    for bytes in tier_bytes(trace, chunk_bytes, parts) {
        let rate = |kind| Curve::of(trace, kind, &[bytes], chunk_bytes).points[0].1;
        let lru_for = |rate| bytes_for(trace, PolicyKind::Lru, rate, 2 * all, chunk_bytes);
        let best = lru_for(rate(PolicyKind::Best));
        let rate = rate(PolicyKind::Ours);
        let lru = lru_for(rate);
        let lru_raw = bytes_for(trace, PolicyKind::Lru, rate, 8 * all, RAW_CHUNK_BYTES);
        let less = |other: Option<u64>| {
            other.map_or("-".into(), |other| format!("{:.0} %", (1.0 - bytes as f64 / other as f64) * 100.0))
        };
        let hit_rate = format!("{rate:.3}");
        let less = [lru, lru_raw, best].map(less);
        table.row(&[&trace.name, &gib(Some(bytes)), &hit_rate, &gib(lru), &gib(lru_raw), &less[0], &less[1], &less[2]]);
    }
}

/// Time of one use and one offer with a full tier, over many chunks.
fn bookkeeping(quick: bool) -> Table {
    let mut table =
        Table::new("Bookkeeping of ours", &["chunks", "bytes for each", "use, ns", "offer with eviction, ns"]);
    let sizes: &[usize] = if quick { &[1 << 12] } else { &[1 << 12, 1 << 16, 1 << 20] };
    for &chunks_max in sizes {
        let limits = Sizes { bytes_max: chunks_max as u64 * 1000, chunks_max };
        let mut worth = Worth::new(limits, 1);
        let chunk = |n: u64| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_le_bytes());
            CandidateChunk { key: block::ChunkKey::new(key), bytes: 1000, namespace: 0, importance: 1.0, cost_us: 1.0 }
        };
        let all = chunks_max as u64;
        (0..all).for_each(|n| assert!(worth.adopt(&chunk(n), n)));
        let (mut uses, mut offers) = (Sample::default(), Sample::default());
        let batch = 1000;
        for round in 0..31u64 {
            let pick = |n: u64| chunk((n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % all).key;
            let keys: Vec<_> = (round * batch..(round + 1) * batch).map(pick).collect();
            let started = Instant::now();
            keys.iter().for_each(|key| worth.used(std::slice::from_ref(key), all + round));
            uses.push(started.elapsed().as_nanos() as f64 / batch as f64);
            let fresh: Vec<_> = (round * batch..(round + 1) * batch).map(|n| chunk(all + n)).collect();
            let started = Instant::now();
            for chunk in &fresh {
                let _ = worth.offer(chunk, None, all + round, &mut |_, _| {});
            }
            offers.push(started.elapsed().as_nanos() as f64 / batch as f64);
        }
        let bytes = Worth::memory_bytes(chunks_max) / chunks_max;
        table.row(&[&chunks_max, &bytes, &format!("{:.0}", uses.median()), &format!("{:.0}", offers.median())]);
    }
    table
}
