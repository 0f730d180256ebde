//! The policy against an oracle that computes every score from the history of uses, and claims told one by one.

use std::collections::HashMap;

use block::ChunkKey;
use proptest::prelude::*;
use tier::{CandidateChunk, HeldView, Policy, Quota, Refusal, Sizes, Worth};

const LIMITS: Sizes = Sizes { bytes_max: 1000, chunks_max: 64 };

fn key(n: u16) -> ChunkKey {
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&n.to_le_bytes());
    ChunkKey::new(bytes)
}

fn chunk(n: u16) -> CandidateChunk {
    CandidateChunk { key: key(n), bytes: 50, namespace: 0, importance: 1.0, cost_us: 1000.0 }
}

fn prompt(range: std::ops::Range<u16>) -> Vec<CandidateChunk> {
    range.map(chunk).collect()
}

/// Uses a chunk until it is held.
fn settle(worth: &mut Worth, chunks: &[CandidateChunk], now_ms: u64) {
    worth.request(chunks, now_ms);
    worth.request(chunks, now_ms);
    assert!(chunks.iter().all(|chunk| worth.holds(&chunk.key)));
}

#[test]
fn a_scan_leaves_what_is_in_use_alone() {
    let hot = [prompt(0..4), prompt(4..8)];
    let all_held = |policy: &dyn Policy| hot.iter().flatten().all(|chunk| policy.holds(&chunk.key));
    let scan = |policy: &mut dyn Policy| {
        let mut lost = 0;
        for n in 0..4000u16 {
            let now = u64::from(n);
            if n % 250 < 2 {
                // Hot prompts come seldom, the scan 125 times as often.
                lost += usize::from(n > 1000 && !all_held(policy));
                policy.request(&hot[usize::from(n % 250)], now);
            } else {
                policy.request(&[chunk(1000 + n)], now);
            }
        }
        lost
    };
    assert_eq!(scan(&mut Worth::new(LIMITS, 1)), 0);
    assert!(scan(&mut tier::Lru::new(LIMITS.bytes_max)) > 20, "a scan that LRU bears is none");
}

#[test]
fn a_chunk_comes_in_after_its_parent_and_never_without() {
    let mut worth = Worth::new(LIMITS, 1);
    assert_eq!(worth.offer(&chunk(1), Some(&key(0)), 0, &mut |_, _| {}), Err(Refusal::Orphan));
    assert_eq!(worth.offer(&chunk(0), None, 0, &mut |_, _| {}), Ok(()));
    assert_eq!(worth.offer(&chunk(1), Some(&key(0)), 0, &mut |_, _| {}), Ok(()));
    assert_eq!(worth.offer(&chunk(1), Some(&key(0)), 0, &mut |_, _| {}), Err(Refusal::Held));
}

#[test]
fn a_prompt_that_is_counted_chunk_by_chunk_counts_the_same() {
    let (mut at_once, mut one_by_one) = (Worth::new(LIMITS, 1), Worth::new(LIMITS, 1));
    for (now, range) in [(0, 0..4), (300, 0..6), (700, 2..5), (900, 0..6)] {
        let keys: Vec<ChunkKey> = range.clone().map(key).collect();
        at_once.used(&keys, now);
        for (place, key) in keys.iter().enumerate() {
            one_by_one.used_behind(place.checked_sub(1).map(|parent| &keys[parent]), key, now);
        }
        for worth in [&mut at_once, &mut one_by_one] {
            for n in range.clone() {
                let parent = (n > range.start).then(|| key(n - 1));
                let _ = worth.offer(&chunk(n), parent.as_ref(), now, &mut |_, _| {});
            }
        }
        assert_eq!(views(&at_once, now), views(&one_by_one, now), "{range:?}");
    }
    assert_eq!(at_once.len(), 6);
}

