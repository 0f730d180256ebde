//! Both ends of one page against an oracle, under random operations; and two threads that sleep.

use std::collections::{HashMap, VecDeque};

use block::{ChunkKey, Importance};
use proptest::prelude::*;

use crate::*;

/// A card that copies as a DMA engine would: through its own mapping of the page.
pub(crate) struct FakeCard {
    pub(crate) ring: CardRing,
    pub(crate) page: Page,
}

impl FakeCard {
    pub(crate) fn attach(host: &HostRing) -> FakeCard {
        let page = host.page().share().unwrap();
        let ring = CardRing::new(page.generation()).with_sections(3);
        let mut card = FakeCard { ring, page };
        card.ring.check_identity(&card.copy(card.ring.identity_span())).unwrap();
        card.say(false);
        card
    }

    pub(crate) fn copy(&self, span: Span) -> Vec<u8> {
        let mut bytes = vec![0; span.bytes];
        self.page.read(span, &mut bytes);
        bytes
    }

    pub(crate) fn say(&mut self, asleep: bool) {
        let (span, line) = self.ring.line(asleep);
        self.page.write(span.offset, &line);
    }

    pub(crate) fn accept(&mut self) -> Result<(Vec<Command>, bool), PeerError> {
        let mut out = heapless::Vec::new();
        let progress = self.ring.accept(&self.copy(self.ring.command_window()), &mut out)?;
        assert_eq!(progress.commands, out.len());
        Ok((out.to_vec(), progress.again))
    }

    pub(crate) fn chunks(&self, command: &Command) -> Result<Vec<(ChunkKey, Vec<u32>)>, PeerError> {
        let mut chunks = Vec::new();
        while let Some(span) = self.ring.record_window(command, chunks.len() as u32) {
            assert!(span.bytes <= RECORD_WINDOW_BYTES);
            for record in self.ring.records(command, chunks.len() as u32, &self.copy(span))? {
                let record = record?;
                assert_eq!(record.index as usize, chunks.len());
                chunks.push((record.key, record.pages.iter().collect()));
            }
        }
        Ok(chunks)
    }

