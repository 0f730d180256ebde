//! Finds damaged files in a `dir:` store.
//!
//! Every chunk file is read from end to end: its name, its tail, its manifest, the header and scales of every block,
//! and the codes themselves, inflated in software. All bytes of a file are accounted for: what lies between blocks
//! must be zero. What remains unseen is a change that no reader would see (spare bits at the end of a Deflate stream).
//!
//! Reporting takes no lock and writes nothing, so it may run beside a dpu-app: a published file never changes, it only
//! disappears. Repairing moves damaged files to `quarantine/` and takes the lock of the store, so it cannot.
//! A file that cannot be read is reported as unreadable and left alone: an I/O error proves nothing about the bytes.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use block::codec::{CodecError, Decompressor};
use block::tail::{self, Place, TAIL_BYTES_MAX, TRAILER_BYTES, Tail, TailError};
use block::{BLOCKS_PER_CHUNK_MAX, ChunkKey, Header, HeaderError, Manifest, ManifestError};
use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::dir::root::{self, Root};
use super::{OpenError, StoreError};

/// What to do with a damaged file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Say so.
    Report,
    /// Move it to `quarantine/`.
    Repair,
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The name is not that of a chunk of this directory. Such a file is never moved: it is not ours.
    Name,
    /// The tail; also files that were cut off or grew.
    Tail(StoreError),
    /// The file holds the chunk of another name.
    Key {
        found: ChunkKey,
    },
    Manifest(ManifestError),
    /// Table and manifest disagree about the number of blocks.
    Blocks {
        table: usize,
        manifest: usize,
    },
    /// Table and manifest disagree about the length of a block.
    Length {
        block: usize,
        table: u32,
        manifest: u32,
    },
    /// It does not start where the block before it ends: two blocks share bytes.
    Overlap {
        block: usize,
    },
    Header {
        block: usize,
        error: HeaderError,
    },
    Payload {
        block: usize,
        error: CodecError,
    },
    /// A byte that belongs to nothing is not zero.
    Padding {
        offset: u64,
    },
    /// A call failed. Not damage: the file stays.
    Unreadable {
        call: &'static str,
        errno: Errno,
    },
}

impl Damage {
    /// Whether the bytes are proven to be bad, and a repair moves the file.
    pub fn is_proven(&self) -> bool {
        match self {
            Self::Name | Self::Unreadable { .. } | Self::Tail(StoreError::Large { .. }) => false,
            _ => !self.is_foreign(),
        }
    }

    /// Whether all checksums hold, and something is said that only another version understands.
    pub fn is_foreign(&self) -> bool {
        match self {
            Self::Tail(error) => matches!(error, StoreError::Foreign { .. }),
            Self::Manifest(error) => !error.is_damage(),
            Self::Header { error, .. } => !error.is_damage(),
            _ => false,
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => write!(f, "its name is not that of a chunk here"),
            Self::Tail(error) => write!(f, "tail: {error}"),
            Self::Key { found } => write!(f, "holds chunk {found}"),
            Self::Manifest(error) => write!(f, "{error}"),
            Self::Blocks { table, manifest } => write!(f, "{table} blocks in its table, {manifest} in its manifest"),
            Self::Length { block, table, manifest } => {
                write!(f, "block {block}: {table} bytes in its table, {manifest} in its manifest")
            }
            Self::Overlap { block } => write!(f, "block {block}: shares bytes with another"),
            Self::Header { block, error } => write!(f, "block {block}: {error}"),
            Self::Payload { block, error } => write!(f, "block {block}: {error}"),
            Self::Padding { offset } => write!(f, "byte {offset} belongs to nothing and is not zero"),
            Self::Unreadable { call, errno } => write!(f, "{call}: {} (left alone)", errno.desc()),
        }
    }
}

/// One file and what is wrong with it: the first thing found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedFile {
    pub path: PathBuf,
    pub damage: Damage,
    /// It was moved to `quarantine/`.
    pub moved: bool,
}

impl fmt::Display for DamagedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moved = if self.moved { " (moved to quarantine)" } else { "" };
        write!(f, "{}: {}{moved}", self.path.display(), self.damage)
    }
}

/// What happens meanwhile.
#[derive(Clone, Copy, Debug)]
pub enum ScrubEvent<'a> {
    Finding(&'a DamagedFile),
    /// After each of the 256 directories.
    Progress {
        directories: usize,
        directories_max: usize,
        files: u64,
        bytes: u64,
    },
}

