//! Where chunks live between requests: one small interface, and the backends behind it, chosen by URL.
//!
//! ```text
//!   fetch worker    Reader: begin(Lookup | Open | Read | Discard) ... poll -> answers     seat: one open chunk
//!                     a block's memory goes in with Read and comes back with its answer
//!   encode worker   Store:  begin_put -> put_block ... put_block -> commit_put             seat: one chunk being put
//!                                         any order, any thread     or abort_put
//! ```
//!
//! A chunk is a manifest and its numbered blocks. To the store both are bytes: it knows no codecs and no geometry. A
//! block is found by its index, and where it lies is the backend's own business (a file keeps a table, a hash keeps one
//! field per block).
//!
//! **Reading is asynchronous**: a fetch worker has a [`Reader`] of its own, gives it many questions and takes the
//! answers as they come. The memory that a block is read into is moved into the reader and moved back with the
//! answer, so it cannot have two holders. **A put is synchronous**: the encode worker waits, since fetches go first
//! and a put has nothing to overlap with.
//!
//! What every backend promises:
//!
//! * A chunk is seen whole or not at all: nothing of a put can be looked up before `commit_put` returns.
//! * A miss is an answer (`StoreError::Miss`). A failed read is never a miss, and no read deletes anything. A chunk
//!   leaves as bad when `Discard` asks for it, after it was opened `anew` and found bad a second time: from a
//!   directory, and [`DISCARDS_PER_MINUTE`] at most. A store that others share keeps it until a put replaces it
//!   (guard.rs).
//! * A chunk that is not understood (`StoreError::Foreign`) is somebody else's: it stays, and a put may replace it.
//! * A look-up has no side effects and may be repeated; what it found may be gone by the time of `Open`.
//! * Two puts of one chunk at the same time are harmless: each is whole, and the later commit stays.
//! * An error that a reader answers is final: calls that may succeed when repeated were repeated ([`STORE_TRIES`]).
//! * All memory is taken when the store and its readers are opened (Init); after that no call allocates. Where a
//!   backend has to break this rule (TLS), docs/stores.md says so.
//!
//! What it refuses: it does not check the bytes of blocks (the pass that inflates them does, and then asks to
//! `Discard`), and it never waits past the `until` of a call that takes one, except where the kernel offers no way to
//! end a call (a read from a local disk).
//!
//! Seats are two fixed tables, one for open chunks and one for puts, with their sizes in [`Limits`]. The caller keeps
//! track of free seats: to open an occupied seat or to read from an empty one is a bug of ours and panics.
//! Blocks of one seat may be read, or put, by any number of threads at the same time.
//!
//! To add a backend: docs/architecture.md, "Stores".
#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::ops::DerefMut;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use block::tail::TailError;
use block::{BLOCKS_PER_CHUNK_MAX, ChunkKey, Importance};
use nix::errno::Errno;

mod backend;
mod caller;
pub mod dir;
mod direct;
mod guard;
mod lookup;
mod namespaces;
mod node;
mod open_error;
mod outline;
pub mod redis;
pub mod scrub;
mod secret;
mod size;
mod slab;
pub mod tiers;

pub use backend::{Absent, AnyBackend, check, directory, is_on_servers, open, open_or_wait, open_with};
pub use caller::BlockingReader;
pub use direct::{Direct, Opening, retry};
pub use guard::{DISCARDS_PER_MINUTE, Why};
pub use lookup::Lookup;
pub use namespaces::{NamespaceError, Namespaces};
pub use node::{NodeFacts, NodeRole, NodeState, Quantiles};
pub use open_error::{OpenError, advice};
pub use outline::{Outline, OutlinePart, outline};
pub use secret::{Url, looks_like_a_login, scrub as scrub_secrets};
pub use size::bytes;
pub use slab::{Allocate, TierSlab};
pub use tiers::{SCORE_BUCKETS, TierFacts};

/// Tries of a read whose error may pass by itself.
pub const STORE_TRIES: usize = 3;
/// Keys of one look-up.
pub const LOOKUP_KEYS_MAX: usize = 1024;

