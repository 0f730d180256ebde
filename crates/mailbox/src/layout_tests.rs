//! Layouts against an oracle that places element by element, by the index formulas of well-known caches.

use block::ElementType;
use proptest::prelude::*;

use super::*;

/// A cache as an engine would make it: one array per region, indexed by names.
#[derive(Clone, Copy, Debug)]
enum Cache {
    /// K and V arrays of each layer: `[2, pages, P, H, D]`, one region per layer. vLLM, FlashAttention.
    Separate,
    /// One array per layer: `[pages, 2, P, H, D]`. vLLM, FlashInfer.
    Joint,
    /// One array per layer: `[2, pages, H, P, D]`. TensorRT-LLM and HND.
    HeadMajor,
    /// One array: `[L, 2, T, H, D]`. A plain contiguous cache.
    Contiguous,
    /// One array per layer: `[pages, P, 2, H, D]`. K and V side by side in each token.
    TokenPairs,
    /// One array per layer: `[pages, P, H, 2 * D]`. K and V side by side in each head.
    HeadPairs,
    /// One array: `[T, L, 2, H, D]`. All layers of a token together.
    TokenFirst,
    /// One array per layer: `[pages, 2, H, P, D]`.
    JointHeadMajor,
}

const CACHES: [Cache; 8] = [
    Cache::Separate,
    Cache::Joint,
    Cache::HeadMajor,
    Cache::Contiguous,
    Cache::TokenPairs,
    Cache::HeadPairs,
    Cache::TokenFirst,
    Cache::JointHeadMajor,
];

#[derive(Clone, Copy, Debug)]
struct Place {
    layer: usize,
    kind: usize,
    page: usize,
    token: usize,
    head: usize,
    element: usize,
}

impl Cache {
    /// Region and element index of one element: the array's own formula.
    fn place(self, g: &Geometry, pages: usize, p: usize, at: Place) -> (usize, usize) {
        let (layers, h, d) = (usize::from(g.layers), usize::from(g.heads), usize::from(g.head_size));
        let Place { layer, kind, page, token, head, element } = at;
        match self {
            Cache::Separate => (layer, ((((kind * pages + page) * p + token) * h) + head) * d + element),
            Cache::Joint => (layer, ((((page * 2 + kind) * p + token) * h) + head) * d + element),
            Cache::HeadMajor => (layer, ((((kind * pages + page) * h + head) * p) + token) * d + element),
            Cache::Contiguous => {
                (0, (((((layer * 2 + kind) * pages * p) + page * p + token) * h) + head) * d + element)
            }
            Cache::TokenPairs => (layer, ((((page * p + token) * 2 + kind) * h) + head) * d + element),
            Cache::HeadPairs => (layer, (((page * p + token) * h + head) * 2 + kind) * d + element),
            Cache::TokenFirst => (0, (((((page * p + token) * layers + layer) * 2 + kind) * h) + head) * d + element),
            Cache::JointHeadMajor => (layer, ((((page * 2 + kind) * h + head) * p) + token) * d + element),
        }
    }

    fn regions(self, g: &Geometry) -> usize {
        if matches!(self, Cache::Contiguous | Cache::TokenFirst) { 1 } else { g.layers.into() }
    }

    fn region_bytes(self, g: &Geometry, pages: usize, p: usize) -> u64 {
        let all = g.row_bytes() * p * pages * 2 * usize::from(g.layers);
        (all / self.regions(g)) as u64
    }

    /// Form and bases, read off the formula by differences.
    fn describe(self, g: &Geometry, pages: usize, p: usize) -> (Form, Box<[Base]>) {
        let zero = Place { layer: 0, kind: 0, page: 0, token: 0, head: 0, element: 0 };
        let bytes = |at| (self.place(g, pages, p, at).1 * g.element.bytes()) as u64;
        let form = Form {
            order: match self {
                Cache::HeadMajor | Cache::JointHeadMajor => Order::HeadMajor,
                _ => Order::TokenMajor,
            },
            page_tokens: p as u16,
            page_count: pages as u32,
            page_stride: bytes(Place { page: 1, ..zero }),
            token_stride: bytes(Place { token: 1, ..zero }),
            head_stride: bytes(Place { head: 1, ..zero }),
        };
        let bases = (0..usize::from(g.layers)).flat_map(|layer| {
            [0, 1].map(|kind| {
                let at = Place { layer, kind, ..zero };
                Base { region: self.place(g, pages, p, at).0 as u16, offset: bytes(at) }
            })
        });
        (form, bases.collect())
    }
}

