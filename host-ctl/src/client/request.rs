//! What a session is asked, and what comes of it.

use std::fmt;
use std::time::Duration;

use block::{ChunkKey, Importance};
use mailbox::{Operation, Status, Tokens};

use crate::error::Error;

/// A request of this client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(super) u64);

impl RequestId {
    /// Number of this request, for callers in another language. No number is used twice in a session.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// Takes a number that [`RequestId::number`] gave; any other is an unknown request.
    pub const fn from_number(number: u64) -> RequestId {
        RequestId(number)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Chunks to move, between the store and pages of this session's layout.
#[derive(Clone, Copy, Debug)]
pub struct Transfer<'a> {
    pub keys: &'a [ChunkKey],
    /// Page numbers in token order: equally many for each chunk, one chunk after the other.
    pub pages: &'a [u32],
    /// Tokens to move, counted from the first chunk's first. Starts in the first chunk and ends in the last: name only
    /// chunks that move.
    pub tokens: Tokens,
    /// Time for the whole transfer. `None`: the card's own deadline, for each part.
    pub deadline: Option<Duration>,
    /// What each chunk is worth beside how often it is used, stores only. Empty: neutral.
    pub importances: &'a [Importance],
    /// Whether chunks that the store has are stored again.
    pub again: bool,
    /// Section of the session's memory that the chunks and pages are of.
    pub section: u16,
}

impl<'a> Transfer<'a> {
    /// All tokens, the card's own deadline, nothing said of importance.
    pub const fn new(keys: &'a [ChunkKey], pages: &'a [u32]) -> Transfer<'a> {
        Transfer { keys, pages, tokens: Tokens::ALL, deadline: None, importances: &[], again: false, section: 0 }
    }
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    pub id: RequestId,
    pub operation: Operation,
    pub status: Status,
    /// Leading whole chunks in place, stored or found; of a window where its hit ends. Whatever the status, these are
    /// right; nothing beyond them is.
    pub chunks_done: usize,
    pub chunks_asked: usize,
    pub wire_bytes: u64,
    pub restored_bytes: u64,
    /// The card's own time, added up over parts that may have run at once.
    pub card: Duration,
    /// Time from post to completion.
    pub elapsed: Duration,
    /// Text of the answer; empty for most operations.
    pub answer: String,
}

impl Completion {
    /// The completion, if its status is `Ok`.
    ///
    /// # Errors
    /// [`Error::Failed`] with the status and what was done before it.
    pub fn ok(self) -> Result<Completion, Error> {
        match self.status {
            Status::Ok => Ok(self),
            status => Err(Error::Failed {
                operation: self.operation,
                status,
                done: self.chunks_done as u32,
                asked: self.chunks_asked as u32,
            }),
        }
    }
}
