//! A card comes back by itself: it starts without its store, says so everywhere, finds it, and SIGHUP changes what can
//! be changed. What only the operator can mend ends it, with the code that the unit does not start again.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::rig::process::{Dpu, Home, command, refused};
use crate::rig::*;
use crate::servers::{Server, free_port, program};
use host_ctl::{Arrangement, CardStatus, Transfer};
use mailbox::Status;
use nix::sys::signal::Signal;

const CHUNKS: usize = 2;

fn get(port: u16, path: &str) -> String {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(socket, "GET {path} HTTP/1.1\r\n\r\n").unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    text
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + WAIT;
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_card_whose_store_is_late_answers_misses_says_so_and_finds_it() {
    let Some(program) = program() else { return };
    let mut server = Server::start(program, &["--requirepass", "first"]);
    let (home, metrics) = (Home::new(), free_port());
    let (config, password) = (home.socket("dpu-app.conf"), home.socket("password"));
    fs::write(&password, "wrong").unwrap();
    let url = format!("redis://127.0.0.1:{}?password-file={}", server.port, password.display());
    let write = |lines: &str| fs::write(&config, lines).unwrap();
    write("deadline-ms = 20000\nlog-level = info\n");
    server.kill();
    let address = metrics.to_string();
    let more = ["--metrics", &address, "--config", config.to_str().unwrap()];
    let mut dpu = Dpu::start_with(&url, &home.socket("card.sock"), "", &more);
    let degraded = || {
        let page = get(metrics, "/healthcheck");
        (page.contains("503"), page.lines().last().unwrap_or_default().to_owned())
    };

    // Misses at once, and a store that is said to be down.
    let (so, text) = degraded();
    assert!(so && text.starts_with("degraded: store 127.0.0.1:") && text.contains("Connection refused"), "{text}");
    let mut host = dpu.attach(&empty(Arrangement::Vllm, geometry(), CHUNKS));
    let (keys, pages) = (keys(geometry(), "lossless", 1, CHUNKS), linear(CHUNKS));
    let asked = Instant::now();
    let mut ask = |what: &str| {
        let transfer = Transfer { deadline: Some(WAIT), ..Transfer::new(&keys, &pages) };
        let id = match what {
            "look" => host.post_lookup(&keys),
            "fetch" => host.post_fetch(&transfer),
            _ => host.post_store(&transfer),
        };
        let done = host.wait(id.unwrap(), WAIT).unwrap();
        (done.status, done.chunks_done)
    };
    assert_eq!((ask("look"), ask("fetch")), ((Status::Ok, 0), (Status::Ok, 0)));
    assert_eq!(ask("store").0, Status::StoreDown);
    assert!(asked.elapsed() < WAIT / 2, "nobody waits for what is not there");
    let status = CardStatus::parse(get(metrics, "/status").lines().last().unwrap()).unwrap();
    assert!(status.value()["degraded"].as_str().unwrap().contains("Connection refused"), "{}", status.value());
    assert!(get(metrics, "/metrics").contains("kvlane_unwell{reason=\"degraded\"} 1"));

    // There, and it refuses us: what it answered is said; SIGHUP brings the right password, and it is tried at once.
    server.up();
    until("it is not asked again", || degraded().1.contains("WRONGPASS"));
    fs::write(&password, "first").unwrap();
    write("sessions = 4\nlog-level = debug");
    dpu.signal(Signal::SIGHUP);
    until("it is not found", || !degraded().0);
    assert_eq!(ask("store"), (Status::Ok, CHUNKS));
    assert_eq!((ask("look"), ask("fetch")), ((Status::Ok, CHUNKS), (Status::Ok, CHUNKS)));

    // What is wrong changes nothing and ends nothing.
    write("deadline-ms = soon");
    dpu.signal(Signal::SIGHUP);
    thread::sleep(Duration::from_millis(300));
    write("deadline-ms = 5000");
    dpu.signal(Signal::SIGHUP);
    until("the deadline stays", || get(metrics, "/status").contains("\"deadline_ms\":5000"));
    assert_eq!(ask("look"), (Status::Ok, CHUNKS));
    dpu.signal(Signal::SIGTERM);
    let (status, log) = dpu.wait();
    assert!(status.success(), "{log}");
    for said in [
        "starting without it",
        "WRONGPASS",
        "is there now",
        "the store's login",
        "--sessions changed",
        "nothing was changed",
    ] {
        assert_eq!(log.matches(said).count(), 1, "{said:?}: {log}");
    }
    assert!(!log.contains("first"), "{log}");
}

/// What the unit does not start again.
fn given_up() -> Vec<i32> {
    let unit = include_str!("../../../scripts/systemd/dpu-app.service");
    let line =
        unit.lines().find_map(|line| line.strip_prefix("RestartPreventExitStatus=")).expect("a line of the unit");
    line.split_whitespace().map(|code| code.parse().expect("a number")).collect()
}

#[test]
fn what_may_pass_by_itself_is_started_again_and_what_may_not_is_not() {
    let home = Home::new();
    let nobody = format!("redis://127.0.0.1:{}", free_port());
    let dpu = Dpu::start_with(&home.store(), &home.socket("a.sock"), "", &[]);
    let other = format!("dir:{}", home.socket("other").display());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (store, socket, more, passes) in [
        (&*nobody, "b.sock", &["--require-store"][..], true),
        (&home.store(), "b.sock", &[], true),
        (&other, "a.sock", &["--attach", "socket"], true),
        (&other, "b.sock", &["--metrics", &taken], false),
        ("redis://h:port", "b.sock", &[], false),
        ("rediss://h?ca=/nonexistent", "b.sock", &[], false),
        ("dir:/nonexistent/a/b", "b.sock", &[], false),
        (&other, "b.sock", &["--slots", "65"], false),
        (&other, "b.sock", &["--sloots", "6"], false),
    ] {
        let (code, text) = refused(store, &home.socket(socket), more);
        let code = code.expect("it ended by itself");
        assert_eq!(
            (code, given_up().contains(&code)),
            (if passes { 1 } else { 2 }, !passes),
            "{store} {more:?}: {text}"
        );
        assert_eq!(text.lines().filter(|line| line.starts_with("dpu-app:") || line.starts_with("error:")).count(), 1);
    }
    drop(dpu);
}

#[test]
fn a_command_line_that_is_wrong_shows_no_password() {
    let home = Home::new();
    for (store, more) in [
        ("redis//u:TopSecret@h", &[][..]),
        ("redis://u:Top?Secret@h", &[]),
        ("tiers:dram=16M,redis//u:TopSecret@h", &[]),
        ("dir:/nonexistent/a", &["redis://u:TopSecret@h"]),
        ("dir:/nonexistent/a", &["--slots", "redis://u:TopSecret@h"]),
        ("redis://u:Top", &["Secret", "TopSecret@h"]),
        ("dir:/nonexistent/a", &["--store", "redis://u:TopSecret@h"]),
    ] {
        let (code, text) = refused(store, &home.socket("s"), more);
        assert!(code == Some(2) && !text.contains("Secret"), "{store} {more:?}: {text}");
    }
    let help = std::process::Command::new(env!("CARGO_BIN_EXE_dpu-app"))
        .args(["run", "--help"])
        .env("KVLANE_STORE", "redis://u:TopSecret@h")
        .output()
        .unwrap();
    assert!(help.status.success() && !String::from_utf8_lossy(&help.stdout).contains("Secret"));
}

#[test]
fn a_process_without_descriptors_says_so_and_is_started_again() {
    let home = Home::new();
    let mut causes = 0;
    // Each place that takes one, until there are enough.
    for limit in 5..64 {
        let command = command(&home.store(), &home.socket("s"), &["--attach", "socket", "--metrics", "127.0.0.1:0"]);
        let words: Vec<_> = command.get_args().map(|word| word.to_str().expect("text").to_owned()).collect();
        let script = format!("ulimit -n {limit}; exec timeout --signal=KILL 2 \"$0\" \"$@\"");
        let output = std::process::Command::new("bash")
            .args(["-c", &script, env!("CARGO_BIN_EXE_dpu-app")])
            .args(words)
            .env_remove("DOCA_EMULATOR")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("ready") {
            break;
        }
        let code = output.status.code();
        assert!(matches!(code, Some(1 | 3 | 127)), "{limit}: {code:?} {said}");
        causes += usize::from(code != Some(127));
        assert!(code == Some(127) || said.contains("descriptors"), "{limit}: {said}");
    }
    assert!(causes > 2, "the limit was never felt");
}
