//! A store that is not there when the card starts, and one that stops taking us: said, answered at once, tried again.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use store::{Namespaces, OpenError, Readable, Reloaded, StoreError};

use crate::chunks::{Questions, get, key, limits, noise, put, soon};
use crate::servers::{Server, free_port, program};

type Any = dyn Readable<Vec<u8>>;

fn wait_for(url: &str) -> Result<Box<Any>, OpenError> {
    store::open_or_wait(url, &limits(), &Namespaces::default(), None)
}

fn trouble(store: &Any) -> String {
    let mut text = String::new();
    store.trouble(&mut |trouble| text = trouble.to_owned());
    text
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Until the store is there, a look-up finds nothing, an open is a miss, and a put says that it is down: all at once.
fn answers_misses(store: &Any) {
    let asked = Instant::now();
    assert_eq!(store.lookup(&[key(1)], soon()), Ok(0));
    assert_eq!(store.open(0, &key(1), &mut [0; 4096], soon()), Err(StoreError::Miss));
    assert!(matches!(store.peek(&key(1), &mut [0; 4096], soon()), Err(StoreError::Down { .. })));
    assert!(asked.elapsed() < Duration::from_secs(5), "nobody waits for what is not there");
}

fn serves(store: &Any) {
    let blocks = [noise(1, 70_000), noise(2, 9)];
    put(store, 0, &key(1), &blocks, b"m").expect("put");
    assert_eq!(get(store, 0, &key(1), &[70_000, 9]).expect("get").1, blocks);
}

#[test]
fn a_server_that_comes_after_us_is_found() {
    let Some(program) = program() else { return };
    let mut server = Server::start(program, &[]);
    server.kill();
    for url in
        [format!("redis://127.0.0.1:{}", server.port), format!("tiers:dram=4M,redis://localhost:{}", server.port)]
    {
        assert!(store::open::<Vec<u8>>(&url, &limits()).is_err_and(|error| error.may_pass()), "tools say so at once");
        let store = wait_for(&url).expect("it starts without");
        assert!(trouble(&*store).contains("Connection refused"), "{}", trouble(&*store));
        answers_misses(&*store);
        server.up();
        until("it is not found", || trouble(&*store).is_empty());
        serves(&*store);
        drop(store);
        server.flush();
        server.kill();
    }
}

#[test]
fn a_cluster_that_comes_after_us_is_found_and_served_as_one() {
    let Some(program) = program() else { return };
    let mut server = Server::start(program, &["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"]);
    // A cluster's server that serves nothing yet is no single server.
    let store = wait_for(&format!("redis://127.0.0.1:{}", server.port)).expect("it starts without");
    assert!(trouble(&*store).contains("serves a slot"), "{}", trouble(&*store));
    answers_misses(&*store);
    assert_eq!(server.cli(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]), "OK");
    until("it is not found", || trouble(&*store).is_empty());
    until("it has no map", || store.peek(&key(1), &mut [0; 4096], soon()) == Err(StoreError::Miss));
    serves(&*store);
    assert!(store.describe().contains("a cluster of 1 nodes"), "{}", store.describe());
    server.kill();
}

#[test]
fn a_password_that_is_wrong_at_start_or_revoked_later_is_said_with_what_the_server_answered() {
    let Some(program) = program() else { return };
    let server = Server::start(program, &[]);
    server.cli(&["ACL", "SETUSER", "kv", "on", ">old", "~kvlane:*", "+@all"]);
    let files = tempfile::tempdir().expect("a directory");
    let file = files.path().join("password");
    std::fs::write(&file, "wrong\n").expect("write");
    let url = format!("redis://kv:x@127.0.0.1:{}?password-file={}", server.port, file.display());
    let store = wait_for(&url).expect("it starts without");
    assert!(trouble(&*store).contains("WRONGPASS"), "{}", trouble(&*store));
    answers_misses(&*store);

    std::fs::write(&file, "old\n").expect("write");
    assert_eq!(store.reload(&(&*url).into()), Ok(Reloaded::Login));
    until("the new password is not tried", || trouble(&*store).is_empty());
    serves(&*store);

    // Revoked while we are connected: look-ups do not wait out their deadlines.
    server.cli(&["ACL", "SETUSER", "kv", "resetpass", ">new"]);
    server.cli(&["CLIENT", "KILL", "USER", "kv"]);
    let asked = Instant::now();
    let denied = Err(StoreError::Denied { call: "connect" });
    until("a look-up goes on", || store.lookup(&[key(1)], soon()) == denied);
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    assert!(trouble(&*store).contains("WRONGPASS"), "{}", trouble(&*store));
    assert!(matches!(store.peek(&key(1), &mut [0; 4096], soon()), Err(StoreError::Denied { .. })));
    std::fs::write(&file, "new\n").expect("write");
    assert_eq!(store.reload(&(&*url).into()), Ok(Reloaded::Login));
    until("it does not come back by itself", || trouble(&*store).is_empty());
    assert_eq!(store.lookup(&[key(1)], soon()), Ok(1));
    assert_eq!(store.reload(&format!("{url}&window=1M").into()), Ok(Reloaded::NeedsRestart));
    assert!(store.reload(&"redis//kv:new@h".into()).is_err());
    assert_eq!(store.lookup(&[key(1)], soon()), Ok(1), "what is wrong changes nothing");
}

#[test]
fn a_server_that_is_full_of_clients_or_loads_passes_by_itself() {
    for answer in ["-ERR max number of clients reached\r\n", "-LOADING Redis is loading the dataset in memory\r\n"] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its number").port();
        let server = std::thread::spawn(move || {
            for mut socket in listener.incoming().take(3).flatten() {
                let _ = socket.read(&mut [0; 512]);
                let _ = socket.write_all(answer.as_bytes());
            }
        });
        let store = wait_for(&format!("redis://127.0.0.1:{port}")).expect("it starts without");
        assert!(trouble(&*store).contains(answer[1..].trim_end()), "{}", trouble(&*store));
        answers_misses(&*store);
        server.join().expect("three came: it was tried again");
    }
}

#[test]
fn what_no_time_mends_is_an_error_at_once() {
    for url in ["redis://", "redis://h:port", "redis://h?none=1", "tiers:dram=1G", "tiers:dir:/tmp/x=1G", "Redis://h"] {
        assert!(!wait_for(url).expect_err(url).may_pass(), "{url}");
    }
    let error = wait_for(&format!("redis://no-such-host.invalid:{}", free_port())).expect("it starts without");
    assert!(trouble(&*error).contains("resolve"), "{}", trouble(&*error));
}
