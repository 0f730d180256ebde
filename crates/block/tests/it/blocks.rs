//! Whole blocks: tile to wire and back, what falls back to what, and the numerics at their edges.

use block::codec::{self, Compressor, Decompressor};
use block::{
    ChunkKey, Codec, ElementType, Geometry, Granularity, Header, Kind, Part, Recipe, TileOrder, Transform, compare,
    encode_tile, restore, restore_checked, wire_bytes_max,
};
use half::{bf16, f16};
use proptest::prelude::*;

const KEY: ChunkKey = ChunkKey::new([9; 32]);

/// Encodes a tile, opens the block as a reader would and restores it; returns the header and the new tile.
fn through(recipe: Recipe, geometry: &Geometry, part: &Part, order: TileOrder, tile: &[u8]) -> (Header, Vec<u8>) {
    let mut compressor = Compressor::new(1, 0).unwrap();
    let mut codes = vec![0xee; tile.len()];
    let mut wire = vec![0xee; wire_bytes_max(geometry, part)];
    let bytes =
        encode_tile(recipe, geometry, &KEY, 5, part, order, tile, &mut codes, &mut wire, &mut compressor).unwrap();
    let header = Header::open(&wire[..bytes], &KEY, geometry, 5, part).unwrap();
    let (scales, payload) = (&wire[header.scales_range()], &wire[header.payload_range()]);
    let mut decoded = vec![0; header.codes_bytes as usize];
    Decompressor::new().decompress(header.codec, payload, &mut decoded).unwrap();
    assert_eq!(crc32fast::hash(&decoded), header.codes_crc);
    let mut out = vec![0x11; tile.len()];
    restore(&header, scales, &decoded, order, &mut out).unwrap();
    if header.codec == Codec::Raw {
        let mut checked = vec![0x22; tile.len()];
        restore_checked(&header, scales, payload, order, &mut checked).unwrap();
        assert_eq!(checked, out);
    }
    (header, out)
}

fn tile(element: ElementType, values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    let values = values.into_iter();
    match element {
        ElementType::Bf16 => values.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect(),
        ElementType::F16 => values.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect(),
        ElementType::F32 => values.flat_map(f32::to_le_bytes).collect(),
        ElementType::E4m3 => values.map(|v| eight_bits(v, 3, 7, 0x7e)).collect(),
        ElementType::E5m2 => values.map(|v| eight_bits(v, 2, 15, 0x7b)).collect(),
        ElementType::U8 | ElementType::U16 | ElementType::U32 => {
            values.flat_map(|v| v.to_le_bytes().into_iter().take(element.bytes())).collect()
        }
    }
}

/// A number of eight bits next to `value`, of these bits of the mantissa and this bias; `most` beyond the largest, the
/// same with a set sign for infinities and NaNs.
fn eight_bits(value: f32, mantissa: i32, bias: i32, most: u8) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    if !value.is_finite() {
        return 0x7f | sign;
    }
    let exponent = ((value.abs().to_bits() >> 23) as i32 - 127).max(1 - bias);
    let units = (value.abs() * 2f32.powi(mantissa - exponent)).round_ties_even() as i32;
    let bits = units + ((exponent + bias - 1) << mantissa);
    bits.min(most.into()) as u8 | sign
}

/// Element types that are numbers.
fn numbers() -> impl Iterator<Item = ElementType> {
    ElementType::ALL.into_iter().filter(|element| !element.is_opaque())
}

/// A wave with some structure: compressible, like KV.
fn wave(elements: usize) -> impl Iterator<Item = f32> {
    (0..elements).map(|i| (i as f32 * 0.37).sin() * (1.0 + (i % 7) as f32))
}

fn small(element: ElementType) -> (Geometry, Part) {
    let geometry = Geometry::new(2, 2, 16, 32, element).unwrap();
    (geometry, Part { kind: Kind::K, first_layer: 0, layers: 2, first_token: 0, tokens: 32 })
}

