//! A card over real Redis servers that fail: status words, deadlines, other sessions, and nothing wrong reported as
//! loaded.

use std::thread;
use std::time::{Duration, Instant};

use crate::rig::*;
use crate::servers::cluster::Cluster;
use crate::servers::proxy::Proxy;
use crate::servers::{Server, program};
use block::ChunkKey;
use host_ctl::{Arrangement, Completion, Memory, Transfer};
use mailbox::Status;

const CHUNKS: usize = 6;

macro_rules! server {
    ($($argument:expr),*) => {
        match program() {
            Some(program) => Server::start(program, &[$($argument),*]),
            None => return,
        }
    };
}

fn card(port: u16, options: &str) -> Card {
    Card::start_url(&format!("redis://127.0.0.1:{port}{options}"), |_| ())
}

fn memory() -> Memory {
    empty(Arrangement::Vllm, geometry(), CHUNKS)
}

fn name_of(key: &ChunkKey) -> String {
    format!("kvlane:{{{key}}}")
}

fn leading_are_right(target: &Memory, content: &[u8], done: usize) {
    let after = logical(target, &linear(CHUNKS));
    for index in 0..done {
        let same = chunk_of(&after, geometry(), CHUNKS, index) == chunk_of(content, geometry(), CHUNKS, index);
        assert!(same, "chunk {index} of {done} was reported and is wrong");
    }
}

/// Fetches all chunks into memory of its own and checks what is reported.
fn fetch_checked(card: &Card, keys: &[ChunkKey], content: &[u8], deadline: Option<Duration>) -> Completion {
    let target = memory();
    let mut host = card.attach("lossless", target.clone());
    let pages = linear(CHUNKS);
    let id = host.post_fetch(&Transfer { deadline, ..Transfer::new(keys, &pages) }).unwrap();
    let done = host.wait(id, WAIT).unwrap();
    leading_are_right(&target, content, done.chunks_done);
    host.close(WAIT).unwrap();
    done
}

