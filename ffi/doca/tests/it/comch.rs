//! Comch over the emulator: messages stay whole, whoever babbles or does not listen is alone with it, nobody is lost.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use doca::comch::{Client, ComchLimits, Connection, Error, RECEIVED_MAX, ReceiveError, SENDING_MAX, SendError, Server};
use doca::{Device, ProgressEngine, Representor, Selector};
use doca_emulator::{Config as Emulator, Representors, Role, configure_thread};

const BYTES: usize = 4000;
const WAIT: Duration = Duration::from_secs(20);

fn name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("wrapper-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed))
}

struct Card {
    name: String,
    engine: ProgressEngine,
    server: Server,
}

fn server(engine: &ProgressEngine, name: &str, index: usize, connections: usize) -> Result<Server, Error> {
    let device = Device::open(&Selector::First)?;
    let info = &Representor::list(&device)?[index];
    let representor = Representor::open(&device, info)?;
    Server::start(engine, representor, name, ComchLimits { connections, message_bytes: BYTES })
}

impl Card {
    fn new(connections: usize) -> Self {
        let (name, engine) = (name(), ProgressEngine::new().unwrap());
        let server = server(&engine, &name, 0, connections).unwrap();
        Self { name, engine, server }
    }

    fn connect(&self) -> Client {
        connect(&self.name).unwrap()
    }

    /// Progresses until something is there.
    fn until<T>(&mut self, mut look: impl FnMut(&mut Server) -> Option<T>) -> T {
        let until = Instant::now() + WAIT;
        loop {
            if let Some(found) = look(&mut self.server) {
                return found;
            }
            if !self.engine.progress() {
                thread::yield_now();
            }
            assert!(Instant::now() < until, "nothing comes");
        }
    }

    fn accept(&mut self) -> Connection {
        self.until(Server::accept)
    }

    fn hear(&mut self, connection: &mut Connection) -> Result<Vec<u8>, ReceiveError> {
        let mut out = [0; BYTES];
        self.until(|_| connection.receive(&mut out).transpose()).map(|bytes| out[..bytes].to_vec())
    }
}

fn connect(name: &str) -> Result<Client, Error> {
    Client::connect(&Device::open(&Selector::First)?, name, BYTES, WAIT)
}

fn hear(client: &mut Client) -> Result<Vec<u8>, ReceiveError> {
    let mut out = [0; BYTES];
    loop {
        if let Some(bytes) = client.receive(&mut out)? {
            return Ok(out[..bytes].to_vec());
        }
        assert!(client.wait(WAIT).unwrap(), "nothing comes");
    }
}

#[test]
fn messages_go_both_ways_whole_and_in_order() {
    let mut card = Card::new(2);
    let mut client = card.connect();
    let mut peer = card.accept();
    assert_eq!(peer.receive(&mut [0; BYTES]), Ok(None), "does not block");
    for bytes in [1, 17, BYTES] {
        let message: Vec<u8> = (0..bytes).map(|at| at as u8).collect();
        client.send(&message).unwrap();
        assert_eq!(card.hear(&mut peer), Ok(message.clone()));
        peer.send(&message).unwrap();
        assert_eq!(hear(&mut client), Ok(message));
    }
    assert_eq!(client.send(&[]), Err(SendError::Length));
    assert_eq!(client.send(&[0; BYTES + 1]), Err(SendError::Length));
    assert_eq!(peer.send(&[0; BYTES + 1]), Err(SendError::Length));
    assert!(!client.wait(Duration::from_millis(5)).unwrap(), "and then it is quiet");
}

#[test]
fn a_start_that_cannot_be_says_why() {
    let card = Card::new(1);
    let taken = server(&card.engine, &card.name, 0, 1).unwrap_err();
    assert!(matches!(&taken, Error::NameTaken { name, .. } if *name == card.name), "{taken}");
    let nobody = connect(&name()).unwrap_err();
    assert!(matches!(nobody, Error::NobodyThere { .. }), "{nobody}");
    for wrong in ["", "zero\0inside", &"n".repeat(200)] {
        assert!(matches!(connect(wrong), Err(Error::Name { .. })), "{wrong:?}");
        assert!(matches!(server(&card.engine, wrong, 0, 1), Err(Error::Name { .. })), "{wrong:?}");
    }
    let device = Device::open(&Selector::First).unwrap();
    let long = Client::connect(&device, &card.name, 1 << 20, WAIT).unwrap_err();
    assert!(matches!(long, Error::Size { needed: 1_048_576, .. }), "{long}");
    let many = server(&card.engine, &name(), 0, 1 << 20).unwrap_err();
    assert!(matches!(many, Error::Size { .. }), "{many}");

    configure_thread(Emulator { role: Role::Card, ..Emulator::default() });
    assert!(matches!(connect(&card.name), Err(Error::Unsupported { .. })));
    configure_thread(Emulator { role: Role::Host, ..Emulator::default() });
    assert!(Representor::list(&Device::open(&Selector::First).unwrap()).is_err(), "a host has no representors");
}

