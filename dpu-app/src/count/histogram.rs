//! How long requests took: a histogram with fixed bounds, two atomic additions a value.
//!
//! Bounds go 1-2-5 from 10 us, the time of a look-up in memory, to 10 s, past which only deadlines end a request. The
//! writer is one thread; a reader may see a value in its bucket and not yet in the sum, never the other way of
//! counting: the count is the sum of the buckets.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Upper bounds of the buckets, microseconds, inclusive. What is longer falls into one more bucket.
pub(crate) const BOUNDS_US: [u64; 19] = [
    10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000,
    2_000_000, 5_000_000, 10_000_000,
];
const BUCKETS: usize = BOUNDS_US.len() + 1;

/// Counts of durations by bucket.
#[derive(Debug, Default)]
pub struct DurationHistogram {
    buckets: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

impl DurationHistogram {
    pub fn record(&self, us: u64) {
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    /// Copies the counts.
    #[must_use]
    pub fn read(&self) -> HistogramReading {
        // The sum first: it never includes a value that the buckets lack.
        let sum_us = self.sum_us.load(Relaxed);
        HistogramReading { buckets: std::array::from_fn(|index| self.buckets[index].load(Relaxed)), sum_us }
    }
}

/// What a [`DurationHistogram`] held at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistogramReading {
    pub buckets: [u64; BUCKETS],
    pub sum_us: u64,
}

impl HistogramReading {
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Estimates a quantile, microseconds: linear within its bucket, as PromQL's
    /// `histogram_quantile` has it, and the last bound for what lies past that. 0 if nothing was recorded.
    #[must_use]
    pub fn quantile_us(&self, quantile: f64) -> u64 {
        let rank = self.count() as f64 * quantile;
        let mut below = 0;
        for (index, &count) in self.buckets.iter().enumerate() {
            let upper = BOUNDS_US.get(index).copied();
            if count > 0 && (below + count) as f64 >= rank {
                let Some(upper) = upper else { break };
                let lower = if index == 0 { 0 } else { BOUNDS_US[index - 1] };
                let share = (rank - below as f64) / count as f64;
                return lower + ((upper - lower) as f64 * share) as u64;
            }
            below += count;
        }
        if self.count() == 0 { 0 } else { BOUNDS_US[BOUNDS_US.len() - 1] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_falls_into_the_first_bucket_that_reaches_it() {
        let histogram = DurationHistogram::default();
        for us in [0, 10, 11, 10_000_000, 10_000_001, u64::from(u32::MAX)] {
            histogram.record(us);
        }
        let read = histogram.read();
        assert_eq!((read.buckets[0], read.buckets[1], read.buckets[18], read.buckets[19]), (2, 1, 1, 2));
        assert_eq!((read.count(), read.sum_us), (6, 21 + 20_000_001 + u64::from(u32::MAX)));
    }

    #[test]
    fn quantiles_lie_within_the_bucket_of_the_true_value() {
        let histogram = DurationHistogram::default();
        assert_eq!(histogram.read().quantile_us(0.5), 0);
        (1..=1000).for_each(|us| histogram.record(us));
        let read = histogram.read();
        for (quantile, least, most) in [(0.5, 490, 510), (0.99, 980, 1000), (1.0, 1000, 1000), (0.01, 9, 11)] {
            let us = read.quantile_us(quantile);
            assert!((least..=most).contains(&us), "{quantile}: {us}");
        }
        (0..10_000).for_each(|_| histogram.record(60_000_000));
        assert_eq!(histogram.read().quantile_us(0.99), 10_000_000, "no more is known than the last bound");
    }
}