const RECIPES: [&str; 13] = [
    "none",
    "none+deflate",
    "lossless",
    "lossless+raw",
    "lossless+lz4",
    "q8",
    "q6+lz4",
    "q5",
    "q4+raw",
    "q3",
    "q4p",
    "packed5",
    "cachegen",
];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_recipe_restores_within_its_bound(
        element in prop::sample::select(&ElementType::ALL[..]),
        recipe in prop::sample::select(&RECIPES[..]),
        kind in prop::sample::select(&[Kind::K, Kind::V][..]),
        layers in 1usize..4,
        heads in 1usize..4,
        head_size in prop::sample::select(&[1usize, 3, 64, 80, 576][..]),
        tokens in 1usize..40,
        page_tokens in prop::option::of(1u16..20),
        noise in any::<u64>(),
    ) {
        let geometry = Geometry::new(layers, heads, head_size, tokens, element).unwrap();
        let (layers, tokens) = (layers as u16, tokens as u16);
        let part = Part { kind, first_layer: 0, layers, first_token: 0, tokens };
        let order = page_tokens.map_or(TileOrder::TokenMajor, |page_tokens| TileOrder::HeadMajor { page_tokens });
        let values = wave(part.elements(&geometry)).enumerate();
        let tile = tile(element, values.map(|(i, v)| v + ((noise >> (i % 50)) % 17) as f32 * 0.01));
        let recipe: Recipe = recipe.parse().unwrap();
        let (header, out) = through(recipe, &geometry, &part, order, &tile);
        let recipe = recipe.for_element(element);
        prop_assert!(header.transform == recipe.transform || recipe.transform == Transform::Lossless);
        if order == TileOrder::TokenMajor {
            let errors = compare(recipe, &geometry, &part, &tile, &out);
            prop_assert_eq!(errors.over_bound, 0, "{:?}", errors);
        }
        if !recipe.transform.quantizes() {
            prop_assert_eq!(out, tile);
        }
    }
}

#[test]
fn a_block_with_one_nan_or_infinity_is_stored_lossless_and_restores_every_bit() {
    for element in numbers() {
        let (geometry, part) = small(element);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 777, part.elements(&geometry) - 1] {
                let mut values: Vec<f32> = wave(part.elements(&geometry)).collect();
                values[place] = bad;
                let tile = tile(element, values);
                for recipe in ["q5", "q4p", "cachegen"] {
                    let (header, out) =
                        through(recipe.parse().unwrap(), &geometry, &part, TileOrder::TokenMajor, &tile);
                    let lossless = Transform::Lossless.for_element(element);
                    assert_eq!((header.transform, header.granularity), (lossless, Granularity::None));
                    assert!(out == tile, "{element} {recipe} {bad} at {place}");
                }
            }
        }
    }
}

#[test]
fn opaque_elements_come_back_to_the_bit_whatever_the_recipe_and_are_smaller_for_it() {
    for element in [ElementType::U8, ElementType::U16, ElementType::U32] {
        let geometry = Geometry::opaque(2, 32 << 10, element.bytes()).unwrap();
        let part = Part { kind: Kind::Kv, first_layer: 0, layers: 2, first_token: 0, tokens: geometry.chunk_tokens };
        let tile = tile(element, wave(part.elements(&geometry)).map(|v| (v * 4.0).round()));
        for recipe in RECIPES {
            let recipe: Recipe = recipe.parse().unwrap();
            let (header, out) = through(recipe, &geometry, &part, TileOrder::TokenMajor, &tile);
            assert!(out == tile, "{element} {recipe}");
            let shrinks = recipe.codec != Codec::Raw && element != ElementType::U8;
            assert!(!shrinks || header.wire_bytes() < tile.len() * 7 / 8, "{element} {recipe}");
            let gained_nothing = header.codec == Codec::Raw && recipe.codec != Codec::Raw;
            let expected = if gained_nothing { Transform::None } else { recipe.for_element(element).transform };
            assert_eq!(header.transform, expected, "{element} {recipe}");
        }
    }
}