/// Regions of these sizes, one behind the other.
fn apart(sizes: &[u64]) -> Vec<AddressRange> {
    let mut end = 1 << 20;
    let place = |&bytes: &u64| {
        end += bytes;
        AddressRange { address: end - bytes, bytes }
    };
    sizes.iter().map(place).collect()
}

fn layout(cache: Cache, g: &Geometry, pages: usize, p: usize) -> Layout {
    let (form, bases) = cache.describe(g, pages, p);
    Layout::new(*g, form, bases, &apart(&vec![cache.region_bytes(g, pages, p); cache.regions(g)])).unwrap()
}

/// Index of an element in the part's tile, the slow way.
fn tile_index(
    g: &Geometry,
    part: &Part,
    order: TileOrder,
    layer: usize,
    token: usize,
    head: usize,
    element: usize,
) -> usize {
    let (tokens, h, d) = (usize::from(part.tokens), usize::from(g.heads), usize::from(g.head_size));
    let before = layer * tokens * h * d;
    match order {
        TileOrder::TokenMajor => before + (token * h + head) * d + element,
        TileOrder::HeadMajor { page_tokens } => {
            let p = usize::from(page_tokens);
            let (page, within) = (token / p, token % p);
            let held = p.min(tokens - page * p);
            before + page * p * h * d + (head * held + within) * d + element
        }
    }
}

fn check_against_oracle(
    cache: Cache,
    g: &Geometry,
    part: &Part,
    pages: usize,
    p: usize,
    chosen: &[u32],
    clip: Range<usize>,
) {
    let layout = layout(cache, g, pages, p);
    let words = cache.region_bytes(g, pages, p) as usize / 4;
    let mut expected = vec![vec![u32::MAX; words]; cache.regions(g)];
    for layer in 0..usize::from(part.layers) {
        for token in 0..usize::from(part.tokens) {
            let in_chunk = usize::from(part.first_token) + token;
            if !clip.contains(&in_chunk) {
                continue;
            }
            for head in 0..usize::from(g.heads) {
                for element in 0..usize::from(g.head_size) {
                    let at = Place {
                        layer: usize::from(part.first_layer) + layer,
                        kind: part.kind as usize,
                        page: chosen[in_chunk / p] as usize,
                        token: in_chunk % p,
                        head,
                        element,
                    };
                    let (region, index) = cache.place(g, pages, p, at);
                    expected[region][index] =
                        tile_index(g, part, layout.tile_order(), layer, token, head, element) as u32;
                }
            }
        }
    }

    let mut found = vec![vec![u32::MAX; words]; cache.regions(g)];
    let mut runs = Vec::new();
    layout.runs(part, chosen, clip.clone(), |run| runs.push(run)).unwrap();
    for run in &runs {
        assert!(run.bytes > 0 && run.bytes.is_multiple_of(4) && run.tile_offset + run.bytes <= part.tile_bytes(g));
        for word in 0..run.bytes / 4 {
            let slot = &mut found[usize::from(run.region)][run.offset as usize / 4 + word];
            assert_eq!(*slot, u32::MAX, "written twice");
            *slot = (run.tile_offset / 4 + word) as u32;
        }
    }
    assert!(found == expected, "{cache:?} {g:?} {part:?} P={p} pages {chosen:?} clip {clip:?}");
    assert!(runs.len() <= layout.runs_max(part), "{} runs, bound {}", runs.len(), layout.runs_max(part));
    assert!(runs.windows(2).all(|pair| pair[0].tile_offset < pair[1].tile_offset), "in tile order");
    assert!(runs.windows(2).all(|pair| !pair[0].is_followed_by(&pair[1])), "neighbours are joined");
}

fn geometry(layers: usize, heads: usize, head_size: usize, tokens: usize) -> Geometry {
    Geometry::new(layers, heads, head_size, tokens, ElementType::F32).unwrap()
}

