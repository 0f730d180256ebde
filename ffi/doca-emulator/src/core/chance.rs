//! Repeatable chance: one seeded stream per device, drawn from at submit on the application's thread, so that the fate
//! of the n-th submitted task depends on the seed and n and not on how threads happen to run.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::{Config, FaultEffect, FlipWay, KINDS, TaskKind};
use crate::core::job::{EngineJob, Segment};

/// Faults of one task.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Fate {
    pub(crate) fail: bool,
    pub(crate) delay_us: u32,
    /// Bit of the output to flip, modulo its length.
    pub(crate) corrupt: Option<u64>,
    /// Bit of what a copy writes to flip, modulo its length.
    pub(crate) flip: Option<u64>,
    /// An import that the task uses turns out dead.
    pub(crate) exporter_gone: bool,
}

#[derive(Debug)]
pub(crate) struct Chance {
    state: AtomicU64,
}

impl Chance {
    pub(crate) fn new(seed: u64) -> Chance {
        Chance { state: AtomicU64::new(seed) }
    }

    /// SplitMix64: a counter through a mixer, so one atomic addition is a draw.
    pub(crate) fn draw(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.state.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// True with probability `p`. Draws nothing when `p` is zero.
    pub(crate) fn hits(&self, p: f64) -> bool {
        const ALL: f64 = (1u64 << 53) as f64;
        p > 0.0 && ((self.draw() >> 11) as f64) / ALL < p
    }

    pub(crate) fn fate(&self, config: &Config) -> Fate {
        Fate {
            fail: self.hits(config.fail),
            delay_us: if config.delay_us == 0 { 0 } else { (self.draw() % (u64::from(config.delay_us) + 1)) as u32 },
            corrupt: self.hits(config.corrupt).then(|| self.draw()),
            flip: None,
            exporter_gone: self.hits(config.exporter_gone),
        }
    }
}

/// Counts a device's tasks by kind, for the faults that are planned.
#[derive(Debug, Default)]
pub(crate) struct FaultPlan {
    counts: [AtomicU64; KINDS],
}

impl FaultPlan {
    /// Counts a task, and adds what is planned for it to its fate. Draws nothing but the bit of a planned corruption.
    pub(crate) fn add_to(&self, fate: &mut Fate, chance: &Chance, config: &Config, kind: TaskKind) {
        if config.faults.is_empty() {
            return;
        }
        let number = self.counts[kind as usize].fetch_add(1, Ordering::Relaxed) + 1;
        for fault in config.faults.iter().filter(|fault| fault.kind == kind && fault.number == number) {
            match fault.effect {
                FaultEffect::Fail => fate.fail = true,
                FaultEffect::Corrupt if kind == TaskKind::Memcpy => fate.flip = Some(chance.draw()),
                FaultEffect::Corrupt => fate.corrupt = Some(chance.draw()),
                FaultEffect::Delay { us } => fate.delay_us = fate.delay_us.max(us),
            }
        }
    }
}

/// Counts the copies of a device, to find those that flip a bit.
#[derive(Debug, Default)]
pub(crate) struct Flips {
    /// Copies that might have.
    copies: AtomicU64,
}

impl Flips {
    /// Chooses the bit that this copy flips, if any. Draws nothing for one that may not.
    pub(crate) fn of(&self, chance: &Chance, config: &Config, job: &EngineJob) -> Option<u64> {
        let (sources, destinations) = job.lists();
        let reaches = |segments: &[Segment]| segments.iter().any(|segment| !segment.region().is_own());
        let goes = match config.dma_flip_way {
            FlipWay::Any => true,
            FlipWay::ToHost => reaches(destinations),
            FlipWay::FromHost => reaches(sources),
        };
        let bytes: usize = sources.iter().map(|segment| segment.len).sum();
        let is_on = config.dma_flip > 0.0 || config.dma_flip_at > 0;
        if !is_on || !goes || bytes < config.dma_flip_bytes as usize {
            return None;
        }
        let number = self.copies.fetch_add(1, Ordering::Relaxed) + 1;
        (chance.hits(config.dma_flip) || number == config.dma_flip_at).then(|| chance.draw())
    }
}

/// Makes a seed for a device that was not given one.
pub(crate) fn any_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |age| age.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_same_fates() {
        let config = Config { fail: 0.3, delay_us: 100, corrupt: 0.5, ..Config::default() };
        let fates = |seed| {
            let chance = Chance::new(seed);
            (0..100).map(|_| chance.fate(&config)).collect::<Vec<_>>()
        };
        assert_eq!(fates(7), fates(7));
        assert_ne!(fates(7), fates(8));
    }

    #[test]
    fn probability_zero_never_hits_and_one_always_does() {
        let chance = Chance::new(3);
        assert!((0..1000).all(|_| !chance.hits(0.0) && chance.hits(1.0)));
    }
}
