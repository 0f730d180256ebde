//! `host-ctl tiers`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use host_ctl::svg::{Line, plot};
use host_ctl::tiers::{Curve, PolicyKind, Replayed, Scenario, Served, TierSize, Trace, bytes_for, replay, synthetic};
use host_ctl::{CardStatus, Client, Error};
use serde_json::{Value, json};

use super::Verdict;
use super::given::{Card, Output, bad};
use super::show::{Show, mb};

const GIB: f64 = (1u64 << 30) as f64;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the tiers of a card: what they hold, serve, take and give up, and how worth is spread over their chunks
    Show(ShowTiers),
    /// Replay a trace of requests against tiers of any size and policy, to size a card; nothing is stored
    Simulate(Simulate),
}

#[derive(Debug, Args)]
struct ShowTiers {
    /// Draw the share of each tier's chunks over their score into this SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    card: Card,
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

pub(crate) fn run(arguments: &Arguments) -> Result<Verdict, Error> {
    match &arguments.command {
        Command::Show(arguments) => show_tiers(arguments),
        Command::Simulate(arguments) => simulate(arguments),
    }
}

fn show_tiers(arguments: &ShowTiers) -> Result<Verdict, Error> {
    let show = Show::new(&arguments.output);
    let mut client = Client::attach(&arguments.card.options(None), None)?;
    let id = client.post_status()?;
    let answer = client.wait(id, arguments.card.patience())?.ok()?.answer;
    client.close(arguments.card.patience())?;
    let status = CardStatus::parse(&answer)?;
    let tiers = status.value().get("tiers").and_then(Value::as_array).cloned().unwrap_or_default();
    let number = |tier: &Value, name: &str| tier.get(name).and_then(Value::as_u64).unwrap_or(0);
    let name = |tier: &Value| tier.get("tier").and_then(Value::as_str).unwrap_or("?").to_owned();
    for tier in &tiers {
        let of = |name| number(tier, name);
        show.line(&name(tier));
        show.table(&[
            ("  holds", format!("{} chunks, {} of {}", of("chunks"), mb(of("bytes")), mb(of("bytes_max")))),
            ("  served", format!("{} chunks, {}", of("hits"), mb(of("bytes_read")))),
            ("  promoted", format!("{} chunks, {}", of("promoted"), mb(of("bytes_promoted")))),
            ("  refused, failed", format!("{}, {}", of("refused"), of("failed"))),
            ("  evicted", format!("{} chunks, {}", of("evicted"), mb(of("bytes_evicted")))),
            ("  slow calls", of("slow").to_string()),
        ]);
        if tier.get("out").and_then(Value::as_bool) == Some(true) {
            show.line("  OUT of service: its disk is slow or fails, and is left alone for a while");
        }
        let namespaces = tier.get("namespaces").and_then(Value::as_object);
        for (namespace, bytes) in namespaces.into_iter().flatten() {
            show.line(&format!("  of {namespace:<16} {}", mb(bytes.as_u64().unwrap_or(0))));
        }
        for (score, count) in scores(tier).into_iter().filter(|(_, count)| *count > 0) {
            show.line(&format!("  score from {score:<9} {count} chunks"));
        }
    }
    if let Some(path) = &arguments.plot {
        let line = |tier: &Value| {
            let scores = scores(tier);
            let all = scores.iter().map(|(_, count)| count).sum::<u64>().max(1);
            let points = scores.iter().map(|&(score, count)| (score, count as f64 / all as f64)).collect();
            Line { name: name(tier), points }
        };
        let lines: Vec<_> = tiers.iter().map(line).collect();
        write(path, plot("Share of chunks by score", "score: uses to expect in a minute x importance x cost", &lines))?;
    }
    let verdict = if tiers.is_empty() { "this card's store has no tiers" } else { "tiers shown" };
    show.end(verdict, &json!({ "command": "tiers show", "ok": true, "tiers": tiers }));
    Ok(Verdict::Good)
}

/// Lower bounds of the buckets of a tier's scores, and chunks in them; the first has none, and is named by half its upper.
fn scores(tier: &Value) -> Vec<(f64, u64)> {
    let counts = tier.get("scores").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let middle = (counts.len() / 2) as f64;
    let bucket = |(index, count): (usize, &Value)| ((index as f64 - middle).exp2(), count.as_u64().unwrap_or(0));
    counts.iter().enumerate().map(bucket).collect()
}

fn write(path: &std::path::Path, svg: String) -> Result<(), Error> {
    std::fs::write(path, svg).map_err(|source| Error::System { call: "write", path: path.into(), source })
}

fn simulate(arguments: &Simulate) -> Result<Verdict, Error> {
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
        draw(path, &trace, first, &arguments.policy, chunk_bytes)?;
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
    Ok(Verdict::Good)
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

fn draw(
    path: &std::path::Path,
    trace: &Trace,
    first: u64,
    kinds: &[PolicyKind],
    chunk_bytes: u32,
) -> Result<(), Error> {
    let bytes: Vec<u64> = [8, 4, 2, 1].map(|part| first / part).into_iter().chain([2 * first, 4 * first]).collect();
    let line = |&kind: &PolicyKind| {
        let points = Curve::of(trace, kind, &bytes, chunk_bytes).points;
        let points = points.into_iter().map(|(bytes, rate)| (bytes as f64 / GIB, rate)).collect();
        Line { name: kind.name().to_owned(), points }
    };
    let lines: Vec<_> = kinds.iter().map(line).collect();
    let svg = plot(&format!("Hit rate of one tier, {}", trace.name), "GiB of the tier", &lines);
    write(path, svg)
}

fn parse_tier(text: &str) -> Result<TierSize, String> {
    let (name, bytes) = text.split_once('=').ok_or("not NAME=BYTES, as in dram=8G")?;
    Ok(TierSize { name: name.to_owned(), bytes: parse_bytes(bytes)? })
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    store::bytes(text).ok_or_else(|| "not a number of bytes above 0, as in 8G".to_owned())
}
