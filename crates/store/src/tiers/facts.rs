//! What tiers tell of themselves.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tier::{NAMESPACES_MAX, Quota, Worth};

/// Buckets of scores: the first below 2^-7, each of the others twice the one before it.
pub const SCORE_BUCKETS: usize = 16;

/// One tier, as it is now; counters since the store was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TierFacts {
    /// `dram` or `dir`.
    pub name: &'static str,
    pub chunks: u64,
    pub bytes: u64,
    pub bytes_max: u64,
    /// Chunks opened there, and bytes of blocks read.
    pub hits: u64,
    pub bytes_read: u64,
    /// Chunks that came in, were not worth it, and could not be brought.
    pub promoted: u64,
    pub refused: u64,
    pub failed: u64,
    pub bytes_promoted: u64,
    /// Chunks that left for others, and their bytes.
    pub evicted: u64,
    pub bytes_evicted: u64,
    /// Calls that took long, and whether the tier is passed over now, for reading or writing.
    pub slow: u64,
    pub out: bool,
    /// Bytes by namespace (`Namespaces::names`).
    pub namespaces: [u64; NAMESPACES_MAX],
    /// Chunks by score, where it was asked for. A score of 1 is one use just now of a chunk of neutral importance.
    pub scores: [u32; SCORE_BUCKETS],
}

/// Counts of what came into a tier and what did not.
#[derive(Debug, Default)]
pub(super) struct PromotionCounts {
    pub(super) promoted: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) bytes_promoted: AtomicU64,
}

impl PromotionCounts {
    /// Counts a refusal.
    pub(super) fn admitted(&self, admitted: bool) -> bool {
        if !admitted {
            self.refused.fetch_add(1, Relaxed);
        }
        admitted
    }
}

/// Init.
pub(super) fn set_quotas(policy: &mut Worth, quotas: &[Quota]) {
    quotas.iter().enumerate().for_each(|(namespace, quota)| policy.set_quota(namespace as u8, *quota));
}

/// Returns the bytes of each namespace.
pub(super) fn occupancy(policy: &Worth) -> [u64; NAMESPACES_MAX] {
    std::array::from_fn(|namespace| policy.bytes_of(namespace as u8))
}

/// Counts the chunks by score.
pub(super) fn scores(policy: &Worth, now_ms: u64) -> [u32; SCORE_BUCKETS] {
    let mut buckets = [0; SCORE_BUCKETS];
    let middle = (SCORE_BUCKETS / 2) as f64;
    policy.each(now_ms, |view| {
        let bucket = view.score.log2().floor() + middle;
        buckets[bucket.clamp(0.0, (SCORE_BUCKETS - 1) as f64) as usize] += 1;
    });
    buckets
}