/// The sum of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    pub files: u64,
    pub bytes: u64,
    pub blocks: u64,
    pub good: u64,
    /// Proven bad.
    pub damaged: u64,
    pub moved: u64,
    /// A call failed, or written under other limits: not proven bad.
    pub unreadable: u64,
    /// Whole, and written by a version that this one does not understand.
    pub foreign: u64,
    /// Files that are not ours.
    pub misnamed: u64,
    /// Unfinished puts, and files in quarantine already.
    pub unfinished: u64,
    pub quarantined: u64,
}

/// Reads every file of the store at `path`. `each` hears of every finding and of progress.
pub fn run(path: &Path, mode: Mode, each: &mut dyn FnMut(ScrubEvent<'_>)) -> Result<ScrubReport, OpenError> {
    let _held = match mode {
        Mode::Report => {
            root::check_marker(path)?;
            None
        }
        Mode::Repair => Some(Root::open_existing(path)?),
    };
    let mut report = ScrubReport::default();
    root::each_file(&root::incoming_of(path), &mut |_, _| report.unfinished += 1)?;
    root::each_file(&root::quarantine_of(path), &mut |_, _| report.quarantined += 1)?;
    let mut eye = Eye::new();
    let directories_max = root::prefixes().count();
    for (n, prefix) in root::prefixes().enumerate() {
        let dir = path.join(&prefix);
        let mut names = Vec::new();
        root::each_file(&dir, &mut |name, meta| names.push((name.to_owned(), meta.is_file())))?;
        names.sort_unstable();
        for (name, is_file) in names {
            let file = dir.join(&name);
            let key = root::key_of(&name, &prefix).filter(|_| is_file);
            let damage = match key {
                None => Some(Damage::Name),
                Some(key) => match eye.judge(&file, &key, &mut report) {
                    Ok(()) => None,
                    // Evicted while we walked.
                    Err(Damage::Unreadable { call: "open", errno: Errno::ENOENT }) => continue,
                    Err(damage) => Some(damage),
                },
            };
            report.files += 1;
            let Some(damage) = damage else {
                report.good += 1;
                continue;
            };
            let moved = mode == Mode::Repair && damage.is_proven() && quarantine(path, &file, &name)?;
            match damage {
                Damage::Name => report.misnamed += 1,
                _ if damage.is_proven() => report.damaged += 1,
                _ if damage.is_foreign() => report.foreign += 1,
                _ => report.unreadable += 1,
            }
            report.moved += u64::from(moved);
            each(ScrubEvent::Finding(&DamagedFile { path: file, damage, moved }));
        }
        let (files, bytes) = (report.files, report.bytes);
        each(ScrubEvent::Progress { directories: n + 1, directories_max, files, bytes });
    }
    Ok(report)
}

fn quarantine(path: &Path, file: &Path, name: &str) -> Result<bool, OpenError> {
    fs::rename(file, root::quarantine_of(path).join(name)).map_err(|e| OpenError::path("rename", file, &e))?;
    Ok(true)
}

/// Buffers for one file, reused: a tail and one block, never a whole file.
struct Eye {
    tail: Vec<u8>,
    wire: Vec<u8>,
    codes: Vec<u8>,
    places: Vec<Place>,
    inflate: Decompressor,
}

impl Eye {
    fn new() -> Self {
        let places = vec![Place::default(); BLOCKS_PER_CHUNK_MAX];
        Self { tail: Vec::new(), wire: Vec::new(), codes: Vec::new(), places, inflate: Decompressor::new() }
    }

    /// Reads one file and says the first thing that is wrong with it, if it is so when the file is read once more, from
    /// the disk: what came wrong once proves nothing.
    fn judge(&mut self, path: &Path, key: &ChunkKey, report: &mut ScrubReport) -> Result<(), Damage> {
        let before = *report;
        let first = match self.look(path, key, report) {
            Err(damage) if damage.is_proven() => damage,
            other => return other,
        };
        if let Ok(file) = File::open(path) {
            // Advice: where it is not taken, the second reading is of the same memory.
            let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        }
        *report = before;
        match self.look(path, key, report) {
            Err(second) if second.is_proven() && second != first => {
                Err(Damage::Unreadable { call: "read it twice, and it came otherwise", errno: Errno::EBADMSG })
            }
            second => second,
        }
    }

    /// Reads one file and says the first thing that is wrong with it.
    fn look(&mut self, path: &Path, key: &ChunkKey, report: &mut ScrubReport) -> Result<(), Damage> {
        let file = File::open(path).map_err(unreadable("open"))?;
        let file_bytes = file.metadata().map_err(unreadable("fstat"))?.len();
        report.bytes += file_bytes;
        let (tail, manifest) = self.look_at_tail(&file, file_bytes, key)?;
        let mut order: Vec<usize> = (0..tail.blocks).collect();
        order.sort_unstable_by_key(|&block| self.places[block].offset);
        let mut next = 0;
        for block in order {
            let Place { offset, bytes } = self.places[block];
            let promised = manifest.lengths()[block];
            if bytes != promised {
                return Err(Damage::Length { block, table: bytes, manifest: promised });
            }
            // The sum of all rooms is the start of the tail, so a hole is an overlap elsewhere.
            if offset != next {
                return Err(Damage::Overlap { block });
            }
            next += tail::aligned(bytes.into());
            read(&file, offset..next, &mut self.wire)?;
            self.look_at_block(&manifest, block, offset, bytes as usize)?;
            report.blocks += 1;
        }
        Ok(())
    }

    fn look_at_tail(&mut self, file: &File, file_bytes: u64, key: &ChunkKey) -> Result<(Tail, Manifest), Damage> {
        let trailer_bytes = file_bytes.min(TRAILER_BYTES as u64);
        read(file, file_bytes - trailer_bytes..file_bytes, &mut self.tail)?;
        let tail_bytes = tail::measure(&self.tail, file_bytes).map_err(tail_damage)? as u64;
        if tail_bytes > TAIL_BYTES_MAX as u64 {
            return Err(Damage::Tail(StoreError::Corrupt { what: "bytes of the tail", value: tail_bytes }));
        }
        read(file, file_bytes - tail_bytes..file_bytes, &mut self.tail)?;
        let tail = tail::parse(&self.tail, file_bytes, &mut self.places).map_err(tail_damage)?;
        if tail.key != *key {
            return Err(Damage::Key { found: tail.key });
        }
        let manifest = &self.tail[tail.manifest_at..tail.manifest_at + tail.manifest_bytes];
        let manifest = Manifest::parse(manifest).map_err(Damage::Manifest)?;
        if manifest.key() != key {
            return Err(Damage::Key { found: *manifest.key() });
        }
        if manifest.block_count() != tail.blocks {
            return Err(Damage::Blocks { table: tail.blocks, manifest: manifest.block_count() });
        }
        Ok((tail, manifest))
    }

    /// The block in `self.wire`, `bytes` long and followed by zeros: its header and scales, its payload.
    fn look_at_block(&mut self, manifest: &Manifest, block: usize, at: u64, bytes: usize) -> Result<(), Damage> {
        let part = manifest.plan().part(manifest.geometry(), block);
        let part = part.expect("a parsed manifest has a part for each of its blocks");
        let header = Header::open(&self.wire[..bytes], manifest.key(), manifest.geometry(), block, &part)
            .map_err(|error| Damage::Header { block, error })?;
        let (scales, payload) = (header.scales_range(), header.payload_range());
        for gap in [scales.end..payload.start, bytes..self.wire.len()] {
            if let Some(byte) = self.wire[gap.clone()].iter().position(|&byte| byte != 0) {
                return Err(Damage::Padding { offset: at + (gap.start + byte) as u64 });
            }
        }
        self.codes.resize(header.codes_bytes as usize, 0);
        self.inflate.codes(&header, &self.wire, &mut self.codes).map_err(|error| Damage::Payload { block, error })
    }
}

/// Reads a range of a file. One that ends early was cut off after its length was taken.
fn read(file: &File, range: Range<u64>, into: &mut Vec<u8>) -> Result<(), Damage> {
    into.resize((range.end - range.start) as usize, 0);
    match file.read_exact_at(into, range.start) {
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => {
            Err(Damage::Tail(StoreError::Corrupt { what: "file ends early, before byte", value: range.end }))
        }
        other => other.map_err(unreadable("pread")),
    }
}

fn tail_damage(error: TailError) -> Damage {
    Damage::Tail(error.into())
}

fn unreadable(call: &'static str) -> impl Fn(io::Error) -> Damage {
    move |error| Damage::Unreadable { call, errno: error.raw_os_error().map_or(Errno::EIO, Errno::from_raw) }
}
