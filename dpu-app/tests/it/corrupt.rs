//! A damaged block is never reported as loaded, whatever bit it is that changed, and costs nobody else anything.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::rig::*;
use block::{ChunkKey, ElementType, Geometry, Header, Manifest};
use host_ctl::{Arrangement, Client, Memory};
use mailbox::Status;

/// Damaged chunks that are fetched at the same time, each behind a good one.
const BATCH: usize = 24;
const PAYLOAD_FLIPS: usize = 504;

/// Small blocks, so that there are few bits; still with every section.
fn shape() -> Geometry {
    Geometry::new(1, 2, 16, CHUNK_TOKENS.into(), ElementType::Bf16).unwrap()
}

/// A card with pairs of stored chunks: the first of each pair stays good, the second is to be damaged.
struct Bench {
    card: Card,
    host: Client,
    target: Memory,
    keys: Vec<ChunkKey>,
    good: Vec<Arc<Chunk>>,
    content: Vec<u8>,
}

/// What a fetch of one pair came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Refused,
    /// Loaded, and every bit is right.
    Exact,
}

impl Bench {
    fn new(recipe: &str) -> Self {
        let card = Card::start();
        let (chunks, geometry) = (2 * BATCH, shape());
        let keys = keys(geometry, recipe, 1, chunks);
        let mut host = card.attach(recipe, repetitive(geometry, chunks));
        assert_eq!(store(&mut host, &keys, &linear(chunks)).chunks_done, chunks);
        let target = empty(Arrangement::Contiguous, geometry, chunks);
        let mut host = card.attach(recipe, target.clone());
        assert_eq!(fetch(&mut host, &keys, &linear(chunks)).chunks_done, chunks);
        // What a quantizer makes of it is the truth from now on.
        let content = logical(&target, &linear(chunks));
        let good = keys.iter().map(|key| card.store.chunk(key).unwrap()).collect();
        Self { card, host, target, keys, good, content }
    }

    fn copy(&self, index: usize) -> Chunk {
        Chunk { manifest: self.good[index].manifest.clone(), blocks: self.good[index].blocks.clone() }
    }

    fn right(&self, index: usize) -> Vec<u8> {
        chunk_of(&self.content, shape(), 2 * BATCH, index)
    }

    /// Damages the second chunk of each pair with `damage(pair, chunk)` and fetches all pairs at once.
    fn batch(&mut self, pairs: usize, damage: impl Fn(usize, &mut Chunk)) -> Vec<Fate> {
        let noted = self.card.store.corrupt_noted.load(Relaxed);
        let pages = linear(2 * BATCH);
        for region in &self.target.regions {
            region.mapping.write(0, &vec![0xaa; region.mapping.bytes()]);
        }
        let posted: Vec<_> = (0..pairs)
            .map(|pair| {
                let mut chunk = self.copy(2 * pair + 1);
                damage(pair, &mut chunk);
                self.card.store.replace(self.keys[2 * pair + 1], chunk);
                let pages = &pages[2 * pair * PAGES_PER_CHUNK..2 * (pair + 1) * PAGES_PER_CHUNK];
                self.host.post_fetch(&transfer(&self.keys[2 * pair..2 * pair + 2], pages)).unwrap()
            })
            .collect();
        let answers: Vec<_> = posted.into_iter().map(|id| self.host.wait(id, WAIT).unwrap()).collect();
        let after = logical(&self.target, &pages);
        let fates = answers.iter().enumerate().map(|(pair, answer)| {
            let found = |index| chunk_of(&after, shape(), 2 * BATCH, index);
            assert!(found(2 * pair) == self.right(2 * pair), "pair {pair}: the chunk before the damage is in place");
            match (answer.status, answer.chunks_done) {
                (Status::Corrupt, 1) => Fate::Refused,
                (Status::Ok, 2) => {
                    assert!(found(2 * pair + 1) == self.right(2 * pair + 1), "pair {pair}: wrong bytes were reported");
                    Fate::Exact
                }
                other => panic!("pair {pair}: {other:?}"),
            }
        });
        let fates: Vec<_> = fates.collect();
        let refused = fates.iter().filter(|fate| **fate == Fate::Refused).count() as u64;
        assert_eq!(
            self.card.store.corrupt_noted.load(Relaxed) - noted,
            refused,
            "each bad chunk is reported to the store"
        );
        fates
    }

