//! What a kernel costs beside the memcpy of the bytes that it reads or writes in a tile, on one core: in the L2 cache,
//! and through memory as in the pipeline's ring.

use crate::data::{Set, convert};
use crate::place;
use crate::speed::{Place, Speed, Turns, Variant, compare};
use bench::{Plot, PlotKind, Report, Series, Table};
use block::codec::Compressor;
use block::{
    ChunkKey, Codec, ElementType, Geometry, Granularity, HEADER_BYTES, Header, Kind, Part, TileOrder, Transform, pack,
    quantize, restore, restore_checked, wire_bytes_max,
};
use std::cell::RefCell;
use std::hint::black_box;

/// Tile bytes of a call: with its codes and a copy they fit the L2 cache of one core.
const TILE_BYTES: usize = 256 << 10;
/// Slots of the ring that goes through memory: 64 MiB of tiles beside their codes, twice any cache of the machines we
/// know.
const SLOTS: usize = 256;
const HEADS: usize = 8;
const HEAD_SIZE: usize = 64;
/// The goals of the project, as shares of memcpy's speed.
const GOALS: &str = "Goals: dequantize 0.77 (1.3 times the time of memcpy), quantize 0.33 (3 times).";

pub(crate) fn report(set: &Set, turns: Turns, command: &str) -> Report {
    // Made before this thread is left with one of the machine's CPUs.
    let mut report = Report::new("kernels", "Kernels beside memcpy, one core", command);
    let cpu = place::cpus()[0];
    place::pin(cpu);
    report.notes.push(format!(
        "Tiles of {} KiB ({HEADS} heads of {HEAD_SIZE}; elements of {}), kernels of {}, CPU {cpu}. The yardstick is \
         the memcpy of as many bytes as the tile has, in the same turn as the kernels. Each figure is the median of \
         the turns: the kernel's speed as a share of memcpy's (GB/s of tile bytes; half the distance of the \
         quartiles). {GOALS}",
        TILE_BYTES >> 10,
        set.name,
        block::instruction_set(),
    ));
    let mut series = Vec::new();
    for (place, name) in [(Place::Cache, "in the L2 cache"), (Place::Memory, "through memory")] {
        let (table, bars) = measure(set, place, name, turns);
        report.tables.push(table);
        series.extend(bars);
    }
    report.tables[1].note = format!(
        "A ring of {SLOTS} slots for tiles, one for codes and one for what is written: more than the caches hold, as a \
         slot's memory in the pipeline when its turn comes again."
    );
    report.plots.push(Plot {
        name: "kernels".into(),
        title: "Kernels on bf16: speed as a share of memcpy's".into(),
        x: "transform".into(),
        y: "share of memcpy".into(),
        log_x: false,
        log_y: false,
        kind: PlotKind::Bars,
        series,
    });
    report
}

fn cases() -> Vec<(Transform, Granularity)> {
    let mut cases = vec![(Transform::None, Granularity::None), (Transform::Lossless, Granularity::None)];
    cases.extend(Granularity::ALL.map(|g| (Transform::Q5, g)));
    cases.extend(Granularity::ALL.map(|g| (Transform::Q4P, g)));
    cases.extend([Transform::Q8, Transform::Q6, Transform::Q4].map(|t| (t, Granularity::Token)));
    cases.push((Transform::Q8, Granularity::Channel));
    cases
}

/// The table of one place, and the plot's bars: dequantize and quantize.
fn measure(set: &Set, place: Place, name: &str, turns: Turns) -> (Table, [Series; 2]) {
    let columns = [
        "element",
        "transform",
        "scale per",
        "memcpy, GB/s",
        "dequantize",
        "with the CRC",
        "to pages of 16, head-major",
        "quantize",
    ];
    let mut table = Table::new(&format!("Share of memcpy's speed, {name}"), &columns);
    let mut bars = ["dequantize", "quantize"].map(|k| Series { name: format!("{k}, {name}"), ..Series::default() });
    for element in ElementType::ALL.into_iter().filter(|element| !element.is_opaque()) {
        for (transform, granularity) in cases() {
            let [memcpy, dequantize, checked, pages, quantize] =
                case(set, place, element, transform, granularity, turns);
            let cell = |s: &Speed| {
                format!("{:.2} ({:.1}; {:.0} %)", s.ratio.median(), s.gigabytes.median(), s.ratio.spread() * 100.0)
            };
            table.row(&[
                &element,
                &transform,
                &format!("{granularity:?}").to_lowercase(),
                &format!("{:.1}", memcpy.gigabytes.median()),
                &cell(&dequantize),
                &cell(&checked),
                &cell(&pages),
                &cell(&quantize),
            ]);
            if element == ElementType::Bf16 && matches!(granularity, Granularity::None | Granularity::Token) {
                for (bars, speed) in bars.iter_mut().zip([&dequantize, &quantize]) {
                    bars.points.push((bars.points.len() as f64, speed.ratio.median()));
                    bars.labels.push(transform.to_string());
                }
            }
        }
    }
    (table, bars)
}

