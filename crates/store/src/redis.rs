//! `redis://HOST...`: chunks as hashes in a Redis or Valkey server or cluster, shared by any number of cards.
//!
//! Layout in the server: `redis/name.rs`; for operators: docs/stores.md. One chunk is one hash and so is evicted,
//! expired and placed as a whole.
//!
//! ```text
//!   fetch worker   RedisReader (reader.rs) -> Lane (lane.rs) -> Inflow (inflow.rs) -> readv into the slot's memory
//!   encode worker  put.rs -> BlockingConnection (line.rs): waits, never longer than until
//!   surveyor       survey.rs: a thread that keeps the map of slots (nodes.rs) true; asleep unless something changed
//! ```
//!
//! * **Atomic.** A put gathers its blocks in a hash of another name, checks that all are there, and renames it.
//! * **Bounded.** By the server's `maxmemory`; a chunk that was evicted is a miss at whatever point that shows.
//! * **Damage.** A chunk that its master twice showed to be bad is counted and stays: the path between may have
//!   changed it in the same way each time, and only who puts it again has bytes to replace it with. An error reply, a
//!   lost connection and a replica that lags are not damage.
//! * **No intermediate buffer**, and no allocation after Init, but for TLS (rustls keeps buffers of its own) and for
//!   nodes that a cluster did not have at start.

use std::fmt::Write as _;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard};
use std::time::Instant;

use block::ChunkKey;

use crate::backend::{Absent, Backend};
use crate::guard::DiscardLimiter;
use crate::node::NodeFacts;
use crate::open_error::OpenError;
use crate::outline::OutlinePart;
use crate::secret::Url;
use crate::{BlockMemory, Limits, POISONED, Readable, Reader, Reloaded, Stats, Store, StoreError, Why};
use check::CheckReport;
use fault::{Fault, Redirect, Said};
use nodes::Nodes;
use options::{Login, Options, ReadFrom};
use put::Puts;
use reader::RedisReader;
use socket::Socket;
use survey::Surveyor;

mod advice;
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
mod scan;
mod socket;
mod survey;

/// How a connection is made.
#[derive(Debug)]
struct Connector {
    options: Options,
    /// Login in use; the options have the one of the start.
    login: RwLock<Login>,
    tls: Option<RwLock<socket::TlsConnector>>,
}

impl Connector {
    fn new(url: &str) -> Result<Self, OpenError> {
        let options = Options::parse(url)?;
        let tls = Self::tls(url, &options)?.map(RwLock::new);
        Ok(Self { login: RwLock::new(options.login.clone()), tls, options })
    }

    fn tls(url: &str, options: &Options) -> Result<Option<socket::TlsConnector>, OpenError> {
        let tls = options.tls.as_ref().map(|tls| socket::TlsConnector::new(tls, &options.hosts)).transpose();
        tls.map_err(|what| OpenError::Option { url: url.into(), what })
    }

    fn login(&self) -> RwLockReadGuard<'_, Login> {
        self.login.read().expect(POISONED)
    }

    fn connect(&self, address: SocketAddr) -> io::Result<Socket> {
        let tls = self.tls.as_ref().map(|tls| tls.read().expect(POISONED).session()).transpose()?;
        Socket::connect(address, &self.options, tls)
    }

    /// Whether connections of readers say that they may read from a replica.
    fn reads_replicas(&self, nodes: &Nodes) -> bool {
        self.options.read == ReadFrom::Any && nodes.is_cluster()
    }
}

/// Commands that a card uses, at most.
const COMPLAINTS_MAX: usize = 16;

/// One seat for reading: what is open in it.
#[derive(Debug)]
struct Seat {
    key: Option<ChunkKey>,
    manifest: Box<[u8]>,
    manifest_bytes: usize,
    /// The chunk was opened anew: its blocks are asked of the master, by another way.
    anew: bool,
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
    io_errors: AtomicU64,
    read_only: AtomicBool,
}

/// The store. See the module's head.
#[derive(Debug)]
pub struct RedisStore {
    connector: Arc<Connector>,
    nodes: Arc<Nodes>,
    limits: Limits,
    counters: Counters,
    seats: Box<[Mutex<Seat>]>,
    puts: Puts,
    guard: DiscardLimiter,
    surveyor: Surveyor,
    /// Readers made, for their seeds.
    readers: AtomicU64,
    /// Commands that a server has refused, which was said.
    complaints: Mutex<heapless::Vec<&'static str, COMPLAINTS_MAX>>,
}