    /// Flips each of these bits of what `place` names, a batch at a time. Returns how many were refused.
    fn flip(&mut self, bits: &[usize], place: impl Fn(&mut Chunk) -> &mut [u8]) -> usize {
        let mut refused = 0;
        for bits in bits.chunks(BATCH) {
            let fates = self.batch(bits.len(), |pair, chunk| {
                let bytes = place(chunk);
                // A bit number past the end comes round: blocks of one shape differ in the length of their payload.
                let bit = bits[pair] % (bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
            });
            refused += fates.iter().filter(|fate| **fate == Fate::Refused).count();
        }
        refused
    }

    /// The session still works, and everything that was put in use came back.
    fn end(mut self) {
        for (index, key) in self.keys.iter().enumerate() {
            self.card.store.replace(*key, self.copy(index));
        }
        let pages = linear(2 * BATCH);
        assert_eq!(fetch(&mut self.host, &self.keys, &pages).chunks_done, 2 * BATCH, "the session lives on");
        assert!(logical(&self.target, &pages) == self.content);
        self.host.close(WAIT).unwrap();
        self.card.await_empty();
    }
}

/// Something that every codec finds something in, and that no two chunks have in common.
fn repetitive(geometry: Geometry, chunks: usize) -> Memory {
    let memory = empty(Arrangement::Contiguous, geometry, chunks);
    let mapping = &memory.regions[0].mapping;
    let row = geometry.row_bytes();
    let rows = pattern(mapping.bytes() / 8, 3);
    let content: Vec<u8> = rows.chunks(row).flat_map(|row| std::iter::repeat_n(row, 8).flatten()).copied().collect();
    mapping.write(0, &content);
    memory
}

fn payload(chunk: &mut Chunk) -> &mut [u8] {
    let payload = Header::parse(&chunk.blocks[0]).unwrap().payload_range();
    &mut chunk.blocks[0][payload]
}

fn every_bit_counts(recipe: &str) {
    let mut bench = Bench::new(recipe);
    let block = &bench.good[1].blocks[0];
    let header = Header::parse(block).unwrap();
    assert_eq!(
        header.codec,
        recipe.parse::<block::Recipe>().unwrap().codec,
        "the block is of the codec it is meant for"
    );
    // Header, scales, and the padding between them and the payload if there is any.
    let (scales, payload_bytes) = (header.scales_range(), header.payload_range().len());
    let head: Vec<_> = (0..scales.end * 8).collect();
    assert_eq!(bench.flip(&head, |chunk| &mut chunk.blocks[0]), head.len(), "{recipe}: header and scales");
    let seed = 0xc0ffee ^ payload_bytes as u64;
    println!("{recipe}: {} bits of header and scales, {PAYLOAD_FLIPS} of the payload, seed {seed:#x}", head.len());
    let mut random = Random(seed);
    let mut sample: Vec<_> = (0..PAYLOAD_FLIPS).map(|_| random.below(payload_bytes * 8)).collect();
    // The ends, where formats keep their odd bits.
    sample.extend(0..12);
    sample.extend(payload_bytes * 8 - 12..payload_bytes * 8);
    let refused = bench.flip(&sample, payload);
    // A flip that changes no code (the padding of the last byte) is allowed, and then every bit was right.
    assert!(sample.len() - refused <= sample.len() / 20, "{recipe}: {refused} of {} were seen", sample.len());
    bench.end();
}

#[test]
fn every_flipped_bit_is_seen_lossless_deflate() {
    every_bit_counts("lossless");
}

#[test]
fn every_flipped_bit_is_seen_lossless_lz4() {
    every_bit_counts("lossless+lz4");
}

#[test]
fn every_flipped_bit_is_seen_lossless_raw() {
    every_bit_counts("lossless+raw");
}

#[test]
fn every_flipped_bit_is_seen_q5_deflate() {
    every_bit_counts("q5");
}

#[test]
fn every_flipped_bit_is_seen_q5_lz4() {
    every_bit_counts("q5+lz4");
}

#[test]
fn every_flipped_bit_is_seen_q5_raw() {
    every_bit_counts("q5+raw");
}

#[test]
fn every_flipped_bit_of_a_manifest_is_seen() {
    let mut bench = Bench::new("q5");
    let all: Vec<_> = (0..bench.good[1].manifest.len() * 8).collect();
    assert_eq!(bench.flip(&all, |chunk| &mut chunk.manifest), all.len());
    bench.end();
}

#[test]
fn a_block_in_the_wrong_place_is_seen() {
    for recipe in ["lossless", "lossless+raw", "q5"] {
        let mut bench = Bench::new(recipe);
        let other = bench.copy(0);
        let all = vec![Fate::Refused; BATCH];
        assert_eq!(bench.batch(BATCH, |_, chunk| chunk.blocks.swap(0, 1)), all, "{recipe}: swapped");
        let alien = |_: usize, chunk: &mut Chunk| chunk.blocks[1].clone_from(&other.blocks[1]);
        assert_eq!(bench.batch(BATCH, alien), all, "{recipe}: a block of another chunk");
        let alien = |_: usize, chunk: &mut Chunk| chunk.manifest.clone_from(&other.manifest);
        assert_eq!(bench.batch(BATCH, alien), all, "{recipe}: the manifest of another chunk");
        let alien = |_: usize, chunk: &mut Chunk| {
            (chunk.manifest, chunk.blocks) = (other.manifest.clone(), other.blocks.clone());
        };
        assert_eq!(bench.batch(BATCH, alien), all, "{recipe}: another chunk altogether");
        bench.end();
    }
}

#[test]
fn a_truncated_or_lost_block_is_seen() {
    let seed = 0x7c_0001;
    println!("seed {seed:#x}");
    for recipe in ["lossless", "q5+raw", "q4p"] {
        let mut bench = Bench::new(recipe);
        let bytes = bench.good[1].blocks[0].len();
        let mut random = Random(seed);
        let cuts: Vec<_> =
            [0, 1, 64, 127, 128, 129, usize::MAX].into_iter().chain((7..BATCH).map(|_| random.below(bytes))).collect();
        let all = vec![Fate::Refused; BATCH];
        // Blocks of one shape differ in the length of their payload.
        let cut = |pair: usize, chunk: &mut Chunk| {
            let block = &mut chunk.blocks[0];
            block.truncate(cuts[pair].min(block.len() - 1));
        };
        assert_eq!(bench.batch(BATCH, cut), all, "{recipe}");
        // Zeros in place of the tail, as a file has them after a crash.
        let zeroed = |pair: usize, chunk: &mut Chunk| {
            let block = &mut chunk.blocks[0];
            let from = cuts[pair].min(block.len() - 16);
            block[from] = !block[from];
            block[from + 1..].fill(0);
        };
        assert_eq!(bench.batch(BATCH, zeroed), all, "{recipe}: zeros");
        let manifest = bench.good[1].manifest.len();
        let cut = |pair: usize, chunk: &mut Chunk| chunk.manifest.truncate(pair * manifest / BATCH);
        assert_eq!(bench.batch(BATCH, cut), all, "{recipe}: manifest");
        bench.end();
    }
}

#[test]
fn garbage_with_a_good_checksum_is_seen() {
    // Not a flipped bit but a liar: the codes' CRC is right for other codes, the payload is not what it says.
    let mut bench = Bench::new("lossless");
    let forged = |pair: usize, chunk: &mut Chunk| {
        let block = &mut chunk.blocks[0];
        let mut header = Header::parse(block).unwrap();
        let scales = block[header.scales_range()].to_vec();
        match pair % 3 {
            0 => header.codes_crc ^= 1 << (pair % 32),
            1 => header.codec = block::Codec::Lz4,
            _ => header.payload_bytes -= 1,
        }
        header.seal(&scales);
        header.encode(block);
    };
    assert_eq!(bench.batch(BATCH, forged), vec![Fate::Refused; BATCH]);
    bench.end();
}

#[test]
fn chunks_of_a_card_with_larger_blocks_are_a_miss_and_stay() {
    let large = Card::start_with(doca_emulator::Config::default(), |config| config.block_bytes = 64 << 10);
    let (keys, content) = stored(&large, "lossless", 1, 2);
    let small = Card::start_on(Arc::clone(&large.store), doca_emulator::Config::default(), |_| ());
    let manifest = Manifest::parse(&small.store.chunk(&keys[0]).unwrap().manifest).unwrap();
    assert!(manifest.plan().largest(manifest.geometry()).tile_bytes(manifest.geometry()) > 16 << 10);
    let target = empty(Arrangement::Vllm, geometry(), 2);
    let mut host = small.attach("lossless", target.clone());
    let fetched = fetch(&mut host, &keys, &linear(2));
    assert_eq!((fetched.status, fetched.chunks_done), (Status::Ok, 0), "as good as a miss");
    assert!(bytes_of(&target).iter().all(|byte| *byte == 0));
    assert_eq!(
        (small.store.corrupt_noted.load(Relaxed), small.store.len()),
        (0, 2),
        "good for the card that stored it"
    );
    let mut host = large.attach("lossless", target.clone());
    assert_eq!(fetch(&mut host, &keys, &linear(2)).chunks_done, 2);
    assert!(logical(&target, &linear(2)) == content);
}
