//! The directory itself: what lies where, whose it is, and what is found in it at start.
//!
//! ```text
//!   PATH/kvlane-store          "kvlane dir store 1", then the pid of the process that holds the lock on this file
//!   PATH/ab/ab34..ef           one chunk; the name is its key in hexadecimal, `ab` the first two digits
//!   PATH/incoming/put-7        the put in seat 7, not yet a chunk; removed at start
//!   PATH/quarantine/ab34..ef   a chunk proven bad, kept for the operator to look at; nothing here is ever read again
//! ```
//!
//! Refuses a directory that is neither empty nor a store (a mistyped path must not be swept), a store of another
//! version, and one that another process holds.

use std::ffi::CStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use block::{ChunkKey, KEY_BYTES};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{AccessFlags, UnlinkatFlags, access};

use crate::OpenError;

const MARKER: &str = "kvlane-store";
const MARKER_LINE: &str = "kvlane dir store 1\n";
const INCOMING: &str = "incoming";
const QUARANTINE: &str = "quarantine";

/// `ab/`, 64 digits and the final zero; `quarantine/` is the longest directory.
const NAME_BYTES: usize = QUARANTINE.len() + 1 + 2 * KEY_BYTES + 1;

/// A path below the root in a buffer of its own, so that no call allocates for it.
#[derive(Clone, Copy)]
pub(super) struct FileName {
    bytes: [u8; NAME_BYTES],
    len: usize,
}

impl FileName {
    /// Where a chunk lies.
    pub(super) fn chunk(key: &ChunkKey) -> Self {
        let [high, low] = digits(key.bytes()[0]);
        Self::join(&[high, low], key)
    }

    /// Where a chunk that is proven bad goes.
    pub(super) fn quarantine(key: &ChunkKey) -> Self {
        Self::join(QUARANTINE.as_bytes(), key)
    }

    fn join(dir: &[u8], key: &ChunkKey) -> Self {
        let mut name = Self { bytes: [0; NAME_BYTES], len: dir.len() + 1 + 2 * KEY_BYTES };
        name.bytes[..dir.len()].copy_from_slice(dir);
        name.bytes[dir.len()] = b'/';
        for (pair, byte) in name.bytes[dir.len() + 1..].as_chunks_mut::<2>().0.iter_mut().zip(key.bytes()) {
            *pair = digits(*byte);
        }
        name
    }

    pub(super) fn as_cstr(&self) -> &CStr {
        CStr::from_bytes_with_nul(&self.bytes[..=self.len]).expect("a name has one zero, its last byte")
    }
}

fn digits(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

/// Where the put of a seat lies: made once for each seat, in Init.
pub(super) fn incoming(seat: usize) -> PathBuf {
    Path::new(INCOMING).join(format!("put-{seat}"))
}

/// A directory that is a store and, unless it is read-only, ours alone while this lives.
#[derive(Debug)]
pub(crate) struct Root {
    pub(super) dir: OwnedFd,
    pub(super) path: PathBuf,
    pub(super) read_only: bool,
    /// Held for the life of the store, also of one that is read-only.
    _lock: Flock<File>,
}

/// What start found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Chunks, the least recently used first: key, bytes, last use in ns.
    pub(super) chunks: Vec<(ChunkKey, u64, u64)>,
    pub(super) quarantine_files: usize,
    pub(super) quarantine_bytes: u64,
    pub(super) leftovers_removed: usize,
    /// Files whose names no chunk has.
    pub(super) strangers: usize,
}

