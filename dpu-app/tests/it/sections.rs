//! Sections: layers of other shapes in the same memory, with chunks, pages and hits of their own.

use std::sync::Arc;
use std::time::Duration;

use block::{ChunkKey, ElementType, Geometry, KeyChain, Namespace, Planes};
use doca::{Access, Mapping};
use host_ctl::{Arrangement, Client, Error, Memory, Options, PageOrder, RegisteredMapping, Section, Transfer};
use mailbox::layout::{Base, Form, Order};
use mailbox::{Operation, Status};

use crate::rig::*;

const CHUNKS: usize = 2;
/// Pages of each tensor that no section uses.
const SPARE_PAGES: u32 = 3;

/// K and V of 32 layers, and latents of 27, as a model with both has them.
fn shapes() -> [Geometry; 2] {
    let latent = Geometry::new(27, 1, 576, CHUNK_TOKENS.into(), ElementType::Bf16).unwrap();
    [Geometry::new(32, 8, 128, CHUNK_TOKENS.into(), ElementType::Bf16).unwrap(), latent.with_planes(Planes::One)]
}

/// Rows of a page: a state is one page.
fn page_tokens(geometry: &Geometry) -> u16 {
    if geometry.element.is_opaque() { geometry.chunk_tokens } else { PAGE_TOKENS }
}

/// The same tensors for all sections, one for each layer of the deepest: a page of any of them is a page of the others.
/// In a page lie K and then V, or the one plane.
fn sections_of(shapes: &[Geometry], pages: u32) -> Memory {
    let page_bytes =
        |geometry: &Geometry| geometry.planes.kinds().len() * usize::from(page_tokens(geometry)) * geometry.row_bytes();
    let stride = shapes.iter().map(page_bytes).max().unwrap().next_multiple_of(4096);
    let section = |geometry: &Geometry| {
        let page_tokens = page_tokens(geometry);
        let row = geometry.row_bytes() as u64;
        let head_stride = u64::from(geometry.head_size) * geometry.element.bytes() as u64;
        let page_stride = stride as u64;
        let form = Form {
            order: Order::TokenMajor,
            page_tokens,
            page_count: pages,
            page_stride,
            token_stride: row,
            head_stride,
        };
        let base = |plane| {
            let (layer, kind) = geometry.planes.of_plane(plane);
            Base { region: layer as u16, offset: kind.place() as u64 * u64::from(page_tokens) * row }
        };
        Section { geometry: *geometry, form, bases: (0..geometry.planes()).map(base).collect() }
    };
    let region = |_| RegisteredMapping {
        mapping: Arc::new(Mapping::anonymous(pages as usize * stride).unwrap()),
        access: Access::ReadWrite,
    };
    let layers = shapes.iter().map(|geometry| geometry.layers).max().unwrap();
    let mut sections = shapes.iter().map(section);
    let Section { geometry, form, bases } = sections.next().unwrap();
    Memory { geometry, form, bases, regions: (0..layers).map(region).collect(), further: sections.collect() }
}

fn fill(memory: &Memory, seed: u64) {
    for (index, region) in memory.regions.iter().enumerate() {
        region.mapping.write(0, &pattern(region.mapping.bytes(), seed + index as u64));
    }
}

/// A section as a memory of its own, for the oracle.
fn alone(memory: &Memory, section: usize) -> Memory {
    let Some(index) = section.checked_sub(1) else { return Memory { further: Vec::new(), ..memory.clone() } };
    let Section { geometry, form, bases } = memory.further[index].clone();
    Memory { geometry, form, bases, further: Vec::new(), regions: memory.regions.clone() }
}

/// Writes a section's content, in [`logical`]'s order, to where its pages are in `expected`.
fn overlay(memory: &Memory, pages: &[u32], content: &[u8], expected: &mut [Vec<u8>]) {
    let (geometry, form) = (memory.geometry, memory.form);
    let (row, page_tokens) = (geometry.row_bytes(), usize::from(form.page_tokens));
    let mut rows = content.chunks_exact(row);
    for base in &memory.bases {
        for &page in pages {
            for token in 0..page_tokens {
                let at = base.offset + u64::from(page) * form.page_stride + token as u64 * form.token_stride;
                expected[usize::from(base.region)][at as usize..][..row].copy_from_slice(rows.next().unwrap());
            }
        }
    }
    assert!(rows.next().is_none());
}

