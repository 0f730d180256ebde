//! The bodies of the fast kernels: plain safe loops over runs that are contiguous in codes and in the tile, written so
//! that they vectorize. `simd` compiles each of them for the instruction sets it knows; results are bit for bit those
//! of `scalar`, on every machine.

use crate::number::{Element, SMALLEST_PEAK_VALUE, code, inverse, step, value};
use crate::recipe::Granularity;
use crate::shape::{Shape, TileOrder};
use std::ops::Range;

/// Channels whose steps are kept on the stack at a time.
const CHANNELS: usize = 256;
/// Codes that are unpacked from nibbles at a time.
const UNPACKED: usize = 256;

/// Some rows of one layer of a block, and how they are coded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    pub(crate) shape: Shape,
    pub(crate) granularity: Granularity,
    /// Two codes a byte.
    pub(crate) packed: bool,
    pub(crate) peak: u8,
    pub(crate) layer: usize,
    pub(crate) first_token: usize,
    pub(crate) tokens: usize,
}

impl Rows {
    /// All rows of one layer, for the kernels that have no scales.
    pub(crate) fn plain(shape: Shape, layer: usize) -> Self {
        let (granularity, tokens) = (Granularity::None, shape.tokens);
        Self { shape, granularity, packed: false, peak: 0, layer, first_token: 0, tokens }
    }

    #[inline(always)]
    fn tokens(&self) -> Range<usize> {
        self.first_token..self.first_token + self.tokens
    }

    /// How a row falls into runs: (runs in a row, heads in a run).
    #[inline(always)]
    fn runs(&self) -> (usize, usize) {
        let whole_row = self.shape.order == TileOrder::TokenMajor && self.granularity != Granularity::TokenHead;
        if whole_row { (1, self.shape.heads) } else { (self.shape.heads, 1) }
    }

    /// Index of the first element of `run` of `token` in the block's codes.
    #[inline(always)]
    fn code_index(&self, token: usize, run: usize, run_elements: usize) -> usize {
        self.layer * self.shape.layer() + token * self.shape.row() + run * run_elements
    }

    #[inline(always)]
    fn tile_index(&self, token: usize, run: usize, run_heads: usize) -> usize {
        self.layer * self.shape.layer() + self.shape.tile_index(token, run * run_heads)
    }
}

/// Writes one code a byte for all rows of a layer, and the layer's scales. False when a group has a NaN or an infinity
/// or is too small to be quantized; codes and scales are then unspecified.
#[inline(always)]
pub(crate) fn quantize<E: Element>(rows: &Rows, tile: &[u8], codes: &mut [u8], scales: &mut [u8]) -> bool {
    let tile = E::cast(tile);
    let scales = E::cast_mut(scales);
    let (runs, run_heads) = rows.runs();
    let run_elements = run_heads * rows.shape.head_size;
    let peak = f32::from(rows.peak);
    let mut fits = true;
    if rows.granularity == Granularity::Channel {
        for run in 0..runs {
            for first in (0..run_elements).step_by(CHANNELS) {
                let channels = CHANNELS.min(run_elements - first);
                let mut most = [E::Word::default(); CHANNELS];
                for token in rows.tokens() {
                    let at = rows.tile_index(token, run, run_heads) + first;
                    for (most, &element) in most.iter_mut().zip(&tile[at..at + channels]) {
                        *most = (*most).max(E::magnitude(element));
                    }
                }
                let mut inverses = [0.0; CHANNELS];
                let at = run * run_elements + first;
                let groups = inverses.iter_mut().zip(&mut scales[at..at + channels]).zip(&most);
                for ((to_code, scale), &m) in groups {
                    *scale = E::bytes_of(m);
                    fits &= usable::<E>(m);
                    *to_code = inverse(E::read(*scale), peak);
                }
                for token in rows.tokens() {
                    let from = rows.tile_index(token, run, run_heads) + first;
                    let to = rows.code_index(token, run, run_elements) + first;
                    let elements = tile[from..from + channels].iter().zip(&inverses);
                    for (slot, (&element, &to_code)) in codes[to..to + channels].iter_mut().zip(elements) {
                        *slot = code(E::read(element), to_code, rows.peak.into());
                    }
                }
            }
        }
        return fits;
    }
    for token in rows.tokens() {
        let mut m = E::Word::default();
        if rows.granularity == Granularity::Token {
            for run in 0..runs {
                let at = rows.tile_index(token, run, run_heads);
                m = m.max(most::<E>(&tile[at..at + run_elements]));
            }
            scales[token] = E::bytes_of(m);
        }
        for run in 0..runs {
            let from = rows.tile_index(token, run, run_heads);
            let elements = &tile[from..from + run_elements];
            if rows.granularity == Granularity::TokenHead {
                m = most::<E>(elements);
                scales[token * runs + run] = E::bytes_of(m);
            }
            fits &= usable::<E>(m);
            let to_code = inverse(E::read(E::bytes_of(m)), peak);
            let to = rows.code_index(token, run, run_elements);
            for (slot, &element) in codes[to..to + run_elements].iter_mut().zip(elements) {
                *slot = code(E::read(element), to_code, rows.peak.into());
            }
        }
    }
    fits
}