impl Root {
    /// Opens the store at `path`, making it first if its parent is there and it is not, or is empty.
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let failed = |call: &'static str| move |error: io::Error| OpenError::path(call, path, &error);
        // Chunks tell what was said to a model, so nobody else may read them.
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => log::info!("store: created {}", path.display()),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) if e.kind() == ErrorKind::NotFound => return Err(OpenError::NoParent { path: path.into() }),
            Err(_) if path.is_dir() => {}
            Err(e) => return Err(OpenError::path("mkdir", path, &e)),
        }
        let flags = (OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).bits();
        let dir = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed("open"))?.into();
        let (lock, read_only) = take_lock(path, open_marker(path)?)?;
        let root = Self { dir, path: path.into(), read_only, _lock: lock };
        if !read_only {
            root.make_directories()?;
        }
        Ok(root)
    }

    /// Opens a store that is there, for a tool.
    pub(crate) fn open_existing(path: &Path) -> Result<Self, OpenError> {
        check_marker(path)?;
        Self::open(path)
    }

    /// The directories that hold chunks are all made here, so that no put has to make one.
    fn make_directories(&self) -> Result<(), OpenError> {
        for name in prefixes().chain([INCOMING.into(), QUARANTINE.into()]) {
            let path = self.path.join(name);
            match fs::create_dir(&path) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(OpenError::path("mkdir", &path, &e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Bytes that the file system still has for us.
    pub(super) fn free_bytes(&self) -> Result<u64, OpenError> {
        let stat = fstatvfs(&self.dir);
        let stat = stat.map_err(|errno| OpenError::Path { call: "fstatvfs", path: self.path.clone(), errno })?;
        Ok(stat.blocks_available() * stat.fragment_size())
    }

    /// Removes what an earlier life left half-way and lists what is there. Opens no file: one that is damaged shows
    /// when it is opened.
    pub(super) fn scan(&self) -> Result<Found, OpenError> {
        let mut found = Found::default();
        if !self.read_only {
            each_file(&self.path.join(INCOMING), &mut |name, _| {
                let path = Path::new(INCOMING).join(name);
                match nix::unistd::unlinkat(&self.dir, &path, UnlinkatFlags::NoRemoveDir) {
                    Ok(()) => found.leftovers_removed += 1,
                    Err(errno) => log::warn!("store: unlink {}: {}", path.display(), errno.desc()),
                }
            })?;
        }
        each_file(&self.path.join(QUARANTINE), &mut |_, meta| {
            found.quarantine_files += 1;
            found.quarantine_bytes += meta.len();
        })?;
        let mut stamped = Vec::new();
        for prefix in prefixes() {
            each_file(&self.path.join(&prefix), &mut |name, meta| match key_of(name, &prefix) {
                Some(key) if meta.is_file() => stamped.push((mtime_ns(meta), key, meta.len())),
                _ => found.strangers += 1,
            })?;
        }
        stamped.sort_unstable();
        found.chunks = stamped.into_iter().map(|(stamp_ns, key, bytes)| (key, bytes, stamp_ns)).collect();
        Ok(found)
    }
}

/// The key that a file name in the directory `prefix` stands for.
pub(crate) fn key_of(name: &str, prefix: &str) -> Option<ChunkKey> {
    if name.starts_with(prefix) { name.parse().ok() } else { None }
}

/// `00` to `ff`.
pub(crate) fn prefixes() -> impl Iterator<Item = String> {
    (0..=255u8).map(|byte| format!("{byte:02x}"))
}

pub(crate) fn quarantine_of(path: &Path) -> PathBuf {
    path.join(QUARANTINE)
}

pub(crate) fn incoming_of(path: &Path) -> PathBuf {
    path.join(INCOMING)
}

/// Calls `each` for every entry of a directory; a directory that is not there has none, and an entry that goes away
/// meanwhile is passed over.
pub(crate) fn each_file(dir: &Path, each: &mut dyn FnMut(&str, &fs::Metadata)) -> Result<(), OpenError> {
    let failed = |error: io::Error| OpenError::path("readdir", dir, &error);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        match entry.metadata() {
            Ok(meta) => each(&entry.file_name().to_string_lossy(), &meta),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(OpenError::path("stat", &entry.path(), &e)),
        }
    }
    Ok(())
}

/// Whether [`Root::open`] would take `path`, without writing or locking anything, as far as that shows; `true`: it
/// would make it.
pub(crate) fn look(path: &Path) -> Result<bool, OpenError> {
    let failed = |call: &'static str, error: &io::Error| OpenError::path(call, path, error);
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(failed("open", &Errno::ENOTDIR.into())),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            return match access(parent, AccessFlags::W_OK | AccessFlags::X_OK) {
                Ok(()) => Ok(true),
                Err(Errno::ENOENT) => Err(OpenError::NoParent { path: path.into() }),
                Err(errno) => Err(failed("mkdir", &errno.into())),
            };
        }
        Err(e) => return Err(failed("open", &e)),
    }
    match check_marker(path) {
        // A marker that is new has no line yet.
        Err(OpenError::Version { found, .. }) if found.is_empty() => Ok(false),
        Err(OpenError::NotAStore { .. }) if is_empty(path)? => Ok(true),
        checked => checked.map(|()| false),
    }
}

