//! The bodies of the fast kernels: they walk rows run by run and leave each run to `run`. `simd` compiles them for the
//! instruction sets it knows; results are bit for bit those of `oracle`, on every machine.

use crate::format::recipe::Granularity;
use crate::kernel::lanes::{Lanes, TABLE_PEAK_MAX, UNIT};
use crate::kernel::number::{Element, SMALLEST_PEAK_VALUE, inverse, step};
use crate::kernel::rows::{Rows, TOKENS};
use crate::kernel::run::{self, Levels, LookupTable, Step};

/// Channels whose steps are kept on the stack at a time.
const CHANNELS: usize = 1024;

/// A number for each channel, at an address that vector loads like.
#[repr(align(64))]
struct Channels([f32; CHANNELS]);

/// The bytes of `count` elements from element `first` on.
#[inline(always)]
fn elements_at<E: Element>(tile: &[u8], first: usize, count: usize) -> &[u8] {
    &tile[first * E::BYTES..][..count * E::BYTES]
}

#[inline(always)]
fn elements_at_mut<E: Element>(tile: &mut [u8], first: usize, count: usize) -> &mut [u8] {
    &mut tile[first * E::BYTES..][..count * E::BYTES]
}

/// Writes one code a byte for all rows of a layer, and the layer's scales. False when a group has a NaN or an infinity
/// or is too small to be quantized; codes and scales are then unspecified.
#[inline(always)]
pub(crate) fn quantize<E: Element, L: Lanes>(
    lanes: L,
    rows: &Rows,
    tile: &[u8],
    codes: &mut [u8],
    scales: &mut [u8],
) -> bool {
    if rows.granularity == Granularity::Channel {
        return quantize_channels::<E, L>(lanes, rows, tile, codes, scales);
    }
    let scales = E::cast_mut(scales);
    let runs = rows.runs().0;
    let mut fits = true;
    let mut inverses = [0.0; TOKENS];
    let mut to_scale = |m: E::Word, scale: &mut E::Bytes| {
        fits &= usable::<E>(m);
        *scale = E::bytes_of(m);
        inverse(E::read(*scale), rows.peak.into())
    };
    for group in rows.groups() {
        if rows.granularity == Granularity::Token {
            let mut most_of = [E::Word::default(); TOKENS];
            for run in 0..runs {
                let stripe = rows.stripe(&group, run);
                for (m, (_, from)) in most_of.iter_mut().zip(stripe.places()) {
                    *m = (*m).max(most::<E>(elements_at::<E>(tile, from, stripe.elements)));
                }
            }
            for ((inverse, m), scale) in inverses.iter_mut().zip(most_of).zip(&mut scales[group.tokens.clone()]) {
                *inverse = to_scale(m, scale);
            }
        }
        for run in 0..runs {
            let stripe = rows.stripe(&group, run);
            for ((token, inverse), (to, from)) in group.tokens.clone().zip(&mut inverses).zip(stripe.places()) {
                let elements = elements_at::<E>(tile, from, stripe.elements);
                if rows.granularity == Granularity::TokenHead {
                    *inverse = to_scale(most::<E>(elements), &mut scales[token * runs + run]);
                }
                let codes = &mut codes[to..to + stripe.elements];
                run::codes::<E, L>(lanes, elements, rows.peak, *inverse, codes);
            }
        }
    }
    fits
}

#[inline(always)]
fn quantize_channels<E: Element, L: Lanes>(
    lanes: L,
    rows: &Rows,
    tile: &[u8],
    codes: &mut [u8],
    scales: &mut [u8],
) -> bool {
    let mut fits = true;
    for (first, scales) in (0..).step_by(CHANNELS).zip(E::cast_mut(scales).chunks_mut(CHANNELS)) {
        let channels = first..first + scales.len();
        let mut most = [E::Word::default(); CHANNELS];
        for (at, stripe) in rows.stripes_of(channels.clone()) {
            let most = &mut most[at..at + stripe.elements];
            for (_, from) in stripe.places() {
                raise::<E>(most, elements_at::<E>(tile, from, stripe.elements));
            }
        }
        let mut inverses = Channels([0.0; CHANNELS]);
        for ((to_code, scale), &m) in inverses.0.iter_mut().zip(scales).zip(&most) {
            *scale = E::bytes_of(m);
            fits &= usable::<E>(m);
            *to_code = inverse(E::read(*scale), rows.peak.into());
        }
        for (at, stripe) in rows.stripes_of(channels) {
            let inverses = &inverses.0[at..at + stripe.elements];
            for (to, from) in stripe.places() {
                let elements = elements_at::<E>(tile, from, stripe.elements);
                let codes = &mut codes[to..to + stripe.elements];
                run::channel_codes::<E, L>(lanes, elements, rows.peak, inverses, codes);
            }
        }
    }
    fits
}

