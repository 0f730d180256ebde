//! Whatever a server does, nobody is answered later than the deadline of what was asked. The server is a false one
//! that behaves well until it is told how to misbehave. `cargo test -p store --test it hostile_server -- --nocapture`
//! prints how late the latest answer of each kind was.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use store::{Readable, StoreError};

use crate::chunks::{self, Questions, key, limits, soon};

/// Later than the deadline by this is too late, beside what the machine itself was late by.
const LATE_MOST: Duration = Duration::from_millis(50);
const ROUNDS: u64 = 3;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mood {
    Good,
    /// Takes connections and commands, and answers nothing.
    Deaf,
    /// Answers a byte at a time.
    Trickles,
    /// Answers the first half.
    Halves,
    HangsUp,
    Babbles,
    /// Answers every command, but for greetings, with this error.
    Says(&'static str),
    /// Greetings, too, and every connection that was there is gone.
    Refuses(&'static str),
    /// It is elsewhere: here again, for ever.
    Moved(&'static str),
    /// It is elsewhere: where nobody takes connections.
    Away,
}

const MOODS: [Mood; 18] = [
    Mood::Good,
    Mood::Deaf,
    Mood::Trickles,
    Mood::Halves,
    Mood::HangsUp,
    Mood::Babbles,
    Mood::Says("LOADING Redis is loading the dataset in memory"),
    Mood::Says("TRYAGAIN Multiple keys request during rehashing of slot"),
    Mood::Says("BUSY Redis is busy running a script"),
    Mood::Says("CLUSTERDOWN The cluster is down"),
    Mood::Says("NOAUTH Authentication required."),
    Mood::Says("NOPERM this user has no permissions to run it"),
    Mood::Says("ERR something that nobody has heard of"),
    Mood::Refuses("WRONGPASS invalid username-password pair or user is disabled."),
    Mood::Refuses("ERR max number of clients reached"),
    Mood::Moved("MOVED"),
    Mood::Moved("ASK"),
    Mood::Away,
];

/// What all connections of the server share.
#[derive(Debug)]
struct Server {
    port: u16,
    /// Where nobody takes connections.
    nobody: u16,
    mood: AtomicUsize,
    leave: AtomicBool,
}

impl Server {
    fn start(nobody: u16) -> Arc<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("its number").port();
        let server = Arc::new(Self { port, nobody, mood: 0.into(), leave: false.into() });
        let shared = Arc::clone(&server);
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || shared.serve(socket));
            }
        });
        server
    }

    fn mood(&self) -> Mood {
        MOODS[self.mood.load(Relaxed)]
    }

    fn serve(&self, mut socket: TcpStream) -> Option<()> {
        socket.set_read_timeout(Some(Duration::from_millis(20))).ok()?;
        let (mut inbox, mut more) = (Vec::new(), [0; 4096]);
        let mut greeted_in = None;
        loop {
            while let Some(words) = command(&mut inbox) {
                let greets = matches!(&*words[0], b"HELLO" | b"CLIENT" | b"CLUSTER");
                if greets {
                    greeted_in = Some(self.mood());
                }
                self.answer(&mut socket, &words, greets)?;
            }
            if self.leave.load(Relaxed) || matches!(self.mood(), Mood::Refuses(_)) && greeted_in != Some(self.mood()) {
                return None;
            }
            match socket.read(&mut more) {
                Ok(0) => return None,
                Ok(bytes) => inbox.extend_from_slice(&more[..bytes]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return None,
            }
        }
    }

    fn answer(&self, socket: &mut TcpStream, words: &[Vec<u8>], greets: bool) -> Option<()> {
        let right = right_answer(words);
        match self.mood() {
            Mood::Good => socket.write_all(&right).ok(),
            Mood::Refuses(text) => socket.write_all(format!("-{text}\r\n").as_bytes()).ok(),
            _ if greets => socket.write_all(&right).ok(),
            Mood::Deaf => Some(()),
            Mood::Trickles => right.iter().try_for_each(|byte| {
                std::thread::sleep(Duration::from_millis(15));
                socket.write_all(&[*byte]).ok().filter(|()| !self.leave.load(Relaxed))
            }),
            Mood::Halves => socket.write_all(&right[..right.len() / 2]).ok(),
            Mood::HangsUp => None,
            Mood::Babbles => socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").ok(),
            Mood::Says(text) => socket.write_all(format!("-{text}\r\n").as_bytes()).ok(),
            // ASKING is answered like the rest.
            Mood::Moved(word) => socket.write_all(format!("-{word} 0 127.0.0.1:{}\r\n", self.port).as_bytes()).ok(),
            Mood::Away => socket.write_all(format!("-MOVED 0 127.0.0.1:{}\r\n", self.nobody).as_bytes()).ok(),
        }
    }
}

