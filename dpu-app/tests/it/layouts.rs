//! Chunks move between any two layouts: the tokens that were asked for arrive bit for bit, and nothing else is touched.

use std::ops::Range;

use crate::rig::*;
use block::{ElementType, Geometry};
use host_ctl::{Arrangement, Memory, PageOrder, Transfer};
use mailbox::{Status, Tokens};

const CHUNKS: usize = 3;
/// Pages of each memory that no request names.
const SPARE_PAGES: u32 = 3;

fn memory(arrangement: Arrangement, geometry: Geometry, page_tokens: u16, seed: u64) -> Memory {
    let pages = CHUNKS as u32 * u32::from(geometry.chunk_tokens / page_tokens) + SPARE_PAGES;
    let memory = arrangement.allocate(geometry, page_tokens, pages).unwrap();
    for (index, region) in memory.regions.iter().enumerate() {
        region.mapping.write(0, &pattern(region.mapping.bytes(), seed + index as u64));
    }
    memory
}

/// Pages in no order, some left out.
fn page_table(memory: &Memory, seed: u64) -> Vec<u32> {
    let mut pages = PageOrder::Shuffled { seed }.table(memory.form.page_count);
    pages.truncate(pages.len() - SPARE_PAGES as usize);
    pages
}

fn regions(memory: &Memory) -> Vec<Vec<u8>> {
    let read = |region: &host_ctl::RegisteredMapping| {
        let mut bytes = vec![0; region.mapping.bytes()];
        region.mapping.read(0, &mut bytes);
        bytes
    };
    memory.regions.iter().map(read).collect()
}

/// What a memory must hold after `content` was restored to the tokens of a request: the oracle, one head at a time.
fn overlaid(memory: &Memory, pages: &[u32], content: &[u8], tokens: Range<usize>) -> Vec<Vec<u8>> {
    let mut expected = regions(memory);
    let (geometry, form) = (memory.geometry, memory.form);
    let head_bytes = usize::from(geometry.head_size) * geometry.element.bytes();
    let page_tokens = usize::from(form.page_tokens);
    let all = pages.len() * page_tokens;
    for (plane, base) in memory.bases.iter().enumerate() {
        for token in tokens.clone() {
            for head in 0..usize::from(geometry.heads) {
                let from = ((plane * all + token) * usize::from(geometry.heads) + head) * head_bytes;
                let to = base.offset
                    + u64::from(pages[token / page_tokens]) * form.page_stride
                    + (token % page_tokens) as u64 * form.token_stride
                    + head as u64 * form.head_stride;
                expected[usize::from(base.region)][to as usize..][..head_bytes]
                    .copy_from_slice(&content[from..from + head_bytes]);
            }
        }
    }
    expected
}

/// Stores from one memory, fetches to others, and compares every byte of each.
struct Trip<'a> {
    card: &'a Card,
    recipe: &'a str,
    keys: Vec<block::ChunkKey>,
    content: Vec<u8>,
}

impl<'a> Trip<'a> {
    fn store(card: &'a Card, recipe: &'a str, salt: u8, source: Memory, seed: u64) -> Self {
        let keys = keys(source.geometry, recipe, salt, CHUNKS);
        let pages = page_table(&source, seed);
        let content = logical(&source, &pages);
        let mut host = card.attach(recipe, source);
        let stored = store(&mut host, &keys, &pages);
        assert_eq!((stored.status, stored.chunks_done), (Status::Ok, CHUNKS));
        Self { card, recipe, keys, content }
    }

    fn fetch(&self, target: &Memory, seed: u64, tokens: Tokens, what: &str) {
        let pages = page_table(target, seed);
        let all = CHUNKS * usize::from(target.geometry.chunk_tokens);
        let range = tokens.start as usize..(tokens.end as usize).min(all);
        let expected = overlaid(target, &pages, &self.content, range.clone());
        let mut host = self.card.attach(self.recipe, target.clone());
        let id = host.post_fetch(&Transfer { tokens, ..Transfer::new(&self.keys, &pages) }).unwrap();
        let fetched = host.wait(id, WAIT).unwrap();
        assert_eq!((fetched.status, fetched.chunks_done), (Status::Ok, CHUNKS), "{what}");
        let moved = range.len() * target.geometry.token_bytes();
        assert_eq!(fetched.restored_bytes, moved as u64, "{what}");
        host.close(WAIT).unwrap();
        assert!(regions(target) == expected, "{what}: tokens {range:?} and nothing else");
    }
}

#[test]
fn any_layout_restores_what_any_other_stored() {
    let card = Card::start();
    let sizes = [1, PAGE_TOKENS, CHUNK_TOKENS];
    let mut salt = 0;
    for element in ElementType::ALL {
        let geometry = Geometry::new(3, 2, 16, CHUNK_TOKENS.into(), element).unwrap();
        for (turn, page_tokens) in sizes.into_iter().enumerate() {
            for from in Arrangement::ALL {
                salt += 1;
                let seed = u64::from(salt);
                let trip = Trip::store(&card, "lossless", salt, memory(from, geometry, page_tokens, seed), seed);
                for (step, to) in Arrangement::ALL.into_iter().enumerate() {
                    let their_page_tokens = sizes[(turn + step) % sizes.len()];
                    let target = memory(to, geometry, their_page_tokens, seed + 1000);
                    let what = format!("{element} {from:?}/{page_tokens} to {to:?}/{their_page_tokens} seed {seed}");
                    trip.fetch(&target, seed + 77, Tokens::ALL, &what);
                }
            }
        }
    }
}

