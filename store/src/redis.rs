//! `redis://HOST...`: chunks as hashes in a Redis or Valkey server or cluster, shared by any number of cards.
//!
//! Layout in the server: `redis/name.rs`; for operators: docs/stores.md. One chunk is one hash and so is evicted, expired
//! and placed as a whole.
//!
//! ```text
//!   fetch worker   RedisReader (reader.rs) -> Lane (lane.rs) -> Inflow (inflow.rs) -> readv into the slot's memory
//!   encode worker  put.rs -> Line (line.rs): waits, never longer than until
//!   surveyor       survey.rs: a thread that keeps the map of slots (nodes.rs) true; asleep unless something changed
//! ```
//!
//! * **Atomic.** A put gathers its blocks in a hash of another name, checks that all are there, and renames it.
//! * **Bounded.** By the server's `maxmemory`; a chunk that was evicted is a miss at whatever point that shows.
//! * **Damage.** A chunk that is proven bad is unlinked. An error reply or a lost connection is not damage.
//! * **No intermediate buffer**, and no allocation after Init, but for TLS (rustls keeps buffers of its own) and for
//!   nodes that a cluster did not have at start.

use std::fmt::Write as _;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use block::ChunkKey;

use crate::node::NodeFacts;
use crate::url::OpenError;
use crate::{Limits, Memory, POISONED, Readable, Reader, Stats, Store, StoreError};
use fault::Target;
use nodes::Nodes;
use options::{Options, ReadFrom};
use put::Puts;
use reader::RedisReader;
use socket::Socket;
use survey::Surveyor;

pub mod check;
mod fault;
mod greeting;
mod inflow;
mod lane;
mod line;
mod name;
mod nodes;
pub(crate) mod options;
mod put;
mod reader;
mod resp;
mod socket;
mod survey;

/// How a connection is made.
#[derive(Debug)]
struct Door {
    options: Options,
    tls: Option<socket::TlsDoor>,
}

impl Door {
    fn connect(&self, address: SocketAddr) -> io::Result<Socket> {
        let tls = self.tls.as_ref().map(socket::TlsDoor::session).transpose()?;
        Socket::connect(address, &self.options, tls)
    }

    /// Whether connections of readers say that they may read from a replica.
    fn reads_replicas(&self, nodes: &Nodes) -> bool {
        self.options.read == ReadFrom::Any && nodes.is_cluster()
    }
}

/// One seat for reading: what is open in it.
#[derive(Debug)]
struct Seat {
    key: Option<ChunkKey>,
    manifest: Box<[u8]>,
    manifest_bytes: usize,
}

impl Seat {
    fn manifest(&self) -> &[u8] {
        &self.manifest[..self.manifest_bytes]
    }
}

/// See [`Stats`].
#[derive(Debug, Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    bytes_read: AtomicU64,
    bytes_put: AtomicU64,
    bytes_copied: AtomicU64,
    puts: AtomicU64,
    puts_failed: AtomicU64,
    corrupt: AtomicU64,
    io_errors: AtomicU64,
    read_only: AtomicBool,
}

/// The store. See the module's head.
#[derive(Debug)]
pub struct RedisStore {
    door: Arc<Door>,
    nodes: Arc<Nodes>,
    limits: Limits,
    counters: Counters,
    seats: Box<[Mutex<Seat>]>,
    puts: Puts,
    surveyor: Surveyor,
    /// Bad chunks are told of and stay.
    only_looks: bool,
    /// Readers made, for their seeds.
    readers: AtomicU64,
    warned_denied: AtomicBool,
    warned_unlink: AtomicBool,
}

impl RedisStore {
    /// The same for a tool that changes nothing: chunks that are proven bad stay where they are.
    pub fn open_to_look(url: &str, limits: &Limits) -> Result<Self, OpenError> {
        Ok(Self { only_looks: true, ..Self::open(url, limits)? })
    }

    /// Init: finds a server, asks it for its cluster, allocates everything.
    pub fn open(url: &str, limits: &Limits) -> Result<Self, OpenError> {
        let options = Options::parse(url)?;
        let tls = options.tls.as_ref().map(|tls| socket::TlsDoor::new(tls, &options.hosts)).transpose();
        let tls = tls.map_err(|what| OpenError::Option { url: options::redact(url), what })?;
        let door = Arc::new(Door { options, tls });
        let nodes = Arc::new(survey::first(&door)?);
        let seat = || Seat { key: None, manifest: vec![0; limits.manifest_bytes_max].into(), manifest_bytes: 0 };
        Ok(Self {
            surveyor: Surveyor::start(Arc::clone(&door), Arc::clone(&nodes)),
            seats: (0..limits.chunks_open_max).map(|_| Mutex::new(seat())).collect(),
            puts: Puts::new(limits, nodes.places()),
            door,
            nodes,
            limits: *limits,
            counters: Counters::default(),
            only_looks: false,
            readers: 0.into(),
            warned_denied: false.into(),
            warned_unlink: false.into(),
        })
    }

