//! Claims about `redis://` that only servers can make: eviction, damage, permissions, full, frozen, slow and dead ones.
//! Every server is a real one that the test starts; the wire to it is a proxy where it has to be slow.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use store::{Answer, Ask, NodeState, OpenError, Outcome, Readable, Reader, StoreError};

use crate::chunks::{Questions, get, key, limits, noise, put, soon};
use crate::servers::proxy::Proxy;
use crate::servers::{self, Server, program};

type Any = dyn Readable<Vec<u8>>;

fn open(port: u16, options: &str) -> Box<Any> {
    store::open(&format!("redis://127.0.0.1:{port}{options}"), &limits()).expect("a running server")
}

fn name_of(n: u64) -> String {
    format!("kvlane:{{{}}}", key(n))
}

/// Blocks of a chunk whose reads fill a pipeline.
const BLOCKS: usize = 24;
const BLOCK_BYTES: usize = 200_000;

fn blocks(n: u64) -> Vec<Vec<u8>> {
    (0..BLOCKS).map(|index| noise(n * 100 + index as u64, BLOCK_BYTES)).collect()
}

/// Asks for all blocks of the chunk in seat 0 at once, and waits for all answers.
fn read_all(reader: &mut dyn Reader<Vec<u8>>, until: Instant) -> Vec<Result<Vec<u8>, StoreError>> {
    for index in 0..BLOCKS {
        let memory = vec![0; BLOCK_BYTES + 100];
        reader.begin(index, Ask::Read { seat: 0, index, bytes: BLOCK_BYTES, memory, until });
    }
    let mut found = HashMap::new();
    while found.len() < BLOCKS {
        while let Some(Answer { tag, outcome }) = reader.poll(&mut []) {
            let Outcome::Read { mut memory, result } = outcome else { panic!("{outcome:?}") };
            memory.truncate(BLOCK_BYTES);
            assert!(found.insert(tag, result.map(|()| memory)).is_none());
        }
        if found.len() < BLOCKS {
            reader.sleep();
        }
    }
    assert!(reader.is_idle());
    (0..BLOCKS).map(|index| found.remove(&index).expect("one answer for each")).collect()
}

fn with_reader<T>(store: &Any, work: impl FnOnce(&mut dyn Reader<Vec<u8>>) -> T) -> T {
    let bell = EventFd::new().expect("an eventfd");
    let mut reader = store.reader(bell.as_fd()).expect("a reader");
    work(&mut *reader)
}

/// Whatever is `Ok` is right.
fn none_is_wrong(found: &[Result<Vec<u8>, StoreError>], n: u64) -> usize {
    let right = blocks(n);
    let good = found.iter().zip(&right).filter(|(found, right)| match found {
        Ok(found) => {
            assert!(found == *right, "wrong bytes were reported as loaded");
            true
        }
        Err(_) => false,
    });
    good.count()
}

macro_rules! server {
    ($($argument:expr),*) => {
        match program() {
            Some(program) => Server::start(program, &[$($argument),*]),
            None => return,
        }
    };
}

#[test]
fn a_pipeline_of_blocks_arrives_in_its_memory_without_a_copy() {
    let server = server!();
    for options in ["", "?protocol=2", "?connections=1", "?connections=8&window=64K"] {
        let store = open(server.port, options);
        put(&*store, 0, &key(1), &blocks(1), b"m").expect("put");
        store.open(0, &key(1), &mut [0; 4096], soon()).expect("open");
        let found = with_reader(&*store, |reader| (0..5).map(|_| read_all(reader, soon())).last().expect("five"));
        assert_eq!(none_is_wrong(&found, 1), BLOCKS);
        store.close(0);
        let stats = store.stats();
        assert_eq!((stats.bytes_copied, stats.bytes_read), (0, (5 * BLOCKS * BLOCK_BYTES) as u64), "{options}");
        let mut nodes = 0;
        store.nodes(&mut |node| {
            nodes += 1;
            assert_eq!((node.state, node.in_flight, node.errors), (NodeState::Closed, 0, 0));
            assert_eq!(node.bytes_read, stats.bytes_read);
            assert!(node.bytes_put >= (BLOCKS * BLOCK_BYTES) as u64);
            assert!(node.latency.count >= 6 * BLOCKS as u64 && node.latency.p50_us > 0);
        });
        assert_eq!(nodes, 1);
    }
}

