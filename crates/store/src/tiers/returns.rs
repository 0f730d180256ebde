//! What it takes to bring a byte back into T0, from T1 against from T2: measured on what the mover reads.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// Where a chunk comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Disk,
    Bottom,
    /// For T1 only.
    Dram,
}

/// Part of a new measurement in the mean.
const WEIGHT: f32 = 1.0 / 8.0;
/// However fast T1 is, a chunk that it has is worth this much of one that it has not: T0 saves more than time.
const COST_LEAST: f32 = 1.0 / 16.0;

/// Microseconds a byte, by source, as the bits of an `f32`; 0: not measured yet. One writer: the mover.
#[derive(Debug, Default)]
pub(super) struct Returns([AtomicU32; 2]);

impl Returns {
    fn rate(&self, source: Source) -> f32 {
        f32::from_bits(self.0[source as usize].load(Relaxed))
    }

    pub(super) fn saw(&self, source: Source, bytes: u64, took: Duration) {
        if source == Source::Dram {
            return;
        }
        let (now, before) = (took.as_secs_f32() * 1e6 / bytes.max(1) as f32, self.rate(source));
        let mean = if before == 0.0 { now } else { before + (now - before) * WEIGHT };
        self.0[source as usize].store(mean.to_bits(), Relaxed);
    }

    /// Of a byte from T1, where one from T2 costs 1; both the same until both were measured.
    pub(super) fn disk_cost(&self) -> f32 {
        let (disk, bottom) = (self.rate(Source::Disk), self.rate(Source::Bottom));
        if disk > 0.0 && bottom > 0.0 { (disk / bottom).clamp(COST_LEAST, 1.0) } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_is_what_was_measured_and_bounded() {
        let returns = Returns::default();
        assert_eq!(returns.disk_cost(), 1.0);
        returns.saw(Source::Bottom, 1000, Duration::from_millis(4));
        assert_eq!(returns.disk_cost(), 1.0);
        returns.saw(Source::Disk, 1000, Duration::from_millis(1));
        assert_eq!(returns.disk_cost(), 0.25);
        (0..100).for_each(|_| returns.saw(Source::Disk, 1000, Duration::from_nanos(10)));
        assert_eq!(returns.disk_cost(), COST_LEAST);
        (0..100).for_each(|_| returns.saw(Source::Disk, 1000, Duration::from_secs(1)));
        assert_eq!(returns.disk_cost(), 1.0);
    }
}