    fn seat(&self, seat: usize) -> MutexGuard<'_, Seat> {
        self.seats[seat].lock().expect(POISONED)
    }

    /// The chunk in a seat.
    fn key_of(&self, seat: usize, call: &str) -> ChunkKey {
        self.seat(seat).key.unwrap_or_else(|| panic!("{call}: seat {seat} is empty"))
    }

    /// A manifest has come for a seat: returns its bytes.
    fn occupy(&self, seat: usize, key: &ChunkKey, manifest: &[u8]) -> Result<usize, StoreError> {
        let mut seat = self.seat(seat);
        let (value, max) = (manifest.len(), seat.manifest.len());
        let room = seat.manifest.get_mut(..value).ok_or(StoreError::Large { what: "manifest", value, max })?;
        room.copy_from_slice(manifest);
        (seat.manifest_bytes, seat.key) = (value, Some(*key));
        Ok(value)
    }

    /// The place of the node that a redirect of `node` names.
    fn place_of(&self, node: u16, target: Option<Target>) -> Option<u16> {
        let address = match target? {
            Target::Address(address) => address,
            Target::SameHost(port) => SocketAddr::new(self.nodes.at(node).address.ip(), port),
        };
        self.nodes.place_of(address)
    }

    /// A node refuses us. Said once: it goes on until somebody mends it.
    fn denied(&self, node: u16) {
        if !self.warned_denied.swap(true, Relaxed) {
            let address = self.nodes.at(node).address;
            log::error!("store: {address} refuses us: check user, password and ACL (`host-ctl store-check`)");
        }
    }

    /// A bad chunk could not be taken out.
    fn cannot_unlink(&self, node: u16) {
        if !self.warned_unlink.swap(true, Relaxed) {
            let address = self.nodes.at(node).address;
            log::warn!(
                "store: {address} does not let us UNLINK damaged chunks: they stay, and fail each fetch of them"
            );
        }
    }
}

impl<M: Memory> Readable<M> for RedisStore {
    fn reader<'a>(&'a self, bell: BorrowedFd<'a>) -> io::Result<Box<dyn Reader<M> + 'a>> {
        let number = self.readers.fetch_add(1, Relaxed) + 1;
        let seed = self.door.options.seed.unwrap_or_else(random);
        Ok(Box::new(RedisReader::new(self, bell, seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)))?))
    }
}

impl Store for RedisStore {
    fn close(&self, seat: usize) {
        let key = self.seat(seat).key.take();
        assert!(key.is_some(), "close: seat {seat} is empty");
    }

    fn has(&self, key: &ChunkKey, until: Instant) -> Result<bool, StoreError> {
        self.has_chunk(key, until)
    }

    fn begin_put(&self, seat: usize, key: &ChunkKey, until: Instant) -> Result<(), StoreError> {
        self.puts.begin(seat, key, until);
        Ok(())
    }

    fn put_block(&self, seat: usize, index: usize, bytes: &[u8]) -> Result<(), StoreError> {
        self.add_block(seat, index, bytes)
    }

    fn commit_put(&self, seat: usize, blocks: usize, manifest: &[u8]) -> Result<(), StoreError> {
        self.publish(seat, blocks, manifest)
    }

    fn abort_put(&self, seat: usize) {
        self.give_up(seat);
    }

    fn stats(&self) -> Stats {
        let counters = &self.counters;
        Stats {
            hits: counters.hits.load(Relaxed),
            misses: counters.misses.load(Relaxed),
            bytes_read: counters.bytes_read.load(Relaxed),
            bytes_put: counters.bytes_put.load(Relaxed),
            puts: counters.puts.load(Relaxed),
            puts_failed: counters.puts_failed.load(Relaxed),
            corrupt: counters.corrupt.load(Relaxed),
            io_errors: counters.io_errors.load(Relaxed),
            bytes_copied: counters.bytes_copied.load(Relaxed),
            read_only: counters.read_only.load(Relaxed),
            ..Stats::default()
        }
    }

    fn nodes(&self, each: &mut dyn FnMut(&NodeFacts<'_>)) {
        self.nodes.facts(each);
    }

    fn describe(&self) -> String {
        let options = &self.door.options;
        let scheme = if options.tls.is_some() { "rediss" } else { "redis" };
        let hosts: Vec<_> = options.hosts.iter().map(|(host, port)| format!("{host}:{port}")).collect();
        let mut text = format!("{scheme}://{}", hosts.join(","));
        let _ = match self.nodes.is_cluster() {
            true => write!(text, ", a cluster of {} nodes (places {})", self.nodes.len(), self.nodes.places()),
            false => write!(text, "/{}, one server", options.database),
        };
        let _ = write!(text, "; to each node and fetch worker {} + 1 connections", options.connections);
        let memory = reader::memory_bytes(options.connections, self.nodes.places());
        let _ = write!(text, ", memory {memory} bytes each");
        let _ = write!(text, ", window {} bytes, stall {} ms", options.window, options.stall.as_millis());
        match options.ttl {
            Some(ttl) => drop(write!(text, ", chunks expire {} s after their last use", ttl.as_secs())),
            None => text.push_str(", chunks do not expire"),
        }
        text
    }
}

/// A number that differs from process to process.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

/// What an I/O error on the way to a server means to who asked.
fn down(call: &'static str, error: &io::Error) -> StoreError {
    use nix::errno::Errno;
    let errno = match (error.raw_os_error(), error.kind()) {
        (Some(errno), _) => Errno::from_raw(errno),
        (None, ErrorKind::TimedOut) => Errno::ETIMEDOUT,
        (None, ErrorKind::InvalidData) => Errno::EPROTO,
        (None, _) => Errno::ECONNRESET,
    };
    StoreError::Down { call, errno }
}
