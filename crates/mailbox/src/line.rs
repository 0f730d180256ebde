//! A side's own line: asleep or awake, and how far it has read.
//!
//! Each line has two faces of 64 bytes, written in turn. A writer that is stopped in the middle of one (a preempted
//! host, an emulator's memcpy) leaves the other whole, so a reader always finds the last state that was completely
//! said, and persistent nonsense on both faces is a liar's.

use crate::limits::{LINE_BYTES, TORN_MAX};
use crate::peer::PeerError;
use crate::words::{Line, SideWords, after, generation, is_whole, seal, sequence};

/// Both faces, as copied in one go.
pub(crate) const FACES_BYTES: usize = 2 * LINE_BYTES;

/// The writer's end.
#[derive(Debug)]
pub(crate) struct LineWriter {
    base: usize,
    generation: u64,
    sequence: u32,
    face: usize,
    /// Number of the last sleep.
    sleeps: u32,
}

impl LineWriter {
    pub(crate) fn new(base: usize, generation: u64) -> LineWriter {
        LineWriter { base, generation, sequence: 1, face: 0, sleeps: 0 }
    }

    /// The next face and where it goes.
    pub(crate) fn write(&mut self, asleep: bool, head: u32, state: u32) -> (usize, Line) {
        if asleep {
            self.sleeps = after(self.sleeps);
        }
        let asleep = if asleep { self.sleeps } else { 0 };
        let words = SideWords { sequence: 0, crc: 0, generation: 0, asleep, head, state, reserved: [0; 36] };
        let mut line = words.encode();
        seal(&mut line, self.sequence, self.generation);
        let offset = self.base + self.face * LINE_BYTES;
        self.sequence = after(self.sequence);
        self.face ^= 1;
        (offset, line)
    }
}

/// The reader's end.
#[derive(Debug)]
pub(crate) struct LineReader {
    what: &'static str,
    generation: u64,
    /// Sequence of the newest face believed; 0 before the first.
    last: u32,
    /// Sleep for which a doorbell was already called for.
    rung: u32,
    torn: u32,
}

impl LineReader {
    pub(crate) fn new(what: &'static str, generation: u64) -> LineReader {
        LineReader { what, generation, last: 0, rung: 0, torn: 0 }
    }

    /// The newest whole face. `None`: none is whole, or only one that is older than what was seen already (a writer
    /// overtook this copy); copy again. A line that was never written is awake.
    pub(crate) fn read(&mut self, faces: &[u8; FACES_BYTES]) -> Result<Option<SideWords>, PeerError> {
        let mut newest: Option<SideWords> = None;
        let mut blank = true;
        for face in faces.chunks_exact(LINE_BYTES) {
            let face: &Line = face.try_into().expect("chunks of a line");
            blank &= face.iter().all(|&byte| byte == 0);
            if !is_whole(face) || sequence(face) == 0 {
                continue;
            }
            if generation(face) != self.generation {
                let (what, expected) = (self.what, self.generation);
                return Err(PeerError::Generation { what, expected, found: generation(face) });
            }
            let words = SideWords::decode(face);
            if newest.is_none_or(|newest| is_newer(words.sequence, newest.sequence)) {
                newest = Some(words);
            }
        }
        match newest {
            Some(words) if self.last == 0 || !is_newer(self.last, words.sequence) => {
                if words.reserved != [0; 36] {
                    return Err(PeerError::Reserved { what: self.what });
                }
                self.last = words.sequence;
                self.torn = 0;
                Ok(Some(words))
            }
            None if blank && self.last == 0 => Ok(Some(SideWords::decode(&[0; LINE_BYTES]))),
            _ => {
                self.torn += 1;
                if self.torn > TORN_MAX {
                    return Err(PeerError::Torn { what: self.what, copies: self.torn });
                }
                Ok(None)
            }
        }
    }

    /// Whether a doorbell is due: the peer sleeps, and none was called for in this sleep.
    pub(crate) fn ring(&mut self, words: &SideWords) -> bool {
        let due = words.asleep != 0 && words.asleep != self.rung;
        if due {
            self.rung = words.asleep;
        }
        due
    }
}

