//! `kvlane-plan tiers`: sizing tiers without a card, and pictures of what a card's tiers hold.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use bench::{Plot, PlotKind, Series, svg};
use clap::{Args, Subcommand};
use host_ctl::command::{CommandOutcome, Output, Show, bad};
use host_ctl::{Error, tier_scores};
use serde_json::{Value, json};
use study::tiers::{Curve, PolicyKind, Replayed, Scenario, Served, TierSize, Trace, bytes_for, replay, synthetic};

const GIB: f64 = (1u64 << 30) as f64;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Replay a trace of requests against tiers of any size and policy, to size a card; nothing is stored
    Simulate(Simulate),
    /// Draw the share of each tier's chunks over their score: `host-ctl tiers show --json | kvlane-plan tiers plot
    /// --out FILE`
    Plot(PlotScores),
}

#[derive(Debug, Args)]
struct PlotScores {
    /// What `host-ctl tiers show --json` printed [default: standard input]
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// SVG file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
struct Simulate {
    /// Trace as JSON lines: {"timestamp":MS,"hash_ids":[N,...]}, the format of the public Mooncake traces
    #[arg(long, value_name = "FILE", required_unless_present = "synthetic", conflicts_with = "synthetic")]
    trace: Option<PathBuf>,
    /// Make a SYNTHETIC trace instead
    #[arg(long, value_enum, value_name = "SCENARIO")]
    synthetic: Option<Scenario>,
    /// Requests of a synthetic trace
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    requests: usize,
    /// Seed of a synthetic trace
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// A tier and its bytes, fastest first, as in --tier dram=8G --tier dir=200G
    #[arg(long, value_name = "NAME=BYTES", required = true, value_parser = parse_tier)]
    tier: Vec<TierSize>,
    /// Policies to compare
    #[arg(
        long,
        value_enum,
        value_name = "POLICY,...",
        value_delimiter = ',',
        default_value = "ours,lru,lfu,s3fifo,best"
    )]
    policy: Vec<PolicyKind>,
    /// Mean bytes of a chunk as it is in the engine's memory (256 tokens of an 8B-class model in bf16: 32M)
    #[arg(long, default_value = "32M", value_name = "BYTES", value_parser = parse_bytes)]
    chunk_bytes: u64,
    /// How many times smaller a stored chunk is
    #[arg(long, default_value_t = 3.5, value_name = "RATIO")]
    ratio: f64,
    /// Draw the hit rate of the first tier over its size into this SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(arguments: &Arguments) -> Result<CommandOutcome, Error> {
    match &arguments.command {
        Command::Simulate(arguments) => simulate(arguments),
        Command::Plot(arguments) => plot_scores(arguments),
    }
}

fn plot_scores(arguments: &PlotScores) -> Result<CommandOutcome, Error> {
    let path = arguments.from.as_deref().unwrap_or(Path::new("standard input"));
    let mut text = String::new();
    let read = match &arguments.from {
        Some(path) => std::fs::read_to_string(path).map(|read| text = read),
        None => std::io::stdin().read_to_string(&mut text).map(drop),
    };
    read.map_err(Error::system("read", path))?;
    let wrong = || Error::input(path.display(), "no tiers in it", "give what `host-ctl tiers show --json` printed");
    let shown: Value = serde_json::from_str(&text).map_err(|_| wrong())?;
    let tiers = shown["tiers"].as_array().ok_or_else(wrong)?;
    let series = |tier: &Value| {
        let scores = tier_scores(tier);
        let all = scores.iter().map(|(_, count)| count).sum::<u64>().max(1);
        let points = scores.iter().map(|&(score, count)| (score, count as f64 / all as f64)).collect();
        Series { name: tier["tier"].as_str().unwrap_or("?").to_owned(), points, labels: Vec::new() }
    };
    let x = "score: uses to expect in a minute x importance x cost";
    draw(
        &arguments.out,
        ("Share of chunks by score", "as a card says of its tiers"),
        x,
        "share of chunks",
        tiers.iter().map(series).collect(),
    )?;
    let place = arguments.out.display().to_string();
    let value = json!({ "command": "tiers plot", "ok": true, "tiers": tiers.len(), "out": place });
    Show::new(&arguments.output).end(&format!("drawn: {} tiers in {place}", tiers.len()), &value);
    Ok(CommandOutcome::Good)
}

