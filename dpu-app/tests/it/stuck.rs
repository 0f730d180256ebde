//! A store whose reads hang, and requests that are in each other's way: look-ups and other sessions do not wait,
//! deadlines hold, and the card says what hangs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::rig::process::{Dpu, Home};
use crate::rig::*;
use crate::scrape::{free_address, get, until};
use host_ctl::{Arrangement, Client, Completion, Memory, RequestId, Transfer};
use mailbox::Status;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

const CHUNKS: usize = 4;
/// What a deadline may be passed by here; the machine has two cores, and other tests.
const SLACK: Duration = Duration::from_millis(300);

fn memory() -> Memory {
    empty(Arrangement::Vllm, geometry(), CHUNKS)
}

fn within(host: &mut Client, keys: &[block::ChunkKey], deadline: Duration) -> RequestId {
    let pages = linear(keys.len());
    host.post_fetch(&Transfer { deadline: Some(deadline), ..transfer(keys, &pages) }).unwrap()
}

/// A card whose fetch of chunk 1 of a stored prefix hangs in the store, and the host that asked for it; the id too.
struct Hanging {
    card: Card,
    keys: Vec<block::ChunkKey>,
    content: Vec<u8>,
    target: Memory,
    host: Client,
    id: RequestId,
    since: Instant,
}

const DEADLINE: Duration = Duration::from_millis(200);
/// How long a card that leaves waits for what hangs (docs/architecture.md).
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);

fn hanging(change: impl FnOnce(&mut dpu_app::Config)) -> Hanging {
    let card = Card::start_with(doca_emulator::Config::default(), change);
    let (keys, content) = stored(&card, "lossless", 1, CHUNKS);
    *card.store.key_to_hang.lock().unwrap() = Some(keys[1]);
    let target = memory();
    let mut host = card.attach("lossless", target.clone());
    let since = Instant::now();
    let id = within(&mut host, &keys, DEADLINE);
    Hanging { card, keys, content, target, host, id, since }
}

#[test]
fn a_deadline_holds_while_the_read_hangs_and_nothing_is_written_after_it() {
    let Hanging { card, keys, content, target, mut host, id, since } = hanging(|_| ());
    let fetched = host.wait(id, WAIT).unwrap();
    let took = since.elapsed();
    // The chunk before it is there, unless both workers came to hang first.
    assert_eq!(fetched.status, Status::DeadlineExceeded);
    assert!(fetched.chunks_done <= 1, "{}", fetched.chunks_done);
    assert!(took >= DEADLINE && took < DEADLINE + SLACK, "{took:?}");
    let answered = bytes_of(&target);
    let after = logical(&target, &linear(CHUNKS));
    for index in 0..fetched.chunks_done {
        let same = chunk_of(&after, geometry(), CHUNKS, index) == chunk_of(&content, geometry(), CHUNKS, index);
        assert!(same, "chunk {index} was reported and is wrong");
    }
    // The session goes on meanwhile, and its host may leave.
    assert_eq!(lookup(&mut host, &keys).chunks_done, CHUNKS);
    host.close(WAIT).unwrap();
    card.store.let_go();
    card.await_empty();
    assert!(bytes_of(&target) == answered, "written to after the answer");
}

#[test]
fn a_look_up_never_waits_for_a_read_that_hangs() {
    let Hanging { card, keys, host: _host, .. } = hanging(|config| config.fetch_workers = 1);
    let mut other = card.control();
    for _ in 0..20 {
        let found = lookup(&mut other, &keys);
        assert_eq!((found.status, found.chunks_done), (Status::Ok, CHUNKS));
        assert!(found.elapsed < SLACK, "{:?}", found.elapsed);
    }
    card.store.let_go();
}

#[test]
fn others_fetch_around_a_worker_that_hangs() {
    // Each block of the chunk that hangs holds a worker.
    let Hanging { card, host: _host, .. } = hanging(|config| (config.fetch_workers, config.slots) = (6, 12));
    let others: Vec<_> = (2..6).map(|salt| stored(&card, "lossless", salt, CHUNKS)).collect();
    let target = memory();
    let mut other = card.attach("lossless", target.clone());
    for (keys, content) in others.iter().cycle().take(12) {
        let since = Instant::now();
        let fetched = fetch(&mut other, keys, &linear(CHUNKS));
        assert_eq!((fetched.status, fetched.chunks_done), (Status::Ok, CHUNKS));
        assert!(logical(&target, &linear(CHUNKS)) == *content);
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    }
    card.store.let_go();
}

