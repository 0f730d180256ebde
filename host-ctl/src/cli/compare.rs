//! `host-ctl compare`.

use std::path::PathBuf;

use block::Recipe;
use clap::Args;
use host_ctl::command::{CommandOutcome, Output, Pick, Show, open, parse_recipe};
use host_ctl::{Error, KindErrors, compare};
use serde_json::{Value, json};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Safetensors file that was stored
    original: PathBuf,
    /// Safetensors file that was fetched
    restored: PathBuf,
    /// Recipe that it was stored with: decides what is promised, every bit or a bound
    #[arg(long, value_name = "RECIPE", value_parser = parse_recipe)]
    recipe: Recipe,
    #[command(flatten)]
    pick: Pick,
    /// Tensor of the restored file
    #[arg(long, default_value = "kv", value_name = "NAME")]
    restored_tensor: String,
    /// Tokens of one chunk, as when it was stored
    #[arg(long, default_value_t = 256, value_name = "N")]
    chunk_tokens: usize,
    /// Largest block of the dpu-app that stored it, bytes of elements: decides which elements share a scale
    #[arg(long, default_value_t = 512 << 10, value_name = "BYTES")]
    block_bytes: usize,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(arguments: &Arguments) -> Result<CommandOutcome, Error> {
    let show = Show::new(&arguments.output);
    let (original, original_kv) = open(&arguments.original, &arguments.pick)?;
    let pick = Pick { tensor: arguments.restored_tensor.clone(), text: None };
    let (restored, restored_kv) = open(&arguments.restored, &pick)?;
    let found = compare(
        (&original, &original_kv),
        (&restored, &restored_kv),
        arguments.recipe,
        arguments.chunk_tokens,
        arguments.block_bytes / original_kv.shape.element.bytes(),
    )?;
    show.line("      elements       max abs           rms    cosine min   over bound");
    for (name, kind) in [("K", &found.k), ("V", &found.v)] {
        let KindErrors { elements, max_abs, rms, cosine_min, over_bound, .. } = kind;
        show.line(&format!("{name} {elements:>12} {max_abs:>13.6e} {rms:>13.6e} {cosine_min:>13.8} {over_bound:>12}"));
    }
    let recipe = arguments.recipe;
    let what = format!("{} chunks, {}", found.chunks, recipe);
    let over = found.k.over_bound + found.v.over_bound;
    let verdict = match (found.is_kept(), found.is_bit_equal()) {
        (true, true) => format!("equal: every bit ({what})"),
        (true, false) => format!("within bound: every element ({what})"),
        (false, _) if recipe.transform.quantizes() => format!("beyond bound: {over} elements ({what})"),
        (false, _) => format!("different: this recipe restores every bit ({what})"),
    };
    let value = json!({
        "command": "compare",
        "ok": found.is_kept(),
        "bit_equal": found.is_bit_equal(),
        "recipe": recipe.to_string(),
        "chunks": found.chunks,
        "tokens_missing": found.tokens_missing,
        "k": kind_json(&found.k),
        "v": kind_json(&found.v),
    });
    show.end(&verdict, &value);
    Ok(if found.is_kept() { CommandOutcome::Good } else { CommandOutcome::Bad })
}

fn kind_json(kind: &KindErrors) -> Value {
    let KindErrors { elements, max_abs, rms, cosine_min, over_bound, bit_equal } = kind;
    json!({
        "elements": elements, "max_abs": max_abs, "rms": rms, "cosine_min": cosine_min,
        "over_bound": over_bound, "bit_equal": bit_equal,
    })
}