fn regions(memory: &Memory) -> Vec<Vec<u8>> {
    let read = |region: &RegisteredMapping| {
        let mut bytes = vec![0; region.mapping.bytes()];
        region.mapping.read(0, &mut bytes);
        bytes
    };
    memory.regions.iter().map(read).collect()
}

/// Keys of a section's chunks, each named by so many tokens.
fn keys_of(geometry: Geometry, recipe: &str, salt: u8, chunks: usize) -> Vec<ChunkKey> {
    let (recipe, salt, tokens) = (recipe.parse().unwrap(), [salt], usize::from(CHUNK_TOKENS));
    let namespace = Namespace { model: "test", geometry, recipe, salt: &salt, rank: 0, ranks: 1 };
    let mut chain = KeyChain::new(&namespace).covering(tokens);
    (0..chunks).map(|_| chain.push(&vec![7; tokens])).collect()
}

/// Pages for each section, disjoint, in no order.
fn page_tables(memory: &Memory, seed: u64) -> Vec<Vec<u32>> {
    let mut pages = PageOrder::Shuffled { seed }.table(memory.form.page_count);
    (0..memory.sections())
        .map(|section| {
            let section = alone(memory, section);
            pages.split_off(pages.len() - CHUNKS * section.pages_per_chunk())
        })
        .collect()
}

fn in_section(section: usize, keys: &[ChunkKey], pages: &[u32], host: &mut Client, operation: Operation) {
    let transfer = Transfer { section: section as u16, ..transfer(keys, pages) };
    let id = match operation {
        Operation::Fetch => host.post_fetch(&transfer),
        _ => host.post_store(&transfer),
    };
    let ended = host.wait(id.unwrap(), WAIT).unwrap();
    assert_eq!((ended.status, ended.chunks_done), (Status::Ok, keys.len()), "{operation:?} of section {section}");
}

/// Stores every section from one memory and fetches it to another, and compares every byte.
fn travel(card: &Card, shapes: &[Geometry], recipe: &str, salt: u8) {
    let pages = shapes.iter().map(|shape| CHUNKS * usize::from(shape.chunk_tokens / page_tokens(shape))).sum::<usize>();
    let source = sections_of(shapes, pages as u32 + SPARE_PAGES);
    fill(&source, u64::from(salt));
    let target = sections_of(shapes, pages as u32 + SPARE_PAGES);
    fill(&target, 1000 + u64::from(salt));
    let (from, to) = (page_tables(&source, 3), page_tables(&target, 4));
    let keys: Vec<_> = shapes.iter().map(|shape| keys_of(*shape, recipe, salt, CHUNKS)).collect();
    let mut expected = regions(&target);
    let mut host = card.attach(recipe, source.clone());
    for section in 0..shapes.len() {
        in_section(section, &keys[section], &from[section], &mut host, Operation::Store);
        let content = logical(&alone(&source, section), &from[section]);
        overlay(&alone(&target, section), &to[section], &content, &mut expected);
    }
    host.close(WAIT).unwrap();
    let mut host = card.attach(recipe, target.clone());
    // The last first: nothing depends on an order.
    for section in (0..shapes.len()).rev() {
        assert_eq!(window(&mut host, &keys[section], section, 0), CHUNKS);
        in_section(section, &keys[section], &to[section], &mut host, Operation::Fetch);
    }
    host.close(WAIT).unwrap();
    assert!(regions(&target) == expected, "all sections and nothing else, {recipe}");
}

fn window(host: &mut Client, keys: &[ChunkKey], section: usize, trailing: usize) -> usize {
    let id = host.post_window(keys, section as u16, trailing).unwrap();
    let looked = host.wait(id, WAIT).unwrap();
    assert_eq!(looked.status, Status::Ok);
    looked.chunks_done
}

#[test]
fn sections_of_other_shapes_share_one_memory_and_come_back_exactly() {
    let card = Card::start();
    for (salt, recipe) in ["lossless", "lossless+raw", "none"].into_iter().enumerate() {
        travel(&card, &shapes(), recipe, salt as u8);
    }
    card.await_empty();
}