/// Takes one command from the head of what has come.
fn command(inbox: &mut Vec<u8>) -> Option<Vec<Vec<u8>>> {
    let (mut words, mut at) = (Vec::new(), 0);
    let line = |at: &mut usize| -> Option<usize> {
        let end = *at + inbox[*at..].windows(2).position(|pair| pair == b"\r\n")?;
        let number = std::str::from_utf8(&inbox[*at + 1..end]).ok()?.parse().ok()?;
        *at = end + 2;
        Some(number)
    };
    for _ in 0..line(&mut at)? {
        let bytes = line(&mut at)?;
        words.push(inbox.get(at..at + bytes)?.to_vec());
        at += bytes + 2;
    }
    (at <= inbox.len()).then(|| drop(inbox.drain(..at)))?;
    Some(words)
}

/// Every chunk is there, and has one block of a thousand bytes.
fn right_answer(words: &[Vec<u8>]) -> Vec<u8> {
    match &*words[0] {
        b"CLUSTER" => b"-ERR This instance has cluster support disabled\r\n".to_vec(),
        b"HGET" if words[2] == b"m" => b"$1\r\nm\r\n".to_vec(),
        b"HGET" => [b"$1000\r\n".as_slice(), &[7; 1000], b"\r\n"].concat(),
        b"HLEN" => b":2\r\n".to_vec(),
        b"HEXISTS" | b"HSET" | b"PEXPIRE" | b"PERSIST" | b"UNLINK" => b":1\r\n".to_vec(),
        _ => b"+OK\r\n".to_vec(),
    }
}

/// How late this machine wakes whoever sleeps, while the test runs: that is not ours.
struct Witness {
    worst_us: Arc<AtomicU64>,
    leave: Arc<AtomicBool>,
}

impl Witness {
    fn start() -> Self {
        let (worst_us, leave) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (worst, left) = (Arc::clone(&worst_us), Arc::clone(&leave));
        std::thread::spawn(move || {
            while !left.load(Relaxed) {
                let until = Instant::now() + Duration::from_millis(3);
                std::thread::sleep(Duration::from_millis(3));
                worst.fetch_max(until.elapsed().as_micros() as u64, Relaxed);
            }
        });
        Self { worst_us, leave }
    }

    fn worst(&self) -> Duration {
        Duration::from_micros(self.worst_us.load(Relaxed))
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.leave.store(true, Relaxed);
    }
}

/// A port whose queue is full, so that connections to it hang; and what keeps it so.
fn full_listener() -> (u16, (TcpListener, Vec<TcpStream>)) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).expect("a number")).expect("listen");
    let address = listener.local_addr().expect("its number");
    let more = || TcpStream::connect_timeout(&address, Duration::from_millis(100));
    let queue = std::iter::from_fn(|| more().ok()).take(64).collect();
    (address.port(), (listener, queue))
}

const KINDS: [&str; 7] = ["look-up", "open", "read", "discard", "peek", "store", "give up"];

