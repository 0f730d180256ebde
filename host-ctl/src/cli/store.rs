//! `host-ctl store`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use host_ctl::command::{CommandOutcome, Output, Pick, Show, mb, open};
use host_ctl::{Client, Error, StoreOrder, TokenSpec, store, store_mixed};
use serde_json::json;

use super::amounts::{amounts_json, geometry_json, geometry_text, seconds, show_stages, stages_json};
use super::given::{self, Card, Naming};
use super::precision::{self, Precision};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Safetensors file with keys and values; the card reads it where it lies
    file: PathBuf,
    #[command(flatten)]
    naming: Naming,
    #[command(flatten)]
    pick: Pick,
    /// Token ids: tensor:NAME, range:A..B, file:PATH (numbers) or text:PATH (bytes) [default: tensor:tokens]
    #[arg(long, value_name = "SPEC")]
    tokens: Option<TokenSpec>,
    /// Tokens of one page of the page table; divides --chunk-tokens
    #[arg(long, default_value_t = 16, value_name = "N")]
    page_tokens: u16,
    /// Give up after this long [default: dpu-app's own, for each part of the request]
    #[arg(long, value_name = "MS")]
    deadline_ms: Option<u64>,
    /// What each whole chunk is worth beside how often it is used: JSON like {"chunks": [1.5, 0.25]}, 1 being neutral
    #[arg(long, value_name = "FILE")]
    importance: Option<PathBuf>,
    /// Store also what is stored already
    #[arg(long)]
    again: bool,
    #[command(flatten)]
    precision: Precision,
    #[command(flatten)]
    card: Card,
    #[command(flatten)]
    output: Output,
}

/// Chunks of one request on the page: small enough that progress is seen.
pub(crate) const PART_CHUNKS: usize = 8;

pub(crate) fn run(arguments: &Arguments) -> Result<CommandOutcome, Error> {
    let show = Show::new(&arguments.output);
    let (file, kv) = open(&arguments.file, &arguments.pick)?;
    let tokens = given::load_tokens(arguments.tokens.as_ref(), Some(&file), arguments.pick.text)?;
    let importances = arguments.importance.as_deref().map(host_ctl::load_importances).transpose()?.unwrap_or_default();
    let order = StoreOrder {
        file: &file,
        kv: &kv,
        identity: arguments.naming.identity()?,
        tokens: &tokens,
        chunk_tokens: arguments.naming.chunk_tokens,
        page_tokens: arguments.page_tokens,
        deadline: arguments.deadline_ms.map(Duration::from_millis),
        patience: arguments.card.patience(),
        again: arguments.again,
        importances: &importances,
    };
    let mut door = arguments.card.options(arguments.naming.recipe);
    door.part_chunks = Some(PART_CHUNKS);
    let mut bar = show.bar("store", "chunks");
    let watch = &mut |done, all| bar.set(done, all);
    let (report, mixed) = match arguments.precision.mixture()? {
        None => (store(&mut door, &order, watch)?, None),
        Some(mixture) => {
            let mut attach = |recipe, memory| {
                door.recipe = recipe;
                Client::attach(&door, memory)
            };
            let mixed = store_mixed(&mut attach, arguments.naming.recipe, &order, &mixture, watch)?;
            (mixed.whole.clone(), Some(mixed))
        }
    };
    drop(bar);

    let amounts = &report.amounts;
    let mut rows = vec![
        ("geometry", geometry_text(&report.geometry)),
        ("recipe", report.recipe.to_string()),
        ("tokens", format!("{} ({} behind the last whole chunk are left out)", report.tokens, report.remainder)),
        ("chunks", format!("{} stored, {} known, of {}", report.stored, report.known, report.chunks)),
        (
            "bytes",
            format!(
                "{} raw, {} on the wire, ratio {:.2}",
                mb(amounts.raw_bytes),
                mb(amounts.wire_bytes),
                amounts.ratio()
            ),
        ),
        ("time", format!("{}, {:.1} MB/s of raw bytes", seconds(amounts.elapsed), amounts.raw_mb_s())),
    ];
    rows.extend(mixed.iter().flat_map(precision::rows));
    show.table(&rows);
    show_stages(&show, &report.stages, amounts.elapsed);
    let whole = report.known + report.stored == report.chunks;
    let verdict = if whole {
        format!("stored: all {} chunks of the prefix are in the store", report.chunks)
    } else {
        format!("incomplete: {} of {} chunks are in the store", report.known + report.stored, report.chunks)
    };
    let value = json!({
        "command": "store",
        "ok": whole,
        "recipe": report.recipe.to_string(),
        "geometry": geometry_json(&report.geometry),
        "tokens": report.tokens,
        "tokens_left_out": report.remainder,
        "chunks": report.chunks,
        "chunks_known": report.known,
        "chunks_stored": report.stored,
        "amounts": amounts_json(amounts),
        "stages": stages_json(&report.stages),
        "precision": mixed.as_ref().map(precision::json),
    });
    show.end(&verdict, &value);
    Ok(if whole { CommandOutcome::Good } else { CommandOutcome::Bad })
}