/// Release builds abort on a panic, so only a test can see this.
pub(crate) const POISONED: &str = "a thread panicked while it changed the store";

/// Memory that blocks are read into: a slot's registered area, or a `Vec` in tools and tests.
pub trait BlockMemory: DerefMut<Target = [u8]> + Send + fmt::Debug + 'static {}

impl<T: DerefMut<Target = [u8]> + Send + fmt::Debug + 'static> BlockMemory for T {}

/// A backend, apart from reading. See the module's head for what it promises.
pub trait Store: Send + Sync + fmt::Debug {
    /// Frees a seat for reading. The caller has no reads of this seat in flight.
    fn close(&self, seat: usize);

    /// Tells that the chunks `keys` of one prompt, which follow `parent`, were used together by a session of this
    /// namespace. An evicting store then gives up the tail of a prefix before its head, since a chunk is worth
    /// nothing without those before it. `opened`: each of them was opened with its [`Position`], which counted this
    /// use. Does not wait.
    fn touch(&self, _namespace: u8, _parent: Option<&ChunkKey>, _keys: &[ChunkKey], _opened: bool) {}

    /// Tells what a host says that chunks are worth, one importance each, whether they are there or not. Does not wait.
    fn rate(&self, _keys: &[ChunkKey], _importances: &[Importance]) {}

    /// Copies a chunk's manifest to the head of `manifest`, which must hold [`Limits::manifest_bytes_max`], and
    /// returns its bytes, for a caller that is about to put the chunk. Does not count as a use. Waits.
    fn peek(&self, key: &ChunkKey, manifest: &mut [u8], until: Instant) -> Result<usize, StoreError>;

    /// Starts to put a chunk in a free seat; the put's calls wait until `until` at most. On an error the seat stays
    /// free. `parent` is the chunk before it in its prompt: an evicting store gives up the chunk before its parent.
    fn begin_put(
        &self,
        seat: usize,
        key: &ChunkKey,
        parent: Option<&ChunkKey>,
        until: Instant,
    ) -> Result<(), StoreError>;

    /// Adds block `index`: in any order, from any thread, each index once. After an error the put can only be aborted.
    fn put_block(&self, seat: usize, index: usize, bytes: &[u8]) -> Result<(), StoreError>;

    /// Publishes the chunk: `blocks` blocks, numbered from 0 without a gap, and the manifest. Frees the seat,
    /// whatever the result; on an error nothing of the put can be looked up. The caller has no `put_block` of this
    /// seat in flight.
    fn commit_put(&self, seat: usize, blocks: usize, manifest: &[u8]) -> Result<(), StoreError>;

    /// Gives the put up and frees the seat. The caller has no `put_block` of this seat in flight.
    fn abort_put(&self, seat: usize);

    /// Whether a reader that keeps off local disks finds this chunk: in memory, or on a server. Does not wait.
    fn has_off_disk(&self, _key: &ChunkKey) -> bool {
        false
    }

    /// Whether the chunk that is open in this seat is read and closed without a call on a local disk. Does not wait.
    fn is_off_disk(&self, _seat: usize) -> bool {
        false
    }

    /// Returns what the store has counted since it was opened, and what it holds where it knows.
    fn stats(&self) -> Stats;

