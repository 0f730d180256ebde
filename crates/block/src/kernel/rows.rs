//! How rows are walked: runs that are contiguous in codes and in the tile, in the order in which the tile's memory
//! lies.

use crate::format::recipe::Granularity;
use crate::kernel::shape::{Shape, TileOrder};
use std::ops::Range;

/// Tokens of a group: what is kept for each of them (16 tables at most) stays in the nearest cache.
pub(crate) const TOKENS: usize = 16;

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

    /// Runs in a row, and elements in a run.
    #[inline(always)]
    pub(crate) fn runs(&self) -> (usize, usize) {
        let Shape { heads, head_size, order, .. } = self.shape;
        let whole_row = order == TileOrder::TokenMajor && self.granularity != Granularity::TokenHead;
        if whole_row { (1, heads * head_size) } else { (heads, head_size) }
    }

    /// The rows in groups that are walked run by run: in head-major order, where a run's tokens are neighbours, up to
    /// [`TOKENS`] of one page.
    #[inline(always)]
    pub(crate) fn groups(&self) -> impl Iterator<Item = Group> {
        let Self { shape, granularity, layer, .. } = *self;
        let mut left = self.tokens();
        std::iter::from_fn(move || {
            let first = left.start;
            let most = match shape.order {
                TileOrder::TokenMajor if granularity == Granularity::None => left.len(),
                TileOrder::TokenMajor => 1,
                TileOrder::HeadMajor { page_tokens } => TOKENS.min(page_tokens as usize - first % page_tokens as usize),
            };
            left.start = left.end.min(first + most);
            let (tile, run_stride) = shape.place(first);
            let layer = layer * shape.layer();
            (first < left.start).then_some(Group {
                tokens: first..left.start,
                code: layer + first * shape.row(),
                tile: layer + tile,
                run_stride,
            })
        })
    }

    /// One run of a group's tokens. Without scales, and in the same order in codes and in the tile, it is one long run.
    #[inline(always)]
    pub(crate) fn stripe(&self, group: &Group, run: usize) -> Stripe {
        let (row, elements) = (self.shape.row(), self.runs().1);
        let token_major = self.shape.order == TileOrder::TokenMajor;
        let joined = token_major && self.granularity == Granularity::None;
        let tokens = group.tokens.len();
        Stripe {
            count: if joined { 1 } else { tokens },
            elements: if joined { tokens * elements } else { elements },
            code: group.code + run * elements,
            code_stride: row,
            tile: group.tile + run * group.run_stride,
            tile_stride: if token_major { row } else { elements },
        }
    }

    /// All rows in the order in which they are walked.
    #[inline(always)]
    pub(crate) fn stripes(&self) -> impl Iterator<Item = Stripe> {
        let (rows, runs) = (*self, self.runs().0);
        self.groups().flat_map(move |group| (0..runs).map(move |run| rows.stripe(&group, run)))
    }

    /// The parts of all rows that lie in some channels of their row, each with the first of these channels that it has.
    #[inline(always)]
    pub(crate) fn stripes_of(&self, channels: Range<usize>) -> impl Iterator<Item = (usize, Stripe)> {
        let (rows, elements) = (*self, self.runs().1);
        let runs = channels.start / elements..channels.end.div_ceil(elements);
        self.groups().flat_map(move |group| {
            let channels = channels.clone();
            runs.clone().map(move |run| {
                let stripe = rows.stripe(&group, run);
                let start = channels.start.max(run * elements);
                let end = channels.end.min((run + 1) * elements);
                let skipped = start - run * elements;
                let (code, tile) = (stripe.code + skipped, stripe.tile + skipped);
                (start - channels.start, Stripe { elements: end - start, code, tile, ..stripe })
            })
        })
    }
}

/// Some tokens, the indices of the first element of the first of them, and the distance of runs in the tile.
pub(crate) struct Group {
    pub(crate) tokens: Range<usize>,
    code: usize,
    tile: usize,
    run_stride: usize,
}

/// The same run of some tokens: `count` times `elements` elements, and the indices of the first of them in the block's
/// codes and in its tile.
pub(crate) struct Stripe {
    pub(crate) count: usize,
    pub(crate) elements: usize,
    code: usize,
    code_stride: usize,
    tile: usize,
    tile_stride: usize,
}

impl Stripe {
    /// The indices in codes and in the tile, token by token.
    #[inline(always)]
    pub(crate) fn places(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let &Self { code, code_stride, tile, tile_stride, .. } = self;
        (0..self.count).map(move |i| (code + i * code_stride, tile + i * tile_stride))
    }
}
