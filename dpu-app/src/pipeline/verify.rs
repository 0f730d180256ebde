//! Whether the DMA engine moved what it was given: pages are read (again) and compared, and what differs goes again.
//!
//! ```text
//!   fetch:  tile -> pages, then pages -> codes area, codes == tile?
//!   store:  pages -> tile, then pages -> codes area, codes == tile?
//! ```
//! PCIe retries what its own CRCs refuse, so on a healthy machine nothing ever differs; what this finds is behind them:
//! a bridge, a memory without ECC, an engine. A host that changes pages which it lent for a request looks the same.
//! What it costs: docs/architecture.md, "From tile to pages".

use std::ops::Range;

use block::{Geometry, Part, TileOrder};
use mailbox::Tokens;

use crate::config::{SAMPLE_BLOCKS, Verify};

/// Chooses blocks.
#[derive(Debug)]
pub(crate) struct Verifier {
    verify: Verify,
    blocks: u32,
}

impl Verifier {
    #[must_use]
    pub(crate) fn new(verify: Verify) -> Self {
        Self { verify, blocks: 0 }
    }

    /// Whether the next block is compared.
    pub(crate) fn chooses(&mut self) -> bool {
        self.blocks = (self.blocks + 1) % SAMPLE_BLOCKS;
        self.verify == Verify::All || self.verify == Verify::Sample && self.blocks == 0
    }

    /// A block differed: from now on all are compared.
    pub(crate) fn doubt(&mut self) {
        self.verify = Verify::All;
    }
}

/// Calls `range` for the stretches of a block's tile that these tokens of its chunk are in, in order.
pub(crate) fn covered(
    geometry: &Geometry,
    part: &Part,
    order: TileOrder,
    tokens: Tokens,
    mut range: impl FnMut(Range<usize>),
) {
    let row = geometry.row_bytes();
    let (first, count) = (usize::from(part.first_token), usize::from(part.tokens));
    let start = (tokens.start as usize).clamp(first, first + count) - first;
    let end = (tokens.end as usize).clamp(first, first + count) - first;
    if start >= end {
        return;
    }
    for layer in 0..usize::from(part.layers) {
        let base = layer * count * row;
        match order {
            TileOrder::HeadMajor { page_tokens } if (start, end) != (0, count) => {
                let (page_tokens, head_bytes) = (usize::from(page_tokens), row / usize::from(geometry.heads));
                for page in (0..count).step_by(page_tokens) {
                    let held = page_tokens.min(count - page);
                    let (from, to) = (start.clamp(page, page + held), end.clamp(page, page + held));
                    for head in (0..usize::from(geometry.heads)).filter(|_| from < to) {
                        let head = base + page * row + head * held * head_bytes;
                        range(head + (from - page) * head_bytes..head + (to - page) * head_bytes);
                    }
                }
            }
            _ => range(base + start * row..base + end * row),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use block::{ElementType, Kind};
    use mailbox::layout::{AddressRange, Base, Form, Layout, Order};
    use proptest::prelude::*;

    #[test]
    fn a_sample_becomes_all_once_a_block_differed() {
        let mut verifier = Verifier::new(Verify::Sample);
        let chosen = (0..10 * SAMPLE_BLOCKS).filter(|_| verifier.chooses()).count();
        assert_eq!(chosen, 10);
        verifier.doubt();
        assert!((0..100).all(|_| verifier.chooses()));
        let mut off = Verifier::new(Verify::Off);
        assert!(!(0..1000).any(|_| off.chooses()));
    }

    proptest! {
        #[test]
        fn what_is_compared_is_what_a_transfer_moves(
            heads in 1..3_usize,
            layers in 1..3_u16,
            part_tokens in prop::sample::select(&[4_u16, 8, 12, 16][..]),
            which in any::<prop::sample::Index>(),
            page_tokens in prop::sample::select(&[1_u16, 4, 16][..]),
            head_major in any::<bool>(),
            clip in (0..20_u32, 0..20_u32),
        ) {
            let geometry = Geometry::new(layers.into(), heads, 4, 48, ElementType::Bf16).unwrap();
            let row = geometry.row_bytes() as u64;
            let form = Form {
                order: if head_major { Order::HeadMajor } else { Order::TokenMajor },
                page_tokens,
                page_count: 48,
                page_stride: u64::from(page_tokens) * row,
                token_stride: if head_major { 8 } else { row },
                head_stride: if head_major { 8 * u64::from(page_tokens) } else { 8 },
            };
            let plane = 48 * u64::from(page_tokens) * row;
            let bases = (0..geometry.planes()).map(|index| Base { region: 0, offset: index as u64 * plane }).collect();
            let region = AddressRange { address: 4096, bytes: geometry.planes() as u64 * plane };
            let layout = Layout::new(geometry, form, bases, &[region]).unwrap();
            let first_token = (which.index(usize::from(48 / part_tokens)) as u16) * part_tokens;
            let part = Part { kind: Kind::V, first_layer: 0, layers, first_token, tokens: part_tokens };
            let tokens = Tokens { start: u32::from(first_token) + clip.0 - clip.0.min(3), end: u32::from(first_token) + clip.1 };
            let pages: Vec<u32> = (0..u32::from(48 / page_tokens)).rev().collect();
            let mut moved = vec![false; part.tile_bytes(&geometry)];
            let clip = tokens.start as usize..tokens.end as usize;
            layout.runs(&part, &pages, clip, |run| moved[run.tile_offset..][..run.bytes].fill(true)).unwrap();
            let mut compared = vec![false; moved.len()];
            covered(&geometry, &part, layout.tile_order(), tokens, |range| compared[range].fill(true));
            prop_assert_eq!(moved, compared);
        }
    }
}
