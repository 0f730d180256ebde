//! The oracle of the fast kernels: one element at a time, straight from the formulas of docs/formats.md, with other
//! people's number conversions. And the claims that compare the two, bit for bit.

use crate::format::geometry::{ElementType, Geometry};
use crate::format::plan::{Kind, Part};
use crate::format::recipe::{Granularity, Transform};
use crate::kernel::shape::TileOrder;
use half::{bf16, f16};
use std::sync::LazyLock;

fn read(element: ElementType, bytes: &[u8], index: usize) -> f32 {
    let at = |n: usize| &bytes[index * n..(index + 1) * n];
    match element {
        ElementType::Bf16 => bf16::from_le_bytes(at(2).try_into().unwrap()).to_f32(),
        ElementType::F16 => f16::from_le_bytes(at(2).try_into().unwrap()).to_f32(),
        ElementType::F32 => f32::from_le_bytes(at(4).try_into().unwrap()),
        ElementType::E4m3 | ElementType::E5m2 => {
            let magnitude = eight_bit_values(element).get(usize::from(bytes[index] & 0x7f));
            magnitude.unwrap_or(&f32::NAN).copysign(if bytes[index] & 0x80 == 0 { 1.0 } else { -1.0 })
        }
        ElementType::U8 | ElementType::U16 | ElementType::U32 => unreachable!("opaque"),
    }
}

/// The magnitudes that eight bits have, from zero on: what lies behind them is no number.
fn eight_bit_values(element: ElementType) -> &'static [f32] {
    fn values(mantissa: i32, bias: i32, count: i32) -> Vec<f32> {
        let value = |bits: i32| {
            let (exponent, fraction) = (bits >> mantissa, bits & ((1 << mantissa) - 1));
            let significand = if exponent == 0 { fraction } else { fraction + (1 << mantissa) };
            significand as f32 * 2f32.powi(exponent.max(1) - bias - mantissa)
        };
        (0..count).map(value).collect()
    }
    static E4M3: LazyLock<Vec<f32>> = LazyLock::new(|| values(3, 7, 0x7f));
    static E5M2: LazyLock<Vec<f32>> = LazyLock::new(|| values(2, 15, 0x7c));
    match element {
        ElementType::E4m3 => &E4M3,
        ElementType::E5m2 => &E5M2,
        _ => unreachable!("more bits"),
    }
}

/// The nearest of some values, the even one of two.
fn eight_bits(element: ElementType, value: f32) -> u8 {
    let values = eight_bit_values(element);
    let above = values.partition_point(|&of| of < value.abs()).clamp(1, values.len() - 1);
    let distance = |bits: &usize| (f64::from(values[*bits]) - f64::from(value.abs())).abs();
    let nearer = |a: &usize, b: &usize| distance(a).total_cmp(&distance(b)).then((a % 2).cmp(&(b % 2)));
    let nearest = [above - 1, above].into_iter().min_by(nearer).expect("two");
    nearest as u8 | if value.is_sign_negative() { 0x80 } else { 0 }
}

fn write(element: ElementType, value: f32) -> Vec<u8> {
    match element {
        ElementType::Bf16 => bf16::from_f32(value).to_le_bytes().to_vec(),
        ElementType::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        ElementType::F32 => value.to_le_bytes().to_vec(),
        ElementType::E4m3 | ElementType::E5m2 => vec![eight_bits(element, value)],
        ElementType::U8 | ElementType::U16 | ElementType::U32 => unreachable!("opaque"),
    }
}

/// The tile's element index of every element in canonical order.
fn tile_indices(geometry: &Geometry, part: &Part, order: TileOrder) -> Vec<usize> {
    let (tokens, heads, size) = (part.tokens as usize, geometry.heads as usize, geometry.head_size as usize);
    let canonical = |layer, token, head, i| ((layer * tokens + token) * heads + head) * size + i;
    let mut indices = vec![usize::MAX; part.elements(geometry)];
    let mut next = 0;
    for layer in 0..part.layers as usize {
        match order {
            TileOrder::TokenMajor => {
                for i in 0..tokens * heads * size {
                    indices[canonical(layer, 0, 0, i)] = next;
                    next += 1;
                }
            }
            TileOrder::HeadMajor { page_tokens } => {
                for page in 0..tokens.div_ceil(page_tokens.into()) {
                    let first = page * page_tokens as usize;
                    for head in 0..heads {
                        for token in first..tokens.min(first + page_tokens as usize) {
                            for i in 0..size {
                                indices[canonical(layer, token, head, i)] = next;
                                next += 1;
                            }
                        }
                    }
                }
            }
        }
    }
    indices
}