#[inline(always)]
fn most<E: Element>(elements: &[E::Bytes]) -> E::Word {
    elements.iter().fold(E::Word::default(), |m, &element| m.max(E::magnitude(element)))
}

#[inline(always)]
fn usable<E: Element>(m: E::Word) -> bool {
    let m_value = E::read(E::bytes_of(m));
    m < E::INFINITE && (m_value == 0.0 || m_value >= SMALLEST_PEAK_VALUE)
}

/// Writes the elements of some rows to the tile. `codes` are those of the whole block, `scales` of this layer.
#[inline(always)]
pub(crate) fn dequantize<E: Element>(rows: &Rows, codes: &[u8], scales: &[u8], tile: &mut [u8]) {
    let tile = E::cast_mut(tile);
    let scales = E::cast(scales);
    let (runs, run_heads) = rows.runs();
    let run_elements = run_heads * rows.shape.head_size;
    let peak = f32::from(rows.peak);
    if rows.granularity == Granularity::Channel {
        for run in 0..runs {
            for first in (0..run_elements).step_by(CHANNELS) {
                let channels = CHANNELS.min(run_elements - first);
                let mut steps = [0.0; CHANNELS];
                let at = run * run_elements + first;
                for (to_value, &scale) in steps.iter_mut().zip(&scales[at..at + channels]) {
                    *to_value = step(E::read(scale), peak);
                }
                for token in rows.tokens() {
                    let from = rows.code_index(token, run, run_elements) + first;
                    let to = rows.tile_index(token, run, run_heads) + first;
                    let mut unpacked = [0; CHANNELS];
                    let codes = run_codes(rows.packed, codes, from, channels, &mut unpacked);
                    let coded = codes.iter().zip(&steps);
                    for (element, (&code, &step)) in tile[to..to + channels].iter_mut().zip(coded) {
                        *element = E::write(value(code, rows.peak.into(), step));
                    }
                }
            }
        }
        return;
    }
    for token in rows.tokens() {
        for run in 0..runs {
            let scale = match rows.granularity {
                Granularity::TokenHead => scales[token * runs + run],
                _ => scales[token],
            };
            let step = step(E::read(scale), peak);
            let from = rows.code_index(token, run, run_elements);
            let to = rows.tile_index(token, run, run_heads);
            let out = &mut tile[to..to + run_elements];
            if rows.packed {
                for (piece, out) in out.chunks_mut(UNPACKED).enumerate() {
                    let mut unpacked = [0; UNPACKED];
                    let codes = run_codes(true, codes, from + piece * UNPACKED, out.len(), &mut unpacked);
                    dequantize_run::<E>(codes, rows.peak.into(), step, out);
                }
            } else {
                dequantize_run::<E>(&codes[from..from + run_elements], rows.peak.into(), step, out);
            }
        }
    }
}

#[inline(always)]
fn dequantize_run<E: Element>(codes: &[u8], peak: i32, step: f32, out: &mut [E::Bytes]) {
    for (element, &code) in out.iter_mut().zip(codes) {
        *element = E::write(value(code, peak, step));
    }
}

