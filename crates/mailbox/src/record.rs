//! Chunk records: what a lookup, fetch or store names, one after another in its argument area.
//!
//! ```text
//! 0    4      8           16       24         56           60          62    64
//! [crc][index][generation][request][key 32 B ][page_count ][importance][zero][pages u32 x page_count, zeros to a line]
//! ```
//! The CRC-32 covers everything after itself. Each record says whose it is, so one left from an earlier request in the
//! same area does not pass for one of this request. A record needs no forgiveness for being torn: the host wrote it
//! before the command slot, and the card asked for it after it had seen the slot.

use block::{ChunkKey, Importance};

use crate::card::Command;
use crate::host::Chunk;
use crate::limits::{RECORD_HEAD_BYTES, record_bytes};
use crate::peer::PeerError;
use crate::words::Word;

const CRC_AT: usize = 0;
const INDEX_AT: usize = 4;
const GENERATION_AT: usize = 8;
const REQUEST_AT: usize = 16;
const KEY_AT: usize = 24;
const PAGE_COUNT_AT: usize = 56;
const IMPORTANCE_AT: usize = 60;
const RESERVED_AT: usize = 62;
const _: () = assert!(RESERVED_AT + 2 == RECORD_HEAD_BYTES && KEY_AT + 32 == PAGE_COUNT_AT);

/// The request that a record belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    pub(crate) generation: u64,
    pub(crate) request: u64,
}

/// Writes a record to the front of `out` and returns its bytes.
pub(crate) fn encode(owner: Owner, index: u32, chunk: &Chunk<'_>, out: &mut [u8]) -> usize {
    let Chunk { key, pages, importance } = *chunk;
    let bytes = record_bytes(pages.len());
    let out = &mut out[..bytes];
    out.fill(0);
    index.put(out, INDEX_AT);
    owner.generation.put(out, GENERATION_AT);
    owner.request.put(out, REQUEST_AT);
    key.bytes().put(out, KEY_AT);
    (pages.len() as u32).put(out, PAGE_COUNT_AT);
    importance.word().put(out, IMPORTANCE_AT);
    for (slot, page) in out[RECORD_HEAD_BYTES..].chunks_exact_mut(4).zip(pages) {
        slot.copy_from_slice(&page.to_le_bytes());
    }
    crc32fast::hash(&out[CRC_AT + 4..]).put(out, CRC_AT);
    bytes
}

/// One chunk of a request, read from a private copy.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Index of the chunk in the request, from 0.
    pub index: u32,
    pub key: ChunkKey,
    /// Neutral where the command says nothing of importance.
    pub importance: Importance,
    /// Host pages of the chunk, in token order. Not yet compared with any layout.
    pub pages: Pages<'a>,
}

/// Page numbers as they lie in the copy.
#[derive(Clone, Copy, Debug)]
pub struct Pages<'a>(&'a [u8]);

impl<'a> Pages<'a> {
    /// Count of page numbers.
    pub fn count(&self) -> usize {
        self.0.len() / 4
    }

    /// The numbers, in token order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        self.0.chunks_exact(4).map(|word| u32::get(word, 0))
    }

    /// Copies the numbers to the front of `out` and returns that part. Panics when `out` is too short.
    pub fn copy_to<'o>(&self, out: &'o mut [u32]) -> &'o [u32] {
        let out = &mut out[..self.count()];
        for (slot, page) in out.iter_mut().zip(self.iter()) {
            *slot = page;
        }
        out
    }
}

