//! Store and fetch of files from end to end, against a card in this process.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use block::{ElementType, Planes};
use host_ctl::{
    Arrangement, Error, FetchOrder, FetchReport, Identity, KvFile, PageOrder, StoreOrder, StoreReport, Target,
    TensorShape, fetch, lookup, store,
};

use crate::fake::{FakeCard, Manner};

const CHUNK: usize = 16;
const PATIENCE: Duration = Duration::from_secs(20);
const WHO: Identity<'_> = Identity { model: "m", salt: b"", rank: 0, ranks: 1 };
const SHAPE: TensorShape = TensorShape { layers: 3, tokens: 100, heads: 2, head_size: 8, element: ElementType::F16 };

/// A file with two texts of KV and their tokens.
fn make(dir: &Path) -> PathBuf {
    let path = dir.join("kv.safetensors");
    let one = SHAPE.bytes() as usize;
    let kv: Vec<u8> = (0..2 * one).map(|index| (index * 31 % 251) as u8).collect();
    let tokens: Vec<u8> = (0..200_u32).flat_map(|index| ((index * 7) as u16).to_le_bytes()).collect();
    let view = |dtype, shape: Vec<usize>, data| safetensors::tensor::TensorView::new(dtype, shape, data).unwrap();
    let tensors = [
        ("kv", view(safetensors::Dtype::F16, vec![2, 3, 2, 100, 2, 8], &kv)),
        ("tokens", view(safetensors::Dtype::U16, vec![2, 100], &tokens)),
    ];
    fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    path
}

fn store_text(card: &FakeCard, path: &Path, text: usize, count: usize) -> Result<StoreReport, Error> {
    let file = KvFile::open(path)?;
    let kv = file.kv("kv", Some(text))?;
    let tokens = file.token_ids("tokens", Some(text))?;
    let order = StoreOrder {
        file: &file,
        kv: &kv,
        identity: WHO,
        tokens: &tokens[..count],
        chunk_tokens: CHUNK,
        page_tokens: 4,
        deadline: None,
        patience: PATIENCE,
        again: false,
        importances: &[],
    };
    store(&mut card.door(), &order, &mut |_, _| {})
}

fn fetch_text(card: &FakeCard, source: &Path, text: usize, target: Target<'_>) -> Result<FetchReport, Error> {
    let tokens = KvFile::open(source)?.token_ids("tokens", Some(text))?;
    let order = FetchOrder {
        identity: WHO,
        tokens: &tokens,
        shape: SHAPE,
        chunk_tokens: CHUNK,
        page_tokens: 8,
        deadline: None,
        patience: PATIENCE,
        target,
        repeat: 1,
    };
    fetch(&mut card.door(), &order, &mut |_, _| {})
}

/// Bytes of the first `chunks` chunks of every layer, by the file's own formula.
fn leading(path: &Path, text: Option<usize>, chunks: usize) -> Vec<u8> {
    let file = KvFile::open(path).unwrap();
    let kv = file.kv("kv", text).unwrap();
    let mut all = Vec::new();
    for (layer, kind) in (0..SHAPE.planes()).map(|plane| Planes::KeysAndValues.of_plane(plane)) {
        let mut rows = vec![0; chunks * CHUNK * SHAPE.row_bytes()];
        file.read(&mut rows, kv.row_offset(layer, kind, 0)).unwrap();
        all.extend(rows);
    }
    all
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_stored_text_comes_back_to_the_bit_and_the_other_text_does_not() {
    let card = FakeCard::start(Manner::default());
    let dir = tempfile::tempdir().unwrap();
    let source = make(dir.path());
    let report = store_text(&card, &source, 1, 100).unwrap();
    assert_eq!((report.chunks, report.known, report.stored), (6, 0, 6));
    assert_eq!((report.tokens, report.remainder), (96, 4));
    assert_eq!(card.chunks(), 6);

    let out = dir.path().join("out.safetensors");
    let report = fetch_text(&card, &source, 1, Target::File { path: &out, tensor: "kv" }).unwrap();
    assert_eq!((report.chunks, report.found, report.fetched, report.tokens), (6, 6, 6, 96));
    assert_eq!(leading(&out, None, 6), leading(&source, Some(1), 6));
    // Any reader of safetensors reads it, and its data is aligned for the device.
    let bytes = fs::read(&out).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor("kv").unwrap().shape(), [3, 2, 96, 2, 8]);
    assert!(KvFile::open(&out).unwrap().kv("kv", None).unwrap().offset.is_multiple_of(4096));

    let other = dir.path().join("other.safetensors");
    let error = fetch_text(&card, &source, 0, Target::File { path: &other, tensor: "kv" }).unwrap_err();
    assert!(matches!(error, Error::Miss { chunks: 6 }), "{error:?}");
    assert_eq!(error.exit_code(), 1);
    assert_eq!(files(dir.path()), ["kv.safetensors", "out.safetensors"]);
}

