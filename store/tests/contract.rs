//! What every backend of the store promises, told over the interface alone. A new backend adds itself to `each_store`.

mod chunks;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use chunks::{get, key, limits, noise, put, soon};
use store::{Store, StoreError};

fn each_store(claim: impl Fn(&dyn Store)) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for sync in ["always", "never"] {
        let url = format!("dir:{}?sync={sync}", dir.path().join(sync).display());
        claim(&*store::open(&url, &limits()).expect("an empty directory opens"));
    }
}

#[test]
fn a_chunk_comes_back_as_it_was_put() {
    each_store(|store| {
        let lengths = [1, 4095, 4096, 4097, 70_000, 1 << 20];
        let blocks: Vec<_> = lengths.iter().map(|&n| noise(n as u64, n)).collect();
        put(store, 0, &key(1), &blocks, b"manifest").expect("put");
        let (manifest, found) = get(store, 3, &key(1), &lengths).expect("get");
        assert_eq!(manifest, b"manifest");
        assert!(found == blocks, "blocks differ");
        let stats = store.stats();
        assert_eq!((stats.chunks, stats.hits, stats.puts), (1, 1, 1));
    });
}

#[test]
fn any_part_of_a_block_can_be_read_and_no_more_than_the_block() {
    each_store(|store| {
        let block = noise(5, 10_000);
        put(store, 0, &key(1), std::slice::from_ref(&block), b"").expect("put");
        let mut manifest = [0; 4096];
        assert_eq!(store.open(0, &key(1), &mut manifest, soon()), Ok(0));
        for (offset, bytes) in [(0, 128), (128, 9872), (9999, 1), (10_000, 0), (4000, 200)] {
            let mut part = vec![0; bytes];
            store.read_block(0, 0, offset, &mut part, soon()).expect("inside the block");
            assert_eq!(part, block[offset..offset + bytes]);
        }
        for (index, offset, bytes) in [(0, 0, 10_001), (0, 9_999, 2), (1, 0, 1), (9999, 0, 1), (0, usize::MAX, 2)] {
            let error = store.read_block(0, index, offset, &mut vec![0; bytes], soon()).expect_err("outside");
            assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
        }
        store.close(0);
    });
}

#[test]
fn lookup_counts_the_leading_chunks_and_changes_nothing() {
    each_store(|store| {
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
        }
        assert_eq!(store.stats(), before);
    });
}

#[test]
fn a_miss_is_an_answer_and_leaves_the_seat_free() {
    each_store(|store| {
        let mut manifest = [0; 4096];
        for _ in 0..3 {
            assert_eq!(store.open(0, &key(9), &mut manifest, soon()), Err(StoreError::Miss));
        }
        put(store, 0, &key(9), &[noise(9, 10)], b"m").expect("put");
        assert_eq!(store.open(0, &key(9), &mut manifest, soon()), Ok(1));
        store.close(0);
        assert_eq!(store.stats().misses, 3);
    });
}

#[test]
fn a_deadline_that_has_passed_ends_the_call() {
    each_store(|store| {
        put(store, 0, &key(1), &[noise(1, 10)], b"m").expect("put");
        let past = Instant::now() - Duration::from_millis(1);
        let mut manifest = [0; 4096];
        assert_eq!(store.lookup(&[key(1)], past), Err(StoreError::Late { call: "lookup" }));
        assert_eq!(store.open(0, &key(1), &mut manifest, past), Err(StoreError::Late { call: "open" }));
        store.open(0, &key(1), &mut manifest, soon()).expect("the seat is free");
        assert_eq!(store.read_block(0, 0, 0, &mut [0; 10], past), Err(StoreError::Late { call: "read_block" }));
        store.close(0);
    });
}

#[test]
fn nothing_of_a_put_is_seen_before_its_commit_or_after_its_abort() {
    each_store(|store| {
        store.begin_put(1, &key(1)).expect("begin");
        store.put_block(1, 0, &noise(1, 5000)).expect("put");
        assert_eq!(store.lookup(&[key(1)], soon()), Ok(0));
        assert_eq!(get(store, 0, &key(1), &[5000]), Err(StoreError::Miss));
        store.abort_put(1);
        assert_eq!(store.lookup(&[key(1)], soon()), Ok(0));
        let stats = store.stats();
        assert_eq!((stats.chunks, stats.bytes, stats.puts_failed), (0, 0, 1));
    });
}

