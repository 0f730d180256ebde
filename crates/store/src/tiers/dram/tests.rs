//! T0 under churn, and from many threads.

use tier::CandidateChunk;

use super::*;

fn key(n: u32) -> ChunkKey {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&n.to_le_bytes());
    ChunkKey::new(bytes)
}

fn block(n: u32, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i as u32).wrapping_mul(n + 7).to_le_bytes()[1]).collect()
}

/// Two blocks and a manifest of four bytes.
fn bring(dram: &Dram, n: u32, bytes: usize, now_ms: u64) -> bool {
    let blocks = [block(n, bytes), block(n + 1, bytes / 2 + 1)];
    let lengths = [blocks[0].len() as u32, blocks[1].len() as u32];
    dram.used(&[key(n)], now_ms);
    let began = dram.begin(0, &offered(n), None, now_ms, (&n.to_le_bytes()[..], &lengths[..]));
    if began {
        blocks.iter().enumerate().rev().for_each(|(index, block)| dram.write_block(0, index, block));
        dram.publish(0);
    }
    began
}

fn offered(n: u32) -> CandidateChunk {
    CandidateChunk { key: key(n), bytes: 1, namespace: 0, importance: 1.0, cost_us: 1.0 }
}

/// Whether both blocks are right; how many of them lie where they can be read in place.
fn check(dram: &Dram, seat: usize, n: u32, bytes: usize) -> usize {
    let mut in_place = 0;
    for (index, right) in [block(n, bytes), block(n + 1, bytes / 2 + 1)].iter().enumerate() {
        let mut into = vec![0; right.len()];
        if let Some(at) = dram.read(seat, index, &mut into).expect("a block") {
            assert!(into.iter().all(|&byte| byte == 0) && at.is_multiple_of(PAGE_BYTES));
            dram.slab.read(at, &mut into);
            in_place += 1;
        }
        assert!(into == *right, "block {index} of {n}");
    }
    in_place
}

#[test]
fn what_is_found_is_right_through_any_eviction_and_no_page_is_lost() {
    let (read, in_place) = churned(None);
    assert!(read > 300 && in_place == 0, "plain memory is copied: {in_place} of {read}");
    let (read, in_place) = churned(Some(&|pages, page_bytes| Ok(Box::new(PlainSlab::new(pages, page_bytes)))));
    assert!(read > 300 && in_place > read / 2, "{in_place} of {read}");
}

#[test]
fn a_block_that_had_to_be_cut_is_copied_and_right() {
    let allocate: Allocate<'_> = &|pages, page_bytes| Ok(Box::new(PlainSlab::new(pages, page_bytes)));
    let dram = Dram::new(1 << 20, &Limits::default(), 1, Some(allocate)).expect("memory").expect("256 pages");
    // 16 chunks of 13 pages; then 8 holes of 13 pages, and 48 at the end.
    assert!((0..16).all(|n| bring(&dram, n, 30_000, n.into())));
    (0..16).step_by(2).for_each(|n| dram.remove(&key(n)));
    dram.used(&[key(200)], 900);
    assert!(bring(&dram, 200, 240_000, 1000), "there is room");
    for (n, bytes, in_place) in [(200, 240_000, 0), (1, 30_000, 2)] {
        dram.open(0, &key(n), &mut [0; 64]).expect("it is there").expect("room for its manifest");
        assert_eq!(check(&dram, 0, n, bytes), in_place);
        dram.close(0);
    }
}

/// How many blocks were read, and how many of them where they lie.
fn churned(allocate: Option<Allocate<'_>>) -> (usize, usize) {
    let limits = Limits { chunks_open_max: 2, ..Limits::default() };
    let dram = Dram::new(2 << 20, &limits, 1, allocate).expect("memory").expect("512 pages");
    let (pages, mut read, mut in_place) = (dram.extent.page_count, 0, 0);
    let sizes = [1, 1000, 32 << 10, 100_000, 200_000];
    let size = |n: u32| sizes[n as usize % sizes.len()];
    let mut manifest = [0; 64];
    assert!(bring(&dram, 3, size(3), 0));
    dram.open(1, &key(3), &mut manifest).expect("it came in").expect("room for its manifest");
    for n in 10..2000 {
        bring(&dram, n, size(n), u64::from(n) * 10);
        for old in [n, n - 1, n / 2] {
            if let Some(opened) = dram.open(0, &key(old), &mut manifest) {
                assert_eq!(opened, Ok(4));
                assert_eq!(manifest[..4], old.to_le_bytes());
                in_place += check(&dram, 0, old, size(old));
                read += 2;
                dram.close(0);
            }
        }
        if n % 97 == 0 {
            dram.remove(&key(n));
        }
    }
    assert!(!dram.holds(&key(3)), "it had to leave");
    check(&dram, 1, 3, size(3));
    dram.close(1);
    let state = dram.state();
    let held: usize = state.map.values().flat_map(|&record| state.pages.of(record)).map(|run| run.pages as usize).sum();
    assert_eq!(held + state.pages.free_pages(), pages);
    assert_eq!(state.policy.bytes(), (held * PAGE_BYTES) as u64);
    assert_eq!(state.policy.len(), state.map.len());
    (read, in_place)
}