/// The codes of elements `from..from + count`, unpacked to `room` if need be.
#[inline(always)]
fn run_codes<'a>(packed: bool, codes: &'a [u8], from: usize, count: usize, room: &'a mut [u8]) -> &'a [u8] {
    if !packed {
        return &codes[from..from + count];
    }
    let room = &mut room[..count];
    if from.is_multiple_of(2) {
        let bytes = &codes[from / 2..(from + count).div_ceil(2)];
        let (pairs, last) = room.as_chunks_mut::<2>();
        for (pair, &byte) in pairs.iter_mut().zip(bytes) {
            *pair = [byte & 15, byte >> 4];
        }
        if let [last] = last {
            *last = bytes[count / 2] & 15;
        }
    } else {
        for (i, code) in room.iter_mut().enumerate() {
            *code = codes[(from + i) / 2] >> ((from + i) % 2 * 4) & 15;
        }
    }
    room
}

/// Packs one code a byte to two codes a byte, in place: code 2i in the low half of byte i, code 2i + 1 in the high.
#[inline(always)]
pub(crate) fn pack_nibbles<E: Element>(codes: &mut [u8], elements: usize) {
    let mut at = 0;
    while at < elements {
        let mut piece = [0; UNPACKED];
        let count = UNPACKED.min(elements - at);
        piece[..count].copy_from_slice(&codes[at..at + count]);
        let bytes = &mut codes[at / 2..(at + count).div_ceil(2)];
        for (byte, &[low, high]) in bytes.iter_mut().zip(piece.as_chunks::<2>().0) {
            *byte = low | high << 4;
        }
        at += count;
    }
}

/// Splits some rows into byte planes of the whole block.
#[inline(always)]
pub(crate) fn split<E: Element>(rows: &Rows, tile: &[u8], codes: &mut [u8]) {
    let tile = E::cast(tile);
    let (runs, run_heads) = rows.runs();
    let run_elements = run_heads * rows.shape.head_size;
    let elements = rows.shape.elements();
    for token in rows.tokens() {
        for run in 0..runs {
            let from = rows.tile_index(token, run, run_heads);
            let to = rows.code_index(token, run, run_elements);
            let run = &tile[from..from + run_elements];
            for plane in 0..size_of::<E::Bytes>() {
                let to = plane * elements + to;
                for (slot, &element) in codes[to..to + run_elements].iter_mut().zip(run) {
                    *slot = E::rotated(element).as_ref()[plane];
                }
            }
        }
    }
}

/// Merges some rows from the byte planes of the whole block.
#[inline(always)]
pub(crate) fn merge<E: Element>(rows: &Rows, codes: &[u8], tile: &mut [u8]) {
    let tile = E::cast_mut(tile);
    let (runs, run_heads) = rows.runs();
    let run_elements = run_heads * rows.shape.head_size;
    let elements = rows.shape.elements();
    for token in rows.tokens() {
        for run in 0..runs {
            let from = rows.code_index(token, run, run_elements);
            let to = rows.tile_index(token, run, run_heads);
            let mut planes = [&codes[..0]; 4];
            for (plane, bytes) in planes.iter_mut().take(size_of::<E::Bytes>()).enumerate() {
                let from = plane * elements + from;
                *bytes = &codes[from..from + run_elements];
            }
            E::merge(planes, &mut tile[to..to + run_elements]);
        }
    }
}

/// Calls `each` with every run's bytes in canonical order and in tile order.
#[inline(always)]
pub(crate) fn reorder(rows: &Rows, element_bytes: usize, mut each: impl FnMut(Range<usize>, Range<usize>)) {
    let (runs, run_heads) = rows.runs();
    let bytes = element_bytes;
    let run_bytes = run_heads * rows.shape.head_size * bytes;
    for token in rows.tokens() {
        for run in 0..runs {
            let plain = rows.code_index(token, run, run_heads * rows.shape.head_size) * bytes;
            let tile = rows.tile_index(token, run, run_heads) * bytes;
            each(plain..plain + run_bytes, tile..tile + run_bytes);
        }
    }
}
