//! `cargo bench -p kvlane-plan --bench model -- [--quick]`
//!
//! A BlueField-3 by the model (`kvlane_plan::models`, `kvlane_plan::simulate`): what a fetch would reach for links,
//! recipes, shapes and memory budgets, who the limit is, and what other block sizes or inflating straight into host
//! memory would buy. Nothing here was measured on a card.

use bench::{Plot, PlotKind, Report, Series, Table};
use dpu_app::{Config, RATIOS, Ratio};
use kvlane_plan::models::{self, CARD_CORES, PRESETS, Preset};
use kvlane_plan::simulate::{self, EngineModel, Model};

const LINKS: [f64; 8] = [5.0, 10.0, 20.0, 40.0, 80.0, 100.0, 150.0, 200.0];
const MEMORY: [f64; 3] = [20.0, 40.0, 60.0];

fn main() {
    let quick = std::env::args().any(|word| word == "--quick");
    let chunks = if quick { 4 } else { 32 };
    let mut report = Report::new("model", "A BlueField-3 by the model", "cargo bench -p kvlane-plan --bench model");
    report.notes.push(format!(
        "Simulated, not measured: dpu-app's scheduler in virtual time, one request of {chunks} chunks of 256 tokens, default \
         configuration of a card ({CARD_CORES} cores). The inflate engine has the figures measured on BlueField-3 by others \
         (docs/emulator.md), the DMA engine the same for want of better; a core's copy ({} GB/s), a fetch worker ({} GB/s) \
         and the memory budget are assumptions. Ratios: docs/measurements.md, encoder-kv.",
        models::CARD_COPY_GB_S,
        models::CARD_FETCH_GB_S
    ));
    let config = Config::for_cores(CARD_CORES);
    let llama = &PRESETS[0];
    report.tables.push(throughput(llama, &config, chunks));
    report.tables.push(shapes(&config, chunks));
    report.tables.push(blocks(llama, &config, chunks));
    report.tables.push(straight(llama, &config, chunks));
    report.plots.push(by_link(llama, &config, chunks));
    report.plots.push(by_block(llama, &config, chunks));
    report.publish().expect("KVLANE_BENCH_OUT is a directory");
}

fn gb_s(model: &Model, config: &Config, chunks: u32) -> f64 {
    simulate::fetch(model, config, chunks).expect("a plan for a preset").gb_per_s()
}

fn throughput(preset: &Preset, config: &Config, chunks: u32) -> Table {
    let columns = ["link Gbit/s", "recipe", "memory GB/s", "restored GB/s", "ms", "of the link", "limit"];
    let mut table = Table::new(preset.name, &columns);
    for link in LINKS {
        for ratio in RATIOS.iter().filter(|ratio| ["lossless", "q5", "q4p"].contains(&ratio.recipe)) {
            for memory in MEMORY {
                let model = models::card(preset, ratio, link, memory);
                let got = gb_s(&model, config, chunks);
                let ms = f64::from(chunks) * model.geometry.chunk_bytes() as f64 / got / 1e6;
                let of_link = 100.0 * got / (link / 8.0 * ratio.ratio);
                let limit = models::bounds(&model, config)[0].0;
                table.row(&[
                    &link,
                    &ratio.recipe,
                    &memory,
                    &format!("{got:.1}"),
                    &format!("{ms:.1}"),
                    &format!("{of_link:.0} %"),
                    &limit,
                ]);
            }
        }
    }
    table.note =
        String::from("Limit: the stage that would be slowest alone; from where it is no longer the link, the card is.");
    table
}

/// The same link and memory for each shape.
fn shapes(config: &Config, chunks: u32) -> Table {
    let mut table = Table::new(
        "Shapes, 100 Gbit/s, 40 GB/s of memory",
        &["model", "recipe", "KiB a token", "restored GB/s", "limit"],
    );
    for preset in &PRESETS {
        for ratio in &RATIOS {
            let model = models::card(preset, ratio, 100.0, 40.0);
            let got = format!("{:.1}", gb_s(&model, config, chunks));
            let kib = model.geometry.chunk_bytes() / 256 / 1024;
            table.row(&[&preset.name, &ratio.recipe, &kib, &got, &models::bounds(&model, config)[0].0]);
        }
    }
    table
}

const BLOCK_BYTES: [usize; 5] = [128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20];