#[test]
fn what_does_not_shrink_is_stored_raw() {
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    let (geometry, part) = small(ElementType::Bf16);
    // Random bits hold NaNs: lossless first, and since that does not shrink, elements as they are.
    let noise: Vec<u8> = (0..part.tile_bytes(&geometry)).map(|_| random()).collect();
    for codec in ["q8", "q8+lz4", "lossless"] {
        let (header, out) = through(codec.parse().unwrap(), &geometry, &part, TileOrder::TokenMajor, &noise);
        assert_eq!((header.transform, header.codec), (Transform::None, Codec::Raw));
        assert_eq!(header.wire_bytes(), 128 + noise.len());
        assert_eq!(out, noise);
    }
    // Uniform codes at full depth: quantized, but no codec gains 1/64.
    let uniform = tile(ElementType::Bf16, (0..part.elements(&geometry)).map(|_| f32::from(random()) - 127.5));
    let (header, _) = through("q8".parse().unwrap(), &geometry, &part, TileOrder::TokenMajor, &uniform);
    assert_eq!((header.transform, header.codec), (Transform::Q8, Codec::Raw));
}

#[test]
fn constants_and_zeros_are_exact() {
    for element in numbers() {
        let (geometry, part) = small(element);
        let elements = part.elements(&geometry);
        for value in [0.0, 1.0, -0.75, 1e-7, 60_000.0] {
            let constant = tile(element, std::iter::repeat_n(value, elements));
            for recipe in ["q8", "q5", "q3", "q4p", "cachegen", "peak1"] {
                let recipe = recipe.parse().unwrap();
                let (_, out) = through(recipe, &geometry, &part, TileOrder::TokenMajor, &constant);
                let errors = compare(recipe, &geometry, &part, &constant, &out);
                let rounding = if element == ElementType::F32 { f64::from(value.abs()) * 2e-7 } else { 0.0 };
                assert!(errors.max_abs <= rounding && errors.over_bound == 0, "{element} {recipe} {value}: {errors:?}");
            }
        }
        // A negative zero loses its sign and nothing else.
        let zeros = tile(element, (0..elements).map(|i| if i % 2 == 0 { -0.0 } else { 0.0 }));
        let (_, out) = through("q5".parse().unwrap(), &geometry, &part, TileOrder::TokenMajor, &zeros);
        assert!(out.iter().all(|&byte| byte == 0));
    }
}

#[test]
fn the_largest_numbers_stay_finite_and_the_smallest_keep_the_bound() {
    for element in numbers() {
        let (geometry, part) = small(element);
        let most = match element {
            ElementType::Bf16 => bf16::MAX.to_f32(),
            ElementType::F16 => f16::MAX.to_f32(),
            ElementType::F32 => f32::MAX,
            ElementType::E4m3 => 448.0,
            _ => 57_344.0,
        };
        let least = match element {
            ElementType::Bf16 => f32::from_bits(1 << 16),
            ElementType::F16 => 2f32.powi(-24),
            ElementType::F32 => f32::from_bits(1),
            ElementType::E4m3 => 2f32.powi(-9),
            _ => 2f32.powi(-16),
        };
        let threshold = 2f32.powi(-118);
        for m in [most, most * 0.7, least, least * 3.0, threshold, threshold * 0.99, f32::MIN_POSITIVE] {
            let wanted = wave(part.elements(&geometry)).map(|v| (v / 7.0).clamp(-1.0, 1.0) * m);
            let tile = tile(element, wanted);
            for peak in [1, 2, 3, 7, 15, 100, 127] {
                let recipe = Recipe::from(Transform::Quant { peak });
                let (header, out) = through(recipe, &geometry, &part, TileOrder::TokenMajor, &tile);
                let errors = compare(recipe, &geometry, &part, &tile, &out);
                assert!(errors.max_abs.is_finite(), "{element} {m:e} {peak}: {errors:?}");
                assert_eq!(errors.over_bound, 0, "{element} {m:e} peak {peak}: {errors:?}");
                if !header.transform.quantizes() {
                    assert!(errors.bit_equal, "{element} {m:e} {peak}");
                }
            }
        }
    }
}