pub(crate) fn to_canonical(geometry: &Geometry, part: &Part, order: TileOrder, tile: &[u8]) -> Vec<u8> {
    let n = geometry.element.bytes();
    tile_indices(geometry, part, order).iter().flat_map(|&i| &tile[i * n..(i + 1) * n]).copied().collect()
}

pub(crate) fn from_canonical(geometry: &Geometry, part: &Part, order: TileOrder, plain: &[u8]) -> Vec<u8> {
    let n = geometry.element.bytes();
    let mut tile = vec![0; plain.len()];
    for (from, to) in tile_indices(geometry, part, order).into_iter().enumerate() {
        tile[to * n..(to + 1) * n].copy_from_slice(&plain[from * n..(from + 1) * n]);
    }
    tile
}

/// Which scale of the block's list an element uses.
fn group(geometry: &Geometry, part: &Part, granularity: Granularity, index: usize) -> usize {
    let (row, size, tokens) = (geometry.row_elements(), geometry.head_size as usize, part.tokens as usize);
    let layer = index / (row * tokens);
    match granularity {
        Granularity::None => unreachable!("no scales"),
        Granularity::Token => index / row,
        Granularity::TokenHead => index / size,
        Granularity::Channel => layer * row + index % row,
    }
}

/// Codes, and peaks with scales, of canonical elements; `None` where the block must be stored lossless.
pub(crate) fn quantize(
    transform: Transform,
    granularity: Granularity,
    geometry: &Geometry,
    part: &Part,
    plain: &[u8],
) -> Option<(Vec<u8>, Vec<u8>)> {
    let element = geometry.element;
    let elements = part.elements(geometry);
    let peak_of =
        |layer: usize| transform.peak(part.kind, part.first_layer + layer as u16).expect("a quantizing transform");
    let groups = group(geometry, part, granularity, elements - 1) + 1;
    let mut most = vec![0f32; groups];
    for i in 0..elements {
        let x = read(element, plain, i).abs();
        let m = &mut most[group(geometry, part, granularity, i)];
        if x.is_nan() || *m < x {
            *m = x;
        }
        if m.is_nan() {
            return None;
        }
    }
    if most.iter().any(|&m| m.is_infinite() || (m > 0.0 && m < 2f32.powi(-118))) {
        return None;
    }
    let mut codes = Vec::new();
    for i in 0..elements {
        let peak = peak_of(i / (geometry.row_elements() * part.tokens as usize));
        let m = most[group(geometry, part, granularity, i)];
        let inverse = if m == 0.0 { 0.0 } else { f32::from(peak) / m };
        codes.push(((read(element, plain, i) * inverse).round_ties_even() as i32 + i32::from(peak)) as u8);
    }
    if matches!(transform, Transform::Packed { .. }) {
        codes = codes.chunks(2).map(|pair| pair[0] | pair.get(1).map_or(0, |high| high << 4)).collect();
    }
    let peaks = (0..part.layers as usize).map(peak_of);
    let scales = peaks.chain(most.iter().flat_map(|&m| write(element, m))).collect();
    Some((codes, scales))
}

/// Canonical elements of codes.
pub(crate) fn dequantize(
    transform: Transform,
    granularity: Granularity,
    geometry: &Geometry,
    part: &Part,
    codes: &[u8],
    scales: &[u8],
) -> Vec<u8> {
    let element = geometry.element;
    let (peaks, scales) = scales.split_at(part.layers.into());
    let mut plain = Vec::new();
    for i in 0..part.elements(geometry) {
        let code = match transform {
            Transform::Packed { .. } if i % 2 == 0 => codes[i / 2] & 15,
            Transform::Packed { .. } => codes[i / 2] >> 4,
            _ => codes[i],
        };
        let peak = f32::from(peaks[i / (geometry.row_elements() * part.tokens as usize)]);
        let m = read(element, scales, group(geometry, part, granularity, i));
        let mut step = m / peak;
        if step * peak > m {
            step = step.next_down();
        }
        plain.extend(write(element, (f32::from(code) - peak) * step));
    }
    plain
}

