//! Where chunks live between requests: one small interface, and the backends behind it, chosen by URL.
//!
//! ```text
//!   fetch worker   lookup --> open ----> read_block ... read_block --> close        seat: one open chunk
//!                              manifest   straight into the slot
//!   encode worker             begin_put -> put_block ... put_block --> commit_put   seat: one chunk being put
//!                                          any order, any thread       or abort_put
//! ```
//!
//! A chunk is a manifest and its numbered blocks. The store knows no offsets, no codecs and no geometry: to a
//! store both are bytes, a block is found by its index, and where it lies is the backend's own business (a file
//! keeps a table, a hash keeps one field per block).
//!
//! What every backend promises:
//!
//! * A chunk is seen whole or not at all: nothing of a put can be looked up before `commit_put` returns.
//! * A miss is an answer (`StoreError::Miss`). A failed read is never a miss and never deletes anything; bytes that
//!   are proven bad leave the store, so that the next put of their chunk can take their place.
//! * `lookup` has no side effects and may be repeated; what it found may be gone by the time of `open`.
//! * Two puts of one chunk at the same time are harmless: each is whole, the later commit stays.
//! * All memory is taken when the store is opened (Init); after that no call allocates. Calls block, so they are made
//!   by worker threads, never by the engine thread. That includes `close` and `abort_put`.
//!
//! What it refuses: it does not check the bytes of blocks (the pass that inflates them does, and then says
//! `note_corrupt`), it has no threads of its own, and it never waits past the `until` of a call that takes one, save
//! where the kernel offers no way to (a read from a local disk).
//!
//! Seats are two fixed tables of places, one for open chunks and one for puts, with their sizes in [`Limits`]. The
//! caller owns which seat is free: to open an occupied seat or to read from an empty one is our own bug and panics.
//! Blocks of one seat may be read, or put, by any number of threads at the same time.
//!
//! To add a backend: implement [`Store`] in `<name>.rs`, give it a scheme in `url.rs`, run the claims of
//! `tests/contract.rs` over it.

#![forbid(unsafe_code)]

use std::fmt;
use std::time::Instant;

use block::tail::TailError;
use block::{BLOCKS_PER_CHUNK_MAX, ChunkKey};
use nix::errno::Errno;

pub mod dir;
pub mod scrub;
mod url;

pub use url::{OpenError, SCHEMES, bytes, dir_path, open};

/// One backend. See the module's head for what it promises.
pub trait Store: Send + Sync + fmt::Debug {
    /// How many of `keys`, counted from the first, are there without a gap. The keys of a prompt go in prefix order.
    fn lookup(&self, keys: &[ChunkKey], until: Instant) -> Result<usize, StoreError>;

    /// Opens a chunk in a free seat and copies its manifest to the head of `manifest`; returns the manifest's bytes.
    /// `manifest` must hold [`Limits::manifest_bytes_max`]. On an error the seat stays free. Counts as a use of the
    /// chunk for eviction.
    fn open(&self, seat: usize, key: &ChunkKey, manifest: &mut [u8], until: Instant) -> Result<usize, StoreError>;

    /// Reads exactly `into.len()` bytes of block `index` of the open chunk, from byte `offset` of the block, straight
    /// into `into`. A block that is not there or ends earlier is `Corrupt`, since the manifest promised it; after any
    /// error the content of `into` means nothing.
    fn read_block(
        &self,
        seat: usize,
        index: usize,
        offset: usize,
        into: &mut [u8],
        until: Instant,
    ) -> Result<(), StoreError>;

    /// Frees the seat. The caller has no reads of this seat in flight.
    fn close(&self, seat: usize);

    /// Tells that the leading chunks `keys` of one prompt were used together. An evicting store then gives up the
    /// tail of a prefix before its head, since a chunk is worth nothing without those before it.
    fn touch(&self, _keys: &[ChunkKey]) {}

    /// A block of this chunk failed a check that the store cannot make: takes the chunk out. One that the store itself
    /// calls `Corrupt` is out already. If the chunk was put again meanwhile, the new one goes: one more miss.
    fn note_corrupt(&self, key: &ChunkKey);

    /// Starts to put a chunk in a free seat. On an error the seat stays free.
    fn begin_put(&self, seat: usize, key: &ChunkKey) -> Result<(), StoreError>;

    /// Adds block `index`: in any order, from any thread, each index once. After an error the put can only be aborted.
    fn put_block(&self, seat: usize, index: usize, bytes: &[u8]) -> Result<(), StoreError>;

    /// Publishes the chunk: `blocks` blocks, numbered from 0 without a gap, and the manifest. Frees the seat, whatever
    /// the result; on an error nothing of the put is left. The caller has no `put_block` of this seat in flight.
    fn commit_put(&self, seat: usize, blocks: usize, manifest: &[u8]) -> Result<(), StoreError>;

