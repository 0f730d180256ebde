//! Blocks of the tier T0 that slots borrow where they lie: right bytes whatever leaves the tier, wrong ones never
//! reported, and nothing borrowed for longer than a slot is in use.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::rig::*;
use block::ChunkKey;
use host_ctl::{Arrangement, Transfer};
use mailbox::Status;

const CHUNKS: usize = 6;

/// A prompt in the store, and what a fetch of all of it brings.
struct Prompt {
    recipe: &'static str,
    keys: Vec<ChunkKey>,
    content: Vec<u8>,
}

impl Prompt {
    /// Stored; its content is what comes back at first, from the store behind the tiers.
    fn store(card: &Card, recipe: &'static str, salt: u8) -> Self {
        let (keys, put) = stored(card, recipe, salt, CHUNKS);
        let target = empty(Arrangement::Vllm, geometry(), CHUNKS);
        let mut host = card.attach(recipe, target.clone());
        assert_eq!(fetch(&mut host, &keys, &linear(CHUNKS)).chunks_done, CHUNKS);
        host.close(WAIT).unwrap();
        let content = logical(&target, &linear(CHUNKS));
        assert!(recipe.starts_with('q') || content == put);
        Self { recipe, keys, content }
    }

    /// Fetches it until the tier has all of it.
    fn warm(&self, card: &Card) {
        let end = Instant::now() + WAIT;
        let mut host = card.attach(self.recipe, empty(Arrangement::Vllm, geometry(), CHUNKS));
        loop {
            let before = dram(card, "hits");
            assert_eq!(fetch(&mut host, &self.keys, &linear(CHUNKS)).chunks_done, CHUNKS);
            if dram(card, "hits") == before + CHUNKS as u64 {
                return;
            }
            assert!(Instant::now() < end, "it does not come into the tier");
        }
    }

    fn is_right(&self, target: &host_ctl::Memory, done: usize) {
        let after = logical(target, &linear(CHUNKS));
        for index in 0..done {
            let same =
                chunk_of(&after, geometry(), CHUNKS, index) == chunk_of(&self.content, geometry(), CHUNKS, index);
            assert!(same, "{}: chunk {index} of {done} was reported and is wrong", self.recipe);
        }
    }
}

fn url(home: &Path, dram: &str) -> String {
    format!("tiers:dram={dram},dir:{}?sync=never", home.join("bottom").display())
}

/// A number of the tier's.
fn dram(card: &Card, what: &str) -> u64 {
    card.status().value()["tiers"][0][what].as_u64().unwrap()
}

fn nothing_is_lent(card: &Card) {
    card.await_empty();
    assert_eq!(card.slab.as_ref().expect("a tier in memory").lent_pages(), 0);
}

#[test]
fn hits_of_every_codec_are_read_where_they_lie_and_copied_nowhere() {
    let home = tempfile::tempdir().unwrap();
    let card = Card::start_url(&url(home.path(), "64M"), |_| ());
    for (salt, recipe) in ["lossless", "lossless+raw", "lossless+lz4", "q5", "q8+raw"].into_iter().enumerate() {
        let prompt = Prompt::store(&card, recipe, salt as u8);
        prompt.warm(&card);
        let read = dram(&card, "bytes_read");
        let target = empty(Arrangement::HeadMajor, geometry(), CHUNKS);
        let mut host = card.attach(recipe, target.clone());
        assert_eq!(fetch(&mut host, &prompt.keys, &linear(CHUNKS)).chunks_done, CHUNKS);
        prompt.is_right(&target, CHUNKS);
        assert!(dram(&card, "bytes_read") > read);
    }
    assert_eq!(card.status().value()["store"]["bytes_copied"], 0);
    nothing_is_lent(&card);
}

