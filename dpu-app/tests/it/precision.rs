//! Chunks of one prefix in different precision, through the whole data plane, on real KV data.

use std::path::Path;

use crate::rig::{Card, WAIT};
use block::Header;
use host_ctl::{
    Budget, Client, Error, FetchOrder, Identity, KvFile, MixedReport, Mixture, Prefix, StoreOrder, Target, compare,
    fetch, store_mixed,
};

const CHUNK: usize = 256;
const CHUNKS: usize = 8;
const WHO: Identity<'_> = Identity { model: "mixed", salt: b"", rank: 0, ranks: 1 };
/// What names the prefix. No chunk has to be stored like that.
const NAME: &str = "q6";
const LEVELS: [&str; 4] = ["q8", "q5", "q4", "q3"];

fn source() -> KvFile {
    KvFile::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/decoder-kv.safetensors")).unwrap()
}

fn store(card: &Card, importance: &[f32], budget: Budget) -> Result<MixedReport, Error> {
    let file = source();
    let (kv, tokens) = (file.kv("kv", None)?, file.token_ids("tokens", None)?);
    let importances = importance.iter().map(|&factor| host_ctl::importance(factor)).collect::<Result<Vec<_>, _>>()?;
    let order = StoreOrder {
        file: &file,
        kv: &kv,
        identity: WHO,
        tokens: &tokens,
        chunk_tokens: CHUNK,
        page_tokens: 16,
        deadline: None,
        patience: WAIT,
        again: false,
        importances: &importances,
    };
    let levels = LEVELS.map(|level| level.parse().unwrap());
    let mut options = card.options(NAME);
    let mut attach = |recipe, memory| {
        options.recipe = recipe;
        Client::attach(&options, memory)
    };
    let mixture = Mixture { levels: &levels, budget };
    store_mixed(&mut attach, Some(NAME.parse().unwrap()), &order, &mixture, &mut |_, _| {})
}

#[test]
fn each_chunk_is_stored_in_its_own_precision_and_any_reader_of_the_name_fetches_it() {
    let card = Card::start();
    let importance = [9.0, 0.1, 0.3, 0.02, 1.0, 0.01, 0.02, 5.0];
    let bits = 3.0;
    let report = store(&card, &importance, Budget::BitsPerElement(bits)).unwrap();
    assert_eq!((report.whole.chunks, report.whole.known, report.whole.stored), (CHUNKS, 0, CHUNKS));
    assert!(report.planned_bytes <= report.budget_bytes, "{report:?}");
    // Sizes were sampled, and a step of one chunk may be left over.
    let taken = report.whole.amounts.wire_bytes as f64;
    let elements = (CHUNKS * report.whole.geometry.chunk_bytes() / 2) as f64;
    let found_bits = taken * 8.0 / elements;
    assert!((0.8 * bits..1.05 * bits).contains(&found_bits), "{found_bits} bits an element: {:?}", report.portions);
    let used: Vec<_> = report.portions.iter().filter(|portion| portion.chunks > 0).collect();
    assert!(used.len() >= 3, "{:?}", report.portions);

    // What the store holds says of itself how it was stored: the more important, the finer.
    let tokens = source().token_ids("tokens", None).unwrap();
    let recipe = NAME.parse().unwrap();
    let geometry = report.whole.geometry;
    let names = block::Namespace { model: WHO.model, geometry, recipe, salt: WHO.salt, rank: 0, ranks: 1 };
    let prefix = Prefix::new(&names, &tokens).unwrap();
    let peak = |key| {
        let chunk = card.store.chunk(key).unwrap();
        let peaks = chunk.blocks.iter().map(|block| match Header::parse(block).unwrap().transform {
            block::Transform::Quant { peak } => peak,
            other => panic!("{other}"),
        });
        let peaks: std::collections::BTreeSet<u8> = peaks.collect();
        assert_eq!(peaks.len(), 1, "all blocks of a chunk are of one recipe");
        *peaks.first().unwrap()
    };
    let peaks: Vec<u8> = prefix.keys().iter().map(peak).collect();
    let mut by_importance: Vec<_> = importance.iter().zip(&peaks).collect();
    by_importance.sort_by(|a, b| a.0.total_cmp(b.0));
    assert!(by_importance.is_sorted_by_key(|(_, peak)| **peak), "{by_importance:?}");

    // A reader that knows the name alone; the file is within the bound of the coarsest level everywhere.
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("back.safetensors");
    let file = source();
    let order = FetchOrder {
        identity: WHO,
        tokens: &tokens,
        shape: file.kv("kv", None).unwrap().shape,
        chunk_tokens: CHUNK,
        page_tokens: 16,
        deadline: None,
        patience: WAIT,
        target: Target::File { path: &out, tensor: "kv" },
        repeat: 1,
    };
    assert_eq!(fetch(&mut card.options(NAME), &order, &mut |_, _| {}).unwrap().fetched, CHUNKS);
    let back = KvFile::open(&out).unwrap();
    let (one, other) = (file.kv("kv", None).unwrap(), back.kv("kv", None).unwrap());
    let memory = file.memory(&one, CHUNK, 16).unwrap();
    let elements = card.attach(NAME, memory).card_facts().block_elements as usize;
    let kept = |recipe: &str| {
        let recipe = recipe.parse().unwrap();
        compare((&file, &one), (&back, &other), recipe, CHUNK, elements).unwrap().is_kept()
    };
    assert!(kept("q3") && !kept("q4"), "{peaks:?}");

    // Again: everything is known, nothing moves.
    let report = store(&card, &importance, Budget::BitsPerElement(bits)).unwrap();
    assert_eq!((report.whole.known, report.whole.stored, report.whole.amounts.wire_bytes), (CHUNKS, 0, 0));
}

#[test]
fn what_cannot_be_met_is_refused_before_anything_is_stored() {
    let card = Card::start();
    for (importance, budget, word) in [
        (vec![1.0; CHUNKS - 1], Budget::BitsPerElement(4.0), "7 importances for 8 whole chunks"),
        (vec![1.0; CHUNKS], Budget::Bytes(1000), "coarsest level"),
        (vec![f32::NAN; CHUNKS], Budget::BitsPerElement(4.0), "NaN"),
    ] {
        let error = store(&card, &importance, budget).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!(error.exit_code(), 2, "{error}");
    }
    assert_eq!(card.store.len(), 0);
}