/// Whether a directory has nothing in it but what a file system of its own has.
fn is_empty(path: &Path) -> Result<bool, OpenError> {
    let mut empty = true;
    each_file(path, &mut |name, _| empty &= name == "lost+found")?;
    Ok(empty)
}

/// Checks that `path` is a store, without writing or locking anything.
pub(crate) fn check_marker(path: &Path) -> Result<(), OpenError> {
    let marker = path.join(MARKER);
    let text = match fs::read(&marker) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Err(OpenError::NotAStore { path: path.into() }),
        Err(e) => return Err(OpenError::path("read", &marker, &e)),
    };
    if text.starts_with(MARKER_LINE.as_bytes()) { Ok(()) } else { Err(other_version(path, &text)) }
}

/// The time as files have it.
pub(super) fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

fn mtime_ns(meta: &fs::Metadata) -> u64 {
    (meta.mtime().max(0) as u64).saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec().max(0) as u64)
}

/// Opens the marker, making it in an empty directory. For reading only, so that a file system whose store has no put
/// under way may be remounted.
fn open_marker(path: &Path) -> Result<File, OpenError> {
    let marker = path.join(MARKER);
    let failed = |error: io::Error| OpenError::path("open", &marker, &error);
    match File::open(&marker) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            if !is_empty(path)? {
                return Err(OpenError::NotAStore { path: path.into() });
            }
            OpenOptions::new().append(true).create(true).open(&marker).map_err(failed)?;
            File::open(&marker).map_err(failed)
        }
        other => other.map_err(failed),
    }
}

/// Locks the marker, or says who has it; then checks its first line, or writes it where the file is new. Says whether
/// the store can only be read.
fn take_lock(path: &Path, marker: File) -> Result<(Flock<File>, bool), OpenError> {
    let read = |file: &File| {
        let mut text = [0; 64];
        file.read_at(&mut text, 0).map(|n| text[..n].to_vec()).map_err(|e| OpenError::path("read", path, &e))
    };
    let lock = match Flock::lock(marker, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((marker, Errno::EWOULDBLOCK)) => {
            let text = read(&marker)?;
            let pid = String::from_utf8_lossy(&text).lines().find_map(|l| l.strip_prefix("pid ")?.trim().parse().ok());
            return Err(OpenError::Busy { path: path.into(), pid });
        }
        Err((_, errno)) => return Err(OpenError::Path { call: "flock", path: path.into(), errno }),
    };
    let text = read(&lock)?;
    if !text.is_empty() && !text.starts_with(MARKER_LINE.as_bytes()) {
        return Err(other_version(path, &text));
    }
    // Of fixed length, so that whoever finds the lock taken reads a whole line.
    let line = format!("{MARKER_LINE}pid {:>10}\n", std::process::id());
    let written =
        OpenOptions::new().write(true).open(path.join(MARKER)).and_then(|f| f.write_all_at(line.as_bytes(), 0));
    match written {
        Ok(()) => Ok((lock, false)),
        Err(e) if matches!(e.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied) => Ok((lock, true)),
        Err(e) => Err(OpenError::path("write", &path.join(MARKER), &e)),
    }
}

fn other_version(path: &Path, text: &[u8]) -> OpenError {
    let line = String::from_utf8_lossy(text).lines().next().unwrap_or_default().chars().take(40).collect();
    OpenError::Version { path: path.into(), found: line, ours: MARKER_LINE.trim_end() }
}
