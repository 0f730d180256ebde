//! One command of a host that names chunks, from its arrival to its completion.

use std::time::Instant;

use block::ChunkKey;
use mailbox::{CHUNKS_PER_REQUEST_MAX, Command, Tokens};

use crate::count::trace::TraceSpan;
use crate::pipeline::job::Failure;

/// A set of chunk indices.
#[derive(Clone, Debug)]
pub(crate) struct ChunkSet([u64; CHUNKS_PER_REQUEST_MAX.div_ceil(64)]);

impl ChunkSet {
    const EMPTY: Self = Self([0; CHUNKS_PER_REQUEST_MAX.div_ceil(64)]);

    pub(crate) fn insert(&mut self, index: u32) {
        self.0[index as usize / 64] |= 1 << (index % 64);
    }

    /// Counts those that are there without a gap from 0 on.
    #[must_use]
    pub(crate) fn leading(&self) -> u32 {
        let full = self.0.iter().take_while(|word| **word == u64::MAX).count();
        let rest = self.0.get(full).map_or(0, |word| word.trailing_ones());
        full as u32 * 64 + rest
    }
}

/// A look-up, fetch or store in progress.
#[derive(Clone, Debug)]
pub(crate) struct RequestInFlight {
    pub command: Command,
    /// Number that no other request of this card has.
    pub serial: u64,
    pub arrived: Instant,
    pub until: Instant,
    /// The next chunk to start.
    pub next: u32,
    /// Key of the chunk that was started last.
    pub last: Option<ChunkKey>,
    /// First chunk that is not wanted: the first that failed, or the end.
    pub limit: u32,
    /// Reason for `limit`, if it is not the end.
    pub failure: Option<Failure>,
    /// Chunks in progress.
    pub active: u32,
    /// Whether a worker is about to answer its look-up or rating.
    pub asked: bool,
    pub done: ChunkSet,
    pub wire_bytes: u64,
    pub restored_bytes: u64,
    /// Time at which it last started a chunk; since then the next one waits for its seat.
    pub moved: Instant,
    /// Slowest stage so far.
    pub slowest: Option<TraceSpan>,
}

impl RequestInFlight {
    #[must_use]
    pub(crate) fn new(command: Command, serial: u64, arrived: Instant, until: Instant) -> Self {
        let limit = command.chunk_count;
        Self {
            command,
            serial,
            arrived,
            until,
            next: 0,
            last: None,
            limit,
            failure: None,
            active: 0,
            asked: false,
            done: ChunkSet::EMPTY,
            wire_bytes: 0,
            restored_bytes: 0,
            moved: arrived,
            slowest: None,
        }
    }

    /// Gives up chunk `index`, for this reason, and all after it.
    pub(crate) fn cut(&mut self, index: u32, failure: Failure) {
        if index < self.limit {
            self.limit = index;
            self.failure = Some(failure);
        }
    }

    /// Returns the tokens of a chunk that are to move, counted from its first.
    #[must_use]
    pub(crate) fn tokens_of(&self, chunk: u32, chunk_tokens: u32) -> Tokens {
        let first = chunk * chunk_tokens;
        let within = |token: u32| token.saturating_sub(first).min(chunk_tokens);
        Tokens { start: within(self.command.tokens.start), end: within(self.command.tokens.end) }
    }

    /// Ends the request at what is in place: chunks in progress may still end, no new one starts, and a worker that
    /// still answers answers to nobody.
    pub(crate) fn cut_now(&mut self, failure: Failure) {
        self.cut(self.done.leading(), failure);
        self.asked = false;
    }

    #[must_use]
    pub(crate) fn wants_more(&self) -> bool {
        self.next < self.limit
    }

    #[must_use]
    pub(crate) fn ended(&self) -> bool {
        self.active == 0 && !self.asked && !self.wants_more()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_run_from_the_first_chunk_counts() {
        let mut set = ChunkSet::EMPTY;
        assert_eq!(set.leading(), 0);
        set.insert(1);
        assert_eq!(set.leading(), 0);
        set.insert(0);
        assert_eq!(set.leading(), 2);
        for index in 2..200 {
            set.insert(index);
        }
        assert_eq!(set.leading(), 200);
        set.insert(201);
        assert_eq!(set.leading(), 200);
        for index in 200..CHUNKS_PER_REQUEST_MAX as u32 {
            set.insert(index);
        }
        assert_eq!(set.leading(), CHUNKS_PER_REQUEST_MAX as u32);
    }
}
