//! Peers that lie. Whatever they write, the other end answers with an error and never panics, and believes nothing that
//! is out of range.

use block::ChunkKey;
use proptest::prelude::*;

use crate::ring_tests::FakeCard;
use crate::words::{CommandWords, CompletionWords, seal};
use crate::*;

const GENERATION: u64 = 7;

fn pair() -> (HostRing, FakeCard) {
    let host = HostRing::new(Page::create(GENERATION).unwrap()).without_grace();
    let card = FakeCard::attach(&host);
    (host, card)
}

fn fetch(host: &mut HostRing, id: u64) {
    let key = ChunkKey::new([id as u8; 32]);
    let chunks = [Chunk::new(&key, &[1, 2, 3]); 3];
    let _ = host.post(&Request::new(id, Operation::Fetch), &chunks).unwrap();
}

fn honest_command() -> CommandWords {
    CommandWords {
        sequence: 0,
        crc: 0,
        generation: 0,
        request: 9,
        opcode: Operation::Fetch.code(),
        flags: 0,
        area: 0,
        section: 0,
        argument_bytes: 2 * 128,
        chunk_count: 2,
        pages_per_chunk: 3,
        token_start: 0,
        token_end: 1,
        deadline_us: 0,
        target: 0,
    }
}

/// The card's verdict on a well sealed command of a liar.
fn verdict(words: CommandWords) -> Result<Command, PeerError> {
    let (_host, mut card) = pair();
    let mut line = words.encode();
    seal(&mut line, 1, GENERATION);
    card.page.write(COMMANDS_AT, &line);
    card.accept().map(|(commands, _)| commands[0])
}

#[test]
fn every_lie_in_a_command_ends_the_session() {
    type Change = fn(&mut CommandWords);
    let lies: [(&str, Change); 14] = [
        ("a section that the session does not have", |words| words.section = 3),
        ("area", |words| words.area = COMMANDS as u16),
        ("request 0", |words| words.request = 0),
        ("argument bytes past the area", |words| words.argument_bytes = ARGUMENT_BYTES as u32 + 1),
        ("argument bytes of fewer records", |words| words.argument_bytes = 128),
        ("pages past the limit", |words| words.pages_per_chunk = PAGES_PER_CHUNK_MAX as u32 + 1),
        ("pages that overflow", |words| words.pages_per_chunk = u32::MAX),
        ("chunks past the area", |words| words.chunk_count = 513),
        ("chunks that overflow", |words| words.chunk_count = u32::MAX),
        ("a fetch of no chunks", |words| (words.chunk_count, words.argument_bytes) = (0, 0)),
        ("a fetch of no pages", |words| (words.pages_per_chunk, words.argument_bytes) = (0, 128)),
        ("a target of a fetch", |words| words.target = 1),
        ("chunks of a ping", |words| words.opcode = Operation::Ping.code()),
        ("no tokens", |words| words.token_end = 0),
    ];
    assert!(verdict(honest_command()).is_ok());
    for (name, lie) in lies {
        let mut words = honest_command();
        lie(&mut words);
        assert!(verdict(words).is_err(), "{name} was believed");
    }
}

#[test]
fn lies_about_sections_and_windows_end_the_session() {
    let lookup = CommandWords {
        opcode: Operation::Lookup.code(),
        flags: 4,
        target: 2,
        argument_bytes: 2 * 64,
        pages_per_chunk: 0,
        section: 2,
        ..honest_command()
    };
    let found = verdict(lookup).unwrap();
    assert_eq!((found.trailing(), found.section, found.is_known()), (2, 2, true));
    let ping = CommandWords { opcode: Operation::Ping.code(), chunk_count: 0, argument_bytes: 0, ..lookup };
    let ping = CommandWords { flags: 0, target: 0, section: 0, ..ping };
    assert!(verdict(ping).is_ok());
    for (name, lie) in [
        ("a section of a ping", CommandWords { section: 1, ..ping }),
        ("a section past the session's", CommandWords { section: 3, ..lookup }),
        ("a section of what nobody knows", CommandWords { opcode: 999, section: 3, ..lookup }),
        ("a window of nothing", CommandWords { target: 0, ..lookup }),
        ("a window past any request", CommandWords { target: CHUNKS_PER_REQUEST_MAX as u64 + 1, ..lookup }),
        ("a window that overflows", CommandWords { target: 1 << 32 | 1, ..lookup }),
        ("a window without its flag", CommandWords { flags: 0, ..lookup }),
    ] {
        assert!(verdict(lie).is_err(), "{name} was believed");
    }
}

