//! Puts: the blocks are gathered in a hash with a name of its own, which gets the chunk's name at the end.
//!
//! ```text
//!   put_block    HSET kvlane:{K}:put:N 17 BYTES | PEXPIRE kvlane:{K}:put:N       what is left goes away by itself
//!   commit_put   HSET ... m MANIFEST | HLEN ...     as many fields as were put? an eviction in between would show here
//!                PERSIST of a name that nobody has  may we? a RENAME cannot be taken back
//!                RENAME ... kvlane:{K} | PERSIST or PEXPIRE kvlane:{K}
//! ```
//!
//! A put that dies at any of these leaves the old chunk, or none, or the whole new one. Between RENAME and PERSIST it
//! leaves a whole chunk that expires soon. Two cards that put one chunk rename one after the other.
//!
//! The calls wait, on connections of their own, each at most `put-ms` and never past the `until` of the put. Lost
//! connections are made again and redirects followed here; every command but RENAME may be repeated, and after a RENAME
//! whose answer was lost it is looked whether the chunk is there.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use block::ChunkKey;
use nix::errno::Errno;

use super::fault::{Fault, Said, said};
use super::greeting::LoginRefusal;
use super::inflow::SCRATCH_BYTES;
use super::line::{BlockingConnection, CallError};
use super::name::{KeyName, MANIFEST_FIELD, slot_of};
use super::options::Login;
use super::resp::{Digits, Reply};
use super::{RedisStore, advice, down, random};
use crate::{Limits, POISONED, STORE_TRIES, StoreError};

/// Milliseconds that an unfinished put outlives its last block.
const LEFTOVER_MS: usize = 120_000;
/// Longest time that the removal of an aborted put may take.
const ABORT_MOST: Duration = Duration::from_secs(1);
/// Redirects in one exchange that are followed at once.
const HOPS_MAX: usize = 8;
/// Pause before a question that the server cannot answer yet.
const LATER: Duration = Duration::from_millis(20);

/// One seat for putting.
#[derive(Debug)]
struct Putting {
    put: Option<(ChunkKey, KeyName, Instant)>,
    /// Blocks that were put, by index.
    there: Box<[bool]>,
    blocks: usize,
    bytes: u64,
    failed: bool,
}

/// Seats and lines.
#[derive(Debug)]
pub(super) struct Puts {
    seats: Box<[Mutex<Putting>]>,
    /// Lines: for each node, one for each thread that may put.
    lines: Box<[Mutex<BlockingConnection>]>,
    writers: usize,
    nonce: AtomicU64,
}

impl Puts {
    pub(super) fn new(limits: &Limits, nodes: usize) -> Self {
        let seat =
            || Putting { put: None, there: vec![false; limits.blocks_max].into(), blocks: 0, bytes: 0, failed: false };
        let writers = limits.writers_max.max(1);
        Self {
            seats: (0..limits.puts_max).map(|_| Mutex::new(seat())).collect(),
            lines: (0..nodes * writers).map(|_| Mutex::new(BlockingConnection::new(SCRATCH_BYTES))).collect(),
            writers,
            nonce: random().into(),
        }
    }

    fn seat(&self, seat: usize) -> MutexGuard<'_, Putting> {
        self.seats[seat].lock().expect(POISONED)
    }

    pub(super) fn begin(&self, seat: usize, key: &ChunkKey, until: Instant) {
        let mut putting = self.seat(seat);
        assert!(putting.put.is_none(), "begin_put: seat {seat} is occupied");
        putting.there.fill(false);
        let name = KeyName::of_put(key, self.nonce.fetch_add(1, Relaxed));
        (putting.blocks, putting.bytes, putting.failed, putting.put) = (0, 0, false, Some((*key, name, until)));
    }

    /// Takes a line to a node that nobody else is using.
    fn line(&self, node: u16) -> MutexGuard<'_, BlockingConnection> {
        let lines = &self.lines[usize::from(node) * self.writers..][..self.writers];
        // Those that are up first.
        let free = |up: bool| {
            lines.iter().find_map(|line| match line.try_lock() {
                Ok(line) if line.is_up() == up => Some(line),
                Err(TryLockError::Poisoned(_)) => panic!("{POISONED}"),
                _ => None,
            })
        };
        free(true).or_else(|| free(false)).unwrap_or_else(|| lines[0].lock().expect(POISONED))
    }
}

