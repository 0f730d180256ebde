//! Names, words and limits of recipes, geometries and plans.

use block::{
    BLOCKS_PER_CHUNK_MAX, Codec, ElementType, Geometry, GeometryError, Kind, Plan, PlanError, Recipe, Transform,
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
    assert_eq!(ElementType::ALL.map(ElementType::word), [1, 2, 3]);
}

#[test]
fn cachegen_has_the_bins_of_its_authors() {
    let peak = |kind, layer| Transform::CacheGen.peak(kind, layer).unwrap();
    let peaks = |kind| (0..32).map(|layer| peak(kind, layer)).collect::<Vec<_>>();
    assert_eq!(peaks(Kind::K), [[15; 10].as_slice(), &[7; 22]].concat());
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
    assert_eq!(Geometry::new(1, 1, 1025, 1, bf16), Err(GeometryError::HeadSize(1025)));
    assert_eq!(Geometry::new(1, 1, 1, 1025, bf16), Err(GeometryError::ChunkTokens(1025)));
    assert!(Geometry::new(256, 256, 1024, 1024, bf16).is_ok());
    for byte in 9..12 {
        let mut bytes = geometry.encode();
        bytes[byte] = 1;
        assert_eq!(Geometry::decode(&bytes), Err(GeometryError::Reserved));
    }
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
    ) {
        let geometry = Geometry::new(layers, heads, head_size, chunk_tokens, ElementType::Bf16).unwrap();
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
