//! Doing nothing costs nothing: an attached host that asks for nothing leaves the card asleep.

mod rig;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use host_ctl::{Arrangement, Client, Options, Route};
use mailbox::Status;
use rig::*;

struct Dpu {
    child: Child,
    /// Both ways to it.
    routes: [Route; 2],
}

impl Drop for Dpu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(home: &Path, more: &[&str]) -> Dpu {
    let (name, socket) = (comch_name(), home.join("card.sock"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_dpu-app"))
        .args(["run", "--store"])
        .arg(format!("dir:{}", home.join("store").display()))
        .args(["--comch-name", &name, "--socket"])
        .arg(&socket)
        .args(more)
        .env_remove("DOCA_EMULATOR")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut log = String::new();
    while !log.contains("ready") {
        assert!(lines.read_line(&mut log).unwrap() > 0, "it ended: {log}");
    }
    thread::spawn(move || lines.read_to_string(&mut log));
    Dpu { child, routes: [Route::Comch { name }, Route::Socket(socket)] }
}

/// CPU time of all threads of a process so far: user and system, as the scheduler counts it.
fn cpu_time(pid: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |task: std::fs::DirEntry| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap();
        let nanos = text.split(' ').next().unwrap().parse::<u64>().unwrap();
        // Of a test that fails one wants to know who it was.
        println!("{:>12} us {}", nanos / 1000, std::fs::read_to_string(task.path().join("comm")).unwrap().trim());
        nanos
    };
    Duration::from_nanos(tasks.map(|task| of(task.unwrap())).sum())
}

fn options(route: &Route) -> Options {
    Options { route: route.clone(), recipe: Some("lossless".parse().unwrap()), ..Options::default() }
}

/// A fetch, and then two seconds of nothing: what these cost.
fn cost_of_idling(more: &[&str]) -> Duration {
    let home = tempfile::tempdir().unwrap();
    let dpu = start(home.path(), more);
    let memory = filled(Arrangement::Vllm, geometry(), 4, 1);
    let mut hosts: Vec<_> =
        [0, 0, 1].map(|way| Client::attach(&options(&dpu.routes[way]), Some(memory.clone())).unwrap()).into();
    let keys = keys(geometry(), "lossless", 1, 4);
    assert_eq!(store(&mut hosts[0], &keys, &linear(4)).chunks_done, 4);
    for host in &mut hosts {
        assert_eq!(fetch(host, &keys, &linear(4)).chunks_done, 4);
    }
    thread::sleep(Duration::from_millis(200));
    let before = cpu_time(dpu.child.id());
    thread::sleep(Duration::from_secs(2));
    let cost = cpu_time(dpu.child.id()) - before;
    // It was asleep, not gone: the next command is answered.
    for host in &mut hosts {
        let fetched = fetch(host, &keys, &linear(4));
        assert_eq!((fetched.status, fetched.chunks_done), (Status::Ok, 4));
    }
    cost
}

#[test]
fn idle_sessions_cost_no_cpu() {
    let cost = cost_of_idling(&[]);
    println!("three idle sessions, two by Comch and one by the socket: {cost:?} of CPU in 2 s");
    assert!(cost < Duration::from_millis(20), "{cost:?}");
}

#[test]
fn metrics_that_nobody_asks_for_cost_no_cpu() {
    let cost = cost_of_idling(&["--metrics", "0"]);
    println!("three idle sessions and --metrics: {cost:?} of CPU in 2 s");
    assert!(cost < Duration::from_millis(20), "{cost:?}");
}

#[test]
fn busy_polling_is_busy() {
    let cost = cost_of_idling(&["--busy-poll"]);
    println!("busy poll: {cost:?} of CPU in 2 s");
    assert!(cost > Duration::from_millis(200), "{cost:?}");
}
