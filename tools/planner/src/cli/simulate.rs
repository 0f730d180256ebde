//! `kvlane-plan simulate`: asks the model of a card.

use clap::Args;
use dpu_app::{Config, Ratio};
use kvlane_plan::models::{self, Preset};
use kvlane_plan::simulate;

use super::given::{positive, preset};

#[derive(Debug, Args)]
pub(crate) struct Simulate {
    /// The network before the store
    #[arg(long, value_name = "N", default_value_t = 100.0, value_parser = positive)]
    link_gbps: f64,
    /// lossless, q8, q6, q5, q4p, q3, each with Deflate at its measured ratio
    #[arg(long, value_name = "RECIPE", default_value = "q5", value_parser = ratio)]
    recipe: &'static Ratio,
    /// Shape of the KV: llama-3.1-8b, mistral-7b, llama-70b-tp8, mla
    #[arg(long, value_name = "NAME", default_value = "llama-3.1-8b", value_parser = preset)]
    model: &'static Preset,
    /// What all stages together read and write of the card's memory, GB/s
    #[arg(long, value_name = "N", default_value_t = 40.0, value_parser = positive)]
    memory_gb_s: f64,
    /// Chunks of the request, 256 tokens each
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    request_chunks: u32,
    /// Largest block
    #[arg(long, value_name = "BYTES", default_value_t = card().block_bytes)]
    block_bytes: usize,
    /// Slots of the ring
    #[arg(long, value_name = "N", default_value_t = card().slots)]
    slots: usize,
    /// Fetch and dequantize workers
    #[arg(long, value_name = "FETCH,DEQUANTIZE", default_value = "5,7", value_parser = workers)]
    workers: (usize, usize),
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

fn card() -> Config {
    Config::for_cores(models::CARD_CORES)
}

fn ratio(recipe: &str) -> Result<&'static Ratio, String> {
    Ratio::of(recipe).ok_or_else(|| String::from("one of lossless, q8, q6, q5, q4p, q3"))
}

fn workers(text: &str) -> Result<(usize, usize), String> {
    let split = text.split_once(',').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    split.ok_or_else(|| String::from("two numbers, as 5,7"))
}

impl Simulate {
    pub(crate) fn run(&self) -> Result<(), String> {
        let (fetch_workers, dequantize_workers) = self.workers;
        let config = Config {
            block_bytes: self.block_bytes,
            fetch_workers,
            dequantize_workers,
            ..card().with_slots(self.slots)
        };
        config.check().map_err(|error| error.to_string())?;
        let model = models::card(self.model, self.recipe, self.link_gbps, self.memory_gb_s);
        let prediction = simulate::fetch(&model, &config, self.request_chunks).map_err(|error| error.to_string())?;
        let bounds = models::bounds(&model, &config);
        let (gb_per_s, ms) = (prediction.gb_per_s(), prediction.ns / 1e6);
        if self.json {
            let bounds: Vec<_> = bounds.iter().map(|(name, bound)| format!("\"{name}\":{bound:.3}")).collect();
            say!(
                "{{\"model\":{:?},\"recipe\":{:?},\"ratio\":{},\"link_gbps\":{},\"memory_gb_s\":{},\"gb_per_s\":{gb_per_s:.3},\
                 \"ms\":{ms:.3},\"bounds_gb_s\":{{{}}}}}",
                self.model.name,
                self.recipe.recipe,
                self.recipe.ratio,
                self.link_gbps,
                self.memory_gb_s,
                bounds.join(",")
            );
            return Ok(());
        }
        say!("A model of a BlueField-3, measured on no card:");
        say!(
            "  {} cores; inflate engine: 5 us a task and 25 GB/s, 8 tasks under way (measured by others, docs/emulator.md)",
            models::CARD_CORES
        );
        say!(
            "  assumed: DMA the same; a core copies {} GB/s, fetches {} GB/s; {} ns an event",
            models::CARD_COPY_GB_S,
            models::CARD_FETCH_GB_S,
            models::CARD_EVENT_NS
        );
        say!("  {}: {:.2} to 1 (docs/measurements.md, encoder-kv)", self.recipe.recipe, self.recipe.ratio);
        if !self.model.note.is_empty() {
            say!("  {}: {}", self.model.name, self.model.note);
        }
        say!("{gb_per_s:.2} GB/s of restored KV, {ms:.2} ms for {} chunks", self.request_chunks);
        say!("each stage alone, slowest first:");
        for (name, bound) in bounds {
            say!("  {name:<20} {bound:7.2} GB/s");
        }
        Ok(())
    }
}