#[test]
fn what_a_newer_host_asks_is_unsupported_and_no_lie() {
    let unknown = verdict(CommandWords { opcode: 999, target: 5, token_end: 0, ..honest_command() }).unwrap();
    assert_eq!(unknown.operation, Operation::Unknown(999));
    assert!(!unknown.is_known());
    for flags in [1, 4, 5, 8] {
        let flagged = verdict(CommandWords { flags, ..honest_command() }).unwrap();
        assert!(!flagged.is_known());
    }
}

#[test]
fn live_requests_and_areas_are_not_taken_twice() {
    let two = |second: CommandWords| {
        let (_host, mut card) = pair();
        for (index, words) in [honest_command(), second].into_iter().enumerate() {
            let mut line = words.encode();
            seal(&mut line, index as u32 + 1, GENERATION);
            card.page.write(COMMANDS_AT + index * LINE_BYTES, &line);
        }
        let mut out = heapless::Vec::new();
        let error = card.ring.accept(&card.copy(card.ring.command_window()), &mut out).unwrap_err();
        assert_eq!(out.len(), 1, "the honest one was taken");
        error
    };
    assert_eq!(two(CommandWords { area: 1, ..honest_command() }), PeerError::Request { request: 9 });
    assert_eq!(two(CommandWords { request: 10, ..honest_command() }), PeerError::AreaInUse { area: 0 });
}

#[test]
fn runaway_cursor_is_an_error_not_a_panic() {
    let (mut host, mut card) = pair();
    let mut line = honest_command().encode();
    seal(&mut line, 1 + COMMANDS as u32, GENERATION);
    card.page.write(COMMANDS_AT, &line);
    let what = "command slot";
    assert_eq!(card.accept().unwrap_err(), PeerError::Sequence { what, expected: 1, found: 33 });

    let mut line = [0; LINE_BYTES];
    seal(&mut line, 1 + COMPLETIONS as u32, GENERATION);
    card.page.write(COMPLETIONS_AT, &line);
    let what = "completion slot";
    assert_eq!(host.poll(), Err(PeerError::Sequence { what, expected: 1, found: 33 }));
}

#[test]
fn a_line_of_an_older_page_is_not_believed() {
    let (mut host, mut card) = pair();
    let mut line = honest_command().encode();
    seal(&mut line, 1, GENERATION - 1);
    card.page.write(COMMANDS_AT, &line);
    card.page.write(COMPLETIONS_AT, &line);
    assert!(matches!(card.accept(), Err(PeerError::Generation { found: 6, .. })));
    assert!(matches!(host.poll(), Err(PeerError::Generation { found: 6, .. })));

    // A whole page of an older host, shown to a card that was promised a newer one.
    let newer = CardRing::new(GENERATION + 1);
    let identity = card.copy(newer.identity_span());
    assert!(matches!(newer.check_identity(&identity), Err(PeerError::Generation { expected: 8, found: 7, .. })));
}

