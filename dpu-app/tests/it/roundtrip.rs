//! Store and fetch through the whole data plane: every transform, every layout, to the bit or to the quantizer's bound.

use crate::rig::*;
use host_ctl::{Arrangement, PageOrder};
use mailbox::Status;

const CHUNKS: usize = 5;

#[test]
fn every_recipe_comes_back_within_its_bound() {
    let card = Card::start();
    let pages = PageOrder::Linear.table((CHUNKS * PAGES_PER_CHUNK) as u32);
    for (salt, recipe) in [
        "lossless",
        "lossless+lz4",
        "lossless+raw",
        "q8",
        "q6",
        "q5",
        "q4",
        "q3",
        "q5+raw",
        "q4p",
        "q4p+deflate",
        "q4p+lz4",
        "cachegen",
    ]
    .into_iter()
    .enumerate()
    {
        let keys = keys(geometry(), recipe, salt as u8, CHUNKS);
        let original = filled(Arrangement::Contiguous, geometry(), CHUNKS, 7);
        let mut host = card.attach(recipe, original.clone());
        let id = host.post_store(&transfer(&keys, &pages)).unwrap();
        let stored = host.wait(id, WAIT).unwrap();
        assert_eq!((stored.status, stored.chunks_done), (Status::Ok, CHUNKS), "{recipe}");
        host.close(WAIT).unwrap();

        let target = empty(Arrangement::Contiguous, geometry(), CHUNKS);
        let mut host = card.attach(recipe, target.clone());
        let id = host.post_fetch(&transfer(&keys, &pages)).unwrap();
        let fetched = host.wait(id, WAIT).unwrap();
        assert_eq!((fetched.status, fetched.chunks_done), (Status::Ok, CHUNKS), "{recipe}");
        let (before, after) = (logical(&original, &pages), logical(&target, &pages));
        if recipe.starts_with("lossless") {
            assert!(before == after, "{recipe} is bit-exact");
            continue;
        }
        let part_bytes = usize::from(CHUNK_TOKENS) * geometry().row_bytes();
        let plane = CHUNKS * part_bytes;
        for layer in 0..geometry().layers {
            for kind in [block::Kind::K, block::Kind::V] {
                for chunk in 0..CHUNKS {
                    let start = kind.plane(layer.into()) * plane + chunk * part_bytes;
                    let part =
                        block::Part { kind, first_layer: layer, layers: 1, first_token: 0, tokens: CHUNK_TOKENS };
                    let errors = block::compare(
                        recipe.parse().unwrap(),
                        &geometry(),
                        &part,
                        &before[start..start + part_bytes],
                        &after[start..start + part_bytes],
                    );
                    assert_eq!(errors.over_bound, 0, "{recipe} layer {layer} {kind:?} chunk {chunk}: {errors:?}");
                }
            }
        }
    }
}
