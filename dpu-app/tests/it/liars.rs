//! Hosts that break the rules or die: each loses its own session, is told why, and nobody else notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crate::dying::dying_host;
use crate::rig::*;
use doca::{Access, Device, Export, Mapping, Selector};
use host_ctl::{Arrangement, Memory, Route};
use mailbox::attach::{
    ATTACH_MESSAGE_MAX, Commit, Farewell, Hello, Message, PAGE_REGION, Reason, Refuse, Region, layout_parts,
};
use mailbox::channel::{ChannelError, HostChannel};
use mailbox::{
    ARGUMENTS_AT, COMMANDS_AT, Chunk as Named, HOST_LINE_AT, HostRing, LINE_BYTES, Operation, PAGE_BYTES, Page,
    Request, Status, VERSION,
};

const CHUNKS: usize = 4;

/// What a card said on the channel.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Welcome,
    Refuse(Refuse),
    Bye(Farewell),
    Doorbell,
    /// It hung up without a word.
    Closed,
    /// Nothing in time.
    Nothing,
}

impl Said {
    fn reason(&self) -> Option<Reason> {
        match self {
            Self::Refuse(refuse) => refuse.reason(),
            _ => None,
        }
    }
}

/// A host that speaks the words itself and can get each of them wrong.
struct Liar {
    channel: Box<dyn HostChannel>,
    ring: HostRing,
    /// Another mapping of the page, to scribble on.
    page: Page,
    memory: Memory,
    exports: Vec<Export>,
    device: Device,
}

/// What is wrong with an introduction.
#[derive(Default)]
struct Lies {
    generation: Option<u64>,
    /// Shown as the page.
    page: Option<Arc<Mapping>>,
    blob: Option<Vec<u8>>,
    client: Option<&'static str>,
    region_blob: Option<Vec<u8>>,
    bases: Option<u16>,
}

impl Liar {
    fn meet(card: &Card) -> Self {
        let page = Page::create(now()).unwrap();
        Self {
            channel: line(&card.raw),
            page: page.share().unwrap(),
            ring: HostRing::new(page),
            memory: empty(Arrangement::Vllm, geometry(), CHUNKS),
            exports: Vec::new(),
            device: Device::open(&Selector::First).unwrap(),
        }
    }

    /// Attached in order: the lies come later.
    fn attached(card: &Card) -> Self {
        let mut liar = Self::meet(card);
        assert_eq!(liar.introduce(&Lies::default()), Said::Welcome);
        liar
    }