#[test]
fn last_words_arrive_and_then_the_end() {
    let mut card = Card::new(2);
    let mut client = card.connect();
    let mut peer = card.accept();
    for round in 0..3 {
        peer.send(&[round]).unwrap();
    }
    drop(peer);
    // Hanging up is the server's business, in accept.
    let said = card.until(|server| {
        assert!(server.accept().is_none());
        let mut out = [0; BYTES];
        match client.receive(&mut out) {
            Ok(Some(bytes)) => Some(Ok(out[..bytes].to_vec())),
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        }
    });
    assert_eq!(said, Ok(vec![0]));
    assert_eq!((hear(&mut client), hear(&mut client)), (Ok(vec![1]), Ok(vec![2])));
    card.until(|server| {
        assert!(server.accept().is_none());
        client.receive(&mut [0; BYTES]).err()
    });
    assert_eq!(client.send(b"anyone?"), Err(SendError::Closed));

    // The other way round, and its place is free again.
    for _ in 0..5 {
        let mut client = card.connect();
        let mut peer = card.accept();
        client.send(b"bye").unwrap();
        drop(client);
        assert_eq!(card.hear(&mut peer), Ok(b"bye".to_vec()));
        assert_eq!(card.hear(&mut peer), Err(ReceiveError::Closed));
        assert_eq!(peer.send(b"anyone?"), Err(SendError::Closed));
    }
}

#[test]
fn who_does_not_listen_is_back_pressure_for_itself() {
    let mut card = Card::new(2);
    let (_deaf, mut client) = (card.connect(), card.connect());
    let (mut deaf, mut peer) = (card.accept(), card.accept());
    let mut sent = 0;
    let full = card.until(|_| deaf.send(&[7; BYTES]).inspect(|()| sent += 1).err());
    assert_eq!(full, SendError::Full);
    while card.engine.progress() {}
    while deaf.send(&[7; BYTES]).is_ok() {
        sent += 1;
        while card.engine.progress() {}
    }
    assert_eq!(sent, RECEIVED_MAX + SENDING_MAX, "its receive queue, and what is on its way");
    for round in 0..100 {
        client.send(&[round]).unwrap();
        assert_eq!(card.hear(&mut peer), Ok(vec![round]));
        peer.send(&[round]).unwrap();
        while card.engine.progress() {}
        assert_eq!(hear(&mut client), Ok(vec![round]));
    }
    // Its last words never come through; the place is free all the same, after a while.
    drop(deaf);
    let until = Instant::now() + Duration::from_millis(1100);
    card.until(|server| {
        assert!(server.accept().is_none());
        (Instant::now() > until).then_some(())
    });
    let mut other = card.connect();
    let mut peer = card.accept();
    other.send(b"here").unwrap();
    assert_eq!(card.hear(&mut peer), Ok(b"here".to_vec()));
}

#[test]
fn who_sends_what_nobody_takes_is_cut_off_alone() {
    let mut card = Card::new(2);
    let (mut babbler, mut client) = (card.connect(), card.connect());
    let (mut babbling, mut peer) = (card.accept(), card.accept());
    let sending = thread::spawn(move || {
        let mut sent = 0;
        while sent < 10 * RECEIVED_MAX {
            match babbler.send(&[1; 100]) {
                Ok(()) => sent += 1,
                Err(SendError::Full) => {
                    babbler.wait_for_room(WAIT).unwrap();
                }
                Err(error) => panic!("{error:?}"),
            }
        }
        babbler
    });
    // The card progresses and does not look.
    card.until(|_| sending.is_finished().then_some(()));
    let _babbler = sending.join().unwrap();
    while card.engine.progress() {}
    for _ in 0..RECEIVED_MAX {
        assert_eq!(card.hear(&mut babbling), Ok(vec![1; 100]), "what was taken in is whole");
    }
    assert_eq!(card.hear(&mut babbling), Err(ReceiveError::Babble));
    client.send(b"unharmed").unwrap();
    assert_eq!(card.hear(&mut peer), Ok(b"unharmed".to_vec()));
}

