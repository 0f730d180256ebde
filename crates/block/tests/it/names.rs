//! Names, words and limits of recipes, geometries and plans.

use block::{
    BLOCKS_PER_CHUNK_MAX, Codec, ElementType, Geometry, GeometryError, Kind, LONE_HEAD_SIZE_MAX, Part, Plan, PlanError,
    Planes, Recipe, Transform, wire_bytes_max,
};
use proptest::prelude::*;

#[test]
fn recipes_are_read_as_they_are_written() {
    let names = [
        ("none", "none+raw"),
        ("lossless", "lossless+deflate"),
        ("lossless+raw", "lossless+raw"),
        ("q8", "q8+deflate"),
        ("q5", "q5+deflate"),
        ("q5+lz4", "q5+lz4"),
        ("q4p", "q4p+deflate"),
        ("q3p+lz4", "q3p+lz4"),
        ("packed5", "packed5+deflate"),
        ("cachegen", "cachegen+deflate"),
        ("peak20", "peak20+deflate"),
        ("peak15", "q5+deflate"),
    ];
    for (text, full) in names {
        let recipe: Recipe = text.parse().unwrap();
        assert_eq!(recipe.to_string(), full);
        assert_eq!(full.parse(), Ok(recipe));
        assert_eq!(Transform::from_words(recipe.transform.words()), Some(recipe.transform));
    }
    for text in ["", "q7", "peak0", "peak128", "packed0", "packed8", "packed", "peak-1", "q5+", "q5+zstd", "+lz4", "Q5"]
    {
        assert!(text.parse::<Recipe>().is_err(), "{text:?}");
    }
}

