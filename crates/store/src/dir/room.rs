//! Room: the ledger of bytes and chunks, and the two ways out of the store, eviction and quarantine.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use block::ChunkKey;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, renameat};
use nix::sys::stat::fstatat;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::index::Index;
use super::root::{FileName, Found};
use super::{DirStore, QUARANTINE_FILES_MAX, QUARANTINE_SHARE};
use crate::{StoreError, Why};

/// Pause, and number of pauses, of a put that waits for files which other threads are removing: 100 ms in all.
const LEAVING_WAIT: Duration = Duration::from_micros(100);
const LEAVING_WAITS_MAX: u32 = 1000;

/// Bytes by what holds them. Their sum never exceeds the limit once `reserve` has said so.
#[derive(Debug)]
pub(super) struct Ledger {
    /// Chunks that can be looked up.
    pub(super) index: Index,
    /// Puts that are not committed yet.
    pub(super) pending_bytes: u64,
    pub(super) pending_chunks: usize,
    /// What is being put: one for each occupied seat.
    pub(super) pending_keys: Vec<ChunkKey>,
    /// Files out of the index whose removal is under way.
    leaving_bytes: u64,
    quarantine_bytes: u64,
    quarantine_files: usize,
}

impl Ledger {
    pub(super) fn new(chunks_max: usize, puts_max: usize, found: &Found) -> Self {
        Self {
            index: Index::new(chunks_max),
            pending_bytes: 0,
            pending_chunks: 0,
            pending_keys: Vec::with_capacity(puts_max),
            leaving_bytes: 0,
            quarantine_bytes: found.quarantine_bytes,
            quarantine_files: found.quarantine_files,
        }
    }

    /// All bytes that the limit speaks of.
    pub(super) fn bytes(&self) -> u64 {
        self.index.bytes() + self.pending_bytes + self.leaving_bytes + self.quarantine_bytes
    }

    /// A put of this chunk is over.
    pub(super) fn settle(&mut self, key: &ChunkKey) {
        let at = self.pending_keys.iter().position(|other| other == key);
        self.pending_keys.swap_remove(at.expect("a put is entered when it begins"));
    }

    fn has_room(&self, bytes: u64, chunks: usize, bytes_max: u64) -> bool {
        self.bytes() + bytes <= bytes_max && self.index.len() + self.pending_chunks + chunks <= self.index.chunks_max()
    }
}

impl DirStore {
    /// Books room for a put, evicting until it is there. What cannot fit beside the other puts evicts nothing.
    pub(super) fn reserve(&self, bytes: u64, chunks: usize) -> Result<(), StoreError> {
        let mut waits = 0;
        loop {
            let mut ledger = self.ledger();
            if ledger.has_room(bytes, chunks, self.bytes_max) {
                ledger.pending_bytes += bytes;
                ledger.pending_chunks += chunks;
                return Ok(());
            }
            if ledger.pending_bytes + ledger.quarantine_bytes + bytes > self.bytes_max {
                return Err(StoreError::Full { bytes });
            }
            let leaving = ledger.leaving_bytes > 0;
            let (held, only_chunks) = (ledger.index.len(), ledger.bytes() + bytes <= self.bytes_max);
            drop(ledger);
            if only_chunks && !self.counters.warned_chunks.swap(true, Relaxed) {
                log::warn!(
                    "store: {} evicts at {held} chunks, though there is room for more bytes: raise the URL's option \
                     `chunks` ({} bytes of memory each)",
                    self.root.path.display(),
                    Index::memory_bytes(1 << 20) >> 20
                );
            }
            if self.evict()?.is_none() {
                // Another thread may be removing the last files; bytes that never leave are those of files that
                // could not be removed.
                if !leaving || waits == LEAVING_WAITS_MAX {
                    return Err(StoreError::Full { bytes });
                }
                waits += 1;
                std::thread::sleep(LEAVING_WAIT);
            }
        }
    }

    /// Gives back what `reserve` booked.
    pub(super) fn release(&self, bytes: u64, chunks: usize) {
        let mut ledger = self.ledger();
        ledger.pending_bytes -= bytes;
        ledger.pending_chunks -= chunks;
    }

    /// The disk is full before the limit is: evicts `bytes` of chunks.
    pub(super) fn make_room(&self, bytes: u64) -> Result<(), StoreError> {
        let mut freed = 0;
        while freed < bytes {
            freed += self.evict()?.ok_or(StoreError::Full { bytes })?;
        }
        Ok(())
    }

    /// Removes the least recently used chunk; returns its bytes, or `None` where there is no chunk.
    fn evict(&self) -> Result<Option<u64>, StoreError> {
        let mut ledger = self.ledger();
        let Some((key, bytes)) = ledger.index.pop_oldest() else { return Ok(None) };
        ledger.leaving_bytes += bytes;
        drop(ledger);
        self.unlink_evicted(key, bytes)
    }