#[test]
fn bytes_that_change_in_the_tier_are_never_reported_and_come_from_behind_it() {
    const PAGE: usize = 4096;
    for recipe in ["lossless", "lossless+raw", "lossless+lz4", "q5", "q8+raw"] {
        let home = tempfile::tempdir().unwrap();
        let card = Card::start_url(&url(home.path(), "4M"), |_| ());
        let prompt = Prompt::store(&card, recipe, 1);
        prompt.warm(&card);
        card.await_empty();
        let slab = card.slab.as_ref().expect("a tier in memory");
        let mut blocks = 0;
        for page in (0..slab.bytes()).step_by(PAGE) {
            if slab.lend(page, 4)[..] == *b"KVLB" {
                // Of a payload; head and scales are shorter.
                let byte = slab.lend(page + 3000, 1)[0];
                slab.write(page + 3000, &[byte ^ 0x10]);
                blocks += 1;
            }
        }
        assert!(blocks >= CHUNKS, "{recipe}: {blocks} blocks were found in the slab");
        let target = empty(Arrangement::Vllm, geometry(), CHUNKS);
        let mut host = card.attach(recipe, target.clone());
        let done = fetch(&mut host, &prompt.keys, &linear(CHUNKS));
        assert_eq!((done.status, done.chunks_done), (Status::Ok, CHUNKS), "{recipe}");
        prompt.is_right(&target, CHUNKS);
        drop(host);
        nothing_is_lent(&card);
    }
}

/// Hosts that fetch, cancel, run out of time and die, on engines that are late and fail, from a tier that is too small.
#[test]
fn what_is_borrowed_is_right_and_goes_back_however_fetches_end() {
    const ROUNDS: usize = 90;
    const HOSTS: u64 = 3;
    let seed = std::env::var("KVLANE_SEED").map_or(7, |seed| seed.parse().expect("a number"));
    println!("KVLANE_SEED={seed}");
    let home = tempfile::tempdir().unwrap();
    let emulator = doca_emulator::Config {
        fail: 0.005,
        delay_us: 200,
        reorder: true,
        seed: Some(seed),
        ..doca_emulator::Config::default()
    };
    let card = Card::start_url_with(&url(home.path(), "512K"), emulator, |_| ());
    let recipes = ["lossless", "lossless+raw", "q5", "lossless+lz4", "q8+raw"];
    let prompts: Vec<_> = recipes.iter().zip(1..).map(|(recipe, salt)| Prompt::store(&card, recipe, salt)).collect();
    thread::scope(|scope| {
        for host in 0..HOSTS {
            let (card, prompts) = (&card, &prompts);
            scope.spawn(move || hostile(card, prompts, Random(seed * HOSTS + host), ROUNDS));
        }
    });
    nothing_is_lent(&card);
    let [hits, evicted, promoted] = ["hits", "evicted", "promoted"].map(|what| dram(&card, what));
    println!("{hits} hits, {promoted} chunks came in, {evicted} left");
    assert!(hits > 100 && evicted > 10, "{hits} hits, {evicted} left: too quiet to show anything");
}

fn hostile(card: &Card, prompts: &[Prompt], mut random: Random, rounds: usize) {
    for round in 0..rounds {
        // What is popular changes, so that the tier's chunks do.
        let popular = round / 15 % prompts.len();
        let prompt = &prompts[if random.below(4) > 0 { popular } else { random.below(prompts.len()) }];
        let keys = &prompt.keys[..1 + random.below(CHUNKS)];
        let (target, pages) = (empty(Arrangement::Vllm, geometry(), CHUNKS), linear(keys.len()));
        let mut host = card.attach(prompt.recipe, target.clone());
        let fate = random.below(6);
        let deadline = (fate == 0).then(|| Duration::from_micros(200 + random.below(3000) as u64));
        let id = host.post_fetch(&Transfer { deadline, ..Transfer::new(keys, &pages) }).unwrap();
        thread::sleep(Duration::from_micros(random.below(2000) as u64));
        match fate {
            1 => host.cancel(id).unwrap(),
            // It dies.
            2 => continue,
            _ => {}
        }
        let done = host.wait(id, WAIT).unwrap();
        assert!(matches!(done.status, Status::Ok | Status::Cancelled | Status::DeadlineExceeded), "{:?}", done.status);
        assert!(fate < 2 || done.chunks_done == keys.len(), "round {round}: {} chunks", done.chunks_done);
        prompt.is_right(&target, done.chunks_done);
        host.close(WAIT).unwrap();
    }
}