#[test]
fn a_stuck_worker_is_said_until_it_is_back() {
    let address = free_address();
    let health = || {
        let page = get(address, "/healthcheck");
        (page.code, page.body.trim().to_owned())
    };
    let Hanging { card, host: _host, .. } = hanging(|config| config.metrics = Some(address));
    let (code, text) = until(health, |(code, _)| *code == 503);
    assert!(text.starts_with("worker stuck"), "{code} {text}");
    let status = card.status();
    let events = status.value()["events"].as_array().unwrap();
    assert!(events.iter().any(|event| event["event"] == "fetch worker stuck"), "{events:?}");
    assert!(status.value()["card"]["workers_stuck"].as_u64().unwrap() >= 1);
    card.store.let_go();
    until(health, |(code, _)| *code == 200);
}

#[test]
fn stores_and_look_ups_go_on_where_every_fetch_worker_hangs() {
    let Hanging { card, mut host, id, .. } = hanging(|config| config.fetch_workers = 1);
    assert_eq!(host.wait(id, WAIT).unwrap().status, Status::DeadlineExceeded);
    // What the one worker has is held; all else that waited behind it has left its slot.
    for salt in 2..8 {
        let (keys, _) = stored(&card, "lossless", salt, CHUNKS);
        assert_eq!(lookup(&mut host, &keys).chunks_done, CHUNKS);
    }
    card.store.let_go();
    drop(host);
    card.await_empty();
}

/// Files in place of a prompt's chunks in a directory store, on which whoever opens one hangs: open(2) of a FIFO
/// returns when somebody opens it for writing.
struct HangingFiles(Vec<PathBuf>);

impl HangingFiles {
    fn of(store: &Path, keys: &[block::ChunkKey]) -> Self {
        let file = |key: &block::ChunkKey| store.join(&key.to_string()[..2]).join(key.to_string());
        let files: Vec<PathBuf> = keys.iter().map(file).collect();
        for file in &files {
            fs::remove_file(file).unwrap();
            mkfifo(file, Mode::S_IRWXU).unwrap();
        }
        Self(files)
    }
}

impl Drop for HangingFiles {
    fn drop(&mut self) {
        for file in &self.0 {
            // Opened both ways it hangs nobody; whoever comes later finds no file.
            let opened = fs::OpenOptions::new().read(true).write(true).open(file);
            fs::remove_file(file).unwrap();
            drop(opened);
        }
    }
}

#[test]
fn memory_answers_while_every_disk_worker_hangs() {
    const WORKERS: usize = 2;
    let home = tempfile::tempdir().unwrap();
    let store = home.path().join("store");
    let bottom = format!("dir:{}", store.display());
    let [(warm, content), (cold, _)] = {
        let card = Card::start_url(&bottom, |_| ());
        [1, 2].map(|salt| stored(&card, "lossless", salt, CHUNKS))
    };
    let mut card = Card::start_url(&format!("tiers:dram=8M,{bottom}"), |config| {
        (config.fetch_workers, config.slots) = (WORKERS, 16);
    });
    let target = memory();
    let mut host = card.attach("lossless", target.clone());
    assert_eq!(fetch(&mut host, &warm, &linear(CHUNKS)).chunks_done, CHUNKS, "from the disk, into the card's memory");
    let hanging = HangingFiles::of(&store, &cold);
    let mut other = card.attach("lossless", memory());
    let id = within(&mut other, &cold, DEADLINE);
    assert_eq!(other.wait(id, WAIT).unwrap().status, Status::DeadlineExceeded);
    until(|| card.status().value()["card"]["workers_stuck"].as_u64(), |stuck| *stuck == Some(WORKERS as u64));
    for _ in 0..20 {
        target.regions.iter().for_each(|region| region.mapping.write(0, &vec![0; region.mapping.bytes()]));
        let since = Instant::now();
        let fetched = fetch(&mut host, &warm, &linear(CHUNKS));
        let took = since.elapsed();
        assert_eq!((fetched.status, fetched.chunks_done), (Status::Ok, CHUNKS));
        assert!(took < SLACK, "{took:?}");
        assert!(logical(&target, &linear(CHUNKS)) == content);
        assert_eq!(lookup(&mut other, &warm).chunks_done, CHUNKS);
    }
    drop(hanging);
    card.stop().unwrap();
}

