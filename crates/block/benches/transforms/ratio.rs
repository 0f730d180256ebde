//! Size and error of every transform with every codec.

use crate::data::Set;
use block::codec::{self, Compressor, DEFLATE_LEVEL_DEFAULT};
use block::{
    ChunkKey, Codec, Header, Kind, Recipe, TileOrder, Transform, compare, encode_tile, restore, wire_bytes_max,
};

pub(crate) fn print(sets: &[Set]) {
    for set in sets {
        println!("\n### {}: ratio to {} (headers and scales counted) and error\n", set.name, set.geometry.element);
        println!("| recipe | K | V | both | max abs K / V | RMS K / V | cosine K / V | beyond bound |");
        println!("|---|---|---|---|---|---|---|---|");
        let transforms = ["none", "lossless", "q8", "q6", "q5", "q4", "q3", "q4p", "q3p", "cachegen"];
        for transform in transforms.map(|t| t.parse::<Transform>().expect("a transform")) {
            for codec in Codec::ALL {
                row(set, Recipe { transform, codec });
            }
        }
    }
}

#[derive(Default)]
struct Sum {
    before: usize,
    after: usize,
    max_abs: f64,
    squares: f64,
    elements: usize,
    cosine: f64,
    blocks: usize,
    over_bound: usize,
}

fn row(set: &Set, recipe: Recipe) {
    let mut compressor = Compressor::new(DEFLATE_LEVEL_DEFAULT, 0).expect("a level");
    let mut sums = [Sum::default(), Sum::default()];
    for block in set.of(None) {
        let sum = &mut sums[block.part.kind as usize];
        let (geometry, part, order) = (&set.geometry, &block.part, TileOrder::TokenMajor);
        let key = ChunkKey::new([0; 32]);
        let mut codes = vec![0; block.tile.len()];
        let mut wire = vec![0; wire_bytes_max(geometry, part)];
        let (tile, codes_room, wire_room) = (&block.tile, &mut codes, &mut wire);
        let bytes =
            encode_tile(recipe, geometry, &key, block.index, part, order, tile, codes_room, wire_room, &mut compressor)
                .expect("encodes");
        let header = Header::open(&wire[..bytes], &key, geometry, block.index, part).expect("a good block");
        let mut decoded = vec![0; header.codes_bytes as usize];
        codec::decompress(header.codec, &wire[header.payload_range()], &mut decoded).expect("decodes");
        let mut restored = vec![0; block.tile.len()];
        restore(&header, &wire[header.scales_range()], &decoded, order, &mut restored).expect("restores");
        let errors = compare(recipe, geometry, part, &block.tile, &restored);
        sum.before += block.tile.len();
        sum.after += bytes;
        sum.max_abs = sum.max_abs.max(errors.max_abs);
        sum.squares += errors.rms * errors.rms * errors.elements as f64;
        sum.elements += errors.elements;
        sum.cosine += errors.cosine;
        sum.blocks += 1;
        sum.over_bound += errors.over_bound;
    }
    let [k, v] = &sums;
    let ratio = |before: usize, after: usize| before as f64 / after as f64;
    let rms = |s: &Sum| (s.squares / s.elements as f64).sqrt();
    let cosine = |s: &Sum| s.cosine / s.blocks as f64;
    println!(
        "| {recipe} | {:.2} | {:.2} | {:.2} | {:.4} / {:.4} | {:.5} / {:.5} | {:.6} / {:.6} | {} |",
        ratio(k.before, k.after),
        ratio(v.before, v.after),
        ratio(k.before + v.before, k.after + v.after),
        k.max_abs,
        v.max_abs,
        rms(k),
        rms(v),
        cosine(k),
        cosine(v),
        k.over_bound + v.over_bound,
    );
    debug_assert!(set.of(Some(Kind::K)).count() == k.blocks);
}
