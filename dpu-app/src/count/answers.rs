//! Answers to commands: counted by operation and status word, with the time that those naming chunks took, and how much
//! of the prefixes asked for was found.
//!
//! The engine thread writes when it answers; any thread may read. A request whose session ended has no answer.

use std::sync::atomic::AtomicU64;

use mailbox::{Answer, Command, Operation, Status, Tokens};

use crate::count::counters::{add, get};
use crate::count::histogram::DurationHistogram;

/// Kind of a command; `Control` is every one that names no chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    Lookup,
    Fetch,
    Store,
    Rate,
    Control,
}

impl Asked {
    pub const ALL: [Self; 5] = [Self::Lookup, Self::Fetch, Self::Store, Self::Rate, Self::Control];
    /// Kinds that name chunks.
    pub const CHUNKS: [Self; 4] = [Self::Lookup, Self::Fetch, Self::Store, Self::Rate];
    /// Kinds that ask for a prefix of chunks.
    pub const PREFIX: [Self; 2] = [Self::Lookup, Self::Fetch];

    #[must_use]
    pub fn of(operation: Operation) -> Self {
        match operation {
            Operation::Lookup => Self::Lookup,
            Operation::Fetch => Self::Fetch,
            Operation::Store => Self::Store,
            Operation::Rate => Self::Rate,
            _ => Self::Control,
        }
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Fetch => "fetch",
            Self::Store => "store",
            Self::Rate => "rate",
            Self::Control => "control",
        }
    }
}

/// Prefixes asked for and found, in chunks, and in tokens where the session said how many a chunk has.
#[derive(Debug, Default)]
pub struct Prefixes {
    pub queried_chunks: AtomicU64,
    pub hit_chunks: AtomicU64,
    pub queried_tokens: AtomicU64,
    pub hit_tokens: AtomicU64,
}

/// Answers by kind of command and status, how long they took, and the prefixes that they found.
#[derive(Debug, Default)]
pub struct Answers {
    statuses: [[AtomicU64; Status::ALL.len()]; Asked::ALL.len()],
    took: [DurationHistogram; Asked::CHUNKS.len()],
    prefixes: [Prefixes; Asked::PREFIX.len()],
}

impl Answers {
    /// Counts an answer that was given at once.
    pub fn count(&self, operation: Operation, status: Status) {
        add(self.status(Asked::of(operation), status), 1);
    }

    /// Counts the answer of a request that names chunks. `chunk_tokens` is 0 where nobody said how many tokens one has.
    pub fn count_request(&self, command: &Command, answer: &Answer, chunk_tokens: u16) {
        let asked = Asked::of(command.operation);
        add(self.status(asked, answer.status), 1);
        self.took[asked as usize].record(answer.elapsed_us.into());
        if let Some(prefixes) = self.prefixes.get(asked as usize) {
            let wanted = if asked == Asked::Lookup { Tokens::ALL } else { command.tokens };
            let tokens = |chunks: u32| u64::from(tokens_within(wanted, chunks, chunk_tokens));
            let (queried, hit) = (command.chunk_count, answer.chunks_done);
            add(&prefixes.queried_chunks, queried.into());
            add(&prefixes.hit_chunks, hit.into());
            add(&prefixes.queried_tokens, tokens(queried));
            add(&prefixes.hit_tokens, tokens(hit));
        }
    }

    /// Returns the counter of answers to `asked` with `status`.
    #[must_use]
    pub fn status(&self, asked: Asked, status: Status) -> &AtomicU64 {
        &self.statuses[asked as usize][usize::from(status.code()) - 1]
    }

    /// Adds up the answers with `status`.
    #[must_use]
    pub fn total(&self, status: Status) -> u64 {
        Asked::ALL.iter().map(|&asked| get(self.status(asked, status))).sum()
    }

    /// Returns how long requests of a kind in [`Asked::CHUNKS`] took, from their arrival to their answer.
    #[must_use]
    pub fn took(&self, asked: Asked) -> &DurationHistogram {
        &self.took[asked as usize]
    }

    /// Returns what a kind in [`Asked::PREFIX`] asked for and found.
    #[must_use]
    pub fn prefixes(&self, asked: Asked) -> &Prefixes {
        &self.prefixes[asked as usize]
    }
}

/// Counts the wanted tokens in the first `chunks` chunks.
fn tokens_within(wanted: Tokens, chunks: u32, chunk_tokens: u16) -> u32 {
    let end = chunks.saturating_mul(chunk_tokens.into());
    wanted.end.min(end).saturating_sub(wanted.start.min(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_wanted_tokens_count() {
        assert_eq!(tokens_within(Tokens::ALL, 3, 256), 768);
        assert_eq!(tokens_within(Tokens::ALL, 3, 0), 0);
        assert_eq!(tokens_within(Tokens { start: 100, end: 300 }, 3, 256), 200);
        assert_eq!(tokens_within(Tokens { start: 100, end: 300 }, 1, 256), 156);
        assert_eq!(tokens_within(Tokens { start: 600, end: 700 }, 1, 256), 0);
        assert_eq!(tokens_within(Tokens::ALL, u32::MAX, u16::MAX), u32::MAX);
    }
}
