//! What follows from the bytes of T0: pages, chunks, and the memory of its books.

use block::ChunkKey;
use tier::Worth;

use super::landing::Landing;
use crate::Limits;
use crate::tiers::pages::ChunkPages;

/// Bytes of a page: small beside a block, large beside the 16 bytes of tables for it.
pub(crate) const PAGE_BYTES: usize = 4 << 10;
/// Share of the slab that stays free, so that there are long runs: without, most blocks would lie in pieces after a
/// while (docs/tiers.md).
pub(in crate::tiers) const SPARE: f64 = 1.0 / 16.0;
/// Bytes of the smallest chunk that the tables are made for.
const CHUNK_BYTES_LEAST: u64 = 256 << 10;

/// See the module's head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(super) page_count: usize,
    /// Bytes that the policy gives away: all but the spare pages.
    pub(crate) bytes_max: u64,
    pub(crate) chunks_max: usize,
}

impl Extent {
    /// Divides a tier; `None`: it has no room for a page, or more than can be numbered.
    pub(crate) fn of(bytes: u64) -> Option<Self> {
        let page_count = usize::try_from(bytes / PAGE_BYTES as u64).ok().filter(|n| (1..1 << 31).contains(n))?;
        let bytes_max = ((page_count - (page_count as f64 * SPARE) as usize) * PAGE_BYTES) as u64;
        Some(Self { page_count, bytes_max, chunks_max: (bytes_max / CHUNK_BYTES_LEAST).max(16) as usize })
    }

    pub(crate) fn slab_bytes(&self) -> usize {
        self.page_count * PAGE_BYTES
    }

    /// Returns the entries that the map is made for, twice as many as there can be, so that it never grows; and the
    /// records, since chunks that are gone and still read have one, too.
    pub(super) fn entries(&self) -> usize {
        2 * self.chunks_max
    }

    /// Returns the bytes of the slab's books.
    pub(crate) fn books_bytes(&self, limits: &Limits) -> usize {
        // What a hash map takes for so many entries: a power of two, an eighth of it spare.
        let map = (self.entries() * 8 / 7).next_power_of_two() * (size_of::<(ChunkKey, u32)>() + 1);
        let landing = Landing::memory_bytes(limits);
        Worth::memory_bytes(self.chunks_max)
            + ChunkPages::memory_bytes(self.page_count, self.entries())
            + map
            + limits.chunks_open_max * landing
    }
}