/// Result of one exchange of commands and replies.
type Exchange<T> = Result<Result<T, Refused>, CallError>;

/// A command was answered with an error.
#[derive(Debug)]
struct Refused {
    command: &'static str,
    fault: Fault,
    said: Said,
}

impl Refused {
    /// `None`: the reply is no error.
    fn of(command: &'static str, reply: &Reply<'_>, login: &Login) -> Option<Self> {
        match reply {
            Reply::Error(text) => Some(Self { command, fault: Fault::read(text), said: said(text, login) }),
            _ => None,
        }
    }
}

impl RedisStore {
    /// Reads the manifest, at the master.
    pub(super) fn peek_chunk(&self, key: &ChunkKey, manifest: &mut [u8], until: Instant) -> Result<usize, StoreError> {
        let name = KeyName::of(key);
        let max = manifest.len();
        self.exchange("peek", key, until, 0, &mut |line, until, _| {
            let reply = match line.call(&[b"HGET", name.bytes(), MANIFEST_FIELD], until) {
                Err(error) if error.kind() == ErrorKind::FileTooLarge => {
                    return Ok(Ok(Err(StoreError::Large { what: "manifest", value: max + 1, max })));
                }
                other => other?,
            };
            Ok(match (Refused::of("HGET", &reply, &self.connector.login()), reply) {
                // Of another type: a put replaces it.
                (Some(Refused { fault: Fault::WrongType, .. }), _) => Ok(Err(StoreError::Miss)),
                (Some(refused), _) => Err(refused),
                (None, Reply::Bulk(bytes)) => Ok(match manifest.get_mut(..bytes.len()) {
                    Some(room) => {
                        room.copy_from_slice(bytes);
                        Ok(bytes.len())
                    }
                    None => Err(StoreError::Large { what: "manifest", value: bytes.len(), max }),
                }),
                _ => Ok(Err(StoreError::Miss)),
            })
        })?
    }

    fn has_chunk(&self, key: &ChunkKey, until: Instant) -> Result<bool, StoreError> {
        let name = KeyName::of(key);
        self.exchange("has", key, until, 0, &mut |line, until, _| {
            let reply = line.call(&[b"HEXISTS", name.bytes(), MANIFEST_FIELD], until)?;
            Ok(match Refused::of("HEXISTS", &reply, &self.connector.login()) {
                // Of another type: a put replaces it.
                Some(Refused { fault: Fault::WrongType, .. }) => Ok(false),
                Some(refused) => Err(refused),
                None => Ok(reply == Reply::Number(1)),
            })
        })
    }

    pub(super) fn add_block(&self, seat: usize, index: usize, bytes: &[u8]) -> Result<(), StoreError> {
        let (key, name, until) = {
            let mut putting = self.puts.seat(seat);
            let put = putting.put.unwrap_or_else(|| panic!("put_block: seat {seat} is empty"));
            let (blocks_max, block_bytes_max) = (self.limits.blocks_max, self.limits.block_bytes_max);
            let large = if index >= blocks_max {
                Some(StoreError::Large { what: "index of a block", value: index, max: blocks_max - 1 })
            } else if bytes.is_empty() || bytes.len() > block_bytes_max {
                Some(StoreError::Large { what: "bytes of a block", value: bytes.len(), max: block_bytes_max })
            } else {
                assert!(!putting.there[index], "put_block: block {index} came twice");
                putting.there[index] = true;
                putting.blocks += 1;
                putting.bytes += bytes.len() as u64;
                None
            };
            if let Some(error) = large {
                putting.failed = true;
                return Err(error);
            }
            put
        };
        let result = self.exchange("put_block", &key, until, bytes.len() as u64, &mut |line, until, _| {
            let mut digits = Digits::default();
            line.write_with(&[b"HSET", name.bytes(), digits.of(index)], bytes, until)?;
            line.write(&[b"PEXPIRE", name.bytes(), Digits::default().of(LEFTOVER_MS)], until)?;
            self.replies(line, until, ["HSET", "PEXPIRE"])
        });
        match result {
            Ok(_) => drop(self.counters.bytes_put.fetch_add(bytes.len() as u64, Relaxed)),
            Err(_) => self.puts.seat(seat).failed = true,
        }
        result.map(|_| ())
    }

