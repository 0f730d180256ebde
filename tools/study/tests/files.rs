//! Files that are compared, and files that are made.

#[path = "../../../host-ctl/tests/it/kv_files.rs"]
#[allow(dead_code, reason = "each test takes what it needs")]
mod kv_files;

use std::fs;
use std::path::Path;

use block::codec::{Compressor, DEFLATE_LEVEL_DEFAULT};
use block::{ChunkKey, ElementType, Geometry, Header, Plan, Recipe, TileOrder, encode_tile, restore, wire_bytes_max};
use host_ctl::{Error, KvFile, KvTensor, TensorShape};
use kv_files::{kv_file, rows, values};
use study::{Synthetic, compare, generate};

const GEOMETRY: Geometry = Geometry { layers: 2, heads: 2, head_size: 8, chunk_tokens: 16, element: ElementType::Bf16 };

/// Quantizes and restores every block of a tensor.
fn through(recipe: Recipe, bytes: &[u8], tokens: usize, elements: usize) -> Vec<u8> {
    let mut restored = bytes.to_vec();
    let plan = Plan::choose(&GEOMETRY, elements).unwrap();
    let mut compressor = Compressor::new(DEFLATE_LEVEL_DEFAULT, GEOMETRY.chunk_bytes()).unwrap();
    let key = ChunkKey::new([1; 32]);
    for chunk in 0..tokens / 16 {
        for index in 0..plan.block_count(&GEOMETRY) {
            let part = plan.part(&GEOMETRY, index).unwrap();
            let tile: Vec<u8> =
                rows(&part, tokens, chunk).into_iter().flat_map(|range| bytes[range].to_vec()).collect();
            let mut codes = vec![0; tile.len()];
            let mut wire = vec![0; wire_bytes_max(&GEOMETRY, &part)];
            let order = TileOrder::TokenMajor;
            let count = encode_tile(
                recipe,
                &GEOMETRY,
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
            let header = Header::open(&wire[..count], &key, &GEOMETRY, index, &part).unwrap();
            let mut codes = vec![0; header.codes_bytes as usize];
            block::codec::decompress(header.codec, &wire[header.payload_range()], &mut codes).unwrap();
            let mut tile = vec![0; tile.len()];
            restore(&header, &wire[header.scales_range()], &codes, order, &mut tile).unwrap();
            let mut rest = &tile[..];
            for range in rows(&part, tokens, chunk) {
                let (row, next) = rest.split_at(range.len());
                restored[range].copy_from_slice(row);
                rest = next;
            }
        }
    }
    restored
}

#[test]
fn restored_data_is_within_its_bound_and_one_element_beyond_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (tokens, shape) = (48, [2, 2, 48, 2, 8]);
    let bytes = values(2 * 2 * 48 * 16, 5);
    let original = KvFile::open(&kv_file(dir.path(), "original", &bytes, &shape)).unwrap();
    let kv = original.kv("kv", None).unwrap();
    // Whole chunks in a block, and blocks of half a chunk's tokens, whose scales are others.
    for elements in [1 << 18, 128] {
        for recipe in ["lossless", "none", "q8", "q5", "q3", "q4p", "cachegen", "peak20+raw"] {
            let recipe: Recipe = recipe.parse().unwrap();
            let restored = through(recipe, &bytes, tokens, elements);
            let look = |bytes: &[u8]| {
                let path = kv_file(dir.path(), "restored", bytes, &shape);
                let file = KvFile::open(&path).unwrap();
                let restored = file.kv("kv", None).unwrap();
                compare((&original, &kv), (&file, &restored), recipe, 16, elements).unwrap()
            };
            let found = look(&restored);
            assert!(found.is_kept(), "{recipe}: {found:?}");
            assert_eq!(found.is_bit_equal(), restored == bytes, "{recipe}");
            assert_eq!((found.chunks, found.k.elements), (3, 2 * 48 * 16));
            assert_eq!(found.is_bit_equal(), !recipe.transform.quantizes());
            assert!(found.k.cosine_min > 0.99, "{recipe}: {found:?}");
            // One element of V a little too far, and one that is no number.
            let at = (48 + 5) * 32 + 8;
            for wrong in [half::bf16::from_f32(9.0), half::bf16::NAN] {
                let mut restored = restored.clone();
                restored[at..at + 2].copy_from_slice(&wrong.to_le_bytes());
                let found = look(&restored);
                assert!(!found.is_kept(), "{recipe} {wrong}");
                assert_eq!(found.v.over_bound, 1, "{recipe} {wrong}");
                assert_eq!(found.k.over_bound, 0);
            }
        }
    }
}

#[test]
fn files_that_do_not_belong_together_are_not_compared() {
    let dir = tempfile::tempdir().unwrap();
    let open = |name: &str, shape: &[usize]| {
        let file = KvFile::open(&kv_file(dir.path(), name, &values(shape.iter().product(), 1), shape)).unwrap();
        let kv = file.kv("kv", None).unwrap();
        (file, kv)
    };
    let (original, kv) = open("a", &[2, 2, 32, 2, 8]);
    for shape in [[2, 2, 48, 2, 8], [2, 2, 20, 2, 8], [1, 2, 16, 2, 8], [2, 2, 16, 4, 4]] {
        let (other, other_kv) = open("b", &shape);
        let error = compare((&original, &kv), (&other, &other_kv), "q5".parse().unwrap(), 16, 1 << 18).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{shape:?}: {error}");
    }
    let (other, other_kv) = open("b", &[2, 2, 16, 2, 8]);
    let found = compare((&original, &kv), (&other, &other_kv), "none".parse().unwrap(), 16, 1 << 18).unwrap();
    assert_eq!((found.chunks, found.tokens_missing), (1, 16));
}

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