#[test]
fn a_put_over_a_chunk_replaces_it_and_leaves_its_open_readers_the_old_one() {
    each_store(|store| {
        let (old, new) = (noise(1, 50_000), noise(2, 60_000));
        put(store, 0, &key(1), std::slice::from_ref(&old), b"old").expect("put");
        let mut manifest = [0; 4096];
        store.open(0, &key(1), &mut manifest, soon()).expect("open");
        put(store, 0, &key(1), std::slice::from_ref(&new), b"new!").expect("put");
        let mut block = vec![0; 50_000];
        store.read_block(0, 0, 0, &mut block, soon()).expect("the old chunk can still be read");
        assert!(block == old);
        store.close(0);
        let (manifest, blocks) = get(store, 0, &key(1), &[60_000]).expect("get");
        assert_eq!(manifest, b"new!");
        assert!(blocks == [new]);
        assert_eq!(store.stats().chunks, 1);
    });
}

#[test]
fn a_corrupt_chunk_leaves_and_can_be_put_again() {
    each_store(|store| {
        let block = noise(1, 5000);
        put(store, 0, &key(1), std::slice::from_ref(&block), b"m").expect("put");
        store.note_corrupt(&key(1));
        store.note_corrupt(&key(1));
        store.note_corrupt(&key(77));
        assert_eq!(store.lookup(&[key(1)], soon()), Ok(0));
        assert_eq!(get(store, 0, &key(1), &[5000]), Err(StoreError::Miss));
        assert_eq!(store.stats().corrupt, 1);
        put(store, 0, &key(1), std::slice::from_ref(&block), b"m").expect("put");
        assert!(get(store, 0, &key(1), &[5000]).expect("get").1 == [block]);
    });
}

#[test]
fn what_exceeds_the_limits_is_refused_and_the_put_can_be_aborted() {
    each_store(|store| {
        let limits = limits();
        store.begin_put(0, &key(1)).expect("begin");
        for (index, bytes) in [(0, 0), (0, limits.block_bytes_max + 1), (limits.blocks_max, 1), (usize::MAX, 1)] {
            let error = store.put_block(0, index, &vec![0; bytes]).expect_err("too large");
            assert!(matches!(error, StoreError::Large { .. }), "{error}");
        }
        store.abort_put(0);
        let error = put(store, 0, &key(1), &[vec![1]], &vec![0; limits.manifest_bytes_max + 1]).expect_err("manifest");
        assert!(matches!(error, StoreError::Large { what: "manifest", .. }), "{error}");
        put(store, 0, &key(1), &[vec![1]], &vec![7; limits.manifest_bytes_max]).expect("the seat is free again");
        assert_eq!(store.stats().chunks, 1);
    });
}

#[test]
fn every_seat_can_be_used_at_once_and_again() {
    each_store(|store| {
        let limits = limits();
        for round in 0..3 {
            for seat in 0..limits.puts_max {
                store.begin_put(seat, &key(round * 100 + seat as u64)).expect("begin");
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
    });
}

#[test]
fn blocks_of_one_put_may_come_from_many_threads_in_any_order() {
    each_store(|store| {
        let blocks: Vec<_> = (0..48).map(|n| noise(n, 1000 + 3777 * n as usize)).collect();
        let lengths: Vec<_> = blocks.iter().map(Vec::len).collect();
        store.begin_put(2, &key(1)).expect("begin");
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
    });
}

#[test]
fn puts_of_one_chunk_at_the_same_time_are_harmless() {
    each_store(|store| {
        std::thread::scope(|scope| {
            for seat in 0..4 {
                scope.spawn(move || {
                    for round in 0..40 {
                        let blocks = [noise(round, 3000), noise(seat as u64, 9000)];
                        put(store, seat, &key(1), &blocks, &[seat as u8]).expect("put");
                        // Whole, from whichever writer.
                        let (manifest, found) = get(store, seat, &key(1), &[3000, 9000]).expect("get");
                        assert!(found[1] == noise(manifest[0].into(), 9000), "a mixture of two puts");
                    }
                });
            }
        });
        assert_eq!(store.stats().chunks, 1);
    });
}