#[test]
fn numbers_of_transforms_codecs_and_elements_never_change() {
    assert_eq!(Transform::None.words(), [0, 0]);
    assert_eq!(Transform::Lossless.words(), [1, 0]);
    assert_eq!([Transform::Q8, Transform::Q6, Transform::Q5].map(Transform::words), [[2, 127], [2, 31], [2, 15]]);
    assert_eq!([Transform::Q4, Transform::Q3].map(Transform::words), [[2, 7], [2, 3]]);
    assert_eq!([Transform::Q4P, Transform::Q3P].map(Transform::words), [[3, 7], [3, 3]]);
    assert_eq!(Transform::CacheGen.words(), [4, 0]);
    assert_eq!(Codec::ALL.map(|c| c as u8), [0, 1, 2]);
    assert_eq!(ElementType::ALL.map(ElementType::word), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(
        ElementType::ALL.map(ElementType::name),
        ["bf16", "f16", "f32", "fp8_e4m3", "fp8_e5m2", "u8", "u16", "u32"]
    );
    for element in ElementType::ALL {
        assert_eq!((ElementType::from_word(element.word()), element.name().parse()), (Some(element), Ok(element)));
    }
    assert_eq!([0, 9].map(ElementType::from_word), [None; 2]);
    assert_eq!(Kind::ALL.map(|kind| kind as u8), [0, 1, 2]);
    assert_eq!([0, 1, 2].map(Planes::from_word), [Some(Planes::KeysAndValues), Some(Planes::One), None]);
}

#[test]
fn cachegen_has_the_bins_of_its_authors() {
    let peak = |kind, layer| Transform::CacheGen.peak(kind, layer).unwrap();
    let peaks = |kind| (0..32).map(|layer| peak(kind, layer)).collect::<Vec<_>>();
    assert_eq!(peaks(Kind::K), [[15; 10].as_slice(), &[7; 22]].concat());
    assert_eq!(peaks(Kind::Kv), peaks(Kind::K));
    assert_eq!(peaks(Kind::V), [[15; 2].as_slice(), &[7; 30]].concat());
}

#[test]
fn geometry_bytes_are_pinned_and_limits_are_refused() {
    let geometry = Geometry::new(32, 8, 128, 256, ElementType::Bf16).unwrap();
    assert_eq!(geometry.encode(), [32, 0, 8, 0, 128, 0, 0, 1, 1, 0, 0, 0]);
    assert_eq!((geometry.row_bytes(), geometry.layer_chunk_bytes(), geometry.chunk_bytes()), (2048, 1 << 19, 1 << 25));
    assert_eq!(Geometry::decode(&geometry.encode()), Ok(geometry));
    let bf16 = ElementType::Bf16;
    assert_eq!(Geometry::new(0, 1, 1, 1, bf16), Err(GeometryError::Layers(0)));
    assert_eq!(Geometry::new(257, 1, 1, 1, bf16), Err(GeometryError::Layers(257)));
    assert_eq!(Geometry::new(1, 257, 1, 1, bf16), Err(GeometryError::Heads(257)));
    assert_eq!(Geometry::new(1, 2, 1025, 1, bf16), Err(GeometryError::HeadSize(1025)));
    assert_eq!(Geometry::new(1, 1, 65_536, 1, bf16), Err(GeometryError::HeadSize(65_536)));
    assert_eq!(Geometry::new(1, 1, 1, 1025, bf16), Err(GeometryError::ChunkTokens(1025)));
    assert!(Geometry::new(256, 256, 1024, 1024, bf16).is_ok());
    for byte in 10..12 {
        let mut bytes = geometry.encode();
        bytes[byte] = 1;
        assert_eq!(Geometry::decode(&bytes), Err(GeometryError::Reserved));
    }
    let with = |byte: usize, word: u8| {
        let mut bytes = geometry.encode();
        bytes[byte] = word;
        Geometry::decode(&bytes)
    };
    assert_eq!(with(9, 1), Ok(geometry.with_planes(Planes::One)));
    assert_eq!(with(9, 2), Err(GeometryError::PlanesWord(2)));
    assert_eq!(with(8, 9), Err(GeometryError::ElementWord(9)));
}

#[test]
fn a_geometry_of_one_plane_has_one_a_layer() {
    let latent = Geometry::new(61, 1, 576, 256, ElementType::Bf16).unwrap().with_planes(Planes::One);
    assert_eq!(latent.encode(), [61, 0, 1, 0, 64, 2, 0, 1, 1, 1, 0, 0]);
    assert_eq!((latent.planes(), latent.token_bytes(), latent.chunk_bytes()), (61, 61 * 1152, 61 * 1152 * 256));
    assert_eq!(latent.planes.of_plane(60), (60, Kind::Kv));
    let plan = Plan::choose(&latent, 1 << 18).unwrap();
    assert_eq!((plan.layers_per_block, plan.tokens_per_block, plan.block_count(&latent)), (1, 256, 61));
    let part = plan.part(&latent, 60).unwrap();
    assert_eq!(part, Part { kind: Kind::Kv, first_layer: 60, layers: 1, first_token: 0, tokens: 256 });
    for kind in Kind::ALL {
        assert_eq!(Part { kind, ..part }.within(&latent), kind == Kind::Kv);
        assert_eq!(kind.planes().of_plane(kind.plane(7)), (7, kind));
    }
}

#[test]
fn opaque_pages_are_rows_that_blocks_can_cut() {
    // Qwen3-Next: a convolution's state and a recurrent one, in 2 and in 4 bytes; the largest that we plan for.
    let pages = [
        (8192 * 3 * 2 + 32 * 128 * 128 * 2, 2, (1024, 536)),
        (8192 * 3 * 2 + 32 * 128 * 128 * 4, 4, (1024, 524)),
        (8 << 20, 1, (1024, 8192)),
        (8 << 20, 4, (1024, 2048)),
        (656, 1, (16, 41)),
        (3 * 65_535, 1, (3, 65_535)),
        (1, 1, (1, 1)),
    ];
    for (page_bytes, width, (rows, row)) in pages {
        let geometry = Geometry::opaque(36, page_bytes, width).unwrap();
        assert_eq!((usize::from(geometry.chunk_tokens), geometry.row_elements()), (rows, row), "{page_bytes}");
        assert_eq!((geometry.layer_chunk_bytes(), geometry.planes()), (page_bytes, 36));
        assert_eq!(Geometry::decode(&geometry.encode()), Ok(geometry));
        let plan = Plan::choose(&geometry, (512 << 10) / width).unwrap();
        let part = plan.largest(&geometry);
        assert_eq!((part.kind, geometry.element.is_opaque()), (Kind::Kv, true));
        assert_eq!(wire_bytes_max(&geometry, &part), 128 + part.tile_bytes(&geometry), "no room for scales");
    }
    let largest = Geometry::opaque(1, 1024 * LONE_HEAD_SIZE_MAX, 1).unwrap();
    assert_eq!(largest.row_elements(), LONE_HEAD_SIZE_MAX);
    for (page_bytes, width) in [(0, 1), (7, 2), (8, 3), (8, 0), (65_537, 1), (1 << 27, 1)] {
        let error = Geometry::opaque(1, page_bytes, width).unwrap_err();
        assert_eq!(error, GeometryError::Page { bytes: page_bytes, width });
        assert!(error.to_string().contains("choose another width"), "{error}");
    }
    assert_eq!(Geometry::opaque(0, 64, 1), Err(GeometryError::Layers(0)));
}

#[test]
fn one_recipe_serves_elements_of_every_type() {
    let for_element = |text: &str, element| text.parse::<Recipe>().unwrap().for_element(element).to_string();
    for text in ["q5+deflate", "q4p+lz4", "cachegen+deflate", "lossless+deflate", "none+raw"] {
        for element in [ElementType::Bf16, ElementType::F16, ElementType::F32] {
            assert_eq!(for_element(text, element), text);
        }
    }
    for element in [ElementType::U16, ElementType::U32] {
        assert_eq!(for_element("q5", element), "lossless+deflate");
        assert_eq!(for_element("q4p+lz4", element), "lossless+lz4");
        assert_eq!(for_element("none", element), "none+raw");
    }
    assert_eq!(for_element("q5", ElementType::U8), "none+deflate");
    assert_eq!(for_element("q5", ElementType::E4m3), "q5+deflate");
    assert_eq!(for_element("lossless", ElementType::E4m3), "none+deflate");
}

#[test]
fn an_8b_model_is_cut_as_drawn() {
    let geometry = Geometry::new(32, 8, 128, 256, ElementType::Bf16).unwrap();
    let plan = Plan::choose(&geometry, 1 << 20).unwrap();
    assert_eq!((plan.layers_per_block, plan.tokens_per_block, plan.block_count(&geometry)), (4, 256, 16));
    let plan = Plan::choose(&geometry, 1 << 17).unwrap();
    assert_eq!((plan.layers_per_block, plan.tokens_per_block, plan.block_count(&geometry)), (1, 128, 128));
    assert_eq!(plan.part(&geometry, 128), None);
    let odd = Geometry { chunk_tokens: 255, ..geometry };
    assert!(matches!(Plan::choose(&odd, 1 << 17), Err(PlanError::NoFit { .. })));
    assert!(matches!(Plan::choose(&geometry, 1 << 13), Err(PlanError::BlocksPerChunk(2048))));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    #[cfg_attr(miri, ignore = "takes minutes")]
    fn blocks_of_a_plan_cover_every_element_once(
        layers in 1usize..70,
        heads in 1usize..9,
        head_size in 1usize..130,
        chunk_tokens in 1usize..130,
        block_elements_max in 1usize..1 << 20,
        planes in prop::sample::select(&[Planes::KeysAndValues, Planes::One][..]),
    ) {
        let geometry = Geometry::new(layers, heads, head_size, chunk_tokens, ElementType::Bf16).unwrap();
        let geometry = geometry.with_planes(planes);
        let Ok(plan) = Plan::choose(&geometry, block_elements_max) else { return Ok(()) };
        prop_assert!(plan.block_count(&geometry) <= BLOCKS_PER_CHUNK_MAX);
        let mut seen = vec![0u8; geometry.planes() * chunk_tokens];
        for index in 0..plan.block_count(&geometry) {
            let part = plan.part(&geometry, index).unwrap();
            prop_assert!(part.within(&geometry) && part.elements(&geometry) <= block_elements_max);
            prop_assert!(part.elements(&geometry) <= plan.largest(&geometry).elements(&geometry));
            for layer in part.first_layer..part.first_layer + part.layers {
                for token in part.first_token..part.first_token + part.tokens {
                    seen[part.kind.plane(layer.into()) * chunk_tokens + token as usize] += 1;
                }
            }
        }
        prop_assert!(seen.iter().all(|&times| times == 1));
    }
}
