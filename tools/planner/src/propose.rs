//! The best configuration that the simulator finds for a machine: every block size that was profiled, every split of
//! the cores, slots and depths. Among those within a hundredth of the best the one nearest to the defaults: what the
//! model cannot tell apart it does not change.

use crate::profile::{BlockProfile, MachineProfile, engine_model};
use crate::simulate::{self, Model};
use block::Geometry;
use dpu_app::Config;

/// Threads of the emulator's engines, by default (docs/emulator.md).
const SOFTWARE_THREADS: [usize; 2] = [2, 1];
/// Chunks of the request that is simulated.
const CHUNKS: u32 = 8;
/// Share of the best rate from which on a candidate counts as good as the best.
const NEAR: f64 = 0.99;

/// The network before the machine, as its operator knows it.
#[derive(Clone, Copy, Debug)]
pub struct NetworkLink {
    pub gbps: f64,
    pub latency_us: f64,
}

/// A configuration and what is expected of it.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub config: Config,
    pub gb_per_s: f64,
}

/// The outcome of a search.
#[derive(Clone, Debug)]
pub struct Proposal {
    pub chosen: Candidate,
    /// What the defaults of this machine would do.
    pub default: Candidate,
    /// The best of each block size, with its slots.
    pub by_block: Vec<Candidate>,
    pub simulated: usize,
}

/// The simulator's parameters for blocks of one of the profiled sizes.
#[must_use]
pub fn model(profile: &MachineProfile, block: &BlockProfile, geometry: Geometry, link: Option<NetworkLink>) -> Model {
    let inflate: Vec<_> = profile.blocks.iter().map(|block| block.inflate).collect();
    let dma: Vec<_> = profile.blocks.iter().filter_map(|block| block.dma).collect();
    Model {
        link_ns_per_byte: link.map_or(0.0, |link| 8.0 / link.gbps),
        link_latency_ns: link.map_or(0.0, |link| link.latency_us * 1e3),
        link_request_ns: 0.0,
        fetch_ns_per_byte: block.fetch_ns_per_byte,
        dequantize_ns_per_byte: block.dequantize_ns_per_byte,
        inflate: engine_model(&inflate, profile.emulated, SOFTWARE_THREADS[0]),
        dma: match dma.as_slice() {
            [] => crate::models::CARD_ENGINE,
            rates => engine_model(rates, profile.emulated, SOFTWARE_THREADS[1]),
        },
        memory_ns_per_byte: profile.memory_ns_per_byte,
        event_ns: profile.event_ns,
        cores: profile.cores,
        geometry,
        ratio: block.tile_bytes / block.wire_bytes,
        tile_per_codes: block.tile_bytes / block.codes_bytes,
    }
}

/// Searches. Blocks without a plan for the geometry are left out.
///
/// # Panics
/// There is no profiled block size.
#[must_use]
pub fn propose(profile: &MachineProfile, geometry: Geometry, link: Option<NetworkLink>) -> Proposal {
    let defaults = Config::for_cores(profile.cores);
    let mut all: Vec<Candidate> = Vec::new();
    for block in &profile.blocks {
        let model = model(profile, block, geometry, link);
        for slots in [4, 8, 16, 32] {
            for (fetch_workers, dequantize_workers) in splits(profile.cores) {
                let config = Config {
                    block_bytes: block.block_bytes,
                    fetch_workers,
                    dequantize_workers,
                    ..defaults.clone().with_slots(slots)
                };
                let fits = config.slots * config.slot_bytes().total() <= RING_BYTES_MAX;
                if let (true, Ok(prediction)) = (fits, simulate::fetch(&model, &config, CHUNKS)) {
                    all.push(Candidate { config, gb_per_s: prediction.gb_per_s() });
                }
            }
        }
    }
    let nearest = profile.blocks.iter().min_by_key(|block| block.block_bytes.abs_diff(defaults.block_bytes));
    let of_default = model(profile, nearest.expect("one block size at least"), geometry, link);
    let gb_per_s = simulate::fetch(&of_default, &defaults, CHUNKS).map_or(0.0, |prediction| prediction.gb_per_s());
    let default = Candidate { config: defaults, gb_per_s };
    let sizes = profile.blocks.iter().map(|block| block.block_bytes);
    let by_block = sizes
        .filter_map(|bytes| nearest_of_best(all.iter().filter(|c| c.config.block_bytes == bytes), &default.config));
    let chosen = nearest_of_best(all.iter(), &default.config).unwrap_or_else(|| default.clone());
    Proposal { chosen, by_block: by_block.collect(), simulated: all.len() + 1, default }
}