fn simulate(arguments: &Simulate) -> Result<CommandOutcome, Error> {
    let chunk_bytes = arguments.stored_bytes()?;
    let trace = match (&arguments.trace, arguments.synthetic) {
        (Some(path), _) => Trace::read(path)?,
        (None, Some(scenario)) => synthetic(scenario, arguments.requests, arguments.seed),
        (None, None) => {
            return Err(bad("--trace", "not given".to_owned(), "give --trace FILE or --synthetic SCENARIO"));
        }
    };
    let show = Show::new(&arguments.output);
    let (chunks, different) = trace.chunks();
    let all_bytes = different * u64::from(chunk_bytes);
    show.line(&format!(
        "trace {}: {} requests, {chunks} chunks, {different} different ones of {:.1} GiB",
        trace.name,
        trace.requests.len(),
        all_bytes as f64 / GIB
    ));
    let names: Vec<_> = arguments.tier.iter().map(|tier| format!("{:>10}", tier.name)).collect();
    show.line(&format!("share of chunks from\npolicy {} {:>10} {:>10}", names.join(" "), "remote", "new"));
    let results: Vec<_> =
        arguments.policy.iter().map(|&kind| (kind, replay(&trace, &arguments.tier, kind, chunk_bytes))).collect();
    for (kind, replayed) in &results {
        let share = |served: &Served| format!("{:>9.1}%", served.chunks as f64 / chunks.max(1) as f64 * 100.0);
        let tiers: Vec<_> = replayed.tiers.iter().map(share).collect();
        show.line(&format!(
            "{:<6} {} {} {}",
            kind.name(),
            tiers.join(" "),
            share(&replayed.remote),
            share(&replayed.new)
        ));
    }
    let first = arguments.tier[0].bytes;
    let memory = memory(&trace, first, &results[0], chunk_bytes, arguments.raw_bytes());
    show.line(&format!("memory for the {} that {} has in the first tier", memory.rate_text(), results[0].0.name()));
    show.line(&format!("  {}   {:.2} GiB", results[0].0.name(), first as f64 / GIB));
    show.line(&format!("  lru of compressed chunks   {}", gib(memory.lru)));
    show.line(&format!("  lru of uncompressed chunks {}", gib(memory.lru_raw)));
    if let Some(path) = &arguments.plot {
        draw_rates(path, &trace, first, &arguments.policy, chunk_bytes)?;
    }
    let value = json!({
        "command": "tiers simulate", "ok": true, "trace": trace.name, "requests": trace.requests.len(),
        "chunks": chunks, "different_chunks": different, "chunk_bytes": chunk_bytes,
        "policies": results.iter().map(|(kind, replayed)| result_json(*kind, replayed, &arguments.tier)).collect::<Vec<_>>(),
        "equal_hit_rate": {
            "policy": results[0].0.name(), "hit_rate": memory.rate, "bytes": first,
            "lru_compressed_bytes": memory.lru, "lru_uncompressed_bytes": memory.lru_raw,
        },
    });
    show.end(&format!("hit rate of the first tier: {:.1} %", memory.rate * 100.0), &value);
    Ok(CommandOutcome::Good)
}

