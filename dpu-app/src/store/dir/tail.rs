//! The file of one chunk: its blocks, then a tail that says where they are.
//!
//! ```text
//!   0        block that arrived first
//!   4096*n   block that arrived next, each at the next multiple of 4096, zeros between
//!   4096*m   table      blocks x { offset u64, bytes u32, zero u32 }, by block index
//!            manifest   as given
//!            trailer    64 bytes, the last of the file (see `offset` below)
//! ```
//!
//! The tail comes last because lengths are known last, so blocks stream to disk in the order in which they are encoded
//! and nothing is copied twice. Blocks start at multiples of 4096 so that a later reader may bypass the page cache.
//! All words are little-endian. One CRC-32 covers table, manifest and trailer; the bytes of blocks carry their own
//! checks (block format). Pure: no I/O here.

use block::ChunkKey;

use crate::store::{Limits, StoreError};

/// Where a block may start.
pub(in crate::store) const ALIGN: u64 = 4096;
pub(in crate::store) const TRAILER_BYTES: usize = 64;
const PLACE_BYTES: usize = 16;
const MAGIC: [u8; 8] = *b"kvlntail";
const VERSION: u32 = 1;

/// Offsets in the trailer.
mod offset {
    pub(super) const MAGIC: usize = 0;
    pub(super) const VERSION: usize = 8;
    pub(super) const BLOCKS: usize = 12;
    pub(super) const MANIFEST_BYTES: usize = 16;
    pub(super) const ZERO: usize = 20;
    pub(super) const KEY: usize = 24;
    pub(super) const ZERO_2: usize = 56;
    pub(super) const CRC: usize = 60;
}
const _: () = assert!(offset::KEY + size_of::<[u8; 32]>() == offset::ZERO_2 && offset::CRC + 4 == TRAILER_BYTES);

/// Where a block lies in its file. `bytes` is 0 where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct Place {
    pub(in crate::store) offset: u64,
    pub(in crate::store) bytes: u32,
}

/// What a tail says, checked, beside the places and the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Tail {
    pub(in crate::store) key: ChunkKey,
    pub(in crate::store) blocks: usize,
    /// First byte after the last block and its zeros.
    pub(in crate::store) start: u64,
    /// Where the manifest lies in the window that was parsed.
    pub(in crate::store) manifest_at: usize,
    pub(in crate::store) manifest_bytes: usize,
}

/// The next place where something may start.
pub(in crate::store) fn aligned(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGN)
}

/// Bytes of a tail.
pub(in crate::store) fn tail_bytes(blocks: usize, manifest_bytes: usize) -> usize {
    blocks * PLACE_BYTES + manifest_bytes + TRAILER_BYTES
}

/// Bytes of the largest tail under `limits`.
pub(in crate::store) fn tail_bytes_max(limits: &Limits) -> usize {
    tail_bytes(limits.blocks_max, limits.manifest_bytes_max)
}

