//! Which elements should share a scale: bytes (payload and scales) against error, per K and V.

use crate::data::Set;
use block::codec::Compressor;
use block::{
    ChunkKey, Codec, Granularity, HEADER_BYTES, Header, Kind, TileOrder, Transform, codec, pack, quantize, restore,
    wire_bytes_max,
};

/// One point of a curve of size against error.
#[derive(Clone, Copy)]
struct Point {
    ratio: f64,
    /// RMS error over RMS of the elements.
    error: f64,
}

const PEAKS: [u8; 14] = [127, 95, 63, 47, 31, 23, 15, 11, 9, 7, 5, 4, 3, 2];
const ERRORS: [f64; 6] = [0.01, 0.02, 0.04, 0.07, 0.10, 0.15];

pub(crate) fn print(sets: &[Set]) {
    println!("\n### Granularity: ratio to bf16 (Deflate, scales and headers counted) at equal relative RMS error\n");
    print!("| data | | scale per |");
    ERRORS.iter().for_each(|e| print!(" {:.0} % |", e * 100.0));
    println!("\n|---|---|---|{}", "---|".repeat(ERRORS.len()));
    for set in sets {
        for kind in [Kind::K, Kind::V] {
            for granularity in Granularity::ALL {
                let curve: Vec<Point> = PEAKS.iter().map(|&peak| point(set, kind, granularity, peak)).collect();
                print!("| {} | {} | {granularity:?} |", set.name, kind.name());
                ERRORS.iter().for_each(|&e| print!(" {:.2} |", at(&curve, e)));
                println!();
            }
        }
    }
}

/// The curve's ratio at an error, linear in the logarithms between its points.
fn at(curve: &[Point], error: f64) -> f64 {
    let pair = curve.windows(2).find(|p| p[0].error <= error && error <= p[1].error);
    let Some(&[a, b]) = pair else { return f64::NAN };
    let t = (error / a.error).ln() / (b.error / a.error).ln();
    (a.ratio.ln() + t * (b.ratio / a.ratio).ln()).exp()
}

fn point(set: &Set, kind: Kind, granularity: Granularity, peak: u8) -> Point {
    let (geometry, order) = (&set.geometry, TileOrder::TokenMajor);
    let transform = Transform::Quant { peak };
    let key = ChunkKey::new([0; 32]);
    let mut compressor = Compressor::new(6, 0).expect("a level");
    let (mut before, mut after, mut signal, mut noise) = (0, 0, 0.0, 0.0);
    for block in set.of(Some(kind)) {
        let part = &block.part;
        let mut codes = vec![0; block.tile.len()];
        let mut wire = vec![0; wire_bytes_max(geometry, part)];
        let scales = &mut wire[HEADER_BYTES..];
        let made =
            quantize(transform, granularity, geometry, part, order, &block.tile, &mut codes, scales).expect("fits");
        let bytes =
            pack(&made, Codec::Deflate, geometry, &key, 0, part, &codes, &mut wire, &mut compressor).expect("packs");
        let header = Header::parse(&wire[..bytes]).expect("a good block");
        let mut decoded = vec![0; header.codes_bytes as usize];
        codec::decompress(header.codec, &wire[header.payload_range()], &mut decoded).expect("decodes");
        let mut restored = vec![0; block.tile.len()];
        restore(&header, &wire[header.scales_range()], &decoded, order, &mut restored).expect("restores");
        before += block.tile.len();
        after += bytes;
        for (&x, &y) in block.tile.as_chunks::<2>().0.iter().zip(restored.as_chunks::<2>().0) {
            let (x, y) = (half::bf16::from_le_bytes(x).to_f64(), half::bf16::from_le_bytes(y).to_f64());
            signal += x * x;
            noise += (x - y) * (x - y);
        }
    }
    Point { ratio: before as f64 / after as f64, error: (noise / signal).sqrt() }
}
