//! The pipeline on a hostile card: late, out of order, full, failing, lying. What is reported is right, nothing hangs,
//! and no good chunk is blamed for what an engine did.

use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use crate::rig::*;
use block::ChunkKey;
use doca_emulator::Config as Emulator;
use host_ctl::{Arrangement, Client, Memory};
use mailbox::Status;

const CHUNKS: usize = 4;
const HOSTS: u8 = 3;
const RECIPES: [&str; 3] = ["lossless", "lossless+lz4", "lossless+raw"];

/// One host: stores a prefix of its own, then fetches it and its neighbours' while others do the same.
fn host(card: &Card, number: u8, rounds: usize) -> Tally {
    let recipe = RECIPES[usize::from(number) % RECIPES.len()];
    let source = filled(Arrangement::ALL[usize::from(number) % 4], geometry(), CHUNKS, number.into());
    let pages = linear(CHUNKS);
    let content = logical(&source, &pages);
    let keys = keys(geometry(), recipe, number, CHUNKS);
    let target = empty(Arrangement::ALL[usize::from(number + 1) % 4], geometry(), CHUNKS);
    let mut tally = Tally::default();
    let mut sessions = Sessions { card, recipe, open: None };
    for round in 0..rounds {
        if round % 4 == 0 {
            card.store.remove(&keys[round / 4 % CHUNKS]);
            tally.stored += usize::from(sessions.ask(&source, &keys, &pages, true).is_some_and(|done| done == CHUNKS));
        }
        wipe(&target);
        let done = sessions.ask(&target, &keys, &pages, false).unwrap_or(0);
        let after = logical(&target, &pages);
        for index in 0..done {
            let same = chunk_of(&after, geometry(), CHUNKS, index) == chunk_of(&content, geometry(), CHUNKS, index);
            assert!(same, "host {number} round {round}: chunk {index} was reported and is wrong");
        }
        tally.fetched += done;
    }
    tally
}

#[derive(Default, Debug)]
struct Tally {
    stored: usize,
    fetched: usize,
}

/// A card that fails again and again for one session may end it; the host attaches anew, as a connector would.
struct Sessions<'a> {
    card: &'a Card,
    recipe: &'a str,
    open: Option<(Client, *const ())>,
}

impl Sessions<'_> {
    /// Chunks that the card reported; `None` when the session was lost.
    fn ask(&mut self, memory: &Memory, keys: &[ChunkKey], pages: &[u32], put: bool) -> Option<usize> {
        let which = memory.bases.as_ptr().cast::<()>();
        if self.open.as_ref().is_none_or(|(_, open)| *open != which) {
            self.open = None;
            let options = self.card.options(self.recipe);
            self.open = Client::attach(&options, Some(memory.clone())).ok().map(|client| (client, which));
        }
        let (client, _) = self.open.as_mut()?;
        let transfer = transfer(keys, pages);
        let id = if put { client.post_store(&transfer) } else { client.post_fetch(&transfer) };
        let answer = match id.and_then(|id| client.wait(id, WAIT)) {
            Ok(answer) => answer,
            Err(host_ctl::Error::CardGone(_)) => {
                self.open = None;
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let known = matches!(answer.status, Status::Ok | Status::DeviceError);
        assert!(known, "{:?} after {} chunks", answer.status, answer.chunks_done);
        Some(answer.chunks_done)
    }
}

fn wipe(memory: &Memory) {
    for region in &memory.regions {
        region.mapping.write(0, &vec![0; region.mapping.bytes()]);
    }
}

fn ordeal(seed: u64, emulator: Emulator, rounds: usize, change: impl FnOnce(&mut dpu_app::Config)) -> u64 {
    println!("seed {seed}: {emulator:?}");
    let card = Card::start_with(Emulator { seed: Some(seed), ..emulator }, change);
    let tallies: Vec<Tally> = thread::scope(|scope| {
        let hosts: Vec<_> = (0..HOSTS)
            .map(|number| {
                scope.spawn({
                    let card = &card;
                    move || host(card, number, rounds)
                })
            })
            .collect();
        hosts.into_iter().map(|host| host.join().unwrap()).collect()
    });
    let fetched: usize = tallies.iter().map(|tally| tally.fetched).sum();
    let most = usize::from(HOSTS) * rounds * CHUNKS;
    assert!(fetched * 4 >= most * 3, "seed {seed}: {fetched} of {most} chunks: {tallies:?}");
    assert_eq!(card.store.corrupt_noted.load(Relaxed), 0, "seed {seed}: a good chunk was blamed");
    card.await_empty();
    let status = card.status();
    assert_eq!(counter(&status, "blocks_corrupt"), 0, "seed {seed}");
    counter(&status, "engine_restarts")
}

#[test]
fn late_and_reordered_completions_change_nothing() {
    for seed in 1..=4 {
        let emulator =
            Emulator { delay_us: 400, reorder: true, decompress_threads: 3, dma_threads: 3, ..Emulator::default() };
        assert_eq!(ordeal(seed, emulator, 8, |_| ()), 0, "nothing failed");
    }
}

#[test]
fn a_full_engine_is_asked_again() {
    for (seed, again) in [(11, 0.05), (12, 0.3), (13, 0.6)] {
        let emulator = Emulator { again, delay_us: 50, reorder: true, ..Emulator::default() };
        assert_eq!(ordeal(seed, emulator, 8, |_| ()), 0, "nothing failed");
    }
}

#[test]
fn failing_tasks_restart_the_engine_and_cost_nobody_else_anything() {
    let mut restarts = 0;
    for seed in 21..=26 {
        let emulator = Emulator { fail: 0.02, delay_us: 100, reorder: true, ..Emulator::default() };
        restarts += ordeal(seed, emulator, 8, |_| ());
    }
    assert!(restarts > 0);
}

#[test]
fn an_engine_that_lies_is_caught_by_its_crc() {
    for seed in 31..=34 {
        let emulator = Emulator { corrupt: 0.1, reorder: true, ..Emulator::default() };
        assert_eq!(ordeal(seed, emulator, 8, |_| ()), 0, "nothing failed");
    }
}

#[test]
fn an_engine_that_lies_is_caught_by_software_too() {
    for seed in 41..=43 {
        let emulator = Emulator { corrupt: 0.1, reorder: true, ..Emulator::default() };
        assert_eq!(ordeal(seed, emulator, 8, |config| config.software_crc = true), 0, "nothing failed");
    }
}

#[test]
fn everything_at_once() {
    let mut restarts = 0;
    for seed in 51..=62 {
        let emulator = Emulator {
            fail: 0.01,
            again: 0.1,
            corrupt: 0.05,
            delay_us: 200,
            reorder: true,
            window: seed % 2 == 0,
            decompress_threads: 1 + (seed % 3) as u32,
            dma_threads: 1 + (seed % 2) as u32,
            ..Emulator::default()
        };
        restarts += ordeal(seed, emulator, 8, |config| {
            config.slots = 2 + (seed % 5) as usize;
            config.store_slots = 1;
            config.inflate_depth = 1 + (seed % 4) as usize;
            config.dma_depth = 1 + (seed % 3) as usize;
            config.chunks = 1 + (seed % 6) as usize;
        });
    }
    assert!(restarts > 0);
}

#[test]
fn a_codec_that_the_engine_lacks_is_inflated_in_software() {
    // BlueField-2 knows no LZ4 and larger blocks: software does what the engine does not.
    let emulator = Emulator { profile: doca_emulator::Profile::Bf2, ..Emulator::default() };
    assert_eq!(ordeal(71, emulator, 6, |_| ()), 0);
}