/// Largest ring, bytes, as the defaults promise.
const RING_BYTES_MAX: usize = 64 << 20;

/// Fetch and dequantize workers: one core is the engine thread's, the rest is split; each has one at least.
fn splits(cores: usize) -> Vec<(usize, usize)> {
    let workers = cores.saturating_sub(1).clamp(2, dpu_app::WORKERS_MAX);
    (1..workers).map(|fetch| (fetch, workers - fetch)).collect()
}

fn nearest_of_best<'a>(candidates: impl Iterator<Item = &'a Candidate> + Clone, to: &Config) -> Option<Candidate> {
    let best = candidates.clone().map(|candidate| candidate.gb_per_s).fold(0.0, f64::max);
    let near = candidates.filter(|candidate| candidate.gb_per_s >= NEAR * best);
    let steps = |a: usize, b: usize| a.max(1).ilog2().abs_diff(b.max(1).ilog2());
    let distance = |config: &Config| {
        let workers = config.fetch_workers.abs_diff(to.fetch_workers);
        (steps(config.block_bytes, to.block_bytes) + steps(config.slots, to.slots), workers)
    };
    near.min_by_key(|candidate| distance(&candidate.config)).cloned()
}

/// The lines of a `--config` file.
#[must_use]
pub fn config_lines(config: &Config) -> Vec<(&'static str, usize)> {
    vec![
        ("block-bytes", config.block_bytes),
        ("slots", config.slots),
        ("store-slots", config.store_slots),
        ("fetch-workers", config.fetch_workers),
        ("dequantize-workers", config.dequantize_workers),
        ("inflate-depth", config.inflate_depth),
        ("dma-depth", config.dma_depth),
        ("chunks", config.chunks),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::EngineRate;

    /// A card whose dequantization needs most of its cores.
    fn profile(dequantize_ns_per_byte: f64, fetch_ns_per_byte: f64) -> MachineProfile {
        let block = |block_bytes: usize| {
            let codes = block_bytes as f64 / 2.0;
            let rate = |bytes: f64| {
                let deep_ns = 5000.0 + bytes * 0.04;
                EngineRate { written_bytes: bytes, alone_ns: 8.0 * deep_ns, deep_ns }
            };
            BlockProfile {
                block_bytes,
                wire_bytes: block_bytes as f64 / 4.0,
                codes_bytes: codes,
                tile_bytes: block_bytes as f64,
                inflate: rate(codes),
                dma: Some(rate(block_bytes as f64)),
                dequantize_ns_per_byte,
                fetch_ns_per_byte,
            }
        };
        MachineProfile {
            cores: 16,
            emulated: false,
            device: String::from("a card"),
            blocks: [128 << 10, 512 << 10, 2 << 20].map(block).to_vec(),
            memory_ns_per_byte: 0.001,
            event_ns: 500.0,
        }
    }

    fn geometry() -> Geometry {
        Geometry::new(32, 8, 128, 256, block::ElementType::Bf16).unwrap()
    }

    #[test]
    fn cores_go_where_the_work_is() {
        let slow_restore = propose(&profile(2.0, 0.1), geometry(), None).chosen;
        let slow_fetch = propose(&profile(0.1, 8.0), geometry(), None).chosen;
        assert!(slow_restore.config.dequantize_workers >= 12, "{slow_restore:?}");
        assert!(slow_fetch.config.fetch_workers >= 10, "{slow_fetch:?}");
    }

    #[test]
    fn a_proposal_is_a_config_and_no_worse_than_the_defaults() {
        for (dequantize, fetch) in [(2.0, 0.1), (0.1, 8.0), (0.3, 0.5)] {
            let Proposal { chosen, default, .. } = propose(&profile(dequantize, fetch), geometry(), None);
            assert_eq!(chosen.config.check(), Ok(()));
            assert!(chosen.gb_per_s >= NEAR * default.gb_per_s, "{chosen:?} beside {default:?}");
        }
    }

    #[test]
    fn an_engine_model_is_found_again_in_its_rates() {
        let rates: Vec<_> = profile(1.0, 1.0).blocks.iter().map(|block| block.inflate).collect();
        let model = engine_model(&rates, false, 0);
        assert!((model.task_ns - 5000.0).abs() < 1.0 && (model.ns_per_byte - 0.04).abs() < 1e-4, "{model:?}");
        assert!((model.depth - 8.0).abs() < 1e-6);
    }
}