    pub(super) fn publish(&self, seat: usize, blocks: usize, manifest: &[u8]) -> Result<(), StoreError> {
        let (key, name, until, bytes) = {
            let mut putting = self.puts.seat(seat);
            let (key, name, until) = putting.put.take().unwrap_or_else(|| panic!("commit_put: seat {seat} is empty"));
            assert!(!putting.failed, "commit_put: a block of seat {seat} failed");
            let whole = putting.blocks == blocks && putting.there[..blocks].iter().all(|there| *there);
            assert!(whole, "commit_put: {blocks} blocks promised, {} put, or not numbered from 0", putting.blocks);
            (key, name, until, putting.bytes)
        };
        let max = self.limits.manifest_bytes_max;
        let result = match manifest.len() {
            value if value > max => Err(StoreError::Large { what: "manifest", value, max }),
            _ => self.finish(&key, &name, until, bytes, blocks, manifest),
        };
        match result {
            Ok(()) => {
                self.counters.puts.fetch_add(1, Relaxed);
                self.counters.read_only.store(false, Relaxed);
            }
            Err(_) => self.discard_put(&key, &name, until),
        }
        result
    }

    fn finish(
        &self,
        key: &ChunkKey,
        name: &KeyName,
        until: Instant,
        bytes: u64,
        blocks: usize,
        manifest: &[u8],
    ) -> Result<(), StoreError> {
        let fields = self.exchange("commit_put", key, until, bytes, &mut |line, until, _| {
            line.write_with(&[b"HSET", name.bytes(), MANIFEST_FIELD], manifest, until)?;
            if self.connector.options.ttl.is_some() {
                line.write(&[b"HLEN", name.bytes()], until)?;
                return self.replies(line, until, ["HSET", "HLEN"]);
            }
            // A chunk that cannot be kept is not to be seen: whether we may PERSIST shows on a name that nobody has.
            line.write(&[b"PERSIST", KeyName::of_put(key, u64::MAX).bytes()], until)?;
            line.write(&[b"HLEN", name.bytes()], until)?;
            self.replies(line, until, ["HSET", "PERSIST", "HLEN"])
        })?;
        if fields != blocks as i64 + 1 {
            // The server evicted the first part of the put while the rest came.
            return Err(StoreError::Full { bytes });
        }
        let chunk = KeyName::of(key);
        let renamed = self.exchange("commit_put", key, until, bytes, &mut |line, until, repeated| {
            line.write(&[b"RENAME", name.bytes(), chunk.bytes()], until)?;
            match self.connector.options.ttl {
                Some(ttl) => {
                    let ttl = ttl.as_millis() as usize;
                    line.write(&[b"PEXPIRE", chunk.bytes(), Digits::default().of(ttl)], until)?;
                }
                None => line.write(&[b"PERSIST", chunk.bytes()], until)?,
            }
            let second = if self.connector.options.ttl.is_some() { "PEXPIRE" } else { "PERSIST" };
            Ok(match self.replies(line, until, ["RENAME", second])? {
                // The RENAME before this one may have come through though its answer did not.
                Err(Refused { fault: Fault::NoSuchKey, .. }) if repeated => Ok(false),
                Err(refused) => Err(refused),
                Ok(_) => Ok(true),
            })
        });
        match renamed {
            Ok(true) => Ok(()),
            Ok(false) if self.has_chunk(key, until)? => Ok(()),
            // Evicted after it was counted.
            Ok(false) => Err(StoreError::Full { bytes }),
            Err(StoreError::Io { call: "commit_put", errno: Errno::ENOENT }) => Err(StoreError::Full { bytes }),
            Err(error) => Err(error),
        }
    }

