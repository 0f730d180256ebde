//! Tiers in front of a store: what comes into them, and that nothing that goes wrong with one is ever served.

use std::time::{Duration, Instant};

use block::Codec;
use store::{Position, StoreError};

use crate::chunks::{Questions, chunk_path, get_as, put, real_chunk, soon};
use crate::servers::{self, Server};
use crate::tiered::{Real, facts, keys, open, wait_until, warm, with_bottom_dir};

#[test]
fn what_was_used_is_served_from_memory_then() {
    with_bottom_dir("dram=8M,dir:DIR=32M", |_, open, prompt| {
        let store = open();
        assert_eq!(facts(&*store, "dram"), (0, 0));
        prompt[0].fetched(&*store).expect("from the bottom");
        warm(&*store, prompt, "dram");
        assert_eq!(facts(&*store, "dir").0, 3);
        for chunk in prompt {
            chunk.fetched(&*store).expect("from memory");
        }
        assert_eq!((facts(&*store, "dram").1, facts(&*store, "dir").1), (3, 0));
        store.tiers(true, &mut |tier| assert_eq!(tier.scores.iter().sum::<u32>(), 3, "{}", tier.name));
        assert!(store.stats().bytes_copied > 0, "a hit in memory is a copy, and says so");
    });
}

#[test]
fn the_disk_tier_survives_a_restart_and_memory_does_not() {
    with_bottom_dir("dram=8M,dir:DIR=32M", |_, open, prompt| {
        let store = open();
        warm(&*store, prompt, "dir");
        drop(store);
        let store = open();
        prompt[1].fetched(&*store).expect("fetch");
        assert_eq!((facts(&*store, "dram"), facts(&*store, "dir")), ((0, 0), (0, 1)));
        // What it has is brought up from there.
        warm(&*store, prompt, "dram");
        assert_eq!(facts(&*store, "dir").0, 0);
    });
}

#[test]
fn a_put_over_a_chunk_takes_the_old_one_out_of_every_tier() {
    with_bottom_dir("dram=8M,dir:DIR=32M", |_, open, prompt| {
        let store = open();
        warm(&*store, prompt, "dram");
        let (blocks, manifest) = real_chunk(&prompt[1].key, Codec::Lz4);
        put(&*store, 0, &prompt[1].key, &blocks, &manifest).expect("put");
        let new = Real { key: prompt[1].key, blocks, manifest };
        new.fetched(&*store).expect("the new one");
        prompt[0].fetched(&*store).expect("the others stay");
    });
}

