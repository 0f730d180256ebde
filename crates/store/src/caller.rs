//! A reader for those who ask one question at a time and wait: tools and tests.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use block::ChunkKey;

use crate::{Ask, Lookup, Outcome, Position, Readable, Reader, StoreError, Why};

/// See the module's head.
pub struct BlockingReader<'a> {
    reader: Box<dyn Reader<Vec<u8>> + 'a>,
}

impl std::fmt::Debug for BlockingReader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockingReader").finish_non_exhaustive()
    }
}

impl<'a> BlockingReader<'a> {
    /// Makes a reader. `bell` is any descriptor; one that is readable only costs turns.
    pub fn new(store: &'a dyn Readable<Vec<u8>>, bell: &'a impl AsFd) -> io::Result<Self> {
        Ok(Self { reader: store.reader(bell.as_fd())? })
    }

    pub fn lookup(&mut self, keys: &[ChunkKey], until: Instant) -> Result<usize, StoreError> {
        self.look(Lookup::leading(keys.to_vec()), until)
    }

    /// Asks for any hit.
    pub fn look(&mut self, lookup: Lookup, until: Instant) -> Result<usize, StoreError> {
        match self.ask(Ask::Lookup { lookup, until }, &mut []) {
            Outcome::Looked { found, .. } => found,
            other => unreachable!("a look-up is answered by {other:?}"),
        }
    }

    pub fn open(
        &mut self,
        seat: usize,
        key: &ChunkKey,
        position: Option<Position>,
        manifest: &mut [u8],
        until: Instant,
    ) -> Result<usize, StoreError> {
        self.opened(Ask::Open { seat, key: *key, position, anew: false, until }, manifest)
    }

    /// Opens by another way: see [`Ask::Open`].
    pub fn open_anew(
        &mut self,
        seat: usize,
        key: &ChunkKey,
        manifest: &mut [u8],
        until: Instant,
    ) -> Result<usize, StoreError> {
        self.opened(Ask::Open { seat, key: *key, position: None, anew: true, until }, manifest)
    }

    fn opened(&mut self, ask: Ask<Vec<u8>>, manifest: &mut [u8]) -> Result<usize, StoreError> {
        match self.ask(ask, manifest) {
            Outcome::Opened(result) => result,
            other => unreachable!("an open is answered by {other:?}"),
        }
    }

    /// Reads a block into a vector of its own.
    pub fn read(&mut self, seat: usize, index: usize, bytes: usize, until: Instant) -> Result<Vec<u8>, StoreError> {
        match self.ask(Ask::Read { seat, index, bytes, memory: vec![0; bytes], until }, &mut []) {
            Outcome::Read { memory, result } => result.map(|()| memory),
            other => unreachable!("a read is answered by {other:?}"),
        }
    }

    pub fn discard(&mut self, seat: usize, why: Why, until: Instant) {
        self.ask(Ask::Discard { seat, why, until }, &mut []);
    }

    fn ask(&mut self, ask: Ask<Vec<u8>>, manifest: &mut [u8]) -> Outcome<Vec<u8>> {
        self.reader.begin(0, ask);
        loop {
            if let Some(answer) = self.reader.poll(manifest) {
                return answer.outcome;
            }
            self.reader.sleep();
        }
    }
}