    /// Shows every server behind the store; none for a local one. Does not wait, does not allocate.
    fn nodes(&self, _each: &mut dyn FnMut(&NodeFacts<'_>)) {}

    /// Shows every tier in front of the store, fastest first; none where there is none. Does not wait for I/O. `scores`
    /// takes time linear in the tier's chunks.
    fn tiers(&self, _scores: bool, _each: &mut dyn FnMut(&TierFacts)) {}

    /// Shows what keeps the store from serving at all, as its server put it; nothing where it serves. Does not wait
    /// for I/O.
    fn trouble(&self, _show: &mut dyn FnMut(&str)) {}

    /// Takes over what may change while the store is open: the login in `url`, and the files that it names. On an error
    /// nothing has changed. Allocates.
    fn reload(&self, _url: &Url) -> Result<Reloaded, OpenError> {
        Ok(Reloaded::Same)
    }

    /// Describes the store and its limits, for the lines that start-up prints. Init only: allocates.
    fn describe(&self) -> String;
}

/// Part of a new URL that a store has taken over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reloaded {
    /// The files that it names were read again; all else is as before.
    Same,
    /// New connections use another user or password.
    Login,
    /// Nothing: it differs in what only a restart can change.
    NeedsRestart,
}

/// A store that can be read into memory of type `M`.
pub trait Readable<M>: Store {
    /// A reader for one thread, which allocates all that it will need. Its [`Reader::sleep`] also ends when `bell` is
    /// readable. Init only.
    fn reader<'a>(&'a self, bell: BorrowedFd<'a>) -> io::Result<Box<dyn Reader<M> + 'a>>;
}

/// One thread's questions to a store and their answers.
pub trait Reader<M>: Send {
    /// Makes no call on a local disk from now on, which may hang: what only that has is a miss. Init only.
    fn keep_off_disks(&mut self) {}

    /// Whether [`Self::begin`] may be called.
    fn has_room(&self) -> bool;

    /// Whether nothing is in flight.
    fn is_idle(&self) -> bool;

    /// Takes a question. `tag` comes back with the answer. Does not wait, except where a call on a local disk does.
    fn begin(&mut self, tag: usize, ask: Ask<M>);

    /// Moves everything on that can move without waiting, and gives the next answer. A manifest is copied to the head
    /// of `manifest`, which must hold [`Limits::manifest_bytes_max`].
    fn poll(&mut self, manifest: &mut [u8]) -> Option<Answer<M>>;

    /// Waits until [`Self::poll`] may have an answer, a deadline has passed, or the bell is readable. May return early.
    fn sleep(&mut self);
}

/// Position of a chunk in the prompt that uses it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    /// Namespace of the session.
    pub namespace: u8,
    /// Chunk before it in the prompt.
    pub parent: Option<ChunkKey>,
}

/// A question to a store.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "it is moved on at once; a box would be an allocation for each look-up")]
pub enum Ask<M> {
    /// Where does the longest hit end? What the look-up knows already is not asked. Its keys come back with the answer.
    Lookup { lookup: Lookup, until: Instant },
    /// Opens a chunk in a free seat and reads its manifest. On an error the seat stays free. Counts as a use of the
    /// chunk for eviction. With a position, a tier may keep the bytes that are read. `anew`: it was opened before and
    /// found bad or gone; this time all is read by another way, from whoever owns the chunk: past tiers, from the
    /// disk and not its cache, from the master and by another connection.
    Open { seat: usize, key: ChunkKey, position: Option<Position>, anew: bool, until: Instant },
    /// Reads block `index` of the open chunk, all `bytes` of it (so long the manifest says it is), to the head of
    /// `memory`, or says where it lies. A block that is not there or has another length is `Corrupt` if the manifest
    /// still promises it, and a `Miss` if the chunk went or changed since it was opened. After any error the content
    /// of `memory` means nothing.
    Read { seat: usize, index: usize, bytes: usize, memory: M, until: Instant },
    /// This seat's chunk, which was opened `anew`, is bad, and was so when it was read before: a directory takes it
    /// out, if it still is the one that was opened and the limit allows it; a shared store counts it. The seat stays
    /// taken.
    Discard { seat: usize, why: Why, until: Instant },
}

/// An answer of a store, to the question with this tag.
#[derive(Debug)]
pub struct Answer<M> {
    pub tag: usize,
    pub outcome: Outcome<M>,
}

/// See [`Ask`].
#[derive(Debug)]
pub enum Outcome<M> {
    Looked {
        keys: Vec<ChunkKey>,
        found: Result<usize, StoreError>,
    },
    /// Bytes of the manifest.
    Opened(Result<usize, StoreError>),
    Read {
        memory: M,
        result: Result<(), StoreError>,
    },
    /// The whole block lies at byte `at` of the [`TierSlab`] that the store was opened with, until its seat is closed;
    /// `memory` was not touched.
    Lies {
        memory: M,
        at: usize,
    },
    Discarded,
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
    /// Questions that one reader has in flight.
    pub asks_max: usize,
    /// Threads that put at the same time.
    pub writers_max: usize,
}