#[test]
fn damage_in_the_disk_tier_is_never_served_and_costs_no_chunk() {
    with_bottom_dir("dir:DIR=32M", |dir, open, prompt| {
        let store = open();
        warm(&*store, prompt, "dir");
        let file = |n: usize| chunk_path(&dir.join("tier"), &prompt[n].key);
        // A file that is no chunk any more: seen when it is opened.
        std::fs::write(file(0), [0; 5000]).expect("damage");
        prompt[0].fetched(&*store).expect("from the bottom at once");
        // A file that is gone.
        std::fs::remove_file(file(1)).expect("remove");
        prompt[1].fetched(&*store).expect("from the bottom at once");
        // Bytes that are wrong: seen by whoever inflates them, who asks to discard.
        let mut bytes = std::fs::read(file(2)).expect("read");
        bytes[100] ^= 1;
        std::fs::write(file(2), bytes).expect("damage");
        store.open(0, &prompt[2].key, &mut [0; 4096], soon()).expect("open");
        store.discard(0);
        store.close(0);
        prompt[2].fetched(&*store).expect("from the bottom");
        // All of them come back when they are used.
        warm(&*store, prompt, "dir");
        let hits = facts(&*store, "dir").1;
        prompt.iter().for_each(|chunk| chunk.fetched(&*store).expect("fetch"));
        assert_eq!(facts(&*store, "dir").1, hits + 3);
    });
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_a_miss_and_then_comes_from_below() {
    with_bottom_dir("dir:DIR=32M", |dir, open, prompt| {
        let store = open();
        warm(&*store, prompt, "dir");
        store.open(0, &prompt[0].key, &mut [0; 4096], soon()).expect("open");
        let file = std::fs::OpenOptions::new().write(true).open(chunk_path(&dir.join("tier"), &prompt[0].key));
        file.expect("it is there").set_len(10).expect("truncate");
        let last = prompt[0].blocks.len() - 1;
        assert_eq!(store.read(0, last, prompt[0].blocks[last].len(), soon()), Err(StoreError::Miss));
        store.close(0);
        prompt[0].fetched(&*store).expect("from the bottom");
    });
}

#[test]
fn a_disk_tier_that_is_gone_costs_hits_only() {
    with_bottom_dir("dram=8M,dir:DIR=32M", |dir, open, prompt| {
        let store = open();
        warm(&*store, &prompt[..1], "dir");
        std::fs::remove_dir_all(dir.join("tier")).expect("remove");
        // The next cannot be written there; memory takes it all the same.
        warm(&*store, &prompt[1..2], "dram");
        let failed = || {
            let mut failed = 0;
            store.tiers(true, &mut |tier| failed += tier.failed);
            failed
        };
        assert!(failed() > 0);
        prompt.iter().for_each(|chunk| chunk.fetched(&*store).expect("fetch"));
    });
}

#[test]
fn a_full_memory_keeps_prefixes_whole() {
    with_bottom_dir("dram=128K", |_, open, prompt| {
        let store = open();
        store.touch(0, None, &keys(prompt), false);
        std::thread::sleep(Duration::from_millis(200));
        let mut held = (0, 0);
        store.tiers(true, &mut |tier| held = (tier.bytes, tier.bytes_max));
        assert!(held.0 <= held.1, "{held:?}");
        prompt.iter().for_each(|chunk| chunk.fetched(&*store).expect("fetch"));
    });
}

#[test]
fn while_the_store_below_is_down_tiers_serve_what_they_have() {
    let Some(program) = servers::program() else { return };
    let mut server = Server::start(program, &[]);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path(), "dram=8M,dir:DIR=32M", &format!("redis://{}?connect-ms=200", server.address()));
    let prompt = Real::prompt(3);
    for chunk in &prompt {
        put(&*store, 0, &chunk.key, &chunk.blocks, &chunk.manifest).expect("put");
    }
    warm(&*store, &prompt[..2], "dram");
    server.kill();
    let until = || Instant::now() + Duration::from_secs(3);
    assert_eq!(store.lookup(&keys(&prompt), until()), Ok(2));
    assert_eq!(store.lookup(&keys(&prompt[..2]), until()), Ok(2));
    // Windows, too: the one that would end at 3 cannot be asked for.
    let windows = [1, 2, 3].map(|trailing| store.look(&keys(&prompt), trailing, until()));
    assert_eq!(windows, [Ok(2), Ok(2), Ok(2)]);
    assert_eq!(store.look(&keys(&prompt[1..2]), 1, until()), Ok(1));
    prompt[..2].iter().for_each(|chunk| chunk.fetched(&*store).expect("from memory"));
    let error = store.open(0, &prompt[2].key, &mut [0; 4096], until()).expect_err("nobody has it");
    assert!(matches!(error, StoreError::Down { .. } | StoreError::Late { .. }), "{error}");
    server.up();
    // It comes back empty, which is none of the tiers' business.
    wait_until("the server", || store.lookup(&keys(&prompt), until()) == Ok(2));
}

#[test]
fn a_chunk_that_is_used_while_it_comes_in_is_known_when_it_is_there() {
    with_bottom_dir("dir:DIR=32M", |_, open, _| {
        let store = open();
        let prompt = Real::prompt(24);
        for chunk in &prompt {
            put(&*store, 0, &chunk.key, &chunk.blocks, &chunk.manifest).expect("put");
        }
        // What the policy does not know is nobody's parent: those behind it would be refused for good.
        wait_until("promotion", || {
            store.touch(0, None, &keys(&prompt), false);
            let mut refused = 0;
            store.tiers(false, &mut |tier| refused = tier.refused);
            assert_eq!(refused, 0, "there is room for all of them");
            facts(&*store, "dir").0 == prompt.len() as u64
        });
    });
}

#[test]
fn many_readers_and_the_mover_never_mix_chunks() {
    with_bottom_dir("dram=256K,dir:DIR=1M", |_, open, _| {
        let store = open();
        let prompt = Real::prompt(24);
        for chunk in &prompt {
            put(&*store, 0, &chunk.key, &chunk.blocks, &chunk.manifest).expect("put");
        }
        let (store, prompt) = (&*store, &prompt);
        std::thread::scope(|scope| {
            for seat in 0..3 {
                scope.spawn(move || {
                    for round in 0..150 {
                        let chunk = &prompt[(round * (seat + 3)) % prompt.len()];
                        store.touch(0, None, &[chunk.key], false);
                        let lengths: Vec<_> = chunk.blocks.iter().map(Vec::len).collect();
                        let position = (round % 2 == 0).then_some(Position { namespace: 0, parent: None });
                        let (manifest, blocks) = get_as(store, seat, &chunk.key, position, &lengths).expect("fetch");
                        assert!(manifest == chunk.manifest && blocks == chunk.blocks, "other bytes");
                        if round % 50 == 20 + seat {
                            put(store, seat, &chunk.key, &chunk.blocks, &chunk.manifest).expect("put");
                        }
                    }
                });
            }
        });
    });
}
