//! What is known of one server behind a store: for `status`, metrics and whoever asks why a fetch was slow.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Whether requests go to a server at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// Requests go there.
    Closed,
    /// It failed too often of late: requests to it fail at once, until it is tried again.
    Open,
}

impl NodeState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
        }
    }
}

/// What a server is to its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeRole {
    Master,
    Replica,
    /// Known once, and of no slot now.
    Unused,
}

impl NodeRole {
    pub fn name(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Replica => "replica",
            Self::Unused => "unused",
        }
    }
}

/// One server, as it is now; counters since the store was opened.
#[derive(Clone, Copy, Debug)]
pub struct NodeFacts<'a> {
    pub address: &'a str,
    pub role: NodeRole,
    pub state: NodeState,
    /// Connections that are up.
    pub connections: u64,
    /// Requests sent and not yet answered.
    pub in_flight: u64,
    pub requests: u64,
    /// Bytes of blocks received and sent.
    pub bytes_read: u64,
    pub bytes_put: u64,
    /// Connections that failed or were given up, and replies that were errors.
    pub errors: u64,
    /// Requests that were sent again.
    pub retries: u64,
    /// Connections made after the first of their place.
    pub reconnects: u64,
    /// Replies MOVED and ASK.
    pub redirects: u64,
    /// Latency, from the moment a request is queued on its connection to the end of its reply.
    pub latency: Quantiles,
}

/// Quantiles of a histogram: upper bounds of the buckets, so never too low and at most a fifth too high.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quantiles {
    pub count: u64,
    pub sum_us: u64,
    pub p50_us: u64,
    pub p90_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
}

/// Buckets of a histogram: four to each doubling from 10 us on, to 10 s; the last takes all above.
const BUCKETS: usize = 81;
const FIRST_US: f64 = 10.0;
const PER_DOUBLING: f64 = 4.0;

/// A histogram of times in fixed memory, written by many threads.
#[derive(Debug)]
pub(crate) struct Histogram {
    counts: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
    max_us: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| AtomicU64::new(0)), sum_us: 0.into(), max_us: 0.into() }
    }
}

impl Histogram {
    pub(crate) fn count(&self, time: Duration) {
        let us = time.as_micros().min(u64::MAX.into()) as u64;
        let bucket = ((us as f64 / FIRST_US).log2() * PER_DOUBLING).ceil().clamp(0.0, (BUCKETS - 1) as f64) as usize;
        self.counts[bucket].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
        self.max_us.fetch_max(us, Relaxed);
    }

    pub(crate) fn quantiles(&self) -> Quantiles {
        let counts: [u64; BUCKETS] = std::array::from_fn(|bucket| self.counts[bucket].load(Relaxed));
        let count: u64 = counts.iter().sum();
        let max_us = self.max_us.load(Relaxed);
        let at = |share: f64| {
            let rank = (count as f64 * share).ceil() as u64;
            let mut below = 0;
            let bucket = counts.iter().position(|&n| {
                below += n;
                below >= rank.max(1)
            });
            // The last bucket has no upper bound of its own.
            let bound = bucket.map_or(0.0, |bucket| FIRST_US * (bucket as f64 / PER_DOUBLING).exp2());
            if bucket == Some(BUCKETS - 1) { max_us } else { (bound.round() as u64).min(max_us) }
        };
        let [p50_us, p90_us, p99_us] = [0.5, 0.9, 0.99].map(at);
        Quantiles { count, sum_us: self.sum_us.load(Relaxed), p50_us, p90_us, p99_us, max_us }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_fifth_above_and_never_below() {
        let histogram = Histogram::default();
        assert_eq!(histogram.quantiles(), Quantiles::default());
        (1..=1000).for_each(|n| histogram.count(Duration::from_micros(n * 20)));
        let found = histogram.quantiles();
        assert_eq!((found.count, found.sum_us, found.max_us), (1000, 10_010_000, 20_000));
        for (found, right) in [(found.p50_us, 10_000), (found.p90_us, 18_000), (found.p99_us, 19_800)] {
            assert!((right..=right * 6 / 5).contains(&found), "{found} for {right}");
        }
        histogram.count(Duration::from_secs(100));
        histogram.count(Duration::ZERO);
        assert_eq!(histogram.quantiles().max_us, 100_000_000);
    }
}
