//! What all threads of the data plane share: allocated in Init, and locked for copies only.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use block::{ChunkKey, Importance};
use doca::{Area, Device, Slab};
use nix::sys::eventfd::EventFd;
use store::Readable;

use crate::config::{Config, follower_seats};
use crate::count::counters::Counters;
use crate::slots::ring::Ring;
use crate::workers::bell::EventBell;
use crate::workers::board::Board;
use crate::workers::chunks::Chunks;
use crate::workers::threads::StartError;
use crate::workers::unreadable::Unreadable;

/// A session's look-up or rating.
#[derive(Debug)]
pub struct Question {
    /// All keys of the request; empty while a fetch worker has them.
    pub keys: Vec<ChunkKey>,
    /// Importances of a rating, one for each key.
    pub importances: Vec<Importance>,
    /// Chunks before its end that a hit needs; 0: all.
    pub trailing: u32,
    pub until: Instant,
}

impl Question {
    /// Makes one without room, which a session takes at its attach.
    #[must_use]
    pub fn new() -> Self {
        Self { keys: Vec::new(), importances: Vec::new(), trailing: 0, until: Instant::now() }
    }

    /// Bytes of the longest request.
    pub const BYTES: usize = mailbox::CHUNKS_PER_REQUEST_MAX * (block::KEY_BYTES + size_of::<Importance>());

    /// Makes room for the longest request: part of an attach.
    pub fn make_room(&mut self) {
        const { assert!(mailbox::CHUNKS_PER_REQUEST_MAX <= store::LOOKUP_KEYS_MAX) };
        make_room(&mut self.keys);
        make_room(&mut self.importances);
    }
}

/// Makes room for something of each chunk of the longest request.
fn make_room<T>(list: &mut Vec<T>) {
    list.clear();
    list.reserve_exact(mailbox::CHUNKS_PER_REQUEST_MAX);
}

impl Default for Question {
    fn default() -> Self {
        Self::new()
    }
}

/// A request whose chunks are being started, as the store is told of it.
#[derive(Debug, Default)]
pub struct StartedPrefix {
    pub namespace: u8,
    /// Section that the chunks are of: those of another follow none of these.
    pub section: u16,
    /// Whether the chunks are fetched; else they are put.
    pub fetched: bool,
    /// The chunk before the first, where the request goes on with another's prompt.
    pub parent: Option<ChunkKey>,
    /// The last chunk that was started, and of which request.
    pub last: Option<(u64, ChunkKey)>,
    pub keys: Vec<ChunkKey>,
    /// Importances that the host gives them; none where it gives none.
    pub importances: Vec<Importance>,
}

impl StartedPrefix {
    /// Bytes of the longest request.
    pub const BYTES: usize = Question::BYTES;

    /// Makes room for the longest request: part of an attach.
    pub fn make_room(&mut self) {
        make_room(&mut self.keys);
        make_room(&mut self.importances);
    }

    pub fn clear(&mut self) {
        self.keys.clear();
        self.importances.clear();
    }

    /// Begins with a request, and says which chunk comes before its first: a host that cuts a prompt into requests of
    /// one kind numbers them without a gap (docs/mailbox.md).
    pub fn begin(&mut self, request: u64, namespace: u8, section: u16, fetched: bool) {
        self.clear();
        let is_same = (self.section, self.fetched) == (section, fetched);
        self.parent = self.last.filter(|(last, _)| is_same && last.wrapping_add(1) == request).map(|(_, key)| key);
        (self.namespace, self.section, self.fetched) = (namespace, section, fetched);
    }

    /// Adds the next chunk; returns the one before it.
    pub fn push(&mut self, request: u64, key: ChunkKey) -> Option<ChunkKey> {
        let before = self.keys.last().copied().or(self.parent);
        self.keys.push(key);
        self.last = Some((request, key));
        before
    }
}

/// What all threads of the data plane share. Everything in it was allocated in Init.
#[derive(Debug)]
pub struct Shared<'a> {
    pub config: &'a Config,
    pub store: &'a dyn Readable<Area>,
    /// Memory that the store lends from, if it does.
    pub slab: Option<Slab>,
    pub ring: Ring,
    pub chunks: Chunks,
    pub lookups: Vec<Mutex<Question>>,
    /// Request whose chunks are being started, in prefix order, by session.
    pub prefixes: Vec<Mutex<StartedPrefix>>,
    pub counters: Counters,
    pub unreadable: Unreadable,
    /// Board on which the engine thread shows itself to the metrics thread.
    pub board: Board,
    pub engine_bell: EventBell,
    /// Bell that asks the data plane to drain and leave (a signal).
    pub stop: &'a EventFd,
    /// Whether workers are to leave when their queue is empty.
    pub leave: AtomicBool,
}

impl<'a> Shared<'a> {
    /// Allocates all of it. Init only.
    ///
    /// # Errors
    /// The device or the system has no memory or no descriptors.
    pub fn allocate(
        config: &'a Config,
        device: &Device,
        store: &'a dyn Readable<Area>,
        slab: Option<Slab>,
        stop: &'a EventFd,
    ) -> Result<Self, StartError> {
        Ok(Self {
            config,
            store,
            slab,
            ring: Ring::allocate(device, config.slots, config.slot_bytes()).map_err(StartError::Device)?,
            chunks: Chunks::new(config.chunks + follower_seats(config)),
            lookups: (0..config.sessions).map(|_| Mutex::new(Question::new())).collect(),
            prefixes: (0..config.sessions).map(|_| Mutex::new(StartedPrefix::default())).collect(),
            counters: Counters::default(),
            unreadable: Unreadable::new(),
            board: Board::default(),
            engine_bell: EventBell::new().map_err(StartError::System)?,
            stop,
            leave: AtomicBool::new(false),
        })
    }
}