/// Asks one thing with a deadline; returns the deadline.
fn ask(store: &dyn Readable<Vec<u8>>, kind: usize, patience: Duration) -> Instant {
    let until = Instant::now() + patience;
    match KINDS[kind] {
        "look-up" => drop(store.lookup(&[1, 2, 3, 4, 5].map(key), until)),
        "open" => {
            if store.open(1, &key(1), &mut [0; 4096], until).is_ok() {
                store.close(1);
            }
        }
        "read" => drop(store.read(0, 0, 1000, until)),
        "discard" => chunks::with_caller(store, |caller| caller.discard(0, chunks::WHY, until)),
        "peek" => drop(store.peek(&key(1), &mut [0; 4096], until)),
        _ => {
            store.begin_put(0, &key(1), None, until).expect("a free seat");
            let put = store.put_block(0, 0, &[1; 1000]);
            match KINDS[kind] {
                "store" if put.is_ok() => drop(store.commit_put(0, 1, b"m")),
                _ => store.abort_put(0),
            }
        }
    }
    until
}

#[test]
fn nobody_is_answered_later_than_the_deadline_whatever_the_server_does() {
    let seed = std::env::var("KVLANE_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7_u64);
    println!("seed {seed}");
    let mut random = seed;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let (nobody, _queue) = full_listener();
    for (number, mood) in MOODS.into_iter().enumerate() {
        let server = Server::start(nobody);
        let url = format!("redis://:pw@127.0.0.1:{}?nodes=4&stall-ms=400&seed={seed}", server.port);
        let mut worst = [Duration::ZERO; KINDS.len()];
        let witness = Witness::start();
        for round in 0..ROUNDS {
            for (kind, worst) in worst.iter_mut().enumerate() {
                server.mood.store(0, Relaxed);
                let store = store::open::<Vec<u8>>(&url, &limits()).expect("it behaves");
                store.open(0, &key(1), &mut [0; 4096], soon()).expect("it is there");
                server.mood.store(number, Relaxed);
                let until = ask(&*store, kind, Duration::from_millis(20 + next(150) * (round % 2) + next(30)));
                *worst = (*worst).max(until.elapsed());
                server.mood.store(0, Relaxed);
                store.close(0);
            }
        }
        let late: Vec<_> = KINDS.iter().zip(worst).map(|(kind, late)| format!("{kind} {late:.1?}")).collect();
        println!("{mood:?}: {} (sleepers of this machine: {:.1?})", late.join(", "), witness.worst());
        for (kind, late) in KINDS.iter().zip(worst) {
            let ours = late.saturating_sub(witness.worst());
            assert!(ours <= LATE_MOST, "{mood:?}: {kind} was answered {late:?} after its deadline (seed {seed})");
        }
        server.leave.store(true, Relaxed);
    }
}

#[test]
fn a_server_that_refuses_is_not_waited_for() {
    let server = Server::start(0);
    let store = store::open::<Vec<u8>>(&format!("redis://127.0.0.1:{}", server.port), &limits()).expect("it behaves");
    for mood in ["NOAUTH Authentication required.", "NOPERM this user has no permissions to run it"] {
        let number = MOODS.iter().position(|other| *other == Mood::Says(mood)).expect("in the list");
        server.mood.store(number, Relaxed);
        let asked = Instant::now();
        let denied = store.lookup(&[key(1), key(2)], asked + Duration::from_secs(60));
        assert!(matches!(denied, Err(StoreError::Denied { .. })), "{mood}: {denied:?}");
        assert!(asked.elapsed() < Duration::from_secs(20), "it waited out its deadline: {:?}", asked.elapsed());
        server.mood.store(0, Relaxed);
        let back = Instant::now() + Duration::from_secs(30);
        while store.lookup(&[key(1)], soon()) != Ok(1) {
            assert!(Instant::now() < back, "it does not come back");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    server.leave.store(true, Relaxed);
}
