//! What every backend of the store promises, told over the interface alone. A new backend adds itself to `each_store`.
//! Redis, Valkey and clusters of them are real servers that the test starts; where none is installed it says so.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use store::{Readable, StoreError};

use crate::chunks::{Questions, get, key, limits, noise, put, soon};
use crate::servers::cluster::Cluster;
use crate::servers::{self, Server};

/// A store that is a directory: what only such a one can promise is asked of it alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Dir,
    Server,
}

type Any = dyn Readable<Vec<u8>>;

fn each_store(claim: impl Fn(&Any, Kind)) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for sync in ["always", "never"] {
        let url = format!("dir:{}?sync={sync}", dir.path().join(sync).display());
        claim(&*store::open(&url, &limits()).expect("an empty directory opens"), Kind::Dir);
    }
    let tiers = |name: &str, bottom: &str| {
        format!("tiers:dram=4M,dir:{}=16M,{bottom}", dir.path().join(format!("tier-{name}")).display())
    };
    let url = tiers("dir", &format!("dir:{}", dir.path().join("bottom").display()));
    claim(&*store::open(&url, &limits()).expect("an empty directory opens"), Kind::Dir);
    for program in servers::programs() {
        println!("{program}");
        let server = Server::start(program, &[]);
        let url = tiers(program, &format!("redis://{}", server.address()));
        claim(&*store::open(&url, &limits()).expect("a running server"), Kind::Server);
        for options in ["", "?protocol=2&connections=1", "?ttl-s=1000&window=64K"] {
            server.flush();
            let url = format!("redis://{}{options}", server.address());
            claim(&*store::open(&url, &limits()).expect("a running server"), Kind::Server);
        }
    }
}

/// Each claim is a test over every kind of store; a cluster, which takes seconds to come up, hears all of them in turn.
macro_rules! claims {
    ($($claim:ident),* $(,)?) => {
        const CLAIMS: &[(&str, fn(&Any, Kind))] = &[$((stringify!($claim), $claim)),*];

        mod each {
            $(
                #[test]
                fn $claim() {
                    super::each_store(super::$claim);
                }
            )*
        }
    };
}

claims!(
    a_chunk_comes_back_as_it_was_put,
    a_block_of_another_length_or_that_is_not_there_is_damage_and_goes_from_a_directory,
    lookup_counts_the_leading_chunks_and_changes_nothing,
    a_miss_is_an_answer_and_leaves_the_seat_free,
    a_deadline_that_has_passed_ends_the_call,
    nothing_of_a_put_is_seen_before_its_commit_or_after_its_abort,
    a_put_over_a_chunk_replaces_it_and_its_open_readers_get_the_old_one_or_a_miss,
    a_corrupt_chunk_leaves_a_directory_and_can_be_put_again,
    what_exceeds_the_limits_is_refused_and_the_put_can_be_aborted,
    every_seat_can_be_used_at_once_and_again,
    blocks_of_one_put_may_come_from_many_threads_in_any_order,
    puts_of_one_chunk_at_the_same_time_are_harmless,
);

#[test]
fn a_cluster_keeps_every_claim() {
    for program in servers::programs() {
        let cluster = Cluster::start(program);
        for (name, claim) in CLAIMS {
            println!("{program}: {name}");
            cluster.flush();
            claim(&*store::open(&cluster.url(""), &limits()).expect("a running cluster"), Kind::Server);
        }
    }
}

fn a_chunk_comes_back_as_it_was_put(store: &Any, kind: Kind) {
    let lengths = [1, 4095, 4096, 4097, 70_000, 1 << 20];
    let blocks: Vec<_> = lengths.iter().map(|&n| noise(n as u64, n)).collect();
    put(store, 0, &key(1), &blocks, b"manifest").expect("put");
    let (manifest, found) = get(store, 3, &key(1), &lengths).expect("get");
    assert_eq!(manifest, b"manifest");
    assert!(found == blocks, "blocks differ");
    let stats = store.stats();
    assert_eq!((stats.hits, stats.puts, stats.bytes_copied), (1, 1, 0));
    assert_eq!(stats.chunks, u64::from(kind == Kind::Dir));
}

fn a_block_of_another_length_or_that_is_not_there_is_damage_and_goes_from_a_directory(store: &Any, kind: Kind) {
    for (n, (index, bytes)) in [(0, 10_001), (0, 9_999), (0, 1), (1, 1), (9999, 500)].into_iter().enumerate() {
        let key = key(n as u64);
        put(store, 0, &key, &[noise(5, 10_000)], b"manifest").expect("put");
        assert_eq!(store.open(0, &key, &mut [0; 4096], soon()), Ok(8));
        let error = store.read(0, index, bytes, soon()).expect_err("not as it was put");
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
        store.discard(0);
        store.close(0);
        assert_eq!(store.lookup(&[key], soon()), Ok(1), "once is no proof");
        assert_eq!(store.open_anew(0, &key), Ok(8));
        assert_eq!(store.read(0, index, bytes, soon()), Err(error));
        store.discard(0);
        store.close(0);
        assert_eq!(store.lookup(&[key], soon()), Ok(stays(kind)));
        put(store, 0, &key, &[noise(5, 10_000)], b"manifest").expect("put");
        assert_eq!(get(store, 0, &key, &[10_000]).expect("a put replaces it").1, [noise(5, 10_000)]);
    }
    assert_eq!(condemned(store), judged(kind, 5));
}

