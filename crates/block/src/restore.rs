//! Decoding: codes to a tile. [`restore`] is for codes whose CRC-32 was computed on the way (the decompress engine does
//! it over its output); [`restore_checked`] is for raw payloads and computes it in the same pass, in pieces that stay
//! in the cache. Either way nothing of the tile may be used unless the call says `Ok`.

use crate::format::header::Header;
use crate::format::recipe::{Granularity, Transform};
use crate::kernel::rows::Rows;
use crate::kernel::shape::{Shape, TileOrder};
use crate::kernel::simd;
use std::fmt;

/// Elements that [`restore_checked`] takes at a time: codes and tile of a piece fit the L2 cache of one core.
const PIECE_ELEMENTS: usize = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreError {
    PageTokens,
    Bytes { buffer: &'static str, expected: usize, found: usize },
    CodesCrc { expected: u32, found: u32 },
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PageTokens => write!(f, "restore: a page of 0 tokens"),
            Self::Bytes { buffer, expected, found } => {
                write!(f, "restore: {buffer} has {found} bytes, not {expected}")
            }
            Self::CodesCrc { expected, found } => {
                write!(f, "restore: crc-32 of the codes is {found:08x}, the header says {expected:08x}")
            }
        }
    }
}

impl std::error::Error for RestoreError {}

/// Codes to tile. `header` and `scales` have passed [`Header::open`], and the codes' CRC-32 was compared by the caller.
pub fn restore(
    header: &Header,
    scales: &[u8],
    codes: &[u8],
    order: TileOrder,
    tile: &mut [u8],
) -> Result<(), RestoreError> {
    let restorer = Restorer::new(header, scales, codes, order, tile)?;
    for layer in 0..restorer.shape.layers {
        restorer.rows(layer, 0, restorer.shape.tokens, tile);
    }
    Ok(())
}

/// [`restore`] that also computes the CRC-32 of the codes: for raw payloads, which no engine has checked.
pub fn restore_checked(
    header: &Header,
    scales: &[u8],
    codes: &[u8],
    order: TileOrder,
    tile: &mut [u8],
) -> Result<(), RestoreError> {
    let restorer = Restorer::new(header, scales, codes, order, tile)?;
    let shape = restorer.shape;
    let piece_tokens = match order {
        TileOrder::TokenMajor => (PIECE_ELEMENTS / shape.row()).max(1),
        TileOrder::HeadMajor { page_tokens } => {
            (PIECE_ELEMENTS / shape.row()).max(1).next_multiple_of(page_tokens.into())
        }
    };
    let mut sums = Sums::new(header);
    for layer in 0..shape.layers {
        for first in (0..shape.tokens).step_by(piece_tokens) {
            let tokens = piece_tokens.min(shape.tokens - first);
            sums.update(codes, layer * shape.layer() + (first + tokens) * shape.row());
            restorer.rows(layer, first, tokens, tile);
        }
    }
    let found = sums.finish(codes);
    if found != header.codes_crc {
        return Err(RestoreError::CodesCrc { expected: header.codes_crc, found });
    }
    Ok(())
}

/// One block's codes on their way to a tile, lengths checked.
struct Restorer<'a> {
    header: &'a Header,
    shape: Shape,
    peaks: &'a [u8],
    scales: &'a [u8],
    codes: &'a [u8],
}

impl<'a> Restorer<'a> {
    fn new(
        header: &'a Header,
        scales: &'a [u8],
        codes: &'a [u8],
        order: TileOrder,
        tile: &[u8],
    ) -> Result<Self, RestoreError> {
        let exactly = |buffer, expected, found| {
            if expected == found { Ok(()) } else { Err(RestoreError::Bytes { buffer, expected, found }) }
        };
        let Header { geometry, part, transform, .. } = header;
        let elements = part.elements(geometry);
        exactly("tile", part.tile_bytes(geometry), tile.len())?;
        exactly("codes", transform.codes_bytes(elements, geometry.element.bytes()), codes.len())?;
        exactly("scales", part.scale_bytes(geometry, header.granularity), scales.len())?;
        if order == (TileOrder::HeadMajor { page_tokens: 0 }) {
            return Err(RestoreError::PageTokens);
        }
        let shape = Shape::new(geometry, part, order);
        let (peaks, scales) = if header.granularity == Granularity::None {
            (&scales[..0], scales)
        } else {
            scales.split_at(shape.layers)
        };
        Ok(Self { header, shape, peaks, scales, codes })
    }

    /// Restores some rows of one layer.
    fn rows(&self, layer: usize, first_token: usize, tokens: usize, tile: &mut [u8]) {
        let element = self.header.geometry.element;
        let plain = Rows { first_token, tokens, ..Rows::plain(self.shape, layer) };
        match self.header.transform {
            Transform::None => simd::scatter(element, &plain, self.codes, tile),
            Transform::Lossless => simd::merge(element, &plain, self.codes, tile),
            Transform::Quant { .. } | Transform::CacheGen | Transform::Packed { .. } => {
                let rows = Rows {
                    granularity: self.header.granularity,
                    packed: matches!(self.header.transform, Transform::Packed { .. }),
                    peak: self.peaks[layer],
                    ..plain
                };
                let layer_bytes = self.scales.len() / self.shape.layers;
                let scales = &self.scales[layer * layer_bytes..][..layer_bytes];
                simd::dequantize(element, &rows, self.codes, scales, tile);
            }
        }
    }
}

/// The CRC-32 of codes that are read in step with the elements: one running sum for each of the places where codes of
/// one element lie (one, or one in each byte plane), combined at the end in the order of the bytes.
struct Sums {
    sums: [crc32fast::Hasher; 4],
    planes: usize,
    plane_bytes: usize,
    /// Codes bytes of `elements` elements in one plane.
    halved: bool,
    element_bytes: usize,
    done: usize,
}

impl Sums {
    fn new(header: &Header) -> Self {
        let element_bytes = header.geometry.element.bytes();
        let (planes, element_bytes) = match header.transform {
            Transform::Lossless => (element_bytes, 1),
            Transform::None => (1, element_bytes),
            _ => (1, 1),
        };
        Self {
            sums: Default::default(),
            planes,
            plane_bytes: header.codes_bytes as usize / planes,
            halved: matches!(header.transform, Transform::Packed { .. }),
            element_bytes,
            done: 0,
        }
    }

    /// Takes in the codes of all elements below `elements`.
    fn update(&mut self, codes: &[u8], elements: usize) {
        let end = if self.halved { elements / 2 } else { elements * self.element_bytes };
        self.advance(codes, end);
    }

    fn advance(&mut self, codes: &[u8], end: usize) {
        for (plane, sum) in self.sums.iter_mut().take(self.planes).enumerate() {
            let start = plane * self.plane_bytes;
            sum.update(&codes[start + self.done..start + end]);
        }
        self.done = end;
    }

    fn finish(mut self, codes: &[u8]) -> u32 {
        self.advance(codes, self.plane_bytes);
        let [mut total, rest @ ..] = self.sums;
        for sum in &rest[..self.planes - 1] {
            total.combine(sum);
        }
        total.finalize()
    }
}