/// Fetches until all is there again.
fn await_whole(card: &Card, keys: &[ChunkKey], content: &[u8]) {
    let end = Instant::now() + Duration::from_secs(20);
    while fetch_checked(card, keys, content, None).chunks_done < CHUNKS {
        assert!(Instant::now() < end, "the store does not come back");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_was_stored_comes_back_through_a_server_and_nothing_is_copied() {
    let server = server!();
    let card = card(server.port, "");
    for (salt, recipe) in ["lossless", "q5", "lossless+raw"].into_iter().enumerate() {
        let (keys, content) = stored(&card, recipe, salt as u8 + 1, CHUNKS);
        let target = memory();
        let mut host = card.attach(recipe, target.clone());
        for _ in 0..20 {
            assert_eq!(lookup(&mut host, &keys).chunks_done, CHUNKS);
            let done = fetch(&mut host, &keys, &linear(CHUNKS));
            assert_eq!((done.status, done.chunks_done), (Status::Ok, CHUNKS), "{recipe}");
        }
        if recipe != "q5" {
            leading_are_right(&target, &content, CHUNKS);
        }
    }
    let status = card.status();
    let value = status.value();
    assert_eq!(value["store"]["bytes_copied"], 0);
    assert_eq!(value["nodes_known"], 1);
    let node = &value["nodes"][0];
    assert_eq!((node["role"].as_str(), node["state"].as_str()), (Some("master"), Some("closed")));
    assert!(node["bytes_read"].as_u64() > Some(0) && node["p50_us"].as_u64() > Some(0), "{node}");
    assert!(status.table(None).contains(node["address"].as_str().unwrap()), "{}", status.table(None));
}

#[test]
fn garbage_and_a_shorter_value_are_corrupt_once_then_misses_until_a_store_replaces_them() {
    let server = server!();
    let card = card(server.port, "");
    let (keys, content) = stored(&card, "lossless", 1, CHUNKS);
    let name = name_of(&keys[2]);
    let length: usize = server.cli(&["HSTRLEN", &name, "3"]).parse().unwrap();
    let garbage = "x".repeat(length);
    let damages: [&[&str]; 3] =
        [&["HSET", &name, "3", &garbage], &["HSET", &name, "3", "short"], &["HSET", &name, "m", "?"]];
    for damage in damages {
        server.cli(damage);
        let done = fetch_checked(&card, &keys, &content, None);
        assert_eq!((done.status, done.chunks_done), (Status::Corrupt, 2), "{:?}", &damage[..2]);
        assert_eq!(server.cli(&["EXISTS", &name]), "1", "{:?}", &damage[..2]);
        // To hosts it is a miss from now on, and a store puts it right.
        let mut host = card.attach("lossless", memory());
        assert_eq!(lookup(&mut host, &keys).chunks_done, 2);
        stored(&card, "lossless", 1, CHUNKS);
        assert_eq!(lookup(&mut host, &keys).chunks_done, CHUNKS);
        await_whole(&card, &keys, &content);
    }
}

/// A proxy that changes a bit of each large read once made a card unlink all that a shared server had.
#[test]
fn a_path_that_flips_bits_purges_nothing_and_is_never_believed() {
    let server = server!();
    let proxy = Proxy::to(server.port);
    let card = card(proxy.port, "");
    let prompts: Vec<_> = (1..=8).map(|salt| stored(&card, "lossless", salt, CHUNKS)).collect();
    let held = server.cli(&["DBSIZE"]);
    for seed in [1, 7, 77] {
        println!("seed {seed}");
        proxy.flip(seed);
        for (keys, content) in &prompts {
            let done = fetch_checked(&card, keys, content, Some(Duration::from_secs(5)));
            assert_ne!(done.status, Status::Corrupt, "nothing is proven");
        }
        assert_eq!(server.cli(&["DBSIZE"]), held, "good chunks were unlinked");
        proxy.heal();
        prompts.iter().for_each(|(keys, content)| await_whole(&card, keys, content));
    }
    assert!(card.counter("chunks_reread") > 0, "no bit was flipped");
    assert_eq!(card.status().value()["store"]["corrupt"], 0);
}

/// What comes is the same each time, as if it were stored so.
#[test]
fn a_path_that_flips_the_same_bit_each_time_deletes_nothing() {
    let server = server!();
    let proxy = Proxy::to(server.port);
    let card = card(proxy.port, "");
    let prompts: Vec<_> = (1..=8).map(|salt| stored(&card, "lossless", salt, CHUNKS)).collect();
    let held = server.cli(&["DBSIZE"]);
    proxy.flip_same();
    for _ in 0..CHUNKS {
        for (keys, content) in &prompts {
            fetch_checked(&card, keys, content, Some(Duration::from_secs(5)));
        }
    }
    let value = card.status().value()["store"].clone();
    assert!(value["withheld"].as_u64() > Some(8), "no bit was flipped in the same way twice: {value}");
    assert_eq!(value["corrupt"], 0);
    assert_eq!(server.cli(&["DBSIZE"]), held, "good chunks were unlinked");
    // Another card, by another path, has all of it.
    let other = self::card(server.port, "");
    prompts.iter().for_each(|(keys, content)| await_whole(&other, keys, content));
    // And so has this one, when its path is mended and what it could not read is stored again.
    proxy.heal();
    for (salt, (keys, content)) in prompts.iter().enumerate() {
        stored(&card, "lossless", salt as u8 + 1, CHUNKS);
        await_whole(&card, keys, content);
    }
}

#[test]
fn many_bad_chunks_at_once_stay_and_are_misses_until_they_are_stored() {
    const PROMPTS: u8 = 8;
    let server = server!();
    let card = card(server.port, "");
    let prompts: Vec<_> = (1..=PROMPTS).map(|salt| stored(&card, "lossless", salt, CHUNKS)).collect();
    for key in prompts.iter().flat_map(|(keys, _)| keys) {
        let name = name_of(key);
        let length: usize = server.cli(&["HSTRLEN", &name, "0"]).parse().unwrap();
        server.cli(&["HSET", &name, "0", &"x".repeat(length)]);
    }
    for _ in 0..CHUNKS {
        for (keys, content) in &prompts {
            assert_eq!(fetch_checked(&card, keys, content, None).chunks_done, 0);
        }
    }
    let value = card.status().value()["store"].clone();
    assert_eq!(value["corrupt"], 0, "{value}");
    assert!(value["withheld"].as_u64() > Some(PROMPTS.into()), "{value}");
    for (salt, (keys, content)) in prompts.iter().enumerate() {
        // Of each prompt those are replaced that were seen to be bad; a fetch sees one after the other.
        let end = Instant::now() + WAIT;
        while fetch_checked(&card, keys, content, None).chunks_done < CHUNKS {
            assert!(Instant::now() < end, "bad chunks are not replaced");
            stored(&card, "lossless", salt as u8 + 1, CHUNKS);
        }
    }
}

#[test]
fn eviction_between_lookup_and_fetch_is_a_miss() {
    let server = server!();
    let card = card(server.port, "");
    let (keys, content) = stored(&card, "lossless", 1, CHUNKS);
    let mut host = card.attach("lossless", memory());
    assert_eq!(lookup(&mut host, &keys).chunks_done, CHUNKS);
    server.cli(&["DEL", &name_of(&keys[3])]);
    let done = fetch_checked(&card, &keys, &content, None);
    assert_eq!((done.status, done.chunks_done), (Status::Ok, 3));
}

#[test]
fn a_server_killed_in_mid_fetch_is_store_down_and_comes_back() {
    let mut server = server!();
    let proxy = Proxy::to(server.port);
    let card = card(proxy.port, "?stall-ms=500");
    let (keys, content) = stored(&card, "lossless", 1, CHUNKS);
    assert_eq!(server.cli(&["SAVE"]), "OK");
    // Slow enough to be in the middle of something.
    proxy.trickle(Duration::from_millis(1));
    thread::scope(|scope| {
        let fetched = scope.spawn(|| fetch_checked(&card, &keys, &content, None));
        thread::sleep(Duration::from_millis(100));
        server.kill();
        let done = fetched.join().unwrap();
        assert_eq!(done.status, Status::StoreDown);
        assert!(done.chunks_done < CHUNKS);
    });
    proxy.heal();
    server.up();
    await_whole(&card, &keys, &content);
}

#[test]
fn a_frozen_server_costs_one_deadline_and_other_sessions_go_on() {
    let server = server!();
    let card = card(server.port, "");
    let (keys, content) = stored(&card, "lossless", 1, CHUNKS);
    server.freeze();
    let started = Instant::now();
    thread::scope(|scope| {
        let fetched = scope.spawn(|| fetch_checked(&card, &keys, &content, Some(Duration::from_millis(400))));
        // Others are answered meanwhile, by the same engine thread and fetch workers.
        let mut other = card.control();
        while !fetched.is_finished() {
            let asked = Instant::now();
            status(&mut other);
            assert!(asked.elapsed() < Duration::from_millis(300), "{:?}", asked.elapsed());
            thread::sleep(Duration::from_millis(20));
        }
        let done = fetched.join().unwrap();
        assert_eq!((done.status, done.chunks_done), (Status::DeadlineExceeded, 0));
    });
    assert!(started.elapsed() < Duration::from_millis(1500), "{:?}", started.elapsed());
    server.thaw();
    await_whole(&card, &keys, &content);
    card.await_empty();
}

#[test]
fn a_trickling_server_is_bounded_by_the_deadline() {
    let server = server!();
    let proxy = Proxy::to(server.port);
    let card = card(proxy.port, "?stall-ms=60000");
    let (keys, content) = stored(&card, "lossless", 1, CHUNKS);
    proxy.trickle(Duration::from_millis(50));
    let started = Instant::now();
    let done = fetch_checked(&card, &keys, &content, Some(Duration::from_millis(500)));
    assert_eq!(done.status, Status::DeadlineExceeded);
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    proxy.heal();
    await_whole(&card, &keys, &content);
}

#[test]
fn stores_to_a_full_server_and_to_one_that_forbids_it_say_so() {
    let server = server!("--maxmemory-policy", "noeviction");
    let full = card(server.port, "");
    let (keys, content) = stored(&full, "lossless", 1, CHUNKS);
    let store_more = |card: &Card| {
        let mut host = card.attach("lossless", filled(Arrangement::Contiguous, geometry(), CHUNKS, 9));
        crate::rig::store(&mut host, &crate::rig::keys(geometry(), "lossless", 9, CHUNKS), &linear(CHUNKS)).status
    };
    server.cli(&["CONFIG", "SET", "maxmemory", "1mb"]);
    assert_eq!(store_more(&full), Status::NoSpace);
    assert_eq!(fetch_checked(&full, &keys, &content, None).chunks_done, CHUNKS);
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    server.cli(&["ACL", "SETUSER", "reader", "on", ">pw", "~kvlane:*", "-@all", "+hget", "+hexists"]);
    let reader = Card::start_url(&format!("redis://reader:pw@127.0.0.1:{}", server.port), |_| ());
    assert_eq!(store_more(&reader), Status::ReadOnly);
    assert_eq!(fetch_checked(&reader, &keys, &content, None).chunks_done, CHUNKS);
}

#[test]
fn a_cluster_serves_through_a_failover() {
    let Some(program) = program() else { return };
    let mut cluster = Cluster::start(program);
    let card = Card::start_url(&cluster.url(""), |_| ());
    let (keys, content) = stored(&card, "lossless", 1, CHUNKS);
    await_whole(&card, &keys, &content);
    let masters = cluster.masters();
    masters.iter().for_each(|master| drop(cluster.servers[*master].cli(&["WAIT", "1", "2000"])));
    let slot: u16 = cluster.servers[0].cli(&["CLUSTER", "KEYSLOT", &name_of(&keys[0])]).parse().unwrap();
    let victim = cluster.master_of(slot);
    cluster.servers[victim].kill();
    let done = fetch_checked(&card, &keys, &content, None);
    assert!(matches!(done.status, Status::StoreDown | Status::Ok), "{:?}", done.status);
    await_whole(&card, &keys, &content);
    assert_eq!(card.status().value()["nodes_known"], 6);
}