#[test]
fn what_is_dear_or_important_stays_longer_than_what_is_large() {
    for better in [CandidateChunk { importance: 8.0, ..chunk(1) }, CandidateChunk { cost_us: 8000.0, ..chunk(1) }] {
        let mut worth = Worth::new(LIMITS, 1);
        let plain = chunk(0);
        settle(&mut worth, &[better], 0);
        settle(&mut worth, &[plain], 0);
        let mut n = 10;
        while worth.holds(&plain.key) {
            settle(&mut worth, &[chunk(n)], 2000);
            n += 1;
        }
        assert!(worth.holds(&better.key));
    }
}

#[test]
fn importance_may_come_later_and_nonsense_is_refused() {
    let mut worth = Worth::new(LIMITS, 1);
    settle(&mut worth, &[chunk(0)], 0);
    settle(&mut worth, &[chunk(1)], 1);
    assert!(worth.rate(&key(0), 4.0) && !worth.rate(&key(9), 4.0));
    for wrong in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(!worth.rate(&key(0), wrong));
        let refused = worth.offer(&CandidateChunk { importance: wrong, ..chunk(5) }, None, 5, &mut |_, _| {});
        assert_eq!(refused, Err(Refusal::Large));
    }
    for n in 10.. {
        if !worth.holds(&key(1)) {
            break;
        }
        settle(&mut worth, &[chunk(n)], 2000);
    }
    assert!(worth.holds(&key(0)));
}

#[test]
fn a_pinned_chunk_stays_until_its_last_pin_is_gone() {
    let mut worth = Worth::new(LIMITS, 1);
    settle(&mut worth, &[chunk(0)], 0);
    assert!(worth.pin(&key(0)) && worth.pin(&key(0)));
    worth.unpin(&key(0));
    let flood = |worth: &mut Worth, from: u16| {
        (from..from + 200).for_each(|n| {
            worth.request(&[chunk(n)], 10_000);
            worth.request(&[chunk(n)], 10_000);
        })
    };
    flood(&mut worth, 100);
    assert!(worth.holds(&key(0)));
    worth.unpin(&key(0));
    flood(&mut worth, 400);
    assert!(!worth.holds(&key(0)));
}

#[test]
fn a_namespace_keeps_its_least_and_never_has_more_than_its_most() {
    let mut worth = Worth::new(LIMITS, 1);
    worth.set_quota(0, Quota { least: 200, most: 1000 });
    worth.set_quota(1, Quota { least: 0, most: 600 });
    prompt(0..10).iter().for_each(|chunk| settle(&mut worth, &[*chunk], 0));
    for n in 100..400 {
        let guest = CandidateChunk { namespace: 1, ..chunk(n) };
        worth.request(&[guest], 5000);
        worth.request(&[guest], 5000);
        assert!(worth.bytes_of(1) <= 600);
    }
    assert!(worth.bytes_of(0) >= 200, "{}", worth.bytes_of(0));
    assert_eq!(worth.bytes_of(1), 600);
}

#[test]
fn children_outlive_a_parent_that_was_bad_and_find_it_again() {
    let mut worth = Worth::new(LIMITS, 1);
    let chain = prompt(0..3);
    settle(&mut worth, &chain, 0);
    assert!(worth.remove(&key(1)) && !worth.remove(&key(1)));
    assert!(worth.holds(&key(0)) && worth.holds(&key(2)));
    worth.request(&chain, 10);
    worth.request(&chain, 20);
    let mut children = HashMap::new();
    worth.each(20, |view| {
        children.insert(*view.key, view.children);
    });
    assert_eq!([0, 1, 2].map(|n| children[&key(n)]), [1, 1, 0]);
}

#[test]
fn what_an_earlier_life_held_is_adopted_and_linked_when_it_is_used() {
    let mut worth = Worth::new(LIMITS, 1);
    assert!((0..20).all(|n| worth.adopt(&chunk(n), 0)));
    assert!(!worth.adopt(&chunk(20), 0), "full");
    worth.used(&[key(0), key(1), key(2)], 10);
    let mut with_child = 0;
    worth.each(10, |view| with_child += view.children);
    assert_eq!(with_child, 2);
}

