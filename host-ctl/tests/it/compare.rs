//! Files that are compared: the original and what was restored of it.

use block::codec::{Compressor, DEFLATE_LEVEL_DEFAULT};
use block::{ChunkKey, Header, Plan, Recipe, TileOrder, encode_tile, restore, wire_bytes_max};
use host_ctl::{KvFile, compare};

use crate::kv_files::{GEOMETRY, kv_file, rows, values};

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