#[test]
fn storing_again_stores_only_what_is_new() {
    let card = FakeCard::start(Manner::default());
    let dir = tempfile::tempdir().unwrap();
    let source = make(dir.path());
    assert_eq!(store_text(&card, &source, 0, 40).unwrap().stored, 2);
    let report = store_text(&card, &source, 0, 100).unwrap();
    assert_eq!((report.known, report.stored), (2, 4));
    let report = store_text(&card, &source, 0, 100).unwrap();
    assert_eq!((report.known, report.stored), (6, 0));
    let out = dir.path().join("out");
    fetch_text(&card, &source, 0, Target::File { path: &out, tensor: "kv" }).unwrap();
    assert_eq!(leading(&out, None, 6), leading(&source, Some(0), 6));
}

#[test]
fn a_partial_hit_makes_a_file_of_what_is_there() {
    let card = FakeCard::start(Manner::default());
    let dir = tempfile::tempdir().unwrap();
    let source = make(dir.path());
    store_text(&card, &source, 0, 48).unwrap();
    let out = dir.path().join("out");
    let report = fetch_text(&card, &source, 0, Target::File { path: &out, tensor: "kv" }).unwrap();
    assert_eq!((report.chunks, report.found, report.fetched, report.tokens), (6, 3, 3, 48));
    assert_eq!(leading(&out, None, 3), leading(&source, Some(0), 3));
}

#[test]
fn chunks_that_go_between_lookup_and_fetch_make_a_shorter_file_and_not_a_wrong_one() {
    let card = FakeCard::start(Manner { evicts: 2, ..Manner::default() });
    let dir = tempfile::tempdir().unwrap();
    let source = make(dir.path());
    store_text(&card, &source, 0, 100).unwrap();
    let out = dir.path().join("out");
    let report = fetch_text(&card, &source, 0, Target::File { path: &out, tensor: "kv" }).unwrap();
    assert!(report.fetched < report.found && report.fetched > 0, "{report:?}");
    assert!(report.note.is_some());
    let kv = KvFile::open(&out).unwrap().kv("kv", None).unwrap();
    assert_eq!(kv.shape.tokens, report.fetched * CHUNK);
    assert_eq!(leading(&out, None, report.fetched), leading(&source, Some(0), report.fetched));
}

#[test]
fn a_corrupt_chunk_never_reaches_the_file() {
    let card = FakeCard::start(Manner { corrupt: Some(2), ..Manner::default() });
    let dir = tempfile::tempdir().unwrap();
    let source = make(dir.path());
    store_text(&card, &source, 0, 100).unwrap();
    let out = dir.path().join("out");
    let report = fetch_text(&card, &source, 0, Target::File { path: &out, tensor: "kv" }).unwrap();
    assert_eq!((report.found, report.fetched), (6, 2));
    assert!(report.note.unwrap().contains("failed its check"));
    assert_eq!(leading(&out, None, 2), leading(&source, Some(0), 2));
}

#[test]
fn damage_is_never_called_not_stored_and_is_counted_where_the_card_counts() {
    let dir = tempfile::tempdir().unwrap();
    let source = make(dir.path());
    let out = dir.path().join("out");
    let target = Target::File { path: &out, tensor: "kv" };
    let counts = r#"{"store":{"corrupt":CORRUPT}}"#;
    for (status, words) in [
        // Of each of the two parts that are under way, the first.
        (
            counts,
            "2 stored chunks were damaged (they failed their checks) and were taken out of the store: store the prefix again",
        ),
        (r#"{"card":{}}"#, "a stored chunk is damaged (it failed its check): store the prefix again"),
    ] {
        let card = FakeCard::start(Manner { corrupt: Some(0), status, ..Manner::default() });
        store_text(&card, &source, 0, 100).unwrap();
        let error = fetch_text(&card, &source, 0, target).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }) && error.exit_code() == 1, "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(!error.to_string().contains("--model"), "nothing was misspelt: {error}");
        // What was taken out is not there any more: now it is a miss.
        let error = fetch_text(&card, &source, 0, target).unwrap_err();
        assert!(matches!(error, Error::Miss { chunks: 6 }), "{error:?}");
    }
    let card = FakeCard::start(Manner { corrupt: Some(2), status: counts, ..Manner::default() });
    store_text(&card, &source, 0, 100).unwrap();
    let report = fetch_text(&card, &source, 0, target).unwrap();
    assert_eq!((report.fetched, report.damaged), (2, Some(2)));
}

