//! Policies on synthetic traces: hit rates over sizes, memory for equal hit rate, cost of the bookkeeping.

use std::time::Instant;

use bench::{Plot, PlotKind, Report, Sample, Series, Table};
use host_ctl::tiers::{Curve, PolicyKind, Scenario, Sizes, Trace, bytes_for, synthetic};
use tier::{Chunk, Limits, Worth};

const KINDS: [PolicyKind; 4] = [PolicyKind::Ours, PolicyKind::Lru, PolicyKind::Lfu, PolicyKind::S3fifo];
/// A 256-token chunk of an 8B-class model in bf16, and what q5 with Deflate makes of it (docs/measurements.md).
const RAW_CHUNK_BYTES: u32 = 32 << 20;
const RATIO: f64 = 3.5;
const GIB: f64 = (1u64 << 30) as f64;

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let requests = if quick { 4_000 } else { 40_000 };
    let mut report = Report::new(
        "tiers-policy",
        "Tiers: which chunks to keep",
        "cargo bench --package host-ctl --bench tiers-policy",
    );
    report.notes.push(format!(
        "{requests} requests of each SYNTHETIC trace (seed 1; `host-ctl tiers simulate --synthetic NAME`), one tier of \
         compressed chunks ({RATIO} times smaller than bf16). A chunk counts as a hit if all chunks before it are hits."
    ));
    let sizes = Sizes::of((f64::from(RAW_CHUNK_BYTES) / RATIO) as u32);
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
        ],
    );
    for scenario in [Scenario::Chat, Scenario::Scan, Scenario::Agents] {
        let trace = synthetic(scenario, requests, 1);
        curves(&trace, sizes, &mut report);
        equal_hits(&trace, sizes, &mut memory);
    }
    report.tables.push(memory);
    report.tables.push(bookkeeping(quick));
    report.publish().expect("KVLANE_BENCH_OUT is a directory that can be written");
}

fn tier_bytes(trace: &Trace, sizes: Sizes) -> Vec<u64> {
    let all = trace.chunks().1 * u64::from(sizes.chunk_bytes);
    [128, 64, 32, 16, 8].map(|part| all / part).to_vec()
}

fn curves(trace: &Trace, sizes: Sizes, report: &mut Report) {
    let bytes = tier_bytes(trace, sizes);
    let curves: Vec<_> = KINDS.iter().map(|&kind| Curve::of(trace, kind, &bytes, sizes)).collect();
    let mut columns = vec!["tier GiB", "share of all different chunks"];
    columns.extend(KINDS.iter().map(|kind| kind.name()));
    let mut table = Table::new(&format!("Hit rate, {}", trace.name), &columns);
    for (row, &size) in bytes.iter().enumerate() {
        let mut cells = vec![format!("{:.1}", size as f64 / GIB), format!("1/{}", 128 >> row)];
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

fn equal_hits(trace: &Trace, sizes: Sizes, table: &mut Table) {
    let all = trace.chunks().1 * u64::from(sizes.chunk_bytes);
    let bytes = all / 128;
    let rate = Curve::of(trace, PolicyKind::Ours, &[bytes], sizes).points[0].1;
    let raw = Sizes { chunk_bytes: RAW_CHUNK_BYTES, ..sizes };
    let lru = bytes_for(trace, PolicyKind::Lru, rate, 2 * all, sizes);
    let lru_raw = bytes_for(trace, PolicyKind::Lru, rate, 8 * all, raw);
    let gib = |bytes: Option<u64>| bytes.map_or("never".into(), |bytes| format!("{:.1}", bytes as f64 / GIB));
    let less = |other: Option<u64>| {
        other.map_or("-".into(), |other| format!("{:.0} %", (1.0 - bytes as f64 / other as f64) * 100.0))
    };
    let hit_rate = format!("{rate:.3}");
    table.row(&[&trace.name, &gib(Some(bytes)), &hit_rate, &gib(lru), &gib(lru_raw), &less(lru), &less(lru_raw)]);
}

/// Time of one use and one offer with a full tier, over many chunks.
fn bookkeeping(quick: bool) -> Table {
    let mut table =
        Table::new("Bookkeeping of ours", &["chunks", "bytes for each", "use, ns", "offer with eviction, ns"]);
    let sizes: &[usize] = if quick { &[1 << 12] } else { &[1 << 12, 1 << 16, 1 << 20] };
    for &chunks_max in sizes {
        let limits =
            Limits { bytes_max: chunks_max as u64 * 1000, chunks_max, half_life_ms: 1_000_000, probation_share: 0.1 };
        let mut worth = Worth::new(limits, 1);
        let chunk = |n: u64| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_le_bytes());
            Chunk { key: block::ChunkKey::new(key), bytes: 1000, namespace: 0, importance: 1.0, cost_us: 1.0 }
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