/// Writes a tail to the head of `out`; returns its bytes.
pub(in crate::store) fn write(key: &ChunkKey, places: &[Place], manifest: &[u8], out: &mut [u8]) -> usize {
    let bytes = tail_bytes(places.len(), manifest.len());
    let out = &mut out[..bytes];
    let (table, rest) = out.split_at_mut(places.len() * PLACE_BYTES);
    for (place, row) in places.iter().zip(table.chunks_exact_mut(PLACE_BYTES)) {
        row[..8].copy_from_slice(&place.offset.to_le_bytes());
        row[8..12].copy_from_slice(&place.bytes.to_le_bytes());
        row[12..].fill(0);
    }
    let (body, trailer) = rest.split_at_mut(manifest.len());
    body.copy_from_slice(manifest);
    trailer.fill(0);
    trailer[offset::MAGIC..offset::VERSION].copy_from_slice(&MAGIC);
    trailer[offset::VERSION..offset::BLOCKS].copy_from_slice(&VERSION.to_le_bytes());
    trailer[offset::BLOCKS..offset::MANIFEST_BYTES].copy_from_slice(&(places.len() as u32).to_le_bytes());
    trailer[offset::MANIFEST_BYTES..offset::ZERO].copy_from_slice(&(manifest.len() as u32).to_le_bytes());
    trailer[offset::KEY..offset::ZERO_2].copy_from_slice(key.bytes());
    let crc = crc32fast::hash(&out[..bytes - 4]);
    out[bytes - 4..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Bytes of the tail that ends at the end of `window`, which holds at least the trailer of a file of `file_bytes`.
pub(in crate::store) fn measure(window: &[u8], file_bytes: u64) -> Result<usize, StoreError> {
    let trailer = trailer(window)?;
    if trailer[offset::MAGIC..offset::VERSION] != MAGIC {
        return corrupt("file does not end in a trailer, bytes", file_bytes);
    }
    let version = word(trailer, offset::VERSION);
    if version != VERSION {
        return corrupt("version of the trailer", version.into());
    }
    // Both are 32 bits wide, so the sum cannot overflow on the 64-bit machines that this runs on.
    let bytes = tail_bytes(word(trailer, offset::BLOCKS) as usize, word(trailer, offset::MANIFEST_BYTES) as usize);
    if bytes as u64 > file_bytes {
        return corrupt("bytes of the tail", bytes as u64);
    }
    Ok(bytes)
}

/// Checks the tail that ends at the end of `window` (the last bytes of a file of `file_bytes`) and fills `places`.
pub(in crate::store) fn parse(window: &[u8], file_bytes: u64, places: &mut [Place]) -> Result<Tail, StoreError> {
    let bytes = measure(window, file_bytes)?;
    if bytes > window.len() {
        return corrupt("bytes of the tail", bytes as u64);
    }
    let at = window.len() - bytes;
    let tail = &window[at..];
    let crc = word(tail, bytes - 4);
    if crc32fast::hash(&tail[..bytes - 4]) != crc {
        return corrupt("crc of the tail", crc.into());
    }
    let trailer = trailer(tail)?;
    let blocks = word(trailer, offset::BLOCKS) as usize;
    let manifest_bytes = word(trailer, offset::MANIFEST_BYTES) as usize;
    if blocks > places.len() {
        return Err(StoreError::Large { what: "blocks of a chunk", value: blocks, max: places.len() });
    }
    if word(trailer, offset::ZERO) != 0 || word(trailer, offset::ZERO_2) != 0 {
        return corrupt("reserved word of the trailer", word(trailer, offset::ZERO).into());
    }
    let start = file_bytes - bytes as u64;
    let mut sum = 0;
    for (place, row) in places.iter_mut().zip(tail[..blocks * PLACE_BYTES].chunks_exact(PLACE_BYTES)) {
        *place = Place { offset: double(row, 0), bytes: word(row, 8) };
        let fits = place.offset.is_multiple_of(ALIGN) && place.offset.saturating_add(place.bytes.into()) <= start;
        if !fits || place.bytes == 0 || word(row, 12) != 0 {
            return corrupt("place of a block at", place.offset);
        }
        sum += aligned(place.bytes.into());
    }
    // A right sum can still hide an overlap beside a hole: scrub looks for that, and the checks of the blocks find it.
    if sum != start {
        return corrupt("start of the tail", start);
    }
    let mut key = [0; 32];
    key.copy_from_slice(&trailer[offset::KEY..offset::ZERO_2]);
    Ok(Tail { key: ChunkKey::new(key), blocks, start, manifest_at: at + blocks * PLACE_BYTES, manifest_bytes })
}

fn trailer(window: &[u8]) -> Result<&[u8], StoreError> {
    match window.len().checked_sub(TRAILER_BYTES) {
        Some(at) => Ok(&window[at..]),
        None => corrupt("file is shorter than a trailer, bytes", window.len() as u64),
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn double(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

fn corrupt<T>(what: &'static str, value: u64) -> Result<T, StoreError> {
    Err(StoreError::Corrupt { what, value })
}