pub(crate) fn split(element: ElementType, plain: &[u8]) -> Vec<u8> {
    let n = element.bytes();
    let rotate = |bytes: &[u8]| match *bytes {
        [a, b] => u16::from_le_bytes([a, b]).rotate_left(1).to_le_bytes().to_vec(),
        [a, b, c, d] => u32::from_le_bytes([a, b, c, d]).rotate_left(1).to_le_bytes().to_vec(),
        _ => unreachable!("elements are 2 or 4 bytes"),
    };
    let rotated: Vec<Vec<u8>> = plain.chunks(n).map(rotate).collect();
    (0..n).flat_map(|plane| rotated.iter().map(move |bytes| bytes[plane])).collect()
}

mod tests {
    use super::*;
    use crate::codec::Codec;
    use crate::format::header::Header;
    use crate::format::key::ChunkKey;
    use crate::kernel::simd::on_each_instruction_set;
    use crate::restore::{restore, restore_checked};
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    struct Case {
        geometry: Geometry,
        part: Part,
        order: TileOrder,
        plain: Vec<u8>,
        /// Distance of codes and of tiles from a multiple of 64.
        misaligned: usize,
    }

    /// `bytes` bytes that start `misaligned` bytes after a multiple of 64.
    fn room(room: &mut Vec<u8>, bytes: usize, misaligned: usize) -> &mut [u8] {
        room.resize(bytes + 128, 0x55);
        let start = room.as_ptr().align_offset(64) + misaligned;
        &mut room[start..start + bytes]
    }

    /// Mostly ordinary numbers, some groups of zeros, large and small ones, some of everything a word can be.
    fn values(element: ElementType, elements: usize, style: u8, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        // The largest number, about, and some inverse of small ones.
        let (most, inverse) = match element {
            ElementType::F16 => (63_898.0, 1_u32 << 18),
            ElementType::E4m3 => (448.0, 1 << 6),
            ElementType::E5m2 => (57_344.0, 1 << 14),
            _ => (3.2e38, 1 << 31),
        };
        let style = if element.is_opaque() { u8::MAX } else { style };
        (0..elements)
            .flat_map(|_| {
                let unit = (next() % 20_001) as f32 / 10_000.0 - 1.0;
                match style {
                    0 => write(element, unit),
                    1 => write(element, if next() % 3 == 0 { -0.0 } else { 0.0 }),
                    2 => write(element, unit * most),
                    3 => write(element, unit / inverse as f32),
                    4 if next() % 8 != 0 => write(element, 0.0),
                    4 => write(element, unit * 100.0),
                    5 => write(element, unit * 1e-38),
                    _ => next().to_le_bytes()[..element.bytes()].to_vec(),
                }
            })
            .collect()
    }

    prop_compose! {
        fn cases()(
            // Miri knows AVX2, but no conversions from and to f16.
            element in prop::sample::select(
                if cfg!(miri) {
                    &[ElementType::Bf16, ElementType::F32, ElementType::U8][..]
                } else {
                    &ElementType::ALL[..]
                }
            ),
            layers in 1usize..4,
            first_layer in 0u16..12,
            heads in 1usize..5,
            head_size in prop_oneof![
                prop::sample::select(&[1usize, 3, 16, 33, 64, 80, 128, 257, 576][..]),
                1usize..200,
            ],
            tokens in 1usize..40,
            page_tokens in prop::option::of(1u16..45),
            kind in prop::sample::select(&[Kind::K, Kind::V][..]),
            style in 0u8..7,
            seed in any::<u64>(),
            misaligned in 0usize..64,
        ) -> Case {
            let (layers, tokens) = if cfg!(miri) { (1, 1 + tokens % 2) } else { (layers, tokens) };
            let head_size = if cfg!(miri) { 32 + head_size % 4 } else { head_size };
            let geometry = Geometry::new(16, heads, head_size, 40, element).unwrap();
            let part = Part { kind, first_layer, layers: layers as u16, first_token: 0, tokens: tokens as u16 };
            let order = page_tokens.map_or(TileOrder::TokenMajor, |page_tokens| TileOrder::HeadMajor { page_tokens });
            let plain = values(element, part.elements(&geometry), style, seed);
            Case { geometry, part, order, plain, misaligned }
        }
    }

