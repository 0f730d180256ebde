//! How hosts come: by Comch from each function that is served, by the socket, or not at all, and then with a reason.

use std::io::{BufRead, BufReader, Lines};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use crate::rig::process::{Dpu, Home, refused_as};
use crate::rig::*;
use host_ctl::{Arrangement, Client, Error, Options, Route};
use mailbox::Status;
use mailbox::attach::{ATTACH_MESSAGE_MAX, Commit, Hello, Message, PAGE_REGION, Reason, Region, layout_parts};
use mailbox::channel::ChannelError;
use nix::sys::signal::Signal;

const CHUNKS: usize = 4;
/// The variable that makes a copy of this test binary a host on another function.
const HOST: &str = "KVLANE_TEST_HOST";

/// Not a claim of its own: what `hosts_of_several_functions_...` runs in other processes.
#[test]
fn a_host_on_its_function() {
    let Ok(name) = std::env::var(HOST) else { return };
    let route = Route::Comch { name };
    let options = Options { route, recipe: Some("lossless".parse().unwrap()), ..Options::default() };
    let keys = keys(geometry(), "lossless", 1, CHUNKS);
    let memory = filled(Arrangement::Vllm, geometry(), CHUNKS, 3);
    let mut host = match Client::attach(&options, Some(memory)) {
        Ok(host) => host,
        Err(error) => return println!("\nsays: {error}"),
    };
    // Whoever comes first stores; all fetch.
    let stored = store(&mut host, &keys, &linear(CHUNKS));
    let fetched = fetch(&mut host, &keys, &linear(CHUNKS));
    assert_eq!((stored.status, fetched.status, fetched.chunks_done), (Status::Ok, Status::Ok, CHUNKS));
    println!("\nsays: session {}", host.card_facts().session);
    // Until its turn to leave, so that all are there at once.
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    host.close(WAIT).unwrap();
}

struct Host {
    child: Child,
    said: String,
    /// Kept open: it goes on printing.
    _lines: Lines<BufReader<ChildStdout>>,
}

