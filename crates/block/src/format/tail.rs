//! The tail of a chunk's file in a directory store: where its blocks lie, its manifest, and a trailer.
//!
//! ```text
//!   0        block that arrived first
//!   4096*n   block that arrived next, each at the next multiple of 4096, zeros between
//!   4096*m   table      blocks x { offset u64, bytes u32, zero u32 }, by block index
//!            manifest   as given
//!            trailer    64 bytes, the last of the file
//! ```
//!
//! The tail comes last because lengths are known last, so blocks stream to disk in the order in which they are encoded
//! and nothing is copied twice. Blocks start at multiples of 4096 so that a later reader may bypass the page cache.
//! One CRC-32 covers table, manifest and trailer; the bytes of blocks carry their own checks. It refuses to look into
//! the manifest, which [`crate::Manifest::parse`] reads. Byte tables: docs/formats.md, "Chunk in a directory store".

use crate::format::key::{ChunkKey, KEY_BYTES};
use crate::format::manifest::MANIFEST_BYTES_MAX;
use crate::format::plan::BLOCKS_PER_CHUNK_MAX;
use crate::format::words::{put, u32_at, u64_at};
use std::fmt;

/// Blocks start at multiples of this.
pub const ALIGN: u64 = 4096;
pub const TRAILER_BYTES: usize = 64;
/// The first bytes of a trailer.
pub const TRAILER_MAGIC: [u8; 8] = *b"kvlntail";
/// Bytes of the largest tail that a chunk can have.
pub const TAIL_BYTES_MAX: usize = tail_bytes(BLOCKS_PER_CHUNK_MAX, MANIFEST_BYTES_MAX);
const PLACE_BYTES: usize = 16;
const VERSION: u32 = 1;

/// Offsets in the trailer.
mod at {
    pub(super) const MAGIC: usize = 0;
    pub(super) const VERSION: usize = 8;
    pub(super) const BLOCKS: usize = 12;
    pub(super) const MANIFEST_BYTES: usize = 16;
    pub(super) const ZERO: usize = 20;
    pub(super) const KEY: usize = 24;
    pub(super) const ZERO_2: usize = 56;
    pub(super) const CRC: usize = 60;
}
const _: () = assert!(at::KEY + KEY_BYTES == at::ZERO_2 && at::CRC + 4 == TRAILER_BYTES);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TailError {
    /// The bytes are wrong; `value` is what was found.
    Corrupt { what: &'static str, value: u64 },
    /// The checksum holds, and a word is one that this reader does not know: another version wrote it.
    Foreign { what: &'static str, value: u64 },
    /// More blocks than the caller has places for. The file may be good.
    Large { blocks: usize, max: usize },
}

impl fmt::Display for TailError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corrupt { what, value } => write!(f, "tail: {what} ({value})"),
            Self::Foreign { what, value } => write!(f, "tail: {what} {value} is not known here"),
            Self::Large { blocks, max } => write!(f, "tail: {blocks} blocks, at most {max}"),
        }
    }
}

impl std::error::Error for TailError {}

/// Place of a block in its file. `bytes` is 0 where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub offset: u64,
    pub bytes: u32,
}

/// Content of a tail, checked, beside the places and the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    pub key: ChunkKey,
    pub blocks: usize,
    /// First byte after the last block and its zeros.
    pub start: u64,
    /// Offset of the manifest in the window that was parsed.
    pub manifest_at: usize,
    pub manifest_bytes: usize,
}

/// The next place where something may start.
pub const fn aligned(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGN)
}

/// Bytes of a tail.
pub const fn tail_bytes(blocks: usize, manifest_bytes: usize) -> usize {
    blocks * PLACE_BYTES + manifest_bytes + TRAILER_BYTES
}

/// Writes a tail to the start of `out` and returns how many bytes it took: [`tail_bytes`].
///
/// # Panics
/// When `out` is shorter than that.
pub fn write(key: &ChunkKey, places: &[Place], manifest: &[u8], out: &mut [u8]) -> usize {
    let bytes = tail_bytes(places.len(), manifest.len());
    let out = &mut out[..bytes];
    let (table, rest) = out.split_at_mut(places.len() * PLACE_BYTES);
    for (place, row) in places.iter().zip(table.as_chunks_mut::<PLACE_BYTES>().0) {
        row.fill(0);
        put(row, 0, &place.offset.to_le_bytes());
        put(row, 8, &place.bytes.to_le_bytes());
    }
    let (body, trailer) = rest.split_at_mut(manifest.len());
    body.copy_from_slice(manifest);
    trailer.fill(0);
    put(trailer, at::MAGIC, &TRAILER_MAGIC);
    put(trailer, at::VERSION, &VERSION.to_le_bytes());
    put(trailer, at::BLOCKS, &(places.len() as u32).to_le_bytes());
    put(trailer, at::MANIFEST_BYTES, &(manifest.len() as u32).to_le_bytes());
    put(trailer, at::KEY, key.bytes());
    let crc = crc32fast::hash(&out[..bytes - 4]);
    put(out, bytes - 4, &crc.to_le_bytes());
    bytes
}