    /// Gives the put up and frees the seat. The caller has no `put_block` of this seat in flight.
    fn abort_put(&self, seat: usize);

    /// What the store has counted since it was opened, and what it holds.
    fn stats(&self) -> Stats;

    /// What it is and its limits, for the lines that start-up prints. Init only: allocates.
    fn describe(&self) -> String;
}

/// Sizes of everything a store allocates when it is opened. The data plane derives them from its own config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Seats for reading: chunks open at the same time.
    pub chunks_open_max: usize,
    /// Seats for putting: chunks being stored at the same time.
    pub puts_max: usize,
    /// Blocks in a chunk.
    pub blocks_max: usize,
    /// Bytes of one block in its stored form.
    pub block_bytes_max: usize,
    /// Bytes of a manifest.
    pub manifest_bytes_max: usize,
    /// Chunks that a store with an index in memory can hold; an option of the URL overrides it.
    pub chunks_max: usize,
    /// Bytes that the store may hold; an option of the URL overrides it; without either the backend decides.
    pub store_bytes: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            chunks_open_max: 64,
            puts_max: 16,
            blocks_max: BLOCKS_PER_CHUNK_MAX,
            block_bytes_max: 2 << 20,
            manifest_bytes_max: 16 << 10,
            chunks_max: 1 << 16,
            store_bytes: None,
        }
    }
}

/// Counters and gauges of a store, all since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Chunks held now, and their bytes.
    pub chunks: u64,
    pub bytes: u64,
    /// What `bytes` never exceeds; 0 where the backend sets no limit.
    pub bytes_max: u64,
    /// Chunks opened, and opens that were misses.
    pub hits: u64,
    pub misses: u64,
    /// Bytes of blocks read and put.
    pub bytes_read: u64,
    pub bytes_put: u64,
    /// Chunks committed, and puts that ended in any other way.
    pub puts: u64,
    pub puts_failed: u64,
    /// Chunks that made room for others, and their bytes.
    pub evicted: u64,
    pub bytes_evicted: u64,
    /// Chunks taken out because they were proven bad.
    pub corrupt: u64,
    /// Calls that failed for a reason that is not in the bytes.
    pub io_errors: u64,
    /// The last attempt to write found the store read-only.
    pub read_only: bool,
}

/// Why a call on a store did not do what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// The chunk is not there. An answer, not a fault.
    Miss,
    /// The stored bytes are proven to be wrong; `value` is what was found.
    Corrupt { what: &'static str, value: u64 },
    /// No room for `bytes` more, even after evicting all that may be evicted.
    Full { bytes: u64 },
    /// A part of a chunk is larger than the limits that the store was opened with. The chunk may be good.
    Large { what: &'static str, value: usize, max: usize },
    /// The store can be read but not written.
    ReadOnly,
    /// `until` had passed before `call` was done.
    Late { call: &'static str },
    /// The store does not answer at all.
    Down { call: &'static str, errno: Errno },
    /// The call failed; the stored bytes may be good.
    Io { call: &'static str, errno: Errno },
}

impl StoreError {
    /// Who is to blame, which decides what happens next (docs/architecture.md, "Errors").
    pub fn blame(self) -> Blame {
        match self {
            Self::Miss | Self::Late { .. } => Blame::Nobody,
            Self::Corrupt { .. } | Self::Down { .. } | Self::Io { .. } => Blame::Store,
            Self::Full { .. } | Self::ReadOnly | Self::Large { .. } => Blame::Operator,
        }
    }

    /// Whether the same call may succeed when made again soon.
    pub fn may_retry(self) -> bool {
        matches!(self, Self::Down { .. } | Self::Io { .. })
    }
}

/// Who has to do something about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// Nobody: the call answered.
    Nobody,
    /// The store: retried, then a status.
    Store,
    /// The operator: room, permission or a larger limit is missing.
    Operator,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Miss => write!(f, "no such chunk"),
            Self::Corrupt { what, value } => write!(f, "corrupt chunk: {what} ({value})"),
            Self::Full { bytes } => write!(f, "store full: no room for {bytes} more bytes"),
            Self::Large { what, value, max } => write!(f, "{what} of {value} exceeds the limit of {max}"),
            Self::ReadOnly => write!(f, "store is read-only"),
            Self::Late { call } => write!(f, "{call}: deadline passed"),
            Self::Down { call, errno } => write!(f, "{call}: store is down: {}", errno.desc()),
            Self::Io { call, errno } => write!(f, "{call}: {} (errno {})", errno.desc(), errno as i32),
        }
    }
}

impl std::error::Error for StoreError {}

impl From<TailError> for StoreError {
    fn from(error: TailError) -> Self {
        match error {
            TailError::Corrupt { what, value } => Self::Corrupt { what, value },
            TailError::Large { blocks, max } => Self::Large { what: "blocks of a chunk", value: blocks, max },
        }
    }
}
