//! `host-ctl lookup`.

use clap::Args;
use host_ctl::command::{CommandOutcome, Output, Show};
use host_ctl::{Error, lookup};
use serde_json::json;

use super::amounts::{geometry_json, geometry_text, seconds};
use super::given::{Card, Naming, ShapeArguments};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    naming: Naming,
    #[command(flatten)]
    shape: ShapeArguments,
    #[command(flatten)]
    card: Card,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(arguments: &Arguments) -> Result<CommandOutcome, Error> {
    let show = Show::new(&arguments.output);
    let (shape, tokens) = arguments.shape.load()?;
    let geometry = arguments.naming.geometry(&shape)?;
    let mut door = arguments.card.options(arguments.naming.recipe);
    let identity = arguments.naming.identity()?;
    let found = lookup(&mut door, &identity, geometry, &tokens, arguments.card.patience())?;
    let (hits, chunks) = (found.found, found.prefix.chunks());
    let hit_tokens = hits * arguments.naming.chunk_tokens;
    show.table(&[
        ("geometry", geometry_text(&geometry)),
        ("recipe", found.recipe.to_string()),
        ("time", seconds(found.elapsed)),
    ]);
    let verdict = match hits {
        0 => format!("miss: none of the prefix's {chunks} chunks is stored"),
        _ if hits == chunks => format!("hit: all {chunks} chunks, {hit_tokens} tokens, are stored"),
        _ => format!("partial hit: the first {hits} of {chunks} chunks, {hit_tokens} tokens, are stored"),
    };
    let value = json!({
        "command": "lookup",
        "recipe": found.recipe.to_string(),
        "geometry": geometry_json(&geometry),
        "chunks": chunks,
        "chunks_found": hits,
        "tokens_found": hit_tokens,
        "tokens_left_out": found.prefix.remainder(),
        "keys": found.prefix.keys().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "seconds": found.elapsed.as_secs_f64(),
    });
    show.end(&verdict, &value);
    Ok(CommandOutcome::Good)
}