#[test]
fn a_stop_is_heard_while_every_disk_worker_hangs() {
    let home = Home::new();
    let directory = home.dir.path().join("store");
    let tiers = format!("tiers:dram=8M,dir:{}", directory.display());
    for url in [home.store(), tiers] {
        let mut dpu = Dpu::start(&url, &home.socket("card.sock"), "");
        let source = filled(Arrangement::Contiguous, geometry(), CHUNKS, 1);
        let (keys, pages) = (keys(geometry(), "lossless", 1, CHUNKS), linear(CHUNKS));
        let mut host = dpu.attach(&source);
        assert_eq!(store(&mut host, &keys, &pages).chunks_done, CHUNKS);
        host.close(WAIT).unwrap();
        // Nothing of it is in memory then, and no file is open.
        dpu.signal(Signal::SIGTERM);
        assert!(dpu.wait().0.success());
        let mut dpu = Dpu::start(&url, &home.socket("card.sock"), "");
        let _hanging = HangingFiles::of(&directory, &keys);
        let mut host = dpu.attach(&memory());
        let id = within(&mut host, &keys, DEADLINE);
        assert_eq!(host.wait(id, WAIT).unwrap().status, Status::DeadlineExceeded);
        let since = Instant::now();
        dpu.signal(Signal::SIGTERM);
        let (status, log) = dpu.wait();
        let took = since.elapsed();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(took < LEAVE_PATIENCE + SLACK, "{took:?}: {log}");
        let named = keys.iter().any(|key| log.contains(&format!("(open of chunk {key})")));
        assert!(named && log.contains("a fetch worker has been in one call for"), "{log}");
        assert!(host.wait_end(WAIT), "the host was told");
    }
}

fn took(since: Instant, host: &mut Client, id: RequestId) -> (Completion, Duration) {
    let done = host.wait(id, WAIT).unwrap();
    (done, since.elapsed())
}

#[test]
fn a_short_request_behind_a_long_one_of_its_session_is_answered_at_its_deadline() {
    const LONG: usize = 48;
    let card = Card::start_with(doca_emulator::Config::default(), |config| config.chunks = 4);
    let (long, _) = stored(&card, "lossless", 1, LONG);
    let (short, _) = stored(&card, "lossless", 2, 1);
    card.store.read_delay_us.store(20_000, Relaxed);
    let mut host = card.attach("lossless", empty(Arrangement::Vllm, geometry(), LONG));
    let since = Instant::now();
    let first = host.post_fetch(&transfer(&long, &linear(LONG))).unwrap();
    let second = within(&mut host, &short, DEADLINE);
    let third = host.post_lookup(&short).unwrap();
    // A question starts no chunk, and waits for none.
    let (found, after) = took(since, &mut host, third);
    assert_eq!((found.status, found.chunks_done), (Status::Ok, 1));
    assert!(after < SLACK, "{after:?}");
    let (late, after) = took(since, &mut host, second);
    assert_eq!((late.status, late.chunks_done), (Status::DeadlineExceeded, 0));
    assert!(after < DEADLINE + SLACK, "{after:?}");
    card.store.read_delay_us.store(0, Relaxed);
    let (done, _) = took(since, &mut host, first);
    assert_eq!((done.status, done.chunks_done), (Status::Ok, LONG));
    // What was cut in the queue is in nobody's way: the session goes on.
    assert_eq!(fetch(&mut host, &short, &linear(1)).chunks_done, 1);
}

#[test]
fn a_request_that_is_cancelled_in_the_queue_is_answered_at_once() {
    const LONG: usize = 48;
    let card = Card::start_with(doca_emulator::Config::default(), |config| config.chunks = 4);
    let (long, _) = stored(&card, "lossless", 1, LONG);
    let mut host = card.attach("lossless", empty(Arrangement::Vllm, geometry(), LONG));
    card.store.read_delay_us.store(20_000, Relaxed);
    let pages = linear(LONG);
    let ids: Vec<RequestId> = (0..4).map(|_| host.post_fetch(&transfer(&long, &pages)).unwrap()).collect();
    let since = Instant::now();
    for &id in ids[1..].iter().rev() {
        host.cancel(id).unwrap();
        let (done, after) = took(since, &mut host, id);
        assert_eq!(done.status, Status::Cancelled);
        assert!(after < Duration::from_secs(1), "{after:?}");
    }
    card.store.read_delay_us.store(0, Relaxed);
    assert_eq!(host.wait(ids[0], WAIT).unwrap().chunks_done, LONG);
}