/// How many chunks of one that was discarded are there still: what others share is not deleted on a card's word.
fn stays(kind: Kind) -> usize {
    usize::from(kind == Kind::Server)
}

/// Chunks that were taken out and that stayed, of `bad` ones.
fn judged(kind: Kind, bad: u64) -> (u64, u64) {
    if kind == Kind::Dir { (bad, 0) } else { (0, bad) }
}

fn condemned(store: &Any) -> (u64, u64) {
    let stats = store.stats();
    (stats.corrupt, stats.withheld)
}

fn lookup_counts_the_leading_chunks_and_changes_nothing(store: &Any, _: Kind) {
    for n in [0, 1, 3] {
        put(store, 0, &key(n), &[noise(n, 100)], b"m").expect("put");
    }
    let before = store.stats();
    let keys: Vec<_> = (0..5).map(key).collect();
    for _ in 0..3 {
        assert_eq!(store.lookup(&keys, soon()), Ok(2));
        assert_eq!(store.lookup(&keys[2..], soon()), Ok(0));
        assert_eq!(store.lookup(&keys[3..], soon()), Ok(1));
        assert_eq!(store.lookup(&[], soon()), Ok(0));
        for (trailing, end) in [(0, 2), (1, 4), (2, 2), (5, 2)] {
            assert_eq!(store.look(&keys, trailing, soon()), Ok(end), "the last {trailing}");
        }
    }
    assert_eq!(store.stats(), before);
}

fn a_miss_is_an_answer_and_leaves_the_seat_free(store: &Any, _: Kind) {
    let mut manifest = [0; 4096];
    for _ in 0..3 {
        assert_eq!(store.open(0, &key(9), &mut manifest, soon()), Err(StoreError::Miss));
    }
    put(store, 0, &key(9), &[noise(9, 10)], b"m").expect("put");
    assert_eq!(store.open(0, &key(9), &mut manifest, soon()), Ok(1));
    store.close(0);
    assert_eq!(store.stats().misses, 3);
}

fn a_deadline_that_has_passed_ends_the_call(store: &Any, _: Kind) {
    put(store, 0, &key(1), &[noise(1, 10)], b"m").expect("put");
    let past = Instant::now() - Duration::from_millis(1);
    let mut manifest = [0; 4096];
    assert_eq!(store.lookup(&[key(1)], past), Err(StoreError::Late { call: "lookup" }));
    assert_eq!(store.look(&[key(1)], 1, past), Err(StoreError::Late { call: "lookup" }));
    assert_eq!(store.open(0, &key(1), &mut manifest, past), Err(StoreError::Late { call: "open" }));
    store.open(0, &key(1), &mut manifest, soon()).expect("the seat is free");
    assert_eq!(store.read(0, 0, 10, past), Err(StoreError::Late { call: "read_block" }));
    store.close(0);
}

fn nothing_of_a_put_is_seen_before_its_commit_or_after_its_abort(store: &Any, _: Kind) {
    store.begin_put(1, &key(1), None, soon()).expect("begin");
    store.put_block(1, 0, &noise(1, 5000)).expect("put");
    assert_eq!(store.lookup(&[key(1)], soon()), Ok(0));
    assert_eq!(get(store, 0, &key(1), &[5000]), Err(StoreError::Miss));
    store.abort_put(1);
    assert_eq!(store.lookup(&[key(1)], soon()), Ok(0));
    let stats = store.stats();
    assert_eq!((stats.chunks, stats.bytes, stats.puts_failed), (0, 0, 1));
}

fn a_put_over_a_chunk_replaces_it_and_its_open_readers_get_the_old_one_or_a_miss(store: &Any, kind: Kind) {
    let (old, new) = (noise(1, 50_000), noise(2, 60_000));
    put(store, 0, &key(1), std::slice::from_ref(&old), b"old").expect("put");
    store.open(0, &key(1), &mut [0; 4096], soon()).expect("open");
    put(store, 0, &key(1), std::slice::from_ref(&new), b"new!").expect("put");
    match store.read(0, 0, 50_000, soon()) {
        Ok(block) => assert!(block == old && kind == Kind::Dir),
        Err(error) => assert_eq!((error, kind), (StoreError::Miss, Kind::Server)),
    }
    // The new chunk is none of the old reader's business.
    store.discard(0);
    store.close(0);
    let (manifest, blocks) = get(store, 0, &key(1), &[60_000]).expect("get");
    assert_eq!(manifest, b"new!");
    assert!(blocks == [new]);
}