    fn header(case: &Case, transform: Transform, granularity: Granularity, codes: &[u8]) -> Header {
        Header {
            key: ChunkKey::new([1; 32]),
            geometry: case.geometry,
            part: case.part,
            block_index: 0,
            transform,
            codec: Codec::Raw,
            granularity,
            scale_bytes: case.part.scale_bytes(&case.geometry, granularity) as u32,
            codes_bytes: codes.len() as u32,
            payload_bytes: codes.len() as u32,
            codes_crc: crc32fast::hash(codes),
            head_crc: 0,
        }
    }

    fn transforms() -> impl Strategy<Value = Transform> {
        prop_oneof![
            Just(Transform::None),
            Just(Transform::Lossless),
            (1u8..=7).prop_map(|peak| Transform::Packed { peak }),
            Just(Transform::CacheGen),
            (1u8..=127).prop_map(|peak| Transform::Quant { peak }),
        ]
    }

    /// There and back by the kernels of every instruction set here and by the oracle: equal codes, scales and elements,
    /// to the bit.
    fn equals_the_oracle(case: &Case, transform: Transform, granularity: Granularity) -> Result<(), TestCaseError> {
        on_each_instruction_set(|set| {
            equal(case, transform, granularity).map_err(|e| TestCaseError::fail(format!("{set}: {e}")))
        })
    }

    fn equal(case: &Case, transform: Transform, granularity: Granularity) -> Result<(), TestCaseError> {
        let Case { geometry, part, order, plain, misaligned } = case;
        let granularity = if transform.quantizes() { granularity } else { Granularity::None };
        let mut rooms = [const { Vec::new() }; 3];
        let [tile, codes, out] = rooms.each_mut().map(|vec| room(vec, plain.len(), *misaligned));
        tile.copy_from_slice(&from_canonical(geometry, part, *order, plain));
        prop_assert_eq!(&to_canonical(geometry, part, *order, tile), plain);

        let mut scales = vec![0xaa; part.scale_bytes(geometry, granularity)];
        let made = crate::quantize(transform, granularity, geometry, part, *order, tile, codes, &mut scales).unwrap();
        let codes = &codes[..made.codes_bytes];
        scales.truncate(made.scale_bytes);
        let kept = Transform::Lossless.for_element(geometry.element);
        let transform = transform.for_element(geometry.element);
        let oracle = if transform.quantizes() { quantize(transform, granularity, geometry, part, plain) } else { None };
        let expected = match (oracle, transform) {
            (Some((oracle_codes, oracle_scales)), _) => {
                prop_assert_eq!(made.transform, transform);
                prop_assert_eq!(codes, &oracle_codes);
                prop_assert_eq!(&scales, &oracle_scales);
                dequantize(transform, granularity, geometry, part, codes, &scales)
            }
            (None, Transform::None) => {
                prop_assert_eq!(made.transform, Transform::None);
                prop_assert_eq!(codes, plain);
                plain.clone()
            }
            (None, _) => {
                prop_assert_eq!(made.transform, kept);
                let expected = if kept == Transform::None { plain.clone() } else { split(geometry.element, plain) };
                prop_assert_eq!(codes, &expected);
                plain.clone()
            }
        };

        let mut header = header(case, made.transform, made.granularity, codes);
        restore(&header, &scales, codes, *order, out).unwrap();
        prop_assert!(to_canonical(geometry, part, *order, out) == expected);
        out.fill(0x55);
        restore_checked(&header, &scales, codes, *order, out).unwrap();
        prop_assert!(to_canonical(geometry, part, *order, out) == expected);
        header.codes_crc ^= 1;
        prop_assert!(restore_checked(&header, &scales, codes, *order, out).is_err());

        let errors = crate::compare_at(made.transform.into(), made.granularity, geometry, part, plain, &expected);
        prop_assert_eq!(errors.over_bound, 0, "{:?}", errors);
        Ok(())
    }