#[test]
fn a_token_range_moves_exactly_its_tokens() {
    let card = Card::start();
    let geometry = geometry();
    let (chunk, all) = (u32::from(CHUNK_TOKENS), CHUNKS as u32 * u32::from(CHUNK_TOKENS));
    for (salt, recipe) in ["lossless", "lossless+raw"].into_iter().enumerate() {
        let source = memory(Arrangement::Vllm, geometry, PAGE_TOKENS, 5);
        let trip = Trip::store(&card, recipe, salt as u8, source, 5);
        for to in Arrangement::ALL {
            for (start, end) in
                [(0, all), (0, all - 1), (1, all), (17, all - 33), (chunk - 1, all - chunk + 1), (16, u32::MAX)]
            {
                let target = memory(to, geometry, PAGE_TOKENS, 9);
                trip.fetch(&target, 11, Tokens { start, end }, &format!("{recipe} {to:?} {start}..{end}"));
            }
        }
    }
}

#[test]
fn odd_shapes_and_block_sizes_come_back() {
    // (layers, heads, head size, chunk tokens, block bytes): chunks that split by tokens, blocks of several layers, a
    // last group of layers that is shorter, rows of two bytes.
    let shapes = [
        (1, 1, 1, 64, 4 << 10),
        (5, 3, 1, 64, 4 << 10),
        (2, 1, 80, 64, 4 << 10),
        (2, 3, 80, 64, 4 << 10),
        (5, 3, 80, 64, 64 << 10),
        (7, 2, 32, 64, 24 << 10),
        (3, 3, 5, 96, 8 << 10),
        (9, 1, 8, 256, 256 << 10),
    ];
    for (layers, heads, head_size, chunk_tokens, block_bytes) in shapes {
        let card = Card::start_with(doca_emulator::Config::default(), |config| config.block_bytes = block_bytes);
        for element in [ElementType::F32, ElementType::F16] {
            let geometry = Geometry::new(layers, heads, head_size, chunk_tokens, element).unwrap();
            let source = memory(Arrangement::VllmJoint, geometry, PAGE_TOKENS, 3);
            let trip = Trip::store(&card, "lossless", element.word(), source, 3);
            for to in [Arrangement::HeadMajor, Arrangement::Contiguous] {
                for page_tokens in [8, 32] {
                    let target = memory(to, geometry, page_tokens, 4);
                    let end = CHUNKS as u32 * u32::from(geometry.chunk_tokens) - 3;
                    let what = format!("{layers}x{heads}x{head_size} {element} {block_bytes} {to:?}/{page_tokens}");
                    trip.fetch(&target, 8, Tokens::ALL, &what);
                    trip.fetch(&target, 8, Tokens { start: 5, end }, &what);
                }
            }
        }
    }
}

#[test]
fn a_card_with_short_lists_and_few_tasks_moves_every_layout() {
    for (list_max, tasks_max) in [(1, 8192), (1, 88), (3, 40), (128, 32)] {
        let emulator = doca_emulator::Config { list_max, tasks_max, ..doca_emulator::Config::default() };
        // Their letters need tasks, too.
        let card = Card::start_with(emulator, |config| config.sessions = 4);
        let geometry = Geometry::new(3, 2, 16, CHUNK_TOKENS.into(), ElementType::F32).unwrap();
        for (salt, to) in Arrangement::ALL.into_iter().enumerate() {
            let source = memory(Arrangement::HeadMajor, geometry, 1, 5);
            let trip = Trip::store(&card, "lossless", salt as u8, source, 5);
            trip.fetch(&memory(to, geometry, 1, 9), 11, Tokens::ALL, &format!("{to:?} {list_max} {tasks_max}"));
        }
    }
}

#[test]
fn a_block_that_was_cut_for_another_layout_goes_in_several_operations() {
    // Blocks of two layers, cut by a host whose pages need few tasks. Where a page is one token the same block needs
    // 128, which the device does not have, and stands in nobody's way.
    let emulator = doca_emulator::Config { list_max: 1, tasks_max: 88, ..doca_emulator::Config::default() };
    let card = Card::start_with(emulator, |config| config.sessions = 4);
    for (salt, recipe) in ["lossless", "lossless+raw"].into_iter().enumerate() {
        let source = memory(Arrangement::Contiguous, crate::rig::geometry(), CHUNK_TOKENS, 5);
        let trip = Trip::store(&card, recipe, salt as u8, source, 5);
        let all = CHUNKS as u32 * u32::from(CHUNK_TOKENS);
        for to in Arrangement::ALL {
            for tokens in [Tokens::ALL, Tokens { start: 3, end: all - 5 }] {
                trip.fetch(
                    &memory(to, crate::rig::geometry(), 1, 9),
                    11,
                    tokens,
                    &format!("{recipe} {to:?} {tokens:?}"),
                );
            }
        }
    }
    card.await_empty();
}
