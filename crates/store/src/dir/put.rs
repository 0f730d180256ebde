//! Puts: each is a file of its own in `incoming/`. A block takes the next free place when it arrives, so any number of
//! threads may write at once; the tail is written last, and then the file is renamed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, RwLock};

use block::ChunkKey;
use block::tail::{self, Place};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::index::{Behind, EARLY_MAX};
use super::read::STAMP_INTERVAL_NS;
use super::root::{self, FileName, now_ns};
use super::{DirStore, POISONED, tail_bytes_max};
use crate::{Limits, StoreError};

/// One seat for putting.
#[derive(Debug)]
pub(super) struct Putting {
    path: PathBuf,
    /// Shared by those who add blocks, exclusive for those who begin and end.
    target: RwLock<Target>,
    progress: Mutex<Progress>,
}

#[derive(Debug)]
struct Target {
    put: Option<Put>,
    tail: Box<[u8]>,
}

#[derive(Debug)]
struct Put {
    file: File,
    key: ChunkKey,
    parent: Option<ChunkKey>,
}

/// How far the put in a seat has come.
#[derive(Debug)]
struct Progress {
    /// Where the next block goes; all before it is booked in the ledger.
    next: u64,
    blocks: usize,
    failed: bool,
    places: Box<[Place]>,
}

impl Progress {
    fn clear(&mut self) {
        (self.next, self.blocks, self.failed) = (0, 0, false);
        self.places.fill(Place::default());
    }
}

impl Putting {
    pub(super) fn new(seat: usize, limits: &Limits) -> Self {
        let tail = vec![0; tail_bytes_max(limits)].into();
        let places = vec![Place::default(); limits.blocks_max].into();
        Self {
            path: root::incoming(seat),
            target: RwLock::new(Target { put: None, tail }),
            progress: Mutex::new(Progress { next: 0, blocks: 0, failed: false, places }),
        }
    }

    pub(super) fn memory_bytes(limits: &Limits) -> usize {
        limits.blocks_max * size_of::<Place>() + tail_bytes_max(limits)
    }

    fn progress(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().expect(POISONED)
    }
}