    proptest! {
        // As many cases as `PROPTEST_CASES` says, or 256.
        #![proptest_config(ProptestConfig {
            cases: if cfg!(miri) { 6 } else { ProptestConfig::default().cases },
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn fast_kernels_equal_the_oracle_bit_for_bit(
            case in cases(),
            transform in transforms(),
            granularity in prop::sample::select(&Granularity::ALL[..]),
        ) {
            equals_the_oracle(&case, transform, granularity)?;
        }

        #[test]
        #[cfg(not(miri))]
        fn a_checksum_in_pieces_is_the_checksum_of_the_whole(
            case in cases(),
            tokens in 64u16..400,
            transform in transforms(),
        ) {
            // Large enough that `restore_checked` works in several pieces; the codes need not mean anything.
            let mut case = case;
            case.geometry.chunk_tokens = 1024;
            case.part.tokens = tokens;
            let element_bytes = case.geometry.element.bytes();
            let codes_bytes = transform.codes_bytes(case.part.elements(&case.geometry), element_bytes);
            let codes: Vec<u8> = (0..codes_bytes).map(|i| (i * 31 + i / 255) as u8).collect();
            let granularity = Granularity::chosen(transform, case.part.kind);
            let header = header(&case, transform, granularity, &codes);
            let mut scales = vec![7; header.scale_bytes as usize];
            scales.iter_mut().take(case.part.layers.into()).for_each(|peak| *peak = 7);
            let mut whole = vec![0; case.part.tile_bytes(&case.geometry)];
            let mut pieces = whole.clone();
            restore(&header, &scales, &codes, case.order, &mut whole).unwrap();
            restore_checked(&header, &scales, &codes, case.order, &mut pieces).unwrap();
            prop_assert!(whole == pieces);
        }
    }

    #[test]
    fn the_kernels_run_on_what_the_processor_has() {
        let sets = crate::kernel::simd::instruction_sets();
        println!("kernels of {}: {sets:?}", std::env::consts::ARCH);
        assert!(!cfg!(target_arch = "aarch64") || sets == ["neon", "plain"]);
        assert!(!cfg!(all(target_feature = "avx2", target_feature = "f16c")) || sets.contains(&"avx2"));
    }

    /// No draw of the lot: each element type with each transform, granularity and order, on numbers of every style, at
    /// lengths with and without a remainder of the vector loops.
    #[test]
    #[cfg(not(miri))]
    fn every_instruction_set_equals_the_oracle_for_every_transform_and_element_type() {
        let peaks = [1, 3, 7, 15, 31, 63, 127].map(|peak| Transform::Quant { peak });
        let packed = [1, 7].map(|peak| Transform::Packed { peak });
        let others = [Transform::None, Transform::Lossless, Transform::CacheGen];
        let orders = [TileOrder::TokenMajor, TileOrder::HeadMajor { page_tokens: 3 }];
        let mut compared = 0;
        for element in ElementType::ALL {
            for (head_size, style) in [33, 144].into_iter().flat_map(|size| (0..7).map(move |style| (size, style))) {
                let geometry = Geometry::new(16, 2, head_size, 40, element).unwrap();
                let part = Part { kind: Kind::K, first_layer: 5, layers: 2, first_token: 0, tokens: 4 };
                let plain = values(element, part.elements(&geometry), style, u64::from(style) + 17);
                for order in orders {
                    let case = Case { geometry, part, order, plain: plain.clone(), misaligned: style as usize };
                    for transform in peaks.into_iter().chain(packed).chain(others) {
                        for granularity in Granularity::ALL {
                            equals_the_oracle(&case, transform, granularity).unwrap_or_else(|what| {
                                panic!("{element} {transform} {granularity:?} {order:?} {style}: {what}")
                            });
                            compared += 1;
                        }
                    }
                }
            }
        }
        println!("compared {compared} combinations");
    }