/// Raises each of some magnitudes to that of its element.
#[inline(always)]
fn raise<E: Element>(most: &mut [E::Word], elements: &[u8]) {
    for (m, &element) in most.iter_mut().zip(E::cast(elements)) {
        *m = (*m).max(E::magnitude(element));
    }
}

#[inline(always)]
fn most<E: Element>(elements: &[u8]) -> E::Word {
    E::cast(elements).iter().fold(E::Word::default(), |m, &element| m.max(E::magnitude(element)))
}

#[inline(always)]
fn usable<E: Element>(m: E::Word) -> bool {
    let m_value = E::read(E::bytes_of(m));
    m < E::INFINITE && (m_value == 0.0 || m_value >= SMALLEST_PEAK_VALUE)
}

/// Writes the elements of some rows to the tile. `codes` are those of the whole block, `scales` of this layer.
#[inline(always)]
pub(crate) fn dequantize<E: Element, L: Lanes>(lanes: L, rows: &Rows, codes: &[u8], scales: &[u8], tile: &mut [u8]) {
    let widest = run::widest_table::<E, L>();
    let tabled = |peak_max: u8| rows.peak <= peak_max.min(widest);
    match (rows.granularity, rows.packed) {
        (Granularity::Channel, _) => dequantize_channels::<E, L>(lanes, rows, codes, scales, tile),
        (_, true) if tabled(TABLE_PEAK_MAX) => {
            dequantize_rows::<E, L, LookupTable<L, false>, true>(lanes, rows, codes, scales, tile);
        }
        (_, true) => dequantize_rows::<E, L, Step, true>(lanes, rows, codes, scales, tile),
        (_, false) if tabled(TABLE_PEAK_MAX) => {
            dequantize_rows::<E, L, LookupTable<L, false>, false>(lanes, rows, codes, scales, tile);
        }
        (_, false) if tabled(widest) => {
            dequantize_rows::<E, L, LookupTable<L, true>, false>(lanes, rows, codes, scales, tile);
        }
        (_, false) => dequantize_rows::<E, L, Step, false>(lanes, rows, codes, scales, tile),
    }
}

#[inline(always)]
fn dequantize_rows<E: Element, L: Lanes, V: Levels<L>, const PACKED: bool>(
    lanes: L,
    rows: &Rows,
    codes: &[u8],
    scales: &[u8],
    tile: &mut [u8],
) {
    let scales = E::cast(scales);
    let runs = rows.runs().0;
    let mut levels = [levels_of::<E, L, V>(lanes, rows.peak, E::bytes_of(E::Word::default())); TOKENS];
    for group in rows.groups() {
        if rows.granularity == Granularity::Token {
            for (levels, &scale) in levels.iter_mut().zip(&scales[group.tokens.clone()]) {
                *levels = levels_of::<E, L, V>(lanes, rows.peak, scale);
            }
        }
        for run in 0..runs {
            let stripe = rows.stripe(&group, run);
            for ((token, levels), (from, to)) in group.tokens.clone().zip(&mut levels).zip(stripe.places()) {
                if rows.granularity == Granularity::TokenHead {
                    *levels = levels_of::<E, L, V>(lanes, rows.peak, scales[token * runs + run]);
                }
                let elements = elements_at_mut::<E>(tile, to, stripe.elements);
                if PACKED {
                    packed_run::<E, L, V>(lanes, codes, from, levels, elements);
                } else {
                    run::values::<E, L, V>(lanes, &codes[from..from + stripe.elements], levels, elements);
                }
            }
        }
    }
}

#[inline(always)]
fn levels_of<E: Element, L: Lanes, V: Levels<L>>(lanes: L, peak: u8, scale: E::Bytes) -> V {
    V::new::<E>(lanes, peak, step(E::read(scale), peak.into()))
}

/// Elements of the codes from `from` on, two a byte.
#[inline(always)]
fn packed_run<E: Element, L: Lanes, V: Levels<L>>(
    lanes: L,
    codes: &[u8],
    from: usize,
    levels: &V,
    elements: &mut [u8],
) {
    let count = elements.len() / E::BYTES;
    if from % 2 + count % 2 == 0 {
        return run::packed_values::<E, L, V>(lanes, &codes[from / 2..][..count / 2], levels, elements);
    }
    // It begins or ends inside a byte.
    let (first, elements) = elements.split_at_mut(from % 2 * E::BYTES);
    if from % 2 == 1 {
        run::values::<E, L, V>(lanes, &[codes[from / 2] >> 4], levels, first);
    }
    let pairs = elements.len() / (2 * E::BYTES);
    let (elements, last) = elements.split_at_mut(pairs * 2 * E::BYTES);
    let codes = &codes[from.div_ceil(2)..];
    run::packed_values::<E, L, V>(lanes, &codes[..pairs], levels, elements);
    if !last.is_empty() {
        run::values::<E, L, V>(lanes, &[codes[pairs] & 15], levels, last);
    }
}

