//! One question of a reader that is under way.

use std::time::Instant;

use block::ChunkKey;

use super::lookup::AskedLookup;

/// What an errand asks next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrandStep {
    Ask,
    /// Whether the manifest still is the one that was opened: `what` was wrong with a block, and `value` was there.
    Recheck {
        what: &'static str,
        value: u64,
    },
}

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a place in a fixed table; a box would be an allocation for each look-up"
)]
pub(super) enum Work<M> {
    Lookup(AskedLookup),
    Open { seat: usize },
    Read { seat: usize, index: usize, bytes: usize, memory: Option<M> },
}

impl<M> Work<M> {
    /// The call that it is to those who asked.
    pub(super) fn call(&self) -> &'static str {
        match self {
            Self::Lookup(_) => "lookup",
            Self::Open { .. } => "open",
            Self::Read { .. } => "read_block",
        }
    }

    /// The command that it is to a server.
    pub(super) fn command(&self) -> &'static str {
        match self {
            Self::Lookup(_) => "HEXISTS",
            Self::Open { .. } | Self::Read { .. } => "HGET",
        }
    }
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Errand<M> {
    pub(super) tag: usize,
    pub(super) until: Instant,
    pub(super) key: ChunkKey,
    pub(super) slot: u16,
    pub(super) step: ErrandStep,
    pub(super) work: Work<M>,
    /// Ask the master, not a replica.
    pub(super) owner: bool,
    /// Ask by another way than before.
    pub(super) anew: bool,
    /// Connections lost under it, and errors that may pass.
    pub(super) tries: usize,
    /// Redirects that it followed.
    pub(super) hops: u8,
    /// How often it was told to come again later.
    pub(super) delays: u32,
    pub(super) not_before: Instant,
    /// The node that has its slot for the moment, and is to be told so.
    pub(super) aside: Option<u16>,
    /// Has something to send: it is in the table's list of those that wait.
    pub(super) waits: bool,
    /// The connection that just closed owed it something.
    pub(super) lost: bool,
}