#[test]
fn a_chunk_that_goes_between_lookup_and_read_is_a_miss_at_every_step() {
    let server = server!();
    let store = open(server.port, "");
    put(&*store, 0, &key(1), &blocks(1), b"m").expect("put");
    assert_eq!(store.lookup(&[key(1)], soon()), Ok(1));
    server.cli(&["DEL", &name_of(1)]);
    assert_eq!(store.open(0, &key(1), &mut [0; 4096], soon()), Err(StoreError::Miss));
    put(&*store, 0, &key(1), &blocks(1), b"m").expect("put");
    store.open(0, &key(1), &mut [0; 4096], soon()).expect("open");
    server.cli(&["DEL", &name_of(1)]);
    let found = with_reader(&*store, |reader| read_all(reader, soon()));
    assert!(found.iter().all(|found| *found == Err(StoreError::Miss)), "{:?}", found[0].as_ref().err());
    store.close(0);
    assert_eq!((store.stats().corrupt, store.stats().io_errors), (0, 0));
}

#[test]
fn a_server_that_evicts_answers_misses_and_no_errors() {
    let server = server!("--maxmemory", "24mb", "--maxmemory-policy", "allkeys-lru");
    let store = open(server.port, "");
    let (mut lost, mut kept) = (0, 0);
    for n in 0..20 {
        match put(&*store, 0, &key(n), &blocks(n), b"m") {
            // The put itself was evicted before it was whole.
            Ok(()) | Err(StoreError::Full { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        if store.open(0, &key(0), &mut [0; 4096], soon()).is_ok() {
            let found = with_reader(&*store, |reader| read_all(reader, soon()));
            kept += none_is_wrong(&found, 0);
            for error in found.iter().filter_map(|found| found.as_ref().err()) {
                assert_eq!(*error, StoreError::Miss);
                lost += 1;
            }
            store.close(0);
        } else {
            lost += 1;
        }
    }
    println!("{kept} blocks read, {lost} missed");
    assert!((0..20).any(|n| store.lookup(&[key(n)], soon()) == Ok(0)), "nothing was evicted");
    assert_eq!(store.stats().corrupt, 0);
}

#[test]
fn damage_that_a_server_shows_stays_until_a_put_replaces_it_and_so_does_what_is_no_chunk() {
    let server = server!();
    let store = open(server.port, "");
    let field = |n: u64, index: &str, value: &str| server.cli(&["HSET", &name_of(n), index, value]);
    for n in 0..4 {
        put(&*store, 0, &key(n), &blocks(n), b"m").expect("put");
    }
    field(0, "7", "short");
    server.cli(&["HDEL", &name_of(1), "23"]);
    for (n, index) in [(0, 7), (1, 23)] {
        store.open(0, &key(n), &mut [0; 4096], soon()).expect("open");
        let found = with_reader(&*store, |reader| read_all(reader, soon()));
        assert!(matches!(found[index], Err(StoreError::Corrupt { .. })), "{:?}", found[index]);
        none_is_wrong(&found, n);
        store.discard(0);
        store.close(0);
        assert_eq!(store.stats().withheld, n, "once is no word against it");
        store.open_anew(0, &key(n)).expect("open");
        let again = with_reader(&*store, |reader| read_all(reader, soon()));
        assert_eq!(again[index], found[index], "and the second time it is the same");
        store.discard(0);
        store.close(0);
        assert_eq!(server.cli(&["EXISTS", &name_of(n)]), "1", "the path may have done it each time");
        put(&*store, 0, &key(n), &blocks(n), b"m").expect("put");
        store.open(0, &key(n), &mut [0; 4096], soon()).expect("open");
        assert_eq!(none_is_wrong(&with_reader(&*store, |reader| read_all(reader, soon())), n), BLOCKS);
        store.close(0);
    }
    assert_eq!((store.stats().corrupt, store.stats().withheld), (0, 2));
    // Another type is no chunk, for nobody, and not ours to throw away.
    server.cli(&["SET", &name_of(2), "a string"]);
    assert_eq!(store.lookup(&[key(2)], soon()), Ok(0));
    assert_eq!(store.peek(&key(2), &mut [0; 4096], soon()), Err(StoreError::Miss));
    assert_eq!(store.open(0, &key(2), &mut [0; 4096], soon()), Err(StoreError::Miss));
    assert_eq!(store.open_anew(0, &key(2)), Err(StoreError::Miss));
    // Becoming another type while it is open.
    store.open_anew(0, &key(3)).expect("open");
    server.cli(&["SET", &name_of(3), "a string"]);
    assert_eq!(store.read(0, 0, BLOCK_BYTES, soon()), Err(StoreError::Miss));
    store.discard(0);
    store.close(0);
    assert_eq!(server.cli(&["GET", &name_of(2)]), "a string");
    assert_eq!(server.cli(&["GET", &name_of(3)]), "a string");
    assert_eq!(store.stats().corrupt, 0);
    // A put over a key of another type takes its place.
    put(&*store, 0, &key(3), &[noise(3, 100)], b"m").expect("put");
    assert!(get(&*store, 0, &key(3), &[100]).expect("get").1 == [noise(3, 100)]);
}

#[test]
fn a_manifest_longer_than_any_of_ours_is_too_large_and_harms_nobody() {
    let server = server!();
    let store = open(server.port, "");
    put(&*store, 0, &key(1), &blocks(1), b"m").expect("put");
    put(&*store, 0, &key(2), &blocks(2), b"m").expect("put");
    for bytes in [5000, 9000, 100_000] {
        server.cli(&["HSET", &name_of(1), "m", &"x".repeat(bytes)]);
        for _ in 0..5 {
            let error = store.open(0, &key(1), &mut [0; 4096], soon()).expect_err("too long");
            assert!(matches!(error, StoreError::Large { .. }), "{bytes}: {error}");
            let error = store.peek(&key(1), &mut [0; 4096], soon()).expect_err("too long");
            assert!(matches!(error, StoreError::Large { .. }), "{bytes}: {error}");
            store.open(0, &key(2), &mut [0; 4096], soon()).expect("its neighbour");
            store.close(0);
        }
    }
    store.nodes(&mut |node| assert_eq!((node.state, node.errors), (NodeState::Closed, 0)));
    assert_eq!((server.cli(&["EXISTS", &name_of(1)]).as_str(), store.stats().corrupt), ("1", 0));
}

#[test]
fn a_put_that_dies_half_way_leaves_nothing_and_goes_away_by_itself() {
    let server = server!();
    let store = open(server.port, "");
    store.begin_put(0, &key(1), None, soon()).expect("begin");
    store.put_block(0, 0, &noise(1, 5000)).expect("put");
    drop(store);
    let left = server.cli(&["KEYS", "*"]);
    assert!(left.starts_with(&format!("{}:put:", name_of(1))), "{left}");
    let ttl: i64 = server.cli(&["PTTL", &left]).parse().expect("a number");
    assert!((1..=120_000).contains(&ttl), "{ttl}");
    // Evicted in the middle, and begun anew by its next block: seen when it is counted.
    let store = open(server.port, "");
    assert_eq!(store.lookup(&[key(1)], soon()), Ok(0));
    store.begin_put(0, &key(2), None, soon()).expect("begin");
    store.put_block(0, 0, &noise(1, 5000)).expect("put");
    server.flush();
    store.put_block(0, 1, &noise(1, 5000)).expect("put");
    assert_eq!(store.commit_put(0, 2, b"m"), Err(StoreError::Full { bytes: 10_000 }));
    assert_eq!(server.cli(&["DBSIZE"]), "0");
    put(&*store, 0, &key(2), &[noise(1, 10)], b"m").expect("the seat is free");
    assert_eq!(server.cli(&["PTTL", &name_of(2)]), "-1", "a chunk does not expire by itself");
}

#[test]
fn a_ttl_is_given_and_refreshed_when_the_chunk_is_used() {
    let server = server!();
    let store = open(server.port, "?ttl-s=100");
    put(&*store, 0, &key(1), &[noise(1, 100)], b"m").expect("put");
    let ttl = || server.cli(&["TTL", &name_of(1)]).parse::<i64>().expect("a number");
    assert!((90..=100).contains(&ttl()));
    server.cli(&["EXPIRE", &name_of(1), "5"]);
    store.lookup(&[key(1)], soon()).expect("lookup");
    assert!(ttl() <= 5, "a look-up is no use");
    get(&*store, 0, &key(1), &[100]).expect("get");
    assert!((90..=100).contains(&ttl()));
}

#[test]
fn a_full_server_says_so_and_goes_on_serving() {
    let server = server!("--maxmemory-policy", "noeviction");
    let store = open(server.port, "");
    put(&*store, 0, &key(1), &blocks(1), b"m").expect("put");
    server.cli(&["CONFIG", "SET", "maxmemory", "1mb"]);
    let error = put(&*store, 0, &key(2), &blocks(2), b"m").expect_err("full");
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    store.open(0, &key(1), &mut [0; 4096], soon()).expect("open");
    let found = with_reader(&*store, |reader| read_all(reader, soon()));
    assert_eq!(none_is_wrong(&found, 1), BLOCKS);
    store.close(0);
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    put(&*store, 0, &key(2), &blocks(2), b"m").expect("room again");
}

#[test]
fn users_and_passwords_open_and_close_doors() {
    let server = server!("--requirepass", "se cret@1");
    let cli = |words: &[&str]| server.cli(&[&["--no-auth-warning", "-a", "se cret@1"], words].concat());
    cli(&["ACL", "SETUSER", "reader", "on", ">pw", "~kvlane:*", "-@all", "+hget", "+hexists"]);
    // The rules of docs/stores.md, word for word, are enough.
    let rules =
        include_str!("../../../../docs/stores.md").lines().filter_map(|line| line.strip_prefix("ACL SETUSER kvlane "));
    let mut lines = 0;
    for rule in rules {
        let words: Vec<_> = rule.split_whitespace().take_while(|word| !word.starts_with('(')).collect();
        let words: Vec<_> = words.into_iter().map(|word| word.replace("PASSWORD", "pw")).collect();
        let words: Vec<_> = ["ACL", "SETUSER", "card"].into_iter().chain(words.iter().map(String::as_str)).collect();
        assert_eq!(cli(&words), "OK");
        lines += 1;
    }
    assert_eq!(lines, 3);
    let open = |login: &str| store::open::<Vec<u8>>(&format!("redis://{login}127.0.0.1:{}", server.port), &limits());
    for login in ["", ":wrong@", "nobody:pw@", "reader:wrong@"] {
        let error = open(login).expect_err(login);
        assert!(matches!(error, OpenError::Refused { .. }), "{login}: {error}");
    }
    let store = open(":se cret%401@").expect("the right password");
    put(&*store, 0, &key(1), &[noise(1, 100)], b"m").expect("put");
    // CLIENT LIST shows who we are.
    let card = open("card:pw@").expect("a user with the rules of docs/stores.md");
    put(&*card, 0, &key(2), &[noise(2, 100)], b"m").expect("put");
    assert!(get(&*card, 0, &key(2), &[100]).is_ok());
    assert!(cli(&["CLIENT", "LIST"]).contains("name=kvlane-dpu-"));
    let reader = open("reader:pw@").expect("may log in");
    assert_eq!(put(&*reader, 0, &key(3), &[noise(3, 100)], b"m"), Err(StoreError::ReadOnly));
    assert!(reader.stats().read_only);
    assert!(get(&*reader, 0, &key(1), &[100]).is_ok(), "reads go on");
    // The password changes while we are connected: those who are in stay in, new connections are refused.
    cli(&["ACL", "SETUSER", "card", "resetpass", ">other"]);
    cli(&["CLIENT", "KILL", "USER", "card"]);
    let asked = Instant::now();
    let error = card.lookup(&[key(1)], asked + Duration::from_secs(60)).expect_err("refused");
    assert!(matches!(error, StoreError::Denied { .. }) && asked.elapsed() < Duration::from_secs(20), "{error}");
    let error = put(&*card, 0, &key(3), &[noise(3, 100)], b"m").expect_err("refused");
    assert!(matches!(error, StoreError::Denied { .. }), "{error}");
}

/// What is missing is known before anything is to be seen: a chunk that was reported as not stored is not stored.
#[test]
fn one_command_that_is_denied_or_renamed_leaves_nothing_behind() {
    let server = server!("--rename-command", "RENAME", "");
    let store = open(server.port, "");
    assert_eq!(put(&*store, 0, &key(1), &[noise(1, 100)], b"m"), Err(StoreError::ReadOnly), "RENAME is renamed");
    assert_eq!((store.lookup(&[key(1)], soon()), server.cli(&["DBSIZE"])), (Ok(0), "0".into()));
    let report = store::check(&format!("redis://127.0.0.1:{}", server.port)).expect("it opens").expect("on servers");
    assert!(report.findings.iter().any(|finding| finding.what.contains("RENAME")), "{report:?}");

    let server = server!();
    for missing in ["hset", "pexpire", "hlen", "rename", "persist"] {
        let without = format!("-{missing}");
        server.cli(&["ACL", "SETUSER", "card", "reset", "on", ">pw", "~kvlane:*", "+@all", &without]);
        let url = format!("redis://card:pw@127.0.0.1:{}", server.port);
        let store = store::open::<Vec<u8>>(&url, &limits()).expect("may log in");
        assert_eq!(put(&*store, 0, &key(1), &[noise(1, 100)], b"m"), Err(StoreError::ReadOnly), "{missing}");
        assert_eq!((store.lookup(&[key(1)], soon()), server.cli(&["DBSIZE"])), (Ok(0), "0".into()), "{missing}");
    }
    server.cli(&["ACL", "SETUSER", "card", "reset", "on", ">pw", "~kvlane:*", "+@all", "-select"]);
    let error = store::open::<Vec<u8>>(&format!("redis://card:pw@127.0.0.1:{}/3", server.port), &limits());
    let error = error.expect_err("SELECT is denied").to_string();
    assert!(error.contains("'select'") && error.contains("+select"), "{error}");
}

#[test]
fn a_server_that_is_not_there_or_never_answers_is_named_at_start() {
    let port = servers::free_port();
    let started = Instant::now();
    let error = store::open::<Vec<u8>>(&format!("redis://127.0.0.1:{port}"), &limits()).expect_err("nobody");
    assert!(matches!(error, OpenError::Unreachable { .. }), "{error}");
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = deaf.local_addr().expect("its number").port();
    let error = store::open::<Vec<u8>>(&format!("redis://127.0.0.1:{port}"), &limits()).expect_err("deaf");
    assert!(matches!(error, OpenError::Unreachable { .. }) && error.to_string().contains("timed out"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_server_killed_and_restarted_costs_answers_and_then_serves_again() {
    let mut server = server!();
    let store = open(server.port, "");
    put(&*store, 0, &key(1), &blocks(1), b"m").expect("put");
    store.open(0, &key(1), &mut [0; 4096], soon()).expect("open");
    with_reader(&*store, |reader| {
        assert_eq!(none_is_wrong(&read_all(reader, soon()), 1), BLOCKS);
        server.kill();
        let started = Instant::now();
        let found = read_all(reader, soon());
        assert_eq!(none_is_wrong(&found, 1), 0);
        let down = |found: &Result<Vec<u8>, StoreError>| matches!(found, Err(StoreError::Down { .. }));
        assert!(found.iter().all(down), "{:?}", found[0]);
        assert!(started.elapsed() < Duration::from_secs(3), "and soon: {:?}", started.elapsed());
        let mut open = false;
        store.nodes(&mut |node| open |= node.state == NodeState::Open);
        assert!(open, "requests stop going there");
        let started = Instant::now();
        assert!(read_all(reader, soon()).iter().all(down));
        assert!(started.elapsed() < Duration::from_millis(500), "at once: {:?}", started.elapsed());
        // Restarted, empty: no data is lost that was not the server's to lose.
        server.up();
        let end = Instant::now() + Duration::from_secs(10);
        while read_all(reader, soon()).iter().any(|found| *found != Err(StoreError::Miss)) {
            assert!(Instant::now() < end, "it does not come back");
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    store.close(0);
    put(&*store, 0, &key(1), &blocks(1), b"m").expect("put");
    store.open(0, &key(1), &mut [0; 4096], soon()).expect("open");
    // Killed in the middle of a pipeline, restarted from its own dump a moment later.
    assert_eq!(server.cli(&["SAVE"]), "OK");
    with_reader(&*store, |reader| {
        let kill = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(2));
            server.kill();
            server.up();
            server
        });
        let end = Instant::now() + Duration::from_secs(15);
        let mut whole = 0;
        let mut rounds = 0;
        while whole < 3 {
            assert!(Instant::now() < end, "it does not come back");
            let good = none_is_wrong(&read_all(reader, soon()), 1);
            whole += usize::from(good == BLOCKS);
            rounds += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
        println!("{rounds} rounds");
        kill.join().expect("the server restarts");
    });
    let mut reconnects = 0;
    store.nodes(&mut |node| reconnects += node.reconnects);
    assert!(reconnects > 0);
}

#[test]
fn a_frozen_server_costs_no_more_than_the_deadline_and_its_memory_comes_back() {
    let server = server!();
    let store = open(server.port, "?stall-ms=60000");
    put(&*store, 0, &key(1), &blocks(1), b"m").expect("put");
    store.open(0, &key(1), &mut [0; 4096], soon()).expect("open");
    with_reader(&*store, |reader| {
        server.freeze();
        let started = Instant::now();
        let found = read_all(reader, Instant::now() + Duration::from_millis(300));
        let took = started.elapsed();
        server.thaw();
        // A part of the replies may have been in the sockets.
        let late = |found: &Result<Vec<u8>, StoreError>| matches!(found, Ok(_) | Err(StoreError::Late { .. }));
        assert!(found.iter().all(late) && none_is_wrong(&found, 1) < BLOCKS);
        assert!((300..900).contains(&took.as_millis()), "{took:?}");
        // What still came for nobody disturbs nobody.
        for _ in 0..3 {
            assert_eq!(none_is_wrong(&read_all(reader, soon()), 1), BLOCKS);
        }
    });
    assert_eq!(store.stats().bytes_copied, 0);
    store.close(0);
}

#[test]
fn a_server_silent_in_mid_reply_loses_its_connections_and_then_comes_back() {
    let server = server!();
    let proxy = Proxy::to(server.port);
    let store = open(proxy.port, "?stall-ms=300");
    put(&*store, 0, &key(1), &blocks(1), b"m").expect("put");
    store.open(0, &key(1), &mut [0; 4096], soon()).expect("open");
    with_reader(&*store, |reader| {
        proxy.silence_after(3 * BLOCK_BYTES + BLOCK_BYTES / 2);
        let started = Instant::now();
        let found = read_all(reader, soon());
        let good = none_is_wrong(&found, 1);
        assert!((1..BLOCKS).contains(&good), "{good}");
        for error in found.iter().filter_map(|found| found.as_ref().err()) {
            assert!(matches!(error, StoreError::Down { .. }), "{error}");
        }
        let took = started.elapsed();
        assert!(took > Duration::from_millis(300) && took < Duration::from_secs(8), "{took:?}");
        proxy.heal();
        let end = Instant::now() + Duration::from_secs(10);
        while none_is_wrong(&read_all(reader, soon()), 1) < BLOCKS {
            assert!(Instant::now() < end, "it does not come back");
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    store.close(0);
}

#[test]
fn a_server_that_sends_a_byte_at_a_time_is_late_or_down_but_never_endless() {
    let server = server!();
    for (options, patience, expected) in [("?stall-ms=60000", 400, "late"), ("?stall-ms=200", 20_000, "down")] {
        let proxy = Proxy::to(server.port);
        let store = open(proxy.port, options);
        put(&*store, 0, &key(1), &blocks(1), b"m").expect("put");
        store.open(0, &key(1), &mut [0; 4096], soon()).expect("open");
        with_reader(&*store, |reader| {
            assert_eq!(none_is_wrong(&read_all(reader, soon()), 1), BLOCKS);
            proxy.trickle(Duration::from_millis(20));
            let started = Instant::now();
            let found = read_all(reader, Instant::now() + Duration::from_millis(patience));
            for found in &found {
                match found {
                    Err(StoreError::Late { .. }) => assert_eq!(expected, "late"),
                    Err(StoreError::Down { errno: Errno::ECONNRESET | Errno::ECONNREFUSED, .. }) => {
                        assert_eq!(expected, "down");
                    }
                    other => panic!("{options}: {:?}", other.as_ref().err()),
                }
            }
            assert!(started.elapsed() < Duration::from_secs(10), "{options}: {:?}", started.elapsed());
        });
        store.close(0);
    }
}

#[test]
fn puts_to_a_server_that_hangs_end_at_their_deadline() {
    let server = server!();
    let proxy = Proxy::to(server.port);
    let store = open(proxy.port, "");
    put(&*store, 0, &key(1), &[noise(1, 100)], b"m").expect("put");
    proxy.deafen();
    let started = Instant::now();
    let until = Instant::now() + Duration::from_millis(400);
    store.begin_put(0, &key(2), None, until).expect("begin");
    assert_eq!(store.put_block(0, 0, &noise(2, 1000)), Err(StoreError::Late { call: "put_block" }));
    assert!(started.elapsed() < Duration::from_millis(900), "{:?}", started.elapsed());
    store.abort_put(0);
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    proxy.heal();
    let end = Instant::now() + Duration::from_secs(10);
    while put(&*store, 0, &key(2), &[noise(2, 100)], b"m").is_err() {
        assert!(Instant::now() < end, "it does not come back");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_server_that_is_loading_or_busy_is_asked_again_until_the_deadline() {
    let server = server!();
    let store = open(server.port, "");
    put(&*store, 0, &key(1), &[noise(1, 100)], b"m").expect("put");
    // A script that runs longer than the limit makes others hear BUSY.
    server.cli(&["CONFIG", "SET", "busy-reply-threshold", "20"]);
    let port = server.port;
    let script = std::thread::spawn(move || {
        let mut command = std::process::Command::new("redis-cli");
        let script = "local t = redis.call('TIME'); local s = t[1] * 1000000 + t[2]; \
            repeat local n = redis.call('TIME') until n[1] * 1000000 + n[2] > s + 700000";
        command.args(["-p", &port.to_string(), "EVAL", script, "0"]).output().expect("redis-cli")
    });
    std::thread::sleep(Duration::from_millis(150));
    let started = Instant::now();
    let late = store.lookup(&[key(1)], Instant::now() + Duration::from_millis(100));
    assert_eq!(late, Err(StoreError::Late { call: "lookup" }));
    assert_eq!(store.lookup(&[key(1)], soon()), Ok(1), "after {:?}", started.elapsed());
    script.join().expect("the script ends");
}
