//! `kvlane-plan calibrate`: measures this machine and proposes a config file for dpu-app.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use block::Recipe;
use clap::Args;
use kvlane_plan::models::Preset;
use kvlane_plan::profile::{self, MachineProfile};
use kvlane_plan::propose::{self, Candidate, NetworkLink, Proposal};

use super::given::{positive, preset};

/// Block sizes that are profiled, if the device takes them.
const BLOCK_SIZES: [usize; 5] = [128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20];
/// Figures of one block size: inflate and DMA each alone and deep, dequantize, read.
const FIGURES: usize = 6;

#[derive(Debug, Args)]
pub(crate) struct Calibrate {
    /// Where blocks are read from: dir:PATH [default: the temporary directory]. What a network does is told by
    /// --link-gbps
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Write the proposal here, for `dpu-app run --config FILE` [default: print it]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// How long to measure
    #[arg(long, value_name = "N", default_value_t = 10.0, value_parser = positive)]
    seconds: f64,
    /// Shape of the KV: llama-3.1-8b, mistral-7b, llama-70b-tp8, mla
    #[arg(long, value_name = "NAME", default_value = "llama-3.1-8b", value_parser = preset)]
    model: &'static Preset,
    /// How chunks will be stored, which goes into the file; one that the engine inflates
    #[arg(long, value_name = "RECIPE", default_value = "lossless")]
    recipe: Recipe,
    /// The network before the store, Gbit/s [default: none]
    #[arg(long, value_name = "N", value_parser = positive)]
    link_gbps: Option<f64>,
    /// Its round trip
    #[arg(long, value_name = "US", default_value_t = 50.0, value_parser = positive)]
    link_latency_us: f64,
    /// Device by PCI address or IB name
    #[arg(long, short, value_name = "NAME")]
    device: Option<String>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

impl Calibrate {
    pub(crate) fn run(&self) -> Result<(), String> {
        let directory = match &self.store {
            None => std::env::temp_dir(),
            Some(url) => store::directory(url)
                .map(PathBuf::from)
                .ok_or("--store: only dir: is measured; for a server give --link-gbps")?,
        };
        let geometry = self.model.geometry();
        let selector = self.device.clone().map_or(doca::Selector::First, doca::Selector::Named);
        let block_sizes = profiled_sizes(&selector, geometry).map_err(|error| format!("device: {error}"))?;
        let time = Duration::from_secs_f64(self.seconds / ((FIGURES * block_sizes.len()) as f64 * 1.25 + 2.0));
        let order = profile::ProfileSettings {
            selector: &selector,
            geometry,
            recipe: self.recipe,
            block_sizes: &block_sizes,
            directory: &directory,
            time,
        };
        let profile = profile::measure(&order).map_err(|error| error.to_string())?;
        let link = self.link_gbps.map(|gbps| NetworkLink { gbps, latency_us: self.link_latency_us });
        let proposal = propose::propose(&profile, geometry, link);
        let file = self.file(&profile, &proposal);
        if let Some(path) = &self.out {
            std::fs::write(path, &file).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        match (self.json, &self.out) {
            (true, _) => say!("{}", json(&profile, &proposal)),
            (false, Some(path)) => {
                say!("{}", text(&profile, &proposal).trim_end());
                say!("written: {0}\nuse it:  dpu-app run --config {0} --store ...", path.display());
            }
            (false, None) => say!("{}\n{}", text(&profile, &proposal), file.trim_end()),
        }
        Ok(())
    }

    fn file(&self, profile: &MachineProfile, Proposal { chosen, .. }: &Proposal) -> String {
        let mut file = format!(
            "# kvlane-plan calibrate: {}, {} cores, {}, {}\n# expected: {:.2} GB/s of restored KV\n",
            profile.device, profile.cores, self.model.name, self.recipe, chosen.gb_per_s
        );
        if profile.emulated {
            file.push_str("# measured on the EMULATOR: these are this machine's cores, no card's engines\n");
        }
        let _ = writeln!(file, "recipe = {}", self.recipe);
        for (name, value) in propose::config_lines(&chosen.config) {
            let _ = writeln!(file, "{name} = {value}");
        }
        file
    }
}

/// Those that the device's engines take and the geometry can be cut to.
fn profiled_sizes(selector: &doca::Selector, geometry: block::Geometry) -> Result<Vec<usize>, doca::Error> {
    let device = doca::Device::open(selector)?;
    let info = device.info();
    let most =
        info.engines().iter().filter_map(|(_, _, caps)| *caps).map(|caps| caps.bytes_max).min().unwrap_or(u64::MAX);
    let fits = |bytes: &usize| *bytes as u64 <= most;
    let has_plan = |bytes: &usize| block::Plan::choose(&geometry, bytes / geometry.element.bytes()).is_ok();
    Ok(BLOCK_SIZES.into_iter().filter(fits).filter(has_plan).collect())
}

fn gb_s(ns_per_byte: f64) -> f64 {
    1.0 / ns_per_byte
}

fn text(profile: &MachineProfile, proposal: &Proposal) -> String {
    let mut text = format!(
        "{}, {} cores{}; memory {:.1} GB/s read and written, {:.1} us an event\n\
         GB/s of what each writes   inflate (one task)  DMA (one task)  dequantize, a core  read, a core\n",
        profile.device,
        profile.cores,
        if profile.emulated { " (EMULATOR: engines are software)" } else { "" },
        gb_s(profile.memory_ns_per_byte),
        profile.event_ns / 1e3,
    );
    for block in &profile.blocks {
        let rate = |rate: &profile::EngineRate| {
            format!("{:.2} ({:.2})", rate.written_bytes / rate.deep_ns, rate.written_bytes / rate.alone_ns)
        };
        let _ = writeln!(
            text,
            "  blocks of {:>7}        {:>19} {:>15} {:>19.2} {:>13.2}",
            block.block_bytes,
            rate(&block.inflate),
            block.dma.as_ref().map_or_else(|| String::from("assumed"), rate),
            gb_s(block.dequantize_ns_per_byte),
            gb_s(block.fetch_ns_per_byte),
        );
    }
    let _ = writeln!(
        text,
        "\nsimulated {} configurations; the best of each block size (within 1 %, the nearest to the defaults):",
        proposal.simulated
    );
    let line = |Candidate { config, gb_per_s }: &Candidate| {
        format!(
            "blocks of {:>7}, {:>2} slots, {:>2} fetch and {:>2} dequantize workers: {gb_per_s:.2} GB/s",
            config.block_bytes, config.slots, config.fetch_workers, config.dequantize_workers
        )
    };
    for candidate in &proposal.by_block {
        let _ = writeln!(text, "  {}", line(candidate));
    }
    let _ = writeln!(text, "default:  {}\nproposed: {}", line(&proposal.default), line(&proposal.chosen));
    text
}

fn json(profile: &MachineProfile, proposal: &Proposal) -> String {
    let rate = |rate: &profile::EngineRate| {
        format!(
            "{{\"bytes\":{:.0},\"alone_ns\":{:.0},\"deep_ns\":{:.0}}}",
            rate.written_bytes, rate.alone_ns, rate.deep_ns
        )
    };
    let blocks: Vec<_> = profile.blocks.iter().map(|block| {
        format!(
            "{{\"block_bytes\":{},\"wire_bytes\":{:.0},\"inflate\":{},\"dma\":{},\"dequantize_gb_s\":{:.3},\"read_gb_s\":{:.3}}}",
            block.block_bytes,
            block.wire_bytes,
            rate(&block.inflate),
            block.dma.as_ref().map_or_else(|| String::from("null"), rate),
            gb_s(block.dequantize_ns_per_byte),
            gb_s(block.fetch_ns_per_byte),
        )
    }).collect();
    let candidate = |Candidate { config, gb_per_s }: &Candidate| {
        let lines = propose::config_lines(config).into_iter().map(|(name, value)| format!("\"{name}\":{value}"));
        format!("{{{},\"expected_gb_s\":{gb_per_s:.3}}}", lines.collect::<Vec<_>>().join(","))
    };
    let by_block: Vec<_> = proposal.by_block.iter().map(candidate).collect();
    format!(
        "{{\"device\":{:?},\"emulated\":{},\"cores\":{},\"memory_gb_s\":{:.3},\"event_ns\":{:.0},\"blocks\":[{}],\
         \"default\":{},\"by_block\":[{}],\"proposed\":{}}}",
        profile.device,
        profile.emulated,
        profile.cores,
        gb_s(profile.memory_ns_per_byte),
        profile.event_ns,
        blocks.join(","),
        candidate(&proposal.default),
        by_block.join(","),
        candidate(&proposal.chosen),
    )
}