const fn whole(kind: Kind, layers: u16, tokens: u16) -> Part {
    Part { kind, first_layer: 0, layers, first_token: 0, tokens }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 1500 })
    })]

    #[test]
    fn runs_go_where_the_engines_own_indices_say(
        cache in prop::sample::select(&CACHES[..]),
        layers in 1..4_usize,
        heads in 1..4_usize,
        head_size in 1..4_usize,
        tokens in prop::sample::select(&[8_usize, 12, 16, 24][..]),
        page_share in any::<prop::sample::Index>(),
        range_share in any::<prop::sample::Index>(),
        kind in prop::sample::select(&[Kind::K, Kind::V][..]),
        layer_range in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        range in any::<prop::sample::Index>(),
        chosen in Just((0..28_u32).collect::<Vec<_>>()).prop_shuffle(),
        shuffled in any::<bool>(),
        clip in (0..30_usize, 0..30_usize),
        clipped in any::<bool>(),
    ) {
        let divisors: Vec<usize> = (1..=tokens).filter(|by| tokens % by == 0).collect();
        let p = *page_share.get(&divisors);
        let part_tokens = *range_share.get(&divisors);
        let g = geometry(layers, heads, head_size, tokens);
        let first_layer = layer_range.0.index(layers);
        let part = Part {
            kind,
            first_layer: first_layer as u16,
            layers: 1 + layer_range.1.index(layers - first_layer) as u16,
            first_token: (range.index(tokens / part_tokens) * part_tokens) as u16,
            tokens: part_tokens as u16,
        };
        let mut chosen = chosen[..tokens / p].to_vec();
        if !shuffled {
            chosen.sort_unstable();
        }
        let clip = if clipped { clip.0..clip.1 } else { 0..tokens };
        check_against_oracle(cache, &g, &part, 28, p, &chosen, clip);
    }

    #[test]
    fn nothing_that_passes_the_checks_leaves_its_region_or_overlaps(
        order in prop::sample::select(&[Order::TokenMajor, Order::HeadMajor][..]),
        page_count in 1..4_u32,
        strides in (0..40_u64, 0..10_u64, 0..6_u64).prop_map(|(page, token, head)| (page * 4, token * 4, head * 4)),
        bases in prop::collection::vec((0..3_u16, (0..30_u64).prop_map(|words| words * 4)), 4),
        regions in prop::collection::vec(((0..200_u64).prop_map(|words| words * 4), 100..900_u64), 3),
        heads in 1..3_usize,
        p in prop::sample::select(&[1_u16, 2, 4][..]),
    ) {
        let g = geometry(2, heads, 2, 4);
        let form = Form {
            order,
            page_tokens: p,
            page_count,
            page_stride: strides.0,
            token_stride: strides.1,
            head_stride: strides.2,
        };
        let bases: Box<[Base]> = bases.iter().map(|&(region, offset)| Base { region, offset }).collect();
        // As likely over each other as not.
        let range = |&(address, bytes): &(u64, u64)| AddressRange { address, bytes };
        let regions: Vec<AddressRange> = regions.iter().map(range).collect();
        // The oracle marks every byte of the host's memory.
        let mut marks = vec![0_u32; 2000];
        let mut inside = true;
        for base in &bases {
            let region = regions[usize::from(base.region)];
            for page in 0..u64::from(page_count) {
                for token in 0..u64::from(p) {
                    for head in 0..heads as u64 {
                        let in_page = token * form.token_stride + head * form.head_stride;
                        let at = base.offset + page * form.page_stride + in_page;
                        inside &= at + 8 <= region.bytes;
                        let at = (region.address + at) as usize;
                        marks[at..at + 8].iter_mut().for_each(|mark| *mark += 1);
                    }
                }
            }
        }
        let apart = marks.iter().all(|&mark| mark <= 1);
        match Layout::new(g, form, bases, &regions) {
            Ok(_) => prop_assert!(inside && apart),
            Err(LayoutError::Outside { .. }) => prop_assert!(!inside),
            Err(LayoutError::Overlap { .. }) => prop_assert!(!apart),
            // Heads threaded through each other's gaps are refused although they are apart: nobody has such a cache.
            Err(LayoutError::Strides { .. }) => {}
            Err(error) => prop_assert!(false, "{}", error),
        }
    }
}

#[test]
fn dense_token_major_is_one_run_per_page_and_one_per_contiguous_stretch() {
    let g = geometry(2, 2, 4, 256);
    let count = |cache, pages: &[u32]| {
        let mut runs = 0;
        layout(cache, &g, 64, 16).runs(&whole(Kind::V, 1, 256), pages, 0..256, |_| runs += 1).unwrap();
        runs
    };
    let in_order: Vec<u32> = (10..26).collect();
    let apart: Vec<u32> = (0..16).map(|page| page * 3).collect();
    assert_eq!(count(Cache::Separate, &apart), 16);
    assert_eq!(count(Cache::Separate, &in_order), 1);
    assert_eq!(count(Cache::Joint, &in_order), 16, "V of the next page is not next to V");
    assert_eq!(count(Cache::HeadMajor, &apart), 16);
    assert_eq!(count(Cache::HeadMajor, &in_order), 1);
    assert_eq!(count(Cache::Contiguous, &in_order), 1);
    assert_eq!(count(Cache::TokenPairs, &in_order), 256, "one run per token");
    assert_eq!(count(Cache::HeadPairs, &in_order), 512, "one run per head of each token");
}