#[test]
fn pages_of_states_are_a_section_of_opaque_bytes() {
    let card = Card::start();
    let [keys_and_values, latent] = shapes();
    let state = |page_bytes, width| Geometry::opaque(5, page_bytes, width).unwrap();
    for (salt, page_bytes, width) in [(1, 12_288, 4), (2, 24_576 + 96, 2), (3, 4_100, 1)] {
        let states = state(page_bytes, width);
        assert_eq!(states.layer_chunk_bytes(), page_bytes);
        // The first section is one like the others.
        travel(&card, &[states, keys_and_values, latent], "lossless", salt);
        // A recipe that quantizes leaves them as they are.
        travel(&card, &[states, state(8_192, width)], "q5", 10 + salt);
    }
    card.await_empty();
}

#[test]
fn sixteen_sections_attach_and_one_more_does_not() {
    let card = Card::start();
    let shape = |layers| Geometry::new(layers, 1, 16, CHUNK_TOKENS.into(), ElementType::Bf16).unwrap();
    let shapes: Vec<_> = (1..=mailbox::SECTIONS_MAX).map(shape).collect();
    travel(&card, &shapes, "lossless", 1);
    let more = sections_of(&[&shapes[..], &[shape(17)]].concat(), 8);
    let error = Client::attach(&card.options("lossless"), Some(more)).unwrap_err();
    assert!(error.to_string().contains("17 sections with 306 bases"), "{error}");
    card.await_empty();
}

#[test]
fn a_window_is_found_wherever_it_ends() {
    let card = Card::start();
    let [shape, _] = shapes();
    let shape = Geometry { layers: 2, ..shape };
    let keys = keys_of(shape, "lossless", 9, 8);
    let memory = sections_of(&[shape, shape], (keys.len() * PAGES_PER_CHUNK) as u32);
    fill(&memory, 5);
    let mut host = card.attach("lossless", memory);
    let pages = linear(keys.len());
    // 2 and 6 are not there.
    for stored in [0..2, 3..6, 7..8] {
        let pages = &pages[stored.start * PAGES_PER_CHUNK..stored.end * PAGES_PER_CHUNK];
        in_section(1, &keys[stored], pages, &mut host, Operation::Store);
    }
    for (trailing, end) in [(0, 2), (1, 8), (2, 6), (3, 6), (4, 2), (8, 2), (100, 2)] {
        assert_eq!(window(&mut host, &keys, 1, trailing), end, "the last {trailing}");
    }
    assert_eq!(window(&mut host, &keys[2..3], 0, 1), 0);
    // In parts, too: the window is the same.
    let options = Options { part_chunks: Some(3), ..card.options("lossless") };
    let mut parts = Client::attach(&Options { recipe: None, ..options }, None).unwrap();
    for (trailing, end) in [(1, 8), (2, 6)] {
        assert_eq!(window(&mut parts, &keys, 5, trailing), end, "the last {trailing}");
    }
    assert!(parts.post_window(&keys, 0, 3).unwrap_err().to_string().contains("fewer than 3"));
    parts.close(WAIT).unwrap();
    // What it promises is fetched: the last of it, and nothing before.
    in_section(1, &keys[4..6], &pages[..2 * PAGES_PER_CHUNK], &mut host, Operation::Fetch);
    // A chunk that turned out to be bad is part of no window.
    let chunk = card.store.chunk(&keys[5]).unwrap();
    let mut blocks = chunk.blocks.clone();
    let last = blocks[0].len() - 1;
    blocks[0][last] ^= 1;
    card.store.replace(keys[5], Chunk { manifest: chunk.manifest.clone(), blocks });
    let id = host.post_fetch(&Transfer { section: 1, ..transfer(&keys[5..6], &pages[..PAGES_PER_CHUNK]) }).unwrap();
    assert_eq!(host.wait(id, WAIT).unwrap().status, Status::Corrupt);
    card.store.replace(keys[5], Chunk { manifest: chunk.manifest.clone(), blocks: chunk.blocks.clone() });
    assert_eq!([1, 2, 3].map(|trailing| window(&mut host, &keys, 1, trailing)), [8, 5, 2]);
    host.close(WAIT).unwrap();
    card.await_empty();
}

