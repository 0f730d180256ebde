//! A card with tiers that is killed in mid-promotion, or whose remote store goes: what it reports as loaded is right,
//! and what its own memory and disk have it serves.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::rig::process::{Dpu, Home};
use crate::rig::{
    CHUNK_TOKENS, Random, WAIT, chunk_of, empty, fetch, filled, keys, linear, logical, status, store, transfer,
};
use crate::servers::{Server, program};
use block::{ChunkKey, ElementType, Geometry};
use host_ctl::{Arrangement, Client};
use mailbox::Status;
use nix::sys::signal::Signal;

const CHUNKS: usize = 6;

/// Chunks of many blocks, so that it takes a while to move one.
fn geometry() -> Geometry {
    Geometry::new(16, 2, 32, CHUNK_TOKENS.into(), ElementType::Bf16).unwrap()
}

/// A prompt: its keys, and what its memory held when it was stored.
type Prompt = (Vec<ChunkKey>, Vec<u8>);

fn stored_by(dpu: &Dpu, salt: u8) -> Prompt {
    let source = filled(Arrangement::Contiguous, geometry(), CHUNKS, salt.into());
    let (keys, pages) = (keys(geometry(), "lossless", salt, CHUNKS), linear(CHUNKS));
    let mut host = dpu.attach(&source);
    assert_eq!(store(&mut host, &keys, &pages).chunks_done, CHUNKS);
    host.close(WAIT).unwrap();
    (keys, logical(&source, &pages))
}

/// Fetches a prompt; whatever is reported is right. Chunks that were.
fn fetched_right(host: &mut Client, target: &host_ctl::Memory, (keys, content): &Prompt) -> (Status, usize) {
    let done = fetch(host, keys, &linear(CHUNKS));
    let after = logical(target, &linear(CHUNKS));
    for index in 0..done.chunks_done {
        let same = chunk_of(&after, geometry(), CHUNKS, index) == chunk_of(content, geometry(), CHUNKS, index);
        assert!(same, "chunk {index} of {} was reported and is wrong", done.chunks_done);
    }
    (done.status, done.chunks_done)
}

/// One of T1's counters.
fn disk(host: &mut Client, name: &str) -> u64 {
    let status = status(host);
    let tiers = status.value()["tiers"].as_array().unwrap();
    tiers.iter().find(|tier| tier["tier"] == "dir").unwrap()[name].as_u64().unwrap()
}

/// Files of chunks in a directory store, and their bytes.
fn files(dir: &Path) -> (u64, u64) {
    let prefixes = fs::read_dir(dir).unwrap().flatten().filter(|entry| entry.file_name().len() == 2);
    let chunks = prefixes.flat_map(|prefix| fs::read_dir(prefix.path()).unwrap().flatten());
    chunks.fold((0, 0), |(files, bytes), chunk| (files + 1, bytes + chunk.metadata().unwrap().len()))
}

