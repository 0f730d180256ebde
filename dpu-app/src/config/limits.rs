//! Limits that are not the operator's to change, and what the sizes that are follow from.

use crate::config::Config;

/// Host processes attached at the same time: sixteen engines with tensor parallelism 8 have nine each, and 16 are for
/// tools.
pub(crate) const SESSIONS_MAX: usize = 160;
/// Sessions kept for the card's own operator, who comes by the socket when all others are taken.
pub(crate) const SESSIONS_OF_OPERATOR: usize = 1;
/// All sessions, the operator's among them.
pub(crate) const PLACES_MAX: usize = SESSIONS_MAX + SESSIONS_OF_OPERATOR;
/// Worker threads of one kind.
pub const WORKERS_MAX: usize = 16;
/// Chunks in progress at the same time, over all sessions.
pub(crate) const CHUNKS_ACTIVE_MAX: usize = 64;
/// Sessions that one read of a chunk serves: the ranks of an engine with tensor parallelism 8. Of more, some read it
/// once more.
pub(crate) const TEAM_MAX: usize = 8;
/// Chunks that follow others' fetches at the same time, over all sessions: teams of [`TEAM_MAX`], eight chunks deep.
pub(crate) const FOLLOWERS_MAX: usize = 8 * (TEAM_MAX - 1);
/// Slots of the largest ring that a configuration may ask for: tickets and queues are sized for it.
pub const SLOTS_MAX: usize = 64;
/// Longest answer text (status), bytes.
pub(crate) const ANSWER_BYTES: usize = 24 << 10;
/// Store calls that failed in a row, each after its retries, from which the store counts as down.
pub(crate) const STORE_FAILURES_MIN: u32 = 3;

/// Sizes of one slot's areas, bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotBytes {
    /// Header, scales and payload as stored.
    pub wire: usize,
    /// One byte per code, or byte planes.
    pub codes: usize,
    /// Elements in the order of the host's pages.
    pub tile: usize,
}

impl SlotBytes {
    /// Sizes the areas for blocks of at most `block_bytes` bytes of elements. Codes are never longer than the elements,
    /// a payload never longer than the codes; an eighth on top of that is for header and scales.
    #[must_use]
    pub fn for_blocks(block_bytes: usize) -> Self {
        Self { wire: block_bytes + block_bytes / 8, codes: block_bytes, tile: block_bytes }
    }

    #[must_use]
    pub fn total(self) -> usize {
        [self.wire, self.codes, self.tile].iter().map(|bytes| bytes.next_multiple_of(doca::AREA_ALIGNMENT)).sum()
    }
}

/// Questions that one fetch worker can have at the store: a block for each slot, an open or a close for each seat, a
/// look-up for each session.
pub(crate) fn asks_max(config: &Config) -> usize {
    config.slots + config.chunks + config.sessions
}

/// Seats of chunks that follow others' fetches, beside those of chunks that the store knows of.
#[must_use]
pub(crate) fn follower_seats(config: &Config) -> usize {
    if config.join { FOLLOWERS_MAX.min(config.chunks * (TEAM_MAX - 1)) } else { 0 }
}

/// Limits that the store allocates for.
#[must_use]
pub fn store_limits(config: &Config) -> store::Limits {
    store::Limits {
        chunks_open_max: config.chunks,
        puts_max: config.chunks,
        blocks_max: block::BLOCKS_PER_CHUNK_MAX,
        block_bytes_max: config.slot_bytes().wire,
        manifest_bytes_max: block::MANIFEST_BYTES_MAX,
        asks_max: asks_max(config),
        writers_max: config.encode_workers,
        ..store::Limits::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_the_sum_of_its_areas() {
        let bytes = SlotBytes::for_blocks(512 << 10);
        assert_eq!(bytes.total(), (512 + 64 + 512 + 512) << 10);
    }
}