impl Limits {
    /// Limits of a store behind tiers, whose mover has a seat of its own.
    pub(crate) fn with_mover(&self) -> Self {
        Self { chunks_open_max: self.chunks_open_max + 1, puts_max: self.puts_max + 1, ..*self }
    }
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
            asks_max: 160,
            writers_max: 4,
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
    /// Times that a chunk was bad as far as this card can see and stayed: see docs/metrics.md.
    pub withheld: u64,
    /// Calls that failed for a reason that is not in the bytes.
    pub io_errors: u64,
    /// Bytes of blocks that were copied on the way to the slot: between socket and slot 0 unless replies were other
    /// than expected, or by TLS; out of a tier in memory where they could not be read in place.
    pub bytes_copied: u64,
    /// The last attempt to write found the store read-only.
    pub read_only: bool,
}

/// Reason why a call on a store did not do what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// The chunk is not there. An answer, not a fault.
    Miss,
    /// The bytes that were read are wrong; `value` is what was found. Read anew and found the same, it is proven.
    Corrupt { what: &'static str, value: u64 },
    /// Stored by a program that this one does not understand, and not damaged: `what` is unknown and says `value`.
    Foreign { what: &'static str, value: u64 },
    /// No room for `bytes` more, even after evicting all that may be evicted.
    Full { bytes: u64 },
    /// A part of a chunk is larger than the limits that the store was opened with. The chunk may be good.
    Large { what: &'static str, value: usize, max: usize },
    /// The store can be read but not written.
    ReadOnly,
    /// The store refuses us: password, user or permissions.
    Denied { call: &'static str },
    /// `until` had passed before `call` was done.
    Late { call: &'static str },
    /// The store does not answer at all.
    Down { call: &'static str, errno: Errno },
    /// The call failed; the stored bytes may be good.
    Io { call: &'static str, errno: Errno },
}

impl StoreError {
    /// Says who is to blame, which decides what happens next (docs/architecture.md, "Errors").
    pub fn blame(self) -> ResponsibleParty {
        match self {
            Self::Miss | Self::Foreign { .. } | Self::Late { .. } => ResponsibleParty::Nobody,
            Self::Corrupt { .. } | Self::Down { .. } | Self::Io { .. } => ResponsibleParty::Store,
            Self::Full { .. } | Self::ReadOnly | Self::Denied { .. } | Self::Large { .. } => ResponsibleParty::Operator,
        }
    }

    /// Whether the same call may succeed when made again soon.
    pub fn may_retry(self) -> bool {
        matches!(self, Self::Down { .. } | Self::Io { .. })
    }
}

/// Party that has to do something about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponsibleParty {
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
            Self::Foreign { what, value } => write!(f, "stored by another version: {what} {value} is not known here"),
            Self::Full { bytes } => write!(f, "store full: no room for {bytes} more bytes"),
            Self::Large { what, value, max } => write!(f, "{what} of {value} exceeds the limit of {max}"),
            Self::ReadOnly => write!(f, "store is read-only"),
            Self::Denied { call } => write!(f, "{call}: the store refuses us: check user, password and permissions"),
            Self::Late { call } => write!(f, "{call}: deadline passed"),
            Self::Down { call, errno } => write!(f, "{call}: store is down: {}", errno.desc()),
            Self::Io { call, errno } => {
                write!(f, "{call}: {} (errno {})", errno.desc(), errno as i32)?;
                advice(errno).map_or(Ok(()), |advice| write!(f, ": {advice}"))
            }
        }
    }
}

impl std::error::Error for StoreError {}

impl From<TailError> for StoreError {
    fn from(error: TailError) -> Self {
        match error {
            TailError::Corrupt { what, value } => Self::Corrupt { what, value },
            TailError::Foreign { what, value } => Self::Foreign { what, value },
            TailError::Large { blocks, max } => Self::Large { what: "blocks of a chunk", value: blocks, max },
        }
    }
}
