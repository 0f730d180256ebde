//! Encoding: tile to codes and scales ([`quantize`]), codes to a wire block ([`pack`]), or both ([`encode_tile`]).
//!
//! What cannot be quantized within the documented bound is stored lossless, and what does not shrink is stored raw:
//! the header says what was done, so these are facts of one block, not errors. Callers pass every buffer.

use crate::codec::{Codec, Compressor};
use crate::format::geometry::{Geometry, GeometryError};
use crate::format::header::{HEADER_BYTES, Header};
use crate::format::key::ChunkKey;
use crate::format::plan::{BLOCKS_PER_CHUNK_MAX, Part, wire_bytes_max};
use crate::format::recipe::{Granularity, Recipe, Transform};
use crate::format::words::align64;
use crate::kernel::rows::Rows;
use crate::kernel::shape::{Shape, TileOrder};
use crate::kernel::simd;
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncodeError {
    Geometry(GeometryError),
    Part,
    PageTokens,
    BlockIndex(usize),
    Granularity(Granularity),
    /// A buffer of the caller is too short (codes, scales, wire) or not exactly right (tile).
    Bytes {
        buffer: &'static str,
        expected: usize,
        found: usize,
    },
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Geometry(e) => write!(f, "encode: {e}"),
            Self::Part => write!(f, "encode: the part lies outside the geometry"),
            Self::PageTokens => write!(f, "encode: a page of 0 tokens"),
            Self::BlockIndex(n) => write!(f, "encode: block index {n}, below {BLOCKS_PER_CHUNK_MAX}"),
            Self::Granularity(g) => write!(f, "encode: granularity {g:?} does not fit the transform"),
            Self::Bytes { buffer, expected, found } => {
                write!(f, "encode: {buffer} has {found} bytes, needs {expected}")
            }
        }
    }
}

impl std::error::Error for EncodeError {}

/// Result of [`quantize`]: the transform that was used in the end, and the lengths of its two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantized {
    pub transform: Transform,
    pub granularity: Granularity,
    pub scale_bytes: usize,
    pub codes_bytes: usize,
}

/// Transforms a tile to `codes`, with peaks and scales in `scales`.
///
/// `codes` needs room for a tile ([`Part::tile_bytes`]), `scales` for [`Part::scale_bytes`] (in a wire area: all that
/// follows the header). The transform is that for the geometry's elements ([`Transform::for_element`]); a block with a
/// NaN, an infinity, or a group whose largest magnitude is nonzero and below 2^-118 becomes [`Transform::Lossless`].
#[allow(clippy::too_many_arguments)] // the caller's buffers, each by its name
pub fn quantize(
    transform: Transform,
    granularity: Granularity,
    geometry: &Geometry,
    part: &Part,
    order: TileOrder,
    tile: &[u8],
    codes: &mut [u8],
    scales: &mut [u8],
) -> Result<Quantized, EncodeError> {
    check(geometry, part)?;
    if order == (TileOrder::HeadMajor { page_tokens: 0 }) {
        return Err(EncodeError::PageTokens);
    }
    if transform.quantizes() != (granularity != Granularity::None) {
        return Err(EncodeError::Granularity(granularity));
    }
    let tile_bytes = part.tile_bytes(geometry);
    if tile.len() != tile_bytes {
        return Err(EncodeError::Bytes { buffer: "tile", expected: tile_bytes, found: tile.len() });
    }
    let codes = room("codes", codes, tile_bytes)?;
    let transform = transform.for_element(geometry.element);
    let granularity = if transform.quantizes() { granularity } else { Granularity::None };
    let scale_bytes = part.scale_bytes(geometry, granularity);
    let scales = room("scales", scales, scale_bytes)?;
    let shape = Shape::new(geometry, part, order);
    if transform.quantizes() && layers(transform, granularity, geometry, part, &shape, tile, codes, scales) {
        return Ok(Quantized::new(transform, granularity, geometry, part));
    }
    let kept = match transform {
        Transform::None => Transform::None,
        _ => Transform::Lossless.for_element(geometry.element),
    };
    match kept {
        Transform::None => as_is(&shape, geometry, tile, codes),
        _ => planes(&shape, geometry, tile, codes),
    }
    Ok(Quantized::new(kept, Granularity::None, geometry, part))
}

impl Quantized {
    fn new(transform: Transform, granularity: Granularity, geometry: &Geometry, part: &Part) -> Self {
        Self {
            transform,
            granularity,
            scale_bytes: part.scale_bytes(geometry, granularity),
            codes_bytes: transform.codes_bytes(part.elements(geometry), geometry.element.bytes()),
        }
    }
}

/// Quantizes layer by layer; false as soon as one does not fit the quantizer.
#[allow(clippy::too_many_arguments)] // as above
fn layers(
    transform: Transform,
    granularity: Granularity,
    geometry: &Geometry,
    part: &Part,
    shape: &Shape,
    tile: &[u8],
    codes: &mut [u8],
    scales: &mut [u8],
) -> bool {
    let (peaks, scales) = scales.split_at_mut(shape.layers);
    let layer_scales = scales.chunks_exact_mut(scales.len() / shape.layers);
    for (layer, (peak_slot, scales)) in peaks.iter_mut().zip(layer_scales).enumerate() {
        let peak = transform.peak(part.kind, part.first_layer + layer as u16).expect("a transform that quantizes");
        *peak_slot = peak;
        let rows = Rows { granularity, peak, ..Rows::plain(*shape, layer) };
        if !simd::quantize(geometry.element, &rows, tile, codes, scales) {
            return false;
        }
    }
    if matches!(transform, Transform::Packed { .. }) {
        simd::pack_nibbles(geometry.element, codes, shape.elements());
    }
    true
}

