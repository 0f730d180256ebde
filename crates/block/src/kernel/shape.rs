//! Where an element of a block lies: in codes (canonical order, token-major) and in a tile (the order in which it goes
//! to host memory). The kernels walk runs that are contiguous in both.

use crate::format::geometry::Geometry;
use crate::format::plan::Part;

/// The order of a tile's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TileOrder {
    /// Canonical: `[layer][token][head][head_size]`.
    TokenMajor,
    /// `[layer][page][head][token in page][head_size]`; the last page holds the tokens that remain.
    HeadMajor { page_tokens: u16 },
}

/// A part's extents as plain numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) layers: usize,
    pub(crate) tokens: usize,
    pub(crate) heads: usize,
    pub(crate) head_size: usize,
    pub(crate) order: TileOrder,
}

impl Shape {
    pub(crate) fn new(geometry: &Geometry, part: &Part, order: TileOrder) -> Self {
        Self {
            layers: part.layers.into(),
            tokens: part.tokens.into(),
            heads: geometry.heads.into(),
            head_size: geometry.head_size.into(),
            order,
        }
    }

    #[inline(always)]
    pub(crate) fn row(&self) -> usize {
        self.heads * self.head_size
    }

    #[inline(always)]
    pub(crate) fn layer(&self) -> usize {
        self.tokens * self.row()
    }

    #[inline(always)]
    pub(crate) fn elements(&self) -> usize {
        self.layers * self.layer()
    }

    /// Place of a token in a tile's layer: the index of its first element, and the distance from one head to the next.
    #[inline(always)]
    pub(crate) fn place(&self, token: usize) -> (usize, usize) {
        match self.order {
            TileOrder::TokenMajor => (token * self.row(), self.head_size),
            TileOrder::HeadMajor { page_tokens } => {
                let page_tokens = page_tokens as usize;
                let first = token / page_tokens * page_tokens;
                let held = page_tokens.min(self.tokens - first);
                (first * self.row() + (token - first) * self.head_size, held * self.head_size)
            }
        }
    }
}