/// The ring has the same bytes with each.
fn with_block(config: &Config, block_bytes: usize) -> Config {
    let slots = (config.slots * config.block_bytes / block_bytes).clamp(4, 64);
    Config { block_bytes, ..config.clone().with_slots(slots) }
}

fn blocks(preset: &Preset, config: &Config, chunks: u32) -> Table {
    let columns = ["block KiB", "slots", "q5, 40 GB/s of memory", "q5, memory without limit"];
    let mut table = Table::new("Block sizes, 200 Gbit/s, GB/s", &columns);
    for block_bytes in BLOCK_BYTES {
        let config = with_block(config, block_bytes);
        let of = |memory| format!("{:.1}", gb_s(&models::card(preset, q5(), 200.0, memory), &config, chunks));
        table.row(&[&(block_bytes >> 10), &config.slots, &of(40.0), &of(1e6)]);
    }
    table.note = String::from("Slots are chosen so that the ring has about the same bytes.");
    table
}

fn q5() -> &'static Ratio {
    Ratio::of("q5").expect("a recipe of the table")
}

/// Inflating into host memory: for bf16 as it is, whose codes are the tile. No dequantization, no second copy.
fn straight(preset: &Preset, config: &Config, chunks: u32) -> Table {
    let mut table = Table::new(
        "Inflating straight into host memory (bf16 as it is with Deflate, 1.26 to 1; nothing of the kind is built), GB/s",
        &["link Gbit/s", "memory GB/s", "through the card's memory", "straight"],
    );
    let plain = Ratio { recipe: "none", ratio: 1.26, tile_per_codes: 1.0, of_memcpy: 1.0 };
    for link in [20.0, 100.0, 200.0] {
        for memory in MEMORY {
            let through = models::card(preset, &plain, link, memory);
            // Only the stored bytes cross the memory, for the fetch and for the engine. The budget that is left counts
            // what the whole way needs, so it is scaled by that.
            let stored = through.traffic()[0] + 1.0 / plain.ratio;
            let free =
                EngineModel { task_ns: 0.0, ns_per_byte: 0.0, depth: 1.0, software_ns_per_byte: 0.0, threads: 0 };
            let straight = Model {
                dequantize_ns_per_byte: 0.0,
                dma: free,
                memory_ns_per_byte: through.memory_ns_per_byte * stored / through.traffic().iter().sum::<f64>(),
                ..through
            };
            let cell = |model| format!("{:.1}", gb_s(model, config, chunks));
            table.row(&[&link, &memory, &cell(&through), &cell(&straight)]);
        }
    }
    table
}

fn plot(name: &str, title: &str, x: &str, series: Vec<Series>) -> Plot {
    let (name, title, x, y) = (name.into(), title.into(), x.into(), "restored GB/s".into());
    Plot { name, title, x, y, log_x: true, log_y: false, kind: PlotKind::Lines, series }
}

fn by_link(preset: &Preset, config: &Config, chunks: u32) -> Plot {
    let mut series = Vec::new();
    for ratio in RATIOS.iter().filter(|ratio| ["lossless", "q5", "q4p"].contains(&ratio.recipe)) {
        for memory in [20.0, 60.0] {
            let points = LINKS.map(|link| (link, gb_s(&models::card(preset, ratio, link, memory), config, chunks)));
            let name = format!("{}, {memory} GB/s of memory", ratio.recipe);
            series.push(Series { name, points: points.to_vec(), labels: Vec::new() });
        }
    }
    plot("model-link", "A BlueField-3 by the model, llama-3.1-8b", "link, Gbit/s", series)
}

fn by_block(preset: &Preset, config: &Config, chunks: u32) -> Plot {
    let series = [20.0, 40.0, 1e6].map(|memory| {
        let of = |bytes| gb_s(&models::card(preset, q5(), 200.0, memory), &with_block(config, bytes), chunks);
        let points = BLOCK_BYTES.map(|bytes| ((bytes >> 10) as f64, of(bytes)));
        let name = if memory > 1e3 { String::from("memory without limit") } else { format!("{memory} GB/s of memory") };
        Series { name, points: points.to_vec(), labels: Vec::new() }
    });
    plot("model-block", "Block sizes by the model, q5, 200 Gbit/s", "block, KiB", series.to_vec())
}