    pub(super) fn give_up(&self, seat: usize) {
        let put = self.puts.seat(seat).put.take();
        let (key, name, until) = put.unwrap_or_else(|| panic!("abort_put: seat {seat} is empty"));
        self.discard_put(&key, &name, until);
    }

    /// Removes a chunk of our own.
    pub(super) fn remove(&self, key: &ChunkKey) {
        let name = KeyName::of(key);
        // If this fails, it is noise that the server evicts some day.
        let _ = self.exchange("remove", key, Instant::now() + ABORT_MOST, 0, &mut |line, until, _| {
            let reply = line.call(&[b"UNLINK", name.bytes()], until)?;
            Ok(Refused::of("UNLINK", &reply, &self.connector.login()).map_or(Ok(()), Err))
        });
    }

    /// Removes what was put. If this fails, or the put has no time left, it expires.
    fn discard_put(&self, key: &ChunkKey, name: &KeyName, until: Instant) {
        self.counters.puts_failed.fetch_add(1, Relaxed);
        let until = until.min(Instant::now() + ABORT_MOST);
        let _ = self.exchange("abort_put", key, until, 0, &mut |line, until, _| {
            let reply = line.call(&[b"UNLINK", name.bytes()], until)?;
            Ok(Refused::of("UNLINK", &reply, &self.connector.login()).map_or(Ok(()), Err))
        });
    }

    /// Reads the replies of these commands; the number in the last, or the first that is an error.
    fn replies<const N: usize>(
        &self,
        line: &mut BlockingConnection,
        until: Instant,
        of: [&'static str; N],
    ) -> Exchange<i64> {
        let (mut first, mut number) = (None, 0);
        for command in of {
            let reply = line.read(until)?;
            first = first.or_else(|| Refused::of(command, &reply, &self.connector.login()));
            number = if let Reply::Number(number) = reply { number } else { 0 };
        }
        Ok(first.map_or(Ok(number), Err))
    }

    /// Speaks with the node that has a key's slot, following redirects, until an answer, `until`, or the third lost
    /// connection. `talk` is told whether it talks for the first time.
    fn exchange<T>(
        &self,
        call: &'static str,
        key: &ChunkKey,
        until: Instant,
        bytes: u64,
        talk: &mut dyn FnMut(&mut BlockingConnection, Instant, bool) -> Exchange<T>,
    ) -> Result<T, StoreError> {
        let slot = slot_of(key);
        let (mut lost, mut hops, mut repeated, mut aside) = (0, 0, false, None);
        if !self.nodes.is_found() {
            return Err(StoreError::Down { call, errno: Errno::ECONNREFUSED });
        }
        loop {
            let now = Instant::now();
            if now >= until {
                return Err(StoreError::Late { call });
            }
            let Some(node) = aside.or_else(|| self.nodes.master(slot.into())) else {
                self.pause(until);
                continue;
            };
            if !self.nodes.admits(node) {
                self.surveyor.ask();
                return Err(self.nodes.error_of(node));
            }
            let until_call = until.min(now + self.connector.options.put);
            let payload = if call == "put_block" { bytes } else { 0 };
            let outcome = self.talk_to(node, aside.is_some(), until_call, repeated, payload, talk);
            repeated = true;
            match outcome {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(Refused { fault: Fault::Moved { slot, to }, .. })) => {
                    aside = None;
                    hops += 1;
                    match self.place_of(node, to) {
                        Some(target) if hops <= HOPS_MAX => self.nodes.moved(slot.into(), target),
                        _ => self.pause(until),
                    }
                    self.surveyor.ask();
                }
                Ok(Err(Refused { fault: Fault::Ask { to }, .. })) => {
                    hops += 1;
                    aside = self.place_of(node, to).filter(|_| hops <= HOPS_MAX);
                    if aside.is_none() {
                        self.pause(until);
                    }
                }
                Ok(Err(Refused { fault: Fault::Later | Fault::Replica, .. })) => {
                    aside = None;
                    self.pause(until);
                }
                Ok(Err(refused)) => return Err(self.refused(node, call, &refused, bytes)),
                Err(CallError::Refused(refusal)) if !refusal.later => {
                    self.nodes.refused(node, &refusal);
                    self.surveyor.ask();
                    return Err(StoreError::Denied { call });
                }
                Err(CallError::Refused(refusal)) => {
                    lost += 1;
                    self.nodes.failed(node, &refusal);
                    self.surveyor.ask();
                    if lost >= STORE_TRIES {
                        return Err(StoreError::Down { call, errno: Errno::ECONNREFUSED });
                    }
                    self.pause(until);
                }
                Err(CallError::Lost(error)) => {
                    lost += 1;
                    let late = error.kind() == ErrorKind::TimedOut && Instant::now() >= until;
                    self.counters.io_errors.fetch_add(1, Relaxed);
                    self.nodes.failed(node, &advice::Lost(&error, &self.connector.options));
                    self.surveyor.ask();
                    if late {
                        return Err(StoreError::Late { call });
                    }
                    if lost >= STORE_TRIES {
                        return Err(down(call, &error));
                    }
                    self.nodes.at(node).retries.fetch_add(1, Relaxed);
                }
            }
        }
    }

