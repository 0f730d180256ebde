//! Copies what a fetch brings from T2 into T0 on its way, if T0 wants it: its bytes cross the network once.
//!
//! ```text
//!   Open in T2    is it worth its room? then pages for all of it       begin
//!   each Read     copied from the slot's memory, by the fetch worker   bring
//!   close         found from here on, if all of it came                end
//! ```
//!
//! A copy costs a fetch worker time, so no more than [`BYTES_PER_S`] come in this way; the mover brings the rest when
//! nobody fetches. A fetch of some of a chunk's tokens brings nothing, and neither does one whose bytes proved bad.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use block::{ChunkKey, Manifest};

use super::{Tiers, chunk};
use crate::Position;

/// What fetches copy in a second at most, over more than [`BURST_MS`].
pub(super) const BYTES_PER_S: u64 = 1 << 30;
const BURST_MS: u64 = 250;

/// What may still be copied: the time at which all of what was taken would have been at [`BYTES_PER_S`], microseconds.
#[derive(Debug, Default)]
pub(super) struct Allowance(AtomicU64);

impl Allowance {
    fn take(&self, bytes: u64, now_us: u64) -> bool {
        let takes = |until: u64| {
            let from = until.max(now_us);
            (from - now_us <= BURST_MS * 1000).then_some(from + bytes * 1_000_000 / BYTES_PER_S)
        };
        self.0.fetch_update(Relaxed, Relaxed, takes).is_ok()
    }
}

impl Tiers {
    /// A chunk with this manifest was opened in T2 for a fetch. `scratch` is as long as a manifest can be.
    pub(super) fn begin_arrival(
        &self,
        seat: usize,
        key: &ChunkKey,
        position: &Position,
        manifest: &[u8],
        scratch: &mut [u8],
    ) {
        let Some(dram) = self.dram.as_ref().filter(|dram| !dram.expects(key)) else { return };
        // None of ours to understand: served from T2.
        let Ok(parsed) = Manifest::parse(manifest) else { return };
        let blocks = parsed.lengths().iter().map(|&bytes| u64::from(bytes)).sum();
        let now = self.started.elapsed();
        if !self.allowance.take(blocks, now.as_micros() as u64) {
            return;
        }
        let rated = self.rated(key, parsed);
        let bytes = rated.encode(scratch);
        // Where T1 has it T1 would have served it.
        let wire_bytes = u32::try_from(blocks).unwrap_or(u32::MAX);
        let offered = chunk(key, wire_bytes, position.namespace, rated.importance(), 1.0);
        let (now_ms, parts) = (now.as_millis() as u64, (&scratch[..bytes], rated.lengths()));
        self.moves[0].admitted(dram.begin(seat, &offered, position.parent.as_ref(), now_ms, parts));
    }

    /// A block came from T2.
    pub(super) fn bring(&self, seat: usize, index: usize, block: &[u8]) {
        if let Some(dram) = &self.dram {
            dram.write_block(seat, index, block);
        }
    }

    /// Whoever brought the chunk of this seat, if anybody did, is through with it; `good`: as far as anybody knows.
    pub(super) fn end_arrival(&self, seat: usize, good: bool) {
        let Some(dram) = &self.dram else { return };
        let moves = &self.moves[0];
        match dram.missing(seat) {
            None => {}
            Some(0) if good => {
                moves.bytes_promoted.fetch_add(dram.publish(seat), Relaxed);
                moves.promoted.fetch_add(1, Relaxed);
            }
            Some(_) => {
                dram.give_up(seat);
                moves.failed.fetch_add(1, Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_is_a_rate_with_a_burst() {
        let allowance = Allowance::default();
        let quarter = BYTES_PER_S / 4;
        assert!(allowance.take(quarter, 0) && allowance.take(quarter, 0), "the burst, and one that begins within it");
        assert!(!allowance.take(1, 0));
        assert!(!allowance.take(1, 200_000));
        assert!(allowance.take(quarter, 250_000));
        assert!(!allowance.take(1, 250_001));
        assert!(
            allowance.take(quarter, 10_000_000) && allowance.take(quarter, 10_000_000),
            "what was not taken is gone"
        );
        assert!(!allowance.take(1, 10_000_000));
    }
}