/// Slots that are taken in turns. As in the pipeline's ring each starts at a multiple of 64.
struct Ring {
    slots: Vec<Vec<u8>>,
    bytes: usize,
}

impl Ring {
    fn new(slots: usize, of: &[u8]) -> RefCell<Self> {
        let mut ring = Self { slots: vec![vec![0; of.len() + 64]; slots], bytes: of.len() };
        (0..slots).for_each(|call| ring.slot(call).copy_from_slice(of));
        RefCell::new(ring)
    }

    fn slot(&mut self, call: usize) -> &mut [u8] {
        let count = self.slots.len();
        let slot = &mut self.slots[call % count];
        let start = slot.as_ptr().align_offset(64);
        &mut slot[start..start + self.bytes]
    }
}

fn case(
    set: &Set,
    place: Place,
    element: ElementType,
    transform: Transform,
    granularity: Granularity,
    turns: Turns,
) -> [Speed; 5] {
    let tokens = TILE_BYTES / element.bytes() / HEADS / HEAD_SIZE;
    let geometry = Geometry::new(1, HEADS, HEAD_SIZE, tokens, element).expect("within limits");
    let part = Part { kind: Kind::K, first_layer: 0, layers: 1, first_token: 0, tokens: tokens as u16 };
    let elements = part.elements(&geometry);
    let bytes: Vec<u8> = set.of(Some(Kind::K)).flat_map(|b| b.tile.iter().copied()).take(elements * 2).collect();
    let tile = convert(&bytes, element);
    let order = TileOrder::TokenMajor;

    let mut codes = vec![0; tile.len()];
    let mut wire = vec![0; wire_bytes_max(&geometry, &part)];
    let scales = &mut wire[HEADER_BYTES..];
    let made = quantize(transform, granularity, &geometry, &part, order, &tile, &mut codes, scales).expect("fits");
    let key = ChunkKey::new([7; 32]);
    let mut compressor = Compressor::new(1, 0).expect("a level");
    let bytes = pack(&made, Codec::Raw, &geometry, &key, 0, &part, &codes, &mut wire, &mut compressor).expect("packs");
    let header = Header::open(&wire[..bytes], &key, &geometry, 0, &part).expect("a good block");
    let scales = &wire[header.scales_range()];

    let slots = if place == Place::Memory { SLOTS } else { 1 };
    // One ring to read from as tiles, one as codes, one to write to: as the slots of the pipeline, none of it is near.
    let tiles = Ring::new(slots, &tile);
    let all_codes = Ring::new(slots, &wire[header.payload_range()]);
    let out = Ring::new(slots, &tile);
    let restored = |call: usize, order, checked: bool| {
        let (mut codes, mut out) = (all_codes.borrow_mut(), out.borrow_mut());
        let (codes, out) = (black_box(codes.slot(call)), out.slot(call));
        let restore = if checked { restore_checked } else { restore };
        restore(&header, scales, codes, order, out).expect("restores");
    };
    let pages = TileOrder::HeadMajor { page_tokens: 16 };
    let mut new_scales = scales.to_vec();
    let n = tile.len();
    // Of `quantize` the codes go where tiles go else: to room enough for codes of all transforms.
    let variants = [
        Variant::new(n, |call| {
            out.borrow_mut().slot(call).copy_from_slice(black_box(tiles.borrow_mut().slot(call)));
        }),
        Variant::new(n, |call| restored(call, order, false)),
        Variant::new(n, |call| restored(call, order, true)),
        Variant::new(n, |call| restored(call, pages, false)),
        Variant::new(n, |call| {
            let (mut tiles, mut out) = (tiles.borrow_mut(), out.borrow_mut());
            let (tile, codes) = (black_box(tiles.slot(call)), out.slot(call));
            quantize(transform, granularity, &geometry, &part, order, tile, codes, &mut new_scales).expect("fits");
        }),
    ];
    match place {
        Place::Cache => compare(place, turns.of(400), variants),
        // Each variant walks the ring by itself, so that none finds warm what another has just touched.
        Place::Memory => compare(place, turns.of(600), staggered(variants)),
    }
}

/// The variants, each some slots away from the next.
fn staggered<'a, const N: usize>(variants: [Variant<'a>; N]) -> [Variant<'a>; N] {
    let mut offset = 0;
    variants.map(|variant| {
        offset += SLOTS / N;
        let (mut run, offset) = (variant.run, offset);
        Variant { run: Box::new(move |call| run(call + offset)), ..variant }
    })
}
