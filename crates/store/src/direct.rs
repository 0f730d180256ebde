//! The reader of a backend whose calls are over when they return, such as a local disk: it asks and answers in one
//! step.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use block::ChunkKey;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{Answer, Ask, BlockMemory, Lookup, Outcome, Readable, Reader, STORE_TRIES, Store, StoreError, Why};

/// What such a backend offers beside [`Store`]; it is [`Readable`] then. The calls mean what [`Ask`] says.
pub trait Direct: Store {
    /// Finds out where the longest hit ends ([`Lookup::ask`]).
    fn look(&self, lookup: &mut Lookup, until: Instant) -> Result<usize, StoreError>;

    /// Copies the manifest to the head of `manifest`; returns its bytes.
    fn open(&self, seat: usize, opening: &Opening, manifest: &mut [u8], until: Instant) -> Result<usize, StoreError>;

    /// Fills `into`, which is as long as the block.
    fn read_block(&self, seat: usize, index: usize, into: &mut [u8], until: Instant) -> Result<(), StoreError>;

    /// Takes the chunk that is open in `seat` out of the store: its bytes are bad.
    fn discard(&self, seat: usize, why: &Why);
}

/// A chunk to be opened: see [`Ask::Open`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opening {
    pub key: ChunkKey,
    /// Chunk before it in its prompt.
    pub parent: Option<ChunkKey>,
    pub anew: bool,
}

impl Opening {
    /// Opens a chunk for the first time, with nothing known of its prompt.
    #[must_use]
    pub fn of(key: &ChunkKey) -> Self {
        Self { key: *key, parent: None, anew: false }
    }
}

/// The one question of a [`Direct`] store that was asked and not yet answered.
#[derive(Debug)]
struct DirectReader<'a, S: ?Sized, M> {
    store: &'a S,
    bell: BorrowedFd<'a>,
    asked: Option<(usize, Ask<M>)>,
}

impl<S: Direct, M: BlockMemory> Readable<M> for S {
    fn reader<'a>(&'a self, bell: BorrowedFd<'a>) -> io::Result<Box<dyn Reader<M> + 'a>> {
        Ok(Box::new(DirectReader { store: self, bell, asked: None }))
    }
}

impl<S: Direct + ?Sized, M: BlockMemory> Reader<M> for DirectReader<'_, S, M> {
    fn has_room(&self) -> bool {
        self.asked.is_none()
    }

    fn is_idle(&self) -> bool {
        self.asked.is_none()
    }

    fn begin(&mut self, tag: usize, ask: Ask<M>) {
        assert!(self.asked.is_none(), "begin: one question at a time");
        self.asked = Some((tag, ask));
    }

    fn poll(&mut self, manifest: &mut [u8]) -> Option<Answer<M>> {
        let (tag, ask) = self.asked.take()?;
        let store = self.store;
        let outcome = match ask {
            Ask::Lookup { mut lookup, until } => {
                let found = retry(|| store.look(&mut lookup, until));
                Outcome::Looked { keys: lookup.into_keys(), found }
            }
            Ask::Open { seat, key, position, anew, until } => {
                let opening = Opening { key, parent: position.and_then(|position| position.parent), anew };
                Outcome::Opened(retry(|| store.open(seat, &opening, manifest, until)))
            }
            Ask::Read { seat, index, bytes, mut memory, until } => {
                let result = retry(|| store.read_block(seat, index, &mut memory[..bytes], until));
                Outcome::Read { memory, result }
            }
            Ask::Discard { seat, why, .. } => {
                store.discard(seat, &why);
                Outcome::Discarded
            }
        };
        Some(Answer { tag, outcome })
    }

    fn sleep(&mut self) {
        if self.asked.is_none() {
            // Interrupted or not: the caller looks again.
            let _ = poll(&mut [PollFd::new(self.bell.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
        }
    }
}

/// Makes a call again if its error may pass by itself: [`STORE_TRIES`] times in all.
pub fn retry<T>(mut call: impl FnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let mut tries = 1;
    loop {
        match call() {
            Err(error) if error.may_retry() && tries < STORE_TRIES => tries += 1,
            result => return result,
        }
    }
}