/// Records of one window, checked one by one. After the first error it is over.
#[derive(Debug)]
pub struct Records<'a> {
    owner: Owner,
    pages_per_chunk: usize,
    with_importance: bool,
    next: u32,
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    /// `bytes` is a whole number of records.
    pub(crate) fn new(owner: Owner, command: &Command, first: u32, bytes: &'a [u8]) -> Records<'a> {
        let pages_per_chunk = command.pages_per_chunk as usize;
        Records { owner, pages_per_chunk, with_importance: command.has_importances(), next: first, rest: bytes }
    }

    fn check(&self, record: &'a [u8]) -> Result<Record<'a>, PeerError> {
        let index = self.next;
        if u32::get(record, CRC_AT) != crc32fast::hash(&record[CRC_AT + 4..]) {
            return Err(PeerError::Record { index });
        }
        let words = [
            ("record index", u64::from(u32::get(record, INDEX_AT)), u64::from(index)),
            ("record request", u64::get(record, REQUEST_AT), self.owner.request),
            ("record page count", u64::from(u32::get(record, PAGE_COUNT_AT)), self.pages_per_chunk as u64),
        ];
        let (what, expected) = ("chunk record", self.owner.generation);
        match u64::get(record, GENERATION_AT) {
            found if found != expected => return Err(PeerError::Generation { what, expected, found }),
            _ => {}
        }
        for (what, value, limit) in words {
            if value != limit {
                return Err(PeerError::Range { what, value, limit });
            }
        }
        let (pages, padding) = record[RECORD_HEAD_BYTES..].split_at(self.pages_per_chunk * 4);
        let importance = Importance::from_word(u16::get(record, IMPORTANCE_AT));
        let unsaid = self.with_importance || u16::get(record, IMPORTANCE_AT) == 0;
        if u16::get(record, RESERVED_AT) != 0 || !unsaid || padding.iter().any(|&byte| byte != 0) {
            return Err(PeerError::Reserved { what });
        }
        Ok(Record { index, key: ChunkKey::new(Word::get(record, KEY_AT)), importance, pages: Pages(pages) })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, PeerError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let (record, rest) = self.rest.split_at(record_bytes(self.pages_per_chunk));
        let checked = self.check(record);
        self.rest = if checked.is_ok() { rest } else { &[] };
        self.next += 1;
        Some(checked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::{Operation, WITH_IMPORTANCE};

    /// A store of chunks of so many pages.
    fn command(pages_per_chunk: u32, flags: u16) -> Command {
        Command { pages_per_chunk, flags, ..Command::new(22, Operation::Store) }
    }

    const OWNER: Owner = Owner { generation: 11, request: 22 };

    #[test]
    fn records_come_back_as_they_were_written() {
        let pages: Vec<u32> = (100..116).collect();
        let mut area = [0; 4096];
        let mut bytes = 0;
        for index in 0..4 {
            bytes +=
                encode(OWNER, index + 3, &Chunk::new(&ChunkKey::new([index as u8; 32]), &pages), &mut area[bytes..]);
        }
        assert_eq!(bytes, 4 * 128);
        let records: Vec<_> = Records::new(OWNER, &command(16, 0), 3, &area[..bytes]).map(Result::unwrap).collect();
        assert_eq!(records.len(), 4);
        for (index, record) in records.iter().enumerate() {
            assert_eq!(record.index, index as u32 + 3);
            assert_eq!(record.key, ChunkKey::new([index as u8; 32]));
            let mut out = [0; 16];
            assert_eq!(record.pages.copy_to(&mut out), pages);
        }
    }

    #[test]
    fn every_flipped_bit_of_a_record_is_an_error() {
        let mut record = [0; 128];
        encode(OWNER, 0, &Chunk::new(&ChunkKey::new([7; 32]), &[1, 2, 3]), &mut record);
        for bit in 0..128 * 8 {
            let mut flipped = record;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                Records::new(OWNER, &command(3, 0), 0, &flipped).next().unwrap().unwrap_err(),
                PeerError::Record { index: 0 }
            );
        }
    }

    #[test]
    fn another_requests_record_is_not_ours() {
        let mut record = [0; 128];
        let write = |owner, index, pages: &[u32], record: &mut [u8]| {
            encode(owner, index, &Chunk::new(&ChunkKey::new([7; 32]), pages), record);
        };
        let read =
            |record: &[u8]| Records::new(OWNER, &command(2, 0), 5, record).next().unwrap().map(|record| record.index);
        write(OWNER, 5, &[1, 2], &mut record);
        assert_eq!(read(&record), Ok(5));
        write(Owner { request: 23, ..OWNER }, 5, &[1, 2], &mut record);
        assert!(matches!(read(&record), Err(PeerError::Range { what: "record request", .. })));
        write(Owner { generation: 10, ..OWNER }, 5, &[1, 2], &mut record);
        assert!(matches!(read(&record), Err(PeerError::Generation { found: 10, .. })));
        write(OWNER, 4, &[1, 2], &mut record);
        assert!(matches!(read(&record), Err(PeerError::Range { what: "record index", .. })));
        write(OWNER, 5, &[1], &mut record);
        assert!(matches!(read(&record), Err(PeerError::Range { what: "record page count", .. })));
    }

    #[test]
    fn an_importance_counts_only_where_the_command_says_that_there_is_one() {
        let mut record = [0; 128];
        let key = ChunkKey::new([7; 32]);
        let rated = Chunk { importance: Importance::of(3.0).unwrap(), ..Chunk::new(&key, &[1]) };
        encode(OWNER, 0, &rated, &mut record);
        let read = |flags| Records::new(OWNER, &command(1, flags), 0, &record).next().unwrap();
        assert_eq!(read(WITH_IMPORTANCE).unwrap().importance.factor(), 3.0);
        assert!(matches!(read(0), Err(PeerError::Reserved { .. })));
    }
}
