//! `host-ctl fetch`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args};
use host_ctl::command::{CommandOutcome, Output, Show, mb};
use host_ctl::{Amounts, Arrangement, Error, FetchOrder, PageOrder, Target, fetch};
use serde_json::json;

use super::amounts::{amounts_json, geometry_json, geometry_text, seconds, show_stages, stages_json};
use super::given::{Card, Naming, ShapeArguments};
use super::store::PART_CHUNKS;

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("destination").required(true).args(["out", "anonymous"])))]
pub(crate) struct Arguments {
    #[command(flatten)]
    naming: Naming,
    #[command(flatten)]
    shape: ShapeArguments,
    /// Write a safetensors file with the tensor kv; it appears when it is whole, or not at all
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Fetch into memory arranged as a serving engine has it and forget it: for measuring, nothing is verified
    #[arg(long)]
    anonymous: bool,
    /// Arrangement of --anonymous memory: contiguous, vllm, vllm-joint or head-major
    #[arg(long, default_value = "vllm", value_name = "NAME", conflicts_with = "out")]
    layout: Arrangement,
    /// Order of --anonymous pages: linear or shuffled:SEED
    #[arg(long, default_value = "shuffled:1", value_name = "ORDER", conflicts_with = "out")]
    page_order: PageOrder,
    /// Fetch this often, for measuring
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Tokens of one page; divides --chunk-tokens
    #[arg(long, default_value_t = 16, value_name = "N")]
    page_tokens: u16,
    /// Give up after this long [default: dpu-app's own, for each part of the request]
    #[arg(long, value_name = "MS")]
    deadline_ms: Option<u64>,
    #[command(flatten)]
    card: Card,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(arguments: &Arguments) -> Result<CommandOutcome, Error> {
    let show = Show::new(&arguments.output);
    let (shape, tokens) = arguments.shape.load()?;
    let target = match &arguments.out {
        Some(path) => Target::File { path, tensor: "kv" },
        None => Target::Anonymous { arrangement: arguments.layout, order: arguments.page_order },
    };
    let order = FetchOrder {
        identity: arguments.naming.identity()?,
        tokens: &tokens,
        shape,
        chunk_tokens: arguments.naming.chunk_tokens,
        page_tokens: arguments.page_tokens,
        deadline: arguments.deadline_ms.map(Duration::from_millis),
        patience: arguments.card.patience(),
        target,
        repeat: arguments.repeat as usize,
    };
    let mut door = arguments.card.options(arguments.naming.recipe);
    door.part_chunks = Some(PART_CHUNKS);
    let mut bar = show.bar("fetch", "chunks");
    let report = fetch(&mut door, &order, &mut |done, all| bar.set(done, all))?;
    drop(bar);

    let total: Duration = report.runs.iter().map(|run| run.elapsed).sum();
    let median = median(&report.runs);
    let mut rows = vec![
        ("geometry", geometry_text(&report.geometry)),
        ("recipe", report.recipe.to_string()),
        ("tokens", format!("{} in place, of {}", report.tokens, tokens.len())),
        ("chunks", format!("{} fetched, {} found, of {}", report.fetched, report.found, report.chunks)),
        (
            "bytes",
            format!("{} raw, {} on the wire, ratio {:.2}", mb(median.raw_bytes), mb(median.wire_bytes), median.ratio()),
        ),
        ("time", format!("{}, {:.1} MB/s of raw bytes", seconds(median.elapsed), median.raw_mb_s())),
    ];
    if report.runs.len() > 1 {
        let (best, worst) =
            (report.runs.iter().map(|run| run.elapsed).min(), report.runs.iter().map(|run| run.elapsed).max());
        let spread = format!(
            "{} runs, best {}, worst {}; above is the median",
            report.runs.len(),
            seconds(best.unwrap_or_default()),
            seconds(worst.unwrap_or_default())
        );
        rows.push(("repeat", spread));
    }
    rows.extend(report.note.iter().map(|note| ("note", note.clone())));
    show.table(&rows);
    show_stages(&show, &report.stages, total);
    let place = arguments.out.as_ref().map_or("memory".to_owned(), |path| path.display().to_string());
    let verdict = if report.fetched == report.chunks {
        format!("fetched: all {} chunks, {} tokens, are in {place}", report.chunks, report.tokens)
    } else {
        format!(
            "partial hit: the first {} of {} chunks, {} tokens, are in {place}",
            report.fetched, report.chunks, report.tokens
        )
    };
    let value = json!({
        "command": "fetch",
        "whole": report.fetched == report.chunks,
        "recipe": report.recipe.to_string(),
        "geometry": geometry_json(&report.geometry),
        "tokens": report.tokens,
        "tokens_left_out": report.remainder,
        "chunks": report.chunks,
        "chunks_found": report.found,
        "chunks_fetched": report.fetched,
        "note": report.note,
        "chunks_damaged": report.damaged.unwrap_or(0),
        "out": arguments.out.as_ref().map(|path| path.display().to_string()),
        "layout": arguments.anonymous.then(|| arguments.layout.name()),
        "amounts": amounts_json(&median),
        "runs": report.runs.iter().map(amounts_json).collect::<Vec<_>>(),
        "stages": stages_json(&report.stages),
    });
    show.end(&verdict, &value);
    Ok(CommandOutcome::Good)
}

fn median(runs: &[Amounts]) -> Amounts {
    let mut runs = runs.to_vec();
    runs.sort_by_key(|run| run.elapsed);
    runs.get(runs.len() / 2).copied().unwrap_or_default()
}