#[test]
fn a_page_that_does_not_exist_is_an_error_and_nothing_runs() {
    let g = geometry(1, 1, 4, 16);
    let layout = layout(Cache::Separate, &g, 8, 4);
    let part = whole(Kind::K, 1, 16);
    let runs = |pages: &[u32], clip| {
        let mut ran = 0;
        let result = layout.runs(&part, pages, clip, |_| ran += 1);
        if result.is_err() {
            assert_eq!(ran, 0);
        }
        result
    };
    assert_eq!(runs(&[0, 1, 8, 2], 0..16), Err(LayoutError::Page { index: 2, page: 8, page_count: 8 }));
    assert_eq!(runs(&[0, 1, u32::MAX, 2], 0..16), Err(LayoutError::Page { index: 2, page: u32::MAX, page_count: 8 }));
    assert_eq!(runs(&[0, 1, u32::MAX, 2], 0..8), Ok(()), "not looked at");
    assert_eq!(runs(&[0, 1, 2], 0..16), Err(LayoutError::PageCount { found: 3, expected: 4 }));
    assert_eq!(runs(&[0, 1, 2, 3], 16..99), Ok(()));
    let foreign = Part { layers: 2, ..part };
    assert_eq!(layout.runs(&foreign, &[0, 1, 2, 3], 0..16, |_| {}), Err(LayoutError::Part(foreign)));
    assert_eq!(layout.runs_max(&foreign), 0);
}

#[test]
fn a_layout_that_reaches_out_or_overflows_is_refused() {
    let g = geometry(2, 2, 4, 16);
    let (form, bases) = Cache::Separate.describe(&g, 8, 4);
    let bytes = Cache::Separate.region_bytes(&g, 8, 4);
    let check = |form: Form, bases: &[Base], sizes: &[u64]| {
        let at_zero: Vec<AddressRange> = sizes.iter().map(|&bytes| AddressRange { address: 0, bytes }).collect();
        let ranges = if sizes.contains(&u64::MAX) { at_zero } else { apart(sizes) };
        Layout::new(g, form, bases.into(), &ranges).map(|_| ())
    };
    assert_eq!(check(form, &bases, &[bytes, bytes]), Ok(()));
    assert!(matches!(check(form, &bases, &[bytes, bytes - 1]), Err(LayoutError::Outside { base: 3, .. })));
    assert!(matches!(check(form, &bases, &[bytes]), Err(LayoutError::Region { base: 2, region: 1, regions: 1 })));
    assert!(matches!(check(form, &bases[1..], &[bytes; 2]), Err(LayoutError::BaseCount { found: 3, expected: 4 })));
    let pages = |page_tokens| check(Form { page_tokens, ..form }, &bases, &[bytes; 2]);
    assert_eq!(pages(0), Err(LayoutError::PageTokens { page_tokens: 0, chunk_tokens: 16 }));
    assert_eq!(pages(3), Err(LayoutError::PageTokens { page_tokens: 3, chunk_tokens: 16 }));
    assert_eq!(check(Form { page_count: 0, ..form }, &bases, &[bytes; 2]), Err(LayoutError::NoPages));
    let outside = check(Form { page_count: u32::MAX, page_stride: u64::MAX, ..form }, &bases, &[u64::MAX; 2]);
    assert!(matches!(outside, Err(LayoutError::Outside { base: 0, .. })), "nothing wraps: {outside:?}");
    let strides = check(Form { token_stride: 4, ..form }, &bases, &[bytes; 2]);
    assert!(matches!(strides, Err(LayoutError::Strides { .. })));
    let mut twice = bases.clone();
    twice[1] = twice[0];
    let [one, other] = [0, 1].map(|index| Named { planes: g.planes, index, base: bases[0] });
    assert_eq!(check(form, &twice, &[bytes; 2]), Err(LayoutError::Overlap { one, other }));
}

