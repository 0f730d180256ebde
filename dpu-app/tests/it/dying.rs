//! A host in a process of its own, to be killed in the middle of a fetch.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::rig::*;
use host_ctl::{Arrangement, Client, Options, Route};

/// The variable that makes a copy of this test binary the host that dies.
const ROUTE: &str = "KVLANE_TEST_DYING_HOST";
/// The variable that says how many chunks it fetches.
const COUNT: &str = "KVLANE_TEST_DYING_HOST_CHUNKS";
const DYING: &str = "dying::the_dying_host_itself";

/// Not a claim of its own: what [`dying_host`] runs in another process.
#[test]
fn the_dying_host_itself() {
    let Ok(route) = std::env::var(ROUTE) else { return };
    let options = Options {
        route: if route.starts_with('/') { Route::Socket(route.into()) } else { Route::Comch { name: route } },
        client: "dying".into(),
        recipe: Some("lossless".parse().unwrap()),
        ..Options::default()
    };
    let chunks = std::env::var(COUNT).expect("beside the route").parse().expect("a number");
    let keys = keys(geometry(), "lossless", 1, chunks);
    let mut host = Client::attach(&options, Some(empty(Arrangement::Vllm, geometry(), chunks))).unwrap();
    println!("\nattached");
    loop {
        let id = host.post_fetch(&transfer(&keys, &linear(chunks))).unwrap();
        let _ = host.wait(id, WAIT);
    }
}

/// Starts a host that fetches the chunks of salt 1 over and over, by a socket's path or a Comch server's name, and
/// waits until it has attached.
pub(crate) fn dying_host(way: &OsStr, chunks: usize) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", DYING, "--nocapture", "--test-threads=1"])
        .env(ROUTE, way)
        .env(COUNT, chunks.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "attached"), "the child attaches");
    child
}