/// Serial number order: `one` was said after `other`.
fn is_newer(one: u32, other: u32) -> bool {
    one.wrapping_sub(other) as i32 > 0
}

/// Content of the host's line, for the card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostLine {
    /// The host sleeps, or is about to.
    pub asleep: bool,
    /// A doorbell is due, once.
    pub ring: bool,
    /// Completions that the host had taken when it wrote the line, modulo 2^32. The host writes it only when it falls
    /// asleep or wakes, so it may be old by any amount: for the card's counters, and no decision is made on it.
    pub completion_head: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(faces: &mut [u8; FACES_BYTES], (offset, line): (usize, Line)) {
        faces[offset..offset + LINE_BYTES].copy_from_slice(&line);
    }

    #[test]
    fn a_writer_stopped_in_the_middle_leaves_the_last_state_readable() {
        let mut writer = LineWriter::new(0, 5);
        let mut reader = LineReader::new("test line", 5);
        let mut faces = [0; FACES_BYTES];
        assert_eq!(reader.read(&faces).unwrap().unwrap().asleep, 0, "never written is awake");
        for round in 0..10_u32 {
            put(&mut faces, writer.write(round % 2 == 0, round, 0));
            let (offset, next) = writer.write(round % 2 == 1, round + 100, 0);
            for stopped_at in 0..LINE_BYTES {
                let mut half = faces;
                half[offset..offset + stopped_at].copy_from_slice(&next[..stopped_at]);
                if half[offset..offset + LINE_BYTES] == next {
                    continue;
                }
                assert_eq!(reader.read(&half).unwrap().unwrap().head, round, "stopped at {stopped_at}");
            }
            put(&mut faces, (offset, next));
            assert_eq!(reader.read(&faces).unwrap().unwrap().head, round + 100);
        }
    }

    #[test]
    fn one_doorbell_per_sleep() {
        let mut writer = LineWriter::new(0, 5);
        let mut reader = LineReader::new("test line", 5);
        let mut faces = [0; FACES_BYTES];
        for _ in 0..3 {
            put(&mut faces, writer.write(true, 0, 0));
            let words = reader.read(&faces).unwrap().unwrap();
            assert!(reader.ring(&words));
            assert!(!reader.ring(&words));
            put(&mut faces, writer.write(false, 0, 0));
            let words = reader.read(&faces).unwrap().unwrap();
            assert!(!reader.ring(&words));
        }
    }

    #[test]
    fn two_torn_faces_are_forgiven_a_bounded_number_of_times() {
        let mut reader = LineReader::new("test line", 5);
        let faces = [0xee; FACES_BYTES];
        for _ in 0..TORN_MAX {
            assert_eq!(reader.read(&faces), Ok(None));
        }
        assert_eq!(reader.read(&faces), Err(PeerError::Torn { what: "test line", copies: TORN_MAX + 1 }));
    }

    #[test]
    fn sequence_wraps_without_losing_order() {
        let mut writer = LineWriter::new(0, 5);
        writer.sequence = u32::MAX - 2;
        let mut reader = LineReader::new("test line", 5);
        let mut faces = [0; FACES_BYTES];
        for head in 0..8 {
            put(&mut faces, writer.write(false, head, 0));
            assert_eq!(reader.read(&faces).unwrap().unwrap().head, head);
        }
    }

    #[test]
    fn an_old_generation_and_an_old_line_are_not_believed() {
        let mut faces = [0; FACES_BYTES];
        put(&mut faces, LineWriter::new(0, 4).write(true, 0, 0));
        let mut reader = LineReader::new("test line", 5);
        assert!(matches!(reader.read(&faces), Err(PeerError::Generation { found: 4, .. })));

        let mut writer = LineWriter::new(0, 5);
        let mut faces = [0; FACES_BYTES];
        put(&mut faces, writer.write(true, 0, 0));
        let replayed = faces;
        put(&mut faces, writer.write(false, 0, 0));
        put(&mut faces, writer.write(false, 0, 0));
        assert!(reader.read(&faces).unwrap().is_some());
        assert_eq!(reader.read(&replayed), Ok(None), "as if torn, and bounded like it");
    }
}