    /// All codes of every scale of 8 or 16 bits that an encoder writes; of 16 every 61st where `PROPTEST_CASES` asks
    /// for less.
    #[test]
    #[cfg(not(miri))]
    fn every_scale_restores_as_the_oracle_does() {
        let stride = if ProptestConfig::default().cases < 256 { 61 } else { 1 };
        for (element, scales) in [
            (ElementType::E4m3, 0..0x7fu16),
            (ElementType::E5m2, 0..0x7c),
            (ElementType::F16, 0..0x7c00),
            (ElementType::Bf16, (127 - 118) << 7..0x7f80),
        ] {
            let scales: Vec<u16> = scales.step_by(if element.bytes() == 1 { 1 } else { stride }).collect();
            for (peak, scales) in
                [7, 15, 31, 127].into_iter().flat_map(|peak| scales.chunks(512).map(move |s| (peak, s)))
            {
                let levels = 2 * usize::from(peak) + 1;
                let geometry = Geometry::new(1, 1, levels, 512, element).unwrap();
                let part =
                    Part { kind: Kind::K, first_layer: 0, layers: 1, first_token: 0, tokens: scales.len() as u16 };
                let codes: Vec<u8> = (0..scales.len() * levels).map(|i| (i % levels) as u8).collect();
                let (transform, granularity, order) =
                    (Transform::Quant { peak }, Granularity::Token, TileOrder::TokenMajor);
                let scales = scales.iter().flat_map(|s| s.to_le_bytes().into_iter().take(element.bytes()));
                let scales: Vec<u8> = [peak].into_iter().chain(scales).collect();
                let case = Case { geometry, part, order, plain: Vec::new(), misaligned: 0 };
                let header = header(&case, transform, granularity, &codes);
                let expected = dequantize(transform, granularity, &geometry, &part, &codes, &scales);
                on_each_instruction_set(|set| {
                    let mut out = vec![0x55; expected.len()];
                    restore(&header, &scales, &codes, order, &mut out).unwrap();
                    if out == expected { Ok(()) } else { Err(format!("{set}: {element}, peak {peak}")) }
                })
                .unwrap();
            }
        }
    }

    /// Every f16 and bf16 word there and back, and rounding of values between them, as `half` does it; of eight bits as
    /// this file does.
    #[test]
    #[cfg(not(miri))]
    fn conversions_agree_with_half_on_all_words() {
        use crate::kernel::number::{Bf16, E4m3, E5m2, Element, F16};
        for word in 0..=u16::MAX {
            let bytes = word.to_le_bytes();
            if F16::magnitude(bytes) < F16::INFINITE {
                assert_eq!(F16::read(bytes).to_bits(), f16::from_bits(word).to_f32().to_bits());
                assert_eq!(F16::write(F16::read(bytes)), bytes);
            }
            if Bf16::magnitude(bytes) < Bf16::INFINITE {
                assert_eq!(Bf16::read(bytes).to_bits(), bf16::from_bits(word).to_f32().to_bits());
                assert_eq!(Bf16::write(Bf16::read(bytes)), bytes);
            }
        }
        for step in 0..1 << 22 {
            let value = f32::from_bits(step * 1023);
            if value.abs() < 65_504.0 {
                assert_eq!(F16::write(-value), f16::from_f32(-value).to_le_bytes(), "{value:e}");
            }
            if value.abs() < 3e38 {
                assert_eq!(Bf16::write(value), bf16::from_f32(value).to_le_bytes(), "{value:e}");
            }
            // The oracle of these counts through all values.
            if step % 64 == 0 && value.abs() < 448.0 {
                assert_eq!(E4m3::write(-value), [eight_bits(ElementType::E4m3, -value)], "{value:e}");
            }
            if step % 64 == 0 && value.abs() < 57_344.0 {
                assert_eq!(E5m2::write(value), [eight_bits(ElementType::E5m2, value)], "{value:e}");
            }
        }
        for byte in (0..=0xff).map(|byte| [byte]) {
            if E4m3::magnitude(byte) < E4m3::INFINITE {
                assert_eq!(E4m3::read(byte).to_bits(), read(ElementType::E4m3, &byte, 0).to_bits());
                assert_eq!(E4m3::write(E4m3::read(byte)), byte);
            }
            if E5m2::magnitude(byte) < E5m2::INFINITE {
                assert_eq!(E5m2::read(byte).to_bits(), read(ElementType::E5m2, &byte, 0).to_bits());
                assert_eq!(E5m2::write(E5m2::read(byte)), byte);
            }
        }
        // As in torch.
        assert_eq!([0x01, 0x38, 0xb9, 0x7e].map(|byte| E4m3::read([byte])), [2f32.powi(-9), 1.0, -1.125, 448.0]);
        assert_eq!([0x01, 0x3c, 0xbd, 0x7b].map(|byte| E5m2::read([byte])), [2f32.powi(-16), 1.0, -1.25, 57_344.0]);
    }
}
