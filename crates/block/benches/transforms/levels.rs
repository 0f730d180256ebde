//! Levels of Deflate: what each costs and wins.

use crate::data::Set;
use block::codec::{Compressor, Decompressor};
use block::{Codec, Granularity, Kind, TileOrder, Transform, quantize, wire_bytes_max};
use std::time::{Duration, Instant};

/// Best time of a run, over 0.1 s and at least 5 runs.
fn best(mut run: impl FnMut()) -> f64 {
    let mut best = Duration::MAX;
    let start = Instant::now();
    let mut runs = 0;
    while runs < 5 || start.elapsed() < Duration::from_millis(100) {
        let one = Instant::now();
        run();
        best = best.min(one.elapsed());
        runs += 1;
    }
    best.as_secs_f64()
}

pub(crate) fn print(set: &Set) {
    println!(
        "\n### Software codecs, one core, blocks of {} as they come, GB/s of codes bytes (ratio: codes to payload)\n",
        set.name
    );
    println!("| transform | codec | ratio | encode | decode |");
    println!("|---|---|---|---|---|");
    for transform in [
        Transform::Lossless,
        Transform::Q8,
        Transform::Q5,
        Transform::Q4,
        Transform::Q3,
        Transform::Q4P,
        Transform::Q3P,
    ] {
        let granularity = Granularity::chosen(transform, Kind::K);
        let all: Vec<Vec<u8>> = set
            .of(None)
            .take(2)
            .map(|block| {
                let mut codes = vec![0; block.tile.len()];
                let mut scales = vec![0; wire_bytes_max(&set.geometry, &block.part)];
                let order = TileOrder::TokenMajor;
                let (geometry, part) = (&set.geometry, &block.part);
                let made =
                    quantize(transform, granularity, geometry, part, order, &block.tile, &mut codes, &mut scales)
                        .expect("a tile that fits");
                codes.truncate(made.codes_bytes);
                codes
            })
            .collect();
        let total: usize = all.iter().map(Vec::len).sum();
        let levels = [1, 2, 3, 4, 6, 9, 12].map(|level| (Codec::Deflate, level));
        for (codec, level) in levels.into_iter().chain([(Codec::Lz4, 1)]) {
            let mut compressor = Compressor::new(level, total).expect("a level");
            let mut payloads: Vec<Vec<u8>> = all.iter().map(|codes| vec![0; codes.len() * 9 / 8 + 1024]).collect();
            let mut lengths = vec![0; all.len()];
            // Block by block, so that one run is shorter than a time slice of a busy machine.
            let mut encode = 0.0;
            for ((codes, payload), length) in all.iter().zip(&mut payloads).zip(&mut lengths) {
                encode += best(|| {
                    *length = compressor.compress(codec, codes, payload).expect("room for the payload");
                });
            }
            let mut decompressor = Decompressor::new();
            let mut decode = 0.0;
            for ((codes, payload), &length) in all.iter().zip(&payloads).zip(&lengths) {
                let mut out = vec![0; codes.len()];
                decode += best(|| decompressor.decompress(codec, &payload[..length], &mut out).expect("decodes"));
            }
            let name = if codec == Codec::Deflate { format!("deflate {level}") } else { codec.to_string() };
            println!(
                "| {transform} | {name} | {:.3} | {:.2} | {:.2} |",
                total as f64 / lengths.iter().sum::<usize>() as f64,
                total as f64 / encode / 1e9,
                total as f64 / decode / 1e9,
            );
        }
    }
}