impl Simulate {
    fn stored_bytes(&self) -> Result<u32, Error> {
        let bytes = self.chunk_bytes as f64 / self.ratio;
        if !(self.ratio >= 1.0 && bytes >= 1024.0 && self.chunk_bytes <= 1 << 30) {
            let what = format!("--chunk-bytes {} --ratio {}", self.chunk_bytes, self.ratio);
            return Err(bad(
                "--chunk-bytes",
                what,
                "a stored chunk has 1 KiB to 1 GiB, and is not larger than the chunk",
            ));
        }
        Ok(bytes as u32)
    }

    fn raw_bytes(&self) -> u32 {
        self.chunk_bytes as u32
    }
}

/// What other ways need for the hit rate of the first policy.
struct Memory {
    rate: f64,
    lru: Option<u64>,
    lru_raw: Option<u64>,
}

impl Memory {
    fn rate_text(&self) -> String {
        format!("hit rate of {:.1} %", self.rate * 100.0)
    }
}

fn memory(trace: &Trace, first: u64, result: &(PolicyKind, Replayed), chunk_bytes: u32, raw_bytes: u32) -> Memory {
    let rate = result.1.hit_rate(0);
    let lru = |chunk_bytes: u32| {
        let most = (2 * trace.chunks().1 * u64::from(chunk_bytes)).max(first);
        bytes_for(trace, PolicyKind::Lru, rate, most, chunk_bytes)
    };
    Memory { rate, lru: lru(chunk_bytes), lru_raw: lru(raw_bytes) }
}

fn gib(bytes: Option<u64>) -> String {
    bytes.map_or("not with any memory".to_owned(), |bytes| format!("{:.2} GiB", bytes as f64 / GIB))
}

fn result_json(kind: PolicyKind, replayed: &Replayed, tiers: &[TierSize]) -> Value {
    let served = |served: &Served| json!({ "chunks": served.chunks, "bytes": served.bytes });
    let tier = |(index, tier): (usize, &TierSize)| {
        json!({
            "name": tier.name, "bytes_max": tier.bytes, "served": served(&replayed.tiers[index]),
            "hit_rate_to_here": replayed.hit_rate(index),
        })
    };
    json!({
        "policy": kind.name(), "tiers": tiers.iter().enumerate().map(tier).collect::<Vec<_>>(),
        "remote": served(&replayed.remote), "new": served(&replayed.new),
    })
}

fn draw_rates(path: &Path, trace: &Trace, first: u64, kinds: &[PolicyKind], chunk_bytes: u32) -> Result<(), Error> {
    let bytes: Vec<u64> = [8, 4, 2, 1].map(|part| first / part).into_iter().chain([2 * first, 4 * first]).collect();
    let series = |&kind: &PolicyKind| {
        let points = Curve::of(trace, kind, &bytes, chunk_bytes).points;
        let points = points.into_iter().map(|(bytes, rate)| (bytes as f64 / GIB, rate)).collect();
        Series { name: kind.name().to_owned(), points, labels: Vec::new() }
    };
    let title = format!("Hit rate of one tier, {}", trace.name);
    draw(
        path,
        (&title, "a trace replayed: no card"),
        "GiB of the tier",
        "share of chunks",
        kinds.iter().map(series).collect(),
    )
}

/// Writes lines over a logarithmic x as SVG.
fn draw(path: &Path, (title, source): (&str, &str), x: &str, y: &str, series: Vec<Series>) -> Result<(), Error> {
    let (name, title, x, y) = (String::new(), title.into(), x.into(), y.into());
    let plot = Plot { name, title, x, y, log_x: true, log_y: false, kind: PlotKind::Lines, series };
    std::fs::write(path, svg::draw(&plot, source)).map_err(Error::system("write", path))
}

fn parse_tier(text: &str) -> Result<TierSize, String> {
    let (name, bytes) = text.split_once('=').ok_or("not NAME=BYTES, as in dram=8G")?;
    Ok(TierSize { name: name.to_owned(), bytes: parse_bytes(bytes)? })
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    store::bytes(text).ok_or_else(|| "not a number of bytes above 0, as in 8G".to_owned())
}
