//! A miss is an answer: how many leading chunks are in place, and nothing past them is called so.

use crate::rig::*;
use block::ChunkKey;
use host_ctl::Arrangement;
use mailbox::Status;

const CHUNKS: usize = 6;

/// Fetches into fresh memory and says how many chunks the card reported; checks that those are right and that the rest
/// holds only what was there before or what was asked for.
fn fetch_and_check(card: &Card, recipe: &str, keys: &[ChunkKey], content: &[u8]) -> usize {
    let target = filled(Arrangement::Vllm, geometry(), CHUNKS + 1, 999);
    let (pages, all_pages) = (linear(CHUNKS), linear(CHUNKS + 1));
    let before = logical(&target, &all_pages);
    let mut host = card.attach(recipe, target.clone());
    let fetched = fetch(&mut host, keys, &pages);
    assert_eq!(fetched.status, Status::Ok, "a miss is not an error");
    host.close(WAIT).unwrap();
    let after = logical(&target, &all_pages);
    let chunk = |bytes: &[u8], chunks, index| chunk_of(bytes, geometry(), chunks, index);
    for index in 0..CHUNKS {
        let found = chunk(&after, CHUNKS + 1, index);
        let asked = chunk(content, CHUNKS, index);
        if index < fetched.chunks_done {
            assert!(found == asked, "chunk {index} is reported and whole");
        } else {
            // Block by block either untouched or right: rows are the finest unit that a block has.
            let old = chunk(&before, CHUNKS + 1, index);
            let rows = geometry().row_bytes();
            for (row, bytes) in found.chunks(rows).enumerate() {
                let at = row * rows..(row + 1) * rows;
                assert!(*bytes == old[at.clone()] || *bytes == asked[at], "chunk {index} row {row} is neither");
            }
        }
    }
    assert!(
        chunk(&after, CHUNKS + 1, CHUNKS) == chunk(&before, CHUNKS + 1, CHUNKS),
        "pages that nobody named are untouched"
    );
    fetched.chunks_done
}

#[test]
fn a_fetch_reports_the_leading_chunks_and_lookup_agrees() {
    let card = Card::start();
    let (keys, content) = stored(&card, "lossless", 1, CHUNKS);
    let mut control = card.control();
    assert_eq!(lookup(&mut control, &keys).chunks_done, CHUNKS);
    assert_eq!(fetch_and_check(&card, "lossless", &keys, &content), CHUNKS);
    // Take chunks out, one more each time: the last, one in the middle, the first, all.
    for (gone, leading) in [(5, 5), (2, 2), (0, 0), (1, 0), (3, 0), (4, 0)] {
        assert!(card.store.remove(&keys[gone]));
        let found = lookup(&mut control, &keys);
        assert_eq!((found.status, found.chunks_done), (Status::Ok, leading), "without {gone}");
        assert_eq!(fetch_and_check(&card, "lossless", &keys, &content), leading, "without {gone}");
    }
    assert_eq!(counter(&status(&mut control), "chunks_failed"), 0, "misses are no failures");
    drop(control);
    card.await_empty();
}

#[test]
fn a_chunk_that_goes_between_lookup_and_fetch_is_a_miss() {
    let card = Card::start();
    let (keys, content) = stored(&card, "lossless", 2, CHUNKS);
    for round in 0..CHUNKS {
        let mut control = card.control();
        assert_eq!(lookup(&mut control, &keys).chunks_done, CHUNKS - round);
        card.store.remove(&keys[CHUNKS - 1 - round]);
        assert_eq!(fetch_and_check(&card, "lossless", &keys, &content), CHUNKS - 1 - round);
    }
}

#[test]
fn chunks_that_vanish_during_fetches_cost_no_more_than_themselves() {
    let seed = 0x5eed_0001;
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    let card = Card::start();
    let (keys, content) = stored(&card, "lossless", 3, CHUNKS);
    let chunks: Vec<_> = keys.iter().map(|key| card.store.chunk(key).unwrap()).collect();
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let churn = scope.spawn({
            let (card, keys, over) = (&card, &keys, &over);
            move || {
                let mut rounds = 0_u64;
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    let index = random.below(CHUNKS);
                    card.store.remove(&keys[index]);
                    std::thread::sleep(std::time::Duration::from_micros(200));
                    let chunk =
                        Chunk { manifest: chunks[index].manifest.clone(), blocks: chunks[index].blocks.clone() };
                    card.store.replace(keys[index], chunk);
                    rounds += 1;
                }
                rounds
            }
        });
        for _ in 0..60 {
            assert!(fetch_and_check(&card, "lossless", &keys, &content) <= CHUNKS);
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(churn.join().unwrap() > 0);
    });
    assert_eq!(card.store.corrupt_noted.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[test]
fn a_chunk_is_stored_once() {
    let card = Card::start();
    let (keys, content) = stored(&card, "lossless", 4, CHUNKS);
    assert_eq!((card.counter("chunks_stored"), card.counter("chunks_known")), (CHUNKS as u64, 0));
    let (again, _) = stored(&card, "lossless", 4, CHUNKS);
    assert_eq!(again, keys);
    assert_eq!((card.counter("chunks_stored"), card.counter("chunks_known")), (CHUNKS as u64, CHUNKS as u64));
    card.store.remove(&keys[2]);
    stored(&card, "lossless", 4, CHUNKS);
    assert_eq!(
        (card.counter("chunks_stored"), card.counter("chunks_known")),
        (CHUNKS as u64 + 1, 2 * CHUNKS as u64 - 1)
    );
    assert_eq!(card.store.len(), CHUNKS);
    assert_eq!(fetch_and_check(&card, "lossless", &keys, &content), CHUNKS);
}

#[test]
fn the_whole_of_a_long_prefix_is_found_whatever_its_length() {
    // More chunks than seats, slots, records of one window and parts of one request.
    const MANY: usize = 150;
    let card = Card::start();
    let (keys, content) = stored(&card, "lossless+raw", 5, MANY);
    let mut control = card.control();
    for length in [1, 2, 63, 64, 65, 127, 128, MANY] {
        assert_eq!(lookup(&mut control, &keys[..length]).chunks_done, length);
    }
    card.store.remove(&keys[100]);
    assert_eq!(lookup(&mut control, &keys).chunks_done, 100);
    let target = empty(Arrangement::HeadMajor, geometry(), MANY);
    let mut host = card.attach("lossless+raw", target.clone());
    let fetched = fetch(&mut host, &keys, &linear(MANY));
    assert_eq!((fetched.status, fetched.chunks_done), (Status::Ok, 100));
    let after = logical(&target, &linear(MANY));
    for index in 0..100 {
        assert!(chunk_of(&after, geometry(), MANY, index) == chunk_of(&content, geometry(), MANY, index), "{index}");
    }
}