#[test]
fn a_card_killed_in_mid_promotion_serves_nothing_wrong_when_it_is_back() {
    const KILLS: u64 = 20;
    const SEED: u64 = 7;
    const TIER_BYTES: u64 = 4 << 20;
    let home = Home::new();
    let tier = home.dir.path().join("tier");
    let url = format!("tiers:dir:{}={TIER_BYTES},{}?sync=never", tier.display(), home.store());
    let mut random = Random(SEED);
    let first = Dpu::start(&url, &home.socket("card.sock"), "");
    let prompts: Vec<Prompt> = (1..=4).map(|salt| stored_by(&first, salt)).collect();
    drop(first);
    let (mut unfinished, mut hits) = (0, 0);
    let incoming = || fs::read_dir(tier.join("incoming")).unwrap().count();
    for round in 0..KILLS {
        let mut dpu = Dpu::start(&url, &home.socket("card.sock"), "");
        assert_eq!(incoming(), 0, "seed {SEED}, round {round}: what was unfinished is still there");
        let target = empty(Arrangement::Contiguous, geometry(), CHUNKS);
        let mut host = dpu.attach(&target);
        let held = files(&tier);
        let indexed = (disk(&mut host, "chunks"), disk(&mut host, "bytes"));
        assert_eq!(indexed, held, "seed {SEED}, round {round}: index and disk differ");
        assert!(held.1 <= TIER_BYTES, "seed {SEED}, round {round}: {held:?}");
        // Which makes the card promote; T1 has room for some of them.
        for prompt in &prompts {
            assert_eq!(fetched_right(&mut host, &target, prompt), (Status::Ok, CHUNKS), "seed {SEED}, round {round}");
        }
        hits += disk(&mut host, "hits");
        // Files go from T1 and their prompts are used, which brings them back, until the card is gone.
        let using = thread::spawn({
            let (tier, prompts) = (tier.clone(), prompts.clone());
            let mut host = dpu.attach(&empty(Arrangement::Contiguous, geometry(), CHUNKS));
            move || {
                let pages = linear(CHUNKS);
                let mut used = |keys: &[ChunkKey]| {
                    let used = host.post_fetch(&transfer(keys, &pages)).is_ok_and(|id| host.wait(id, WAIT).is_ok());
                    // The mover stands back while fetches read.
                    thread::sleep(Duration::from_millis(10));
                    used
                };
                prompts.iter().cycle().all(|(keys, _)| {
                    for name in keys.iter().map(ChunkKey::to_string) {
                        let _ = fs::remove_file(tier.join(&name[..2]).join(&name));
                    }
                    used(keys)
                })
            }
        });
        // Killed at a promotion that is seen to begin, a moment later.
        let end = Instant::now() + WAIT;
        while incoming() == 0 {
            assert!(Instant::now() < end, "nothing is promoted");
            thread::sleep(Duration::from_micros(50));
        }
        thread::sleep(Duration::from_micros(random.below(200) as u64));
        dpu.signal(Signal::SIGKILL);
        assert!(!using.join().unwrap(), "it was used until it was killed");
        drop(host);
        dpu.wait();
        unfinished += incoming();
    }
    println!("{unfinished} of {KILLS} kills left an unfinished promotion; {hits} hits on disk");
    assert!(hits > 0, "T1 was never used");
    assert!(unfinished > 0, "no kill fell into a promotion: the claim was not tried");
}

#[test]
fn a_card_serves_what_it_has_while_its_remote_store_is_down() {
    let Some(program) = program() else { return };
    let mut server = Server::start(program, &[]);
    let home = Home::new();
    let tier = home.dir.path().join("tier");
    let remote = format!("redis://{}?connect-ms=200", server.address());
    // By a card without tiers, since a stored prompt counts as used.
    let plain = Dpu::start(&remote, &home.socket("card.sock"), "");
    let [warm, cold] = [1, 2].map(|salt| stored_by(&plain, salt));
    drop(plain);
    let url = format!("tiers:dram=32M,dir:{}=64M,{remote}", tier.display());
    let dpu = Dpu::start(&url, &home.socket("card.sock"), "");
    let target = empty(Arrangement::Contiguous, geometry(), CHUNKS);
    let mut host = dpu.attach(&target);
    assert_eq!(fetched_right(&mut host, &target, &warm), (Status::Ok, CHUNKS));
    let end = Instant::now() + WAIT;
    while disk(&mut host, "promoted") < CHUNKS as u64 {
        assert!(Instant::now() < end, "it was used and does not come in");
        thread::sleep(Duration::from_millis(5));
    }
    server.kill();
    for _ in 0..3 {
        assert_eq!(fetched_right(&mut host, &target, &warm), (Status::Ok, CHUNKS));
        assert_eq!(fetched_right(&mut host, &target, &cold), (Status::StoreDown, 0));
    }
    server.up();
    // It comes back empty: what the card has is served, the rest is a miss.
    let end = Instant::now() + WAIT;
    while fetched_right(&mut host, &target, &cold) != (Status::Ok, 0) {
        assert!(Instant::now() < end, "the card does not find it again");
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(fetched_right(&mut host, &target, &warm), (Status::Ok, CHUNKS));
}