impl RedisStore {
    /// Init: finds a server, asks it for its cluster, allocates everything.
    pub fn open(url: &str, limits: &Limits) -> Result<Self, OpenError> {
        let connector = Connector::new(url)?;
        let nodes = survey::first(&connector)?;
        Ok(Self::with(connector, nodes, limits))
    }

    /// The same, and if no server takes us yet, all chunks are misses until one does. What memory it has is decided
    /// now: for `nodes=` nodes, or 16.
    pub fn open_or_wait(url: &str, limits: &Limits) -> Result<Self, OpenError> {
        let connector = Connector::new(url)?;
        let nodes = match survey::first(&connector) {
            Ok(nodes) => nodes,
            Err(error) if error.may_pass() => {
                let nodes = survey::unknown(&connector);
                log::warn!("{error} (starting without it: nothing is fetched or stored until it is there)");
                nodes.set_trouble(&error.cause());
                nodes
            }
            Err(error) => return Err(error),
        };
        Ok(Self::with(connector, nodes, limits))
    }

    fn with(connector: Connector, nodes: Nodes, limits: &Limits) -> Self {
        let (connector, nodes) = (Arc::new(connector), Arc::new(nodes));
        let manifest = || vec![0; limits.manifest_bytes_max].into();
        let seat = || Seat { key: None, manifest: manifest(), manifest_bytes: 0, anew: false };
        Self {
            surveyor: Surveyor::start(Arc::clone(&connector), Arc::clone(&nodes)),
            seats: (0..limits.chunks_open_max).map(|_| Mutex::new(seat())).collect(),
            puts: Puts::new(limits, nodes.places()),
            guard: DiscardLimiter::default(),
            connector,
            nodes,
            limits: *limits,
            counters: Counters::default(),
            readers: 0.into(),
            complaints: Mutex::default(),
        }
    }

    fn seat(&self, seat: usize) -> MutexGuard<'_, Seat> {
        self.seats[seat].lock().expect(POISONED)
    }

    /// Returns the chunk in a seat.
    fn key_of(&self, seat: usize, call: &str) -> ChunkKey {
        self.seat(seat).key.unwrap_or_else(|| panic!("{call}: seat {seat} is empty"))
    }

    /// Takes the manifest that has come for a seat; returns its bytes.
    fn occupy(&self, seat: usize, key: &ChunkKey, manifest: &[u8], anew: bool) -> Result<usize, StoreError> {
        let mut seat = self.seat(seat);
        let (value, max) = (manifest.len(), seat.manifest.len());
        let room = seat.manifest.get_mut(..value).ok_or(StoreError::Large { what: "manifest", value, max })?;
        room.copy_from_slice(manifest);
        (seat.manifest_bytes, seat.key, seat.anew) = (value, Some(*key), anew);
        Ok(value)
    }

    /// The chunk of a seat is bad: it stays, since the path to its server may be what is bad.
    fn withhold(&self, seat: usize, why: &Why) {
        let key = self.key_of(seat, "discard");
        if !self.seat(seat).anew {
            return;
        }
        match self.nodes.master(name::slot_of(&key).into()) {
            Some(node) => self.guard.withhold(&key, why, &self.nodes.at(node).address),
            None => self.guard.withhold(&key, why, &"a server"),
        }
    }

    /// Finds the place of the node that a redirect of `node` names.
    fn place_of(&self, node: u16, target: Option<Redirect>) -> Option<u16> {
        let address = match target? {
            Redirect::Address(address) => address,
            Redirect::SameHost(port) => SocketAddr::new(self.nodes.at(node).address.ip(), port),
        };
        self.nodes.place_of(address)
    }

    /// Says, once for each command, that a node refuses it: that goes on until somebody mends it.
    fn complain(&self, node: u16, command: &'static str, fault: Fault, said: &Said) {
        let mut complaints = self.complaints.lock().expect(POISONED);
        if !complaints.contains(&command) && complaints.push(command).is_ok() {
            let (address, advice) = (self.nodes.at(node).address, advice::of_command(fault, command));
            log::error!("store: {address} does not let us {command}: {said}: {advice}");
        }
    }
}