    fn say(&mut self, message: &Message<'_>) {
        let mut bytes = [0; ATTACH_MESSAGE_MAX];
        let bytes = message.encode(&mut bytes).unwrap();
        match self.channel.send(bytes) {
            // It may have hung up on us already; what it said then is read later.
            Ok(()) | Err(ChannelError::Closed) => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn export(&mut self, mapping: Arc<Mapping>) -> Vec<u8> {
        let export = Export::new(&self.device, mapping, Access::ReadWrite).unwrap();
        let blob = export.blob().to_vec();
        self.exports.push(export);
        blob
    }

    fn introduce(&mut self, lies: &Lies) -> Said {
        let regions = self.memory.regions.clone();
        self.say(&Message::Hello(Hello {
            generation: lies.generation.unwrap_or(self.page.generation()),
            pid: std::process::id(),
            region_count: regions.len() as u16,
            geometry: Some(geometry()),
            recipe: Some("lossless".parse().unwrap()),
            client: lies.client.unwrap_or("liar"),
            namespace: None,
        }));
        let honest = Arc::new(Mapping::of_file(self.page.file(), PAGE_BYTES, Access::ReadWrite).unwrap());
        let page = lies.page.clone().unwrap_or(honest);
        let (base, bytes) = (page.address(), page.bytes() as u64);
        let blob = self.export(page);
        let export = lies.blob.as_deref().unwrap_or(&blob);
        self.say(&Message::Region(Region { index: PAGE_REGION, writable: true, base, bytes, export }));
        for (index, region) in regions.iter().enumerate() {
            let blob = self.export(Arc::clone(&region.mapping));
            let (base, bytes) = (region.mapping.address(), region.mapping.bytes() as u64);
            let export = lies.region_blob.as_deref().unwrap_or(&blob);
            self.say(&Message::Region(Region { index: index as u16, writable: true, base, bytes, export }));
        }
        let (form, bases) = (self.memory.form, self.memory.bases.clone());
        for part in layout_parts(&form, &bases) {
            self.say(&Message::Layout(part));
        }
        let base_count = lies.bases.unwrap_or(bases.len() as u16);
        self.say(&Message::Commit(Commit { region_count: regions.len() as u16, base_count, further_sections: 0 }));
        self.hear()
    }

    /// The next word of the card.
    fn hear(&mut self) -> Said {
        let until = Instant::now() + Duration::from_secs(10);
        let mut bytes = [0; ATTACH_MESSAGE_MAX];
        while Instant::now() < until {
            match self.channel.receive(&mut bytes) {
                Ok(None) => thread::sleep(Duration::from_millis(1)),
                Err(_) => {
                    // A reset hides what was said before it; the next look finds it.
                    return match self.channel.receive(&mut bytes) {
                        Ok(Some(count)) => read(&bytes[..count]),
                        _ => Said::Closed,
                    };
                }
                Ok(Some(count)) => return read(&bytes[..count]),
            }
        }
        Said::Nothing
    }

    /// The card's last word: doorbells do not count.
    fn hear_last(&mut self) -> Said {
        loop {
            match self.hear() {
                Said::Doorbell => {}
                said => return said,
            }
        }
    }

    /// Waits until the card sleeps on this session, so that it looks at nothing until it is rung.
    fn let_it_sleep(&mut self) {
        thread::sleep(Duration::from_millis(30));
        assert_eq!(self.ring.look(), Ok(mailbox::Doorbell::Ring), "the card is asleep");
    }

    fn ring(&mut self) {
        self.say(&Message::Doorbell);
    }

    /// Writes a command slot, sealed as an honest host would, after `edit`.
    fn post_slot(&mut self, slot: usize, sequence: u32, edit: impl FnOnce(&mut [u8; LINE_BYTES])) {
        let mut line = [0; LINE_BYTES];
        line[8..16].copy_from_slice(&self.page.generation().to_le_bytes());
        line[16..24].copy_from_slice(&77_u64.to_le_bytes());
        line[24..26].copy_from_slice(&Operation::Ping.code().to_le_bytes());
        line[48..52].copy_from_slice(&u32::MAX.to_le_bytes());
        edit(&mut line);
        line[0..4].copy_from_slice(&sequence.to_le_bytes());
        let mut crc = crc32fast::Hasher::new();
        crc.update(&line[..4]);
        crc.update(&line[8..]);
        line[4..8].copy_from_slice(&crc.finalize().to_le_bytes());
        self.page.write(COMMANDS_AT + slot * LINE_BYTES, &line);
    }

    fn completion(&mut self) -> mailbox::Completion {
        let until = Instant::now() + WAIT;
        loop {
            if let Some(completion) = self.ring.poll().unwrap() {
                return completion;
            }
            assert!(Instant::now() < until, "no completion");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn read(bytes: &[u8]) -> Said {
    match Message::decode(bytes).unwrap() {
        Message::Welcome(_) => Said::Welcome,
        Message::Refuse(refuse) => Said::Refuse(refuse),
        Message::Bye(farewell) => Said::Bye(farewell),
        Message::Doorbell => Said::Doorbell,
        other => panic!("{other:?}"),
    }
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
}

/// Runs `lies` beside a host that fetches all the time, and expects that it never notices: once by each way to a card.
fn beside_an_honest_host(mut lies: impl FnMut(&Card, &[block::ChunkKey])) -> [Card; 2] {
    [0, 1].map(|way| {
        let mut card = Card::start();
        card.raw = card.routes()[way].clone();
        lie(&card, &mut lies);
        card
    })
}

fn lie(card: &Card, lies: &mut dyn FnMut(&Card, &[block::ChunkKey])) {
    let (keys, content) = stored(card, "lossless", 1, CHUNKS);
    let (over, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let honest = scope.spawn(|| {
            let target = empty(Arrangement::HeadMajor, geometry(), CHUNKS);
            let mut host = card.attach("lossless", target.clone());
            while !over.load(Relaxed) {
                for region in &target.regions {
                    region.mapping.write(0, &vec![0; region.mapping.bytes()]);
                }
                let fetched = fetch(&mut host, &keys, &linear(CHUNKS));
                assert_eq!((fetched.status, fetched.chunks_done), (Status::Ok, CHUNKS), "the honest host notices");
                assert!(logical(&target, &linear(CHUNKS)) == content);
                rounds.fetch_add(1, Relaxed);
            }
            host.close(WAIT).unwrap();
        });
        // Also when a lie is not answered as it should be and the test fails here.
        let _over = Flag(&over);
        lies(card, &keys);
        let before = rounds.load(Relaxed);
        let until = Instant::now() + WAIT;
        while rounds.load(Relaxed) < before + 3 && !honest.is_finished() && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
        over.store(true, Relaxed);
        honest.join().unwrap();
        assert!(rounds.load(Relaxed) >= 3, "the honest host was served");
    });
    card.await_empty();
}

/// Goes up when it is dropped.
struct Flag<'a>(&'a AtomicBool);

impl Drop for Flag<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn garbage_in_a_command_slot_ends_the_session() {
    let seed = 0x6a_2ba6e;
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    let cards = beside_an_honest_host(|card, _| {
        for round in 0..6 {
            let mut liar = Liar::attached(card);
            let noise: Vec<u8> = (0..LINE_BYTES).map(|_| random.next() as u8).collect();
            liar.page.write(COMMANDS_AT, &noise);
            liar.ring();
            assert_eq!(liar.hear_last(), Said::Bye(Farewell::PeerError), "round {round}");
        }
    });
    cards.iter().for_each(|card| assert_eq!(card.counter("sessions_lost"), 6));
}

#[test]
fn a_runaway_sequence_ends_the_session() {
    beside_an_honest_host(|card, _| {
        for sequence in [2, 1000, u32::MAX] {
            let mut liar = Liar::attached(card);
            liar.post_slot(0, sequence, |_| ());
            liar.ring();
            assert_eq!(liar.hear_last(), Said::Bye(Farewell::PeerError), "sequence {sequence}");
        }
    });
}

#[test]
fn words_that_no_honest_host_writes_end_the_session() {
    fn put<const N: usize>(at: usize, word: [u8; N]) -> impl Fn(&mut [u8; LINE_BYTES]) {
        move |line| line[at..at + N].copy_from_slice(&word)
    }
    let fetch_of = |line: &mut [u8; LINE_BYTES], bytes: u32, chunks: u32, pages: u32| {
        put(24, Operation::Fetch.code().to_le_bytes())(line);
        put(32, bytes.to_le_bytes())(line);
        put(36, chunks.to_le_bytes())(line);
        put(40, pages.to_le_bytes())(line);
    };
    type Edit<'a> = (&'a str, Box<dyn Fn(&mut [u8; LINE_BYTES]) + 'a>);
    let edits: Vec<Edit<'_>> = vec![
        ("argument bytes", Box::new(|line| fetch_of(line, 64, 1, 4))),
        ("argument bytes past the area", Box::new(|line| fetch_of(line, 1 << 31, 1, 4))),
        ("chunks past the area", Box::new(|line| fetch_of(line, 128, u32::MAX, 4))),
        ("pages past a record", Box::new(|line| fetch_of(line, 128, 1, 1 << 20))),
        ("no chunks", Box::new(|line| fetch_of(line, 0, 0, 0))),
        ("area", Box::new(put(28, 32_u16.to_le_bytes()))),
        ("request 0", Box::new(put(16, 0_u64.to_le_bytes()))),
        ("a section of a session that has one", Box::new(put(30, 1_u16.to_le_bytes()))),
        (
            "a section of a look-up",
            Box::new(|line| {
                put(24, Operation::Lookup.code().to_le_bytes())(line);
                put(30, 1_u16.to_le_bytes())(line);
            }),
        ),
        (
            "a window of no chunks",
            Box::new(|line| {
                put(24, Operation::Lookup.code().to_le_bytes())(line);
                put(26, 4_u16.to_le_bytes())(line);
            }),
        ),
        ("generation", Box::new(put(8, 1_u64.to_le_bytes()))),
        ("tokens", Box::new(put(44, u32::MAX.to_le_bytes()))),
        ("target", Box::new(put(56, 5_u64.to_le_bytes()))),
    ];
    beside_an_honest_host(|card, _| {
        for (what, edit) in &edits {
            let mut liar = Liar::attached(card);
            liar.post_slot(0, 1, edit);
            liar.ring();
            assert_eq!(liar.hear_last(), Said::Bye(Farewell::PeerError), "{what}");
        }
        // The same area twice, while the first is in flight, and the same number.
        let mut liar = Liar::attached(card);
        liar.let_it_sleep();
        liar.post_slot(0, 1, |_| ());
        liar.post_slot(1, 2, |line| line[16] = 78);
        liar.ring();
        assert_eq!(liar.hear_last(), Said::Bye(Farewell::PeerError), "area in use");
    });
}

#[test]
fn what_a_newer_host_may_ask_is_unsupported_and_the_session_lives() {
    beside_an_honest_host(|card, keys| {
        let mut liar = Liar::attached(card);
        let post = |liar: &mut Liar, request, chunks: &[Named<'_>]| {
            let _ = liar.ring.post(&request, chunks).unwrap();
            liar.ring();
            liar.completion().status
        };
        assert_eq!(post(&mut liar, Request::new(1, Operation::Unknown(999)), &[]), Status::Unsupported);
        // Pages outside the layout: the request's fault, not the session's.
        let pages = [0, 1, 2, 1_000_000];
        let chunk = [Named::new(&keys[0], &pages)];
        assert_eq!(post(&mut liar, Request::new(2, Operation::Fetch), &chunk), Status::Malformed);
        assert_eq!(
            post(&mut liar, Request::new(3, Operation::Store), &[Named::new(&block::ChunkKey::new([9; 32]), &pages)]),
            Status::Malformed
        );
        // Too few pages a chunk.
        assert_eq!(
            post(&mut liar, Request::new(4, Operation::Fetch), &[Named::new(&keys[0], &[0])]),
            Status::Malformed
        );
        assert_eq!(post(&mut liar, Request::cancel(5, 12345), &[]), Status::NotFound);
        let pages = [3, 2, 1, 0];
        assert_eq!(post(&mut liar, Request::new(6, Operation::Fetch), &[Named::new(&keys[0], &pages)]), Status::Ok);
        liar.say(&Message::Bye(Farewell::Done));
        assert_eq!(liar.hear_last(), Said::Closed);
    });
}

#[test]
fn the_chunks_before_a_bad_page_number_are_in_place() {
    let cards = beside_an_honest_host(|card, keys| {
        let mut liar = Liar::attached(card);
        let pages: Vec<u32> = linear(CHUNKS);
        let bad = [8, 9, 10, u32::MAX];
        let chunks: Vec<_> = (0..CHUNKS)
            .map(|index| match index {
                2 => Named::new(&keys[2], &bad),
                _ => Named::new(&keys[index], &pages[index * PAGES_PER_CHUNK..][..PAGES_PER_CHUNK]),
            })
            .collect();
        let _ = liar.ring.post(&Request::new(1, Operation::Fetch), &chunks).unwrap();
        liar.ring();
        let completion = liar.completion();
        assert_eq!((completion.status, completion.chunks_done), (Status::Malformed, 2));
        liar.say(&Message::Bye(Farewell::Done));
        assert_eq!(liar.hear_last(), Said::Closed);
    });
    cards.iter().for_each(|card| assert_eq!(card.counter("sessions_lost"), 0));
}

#[test]
fn a_record_that_fails_its_crc_ends_the_session() {
    beside_an_honest_host(|card, keys| {
        for byte in [0, 4, 8, 16, 24, 56, 60, 64, 100] {
            let mut liar = Liar::attached(card);
            liar.let_it_sleep();
            let pages: Vec<u32> = linear(CHUNKS);
            let chunks: Vec<_> =
                keys.iter().zip(pages.chunks(PAGES_PER_CHUNK)).map(|(key, pages)| Named::new(key, pages)).collect();
            assert_eq!(liar.ring.post(&Request::new(1, Operation::Fetch), &chunks), Ok(mailbox::Doorbell::Quiet));
            let at = ARGUMENTS_AT + 128 + byte / 8 * 8;
            let mut word = [0; 8];
            liar.page.read(mailbox::Span { offset: at, bytes: 8 }, &mut word);
            word[byte % 8] ^= 0x40;
            liar.page.write(at, &word);
            liar.ring();
            assert_eq!(liar.hear_last(), Said::Bye(Farewell::PeerError), "byte {byte}");
        }
    });
}

#[test]
fn a_host_line_that_lies_ends_the_session() {
    beside_an_honest_host(|card, _| {
        let mut liar = Liar::attached(card);
        liar.let_it_sleep();
        // Both faces: else the other one is whole and believed.
        liar.page.write(HOST_LINE_AT, &[0xee; 2 * LINE_BYTES]);
        liar.post_slot(0, 1, |_| ());
        liar.ring();
        assert_eq!(liar.hear_last(), Said::Bye(Farewell::PeerError));
    });
}

#[test]
fn a_page_that_is_not_the_session_s_is_refused() {
    beside_an_honest_host(|card, _| {
        let mut liar = Liar::meet(card);
        let lies = Lies { generation: Some(liar.page.generation() + 1), ..Lies::default() };
        assert_eq!(liar.introduce(&lies).reason(), Some(Reason::Page), "another generation");

        let mut liar = Liar::meet(card);
        let zeros = Arc::new(Mapping::anonymous(PAGE_BYTES).unwrap());
        assert_eq!(
            liar.introduce(&Lies { page: Some(zeros), ..Lies::default() }).reason(),
            Some(Reason::Page),
            "zeros"
        );

        let mut liar = Liar::meet(card);
        liar.page.write(8, &2_u32.to_le_bytes());
        assert_eq!(liar.introduce(&Lies::default()).reason(), Some(Reason::Page), "another version of the page");
    });
}

#[test]
fn an_export_that_cannot_be_used_is_refused() {
    beside_an_honest_host(|card, _| {
        let mut liar = Liar::meet(card);
        let lies = Lies { blob: Some(vec![0x5a; 200]), ..Lies::default() };
        assert_eq!(liar.introduce(&lies).reason(), Some(Reason::Region), "noise for a page");

        let mut liar = Liar::meet(card);
        let region = Arc::clone(&liar.memory.regions[0].mapping);
        let blob = liar.export(region);
        let lies = Lies { blob: Some(blob), ..Lies::default() };
        assert_eq!(liar.introduce(&lies).reason(), Some(Reason::Region), "a region for a page");

        let mut liar = Liar::meet(card);
        let lies = Lies { region_blob: Some(vec![1; 64]), ..Lies::default() };
        assert_eq!(liar.introduce(&lies).reason(), Some(Reason::Region), "noise for a region");

        let mut liar = Liar::meet(card);
        let small = Arc::new(Mapping::anonymous(4096).unwrap());
        let blob = liar.export(small);
        let lies = Lies { region_blob: Some(blob), ..Lies::default() };
        assert_eq!(liar.introduce(&lies).reason(), Some(Reason::Region), "a region smaller than it says");

        let mut liar = Liar::meet(card);
        let lies = Lies { bases: Some(3), ..Lies::default() };
        assert!(matches!(liar.introduce(&lies), Said::Refuse(_)), "fewer bases than it says");
    });
}

#[test]
fn an_older_and_a_newer_host_are_told_both_versions() {
    beside_an_honest_host(|card, _| {
        for theirs in [VERSION - 1, VERSION + 1, u32::MAX] {
            let mut liar = Liar::meet(card);
            let hello = Hello {
                generation: 1,
                pid: 1,
                region_count: 0,
                geometry: None,
                recipe: None,
                client: "old",
                namespace: None,
            };
            let mut bytes = [0; ATTACH_MESSAGE_MAX];
            let mut bytes = Message::Hello(hello).encode(&mut bytes).unwrap().to_vec();
            bytes[8..12].copy_from_slice(&theirs.to_le_bytes());
            let mut crc = crc32fast::Hasher::new();
            crc.update(&bytes[..12]);
            crc.update(&bytes[16..]);
            bytes[12..16].copy_from_slice(&crc.finalize().to_le_bytes());
            liar.channel.send(&bytes).unwrap();
            let Said::Refuse(refuse) = liar.hear() else { panic!("no refusal") };
            assert_eq!(refuse.reason(), Some(Reason::Version));
            assert_eq!((refuse.ours, refuse.theirs), (VERSION.into(), theirs.into()));
        }
    });
}

#[test]
fn words_out_of_turn_after_the_attach_end_the_session() {
    beside_an_honest_host(|card, _| {
        let mut liar = Liar::attached(card);
        liar.say(&Message::Commit(Commit { region_count: 0, base_count: 0, further_sections: 0 }));
        assert_eq!(liar.hear_last(), Said::Bye(Farewell::PeerError));
        let mut liar = Liar::attached(card);
        liar.channel.send(b"noise that is no message").unwrap();
        assert_eq!(liar.hear_last(), Said::Bye(Farewell::PeerError));
    });
}

#[test]
fn a_host_that_is_killed_in_mid_fetch_leaves_nothing_behind() {
    let cards = beside_an_honest_host(|card, _| {
        card.store.read_delay_us.store(1_000, Relaxed);
        let way = match &card.raw {
            Route::Comch { name } => name.as_ref(),
            Route::Socket(path) => path.as_os_str(),
        };
        for round in 0..6_u64 {
            let mut child = dying_host(way, CHUNKS);
            thread::sleep(Duration::from_millis(5 + round * 3));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        card.store.read_delay_us.store(0, Relaxed);
    });
    cards.iter().for_each(|card| assert!(card.counter("sessions_lost") >= 6));
}

#[test]
fn a_host_that_hangs_up_in_mid_fetch_leaves_nothing_behind() {
    // Its memory goes too: in one process, so that the card's window into it is what is left.
    beside_an_honest_host(|card, keys| {
        card.store.read_delay_us.store(1_000, Relaxed);
        for round in 0..10_u64 {
            let mut liar = Liar::attached(card);
            let pages: Vec<u32> = linear(CHUNKS);
            let chunks: Vec<_> =
                keys.iter().zip(pages.chunks(PAGES_PER_CHUNK)).map(|(key, pages)| Named::new(key, pages)).collect();
            let _ = liar.ring.post(&Request::new(1, Operation::Fetch), &chunks).unwrap();
            liar.ring();
            thread::sleep(Duration::from_millis(round));
            // The socket first, as a process that ends does it; then the exports.
            drop(liar);
        }
        card.store.read_delay_us.store(0, Relaxed);
    });
}