    /// Removes this chunk, if it is there, because somebody else knows that it is worth least.
    pub(crate) fn evict_chunk(&self, key: &ChunkKey) -> Result<(), StoreError> {
        let mut ledger = self.ledger();
        let Some(bytes) = ledger.index.remove(key) else { return Ok(()) };
        ledger.leaving_bytes += bytes;
        drop(ledger);
        self.unlink_evicted(*key, bytes).map(drop)
    }

    /// What is out of the index and booked as leaving goes from the disk.
    fn unlink_evicted(&self, key: ChunkKey, bytes: u64) -> Result<Option<u64>, StoreError> {
        let _stripe = self.stripe(&key);
        // A put of this very chunk may have been published meanwhile: then the old file is gone already.
        let replaced = self.ledger().index.contains(&key);
        let gone = if replaced { Ok(()) } else { self.unlink_chunk(&key) };
        let mut ledger = self.ledger();
        match gone {
            Ok(()) => {
                ledger.leaving_bytes -= bytes;
                drop(ledger);
                self.counters.evicted.fetch_add(1, Relaxed);
                self.counters.bytes_evicted.fetch_add(bytes, Relaxed);
                Ok(Some(bytes))
            }
            Err(errno) => {
                // It is still there and can be read. As the newest, so that the next put tries another; where its
                // place in the index was given away, its bytes stay booked as leaving, which errs on the safe side.
                if ledger.has_room(0, 1, u64::MAX) && ledger.index.insert(&key, bytes, 0).is_ok() {
                    ledger.leaving_bytes -= bytes;
                }
                drop(ledger);
                Err(self.write_error("unlink", errno, 0))
            }
        }
    }

    /// Takes a chunk out because its bytes are bad, if its file still is `inode` and the guard lets it go.
    pub(super) fn quarantine(&self, key: &ChunkKey, inode: u64, why: &Why) {
        let name = FileName::chunk(key);
        let _stripe = self.stripe(key);
        let stat = fstatat(&self.root.dir, name.as_cstr(), AtFlags::AT_SYMLINK_NOFOLLOW);
        if !stat.is_ok_and(|stat| stat.st_ino == inode) {
            return;
        }
        // A damaged file may have another length than the one that was booked.
        let file_bytes = stat.map_or(0, |stat| stat.st_size as u64);
        if !self.holds(key) || !self.guard.admits(key, why, &self.root.path.display()) {
            return;
        }
        let mut ledger = self.ledger();
        let Some(bytes) = ledger.index.remove(key) else { return };
        ledger.leaving_bytes += bytes;
        let keep = ledger.quarantine_files < QUARANTINE_FILES_MAX
            && ledger.quarantine_bytes + file_bytes <= self.bytes_max / QUARANTINE_SHARE;
        drop(ledger);
        let moved = keep
            && renameat(&self.root.dir, name.as_cstr(), &self.root.dir, FileName::quarantine(key).as_cstr()).is_ok();
        // Whether or not the file can be removed, the chunk is out of the index and nobody reads it again.
        let _ = if moved { Ok(()) } else { self.unlink_chunk(key) };
        let mut ledger = self.ledger();
        ledger.leaving_bytes -= bytes;
        if moved {
            ledger.quarantine_bytes += file_bytes;
            ledger.quarantine_files += 1;
        }
        drop(ledger);
        self.counters.corrupt.fetch_add(1, Relaxed);
    }

    /// Forgets a chunk whose file is not on the disk: somebody else removed it, or an eviction that is under way.
    pub(super) fn forget_if_gone(&self, key: &ChunkKey) {
        let _stripe = self.stripe(key);
        let there = fstatat(&self.root.dir, FileName::chunk(key).as_cstr(), AtFlags::AT_SYMLINK_NOFOLLOW);
        if there == Err(Errno::ENOENT) {
            self.ledger().index.remove(key);
        }
    }

    /// Removes a chunk's file; one that is gone already is as good.
    pub(super) fn unlink_chunk(&self, key: &ChunkKey) -> Result<(), Errno> {
        match unlinkat(&self.root.dir, FileName::chunk(key).as_cstr(), UnlinkatFlags::NoRemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// What a failed call on the way in means.
    pub(super) fn write_error(&self, call: &'static str, errno: Errno, bytes: u64) -> StoreError {
        match errno {
            Errno::EROFS | Errno::EACCES | Errno::EPERM => {
                self.counters.read_only.store(true, Relaxed);
                StoreError::ReadOnly
            }
            Errno::ENOSPC | Errno::EDQUOT => StoreError::Full { bytes },
            _ => {
                self.counters.io_errors.fetch_add(1, Relaxed);
                StoreError::Io { call, errno }
            }
        }
    }
}