impl Backend for RedisStore {
    const SCHEMES: &'static [&'static str] = &["redis", "rediss"];
    const USAGE: &'static str = "redis[s]://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...][/DB][?ttl-s=N&...]";
    const ON_DISK: bool = false;

    fn open_url(url: &str, limits: &Limits, absent: Absent) -> Result<Self, OpenError> {
        match absent {
            Absent::Refuse => Self::open(url, limits),
            Absent::Wait => Self::open_or_wait(url, limits),
        }
    }

    /// What that takes in memory is known as far as it can be before a server is asked.
    fn outline(url: &str, limits: &Limits) -> Result<OutlinePart, OpenError> {
        let options = Connector::new(url)?.options;
        let places = options.nodes_max.unwrap_or(1);
        let reader = reader::memory_bytes(options.connections, places);
        let text = format!(
            "{}/{}; {} + 1 connections to each node and fetch worker, memory {reader} bytes each for {places} nodes, \
             window {} bytes",
            options.shown(),
            options.database,
            options.connections,
            options.window
        );
        let memory_bytes = limits.chunks_open_max * limits.manifest_bytes_max;
        Ok(OutlinePart { name: "redis", text, memory_bytes, pinned_bytes: 0, bytes_max: None, chunks_max: None })
    }

    fn keys(&self) -> Result<Vec<ChunkKey>, StoreError> {
        self.scan()
    }

    fn check(url: &str) -> Option<Result<CheckReport, OpenError>> {
        Some(check::check(url))
    }
}

impl<M: BlockMemory> Readable<M> for RedisStore {
    fn reader<'a>(&'a self, bell: BorrowedFd<'a>) -> io::Result<Box<dyn Reader<M> + 'a>> {
        let number = self.readers.fetch_add(1, Relaxed) + 1;
        let seed = self.connector.options.seed.unwrap_or_else(random);
        Ok(Box::new(RedisReader::new(self, bell, seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)))?))
    }
}

impl Store for RedisStore {
    fn close(&self, seat: usize) {
        let key = self.seat(seat).key.take();
        assert!(key.is_some(), "close: seat {seat} is empty");
    }

    fn peek(&self, key: &ChunkKey, manifest: &mut [u8], until: Instant) -> Result<usize, StoreError> {
        self.peek_chunk(key, manifest, until)
    }

    /// The server evicts by the use of whole hashes: it knows of no parents.
    fn begin_put(
        &self,
        seat: usize,
        key: &ChunkKey,
        _parent: Option<&ChunkKey>,
        until: Instant,
    ) -> Result<(), StoreError> {
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

    fn trouble(&self, show: &mut dyn FnMut(&str)) {
        self.nodes.trouble(show);
    }

    fn reload(&self, url: &Url) -> Result<Reloaded, OpenError> {
        let url = url.reveal();
        let options = Options::parse(url)?;
        let same = Options { login: self.connector.options.login.clone(), ..options.clone() } == self.connector.options;
        if !same {
            return Ok(Reloaded::NeedsRestart);
        }
        if let (Some(ours), Some(theirs)) = (&self.connector.tls, Connector::tls(url, &options)?) {
            *ours.write().expect(POISONED) = theirs;
        }
        let before = std::mem::replace(&mut *self.connector.login.write().expect(POISONED), options.login.clone());
        self.complaints.lock().expect(POISONED).clear();
        self.nodes.try_all();
        self.surveyor.ask();
        Ok(if before == options.login { Reloaded::Same } else { Reloaded::Login })
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
            withheld: self.guard.withheld(),
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
        let options = &self.connector.options;
        let mut text = options.shown();
        let places = self.nodes.places();
        let _ = match (self.nodes.is_found(), self.nodes.is_cluster()) {
            (false, _) => write!(text, "/{}, not there yet (places {places})", options.database),
            (true, true) => write!(text, ", a cluster of {} nodes (places {places})", self.nodes.len()),
            (true, false) => write!(text, "/{}, one server", options.database),
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

/// Draws a number that differs from process to process.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

/// Converts an I/O error on the way to a server to what it means to the caller.
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
