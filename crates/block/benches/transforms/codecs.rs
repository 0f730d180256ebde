//! What this machine's software inflates: blocks decoded by as many threads as there are columns, each on a core of its
//! own, with the rest of the way to elements (CRC-32, dequantize) and without.

use crate::data::Set;
use crate::place;
use crate::speed::Turns;
use bench::{Plot, PlotKind, Report, Sample, Series, Table};
use block::codec::{Compressor, DEFLATE_LEVEL_DEFAULT, Decompressor};
use block::{
    ChunkKey, Codec, Header, Recipe, TileOrder, Transform, encode_tile, restore, restore_checked, wire_bytes_max,
};
use std::sync::Barrier;
use std::time::Instant;

/// How far a block is decoded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Payload to codes.
    Inflate,
    /// Payload to codes, their CRC-32, and elements.
    Restore,
}

const TRANSFORMS: [&str; 10] = ["none", "lossless", "q8", "q6", "q5", "q4", "q3", "q4p", "q3p", "cachegen"];

pub(crate) fn report(set: &Set, turns: Turns, command: &str) -> Report {
    let mut report = Report::new("codecs", "Software codecs: what this machine restores without an engine", command);
    let cpus = place::cpus();
    let threads: Vec<usize> = if cpus.len() > 1 { vec![1, 2] } else { vec![1] };
    report.notes.push(format!(
        "{} blocks of {} of up to {} elements, Deflate by libdeflate at level {DEFLATE_LEVEL_DEFAULT} and LZ4 by \
         lz4_flex. GB/s of restored bf16 bytes, the median of passes over all blocks (half the distance of the \
         quartiles); each thread on a core of its own (CPUs {:?}), passes of all columns in turns. \"inflate\" ends \
         with the codes, \"restore\" goes on to their CRC-32 and the elements. Blocks that a codec does not shrink \
         are stored raw: there \"inflate\" is a copy.",
        set.blocks.len(),
        set.name,
        crate::data::BLOCK_ELEMENTS,
        &cpus[..*threads.last().expect("one")],
    ));
    let mut columns = vec!["recipe".to_string(), "ratio".to_string()];
    for count in &threads {
        let s = if *count == 1 { "" } else { "s" };
        columns.extend([format!("inflate, {count} core{s}"), format!("restore, {count} core{s}")]);
    }
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let mut table = Table::new("Restored by software, GB/s of bf16", &columns);
    let mut series: Vec<Series> = threads
        .iter()
        .map(|count| Series {
            name: format!("{count} core{}", if *count == 1 { "" } else { "s" }),
            ..Series::default()
        })
        .collect();
    for transform in TRANSFORMS.map(|name| name.parse::<Transform>().expect("a transform")) {
        let codecs = if transform == Transform::None { &Codec::ALL[..1] } else { &Codec::ALL[1..] };
        for recipe in codecs.iter().map(|&codec| Recipe { transform, codec }) {
            let blocks = encoded(set, recipe);
            let samples = measure(&blocks, &cpus, &threads, turns);
            let mut cells = vec![recipe.to_string(), format!("{:.2}", ratio(set, &blocks))];
            cells.extend(samples.iter().map(|s| format!("{:.2} ({:.0} %)", s.median(), s.spread() * 100.0)));
            table.rows.push(cells);
            for (series, samples) in series.iter_mut().zip(samples.chunks(2)) {
                series.points.push((series.points.len() as f64, samples[1].median()));
                series.labels.push(recipe.to_string());
            }
        }
    }
    report.tables.push(table);
    report.plots.push(Plot {
        name: "codecs".into(),
        title: "Restored by software".into(),
        x: "recipe".into(),
        y: "GB/s of bf16".into(),
        log_x: false,
        log_y: true,
        kind: PlotKind::Bars,
        series,
    });
    report
}

/// A wire block and the elements that it restores to.
struct Encoded {
    header: Header,
    wire: Vec<u8>,
    tile_bytes: usize,
}

