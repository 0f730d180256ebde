//! The receiving side against every order of replies, cut in every way, and against the bytes as the oracle.

use proptest::prelude::*;

use super::*;

/// A stream that comes in pieces.
struct Pieces {
    stream: Vec<u8>,
    at: usize,
    pieces: Vec<usize>,
    turn: usize,
}

impl Read for Pieces {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.read_vectored(&mut [IoSliceMut::new(out)])
    }

    fn read_vectored(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let piece = self.pieces[self.turn % self.pieces.len()];
        self.turn += 1;
        let end = self.stream.len().min(self.at + piece);
        let bytes = (&self.stream[self.at..end]).read_vectored(slices)?;
        self.at += bytes;
        Ok(bytes)
    }
}

/// One reply, and what was expected of it.
#[derive(Clone, Debug)]
enum Case {
    Block(usize),
    /// Nobody wants it any more when it comes.
    Orphan(usize),
    Odd {
        expected: usize,
        found: usize,
    },
    Nil(usize),
    Error(usize),
    /// A small question and its answer.
    Small(Vec<u8>),
}

fn case() -> impl Strategy<Value = Case> {
    let bytes = prop_oneof![1..40_usize, 900..1100_usize, 5000..9000_usize];
    prop_oneof![
        6 => bytes.clone().prop_map(Case::Block),
        1 => bytes.clone().prop_map(Case::Orphan),
        1 => (bytes.clone(), 0..9000_usize).prop_map(|(expected, found)| Case::Odd { expected, found }),
        1 => bytes.clone().prop_map(Case::Nil),
        1 => bytes.prop_map(Case::Error),
        1 => prop::collection::vec(any::<u8>(), 0..300).prop_map(Case::Small),
    ]
}

fn payload(index: usize, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i * 7 + index * 31 + i / 251) as u8).collect()
}