    fn talk_to<T>(
        &self,
        node: u16,
        asking: bool,
        until: Instant,
        repeated: bool,
        payload: u64,
        talk: &mut dyn FnMut(&mut BlockingConnection, Instant, bool) -> Exchange<T>,
    ) -> Exchange<T> {
        let facts = self.nodes.at(node);
        let mut line = self.puts.line(node);
        let since = Instant::now();
        facts.in_flight.fetch_add(1, Relaxed);
        let outcome = (|| {
            line.dial(&self.connector, facts.address, until)?;
            if asking
                && let Some(refused) = Refused::of("ASKING", &line.call(&[b"ASKING"], until)?, &self.connector.login())
            {
                return Ok(Err(refused));
            }
            talk(&mut line, until, repeated)
        })();
        facts.in_flight.fetch_sub(1, Relaxed);
        match &outcome {
            // The connection is not logged in any more: the next call makes a new one.
            Ok(Err(Refused { fault: Fault::Login, .. })) => line.hang_up(),
            Ok(_) => {
                facts.requests.fetch_add(1, Relaxed);
                facts.bytes_put.fetch_add(payload, Relaxed);
                facts.latency.count(since.elapsed());
                self.nodes.succeeded(node);
            }
            // What comes next on it belongs to nobody.
            Err(_) => line.hang_up(),
        }
        outcome
    }

    fn refused(&self, node: u16, call: &'static str, refused: &Refused, bytes: u64) -> StoreError {
        self.nodes.at(node).errors.fetch_add(1, Relaxed);
        let Refused { command, fault, said } = refused;
        match fault {
            Fault::Full => StoreError::Full { bytes },
            Fault::Login => {
                let refusal = LoginRefusal { later: false, asked: command, said: said.clone() };
                self.nodes.refused(node, &refusal);
                StoreError::Denied { call }
            }
            Fault::Permission | Fault::Unknown => {
                self.complain(node, command, *fault, said);
                if matches!(call, "has" | "peek") {
                    return StoreError::Denied { call };
                }
                self.counters.read_only.store(true, Relaxed);
                StoreError::ReadOnly
            }
            Fault::ReadOnly => {
                self.counters.read_only.store(true, Relaxed);
                StoreError::ReadOnly
            }
            Fault::NoSuchKey => StoreError::Io { call, errno: Errno::ENOENT },
            _ => StoreError::Io { call, errno: Errno::EPROTO },
        }
    }

    fn pause(&self, until: Instant) {
        self.surveyor.ask();
        std::thread::sleep(LATER.min(until.saturating_duration_since(Instant::now())));
    }
}