fn planes(shape: &Shape, geometry: &Geometry, tile: &[u8], codes: &mut [u8]) {
    for layer in 0..shape.layers {
        simd::split(geometry.element, &Rows::plain(*shape, layer), tile, codes);
    }
}

fn as_is(shape: &Shape, geometry: &Geometry, tile: &[u8], codes: &mut [u8]) {
    for layer in 0..shape.layers {
        simd::gather(geometry.element, &Rows::plain(*shape, layer), tile, codes);
    }
}

fn check(geometry: &Geometry, part: &Part) -> Result<(), EncodeError> {
    geometry.check().map_err(EncodeError::Geometry)?;
    if part.within(geometry) { Ok(()) } else { Err(EncodeError::Part) }
}

fn room<'a>(buffer: &'static str, bytes: &'a mut [u8], expected: usize) -> Result<&'a mut [u8], EncodeError> {
    let found = bytes.len();
    bytes.get_mut(..expected).ok_or(EncodeError::Bytes { buffer, expected, found })
}

/// Compresses what [`quantize`] left in `codes` and finishes the wire block, whose peaks and scales are in place
/// already ([`HEADER_BYTES`] from the start of `wire`). Returns the block's bytes. `wire` needs [`wire_bytes_max`].
///
/// A payload that saves less than 1/64 is stored raw; raw byte planes are merged back to elements
/// ([`Transform::None`]), so that a reader need not undo what won nothing.
#[allow(clippy::too_many_arguments)] // as above
pub fn pack(
    quantized: &Quantized,
    codec: Codec,
    geometry: &Geometry,
    key: &ChunkKey,
    block_index: usize,
    part: &Part,
    codes: &[u8],
    wire: &mut [u8],
    compressor: &mut Compressor,
) -> Result<usize, EncodeError> {
    check(geometry, part)?;
    if block_index >= BLOCKS_PER_CHUNK_MAX {
        return Err(EncodeError::BlockIndex(block_index));
    }
    if *quantized != Quantized::new(quantized.transform, quantized.granularity, geometry, part) {
        return Err(EncodeError::Granularity(quantized.granularity));
    }
    let wire = room("wire", wire, wire_bytes_max(geometry, part))?;
    let Some(codes) = codes.get(..quantized.codes_bytes) else {
        return Err(EncodeError::Bytes { buffer: "codes", expected: quantized.codes_bytes, found: codes.len() });
    };
    let scales = HEADER_BYTES..HEADER_BYTES + quantized.scale_bytes;
    let payload_start = align64(scales.end);
    wire[scales.end..payload_start].fill(0);
    let mut header = Header {
        key: *key,
        geometry: *geometry,
        part: *part,
        block_index: block_index as u16,
        transform: quantized.transform,
        codec,
        granularity: quantized.granularity,
        scale_bytes: quantized.scale_bytes as u32,
        codes_bytes: codes.len() as u32,
        payload_bytes: codes.len() as u32,
        codes_crc: 0,
        head_crc: 0,
    };
    // What is worth it: at least 1/64 and at least one byte less than the codes.
    let worth = codes.len() - (codes.len() / 64).max(1);
    let payload = &mut wire[payload_start..payload_start + codes.len()];
    let compressed = match codec {
        Codec::Raw => None,
        Codec::Deflate | Codec::Lz4 => compressor.compress(codec, codes, &mut payload[..worth]),
    };
    if let Some(bytes) = compressed {
        header.payload_bytes = bytes as u32;
        header.codes_crc = crc32fast::hash(codes);
    } else {
        header.codec = Codec::Raw;
        if quantized.transform == Transform::Lossless && codec != Codec::Raw {
            header.transform = Transform::None;
            let shape = Shape::new(geometry, part, TileOrder::TokenMajor);
            for layer in 0..shape.layers {
                simd::merge(geometry.element, &Rows::plain(shape, layer), codes, payload);
            }
        } else {
            payload.copy_from_slice(codes);
        }
        header.codes_crc = crc32fast::hash(payload);
    }
    header.seal(&wire[scales]);
    header.encode(wire);
    Ok(header.wire_bytes())
}

/// A tile to a wire block: [`quantize`] with the measured granularity, then [`pack`]. Returns the block's bytes.
#[allow(clippy::too_many_arguments)] // as above
pub fn encode_tile(
    recipe: Recipe,
    geometry: &Geometry,
    key: &ChunkKey,
    block_index: usize,
    part: &Part,
    order: TileOrder,
    tile: &[u8],
    codes: &mut [u8],
    wire: &mut [u8],
    compressor: &mut Compressor,
) -> Result<usize, EncodeError> {
    check(geometry, part)?;
    let needs = wire_bytes_max(geometry, part);
    room("wire", wire, needs)?;
    let recipe = recipe.for_element(geometry.element);
    let granularity = Granularity::chosen(recipe.transform, part.kind);
    let scales = &mut wire[HEADER_BYTES..];
    let quantized = quantize(recipe.transform, granularity, geometry, part, order, tile, codes, scales)?;
    pack(&quantized, recipe.codec, geometry, key, block_index, part, codes, wire, compressor)
}