fn bulk(bytes: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

fn due(index: usize, wants: Wants<Vec<u8>>) -> Due<Vec<u8>> {
    let owner = Recipient::Errand { place: index as u16, generation: 0, item: 0 };
    Due { owner, since: Instant::now(), wants }
}

fn block(bytes: usize) -> Wants<Vec<u8>> {
    // Longer than the block, as a slot is.
    Wants::Block { bytes, memory: Some(vec![0; bytes + 10]) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn every_reply_reaches_its_owner_whole_however_it_is_cut(
        cases in prop::collection::vec(case(), 1..24),
        pieces in prop::collection::vec(prop_oneof![1..4_usize, 1..100_usize, 1..20_000_usize], 1..8),
        spill in prop_oneof![SCRATCH_BYTES..=SCRATCH_BYTES, 20_000..40_000_usize],
    ) {
        let mut inflow = Inflow::new(cases.len());
        let mut stream = Vec::new();
        for (index, case) in cases.iter().enumerate() {
            match case {
                Case::Block(bytes) | Case::Orphan(bytes) => {
                    inflow.expect(due(index, block(*bytes)));
                    stream.extend(bulk(&payload(index, *bytes)));
                }
                Case::Odd { expected, found } => {
                    inflow.expect(due(index, block(*expected)));
                    stream.extend(bulk(&payload(index, *found)));
                }
                Case::Nil(bytes) => {
                    inflow.expect(due(index, block(*bytes)));
                    stream.extend(if index % 2 == 0 { &b"$-1\r\n"[..] } else { b"_\r\n" });
                }
                Case::Error(bytes) => {
                    inflow.expect(due(index, block(*bytes)));
                    stream.extend(b"-MOVED 7 127.0.0.1:7000\r\n");
                }
                Case::Small(bytes) => {
                    inflow.expect(due(index, Wants::Reply));
                    stream.extend(bulk(bytes));
                }
            }
        }
        for (index, _) in cases.iter().enumerate().filter(|(_, case)| matches!(case, Case::Orphan(_))) {
            prop_assert!(inflow.orphan(index as u16).is_some());
        }
        let mut source = Pieces { stream, at: 0, pieces, turn: 0 };
        let mut spill = vec![0; spill];
        let mut turn = 0;
        while inflow.len() > 0 {
            inflow.receive(&mut source, &mut spill, &mut |due, got| {
                let index = turn;
                turn += 1;
                let memory = match due.wants {
                    Wants::Block { memory, .. } => memory,
                    Wants::Reply => None,
                };
                match &cases[index] {
                    Case::Block(bytes) => {
                        assert_eq!(got, Got::Block);
                        let memory = memory.expect("nobody took it");
                        assert!(memory[..*bytes] == payload(index, *bytes), "reply {index}");
                        assert_eq!(memory[*bytes..], [0; 10], "no byte behind the block");
                    }
                    Case::Orphan(bytes) => {
                        assert_eq!((got, due.owner), (Got::Odd(*bytes), Recipient::Nobody));
                    }
                    Case::Odd { expected, found } if expected == found => assert_eq!(got, Got::Block),
                    Case::Odd { found, .. } => assert_eq!(got, Got::Odd(*found)),
                    Case::Nil(_) => assert_eq!(got, Got::Reply(Reply::Null)),
                    Case::Error(_) => assert_eq!(got, Got::Reply(Reply::Error(b"MOVED 7 127.0.0.1:7000"))),
                    Case::Small(bytes) => assert_eq!(got, Got::Reply(Reply::Bulk(bytes))),
                }
            }).expect("a good stream");
        }
        prop_assert_eq!((turn, inflow.owed(), source.at), (cases.len(), 0, source.stream.len()));
        if cases.iter().all(|case| matches!(case, Case::Block(_))) {
            prop_assert_eq!(inflow.take_copied(), 0, "what comes as expected is not copied");
        }
    }

    #[test]
    fn blocks_alone_are_never_copied(
        lengths in prop::collection::vec(1..9000_usize, 1..24),
        pieces in prop::collection::vec(1..20_000_usize, 1..8),
    ) {
        let mut inflow = Inflow::new(lengths.len());
        let mut stream = Vec::new();
        for (index, bytes) in lengths.iter().enumerate() {
            inflow.expect(due(index, block(*bytes)));
            stream.extend(bulk(&payload(index, *bytes)));
        }
        let mut source = Pieces { stream, at: 0, pieces, turn: 0 };
        let mut spill = vec![0; 64 << 10];
        while inflow.len() > 0 {
            inflow.receive(&mut source, &mut spill, &mut |_, got| assert_eq!(got, Got::Block)).expect("a good stream");
        }
        prop_assert_eq!(inflow.take_copied(), 0);
    }

    #[test]
    fn garbage_is_an_error_and_no_panic(stream in prop::collection::vec(any::<u8>(), 1..200), bytes in 1..100_usize) {
        let mut inflow = Inflow::new(4);
        for index in 0..4 {
            inflow.expect(due(index, if index % 2 == 0 { block(bytes) } else { Wants::Reply }));
        }
        let mut source = Pieces { stream, at: 0, pieces: vec![7], turn: 0 };
        let mut spill = vec![0; SCRATCH_BYTES];
        while inflow.receive(&mut source, &mut spill, &mut |_, _| ()).is_ok() {}
    }
}

#[test]
fn memory_taken_in_mid_payload_gets_no_byte_more_and_the_stream_goes_on() {
    let mut inflow = Inflow::new(3);
    let mut stream = Vec::new();
    for index in 0..3 {
        inflow.expect(due(index, block(1000)));
        stream.extend(bulk(&payload(index, 1000)));
    }
    let mut source = Pieces { stream, at: 0, pieces: vec![500], turn: 0 };
    let mut spill = vec![0; SCRATCH_BYTES];
    inflow.receive(&mut source, &mut spill, &mut |_, _| panic!("nothing is whole")).expect("the first half");
    let memory = inflow.orphan(0).expect("it was there");
    assert_eq!(memory[..493], payload(0, 1000)[..493]);
    let mut found = Vec::new();
    while inflow.len() > 0 {
        inflow
            .receive(&mut source, &mut spill, &mut |due, got| found.push((due.owner, got == Got::Block)))
            .expect("good");
    }
    let owner = |place| Recipient::Errand { place, generation: 0, item: 0 };
    assert_eq!(found, [(Recipient::Nobody, false), (owner(1), true), (owner(2), true)]);
    assert_eq!(memory[493..], [0; 517]);
    assert_eq!(inflow.take_copied(), 0);
}

#[test]
fn an_unasked_reply_and_an_endless_one_lose_the_connection() {
    let mut inflow = Inflow::<Vec<u8>>::new(1);
    let mut source = Pieces { stream: b"+hello\r\n".to_vec(), at: 0, pieces: vec![100], turn: 0 };
    let error = inflow.receive(&mut source, &mut [0; SCRATCH_BYTES], &mut |_, _| ()).expect_err("nobody asked");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    inflow.expect(due(0, Wants::Reply));
    let stream = [b"$10000000\r\n", &[b'x'; 20_000][..]].concat();
    let mut source = Pieces { stream, at: 0, pieces: vec![5000], turn: 0 };
    let error = loop {
        if let Err(error) = inflow.receive(&mut source, &mut [0; SCRATCH_BYTES], &mut |_, _| ()) {
            break error;
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

#[test]
fn an_answer_that_is_longer_than_any_of_ours_is_passed_over() {
    let mut inflow = Inflow::<Vec<u8>>::new(2);
    let owner = |place| Recipient::Errand { place, generation: 0, item: 0 };
    inflow.expect(due(0, Wants::Reply));
    inflow.expect(due(1, Wants::Reply));
    let stream = [b"$100000\r\n", &[b'x'; 100_000][..], b"\r\n:1\r\n"].concat();
    let mut source = Pieces { stream, at: 0, pieces: vec![5000, 3], turn: 0 };
    let mut found = Vec::new();
    while found.len() < 2 {
        let done = &mut |due: Due<Vec<u8>>, got: Got<'_>| found.push((due.owner, got == Got::Odd(100_000)));
        inflow.receive(&mut source, &mut [0; SCRATCH_BYTES], done).expect("good");
    }
    assert_eq!(found, [(owner(0), true), (owner(1), false)]);
}