#[test]
fn a_section_that_the_session_does_not_have_is_refused_here_and_there() {
    let card = Card::start();
    let memory = || sections_of(&shapes(), 16);
    let keys = keys_of(shapes()[1], "lossless", 1, 1);
    let mut host = card.attach("lossless", memory());
    let pages: Vec<u32> = (0..PAGES_PER_CHUNK as u32).collect();
    let error = host.post_fetch(&Transfer { section: 2, ..transfer(&keys, &pages) }).unwrap_err();
    assert!(error.to_string().contains("section 2 of 2"), "{error}");
    assert!(host.post_window(&keys, 2, 1).is_err());
    // Pages are those of the section: this one has 16, and so has the other.
    let error = host.post_fetch(&Transfer { section: 1, ..transfer(&keys, &[16; PAGES_PER_CHUNK]) }).unwrap_err();
    assert!(error.to_string().contains("page 16, the layout has 16"), "{error}");
    host.close(WAIT).unwrap();
}

#[test]
fn a_section_that_does_not_fit_the_slots_is_refused_by_its_number() {
    let card = Card::start();
    let [shape, _] = shapes();
    let wide = Geometry::new(2, 256, 1024, CHUNK_TOKENS.into(), ElementType::Bf16).unwrap();
    let Err(Error::Refused(refusal)) = Client::attach(&card.options("lossless"), Some(sections_of(&[shape, wide], 8)))
    else {
        panic!("it fits")
    };
    let text = "the card refuses: section 1: one token of one layer has 262144 elements, its slots hold 8192";
    assert!(refusal.to_string().starts_with(text), "{refusal}");
    // Its only section needs no number.
    let error = Client::attach(&card.options("lossless"), Some(sections_of(&[wide], 8))).unwrap_err();
    assert!(error.to_string().starts_with("the card refuses: one token of one layer"), "{error}");
    card.await_empty();
}

#[test]
fn sections_take_their_turns_and_what_one_waits_for_does_not_hold_the_others() {
    let card = Card::start();
    let shape = |layers| Geometry::new(layers, 2, 32, CHUNK_TOKENS.into(), ElementType::Bf16).unwrap();
    let memory = sections_of(&[shape(2), shape(3)], 64);
    fill(&memory, 8);
    let mut host = card.attach("lossless", memory);
    let [first, second] = [2, 3].map(|layers| keys_of(shape(layers), "lossless", 3, 8));
    let (low, high): (Vec<u32>, Vec<u32>) = (linear(8), (32..64).collect());
    in_section(0, &first, &low, &mut host, Operation::Store);
    in_section(1, &second, &high, &mut host, Operation::Store);
    let deadline = Some(Duration::from_secs(20));
    let ids: Vec<_> = (0..8)
        .map(|turn| {
            let (keys, pages) = if turn % 2 == 0 { (&first, &low) } else { (&second, &high) };
            let ask = Transfer { section: turn % 2, deadline, ..transfer(keys, pages) };
            host.post_fetch(&ask).unwrap()
        })
        .collect();
    for id in ids {
        let fetched = host.wait(id, WAIT).unwrap();
        assert_eq!((fetched.status, fetched.chunks_done), (Status::Ok, 8));
    }
    host.close(WAIT).unwrap();
    card.await_empty();
}

/// What attaches of old hosts say is not changed by sections: the arrangements of one section go on as they were.
#[test]
fn a_memory_of_one_section_is_a_memory_as_before() {
    let card = Card::start();
    let (keys, content) = stored(&card, "lossless", 4, 3);
    let memory = empty(Arrangement::Vllm, geometry(), 3);
    assert_eq!((memory.sections(), memory.base_count()), (1, geometry().planes()));
    let mut host = card.attach("lossless", memory.clone());
    assert_eq!(fetch(&mut host, &keys, &linear(3)).chunks_done, 3);
    host.close(WAIT).unwrap();
    assert!(logical(&memory, &linear(3)) == content);
}