#[test]
fn a_chunk_that_was_removed_while_it_came_in_is_not_found() {
    let dram = Dram::new(1 << 20, &Limits::default(), 1, None).expect("memory").expect("256 pages");
    for remove in [false, true] {
        assert!(dram.begin(0, &offered(1), None, 0, (&[], &[100])), "an empty tier");
        dram.write_block(0, 0, &[0; 100]);
        if remove {
            dram.remove(&key(1));
            dram.publish(0);
        } else {
            assert!(dram.give_up(0));
        }
        assert!(!dram.holds(&key(1)) && !dram.expects(&key(1)) && dram.missing(0).is_none());
        assert_eq!(dram.state().pages.free_pages(), 256);
    }
    assert!(Dram::new(100, &Limits::default(), 1, None).expect("memory").is_none());
}

#[test]
fn what_has_the_name_of_a_chunk_that_left_on_its_way_in_is_another() {
    let dram = Dram::new(1 << 20, &Limits::default(), 1, None).expect("memory").expect("256 pages");
    let begin = |at| dram.begin(at, &offered(1), None, 0, (&[], &[100, 50]));
    assert!(begin(0));
    assert!(!begin(1), "it comes already");
    dram.remove(&key(1));
    assert!(begin(1), "put anew");
    for (at, byte) in [(0, 1), (1, 2)] {
        dram.write_block(at, 1, &[byte; 50]);
        assert_eq!(dram.missing(at), Some(1));
        // A block that comes twice is one.
        dram.write_block(at, 1, &[byte; 50]);
        dram.write_block(at, 0, &[byte; 100]);
        dram.publish(at);
    }
    dram.open(0, &key(1), &mut []).expect("the later one").expect("room for its manifest");
    let mut into = [0; 100];
    assert_eq!(dram.read(0, 0, &mut into), Ok(None));
    assert_eq!(into, [2; 100]);
    dram.close(0);
    dram.remove(&key(1));
    assert_eq!(dram.state().pages.free_pages(), 256);
}

#[test]
fn many_come_in_at_once_from_many_threads() {
    let limits = Limits { chunks_open_max: 8, ..Limits::default() };
    let dram = Dram::new(2 << 20, &limits, 1, None).expect("memory").expect("512 pages");
    std::thread::scope(|scope| {
        for at in 0..4 {
            let dram = &dram;
            scope.spawn(move || {
                let mut next = crate::tiers::pages::numbers(at as u64);
                for _ in 0..2000 {
                    let n = next(40) as u32;
                    let bytes = 1000 * (1 + n as usize % 7);
                    let content = [block(n, bytes), block(n + 1, bytes / 2 + 1)];
                    let lengths = [bytes as u32, bytes as u32 / 2 + 1];
                    dram.used(&[key(n)], 0);
                    if dram.begin(at, &offered(n), None, 0, (&n.to_le_bytes()[..], &lengths[..])) {
                        let blocks = if next(5) == 0 { 1 } else { 2 };
                        (0..blocks).for_each(|index| dram.write_block(at, index, &content[index]));
                        if blocks == 2 {
                            dram.publish(at);
                        } else {
                            assert!(dram.give_up(at));
                        }
                    }
                    if dram.open(4 + at, &key(n), &mut [0; 4]).is_some() {
                        check(dram, 4 + at, n, bytes);
                        dram.close(4 + at);
                    }
                    if next(10) == 0 {
                        dram.remove(&key(next(40) as u32));
                    }
                }
            });
        }
    });
    (0..40).for_each(|n| dram.remove(&key(n)));
    assert_eq!(dram.state().pages.free_pages(), 512);
    assert!(dram.state().map.is_empty() && dram.state().policy.is_empty());
}
