//! What tiers keep by what hosts say: importances, and namespaces with quotas and pins.

use std::path::Path;
use std::time::{Duration, Instant};

use block::{ChunkKey, Codec, Importance, Manifest};
use store::{Limits, Namespaces, Readable, TierFacts};

use crate::chunks::{self, get, key, limits, put, real_chunk};

type Any = dyn Readable<Vec<u8>>;

/// Chunks that `dram=340K` holds: five pages of 4 KiB each, with a sixteenth to spare.
const HELD: u64 = 16;

/// A bottom with so many chunks, each put with its importance, and memory in front of it.
struct Rig {
    dir: tempfile::TempDir,
    lengths: Vec<usize>,
}

impl Rig {
    fn new(chunks: u64, importance: impl Fn(u64) -> f32) -> Self {
        let mut rig = Self { dir: chunks::memory_dir(), lengths: Vec::new() };
        let store = rig.open("", &Namespaces::default());
        for n in 0..chunks {
            let (blocks, manifest) = real_chunk(&key(n), Codec::Deflate);
            put(&*store, 0, &key(n), &blocks, &rated(&manifest, importance(n))).expect("put");
            rig.lengths = blocks.iter().map(Vec::len).collect();
        }
        rig
    }

    fn open(&self, tiers: &str, namespaces: &Namespaces) -> Box<Any> {
        let place = |name: &str| self.dir.path().join(name).display().to_string();
        let url = format!("tiers:{}dir:{}", tiers.replace("DIR", &place("tier")), place("bottom"));
        store::open_with(&url, &Limits { chunks_max: 256, ..limits() }, namespaces, None).expect("it opens")
    }

    /// Whether the memory tier has it.
    fn held(&self, store: &Any, n: u64) -> bool {
        let before = facts(store).hits;
        get(store, 0, &key(n), &self.lengths).expect("tiers miss nothing");
        facts(store).hits > before
    }
}

fn rated(manifest: &[u8], importance: f32) -> Vec<u8> {
    let mut bytes = vec![0; manifest.len()];
    let importance = Importance::of(importance).expect("a factor");
    Manifest::parse(manifest).expect("a manifest").with_importance(importance).encode(&mut bytes);
    bytes
}

fn facts(store: &Any) -> TierFacts {
    let mut first = None;
    store.tiers(true, &mut |tier| first = first.or(Some(*tier)));
    first.expect("a tier")
}

