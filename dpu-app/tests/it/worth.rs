//! What sessions say reaches the tiers: whose chunks are, and what they are worth. A deadline cuts tails, not heads,
//! and who waits for a slow store keeps nobody from what memory has.

use std::time::{Duration, Instant};

use crate::rig::*;
use crate::servers::proxy::Proxy;
use crate::servers::{Server, program};
use block::{ChunkKey, Importance};
use host_ctl::{Arrangement, Client, Completion, Memory, Options, Transfer};
use mailbox::Status;
use serde_json::Value;

const CHUNKS: usize = 12;

fn tiers_card(home: &std::path::Path, quotas: &[&str]) -> Card {
    let url = format!("tiers:dram=4M,dir:{}", home.join("bottom").display());
    let namespaces = store::Namespaces::new(quotas.iter().copied(), []).unwrap();
    Card::start_url(&url, |config| config.namespaces = namespaces)
}

fn attach_as(card: &Card, namespace: Option<&str>, memory: Memory) -> Client {
    let options = Options { namespace: namespace.map(str::to_owned), ..card.options("lossless") };
    Client::attach(&options, Some(memory)).unwrap()
}

/// The fastest tier, as the card's status has it.
fn tier(card: &Card) -> Value {
    card.status().value()["tiers"][0].clone()
}