fn a_corrupt_chunk_leaves_a_directory_and_can_be_put_again(store: &Any, kind: Kind) {
    let block = noise(1, 5000);
    put(store, 0, &key(1), std::slice::from_ref(&block), b"m").expect("put");
    store.open_anew(0, &key(1)).expect("open");
    store.discard(0);
    if kind == Kind::Dir {
        // A second time: it is gone already.
        store.discard(0);
    }
    store.close(0);
    assert_eq!(store.lookup(&[key(1)], soon()), Ok(stays(kind)));
    assert_eq!(get(store, 0, &key(1), &[5000]).is_ok(), kind == Kind::Server);
    assert_eq!(condemned(store), judged(kind, 1));
    put(store, 0, &key(1), std::slice::from_ref(&block), b"m").expect("put");
    assert!(get(store, 0, &key(1), &[5000]).expect("get").1 == [block]);
}

fn what_exceeds_the_limits_is_refused_and_the_put_can_be_aborted(store: &Any, _: Kind) {
    let limits = limits();
    store.begin_put(0, &key(1), None, soon()).expect("begin");
    for (index, bytes) in [(0, 0), (0, limits.block_bytes_max + 1), (limits.blocks_max, 1), (usize::MAX, 1)] {
        let error = store.put_block(0, index, &vec![0; bytes]).expect_err("too large");
        assert!(matches!(error, StoreError::Large { .. }), "{error}");
    }
    store.abort_put(0);
    let error = put(store, 0, &key(1), &[vec![1]], &vec![0; limits.manifest_bytes_max + 1]).expect_err("manifest");
    assert!(matches!(error, StoreError::Large { what: "manifest", .. }), "{error}");
    put(store, 0, &key(1), &[vec![1]], &vec![7; limits.manifest_bytes_max]).expect("the seat is free again");
    assert_eq!(store.lookup(&[key(1)], soon()), Ok(1));
}

fn every_seat_can_be_used_at_once_and_again(store: &Any, _: Kind) {
    let limits = limits();
    for round in 0..3 {
        for seat in 0..limits.puts_max {
            store.begin_put(seat, &key(round * 100 + seat as u64), None, soon()).expect("begin");
        }
        for seat in (0..limits.puts_max).rev() {
            store.put_block(seat, 0, &noise(seat as u64, 100)).expect("put");
            store.commit_put(seat, 1, b"m").expect("commit");
        }
        for seat in 0..limits.chunks_open_max {
            let open = store.open(seat, &key(round * 100 + seat as u64), &mut [0; 4096], soon());
            assert_eq!(open, Ok(1));
        }
        (0..limits.chunks_open_max).for_each(|seat| store.close(seat));
    }
}

fn blocks_of_one_put_may_come_from_many_threads_in_any_order(store: &Any, _: Kind) {
    let blocks: Vec<_> = (0..48).map(|n| noise(n, 1000 + 3777 * n as usize)).collect();
    let lengths: Vec<_> = blocks.iter().map(Vec::len).collect();
    store.begin_put(2, &key(1), None, soon()).expect("begin");
    let turn = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                // 31 and 64 have no divisor in common, so every index below 64 has one turn.
                while let n @ 0..64 = turn.fetch_add(1, Ordering::Relaxed) {
                    let index = n * 31 % 64;
                    if let Some(block) = blocks.get(index) {
                        store.put_block(2, index, block).expect("put");
                    }
                }
            });
        }
    });
    store.commit_put(2, blocks.len(), b"m").expect("commit");
    assert!(get(store, 0, &key(1), &lengths).expect("get").1 == blocks);
}

fn puts_of_one_chunk_at_the_same_time_are_harmless(store: &Any, kind: Kind) {
    std::thread::scope(|scope| {
        for seat in 0..4 {
            scope.spawn(move || {
                for round in 0..40 {
                    let blocks = [noise(round, 3000), noise(seat as u64, 9000)];
                    put(store, seat, &key(1), &blocks, &[seat as u8]).expect("put");
                    let (manifest, found) = get(store, seat, &key(1), &[3000, 9000]).expect("get");
                    let of = |writer: u8| found[1] == noise(writer.into(), 9000);
                    match kind {
                        Kind::Dir => assert!(of(manifest[0]), "a mixture of two puts"),
                        // Each block whole, from whichever writer was last when it was read.
                        Kind::Server => assert!((0..4).any(of), "a block that nobody put"),
                    }
                }
            });
        }
    });
    assert_eq!(store.lookup(&[key(1)], soon()), Ok(1));
}
