//! Reads: an open chunk is a file and its table of places. Reads are positioned and go straight to the caller's memory.
//! The kernel is given no hints: asking for the whole file when it is opened
//! (`POSIX_FADV_WILLNEED`) made cold reads a fifth to two fifths slower (tests/speed.rs).

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::Relaxed;

use block::ChunkKey;
use block::tail::{self, Place, TailError};
use nix::errno::Errno;
use nix::fcntl::{OFlag, PosixFadviseAdvice, openat, posix_fadvise};
use nix::sys::stat::{Mode, UtimensatFlags, fstat, futimens, utimensat};
use nix::sys::time::TimeSpec;

use super::root::{FileName, now_ns};
use super::{DirStore, POISONED, tail_bytes_max};
use crate::{Limits, Opening, StoreError, Why};

/// How often the use of a chunk is written down on disk.
pub(super) const STAMP_INTERVAL_NS: u64 = 600 * NS_PER_S;
const NS_PER_S: u64 = 1_000_000_000;
/// What is read first of the end of a file: holds the tail of a chunk of some 150 blocks.
const WINDOW_BYTES: usize = 4096;

/// One seat for reading.
#[derive(Debug)]
pub(super) struct Reading {
    open: Option<Open>,
    places: Box<[Place]>,
    window: Box<[u8]>,
}

/// The chunk in a seat.
#[derive(Debug)]
struct Open {
    file: File,
    key: ChunkKey,
    inode: u64,
    blocks: usize,
    /// It is opened for the second time, and read from the disk.
    anew: bool,
    /// Time of use to be written down, if any.
    stamp_ns: Option<u64>,
}

impl Reading {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            open: None,
            places: vec![Place::default(); limits.blocks_max].into(),
            window: vec![0; tail_bytes_max(limits).max(WINDOW_BYTES)].into(),
        }
    }

    pub(super) fn memory_bytes(limits: &Limits) -> usize {
        limits.blocks_max * size_of::<Place>() + tail_bytes_max(limits).max(WINDOW_BYTES)
    }

    /// Reads and checks the tail of the open file; copies the manifest out.
    fn load(
        &mut self,
        file: &File,
        file_bytes: u64,
        key: &ChunkKey,
        manifest: &mut [u8],
    ) -> Result<(usize, usize), ReadFault> {
        let mut bytes = WINDOW_BYTES.min(file_bytes as usize);
        loop {
            let window = &mut self.window[..bytes];
            file.read_exact_at(window, file_bytes - bytes as u64).map_err(|e| fault(&e, file_bytes))?;
            let wanted = tail::measure(window, file_bytes)?;
            if wanted <= bytes {
                break;
            }
            if wanted > self.window.len() {
                let max = self.window.len();
                return Err(ReadFault::Store(StoreError::Large { what: "tail of a chunk", value: wanted, max }));
            }
            bytes = wanted;
        }
        let tail = tail::parse(&self.window[..bytes], file_bytes, &mut self.places)?;
        if tail.key != *key {
            return Err(ReadFault::Store(StoreError::Corrupt {
                what: "another chunk's file, bytes",
                value: file_bytes,
            }));
        }
        let Some(out) = manifest.get_mut(..tail.manifest_bytes) else {
            let (value, max) = (tail.manifest_bytes, manifest.len());
            return Err(ReadFault::Store(StoreError::Large { what: "manifest", value, max }));
        };
        out.copy_from_slice(&self.window[tail.manifest_at..tail.manifest_at + tail.manifest_bytes]);
        Ok((tail.blocks, tail.manifest_bytes))
    }
}

/// A failed call and a failed check, until it is known who counts them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ReadFault {
    Store(StoreError),
    Os(Errno),
}

impl From<TailError> for ReadFault {
    fn from(error: TailError) -> Self {
        Self::Store(error.into())
    }
}

/// What a failed read means. A file that ends before `end` was cut off: bytes that are proven to be missing.
fn fault(error: &io::Error, end: u64) -> ReadFault {
    match error.kind() {
        ErrorKind::UnexpectedEof => ReadFault::Store(StoreError::Corrupt { what: "file ends before byte", value: end }),
        _ => ReadFault::Os(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)),
    }
}

/// Gives up what the kernel holds of a file in memory: what is read next comes from the disk, and so may be other
/// bytes.
fn from_disk(file: &File) {
    // Advice: where it is not taken, the second reading is of the same memory, and proves as much of that.
    let _ = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
}

fn time(stamp_ns: u64) -> TimeSpec {
    TimeSpec::new((stamp_ns / NS_PER_S) as i64, (stamp_ns % NS_PER_S) as i64)
}