fn await_tier(card: &Card, what: &str, done: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + WAIT;
    loop {
        let tier = tier(card);
        if done(&tier) {
            return tier;
        }
        assert!(Instant::now() < end, "{what}: {tier}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Stores and fetches a prompt of a namespace, so that the tier has all of it.
fn warm(card: &Card, namespace: Option<&str>, salt: u8, chunks: usize) -> Vec<ChunkKey> {
    let (keys, pages) = (keys(geometry(), "lossless", salt, chunks), linear(chunks));
    let before = tier(card)["promoted"].as_u64().unwrap();
    let mut host = attach_as(card, namespace, filled(Arrangement::Vllm, geometry(), chunks, salt.into()));
    assert_eq!(store(&mut host, &keys, &pages).chunks_done, chunks);
    assert_eq!(fetch(&mut host, &keys, &pages).chunks_done, chunks);
    await_tier(card, "promotion", |tier| tier["promoted"].as_u64() == Some(before + chunks as u64));
    keys
}

#[test]
fn a_session_uses_the_quota_of_the_namespace_that_it_names() {
    let home = tempfile::tempdir().unwrap();
    let card = tiers_card(home.path(), &["a=25%", "b=0..1M"]);
    warm(&card, Some("a"), 1, 4);
    warm(&card, Some("never heard of"), 2, 3);
    warm(&card, None, 3, 2);
    let found = tier(&card);
    let bytes = |name: &str| found["namespaces"][name].as_u64().unwrap();
    assert!(bytes("a") > 0 && bytes("default") > 0, "{found}");
    assert_eq!((bytes("b"), bytes("a") + bytes("default")), (0, found["bytes"].as_u64().unwrap()), "{found}");
    assert!((bytes("a") * 5).abs_diff(bytes("default") * 4) < 10 * (32 << 10), "4 chunks and 5: {found}");
}

#[test]
fn without_the_salt_nothing_of_another_is_found_in_any_tier() {
    let home = tempfile::tempdir().unwrap();
    let card = tiers_card(home.path(), &["a=25%"]);
    let theirs = warm(&card, Some("a"), 1, 4);
    // The same tokens under another salt, and under the same: then they are shared, whoever asks.
    let mut other = attach_as(&card, Some("b"), empty(Arrangement::Vllm, geometry(), 4));
    let guess = keys(geometry(), "lossless", 2, 4);
    assert_eq!(lookup(&mut other, &guess).chunks_done, 0);
    assert_eq!(fetch(&mut other, &guess, &linear(4)).chunks_done, 0);
    assert_eq!(lookup(&mut other, &theirs).chunks_done, 4);
    assert_eq!(fetch(&mut other, &theirs, &linear(4)).chunks_done, 4);
}

/// The lowest and the highest bucket of scores that have chunks.
fn spread(tier: &Value) -> (usize, usize) {
    let scores = tier["scores"].as_array().unwrap();
    let has = |chunks: &Value| chunks.as_u64() > Some(0);
    (scores.iter().position(has).unwrap(), scores.iter().rposition(has).unwrap())
}

#[test]
fn importances_reach_the_tier_with_the_store_and_later() {
    let home = tempfile::tempdir().unwrap();
    let card = tiers_card(home.path(), &[]);
    let (keys, pages) = (keys(geometry(), "lossless", 1, 4), linear(4));
    let of = |factor| Importance::of(factor).unwrap();
    let importances = [of(16.0), of(16.0), of(1.0), of(1.0)];
    let mut host = attach_as(&card, None, filled(Arrangement::Vllm, geometry(), 4, 1));
    let ask = Transfer { importances: &importances, ..transfer(&keys, &pages) };
    let id = host.post_store(&ask).unwrap();
    assert_eq!(host.wait(id, WAIT).unwrap().chunks_done, 4);
    assert_eq!(fetch(&mut host, &keys, &pages).chunks_done, 4);
    let found = await_tier(&card, "promotion", |tier| tier["promoted"] == 4);
    let (low, high) = spread(&found);
    assert_eq!(high - low, 4, "a factor of 16: {found}");
    // Said later, of chunks that are in: all alike. By a session without memory, as `host-ctl importance` is.
    let mut control = card.control();
    let id = control.post_rate(&keys, &[of(2.0); 4]).unwrap();
    let rated = control.wait(id, WAIT).unwrap();
    assert_eq!((rated.status, rated.chunks_done), (Status::Ok, 4));
    let (low, high) = spread(&tier(&card));
    assert_eq!(low, high);
    // Of a store of chunks that are known it counts, too.
    let id = host.post_store(&ask).unwrap();
    assert_eq!(host.wait(id, WAIT).unwrap().chunks_done, 4);
    await_tier(&card, "a rating", |tier| spread(tier).1 - spread(tier).0 == 4);
    drop((host, control));
    card.await_empty();
}

/// A fetch into memory of its own; what is reported is right.
fn fetch_checked(card: &Card, keys: &[ChunkKey], content: &[u8], deadline: Option<Duration>) -> Completion {
    let chunks = keys.len();
    let target = empty(Arrangement::Vllm, geometry(), chunks);
    let pages = linear(chunks);
    let mut host = card.attach("lossless", target.clone());
    let id = host.post_fetch(&Transfer { deadline, ..transfer(keys, &pages) }).unwrap();
    let done = host.wait(id, WAIT).unwrap();
    let after = logical(&target, &pages);
    for index in 0..done.chunks_done {
        let same = chunk_of(&after, geometry(), chunks, index) == chunk_of(content, geometry(), CHUNKS, index);
        assert!(same, "chunk {index} was reported and is wrong");
    }
    host.close(WAIT).unwrap();
    done
}

#[test]
fn a_deadline_cuts_the_tail_and_what_memory_has_of_it_neither_delays_the_head_nor_is_lost() {
    let Some(program) = program() else { return };
    let server = Server::start(program, &[]);
    let proxy = Proxy::to(server.port);
    let half = CHUNKS / 2;
    // Stored by a card without tiers, so that none of it is in memory.
    let plain = Card::start_url(&format!("redis://127.0.0.1:{}", server.port), |_| ());
    let prompts = [1, 2, 3].map(|salt| stored(&plain, "lossless", salt, CHUNKS));
    drop(plain);
    // Of three prompts the tails alone were used: memory has those. The heads come from a slow store.
    let card = Card::start_url(&format!("tiers:dram=32M,redis://127.0.0.1:{}?stall-ms=60000", proxy.port), |_| ());
    let mut host = card.attach("lossless", empty(Arrangement::Vllm, geometry(), half));
    for (keys, _) in &prompts {
        assert_eq!(fetch(&mut host, &keys[half..], &linear(half)).chunks_done, half);
    }
    await_tier(&card, "promotion", |tier| tier["chunks"] == 3 * half as u64);
    // So slow that a busy machine's own delays are small beside it: what follows compares times.
    proxy.throttle(Duration::from_millis(40));
    let timed = |keys: &[ChunkKey], content: &[u8], deadline| {
        let since = Instant::now();
        (fetch_checked(&card, keys, content, deadline), since.elapsed())
    };

    let [(first, of_first), (second, of_second), (third, of_third)] = &prompts;
    let (head, alone) = timed(&first[..half], of_first, None);
    assert_eq!(head.chunks_done, half);
    let before = tier(&card)["hits"].as_u64().unwrap();
    let (whole, with_tail) = timed(second, of_second, None);
    assert_eq!((whole.status, whole.chunks_done), (Status::Ok, CHUNKS));
    assert_eq!(tier(&card)["hits"].as_u64(), Some(before + half as u64), "all of the tail came from memory");
    assert!(with_tail < alone * 3 / 2 + Duration::from_millis(100), "{with_tail:?} with the tail, {alone:?} without");

    // Time for two thirds of the head: chunks come one after the other, so some are whole; nothing behind a gap counts.
    let (cut, took) = timed(third, of_third, Some(alone * 2 / 3));
    assert_eq!(cut.status, Status::DeadlineExceeded, "{cut:?}");
    assert!((1..half).contains(&cut.chunks_done), "{cut:?}");
    assert!(took < alone + Duration::from_millis(500), "{took:?}: a deadline of two thirds of {alone:?}");
    println!("head {alone:?}, with tail {with_tail:?}, {} of {half} in two thirds of the time", cut.chunks_done);
    drop(host);
    proxy.heal();
    card.await_empty();
}

#[test]
fn a_hit_in_memory_does_not_wait_for_slots_that_wait_for_a_store() {
    const SLOTS: usize = 16;
    let Some(program) = program() else { return };
    let server = Server::start(program, &[]);
    let proxy = Proxy::to(server.port);
    let card = Card::start_url(&format!("tiers:dram=32M,redis://127.0.0.1:{}?stall-ms=60000", proxy.port), |config| {
        *config = config.clone().with_slots(SLOTS);
    });
    let short = warm(&card, None, 1, 1);
    // Stored past this card's memory.
    let plain = Card::start_url(&format!("redis://127.0.0.1:{}", server.port), |_| ());
    let (long, _) = stored(&plain, "lossless", 2, CHUNKS);
    drop(plain);
    let mut host = card.attach("lossless", empty(Arrangement::Vllm, geometry(), 1));
    let mut other = card.attach("lossless", empty(Arrangement::Vllm, geometry(), CHUNKS));
    proxy.throttle(Duration::from_millis(10));
    let patience = Duration::from_secs(4);
    let pages = linear(CHUNKS);
    let asked = Instant::now();
    let id = other.post_fetch(&Transfer { deadline: Some(patience), ..transfer(&long, &pages) }).unwrap();
    let mut control = card.control();
    let fetching = |control: &mut Client| status(control).value()["slots"]["fetching"].as_u64().unwrap() as usize;
    while fetching(&mut control) < SLOTS - SLOTS / 8 {
        assert!(asked.elapsed() < patience, "the long fetch never has the slots that it can have");
    }
    proxy.silence_after(0);
    let done = fetch(&mut host, &short, &linear(1));
    assert_eq!((done.status, done.chunks_done), (Status::Ok, 1));
    assert!(asked.elapsed() < patience, "it waited for the other's deadline");
    assert_eq!(other.wait(id, WAIT).unwrap().status, Status::DeadlineExceeded);
    proxy.heal();
    drop((host, other, control));
    card.await_empty();
}
