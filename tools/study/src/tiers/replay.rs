//! What tiers would have served of a trace.

use std::collections::HashSet;

use block::ChunkKey;
use clap::ValueEnum;
use tier::{CandidateChunk, Lfu, Lru, Policy, S3Fifo, Sizes, Worth};

use super::best::Best;
use super::trace::Trace;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PolicyKind {
    /// Uses to expect x importance x cost per byte, prefix-aware: what dpu-app uses
    Ours,
    /// Least recently used
    Lru,
    /// Least frequently used
    Lfu,
    /// S3-FIFO
    S3fifo,
    /// Knows the future: the bound for all others
    Best,
}

impl PolicyKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Lru => "lru",
            Self::Lfu => "lfu",
            Self::S3fifo => "s3fifo",
            Self::Best => "best",
        }
    }
}

/// One tier: what it is called, and its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierSize {
    pub name: String,
    pub bytes: u64,
}

/// What was served from where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Served {
    pub chunks: u64,
    pub bytes: u64,
}

/// The sums of one replay.
#[derive(Clone, Debug, PartialEq)]
pub struct Replayed {
    /// Chunks of leading runs that no faster tier had, by tier, fastest first.
    pub tiers: Vec<Served>,
    /// Chunks from the store that holds everything.
    pub remote: Served,
    /// Chunks that are asked for the first time: nobody has them.
    pub new: Served,
}

impl Replayed {
    /// Share of all chunks that came from tier `index` or a faster one.
    pub fn hit_rate(&self, index: usize) -> f64 {
        let from = |served: &[Served]| served.iter().map(|served| served.chunks).sum::<u64>();
        let all = from(&self.tiers) + self.remote.chunks + self.new.chunks;
        from(&self.tiers[..=index]) as f64 / all.max(1) as f64
    }
}

/// Runs a trace through tiers that all have the same policy. `chunk_bytes`: mean bytes of a chunk as it lies in a tier;
/// chunks differ by up to a quarter.
pub fn replay(trace: &Trace, tiers: &[TierSize], kind: PolicyKind, chunk_bytes: u32) -> Replayed {
    let policy = |tier: &TierSize| policy(kind, tier.bytes, chunk_bytes, trace);
    let mut policies: Vec<Box<dyn Policy>> = tiers.iter().map(policy).collect();
    let mut seen = HashSet::new();
    let none = Served::default();
    let mut sums = Replayed { tiers: vec![none.clone(); tiers.len()], remote: none.clone(), new: none };
    let mut prompt = Vec::new();
    for request in &trace.requests {
        prompt.clear();
        prompt.extend(request.chunks.iter().map(|&id| chunk(id, chunk_bytes)));
        // A tier serves a chunk if it has all before it, or a faster one has.
        let mut slowest = 0;
        for (chunk, id) in prompt.iter().zip(&request.chunks) {
            let found = (0..policies.len()).find(|&tier| policies[tier].holds(&chunk.key));
            slowest = slowest.max(found.unwrap_or(policies.len()));
            let new = seen.insert(*id);
            let served = match sums.tiers.get_mut(slowest) {
                Some(tier) => tier,
                None if new => &mut sums.new,
                None => &mut sums.remote,
            };
            served.chunks += 1;
            served.bytes += u64::from(chunk.bytes);
        }
        policies.iter_mut().for_each(|policy| policy.request(&prompt, request.at_ms));
    }
    sums
}

fn policy(kind: PolicyKind, bytes_max: u64, chunk_bytes: u32, trace: &Trace) -> Box<dyn Policy> {
    let chunks_max = (bytes_max / u64::from(chunk_bytes / 2).max(1) + 16) as usize;
    match kind {
        PolicyKind::Ours => Box::new(Worth::new(Sizes { bytes_max, chunks_max }, 1)),
        PolicyKind::Lru => Box::new(Lru::new(bytes_max)),
        PolicyKind::Lfu => Box::new(Lfu::new(bytes_max)),
        PolicyKind::S3fifo => Box::new(S3Fifo::new(bytes_max)),
        PolicyKind::Best => Box::new(Best::new(bytes_max, trace)),
    }
}

fn chunk(id: u64, mean: u32) -> CandidateChunk {
    let mixed = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut key = [0; 32];
    key[..8].copy_from_slice(&id.to_le_bytes());
    key[8..16].copy_from_slice(&mixed.to_le_bytes());
    let bytes = (f64::from(mean) * (0.75 + 0.5 * (mixed >> 40) as f64 / (1u64 << 24) as f64)) as u32;
    CandidateChunk { key: ChunkKey::new(key), bytes: bytes.max(1), namespace: 0, importance: 1.0, cost_us: 1000.0 }
}

#[cfg(test)]
mod tests {
    use super::super::synthetic::{Scenario, synthetic};
    use super::*;

    #[test]
    fn every_chunk_is_served_once_and_larger_tiers_serve_more() {
        let trace = synthetic(Scenario::Chat, 1000, 3);
        let tiers = |bytes: u64| {
            [("dram", bytes), ("dir", 4 * bytes)].map(|(name, bytes)| TierSize { name: name.into(), bytes })
        };
        for &kind in PolicyKind::value_variants() {
            let small = replay(&trace, &tiers(20_000_000), kind, 100_000);
            let large = replay(&trace, &tiers(200_000_000), kind, 100_000);
            let (all, different) = trace.chunks();
            let sum: u64 = small.tiers.iter().map(|tier| tier.chunks).sum();
            assert_eq!(sum + small.remote.chunks + small.new.chunks, all);
            assert!(small.new.chunks <= different);
            assert!(small.hit_rate(0) < small.hit_rate(1) && small.hit_rate(0) < large.hit_rate(0), "{kind:?}");
        }
    }

    #[test]
    fn ours_needs_less_memory_than_lru_for_its_hit_rate() {
        let trace = synthetic(Scenario::Scan, 2000, 3);
        let tier = [TierSize { name: String::new(), bytes: trace.chunks().1 * 100_000 / 32 }];
        let [ours, lru] = [PolicyKind::Ours, PolicyKind::Lru].map(|kind| replay(&trace, &tier, kind, 100_000));
        assert!(ours.hit_rate(0) > 1.1 * lru.hit_rate(0), "{} {}", ours.hit_rate(0), lru.hit_rate(0));
    }
}