#[inline(always)]
fn dequantize_channels<E: Element, L: Lanes>(lanes: L, rows: &Rows, codes: &[u8], scales: &[u8], tile: &mut [u8]) {
    for (first, scales) in (0..).step_by(CHANNELS).zip(E::cast(scales).chunks(CHANNELS)) {
        let mut steps = Channels([0.0; CHANNELS]);
        let mut unpacked = [0; CHANNELS + 2];
        for (to_value, &scale) in steps.0.iter_mut().zip(scales) {
            *to_value = step(E::read(scale), rows.peak.into());
        }
        for (at, stripe) in rows.stripes_of(first..first + scales.len()) {
            let steps = &steps.0[at..at + stripe.elements];
            for (from, to) in stripe.places() {
                let elements = elements_at_mut::<E>(tile, to, stripe.elements);
                let codes = if rows.packed {
                    run::unpack(&codes[from / 2..(from + stripe.elements).div_ceil(2)], &mut unpacked);
                    &unpacked[from % 2..][..stripe.elements]
                } else {
                    &codes[from..from + stripe.elements]
                };
                run::channel_values::<E, L>(lanes, codes, rows.peak, steps, elements);
            }
        }
    }
}

/// Packs one code a byte to two codes a byte, in place: code 2i in the low half of byte i, code 2i + 1 in the high.
#[inline(always)]
pub(crate) fn pack_nibbles<E: Element, L: Lanes>(lanes: L, codes: &mut [u8], elements: usize) {
    let whole = elements / UNIT * UNIT;
    for at in (0..whole).step_by(UNIT) {
        let pairs = lanes.pack(codes[at..].first_chunk().expect("a unit"));
        codes[at / 2..][..UNIT / 2].copy_from_slice(&pairs);
    }
    for at in (whole..elements).step_by(2) {
        let high = if at + 1 < elements { codes[at + 1] } else { 0 };
        codes[at / 2] = codes[at] | high << 4;
    }
}

/// Copies some rows from canonical order to the tile's.
#[inline(always)]
pub(crate) fn scatter<E: Element, L: Lanes>(_: L, rows: &Rows, plain: &[u8], tile: &mut [u8]) {
    for stripe in rows.stripes() {
        for (from, to) in stripe.places() {
            let elements = elements_at::<E>(plain, from, stripe.elements);
            elements_at_mut::<E>(tile, to, stripe.elements).copy_from_slice(elements);
        }
    }
}

/// Copies some rows from the tile's order to canonical order.
#[inline(always)]
pub(crate) fn gather<E: Element, L: Lanes>(_: L, rows: &Rows, tile: &[u8], plain: &mut [u8]) {
    for stripe in rows.stripes() {
        for (to, from) in stripe.places() {
            let elements = elements_at::<E>(tile, from, stripe.elements);
            elements_at_mut::<E>(plain, to, stripe.elements).copy_from_slice(elements);
        }
    }
}

/// Splits some rows into byte planes of the whole block.
#[inline(always)]
pub(crate) fn split<E: Element, L: Lanes>(_: L, rows: &Rows, tile: &[u8], codes: &mut [u8]) {
    let plane_bytes = rows.shape.elements();
    for stripe in rows.stripes() {
        for (to, from) in stripe.places() {
            let elements = E::cast(elements_at::<E>(tile, from, stripe.elements));
            for plane in 0..E::BYTES {
                let slots = &mut codes[plane * plane_bytes + to..][..stripe.elements];
                for (slot, &element) in slots.iter_mut().zip(elements) {
                    *slot = E::rotated(element).as_ref()[plane];
                }
            }
        }
    }
}

/// Merges some rows from the byte planes of the whole block.
#[inline(always)]
pub(crate) fn merge<E: Element, L: Lanes>(_: L, rows: &Rows, codes: &[u8], tile: &mut [u8]) {
    let plane_bytes = rows.shape.elements();
    for stripe in rows.stripes() {
        for (from, to) in stripe.places() {
            let mut planes = [&codes[..0]; 4];
            for (plane, bytes) in planes.iter_mut().take(E::BYTES).enumerate() {
                *bytes = &codes[plane * plane_bytes + from..][..stripe.elements];
            }
            E::merge(planes, E::cast_mut(elements_at_mut::<E>(tile, to, stripe.elements)));
        }
    }
}
