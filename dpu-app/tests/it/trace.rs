//! Why was this fetch late? The card says it, in the log and to `host-ctl trace`, by the ids that people know.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::rig::process::{Dpu, Home};
use crate::rig::*;
use host_ctl::{Arrangement, CardStatus, Client, Transfer};
use mailbox::Status;
use nix::sys::signal::Signal;
use serde_json::Value;

const CHUNKS: usize = 4;

fn memory() -> host_ctl::Memory {
    empty(Arrangement::Vllm, geometry(), CHUNKS)
}

fn trace(card: &Card) -> Value {
    let mut control = card.control();
    let id = control.post_trace().unwrap();
    let answer = control.wait(id, WAIT).unwrap().ok().unwrap().answer;
    CardStatus::parse(&answer).unwrap().value().clone()
}

fn rows<'a>(trace: &'a Value, name: &str, session: u32) -> Vec<&'a Value> {
    trace[name].as_array().unwrap().iter().filter(|row| row["session"] == session).collect()
}

fn cut_after(host: &mut Client, keys: &[block::ChunkKey], deadline: Duration) {
    let pages = linear(keys.len());
    let id = host.post_fetch(&Transfer { deadline: Some(deadline), ..transfer(keys, &pages) }).unwrap();
    assert_eq!(host.wait(id, WAIT).unwrap().status, Status::DeadlineExceeded);
}

#[test]
fn every_stage_of_a_fetch_a_store_and_a_look_up_is_traced() {
    let card = Card::start();
    let keys = keys(geometry(), "lossless", 1, 1);
    let mut host = card.attach("lossless", filled(Arrangement::Vllm, geometry(), 1, 3));
    let session = host.card_facts().session;
    let stages = || -> BTreeSet<String> {
        let trace = trace(&card);
        rows(&trace, "spans", session).iter().map(|span| span["stage"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(store(&mut host, &keys, &linear(1)).chunks_done, 1);
    let stored = ["begin", "commit", "encode", "gather", "seat", "slot"];
    assert_eq!(stages(), stored.map(str::to_owned).into());
    assert_eq!(lookup(&mut host, &keys).chunks_done, 1);
    assert_eq!(fetch(&mut host, &keys, &linear(1)).chunks_done, 1);
    let more = ["dequantize", "fetch", "inflate", "lookup", "open", "write"];
    assert_eq!(stages(), stored.into_iter().chain(more).map(str::to_owned).collect());
    let trace = trace(&card);
    let spans = rows(&trace, "spans", session);
    assert!(spans.iter().all(|span| span["request"].as_u64().unwrap() > 0), "{spans:?}");
    let fetched: Vec<_> = spans.iter().filter(|span| span["stage"] == "fetch").collect();
    assert!(fetched.iter().all(|span| span["chunk"] == 0 && span["block"].is_u64()), "{fetched:?}");
}

#[test]
fn a_fetch_that_is_cut_says_what_it_waits_for_and_for_whom() {
    let card = Card::start();
    let (keys, _) = stored(&card, "lossless", 1, CHUNKS);
    let mut host = card.attach("lossless", memory());
    let session = host.card_facts().session;
    *card.store.key_to_hang.lock().unwrap() = Some(keys[2]);
    cut_after(&mut host, &keys, Duration::from_millis(200));
    card.store.let_go();
    let trace = trace(&card);
    let late = rows(&trace, "late", session)[0];
    let slowest = late["slowest"].as_str().unwrap();
    assert!(slowest.starts_with("fetch of chunk 2 block ") && slowest.ends_with(" ms so far (store)"), "{slowest}");
    assert_eq!((&late["operation"], &late["cut"], &late["chunk_count"]), (&"fetch".into(), &true.into(), &4.into()));
    assert!(late["took_ms"].as_u64().unwrap() >= 200);
    // Events have the ids, too.
    let status = card.status();
    let passed = status.value()["events"].as_array().unwrap().iter().find(|event| event["event"] == "deadline passed");
    let passed = passed.unwrap();
    assert_eq!((&passed["session"], &passed["request"]), (&session.into(), &late["request"]), "{passed}");
}

#[test]
fn a_request_behind_another_says_that_it_waits_for_its_turn() {
    const LONG: usize = 48;
    let card = Card::start_with(doca_emulator::Config::default(), |config| config.chunks = 4);
    let (long, _) = stored(&card, "lossless", 1, LONG);
    let (short, _) = stored(&card, "lossless", 2, 1);
    card.store.read_delay_us.store(20_000, Relaxed);
    let mut host = card.attach("lossless", empty(Arrangement::Vllm, geometry(), LONG));
    let session = host.card_facts().session;
    let id = host.post_fetch(&transfer(&long, &linear(LONG))).unwrap();
    cut_after(&mut host, &short, Duration::from_millis(150));
    card.store.read_delay_us.store(0, Relaxed);
    assert_eq!(host.wait(id, WAIT).unwrap().chunks_done, LONG);
    let trace = trace(&card);
    let late = rows(&trace, "late", session);
    let slowest = late.last().unwrap()["slowest"].as_str().unwrap();
    assert!(slowest.starts_with("seat of chunk 0 waited "), "{slowest}");
}

#[test]
fn a_slow_request_is_said_in_the_log_and_not_every_one() {
    let home = Home::new();
    let slow = ["--slow-ms", "1"];
    let mut dpu = Dpu::start_with(&home.store(), &home.socket("card.sock"), "seed=1,delay_us=20000", &slow);
    let source = filled(Arrangement::Vllm, geometry(), CHUNKS, 3);
    let mut host = dpu.attach(&source);
    let session = host.card_facts().session;
    for salt in 0..8 {
        let keys = keys(geometry(), "lossless", salt, CHUNKS);
        assert_eq!(store(&mut host, &keys, &linear(CHUNKS)).chunks_done, CHUNKS);
    }
    host.close(WAIT).unwrap();
    dpu.signal(Signal::SIGTERM);
    let (_, log) = dpu.wait();
    let said: Vec<&str> = log.lines().filter(|line| line.contains("; slowest: ")).collect();
    let start = format!("session {session} request ");
    assert!(!said.is_empty() && said.len() < 8 && said[0].contains(&start), "{log}");
}