impl DirStore {
    pub(super) fn open_chunk(&self, seat: usize, opening: &Opening, manifest: &mut [u8]) -> Result<usize, StoreError> {
        assert!(
            manifest.len() >= self.limits.manifest_bytes_max,
            "open: room for {} bytes of manifest",
            manifest.len()
        );
        let Opening { key, parent, anew } = opening;
        let mut reading = self.reading[seat].write().expect(POISONED);
        assert!(reading.open.is_none(), "open: seat {seat} is occupied");
        let stamp_ns = {
            let mut ledger = self.ledger();
            if !ledger.index.touch(key, parent.as_ref()) {
                return self.miss();
            }
            ledger.index.stamp(key, parent.as_ref(), now_ns(), STAMP_INTERVAL_NS)
        };
        let Some(file) = self.open_file(key)? else { return self.miss() };
        let stat = fstat(&file).map_err(|errno| self.read_error("fstat", errno))?;
        let file_bytes = stat.st_size as u64;
        let mut load = || {
            if *anew {
                from_disk(&file);
            }
            reading.load(&file, file_bytes, key, manifest)
        };
        let loaded = load();
        let again = if *anew && loaded.is_err() { load() } else { loaded };
        match again {
            Ok((blocks, manifest_bytes)) => {
                reading.open = Some(Open { file, key: *key, inode: stat.st_ino, blocks, anew: *anew, stamp_ns });
                self.counters.hits.fetch_add(1, Relaxed);
                Ok(manifest_bytes)
            }
            Err(ReadFault::Os(errno)) => Err(self.read_error("pread", errno)),
            Err(ReadFault::Store(error)) => {
                if let (StoreError::Corrupt { what, .. }, true) = (error, *anew && loaded == again) {
                    self.quarantine(key, stat.st_ino, &Why { what, block: None });
                }
                Err(error)
            }
        }
    }

    /// Copies the manifest out of a chunk's file, for one who is about to put it.
    pub(super) fn peek_chunk(&self, key: &ChunkKey, manifest: &mut [u8]) -> Result<usize, StoreError> {
        if !self.holds(key) {
            return Err(StoreError::Miss);
        }
        let Some(file) = self.open_file(key)? else { return Err(StoreError::Miss) };
        let stat = fstat(&file).map_err(|errno| self.read_error("fstat", errno))?;
        let mut peeking = self.peeking.lock().expect(POISONED);
        match peeking.load(&file, stat.st_size as u64, key, manifest) {
            Ok((_, manifest_bytes)) => Ok(manifest_bytes),
            Err(ReadFault::Os(errno)) => Err(self.read_error("pread", errno)),
            Err(ReadFault::Store(error)) => Err(error),
        }
    }

    /// `None`: it is not there, and the index knows that now.
    fn open_file(&self, key: &ChunkKey) -> Result<Option<File>, StoreError> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        match openat(&self.root.dir, FileName::chunk(key).as_cstr(), flags, Mode::empty()) {
            Ok(fd) => Ok(Some(fd.into())),
            Err(Errno::ENOENT) => {
                self.forget_if_gone(key);
                Ok(None)
            }
            Err(errno) => Err(self.read_error("open", errno)),
        }
    }

    /// Fills `into` with a whole block.
    pub(super) fn read_chunk(&self, seat: usize, index: usize, into: &mut [u8]) -> Result<(), StoreError> {
        let reading = self.reading[seat].read().expect(POISONED);
        let open = reading.open.as_ref().unwrap_or_else(|| panic!("read_block: seat {seat} is empty"));
        let place = reading.places[..open.blocks].get(index).copied().unwrap_or_default();
        let end = place.offset + into.len() as u64;
        let read = if into.len() != place.bytes as usize {
            Err(ReadFault::Store(StoreError::Corrupt {
                what: "block of another length, bytes",
                value: place.bytes.into(),
            }))
        } else {
            open.file.read_exact_at(into, place.offset).map_err(|e| fault(&e, end))
        };
        match read {
            Ok(()) => {
                self.counters.bytes_read.fetch_add(into.len() as u64, Relaxed);
                Ok(())
            }
            Err(ReadFault::Os(errno)) => Err(self.read_error("pread", errno)),
            Err(ReadFault::Store(error)) => Err(error),
        }
    }

    pub(super) fn discard_chunk(&self, seat: usize, why: &Why) {
        let (key, inode, anew) = {
            let reading = self.reading[seat].read().expect(POISONED);
            let open = reading.open.as_ref().unwrap_or_else(|| panic!("discard: seat {seat} is empty"));
            (open.key, open.inode, open.anew)
        };
        if anew {
            self.quarantine(&key, inode, why);
        }
    }

    /// Returns the chunk that is open in a seat.
    pub(crate) fn key_of(&self, seat: usize) -> ChunkKey {
        let reading = self.reading[seat].read().expect(POISONED);
        reading.open.as_ref().unwrap_or_else(|| panic!("key_of: seat {seat} is empty")).key
    }

    pub(super) fn close_chunk(&self, seat: usize) {
        let open = self.reading[seat].write().expect(POISONED).open.take();
        let open = open.unwrap_or_else(|| panic!("close: seat {seat} is empty"));
        if let Some(stamp_ns) = open.stamp_ns {
            // A read-only file system keeps no record of use; the order of the last writable life stays.
            let _ = futimens(&open.file, &TimeSpec::UTIME_OMIT, &time(stamp_ns));
        }
    }

    /// Writes down when a chunk was used. One that is gone meanwhile needs no time.
    pub(super) fn write_stamp(&self, key: &ChunkKey, stamp_ns: u64) {
        let (dir, name, flags) = (&self.root.dir, FileName::chunk(key), UtimensatFlags::NoFollowSymlink);
        let _ = utimensat(dir, name.as_cstr(), &TimeSpec::UTIME_OMIT, &time(stamp_ns), flags);
    }

    fn miss<T>(&self) -> Result<T, StoreError> {
        self.counters.misses.fetch_add(1, Relaxed);
        Err(StoreError::Miss)
    }

    fn read_error(&self, call: &'static str, errno: Errno) -> StoreError {
        self.counters.io_errors.fetch_add(1, Relaxed);
        StoreError::Io { call, errno }
    }
}
