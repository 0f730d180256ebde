//! Named figures for the simulator: shapes of models, and a BlueField-3 as far as it is known.
//! What nobody measured on a card is an assumption and says so.

use block::{ElementType, Geometry, Planes};
use dpu_app::{Config, Ratio};

use crate::simulate::{EngineModel, Model};

/// One rank's KV of a model that people run; chunks of 256 tokens.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    pub name: &'static str,
    layers: usize,
    heads: usize,
    head_size: usize,
    planes: Planes,
    /// What the geometry does not say.
    pub note: &'static str,
}

pub const PRESETS: [Preset; 4] = [
    with_values("llama-3.1-8b", 32, 8, ""),
    with_values("mistral-7b", 32, 8, "the same KV shape as llama-3.1-8b"),
    with_values("llama-70b-tp8", 80, 1, "one of eight ranks"),
    Preset {
        name: "mla",
        layers: 61,
        heads: 1,
        head_size: 576,
        planes: Planes::One,
        note: "one latent of 576 elements a layer, and no V",
    },
];

const fn with_values(name: &'static str, layers: usize, heads: usize, note: &'static str) -> Preset {
    Preset { name, layers, heads, head_size: 128, planes: Planes::KeysAndValues, note }
}

impl Preset {
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        PRESETS.iter().find(|preset| preset.name == name)
    }

    /// # Panics
    /// Never: the presets are within the format's limits (a test holds that).
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        Geometry::new(self.layers, self.heads, self.head_size, 256, ElementType::Bf16)
            .expect("a preset of our own")
            .with_planes(self.planes)
    }
}

/// Arm cores of a BlueField-3.
pub const CARD_CORES: usize = 16;
/// Assumed: what one Cortex-A78 copies in its caches, GB/s of the tile. Nobody measured it here.
pub const CARD_COPY_GB_S: f64 = 10.0;
/// Assumed: a fetch worker's share of a core for the network stack, GB/s of stored bytes.
pub const CARD_FETCH_GB_S: f64 = 2.0;
/// Assumed: the engine thread's time for an event.
pub const CARD_EVENT_NS: f64 = 1_000.0;
/// The emulator's default timing, which reproduces the inflate engine of a BlueField-3 within a tenth
/// (docs/emulator.md). For the DMA engine no measurement is known: the same figures stand for it.
pub const CARD_ENGINE: EngineModel =
    EngineModel { task_ns: 5_000.0, ns_per_byte: 0.04, depth: 8.0, software_ns_per_byte: 0.0, threads: 0 };

/// A BlueField-3 behind a link.
#[must_use]
pub fn card(preset: &Preset, ratio: &Ratio, link_gbps: f64, memory_gb_s: f64) -> Model {
    Model {
        link_ns_per_byte: 8.0 / link_gbps,
        link_latency_ns: 50_000.0,
        link_request_ns: 0.0,
        fetch_ns_per_byte: 1.0 / CARD_FETCH_GB_S,
        dequantize_ns_per_byte: 1.0 / (CARD_COPY_GB_S * ratio.of_memcpy),
        inflate: CARD_ENGINE,
        dma: CARD_ENGINE,
        memory_ns_per_byte: 1.0 / memory_gb_s,
        event_ns: CARD_EVENT_NS,
        cores: CARD_CORES,
        geometry: preset.geometry(),
        ratio: ratio.ratio,
        tile_per_codes: ratio.tile_per_codes,
    }
}

/// Who works most for each restored byte, alone: `(name, GB/s of restored bytes)`, slowest first.
#[must_use]
pub fn bounds(model: &Model, config: &Config) -> Vec<(&'static str, f64)> {
    let block = config.block_bytes as f64;
    let engine = |engine: &EngineModel, per_tile: f64| block / (engine.task_ns + block / per_tile * engine.ns_per_byte);
    let traffic: f64 = model.traffic().iter().sum();
    let mut bounds = vec![
        ("link", model.ratio / model.link_ns_per_byte),
        ("fetch workers", config.fetch_workers as f64 * model.ratio / model.fetch_ns_per_byte),
        ("inflate engine", engine(&model.inflate, model.tile_per_codes)),
        ("dequantize workers", config.dequantize_workers as f64 / model.dequantize_ns_per_byte),
        ("DMA engine", engine(&model.dma, 1.0)),
        ("memory", 1.0 / (model.memory_ns_per_byte * traffic)),
    ];
    bounds.sort_by(|a, b| a.1.total_cmp(&b.1));
    bounds
}

#[cfg(test)]
mod tests {
    use dpu_app::RATIOS;

    use super::*;
    use crate::simulate;

    #[test]
    fn presets_have_plans_and_the_simulator_keeps_to_the_bounds() {
        let config = Config::for_cores(CARD_CORES);
        for preset in &PRESETS {
            for ratio in &RATIOS {
                for link_gbps in [10.0, 200.0] {
                    let model = card(preset, ratio, link_gbps, 40.0);
                    let got = simulate::fetch(&model, &config, 16).unwrap().gb_per_s();
                    let (who, bound) = bounds(&model, &config)[0];
                    assert!(
                        got <= bound * 1.01,
                        "{} {} {link_gbps}: {got} beyond {who} {bound}",
                        preset.name,
                        ratio.recipe
                    );
                    assert!(got >= bound * 0.3, "{} {} {link_gbps}: {got} of {who} {bound}", preset.name, ratio.recipe);
                }
            }
        }
    }
}