#[test]
fn a_torn_slot_is_forgiven_and_then_not() {
    let (mut host, mut card) = pair();
    fetch(&mut host, 1);
    let whole = card.copy(Span { offset: COMMANDS_AT, bytes: LINE_BYTES });
    let mut torn = whole.clone();
    torn[40] ^= 0xff;
    card.page.write(COMMANDS_AT, &torn);
    for _ in 0..TORN_MAX {
        assert_eq!(card.accept(), Ok((vec![], true)));
    }
    card.page.write(COMMANDS_AT, &whole);
    let (commands, _) = card.accept().unwrap();
    assert_eq!(commands[0].request, 1, "a late rest of the write is in time");

    fetch(&mut host, 2);
    card.page.write(COMMANDS_AT + LINE_BYTES + 40, &[0xff; 8]);
    let mut verdicts = (0..=TORN_MAX).map(|_| card.accept());
    assert!(verdicts.by_ref().take(TORN_MAX as usize).all(|verdict| verdict.is_ok()));
    assert_eq!(verdicts.next().unwrap(), Err(PeerError::Torn { what: "command slot", copies: TORN_MAX + 1 }));

    // The host forgives as often, and (without the grace of this test) for at least a second.
    card.complete(&commands[0], Answer::new(1, Status::Ok), &[]);
    card.page.write(COMPLETIONS_AT + 48, &[0xff; 8]);
    for _ in 0..TORN_MAX {
        assert_eq!(host.poll(), Ok(None));
    }
    assert_eq!(host.poll(), Err(PeerError::Torn { what: "completion slot", copies: TORN_MAX + 1 }));
}

#[test]
fn every_flipped_bit_of_a_slot_is_seen() {
    let (mut host, mut card) = pair();
    fetch(&mut host, 1);
    let whole = card.copy(Span { offset: COMMANDS_AT, bytes: LINE_BYTES });
    for bit in 0..LINE_BYTES * 8 {
        if cfg!(miri) && bit % 37 != 0 {
            continue;
        }
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        card.page.write(COMMANDS_AT, &flipped);
        let mut fresh = FakeCard { ring: CardRing::new(GENERATION), page: card.page.share().unwrap() };
        match fresh.accept() {
            Ok((commands, _)) => assert!(commands.is_empty(), "bit {bit} was believed"),
            Err(error) => panic!("bit {bit} looks torn, and is forgiven at first: {error}"),
        }
    }
    card.page.write(COMMANDS_AT, &whole);

    let (commands, _) = card.accept().unwrap();
    card.complete(&commands[0], Answer { chunks_done: 2, ..Answer::new(1, Status::Ok) }, &[]);
    let whole = card.copy(Span { offset: COMPLETIONS_AT, bytes: LINE_BYTES });
    for bit in 0..LINE_BYTES * 8 {
        if cfg!(miri) && bit % 37 != 0 {
            continue;
        }
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        card.page.write(COMPLETIONS_AT, &flipped);
        match host.poll() {
            Ok(None) | Err(PeerError::Torn { .. }) => {}
            other => panic!("bit {bit}: {other:?}"),
        }
    }
}

#[test]
fn every_lie_in_a_completion_ends_the_session() {
    let honest = CompletionWords {
        sequence: 0,
        crc: 0,
        generation: 0,
        request: 1,
        status: Status::Ok.code(),
        area: 0,
        chunks_done: 3,
        command_head: 1,
        answer_bytes: 0,
        wire_bytes: 0,
        restored_bytes: 0,
        elapsed_us: 0,
        answer_crc: 0,
    };
    let verdict = |words: CompletionWords| {
        let (mut host, card) = pair();
        fetch(&mut host, 1);
        let mut line = words.encode();
        seal(&mut line, 1, GENERATION);
        card.page.write(COMPLETIONS_AT, &line);
        host.poll()
    };
    assert_eq!(verdict(honest).unwrap().unwrap().chunks_done, 3);
    let lies = [
        CompletionWords { request: 2, ..honest },
        CompletionWords { request: 0, ..honest },
        CompletionWords { area: 1, ..honest },
        CompletionWords { area: 9999, ..honest },
        CompletionWords { status: 0, ..honest },
        CompletionWords { status: 99, ..honest },
        CompletionWords { chunks_done: 4, ..honest },
        CompletionWords { command_head: 0, ..honest },
        CompletionWords { command_head: 2, ..honest },
        CompletionWords { answer_bytes: ARGUMENT_BYTES as u32 + 1, ..honest },
    ];
    for lie in lies {
        assert!(verdict(lie).is_err(), "{lie:?} was believed");
    }
}