/// Scores and children of those that are held.
fn views(worth: &Worth, now_ms: u64) -> HashMap<u16, (f64, u32)> {
    let mut all = HashMap::new();
    worth.each(now_ms, |HeldView { key, children, score, .. }| {
        all.insert(number(key), (score, children));
    });
    all
}

fn number(key: &ChunkKey) -> u16 {
    u16::from_le_bytes([key.bytes()[0], key.bytes()[1]])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Prompts of a small tree: chunk n's parent is n / 2, as in a heap, so that paths share their heads. So few
    /// chunks are held that all leaves are compared, and what the policy says of itself is held against what it does.
    #[test]
    fn the_least_leaf_leaves_and_all_sums_hold(
        steps in prop::collection::vec((1..64u16, 0..700u64, 1..4u8), 1..120),
    ) {
        let mut worth = Worth::new(LIMITS, 7);
        // Chunks that are held, and their parents.
        let mut known: HashMap<u16, Option<u16>> = HashMap::new();
        let mut now = 0;
        for (leaf, wait, cost) in steps {
            now += wait;
            let mut path = vec![leaf];
            while path[path.len() - 1] > 1 {
                path.push(path[path.len() - 1] / 2);
            }
            path.reverse();
            let keys: Vec<_> = path.iter().map(|&n| key(n)).collect();
            worth.used(&keys, now);
            for (index, &n) in path.iter().enumerate() {
                let offered = CandidateChunk { cost_us: f32::from(cost) * 500.0, bytes: 40 + u32::from(n), ..chunk(n) };
                let parent = index.checked_sub(1).map(|index| path[index]);
                let before = views(&worth, now);
                let mut gone = Vec::new();
                let answer =
                    worth.offer(&offered, parent.map(key).as_ref(), now, &mut |key, _| gone.push(number(key)));
                let seen = views(&worth, now);
                for victim in gone {
                    let leaf = |n: u16| known.values().all(|other| *other != Some(n)) && Some(n) != parent;
                    prop_assert!(leaf(victim), "{victim} had children");
                    let least = known.keys().filter(|n| leaf(**n)).map(|n| before[n].0).fold(f64::INFINITY, f64::min);
                    prop_assert!(before[&victim].0 <= least, "{victim} was not the least");
                    if let Some((score, _)) = seen.get(&n) {
                        prop_assert!(before[&victim].0 < *score, "{victim} was worth more than {n}");
                    }
                    known.remove(&victim);
                }
                match answer {
                    Ok(()) => prop_assert!(known.insert(n, parent).is_none()),
                    Err(Refusal::Held) => prop_assert!(known.contains_key(&n)),
                    Err(Refusal::Orphan) => prop_assert!(!known.contains_key(&parent.unwrap())),
                    Err(_) => prop_assert!(!known.contains_key(&n)),
                }
                prop_assert_eq!(seen.len(), known.len());
                for n in known.keys() {
                    let count = known.values().filter(|parent| **parent == Some(*n)).count();
                    prop_assert_eq!(seen[n].1 as usize, count);
                }
                let bytes: u64 = seen.keys().map(|n| 40 + u64::from(*n)).sum();
                prop_assert_eq!(worth.bytes(), bytes);
                prop_assert!(bytes <= LIMITS.bytes_max);
            }
        }
    }
}

#[test]
fn policies_to_compare_with_keep_to_their_size_and_lru_drops_the_tail_first() {
    let mut policies: Vec<Box<dyn Policy>> =
        vec![Box::new(tier::Lru::new(1000)), Box::new(tier::Lfu::new(1000)), Box::new(tier::S3Fifo::new(1000))];
    for policy in &mut policies {
        for round in 0..50u16 {
            policy.request(&prompt(round * 3..round * 3 + 5), 0);
            policy.request(&prompt(0..3), 0);
            assert!(policy.bytes() <= 1000, "{}", policy.name());
        }
        assert!(policy.holds(&key(0)), "{}", policy.name());
    }
    let mut lru = tier::Lru::new(1000);
    lru.request(&prompt(0..20), 0);
    lru.request(&[chunk(99)], 0);
    assert!(lru.holds(&key(0)) && !lru.holds(&key(19)));
}