#[test]
fn a_flipped_bit_of_a_payload_is_found_by_codec_or_checksum() {
    let (geometry, part) = small(ElementType::Bf16);
    let tile = tile(ElementType::Bf16, wave(part.elements(&geometry)));
    let mut compressor = Compressor::new(6, 0).unwrap();
    for recipe in ["q5+deflate", "q5+lz4", "q5+raw", "lossless", "none+raw"] {
        let mut codes = vec![0; tile.len()];
        let mut wire = vec![0; wire_bytes_max(&geometry, &part)];
        let (order, recipe) = (TileOrder::TokenMajor, recipe.parse().unwrap());
        let bytes =
            encode_tile(recipe, &geometry, &KEY, 0, &part, order, &tile, &mut codes, &mut wire, &mut compressor)
                .unwrap();
        let header = Header::open(&wire[..bytes], &KEY, &geometry, 0, &part).unwrap();
        for bit in (0..header.payload_bytes as usize * 8).step_by(7) {
            let mut payload = wire[header.payload_range()].to_vec();
            payload[bit / 8] ^= 1 << (bit % 8);
            let mut decoded = vec![0; header.codes_bytes as usize];
            let decodes = codec::decompress(header.codec, &payload, &mut decoded).is_ok();
            let same = decodes && crc32fast::hash(&decoded) == header.codes_crc;
            // Bits behind the last Deflate symbol mean nothing, so equal codes may come of it; wrong ones may not.
            assert!(!same || decoded[..] == codes[..decoded.len()], "{recipe}: bit {bit}");
        }
    }
}

#[test]
fn short_buffers_are_errors() {
    let (geometry, part) = small(ElementType::Bf16);
    let tile = tile(ElementType::Bf16, wave(part.elements(&geometry)));
    let mut compressor = Compressor::new(1, 0).unwrap();
    let mut encode = |tile: &[u8], codes_bytes: usize, wire_bytes: usize| {
        let (mut codes, mut wire) = (vec![0; codes_bytes], vec![0; wire_bytes]);
        let order = TileOrder::HeadMajor { page_tokens: 16 };
        let recipe = Recipe::from(Transform::Q5);
        encode_tile(recipe, &geometry, &KEY, 0, &part, order, tile, &mut codes, &mut wire, &mut compressor)
    };
    let most = wire_bytes_max(&geometry, &part);
    assert!(encode(&tile, tile.len(), most).is_ok());
    assert!(encode(&tile[1..], tile.len(), most).is_err());
    assert!(encode(&tile, tile.len() - 1, most).is_err());
    assert!(encode(&tile, tile.len(), most - 1).is_err());
    assert!(encode(&tile, tile.len(), 0).is_err());
}

#[test]
fn a_decoder_fills_exactly_the_codes() {
    let codes = vec![3u8; 1000];
    let mut compressor = Compressor::new(1, 1000).unwrap();
    for codec in [Codec::Deflate, Codec::Lz4] {
        let mut payload = vec![0; 900];
        let bytes = compressor.compress(codec, &codes, &mut payload).unwrap();
        for wrong in [0, 1, 999, 1001] {
            assert!(codec::decompress(codec, &payload[..bytes], &mut vec![0; wrong]).is_err(), "{codec} {wrong}");
        }
        assert_eq!(compressor.compress(codec, &codes, &mut payload[..2]), None);
    }
    assert!(Compressor::new(0, 0).is_err() && Compressor::new(13, 0).is_err());
}
