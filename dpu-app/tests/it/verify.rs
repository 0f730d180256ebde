//! With `--verify-dma` nothing that the DMA engine changed is reported as loaded or stored; without it, it is.

use std::sync::Arc;

use crate::rig::*;
use doca_emulator::FlipWay;
use dpu_app::{SAMPLE_BLOCKS, Verify};
use host_ctl::{Arrangement, Memory, Transfer};
use mailbox::{Status, Tokens};

const CHUNKS: usize = 24;
/// Blocks of [`small`]'s card; what the mailbox moves is smaller.
const BLOCK_BYTES: u32 = 16 << 10;
const RECIPES: [&str; 3] = ["lossless", "lossless+raw", "q5"];
const BLOCKS_PER_CHUNK: usize = 4;

/// A card whose DMA engine flips a bit of one transfer in `1 / flip`.
fn bad_bus(seed: u64, flip: f64, way: FlipWay) -> doca_emulator::Config {
    let dma_flip_bytes = BLOCK_BYTES;
    doca_emulator::Config { seed: Some(seed), dma_flip: flip, dma_flip_way: way, dma_flip_bytes, ..Default::default() }
}

/// How chunks that were fetched one by one came out.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    right: usize,
    /// Reported as loaded, and not what it should be.
    wrong: usize,
    refused: usize,
}

/// Fetches each chunk by a request of its own, and compares with what memory in order holds.
fn fetch_each(card: &Card, recipe: &str, keys: &[block::ChunkKey], right: &[u8]) -> Tally {
    let (target, mut tally) = (empty(Arrangement::Vllm, geometry(), keys.len()), Tally::default());
    let mut host = card.attach(recipe, target.clone());
    let pages = linear(keys.len());
    for (index, key) in keys.iter().enumerate() {
        let fetched = fetch(&mut host, &[*key], &pages[index * PAGES_PER_CHUNK..][..PAGES_PER_CHUNK]);
        let found = chunk_of(&logical(&target, &pages), geometry(), keys.len(), index);
        match (fetched.status, fetched.chunks_done) {
            (Status::Ok, 1) if found == chunk_of(right, geometry(), keys.len(), index) => tally.right += 1,
            (Status::Ok, 1) => tally.wrong += 1,
            (Status::DeviceError, 0) => tally.refused += 1,
            other => panic!("chunk {index}: {other:?}"),
        }
    }
    host.close(WAIT).unwrap();
    tally
}

/// Stores chunks of a pattern on a good card, and what a good card gives back.
fn stored_well(recipe: &str) -> (Arc<MemoryStore>, Vec<block::ChunkKey>, Vec<u8>) {
    let card = Card::start();
    let (keys, _) = stored(&card, recipe, 1, CHUNKS);
    let target = empty(Arrangement::Vllm, geometry(), CHUNKS);
    let mut host = card.attach(recipe, target.clone());
    assert_eq!(fetch(&mut host, &keys, &linear(CHUNKS)).chunks_done, CHUNKS);
    (Arc::clone(&card.store), keys, logical(&target, &linear(CHUNKS)))
}

#[test]
fn what_a_bus_flips_on_its_way_to_the_pages_is_never_reported_as_loaded() {
    let seed = 0x5eed_0015;
    println!("seed {seed:#x}");
    for recipe in RECIPES {
        let (store, keys, right) = stored_well(recipe);
        let run = |verify| {
            let card = Card::start_on(Arc::clone(&store), bad_bus(seed, 0.3, FlipWay::ToHost), |config| {
                config.verify_dma = verify;
            });
            let tally = fetch_each(&card, recipe, &keys, &right);
            card.await_empty();
            (tally, card.counter("blocks_differed"))
        };
        let (off, differed) = run(Verify::Off);
        assert!(off.wrong > CHUNKS / 3 && off.refused == 0 && differed == 0, "{recipe}, nobody looks: {off:?}");
        let (all, differed) = run(Verify::All);
        assert_eq!(all.wrong, 0, "{recipe}: {all:?}");
        assert!(all.right > CHUNKS / 2 && differed > 0, "{recipe}, what differs goes again: {all:?}, {differed}");
    }
}

