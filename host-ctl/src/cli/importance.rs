//! `host-ctl importance`.

use std::path::PathBuf;

use clap::Args;
use host_ctl::command::{CommandOutcome, Output, Show};
use host_ctl::{Error, importance, load_importances, rate};
use serde_json::json;

use super::given::{Card, Naming, ShapeArguments};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Factor for all whole chunks of the prompt, 1 being neutral
    #[arg(value_name = "VALUE", required_unless_present = "file", conflicts_with = "file")]
    value: Option<f32>,
    /// Factors, one for each whole chunk: JSON like {"chunks": [1.5, 0.25]}
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
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
    let of = |chunks: usize| match (&arguments.file, arguments.value) {
        (Some(file), _) => load_importances(file),
        (None, value) => Ok(vec![importance(value.unwrap_or(1.0))?; chunks]),
    };
    let mut door = arguments.card.options(arguments.naming.recipe);
    let identity = arguments.naming.identity()?;
    let rated = rate(&mut door, &identity, geometry, &tokens, &of, arguments.card.patience())?;
    show.end(
        &format!("rated: the card knows what {rated} chunks are worth"),
        &json!({ "command": "importance", "ok": true, "chunks": rated }),
    );
    Ok(CommandOutcome::Good)
}