#[test]
fn a_completion_told_twice_is_an_error() {
    let (mut host, mut card) = pair();
    fetch(&mut host, 1);
    let command = card.accept().unwrap().0[0];
    card.complete(&command, Answer::new(1, Status::Ok), &[]);
    assert!(host.poll().unwrap().is_some());
    let mut line: Line = card.copy(Span { offset: COMPLETIONS_AT, bytes: LINE_BYTES }).try_into().unwrap();
    seal(&mut line, 2, GENERATION);
    card.page.write(COMPLETIONS_AT + LINE_BYTES, &line);
    assert_eq!(host.poll(), Err(PeerError::Unasked { request: 1, area: 0 }));
}

#[test]
fn a_card_state_that_does_not_exist_is_an_error() {
    let (mut host, card) = pair();
    let (_, line) = crate::line::LineWriter::new(CARD_LINE_AT, GENERATION).write(false, 0, 3);
    card.page.write(CARD_LINE_AT, &line);
    card.page.write(CARD_LINE_AT + LINE_BYTES, &line);
    assert!(matches!(host.look(), Err(PeerError::Range { what: "card state", .. })));
}

#[test]
fn a_record_changed_after_the_post_is_an_error() {
    let (mut host, mut card) = pair();
    fetch(&mut host, 1);
    let command = card.accept().unwrap().0[0];
    assert_eq!(card.chunks(&command).unwrap().len(), 3);
    card.page.write(ARGUMENTS_AT + 128 + 64, &[9; 8]);
    assert_eq!(card.chunks(&command), Err(PeerError::Record { index: 1 }));
}

fn cases(native: u32) -> ProptestConfig {
    let cases = if cfg!(miri) { 3 } else { native };
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn what_is_believed_of_a_sealed_command_is_in_range(
        line in any::<[[u8; 32]; 2]>(),
        known in any::<bool>(),
        small in any::<bool>(),
    ) {
        let mut line: Line = line.concat().try_into().unwrap();
        if known {
            (line[24], line[25]) = (line[24] % 9, 0);
            line[26..28].fill(0);
        }
        if small {
            line[28..32].fill(0);
            line[33..36].fill(0);
            line[37..40].fill(0);
            line[41..44].fill(0);
            let bytes = u16::from(line[36]) * 128 % 4096;
            line[32..34].copy_from_slice(&bytes.to_le_bytes());
        }
        seal(&mut line, 1, GENERATION);
        let mut ring = CardRing::new(GENERATION);
        let mut window = [0; COMMAND_WINDOW * LINE_BYTES];
        window[..LINE_BYTES].copy_from_slice(&line);
        let mut out = heapless::Vec::new();
        if ring.accept(&window, &mut out).is_ok() {
            let command = out[0];
            if command.is_known() {
                let mut first = 0;
                while let Some(span) = ring.record_window(&command, first) {
                    prop_assert!(span.bytes <= RECORD_WINDOW_BYTES);
                    let garbage = vec![0xa5; span.bytes];
                    for record in ring.records(&command, first, &garbage).unwrap() {
                        prop_assert!(record.is_err());
                    }
                    first += (span.bytes / command.record_bytes()) as u32;
                }
                prop_assert_eq!(first, command.chunk_count);
            }
            let (span, _) = ring.complete(&Answer::new(command.request, Status::Unsupported));
            prop_assert_eq!(span.offset, COMPLETIONS_AT);
        }
    }

    #[test]
    fn garbage_is_never_believed_and_never_panics(
        window in prop::collection::vec(any::<u8>(), COMMAND_WINDOW * LINE_BYTES),
        faces in prop::collection::vec(any::<u8>(), 2 * LINE_BYTES),
    ) {
        let (mut host, mut card) = pair();
        fetch(&mut host, 1);
        let mut out = heapless::Vec::new();
        let _ = CardRing::new(GENERATION).accept(&window, &mut out);
        prop_assert!(out.is_empty());
        prop_assert!(!matches!(card.ring.read_host_line(&faces), Ok(Some(_))));
        card.page.write(CARD_LINE_AT, &faces);
        card.page.write(COMPLETIONS_AT, &window);
        prop_assert!(host.look().is_err());
        prop_assert!(!matches!(host.poll(), Ok(Some(_))));
    }
}