/// Uses single chunks, one after another, and waits until the mover has decided about each that was missing.
fn uses(store: &Any, namespace: u8, chunks: impl IntoIterator<Item = u64>) {
    for n in chunks {
        let decided = |facts: TierFacts| facts.promoted + facts.refused;
        let before = decided(facts(store));
        let held = facts(store).chunks;
        store.touch(namespace, None, &[key(n)], false);
        // One that is held already asks for nothing: 20 ms are enough to see that.
        let end = Instant::now() + Duration::from_millis(if held == 0 { 5000 } else { 20 });
        while decided(facts(store)) == before && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn count(rig: &Rig, store: &Any, chunks: impl Iterator<Item = u64>) -> usize {
    chunks.filter(|&n| rig.held(store, n)).count()
}

#[test]
fn at_equal_use_the_important_stays() {
    // Every other chunk was stored as four times as important.
    let rig = Rig::new(2 * HELD, |n| if n % 2 == 0 { 4.0 } else { 1.0 });
    let store = rig.open("dram=340K,", &Namespaces::default());
    for _ in 0..3 {
        uses(&*store, 0, 0..2 * HELD);
    }
    let all = || 0..2 * HELD;
    let (important, others) = (count(&rig, &*store, all().step_by(2)), count(&rig, &*store, all().skip(1).step_by(2)));
    assert!(important as u64 == HELD && others == 0, "{important} important and {others} others of {HELD} places");
}

#[test]
fn a_rating_is_remembered_for_a_chunk_that_comes_in_later_and_counts_for_one_that_is_in() {
    let rig = Rig::new(2 * HELD, |_| 1.0);
    let store = rig.open("dram=340K,", &Namespaces::default());
    let of = |word: f32| Importance::of(word).expect("a factor");
    let keys: Vec<ChunkKey> = (HELD..2 * HELD).map(key).collect();
    store.rate(&keys, &vec![of(4.0); keys.len()]);
    for _ in 0..3 {
        uses(&*store, 0, 0..2 * HELD);
    }
    assert_eq!(count(&rig, &*store, HELD..2 * HELD) as u64, HELD);
    // Those that are in are worth little now: one use of the others, and they go.
    store.rate(&keys, &vec![of(1.0 / 64.0); keys.len()]);
    uses(&*store, 0, 0..HELD);
    assert_eq!(count(&rig, &*store, 0..HELD) as u64, HELD);
}

#[test]
fn what_was_said_of_a_chunk_is_known_to_the_disk_tier_after_a_restart() {
    let rig = Rig::new(2, |_| 1.0);
    let namespaces = Namespaces::new(["a=0..50%"], []).expect("a quota");
    let bucket = |store: &Any| facts(store).scores.iter().position(|&chunks| chunks > 0).expect("one is held");
    let store = rig.open("dir:DIR=1M,", &namespaces);
    store.rate(&[key(0)], &[Importance::of(16.0).expect("a factor")]);
    uses(&*store, 1, [0]);
    let before = bucket(&*store);
    assert!(facts(&*store).namespaces[1] > 0, "it is a's");
    drop(store);
    let store = rig.open("dir:DIR=1M,", &namespaces);
    assert_eq!((facts(&*store).chunks, facts(&*store).namespaces[1]), (1, 0), "nobody's until it is used");
    assert!(rig.held(&*store, 0));
    store.touch(1, None, &[key(0)], false);
    let after = facts(&*store);
    assert!(after.namespaces[1] > 0, "a's again");
    assert!(bucket(&*store) >= before, "{:?}", after.scores);
}

#[test]
fn a_flood_of_one_namespace_takes_nothing_that_another_was_promised() {
    let rig = Rig::new(3 * HELD, |n| if n < HELD { 1.0 } else { 200.0 });
    let namespaces = Namespaces::new(["a=50%", "b=0..75%"], []).expect("quotas");
    let (a, b) = (namespaces.number(Some("a")), namespaces.number(Some("b")));
    let store = rig.open("dram=340K,", &namespaces);
    for _ in 0..2 {
        uses(&*store, a, 0..HELD);
    }
    let half = facts(&*store).bytes_max / 2;
    assert!(facts(&*store).namespaces[usize::from(a)] > half, "while nobody else wants it, more than its least");
    for _ in 0..3 {
        uses(&*store, b, HELD..3 * HELD);
        let facts = facts(&*store);
        assert!(facts.namespaces[usize::from(a)] >= half, "{:?}", facts.namespaces);
        assert!(facts.namespaces[usize::from(b)] <= facts.bytes_max * 3 / 4, "{:?}", facts.namespaces);
    }
    let facts = facts(&*store);
    let bytes = [a, b].map(|namespace| facts.namespaces[usize::from(namespace)]);
    assert_eq!(bytes, [half, half], "the rest is b's, which says that its chunks are worth 200 times as much");
    assert_eq!(facts.namespaces.iter().sum::<u64>(), facts.bytes);
}

#[test]
fn what_a_pinned_namespace_holds_up_to_its_most_stays() {
    let rig = Rig::new(3 * HELD, |n| if n < 4 { 1.0 } else { 200.0 });
    let namespaces = Namespaces::new(["system=0..25%"], ["system"]).expect("a pin");
    let store = rig.open("dram=340K,", &namespaces);
    uses(&*store, 1, 0..4);
    for _ in 0..3 {
        uses(&*store, 0, 4..3 * HELD);
    }
    assert_eq!(count(&rig, &*store, 0..4), 4);
    assert_eq!(facts(&*store).bytes, facts(&*store).bytes_max, "the rest is full");
}

#[test]
fn quotas_that_no_tier_can_keep_are_the_operators_mistake() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let url = |path: &Path| format!("tiers:dram=1M,dir:{}", path.display());
    let namespaces = Namespaces::new(["a=60%", "b=600K"], []).expect("each is possible");
    let error =
        store::open_with::<Vec<u8>>(&url(&dir.path().join("b")), &limits(), &namespaces, None).expect_err("118 %");
    assert!(error.to_string().contains("more than the tier has"), "{error}");
}