    /// Writes text and completion, then looks whether the host wants a doorbell.
    pub(crate) fn complete(&mut self, command: &Command, mut answer: Answer, text: &[u8]) -> bool {
        if !text.is_empty() {
            let span = self.ring.answer_span(command, text.len());
            self.page.write(span.offset, text);
            answer.answer_bytes = text.len() as u32;
            answer.answer_crc = CardRing::answer_crc(text);
        }
        let (span, line) = self.ring.complete(&answer);
        self.page.write(span.offset, &line);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        loop {
            if let Some(line) = self.ring.read_host_line(&self.copy(self.ring.host_line_span())).unwrap() {
                return line.ring;
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Post { operation: Operation, chunks: usize, pages: usize, deadline_us: u32, tokens: Tokens },
    Accept,
    Complete { which: usize, status: Status, text: usize },
    Poll,
    HostSleep,
    HostWake,
    CardSleep,
    CardWake,
    Drain,
    Resume,
}

fn step() -> impl Strategy<Value = Step> {
    let operation = (1..=9_u16).prop_map(Operation::from_code);
    let tokens = (0..100_u32, 1..100_u32).prop_map(|(start, count)| Tokens { start, end: start + count });
    prop_oneof![
        6 => (operation, 1..40_usize, 1..40_usize, any::<u32>(), tokens).prop_map(
            |(operation, chunks, pages, deadline_us, tokens)| {
                Step::Post { operation, chunks, pages, deadline_us, tokens }
            }
        ),
        4 => Just(Step::Accept),
        5 => (any::<usize>(), 1..=14_u16, 0..200_usize).prop_map(|(which, status, text)| Step::Complete {
            which, status: Status::from_code(status).unwrap(), text
        }),
        5 => Just(Step::Poll),
        1 => Just(Step::HostSleep),
        1 => Just(Step::HostWake),
        1 => Just(Step::CardSleep),
        1 => Just(Step::CardWake),
        1 => Just(Step::Drain),
        1 => Just(Step::Resume),
    ]
}

type Named = (Request, Vec<(ChunkKey, Vec<u32>)>);

/// Model of both ends, in plain collections.
#[derive(Default)]
struct Oracle {
    next: u64,
    posted: VecDeque<Named>,
    live: Vec<(Command, Named)>,
    finished: VecDeque<(Request, Answer, Vec<u8>, u32)>,
    in_flight: HashMap<u64, ()>,
    host_asleep: bool,
    host_rung: bool,
    card_asleep: bool,
    card_rung: bool,
    draining: bool,
}

struct Pair {
    host: HostRing,
    card: FakeCard,
    oracle: Oracle,
}

impl Pair {
    fn new(sequence: u32) -> Pair {
        let host = HostRing::new(Page::create(42).unwrap());
        let mut card = FakeCard::attach(&host);
        let host = if sequence > 1 { host.starting_at(sequence) } else { host };
        if sequence > 1 {
            card.ring = CardRing::new(42).with_sections(3).starting_at(sequence);
            card.say(false);
        }
        Pair { host, card, oracle: Oracle::default() }
    }

    fn take(&mut self, step: &Step) {
        match step.clone() {
            Step::Post { operation, chunks, pages, deadline_us, tokens } => {
                self.post(operation, chunks, pages, deadline_us, tokens);
            }
            Step::Accept => self.accept(),
            Step::Complete { which, status, text } => self.complete(which, status, text),
            Step::Poll => self.poll(),
            Step::HostSleep => self.host_sleep(),
            Step::HostWake => {
                self.host.wake();
                self.oracle.host_asleep = false;
            }
            Step::CardSleep => self.card_sleep(),
            Step::CardWake => {
                self.card.say(false);
                self.oracle.card_asleep = false;
            }
            step @ (Step::Drain | Step::Resume) => {
                self.oracle.draining = matches!(step, Step::Drain);
                if self.oracle.draining {
                    self.card.ring.drain()
                } else {
                    self.card.ring.resume()
                }
                self.card.say(self.oracle.card_asleep);
                // Saying it again while asleep is another sleep: it may be rung for again.
                self.oracle.card_rung = false;
            }
        }
        assert_eq!(self.host.outstanding(), self.oracle.in_flight.len());
        assert_eq!(self.card.ring.outstanding(), self.oracle.live.len());
    }

    fn post(&mut self, operation: Operation, chunks: usize, pages: usize, deadline_us: u32, tokens: Tokens) {
        let oracle = &mut self.oracle;
        oracle.next += 1;
        let rated = operation == Operation::Rate || (operation == Operation::Store && deadline_us % 2 == 1);
        let importance = Importance::from_word(if rated { 77 } else { 0 });
        let target = if operation == Operation::Cancel { oracle.next.max(2) - 1 } else { 0 };
        let section = if operation.takes_chunks() { (oracle.next % 3) as u16 } else { 0 };
        let trailing = if operation == Operation::Lookup { deadline_us % 5 } else { 0 };
        let request =
            Request { tokens, deadline_us, target, section, trailing, ..Request::new(oracle.next, operation) };
        let chunks = if operation.takes_chunks() { chunks.min(chunks_max(pages)) } else { 0 };
        let chunks: Vec<(ChunkKey, Vec<u32>)> = (0..chunks as u64)
            .map(|index| {
                let mut key = [0; 32];
                key[..8].copy_from_slice(&(oracle.next << 32 | index).to_le_bytes());
                (ChunkKey::new(key), (0..pages as u32).map(|page| page * 7 + index as u32).collect())
            })
            .collect();
        let borrowed: Vec<Chunk<'_>> = chunks.iter().map(|(key, pages)| Chunk { key, pages, importance }).collect();
        match self.host.post(&request, &borrowed) {
            Err(PostError::Full) => assert_eq!(oracle.in_flight.len(), COMMANDS),
            Err(error) => panic!("{error}"),
            Ok(doorbell) => {
                let due = oracle.card_asleep && !oracle.card_rung;
                assert_eq!(doorbell == Doorbell::Ring, due);
                oracle.card_rung |= due;
                oracle.in_flight.insert(request.id, ());
                oracle.posted.push_back((request, chunks));
                let state = if oracle.draining { CardState::Draining } else { CardState::Steady };
                assert_eq!(self.host.card_state(), state);
            }
        }
    }

    fn accept(&mut self) {
        let (commands, again) = self.card.accept().unwrap();
        for command in &commands {
            let (request, chunks) = self.oracle.posted.pop_front().expect("nothing was made up");
            assert_eq!(command.request, request.id);
            assert_eq!(command.operation, request.operation);
            assert_eq!(command.tokens, request.tokens);
            assert_eq!(command.deadline_us, request.deadline_us);
            let target = if request.trailing > 0 { request.trailing.into() } else { request.target };
            assert_eq!((command.target, command.section), (target, request.section));
            assert_eq!(command.trailing(), request.trailing);
            assert!(command.is_known());
            assert_eq!(self.card.chunks(command).unwrap(), chunks);
            self.oracle.live.push((*command, (request, chunks)));
        }
        assert!(again || self.oracle.posted.is_empty(), "a card that sleeps now would lose commands");
    }

    fn complete(&mut self, which: usize, status: Status, text: usize) {
        let oracle = &mut self.oracle;
        if oracle.live.is_empty() {
            return;
        }
        let (command, (request, chunks)) = oracle.live.swap_remove(which % oracle.live.len());
        let answer = Answer {
            chunks_done: (which % (chunks.len() + 1)) as u32,
            wire_bytes: which as u64,
            restored_bytes: which as u64 + 1,
            elapsed_us: text as u32,
            ..Answer::new(command.request, status)
        };
        let text: Vec<u8> = (0..text).map(|index| index as u8).collect();
        let rung = self.card.complete(&command, answer, &text);
        let due = oracle.host_asleep && !oracle.host_rung;
        assert_eq!(rung, due);
        oracle.host_rung |= due;
        oracle.finished.push_back((request, answer, text, chunks.len() as u32));
    }

    fn poll(&mut self) {
        let polled = self.host.poll().unwrap();
        let Some((request, answer, text, chunks)) = self.oracle.finished.pop_front() else {
            assert_eq!(polled, None);
            return;
        };
        let completion = polled.expect("a finished request is seen");
        assert_eq!(completion.request, request.id);
        assert_eq!(completion.operation, request.operation);
        assert_eq!(completion.status, answer.status);
        assert_eq!((completion.chunks_done, completion.chunks_asked), (answer.chunks_done, chunks));
        assert_eq!((completion.wire_bytes, completion.restored_bytes), (answer.wire_bytes, answer.restored_bytes));
        assert_eq!(completion.elapsed_us, answer.elapsed_us);
        let mut out = [0; 200];
        assert_eq!(self.host.answer(&completion, &mut out).unwrap(), text);
        self.oracle.in_flight.remove(&request.id);
    }

    fn host_sleep(&mut self) {
        let oracle = &mut self.oracle;
        match self.host.prepare_sleep() {
            Sleep::Sleep => {
                assert!(oracle.finished.is_empty(), "slept on a completion");
                oracle.host_asleep = true;
                oracle.host_rung = false;
            }
            Sleep::Work => {
                assert!(!oracle.finished.is_empty());
                oracle.host_asleep = false;
            }
        }
    }

    fn card_sleep(&mut self) {
        self.card.say(true);
        self.accept();
        self.oracle.card_asleep = true;
        self.oracle.card_rung = false;
    }

    fn finish(&mut self) {
        while !self.oracle.in_flight.is_empty() {
            self.accept();
            self.complete(0, Status::Ok, 0);
            self.poll();
        }
    }
}

fn cases(native: u32) -> ProptestConfig {
    // Under miri few cases, and no file of failures.
    let cases = if cfg!(miri) { 2 } else { native };
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn rings_do_what_plain_queues_do(
        steps in prop::collection::vec(step(), 1..if cfg!(miri) { 40 } else { 400 }),
        sequence in prop_oneof![Just(1), Just(u32::MAX - 5), Just(u32::MAX), Just(u32::MAX - 40)],
    ) {
        let mut pair = Pair::new(sequence);
        for step in &steps {
            pair.take(step);
        }
        pair.finish();
    }
}

#[test]
fn a_slow_request_does_not_hold_up_the_others() {
    let mut pair = Pair::new(1);
    pair.post(Operation::Store, 2, 16, 0, Tokens::ALL);
    pair.accept();
    let rounds = if cfg!(miri) { 40 } else { 1000 };
    for _ in 0..rounds {
        pair.post(Operation::Ping, 0, 0, 0, Tokens::ALL);
        pair.accept();
        pair.complete(1, Status::Ok, 10);
        pair.poll();
    }
    assert_eq!(pair.oracle.live.len(), 1, "the store is still running");
    pair.finish();
}

#[test]
fn counters_wrap_without_anyone_noticing() {
    let (before, rounds) = if cfg!(miri) { (5, 40) } else { (100, 200) };
    let mut pair = Pair::new(u32::MAX - before);
    for _ in 0..rounds {
        pair.post(Operation::Ping, 0, 0, 0, Tokens::ALL);
        pair.accept();
        pair.complete(0, Status::Ok, 0);
        pair.poll();
    }
}

#[test]
fn a_full_ring_is_back_pressure_and_a_bad_request_is_named() {
    let mut host = HostRing::new(Page::create(1).unwrap());
    let key = ChunkKey::new([1; 32]);
    let ping = |id| Request::new(id, Operation::Ping);
    for id in 1..=COMMANDS as u64 {
        assert_eq!(host.post(&ping(id), &[]), Ok(Doorbell::Quiet));
    }
    assert_eq!(host.post(&ping(99), &[]), Err(PostError::Full));

    let mut host = HostRing::new(Page::create(1).unwrap());
    let mut post = |request: Request, chunks: &[Chunk<'_>]| host.post(&request, chunks).unwrap_err();
    let (one, two) = (Chunk::new(&key, &[1]), Chunk::new(&key, &[1, 2]));
    let fetch = Request::new(5, Operation::Fetch);
    assert_eq!(post(ping(0), &[]), PostError::Id { id: 0 });
    assert_eq!(post(ping(1), &[one]), PostError::Chunks { operation: Operation::Ping, chunks: 1 });
    assert_eq!(post(fetch, &[]), PostError::Chunks { operation: Operation::Fetch, chunks: 0 });
    assert!(matches!(post(fetch, &[one, two]), PostError::Pages { chunk: 1, pages: 2, .. }));
    assert!(matches!(post(fetch, &[Chunk::new(&key, &[])]), PostError::Pages { chunk: 0, pages: 0, .. }));
    assert_eq!(post(fetch, &[two; 513]), PostError::TooMany { chunks: 513, limit: 512 });
    assert!(matches!(post(Request { tokens: Tokens { start: 4, end: 4 }, ..fetch }, &[one]), PostError::Field { .. }));
    assert!(matches!(post(Request::cancel(6, 0), &[]), PostError::Field { .. }));
    let rated = Chunk { importance: Importance::from_word(5), ..one };
    assert!(matches!(post(fetch, &[rated]), PostError::Field { .. }));
    let lookup = Request::new(7, Operation::Lookup);
    for (wrong, chunks) in [
        (Request { section: SECTIONS_MAX as u16, ..fetch }, &[one][..]),
        (Request { section: 1, ..ping(8) }, &[]),
        (Request { trailing: 1, ..fetch }, &[one]),
        (Request { trailing: CHUNKS_PER_REQUEST_MAX as u32 + 1, ..lookup }, &[one]),
    ] {
        assert!(matches!(post(wrong, chunks), PostError::Field { .. }), "{wrong:?}");
    }
    assert_eq!(host.outstanding(), 0);
}

#[test]
fn an_answer_is_readable_until_its_area_is_posted_again() {
    let mut host = HostRing::new(Page::create(1).unwrap());
    let mut card = FakeCard::attach(&host);
    let _ = host.post(&Request::new(1, Operation::Status), &[]).unwrap();
    let command = card.accept().unwrap().0[0];
    // The whole area; under miri, which takes half a minute for a checksum of that, the start of it.
    let bytes = if cfg!(miri) { 1000 } else { ARGUMENT_BYTES };
    let text = vec![b'x'; bytes];
    card.complete(&command, Answer::new(1, Status::Ok), &text);
    let completion = host.poll().unwrap().unwrap();
    let mut out = vec![0; bytes];
    assert_eq!(host.answer(&completion, &mut out), Ok(&text[..]));
    let room = AnswerError::Room { bytes, room: bytes - 1 };
    assert_eq!(host.answer(&completion, &mut out[1..]), Err(room));
    card.page.write(ARGUMENTS_AT, b"y");
    assert_eq!(host.answer(&completion, &mut out), Err(AnswerError::Checksum));
    for id in 2..=33 {
        let _ = host.post(&Request::new(id, Operation::Ping), &[]).unwrap();
    }
    assert_eq!(host.answer(&completion, &mut out), Err(AnswerError::Gone));
}

/// Two threads, each sleeping whenever it has nothing to do. A lost wake-up hangs; the bells have a time limit.
#[test]
fn two_sleepers_never_miss_each_other() {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    const LOST: Duration = Duration::from_secs(60);
    let requests: u64 = if cfg!(miri) { 40 } else { 20_000 };
    let mut host = HostRing::new(Page::create(5).unwrap());
    let mut card = FakeCard::attach(&host);
    let (ring_card, card_bell) = channel::<()>();
    let (ring_host, host_bell) = channel::<()>();

    let card_thread = std::thread::spawn(move || {
        let mut done = 0;
        while done < requests {
            let (commands, again) = card.accept().unwrap();
            for command in commands {
                if card.complete(&command, Answer::new(command.request, Status::Ok), &[]) {
                    ring_host.send(()).unwrap();
                }
                done += 1;
            }
            if again || done == requests {
                continue;
            }
            card.say(true);
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            let (commands, again) = card.accept().unwrap();
            if commands.is_empty() && !again {
                card_bell.recv_timeout(LOST).expect("the card was never woken");
            }
            card.say(false);
            for command in commands {
                if card.complete(&command, Answer::new(command.request, Status::Ok), &[]) {
                    ring_host.send(()).unwrap();
                }
                done += 1;
            }
        }
    });

    let (mut posted, mut polled) = (0, 0);
    while polled < requests {
        // One to three in flight, so that both sides run dry often.
        while posted < requests && posted - polled <= posted % 3 {
            posted += 1;
            if host.post(&Request::new(posted, Operation::Ping), &[]).unwrap() == Doorbell::Ring {
                // The card may have looked once more before it slept, and be through with all of them.
                let _ = ring_card.send(());
            }
        }
        while let Some(completion) = host.poll().unwrap() {
            assert_eq!(completion.status, Status::Ok);
            polled += 1;
        }
        if posted == polled {
            continue;
        }
        match host.prepare_sleep() {
            Sleep::Work => {}
            Sleep::Sleep => {
                host_bell.recv_timeout(LOST).expect("the host was never woken");
                host.wake();
            }
        }
    }
    card_thread.join().unwrap();
}
