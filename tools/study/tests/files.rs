//! Files that are made.

#[path = "../../../host-ctl/tests/it/kv_files.rs"]
#[allow(dead_code, reason = "each test takes what it needs")]
mod kv_files;

use std::fs;
use std::path::Path;

use block::codec::{Compressor, DEFLATE_LEVEL_DEFAULT};
use block::{ChunkKey, ElementType, Plan, TileOrder, encode_tile, wire_bytes_max};
use host_ctl::{Error, KvFile, KvTensor, TensorShape};
use kv_files::{kv_file, values};
use study::{Synthetic, generate};

#[test]
fn synthetic_files_are_reproducible_storable_and_not_repetitive() {
    let dir = tempfile::tempdir().unwrap();
    let source = KvFile::open(&kv_file(dir.path(), "source", &values(2 * 2 * 32 * 16, 8), &[2, 2, 32, 2, 8])).unwrap();
    let kv = source.kv("kv", None).unwrap();
    let shape = TensorShape { layers: 5, tokens: 70, heads: 3, head_size: 16, element: ElementType::Bf16 };
    let make = |name: &str, seed| {
        let path = dir.path().join(name);
        generate((&source, &kv), &Synthetic { shape, seed }, &path, &mut |_, _| {}).unwrap();
        fs::read(path).unwrap()
    };
    let one = make("one", 1);
    assert_eq!(one, make("again", 1));
    assert_ne!(one, make("two", 2));
    let file = KvFile::open(&dir.path().join("one")).unwrap();
    let made = file.kv("kv", None).unwrap();
    assert_eq!(made.shape, shape);
    assert_eq!(file.token_ids("tokens", None).unwrap().len(), 70);
    // Layers 0 and 2 come from the same source layer, and differ.
    let row = |layer| {
        let mut row = vec![0; shape.row_bytes()];
        file.read(&mut row, made.row_offset(layer, block::Kind::K, 0)).unwrap();
        row
    };
    assert_ne!(row(0), row(2));
    let error = generate(
        (&source, &kv),
        &Synthetic { shape: TensorShape { layers: 0, ..shape }, seed: 1 },
        &dir.path().join("x"),
        &mut |_, _| {},
    );
    assert!(matches!(error, Err(Error::Input { .. })));
}

/// How much smaller a file's KV gets, in chunks of 256 tokens and blocks of 2^20 elements.
fn ratio(file: &KvFile, kv: &KvTensor, recipe: &str) -> f64 {
    let geometry = kv.shape.geometry(256).unwrap();
    let plan = Plan::choose(&geometry, 1 << 20).unwrap();
    let mut compressor = Compressor::new(DEFLATE_LEVEL_DEFAULT, 0).unwrap();
    let (mut raw, mut wire_bytes) = (0, 0);
    for index in 0..plan.block_count(&geometry) {
        let part = plan.part(&geometry, index).unwrap();
        let (mut codes, mut wire) = (vec![0; part.tile_bytes(&geometry)], vec![0; wire_bytes_max(&geometry, &part)]);
        for chunk in 0..kv.shape.tokens / 256 {
            let mut tile = vec![0; part.tile_bytes(&geometry)];
            let layers = tile.chunks_exact_mut(part.tile_bytes(&geometry) / usize::from(part.layers));
            for (layer, bytes) in (usize::from(part.first_layer)..).zip(layers) {
                let token = chunk * 256 + usize::from(part.first_token);
                file.read(bytes, kv.row_offset(layer, part.kind, token)).unwrap();
            }
            raw += tile.len();
            let (key, order) = (ChunkKey::new([0; 32]), TileOrder::TokenMajor);
            let recipe = recipe.parse().unwrap();
            wire_bytes += encode_tile(
                recipe,
                &geometry,
                &key,
                index,
                &part,
                order,
                &tile,
                &mut codes,
                &mut wire,
                &mut compressor,
            )
            .unwrap();
        }
    }
    raw as f64 / wire_bytes as f64
}

#[test]
fn synthetic_files_shrink_as_much_as_their_source() {
    let dir = tempfile::tempdir().unwrap();
    let source = KvFile::open(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/decoder-kv.safetensors")));
    let source = source.unwrap();
    let kv = source.kv("kv", None).unwrap();
    let shape = TensorShape { layers: 6, tokens: 512, heads: 8, head_size: 128, element: ElementType::Bf16 };
    let path = dir.path().join("made");
    generate((&source, &kv), &Synthetic { shape, seed: 1 }, &path, &mut |_, _| {}).unwrap();
    let file = KvFile::open(&path).unwrap();
    let made = file.kv("kv", None).unwrap();
    for recipe in ["lossless", "q8", "q5", "q3", "q4p"] {
        let (real, synthetic) = (ratio(&source, &kv, recipe), ratio(&file, &made, recipe));
        println!("{recipe}: {real:.2} of the source, {synthetic:.2} of the synthetic file");
        let off = synthetic / real - 1.0;
        assert!(off.abs() < 0.10, "{recipe}: {real:.2} of the source, {synthetic:.2} of the synthetic file");
    }
}