#[test]
fn what_a_bus_flips_on_its_way_from_the_pages_is_never_stored() {
    let seed = 0x5eed_0016;
    println!("seed {seed:#x}");
    for recipe in ["lossless", "q5"] {
        let (_, keys, right) = stored_well(recipe);
        let source = filled(Arrangement::Contiguous, geometry(), CHUNKS, 2);
        let run = |verify| {
            let card = Card::start_with(bad_bus(seed, 0.2, FlipWay::FromHost), |config| config.verify_dma = verify);
            let mut host = card.attach(recipe, source.clone());
            let pages = linear(CHUNKS);
            let told = (0..CHUNKS).filter(|&index| {
                let pages = &pages[index * PAGES_PER_CHUNK..][..PAGES_PER_CHUNK];
                store(&mut host, &keys[index..=index], pages).chunks_done == 1
            });
            let told = told.count();
            host.close(WAIT).unwrap();
            card.await_empty();
            assert_eq!(card.store.len(), told, "what is not told of is not there");
            let good = Card::start_on(Arc::clone(&card.store), doca_emulator::Config::default(), |_| ());
            let (mut wrong, pages) = (0, linear(CHUNKS));
            for (index, key) in keys.iter().enumerate() {
                let target = empty(Arrangement::Vllm, geometry(), CHUNKS);
                let mut host = good.attach(recipe, target.clone());
                if fetch(&mut host, &[*key], &pages[index * PAGES_PER_CHUNK..][..PAGES_PER_CHUNK]).chunks_done == 1 {
                    let found = chunk_of(&logical(&target, &pages), geometry(), CHUNKS, index);
                    wrong += usize::from(found != chunk_of(&right, geometry(), CHUNKS, index));
                }
                host.close(WAIT).unwrap();
            }
            (told, wrong)
        };
        let (told, wrong) = run(Verify::Off);
        // A quantizer swallows flips of low bits.
        assert!(told == CHUNKS && wrong > CHUNKS / 8, "{recipe}, nobody looks: {wrong} of {told} are wrong");
        let (told, wrong) = run(Verify::All);
        assert!(told > CHUNKS / 2, "{recipe}: what differs is gathered again: {told} of {CHUNKS}");
        assert_eq!(wrong, 0, "{recipe}: of {told}");
    }
}

#[test]
fn one_flip_is_mended_and_nobody_hears_of_it() {
    let (store, keys, right) = stored_well("lossless");
    for dma_flip_at in [1, 2, 9, 40] {
        let emulator = doca_emulator::Config { dma_flip_at, ..bad_bus(1, 0.0, FlipWay::ToHost) };
        let card = Card::start_on(Arc::clone(&store), emulator, |config| config.verify_dma = Verify::All);
        assert_eq!(fetch_each(&card, "lossless", &keys, &right), Tally { right: CHUNKS, ..Tally::default() });
        let status = card.status();
        assert_eq!(counter(&status, "blocks_differed"), 1, "transfer {dma_flip_at}");
        assert_eq!(counter(&status, "blocks_compared"), (CHUNKS * BLOCKS_PER_CHUNK + 1) as u64);
    }
}

#[test]
fn a_sample_finds_a_bad_bus_and_then_all_is_compared() {
    let (store, keys, right) = stored_well("lossless");
    let card = Card::start_on(store, bad_bus(3, 1.0, FlipWay::ToHost), |config| config.verify_dma = Verify::Sample);
    let before = fetch_each(&card, "lossless", &keys, &right);
    assert!(before.wrong <= SAMPLE_BLOCKS as usize / BLOCKS_PER_CHUNK && before.right == 0, "{before:?}");
    assert_eq!(fetch_each(&card, "lossless", &keys, &right), Tally { refused: CHUNKS, ..Tally::default() });
}

/// Only what moved is compared: the tokens that were asked for, in every order of the pages.
#[test]
fn a_good_bus_passes_whatever_is_asked_for() {
    let card = Card::start_with(doca_emulator::Config::default(), |config| config.verify_dma = Verify::All);
    for recipe in RECIPES {
        let (keys, content) = stored(&card, recipe, 1, 2);
        for arrangement in Arrangement::ALL {
            let target: Memory = empty(arrangement, geometry(), 2);
            let mut host = card.attach(recipe, target.clone());
            let pages = linear(2);
            for (start, end) in [(0, 128), (1, 128), (3, 125), (16, 112), (63, 65), (63, 127)] {
                let tokens = Tokens { start, end };
                let id = host.post_fetch(&Transfer { tokens, ..transfer(&keys, &pages) }).unwrap();
                let done = host.wait(id, WAIT).unwrap();
                assert_eq!(done.status, Status::Ok, "{recipe} {arrangement:?} {start}..{end}");
            }
            if recipe != "q5" {
                assert!(logical(&target, &pages) == content, "{recipe} {arrangement:?}");
            }
            host.close(WAIT).unwrap();
        }
    }
    let status = card.status();
    assert!(counter(&status, "blocks_compared") > 100 && counter(&status, "blocks_differed") == 0, "{status:?}");
}