fn host_on(function: &str, name: &str) -> Host {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "ways::a_host_on_its_function", "--nocapture", "--test-threads=1"])
        .env(HOST, name)
        .env("DOCA_EMULATOR", format!("role=host,pci={function}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said = lines.by_ref().find_map(|line| line.unwrap().strip_prefix("says: ").map(str::to_owned));
    Host { child, said: said.expect("it says something"), _lines: lines }
}

impl Host {
    fn leaves(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

const THREE: &str = "role=card,rep=b1:00.0+b1:00.1+b1:00.2";

#[test]
fn hosts_of_several_functions_share_the_card_and_its_limit() {
    let home = Home::new();
    let more = ["--representor", "b1:00.0", "--representor", "pf0vf0", "--sessions", "2"];
    let dpu = Dpu::start_with(&home.store(), &home.socket("card.sock"), THREE, &more);
    let hosts = ["b1:00.0", "b1:00.1"].map(|function| host_on(function, &dpu.comch));
    for (host, expected) in hosts.iter().zip(["session 1", "session 2"]) {
        assert_eq!(host.said, expected);
    }
    // Two sessions in all, from whichever function.
    let third = host_on("b1:00.1", &dpu.comch);
    assert!(third.said.contains("sessions"), "{}", third.said);
    third.leaves();
    let other = host_on("b1:00.2", &dpu.comch);
    assert!(other.said.contains("nobody on the card serves") && other.said.contains("--representor"), "{}", other.said);
    other.leaves();
    hosts.into_iter().for_each(Host::leaves);
    // And when one leaves, there is room.
    let last = host_on("b1:00.0", &dpu.comch);
    assert!(last.said.starts_with("session"), "{}", last.said);
    last.leaves();
}

#[test]
fn physical_functions_are_served_unasked_and_virtual_ones_are_not() {
    let home = Home::new();
    let mut dpu = Dpu::start_with(&home.store(), &home.socket("card.sock"), THREE, &[]);
    let host = host_on("b1:00.0", &dpu.comch);
    assert_eq!(host.said, "session 1");
    host.leaves();
    let guest = host_on("b1:00.1", &dpu.comch);
    assert!(guest.said.contains("nobody on the card serves"), "{}", guest.said);
    guest.leaves();
    dpu.signal(Signal::SIGTERM);
    let (_, log) = dpu.wait();
    assert!(log.contains("serves function 0000:b1:00.0 (pf0hpf)"), "{log}");
}

#[test]
fn a_way_that_is_not_there_is_one_line_that_says_what_to_do() {
    let home = Home::new();
    let socket = home.socket("card.sock");
    let dpu = Dpu::start_with(&home.store(), &socket, "", &[]);
    let other = format!("dir:{}", home.dir.path().join("other").display());
    let free: PathBuf = home.socket("free.sock");
    type Case<'a> = (&'a str, Vec<&'a str>, Vec<&'a str>);
    let cases: [Case<'_>; 6] = [
        ("role=host", vec![], vec!["cannot be a server", "--attach socket", "on the card"]),
        (THREE, vec!["--representor", "b1:00.7"], vec!["no representor b1:00.7", "0000:b1:00.1 (pf0vf0)"]),
        ("", vec!["--comch-name", &dpu.comch], vec!["another process serves", "--comch-name"]),
        ("", vec!["--comch-name", ""], vec!["name", "--comch-name"]),
        ("", vec!["--attach", "pigeon"], vec!["pigeon", "both", "comch", "socket"]),
        ("", vec!["--representor"], vec!["--representor"]),
    ];
    for (emulator, more, words) in cases {
        let (code, said) = refused_as(emulator, &other, &free, &more);
        assert_eq!(code, Some(2), "{emulator} {more:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{emulator} {more:?} says {word}: {said}");
        }
        assert_eq!(said.matches("dpu-app: ").count().max(1), 1, "said once: {said}");
    }
    // The first is none the worse.
    Client::attach(&dpu.options(), None).unwrap().close(WAIT).unwrap();
}

#[test]
fn each_way_alone_is_the_only_way() {
    let home = Home::new();
    let socket = home.socket("card.sock");
    let by_socket = |dpu: &Dpu| Options { route: Route::Socket(socket.clone()), ..dpu.options() };
    // A card without Comch, as a host's device is one.
    let dpu = Dpu::start_with(&home.store(), &socket, "role=host", &["--attach", "socket"]);
    Client::attach(&by_socket(&dpu), None).unwrap().close(WAIT).unwrap();
    assert!(matches!(Client::attach(&dpu.options(), None), Err(Error::Comch(_))));
    drop(dpu);
    let dpu = Dpu::start_with(&home.store(), &home.socket("no.sock"), "", &["--attach", "comch"]);
    Client::attach(&dpu.options(), None).unwrap().close(WAIT).unwrap();
    assert!(!home.socket("no.sock").exists());
}

#[test]
fn an_attach_longer_than_a_channel_holds_gets_through_at_full_speed() {
    let card = Card::start();
    // Said in order up to the end; that its regions cannot be imported is found only there.
    let messages: Vec<Vec<u8>> = {
        let hello = Hello {
            generation: 1,
            pid: 1,
            region_count: 200,
            geometry: Some(geometry()),
            recipe: None,
            client: "long",
            namespace: None,
        };
        let region = |index: u16| Region {
            index,
            writable: true,
            base: (u64::from(index) + 1) << 20,
            bytes: 4096,
            export: &[7; 1000],
        };
        let memory = empty(Arrangement::Vllm, geometry(), CHUNKS);
        let layout = layout_parts(&memory.form, &memory.bases).map(Message::Layout);
        let commit = Commit { region_count: 200, base_count: memory.bases.len() as u16, further_sections: 0 };
        let all = [Message::Hello(hello), Message::Region(region(PAGE_REGION))].into_iter();
        let all = all.chain((0..200).map(|index| Message::Region(region(index)))).chain(layout);
        let bytes = |message: Message<'_>| message.encode(&mut [0; ATTACH_MESSAGE_MAX]).unwrap().to_vec();
        all.chain([Message::Commit(commit)]).map(bytes).collect()
    };
    for route in card.routes() {
        for round in 0..100 {
            let mut line = line(&route);
            for message in &messages {
                while let Err(error) = line.send(message) {
                    assert!(matches!(error, ChannelError::Full), "{route}, round {round}: {error}");
                    assert!(line.wait_for_room(WAIT).unwrap());
                }
            }
            assert!(line.wait(WAIT).unwrap());
            let mut bytes = [0; ATTACH_MESSAGE_MAX];
            let count = line.receive(&mut bytes).unwrap().expect("it was waited for");
            match Message::decode(&bytes[..count]).unwrap() {
                Message::Refuse(refuse) => assert_eq!(refuse.reason(), Some(Reason::Region), "{route}, round {round}"),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_host_that_is_refused_in_the_middle_of_a_long_attach_reads_why() {
    // More messages than a channel holds, and the card has said no before the first.
    let card = Card::start_with(doca_emulator::Config::default(), |config| config.sessions = 1);
    for route in card.routes() {
        let first = Client::attach(&Options { route: route.clone(), ..card.options("lossless") }, None).unwrap();
        for _ in 0..20 {
            let memory = filled(Arrangement::Vllm, geometry(), CHUNKS, 1);
            let memory =
                host_ctl::Memory { regions: memory.regions.iter().cycle().take(64).cloned().collect(), ..memory };
            let options = Options { route: route.clone(), ..card.options("lossless") };
            match Client::attach(&options, Some(memory)).unwrap_err() {
                Error::Refused(refuse) => assert_eq!(refuse.reason(), Some(Reason::Sessions)),
                error => panic!("{route}: {error}"),
            }
        }
        first.close(WAIT).unwrap();
        card.await_empty();
    }
}

#[test]
fn a_host_that_dies_in_the_middle_of_its_attach_makes_room_at_once() {
    let card = Card::start_with(doca_emulator::Config::default(), |config| {
        config.sessions = 1;
        config.attach_timeout = Duration::from_secs(3600).into();
    });
    for route in card.routes() {
        let hello = Hello {
            generation: 1,
            pid: 1,
            region_count: 3,
            geometry: Some(geometry()),
            recipe: None,
            client: "dying",
            namespace: None,
        };
        let mut bytes = [0; ATTACH_MESSAGE_MAX];
        let hello = Message::Hello(hello).encode(&mut bytes).unwrap();
        let until = std::time::Instant::now() + WAIT;
        // The one that comes after it is refused. On a busy machine the card may hear that one first; then once more.
        let dying = loop {
            let mut line = line(&route);
            line.send(hello).unwrap();
            if Client::attach(&card.options("lossless"), None).is_err() {
                break line;
            }
            assert!(std::time::Instant::now() < until, "{route}: it does not count");
        };
        drop(dying);
        while Client::attach(&card.options("lossless"), None).is_err() {
            assert!(std::time::Instant::now() < until, "{route}: it is not noticed");
        }
        card.await_empty();
    }
}