fn encoded(set: &Set, recipe: Recipe) -> Vec<Encoded> {
    let mut compressor = Compressor::new(DEFLATE_LEVEL_DEFAULT, 0).expect("a level");
    let (geometry, key, order) = (&set.geometry, ChunkKey::new([0; 32]), TileOrder::TokenMajor);
    let encode = |block: &crate::data::Block| {
        let mut codes = vec![0; block.tile.len()];
        let mut wire = vec![0; wire_bytes_max(geometry, &block.part)];
        let (index, part, tile) = (block.index, &block.part, &block.tile);
        let bytes =
            encode_tile(recipe, geometry, &key, index, part, order, tile, &mut codes, &mut wire, &mut compressor)
                .expect("encodes");
        wire.truncate(bytes);
        let header = Header::open(&wire, &key, geometry, index, part).expect("a good block");
        Encoded { header, wire, tile_bytes: tile.len() }
    };
    set.blocks.iter().map(encode).collect()
}

fn ratio(set: &Set, blocks: &[Encoded]) -> f64 {
    let before: usize = set.blocks.iter().map(|block| block.tile.len()).sum();
    before as f64 / blocks.iter().map(|block| block.wire.len()).sum::<usize>() as f64
}

/// GB/s for each count of threads: inflate, restore.
fn measure(blocks: &[Encoded], cpus: &[usize], threads: &[usize], turns: Turns) -> Vec<Sample> {
    let columns: Vec<(usize, Work)> =
        threads.iter().flat_map(|&count| [Work::Inflate, Work::Restore].map(|work| (count, work))).collect();
    let mut samples = vec![Sample::default(); columns.len()];
    let turns = turns.of(20);
    for turn in 0..=turns {
        for (&(count, work), sample) in columns.iter().zip(&mut samples) {
            let speed = together(blocks, &cpus[..count], work);
            if turn > 0 {
                sample.push(speed);
            }
        }
    }
    samples
}

/// All blocks by each of some threads at the same time: GB/s of them together, by the slowest.
fn together(blocks: &[Encoded], cpus: &[usize], work: Work) -> f64 {
    let barrier = Barrier::new(cpus.len());
    let barrier = &barrier;
    let slowest = std::thread::scope(|scope| {
        let pinned = |cpu| {
            move || {
                place::pin(cpu);
                pass(blocks, work, barrier)
            }
        };
        let threads: Vec<_> = cpus.iter().map(|&cpu| scope.spawn(pinned(cpu))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a pass")).fold(0.0, f64::max)
    });
    let bytes: usize = blocks.iter().map(|block| block.tile_bytes).sum();
    (bytes * cpus.len()) as f64 / slowest / 1e9
}

/// Seconds of one pass over all blocks.
fn pass(blocks: &[Encoded], work: Work, barrier: &Barrier) -> f64 {
    let longest = blocks.iter().map(|block| block.tile_bytes).max().unwrap_or(0);
    let (mut codes, mut tile) = (vec![1; longest], vec![1; longest]);
    let mut decompressor = Decompressor::new();
    barrier.wait();
    let start = Instant::now();
    for Encoded { header, wire, tile_bytes } in blocks {
        let (scales, payload) = (&wire[header.scales_range()], &wire[header.payload_range()]);
        let (tile, codes) = (&mut tile[..*tile_bytes], &mut codes[..header.codes_bytes as usize]);
        let order = TileOrder::TokenMajor;
        match (header.codec, work) {
            (Codec::Raw, Work::Restore) => restore_checked(header, scales, payload, order, tile).expect("restores"),
            (codec, Work::Inflate) => decompressor.decompress(codec, payload, codes).expect("decodes"),
            (_, Work::Restore) => {
                decompressor.codes(header, wire, codes).expect("decodes");
                restore(header, scales, codes, order, tile).expect("restores");
            }
        }
    }
    start.elapsed().as_secs_f64()
}
