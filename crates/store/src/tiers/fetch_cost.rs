//! What it costs to bring a byte back into T0, from T1 against from T2: measured on what the mover reads.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use super::Tier;

/// Part of a new measurement in the mean.
const WEIGHT: f32 = 1.0 / 8.0;
/// The least that a chunk which T1 has, too, is worth of one that it has not, however fast T1 is: T0 saves more than
/// time.
const COST_LEAST: f32 = 1.0 / 16.0;

/// Microseconds a byte, as the bits of an `f32`; 0: not measured yet. One writer: the mover.
#[derive(Debug, Default)]
pub(super) struct FetchCost {
    disk: AtomicU32,
    bottom: AtomicU32,
}

impl FetchCost {
    /// Counts a read of `bytes` from T1 or T2.
    pub(super) fn saw(&self, from: Tier, bytes: u64, took: Duration) {
        let mean = match from {
            Tier::Disk => &self.disk,
            Tier::Bottom => &self.bottom,
            Tier::Dram => return,
        };
        let (now, before) = (took.as_secs_f32() * 1e6 / bytes.max(1) as f32, rate(mean));
        let after = if before == 0.0 { now } else { before + (now - before) * WEIGHT };
        mean.store(after.to_bits(), Relaxed);
    }

    /// The cost of a byte from T1, where one from T2 costs 1; both the same until both were measured.
    pub(super) fn disk(&self) -> f32 {
        let (disk, bottom) = (rate(&self.disk), rate(&self.bottom));
        if disk > 0.0 && bottom > 0.0 { (disk / bottom).clamp(COST_LEAST, 1.0) } else { 1.0 }
    }
}

fn rate(mean: &AtomicU32) -> f32 {
    f32::from_bits(mean.load(Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_is_what_was_measured_and_bounded() {
        let cost = FetchCost::default();
        assert_eq!(cost.disk(), 1.0);
        cost.saw(Tier::Bottom, 1000, Duration::from_millis(4));
        assert_eq!(cost.disk(), 1.0);
        cost.saw(Tier::Disk, 1000, Duration::from_millis(1));
        assert_eq!(cost.disk(), 0.25);
        (0..100).for_each(|_| cost.saw(Tier::Disk, 1000, Duration::from_nanos(10)));
        assert_eq!(cost.disk(), COST_LEAST);
        (0..100).for_each(|_| cost.saw(Tier::Disk, 1000, Duration::from_secs(1)));
        assert_eq!(cost.disk(), 1.0);
    }
}