/// Bytes of the tail, of any version, that ends at the end of `window`, which holds at least the trailer of a file of
/// `file_bytes`: magic, version, numbers and CRC keep their places, and the CRC what it covers (docs/upgrades.md).
pub fn measure(window: &[u8], file_bytes: u64) -> Result<usize, TailError> {
    let trailer = trailer(window)?;
    if trailer[at::MAGIC..at::VERSION] != TRAILER_MAGIC {
        return corrupt("file does not end in a trailer, bytes", file_bytes);
    }
    // Both are 32 bits wide, so the sum cannot overflow on the 64-bit machines that this runs on.
    let bytes = tail_bytes(u32_at(trailer, at::BLOCKS) as usize, u32_at(trailer, at::MANIFEST_BYTES) as usize);
    if bytes as u64 > file_bytes {
        return corrupt("bytes of the tail", bytes as u64);
    }
    Ok(bytes)
}

/// Checks the tail that ends at the end of `window` (the last bytes of a file of `file_bytes`) and fills `places`.
pub fn parse(window: &[u8], file_bytes: u64, places: &mut [Place]) -> Result<Tail, TailError> {
    let bytes = measure(window, file_bytes)?;
    if bytes > window.len() {
        return corrupt("bytes of the tail", bytes as u64);
    }
    let first = window.len() - bytes;
    let tail = &window[first..];
    let crc = u32_at(tail, bytes - 4);
    if crc32fast::hash(&tail[..bytes - 4]) != crc {
        return corrupt("crc of the tail", crc.into());
    }
    let trailer = trailer(tail)?;
    let version = u32_at(trailer, at::VERSION);
    if version != VERSION {
        return Err(TailError::Foreign { what: "a trailer version", value: version.into() });
    }
    let blocks = u32_at(trailer, at::BLOCKS) as usize;
    let manifest_bytes = u32_at(trailer, at::MANIFEST_BYTES) as usize;
    if blocks > places.len() {
        return Err(TailError::Large { blocks, max: places.len() });
    }
    let reserved = u32_at(trailer, at::ZERO) | u32_at(trailer, at::ZERO_2);
    if reserved != 0 {
        return Err(TailError::Foreign { what: "a word of the trailer", value: reserved.into() });
    }
    let start = file_bytes - bytes as u64;
    let mut sum = 0;
    for (place, row) in places.iter_mut().zip(tail[..blocks * PLACE_BYTES].as_chunks::<PLACE_BYTES>().0) {
        *place = Place { offset: u64_at(row, 0), bytes: u32_at(row, 8) };
        let fits = place.offset.is_multiple_of(ALIGN) && place.offset.saturating_add(place.bytes.into()) <= start;
        if !fits || place.bytes == 0 || u32_at(row, 12) != 0 {
            return corrupt("place of a block at", place.offset);
        }
        sum += aligned(place.bytes.into());
    }
    // A right sum can still hide an overlap beside a hole: scrub and inspect look for that, and the checks of the
    // blocks find it.
    if sum != start {
        return corrupt("start of the tail", start);
    }
    let key = trailer[at::KEY..].first_chunk::<KEY_BYTES>().expect("inside the trailer");
    Ok(Tail { key: ChunkKey::new(*key), blocks, start, manifest_at: first + blocks * PLACE_BYTES, manifest_bytes })
}

fn trailer(window: &[u8]) -> Result<&[u8; TRAILER_BYTES], TailError> {
    match window.last_chunk() {
        Some(trailer) => Ok(trailer),
        None => corrupt("file is shorter than a trailer, bytes", window.len() as u64),
    }
}

fn corrupt<T>(what: &'static str, value: u64) -> Result<T, TailError> {
    Err(TailError::Corrupt { what, value })
}