#[test]
fn one_buffer_given_for_three_layers_is_refused_and_both_layers_are_named() {
    let g = geometry(3, 2, 4, 16);
    let (form, bases) = Cache::Separate.describe(&g, 8, 4);
    let bytes = Cache::Separate.region_bytes(&g, 8, 4);
    let check =
        |regions: &[AddressRange]| Layout::new(g, form, bases.clone(), regions).map(|_| ()).map_err(|e| e.to_string());
    let message = check(&[AddressRange { address: 4096, bytes }; 3]).unwrap_err();
    let names = "K of layer 0 (region 0 from byte 0) and K of layer 1 (region 1 from byte 0) share bytes of memory";
    assert_eq!(message, format!("layout: {names}"));
    let at = |addresses: [u64; 3]| check(&addresses.map(|address| AddressRange { address, bytes }));
    assert_eq!(at([4096, 4096 + bytes, 4096 + 2 * bytes]), Ok(()), "one behind the other");
    let message = at([4096, 4096 + 2 * bytes, 4095 + 3 * bytes]).unwrap_err();
    assert!(message.contains("V of layer 1 (region 1 from byte 1024) and K of layer 2 (region 2"), "{message}");
    let message = at([4096, u64::MAX - bytes + 1, 8192]).unwrap_err();
    assert_eq!(message, "layout: region 1 reaches over the last address");
    assert_eq!(at([4096, u64::MAX - bytes, 8192]), Ok(()), "up to the last address");
}

#[test]
fn a_layer_of_one_plane_has_one_base_and_is_named_by_it() {
    let g = geometry(3, 1, 8, 16).with_planes(Planes::One);
    let page = 16 * 32;
    let form = Form {
        order: Order::TokenMajor,
        page_tokens: 16,
        page_count: 4,
        page_stride: page,
        token_stride: 32,
        head_stride: 32,
    };
    let regions = [AddressRange { address: 4096, bytes: 3 * 4 * page }];
    let new = |offsets: &[u64]| {
        let bases = offsets.iter().map(|&offset| Base { region: 0, offset }).collect();
        Layout::new(g, form, bases, &regions)
    };
    let layout = new(&[0, 4 * page, 8 * page]).unwrap();
    let mut runs = Vec::new();
    let part = Part { layers: 2, first_layer: 1, ..whole(Kind::Kv, 1, 16) };
    layout.runs(&part, &[3], 0..16, |run| runs.push((run.offset, run.tile_offset, run.bytes))).unwrap();
    assert_eq!(runs, [(7 * page, 0, page as usize), (11 * page, page as usize, page as usize)]);
    assert_eq!(layout.runs(&whole(Kind::K, 1, 16), &[3], 0..16, |_| ()), Err(LayoutError::Part(whole(Kind::K, 1, 16))));
    let expected = LayoutError::BaseCount { found: 2, expected: 3 };
    assert_eq!(new(&[0, 4 * page]).map(|_| ()), Err(expected));
    let message = new(&[0, 4 * page, 4 * page]).map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("KV of layer 1 (region 0 from byte 2048) and KV of layer 2 (region"), "{message}");
}

/// Views of one allocation: their ranges lie over each other, and no byte of one is another's.
#[test]
fn interleaved_layers_in_regions_over_each_other_are_taken() {
    let g = geometry(3, 2, 4, 16);
    let (pages, p) = (8, 4);
    for cache in [Cache::TokenFirst, Cache::Contiguous] {
        let (form, bases) = cache.describe(&g, pages, p);
        let whole = cache.region_bytes(&g, pages, p);
        // Each base in a region of its own, from there to the allocation's end.
        let regions: Vec<AddressRange> =
            bases.iter().map(|base| AddressRange { address: 4096 + base.offset, bytes: whole - base.offset }).collect();
        let own: Box<[Base]> = (0..bases.len()).map(|region| Base { region: region as u16, offset: 0 }).collect();
        let taken = Layout::new(g, form, own.clone(), &regions).map(|_| ());
        assert_eq!(taken, Ok(()), "{cache:?}");
        let mut shifted = regions;
        shifted[4].address -= 4;
        shifted[4].bytes += 4;
        assert!(matches!(Layout::new(g, form, own, &shifted), Err(LayoutError::Overlap { .. })), "{cache:?}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "a hundred thousand pairs of bases")]
fn the_largest_model_is_checked_in_time() {
    let g = geometry(256, 8, 128, 256);
    let layout = layout(Cache::TokenFirst, &g, 100, 16);
    assert_eq!(layout.pages_per_chunk(), 16);
}