#[test]
fn a_card_that_dies_in_mid_fetch_leaves_no_file_and_the_old_one_whole() {
    let dir = tempfile::tempdir().unwrap();
    let source = make(dir.path());
    let card = FakeCard::start(Manner::default());
    store_text(&card, &source, 0, 100).unwrap();
    let out = dir.path().join("out");
    fs::write(&out, b"before").unwrap();
    // Lookup in one session; status, then the first of two parts in the next.
    for dies_after in [2, 3] {
        let dying = FakeCard::start(Manner { dies_after: Some(dies_after), ..Manner::default() });
        store_into(&dying, &card, &source);
        let error = fetch_text(&dying, &source, 0, Target::File { path: &out, tensor: "kv" }).unwrap_err();
        assert_eq!(error.exit_code(), 4, "{error:?}");
        assert_eq!(fs::read(&out).unwrap(), b"before");
        assert_eq!(files(dir.path()), ["kv.safetensors", "out"]);
    }
}

/// Gives one card the chunks of another.
fn store_into(card: &FakeCard, from: &FakeCard, source: &Path) {
    let tokens = KvFile::open(source).unwrap().token_ids("tokens", Some(0)).unwrap();
    let geometry = SHAPE.geometry(CHUNK).unwrap();
    let found = lookup(&mut from.door(), &WHO, geometry, &tokens, PATIENCE).unwrap();
    found.prefix.keys().iter().for_each(|&key| card.put(key, vec![0; geometry.chunk_bytes()]));
}

#[test]
fn measuring_repeats_and_leaves_nothing() {
    let card = FakeCard::start(Manner::default());
    let dir = tempfile::tempdir().unwrap();
    let source = make(dir.path());
    store_text(&card, &source, 0, 100).unwrap();
    for arrangement in Arrangement::ALL {
        let target = Target::Anonymous { arrangement, order: PageOrder::Shuffled { seed: 2 } };
        let tokens = KvFile::open(&source).unwrap().token_ids("tokens", Some(0)).unwrap();
        let order = FetchOrder {
            identity: WHO,
            tokens: &tokens,
            shape: SHAPE,
            chunk_tokens: CHUNK,
            page_tokens: 4,
            deadline: Some(PATIENCE),
            patience: PATIENCE,
            target,
            repeat: 3,
        };
        let report = fetch(&mut card.door(), &order, &mut |_, _| {}).unwrap();
        assert_eq!((report.runs.len(), report.fetched), (3, 6), "{arrangement:?}");
        assert!(report.runs.iter().all(|run| run.raw_bytes == 6 * report.geometry.chunk_bytes() as u64));
    }
    assert_eq!(files(dir.path()), ["kv.safetensors"]);
}

#[test]
fn orders_that_cannot_be_are_refused_before_a_card_is_asked() {
    let card = FakeCard::start(Manner::default());
    let dir = tempfile::tempdir().unwrap();
    let source = make(dir.path());
    let file = KvFile::open(&source).unwrap();
    let kv = file.kv("kv", None).unwrap();
    let tokens: Vec<u32> = (0..101).collect();
    let order = StoreOrder {
        file: &file,
        kv: &kv,
        identity: WHO,
        tokens: &tokens[..100],
        chunk_tokens: CHUNK,
        page_tokens: 4,
        deadline: None,
        patience: PATIENCE,
        again: false,
        importances: &[],
    };
    for wrong in [
        StoreOrder { identity: Identity { model: "", ..WHO }, ..order },
        StoreOrder { tokens: &tokens, ..order },
        StoreOrder { tokens: &tokens[..15], ..order },
        StoreOrder { chunk_tokens: 128, ..order },
        StoreOrder { chunk_tokens: 0, ..order },
        StoreOrder { chunk_tokens: 4096, ..order },
        StoreOrder { page_tokens: 3, ..order },
        StoreOrder { page_tokens: 0, ..order },
    ] {
        let error = store(&mut card.door(), &wrong, &mut |_, _| {}).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error:?}");
    }
    let target = Target::File { path: dir.path(), tensor: "kv" };
    assert_eq!(fetch_text(&card, &source, 0, target).unwrap_err().exit_code(), 1, "a miss comes before the path");
    assert_eq!(card.chunks(), 0);
}