#[test]
fn more_peers_than_places_are_hung_up_on() {
    let mut card = Card::new(2);
    let mut clients: Vec<_> = (0..5).map(|_| card.connect()).collect();
    let _peers = [card.accept(), card.accept()];
    let left = |clients: &mut Vec<Client>| {
        clients.retain_mut(|client| client.receive(&mut [0; BYTES]).is_ok());
        clients.len()
    };
    card.until(|server| {
        assert!(server.accept().is_none());
        (left(&mut clients) == 2).then_some(())
    });
    clients[1].send(b"still here").unwrap();
}

#[test]
fn one_name_serves_several_functions() {
    // The card stands for three functions of the host; a host process sees its own.
    configure_thread(Emulator { rep: Representors::Count(3), ..Emulator::default() });
    let (name, engine) = (name(), ProgressEngine::new().unwrap());
    let device = Device::open(&Selector::First).unwrap();
    let there = Representor::list(&device).unwrap();
    assert_eq!(there.iter().map(|info| info.is_physical).collect::<Vec<_>>(), [true, false, false]);
    let mut servers: Vec<_> = [0, 2].into_iter().map(|index| server(&engine, &name, index, 2).unwrap()).collect();
    for (index, info) in there.iter().enumerate() {
        configure_thread(format!("pci={}", info.pci_address).parse::<Emulator>().unwrap());
        let client = connect(&name);
        if index == 1 {
            assert!(matches!(client, Err(Error::NobodyThere { .. })), "nobody serves {info}");
            continue;
        }
        let mut client = client.unwrap();
        client.send(info.pci_address.as_bytes()).unwrap();
        let server = &mut servers[index / 2];
        assert_eq!(server.representor(), info);
        let mut card = Card { name: name.clone(), engine: engine.clone(), server: servers.remove(index / 2) };
        let mut peer = card.accept();
        assert_eq!(card.hear(&mut peer), Ok(info.pci_address.clone().into_bytes()));
        servers.insert(index / 2, card.server);
    }
}

#[test]
fn no_wake_up_is_lost() {
    // Both sides sleep before each message: one that got lost would hang here.
    const ROUNDS: u32 = 3000;
    let mut card = Card::new(1);
    let mut client = card.connect();
    let mut peer = card.accept();
    thread::scope(|scope| {
        // A client moves between threads.
        scope.spawn(move || {
            for round in 0..ROUNDS {
                client.send(&round.to_le_bytes()).unwrap();
                assert_eq!(hear(&mut client), Ok(round.to_le_bytes().to_vec()));
            }
        });
        let mut out = [0; BYTES];
        for round in 0..ROUNDS {
            let bytes = loop {
                while card.engine.progress() {}
                if let Some(bytes) = peer.receive(&mut out).unwrap() {
                    break bytes;
                }
                card.engine.arm().unwrap();
                let mut fds = [nix::poll::PollFd::new(card.engine.fd(), nix::poll::PollFlags::POLLIN)];
                assert_eq!(nix::poll::poll(&mut fds, 20_000_u16), Ok(1), "round {round}");
                card.engine.disarm().unwrap();
            };
            assert_eq!(out[..bytes], round.to_le_bytes());
            peer.send(&round.to_le_bytes()).unwrap();
        }
    });
}

#[test]
fn a_device_without_room_gets_the_messages_later_and_in_order() {
    configure_thread(Emulator { seed: Some(7), again: 0.97, ..Emulator::default() });
    let mut card = Card::new(2);
    let mut client = card.connect();
    let mut peer = card.accept();
    for round in 0..100_u8 {
        client.send(&[round]).unwrap();
        let heard = card.until(|_| {
            // The client has to be there for its message, too.
            assert!(!client.wait(Duration::from_millis(1)).unwrap());
            let mut out = [0; 8];
            peer.receive(&mut out).unwrap().map(|bytes| out[..bytes].to_vec())
        });
        assert_eq!(heard, vec![round]);
        peer.send(&[round]).unwrap();
        let said = card.until(|server| {
            // News as long as a message waits for the device.
            assert!(server.take_news() || client.wait(WAIT).unwrap());
            assert!(server.accept().is_none());
            let mut out = [0; 8];
            client.receive(&mut out).unwrap().map(|bytes| out[..bytes].to_vec())
        });
        assert_eq!(said, vec![round]);
    }
    peer.send(b"bye").unwrap();
    drop(peer);
    drop(card);
    assert_eq!(hear(&mut client), Ok(b"bye".to_vec()));
    assert_eq!(hear(&mut client), Err(ReceiveError::Closed));
}
