//! Kernel and codec throughput on one core.

use crate::data::{Set, convert};
use block::codec::{Compressor, Decompressor};
use block::{
    ChunkKey, Codec, ElementType, Geometry, Granularity, HEADER_BYTES, Header, Kind, Part, TileOrder, Transform, pack,
    quantize, restore, restore_checked, wire_bytes_max,
};
use std::hint::black_box;
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

fn gigabytes(bytes: usize, seconds: f64) -> String {
    format!("{:.1}", bytes as f64 / seconds / 1e9)
}

/// A block of 128 Ki elements with heads of 64: tile and codes fit the L2 cache of one core.
fn resident(set: &Set, element: ElementType) -> (Geometry, Part, Vec<u8>) {
    let geometry = Geometry::new(1, 8, 64, 256, element).expect("within limits");
    let part = Part { kind: Kind::K, first_layer: 0, layers: 1, first_token: 0, tokens: 256 };
    let elements = part.elements(&geometry);
    let bytes: Vec<u8> = set.of(Some(Kind::K)).flat_map(|b| b.tile.iter().copied()).take(elements * 2).collect();
    (geometry, part, convert(&bytes, element))
}

pub(crate) fn print_kernels(set: &Set) {
    println!(
        "\n### Kernels, GB/s of tile bytes, one core, 128 Ki elements (8 heads x 64, 256 tokens), in the L2 cache\n"
    );
    println!(
        "| element | transform | scale per | quantize | dequantize | dequantize + crc | dequantize to pages of 16, head-major | memcpy of the tile |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for element in ElementType::ALL {
        let (geometry, part, tile) = resident(set, element);
        let mut copy = vec![0; tile.len()];
        let memcpy = best(|| black_box(&mut copy[..]).copy_from_slice(black_box(&tile)));
        let mut rows = vec![(Transform::None, Granularity::None), (Transform::Lossless, Granularity::None)];
        rows.extend(Granularity::ALL.map(|g| (Transform::Q5, g)));
        rows.extend([Granularity::Token, Granularity::Channel].map(|g| (Transform::Q4P, g)));
        for (transform, granularity) in rows {
            let mut codes = vec![0; tile.len()];
            let mut wire = vec![0; wire_bytes_max(&geometry, &part)];
            let order = TileOrder::TokenMajor;
            let mut made = None;
            let quantized = best(|| {
                let scales = &mut wire[HEADER_BYTES..];
                made = Some(
                    quantize(transform, granularity, &geometry, &part, order, black_box(&tile), &mut codes, scales)
                        .expect("a tile that fits"),
                );
            });
            let made = made.expect("ran");
            let key = ChunkKey::new([7; 32]);
            let mut compressor = Compressor::new(1, 0).expect("a level");
            let bytes =
                pack(&made, Codec::Raw, &geometry, &key, 0, &part, &codes, &mut wire, &mut compressor).expect("packs");
            let header = Header::open(&wire[..bytes], &key, &geometry, 0, &part).expect("a good block");
            let (scales, codes) = (&wire[header.scales_range()], &wire[header.payload_range()]);
            let mut out = vec![0; tile.len()];
            let plain = best(|| restore(&header, scales, black_box(codes), order, &mut out).expect("restores"));
            let checked =
                best(|| restore_checked(&header, scales, black_box(codes), order, &mut out).expect("restores"));
            let pages = TileOrder::HeadMajor { page_tokens: 16 };
            let paged = best(|| restore(&header, scales, black_box(codes), pages, &mut out).expect("restores"));
            println!(
                "| {element} | {transform} | {granularity:?} | {} | {} | {} | {} | {} |",
                gigabytes(tile.len(), quantized),
                gigabytes(tile.len(), plain),
                gigabytes(tile.len(), checked),
                gigabytes(tile.len(), paged),
                gigabytes(tile.len(), memcpy),
            );
        }
    }
}

pub(crate) fn print_codecs(set: &Set) {
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