impl DirStore {
    pub(super) fn start(&self, seat: usize, key: &ChunkKey, parent: Option<&ChunkKey>) -> Result<(), StoreError> {
        let putting = &self.putting[seat];
        let mut target = putting.target.write().expect(POISONED);
        assert!(target.put.is_none(), "begin_put: seat {seat} is occupied");
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let create = || openat(&self.root.dir, &putting.path, flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let file = self.with_room("open", 1, create)?;
        putting.progress().clear();
        target.put = Some(Put { file: file.into(), key: *key, parent: parent.copied() });
        self.ledger().pending_keys.push(*key);
        Ok(())
    }

    pub(super) fn add(&self, seat: usize, index: usize, bytes: &[u8]) -> Result<(), StoreError> {
        let putting = &self.putting[seat];
        let target = putting.target.read().expect(POISONED);
        let put = target.put.as_ref().unwrap_or_else(|| panic!("put_block: seat {seat} is empty"));
        let result = self.write_block(putting, &put.file, index, bytes);
        match result {
            Ok(()) => {
                self.counters.bytes_put.fetch_add(bytes.len() as u64, Relaxed);
            }
            Err(_) => putting.progress().failed = true,
        }
        result
    }

    fn write_block(&self, putting: &Putting, file: &File, index: usize, bytes: &[u8]) -> Result<(), StoreError> {
        let (blocks_max, block_bytes_max) = (self.limits.blocks_max, self.limits.block_bytes_max);
        if index >= blocks_max {
            return Err(StoreError::Large { what: "index of a block", value: index, max: blocks_max - 1 });
        }
        if bytes.is_empty() || bytes.len() > block_bytes_max {
            return Err(StoreError::Large { what: "bytes of a block", value: bytes.len(), max: block_bytes_max });
        }
        let room = tail::aligned(bytes.len() as u64);
        self.reserve(room, 0)?;
        let offset = {
            let mut progress = putting.progress();
            assert!(progress.places[index].bytes == 0, "put_block: block {index} came twice");
            let offset = progress.next;
            progress.places[index] = Place { offset, bytes: bytes.len() as u32 };
            progress.next += room;
            progress.blocks += 1;
            offset
        };
        self.with_room("pwrite", room, || file.write_all_at(bytes, offset).map_err(errno_of))
    }

    pub(super) fn publish(&self, seat: usize, blocks: usize, manifest: &[u8]) -> Result<(), StoreError> {
        let putting = &self.putting[seat];
        let mut target = putting.target.write().expect(POISONED);
        let target = &mut *target;
        let put = target.put.take().unwrap_or_else(|| panic!("commit_put: seat {seat} is empty"));
        let progress = putting.progress();
        assert!(!progress.failed, "commit_put: a block of seat {seat} failed");
        let whole = progress.blocks == blocks && progress.places[..blocks].iter().all(|place| place.bytes > 0);
        assert!(whole, "commit_put: {blocks} blocks promised, {} put, or not numbered from 0", progress.blocks);

        let start = progress.next;
        let max = self.limits.manifest_bytes_max;
        let booked = if manifest.len() > max {
            Err(StoreError::Large { what: "manifest", value: manifest.len(), max })
        } else {
            let bytes = tail::write(&put.key, &progress.places[..blocks], manifest, &mut target.tail);
            self.reserve(bytes as u64, 1).map(|()| bytes)
        };
        drop(progress);
        let done = booked.and_then(|bytes| {
            let written = self
                .write_tail(&put.file, &target.tail[..bytes], start)
                .and_then(|()| self.rename_in(putting, &put, start + bytes as u64));
            written.inspect_err(|_| self.release(bytes as u64, 1))
        });
        match done {
            Ok(()) => {
                self.counters.puts.fetch_add(1, Relaxed);
                self.counters.read_only.store(false, Relaxed);
            }
            Err(_) => self.discard(putting, &put.key, start),
        }
        done
    }

    fn write_tail(&self, file: &File, tail: &[u8], start: u64) -> Result<(), StoreError> {
        let bytes = tail.len() as u64;
        self.with_room("pwrite", bytes, || file.write_all_at(tail, start).map_err(errno_of))?;
        if self.sync {
            file.sync_data().map_err(|e| self.write_error("fdatasync", errno_of(e), bytes))?;
        }
        Ok(())
    }

    /// Renames a put into place: from then on the chunk can be looked up.
    fn rename_in(&self, putting: &Putting, put: &Put, bytes: u64) -> Result<(), StoreError> {
        let Put { key, parent, .. } = put;
        let _stripe = self.stripe(key);
        let dir = &self.root.dir;
        let renamed = renameat(dir, &putting.path, dir, FileName::chunk(key).as_cstr());
        // Evicting here would take a second stripe, so a directory without room for a name is simply `Full`.
        renamed.map_err(|errno| self.write_error("rename", errno, bytes))?;
        let mut ledger = self.ledger();
        ledger.pending_bytes -= bytes;
        ledger.pending_chunks -= 1;
        ledger.settle(key);
        let behind = match *parent {
            None => Behind::Nobody,
            Some(parent) if ledger.pending_keys.contains(&parent) => Behind::Late(parent),
            Some(parent) => Behind::Parent(parent),
        };
        let mut stamps = heapless::Vec::<(ChunkKey, u64), { 1 + EARLY_MAX }>::new();
        let show = &mut |key: &ChunkKey, stamp_ns| stamps.push((*key, stamp_ns)).expect("each early chunk once");
        let entered = ledger.index.enter(key, bytes, behind, now_ns(), STAMP_INTERVAL_NS, show);
        entered.expect("reserve keeps a place for every pending chunk");
        drop(ledger);
        stamps.iter().for_each(|(key, stamp_ns)| self.write_stamp(key, *stamp_ns));
        Ok(())
    }

    pub(super) fn give_up(&self, seat: usize) {
        let putting = &self.putting[seat];
        let put = putting.target.write().expect(POISONED).put.take();
        let put = put.unwrap_or_else(|| panic!("abort_put: seat {seat} is empty"));
        let booked = putting.progress().next;
        self.discard(putting, &put.key, booked);
    }

    /// Removes the unfinished file and gives its room back. One that cannot be removed is truncated by the next put
    /// of its seat, or removed by the next start.
    fn discard(&self, putting: &Putting, key: &ChunkKey, booked: u64) {
        self.ledger().settle(key);
        let _ = unlinkat(&self.root.dir, &putting.path, UnlinkatFlags::NoRemoveDir);
        self.release(booked, 0);
        self.counters.puts_failed.fetch_add(1, Relaxed);
    }

    /// Makes a call; where the disk has no room for it, evicts as much as it needs and makes it once more.
    fn with_room<T>(
        &self,
        name: &'static str,
        bytes: u64,
        call: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, StoreError> {
        let first = call();
        if let Err(Errno::ENOSPC | Errno::EDQUOT) = first {
            self.make_room(bytes)?;
            return call().map_err(|errno| self.write_error(name, errno, bytes));
        }
        first.map_err(|errno| self.write_error(name, errno, bytes))
    }
}

fn errno_of(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
