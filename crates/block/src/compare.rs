//! How far restored elements are from the originals, and whether the quantizer kept its documented bound.

use crate::format::geometry::{ElementType, Geometry};
use crate::format::plan::Part;
use crate::format::recipe::{Granularity, Recipe};
use crate::kernel::number::{Bf16, E4m3, E5m2, Element, F16, F32};

/// Differences between an original part and its restoration.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Errors {
    pub elements: usize,
    pub max_abs: f64,
    pub rms: f64,
    /// Cosine of the two parts as vectors; 1 where both are zero.
    pub cosine: f64,
    /// Elements beyond the bound of docs/formats.md: `m / (2 C) + m / 2^21 + ulp(m) / 2`, 0 where nothing is quantized.
    /// Of opaque elements all that differ; they have no other error.
    pub over_bound: usize,
    pub bit_equal: bool,
}

/// Compares two parts in canonical order, each [`Part::tile_bytes`] long, with the granularity that the encoder uses.
///
/// # Panics
/// When a slice has another length.
pub fn compare(recipe: Recipe, geometry: &Geometry, part: &Part, original: &[u8], restored: &[u8]) -> Errors {
    compare_at(recipe, Granularity::chosen(recipe.transform, part.kind), geometry, part, original, restored)
}

/// [`compare`] for another granularity.
pub fn compare_at(
    recipe: Recipe,
    granularity: Granularity,
    geometry: &Geometry,
    part: &Part,
    original: &[u8],
    restored: &[u8],
) -> Errors {
    let bytes = part.tile_bytes(geometry);
    assert_eq!((original.len(), restored.len()), (bytes, bytes), "compare takes whole parts");
    match geometry.element {
        ElementType::Bf16 => typed::<Bf16>(recipe, granularity, geometry, part, original, restored),
        ElementType::F16 => typed::<F16>(recipe, granularity, geometry, part, original, restored),
        ElementType::F32 => typed::<F32>(recipe, granularity, geometry, part, original, restored),
        ElementType::E4m3 => typed::<E4m3>(recipe, granularity, geometry, part, original, restored),
        ElementType::E5m2 => typed::<E5m2>(recipe, granularity, geometry, part, original, restored),
        ElementType::U8 | ElementType::U16 | ElementType::U32 => opaque(geometry.element, original, restored),
    }
}

/// Opaque elements have no distance: each that differs is beyond its bound.
fn opaque(element: ElementType, original: &[u8], restored: &[u8]) -> Errors {
    let pairs = original.chunks_exact(element.bytes()).zip(restored.chunks_exact(element.bytes()));
    let over_bound = pairs.filter(|(before, after)| before != after).count();
    let elements = original.len() / element.bytes();
    let cosine = if over_bound == 0 { 1.0 } else { 0.0 };
    Errors { elements, cosine, over_bound, bit_equal: over_bound == 0, ..Errors::default() }
}

fn typed<E: Element>(
    recipe: Recipe,
    granularity: Granularity,
    geometry: &Geometry,
    part: &Part,
    original: &[u8],
    restored: &[u8],
) -> Errors {
    let (before, after) = (E::cast(original), E::cast(restored));
    let (row, head_size) = (geometry.row_elements(), geometry.head_size as usize);
    let layer_elements = row * part.tokens as usize;
    let mut errors = Errors { elements: before.len(), bit_equal: original == restored, ..Errors::default() };
    let (mut squares, mut dot, mut before_square, mut after_square) = (0.0, 0.0, 0.0, 0.0);
    for (layer, (before, after)) in before.chunks(layer_elements).zip(after.chunks(layer_elements)).enumerate() {
        let peak = recipe.transform.peak(part.kind, part.first_layer + layer as u16);
        let group = |i: usize| match granularity {
            Granularity::None => 0,
            Granularity::Token => i / row,
            Granularity::TokenHead => i / head_size,
            Granularity::Channel => i % row,
        };
        let groups = granularity.scales(part.tokens.into(), geometry.heads.into(), head_size).max(1);
        let mut most = vec![E::Word::default(); groups];
        before.iter().enumerate().for_each(|(i, &x)| most[group(i)] = most[group(i)].max(E::magnitude(x)));
        let bounds: Vec<f64> = most.iter().map(|&m| peak.map_or(0.0, |peak| bound::<E>(m, peak))).collect();
        for (i, (&x, &y)) in before.iter().zip(after).enumerate() {
            let (x, y) = (f64::from(E::read(x)), f64::from(E::read(y)));
            let error = (x - y).abs();
            errors.max_abs = errors.max_abs.max(error);
            squares += error * error;
            dot += x * y;
            before_square += x * x;
            after_square += y * y;
            errors.over_bound += usize::from(error > bounds[group(i)]);
        }
    }
    errors.rms = (squares / before.len() as f64).sqrt();
    let norms = (before_square * after_square).sqrt();
    errors.cosine = if norms > 0.0 { dot / norms } else { f64::from(before_square == after_square) };
    errors
}

/// The documented bound of a group whose largest magnitude is `m`.
pub(crate) fn bound<E: Element>(m: E::Word, peak: u8) -> f64 {
    let m = f64::from(E::read(E::bytes_of(m)));
    m / (2.0 * f64::from(peak)) + m / f64::from(1 << 21) + ulp(E::TYPE, m) / 2.0
}

/// The distance to the next larger element of the binade of `m`.
fn ulp(element: ElementType, m: f64) -> f64 {
    let (mantissa, least) = match element {
        ElementType::Bf16 => (7, -126),
        ElementType::F16 => (10, -14),
        ElementType::F32 => (23, -126),
        ElementType::E4m3 => (3, -6),
        ElementType::E5m2 => (2, -14),
        ElementType::U8 | ElementType::U16 | ElementType::U32 => unreachable!("opaque elements are no numbers"),
    };
    let exponent = if m == 0.0 { least } else { ((m.to_bits() >> 52) as i32 - 1023).max(least) };
    2f64.powi(exponent - mantissa)
}
