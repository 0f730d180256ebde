//! `kvlane-plan generate`.

use std::path::PathBuf;

use block::ElementType;
use clap::Args;
use host_ctl::command::{CommandOutcome, Output, Pick, Show, mb, open};
use host_ctl::{Error, TensorShape};
use serde_json::json;
use study::{Synthetic, generate};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Safetensors file with real keys and values
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    #[command(flatten)]
    pick: Pick,
    /// Layers
    #[arg(long, default_value_t = 32, value_name = "N")]
    layers: usize,
    /// KV heads
    #[arg(long, default_value_t = 8, value_name = "N")]
    heads: usize,
    /// Elements of one head
    #[arg(long, default_value_t = 128, value_name = "N")]
    head_size: usize,
    /// Tokens
    #[arg(long, default_value_t = 8192, value_name = "N")]
    tokens: usize,
    /// Element type: bf16, f16 or f32 [default: the source's]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<ElementType>,
    /// Equal seeds make equal files
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// File to write: tensors kv and tokens
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(arguments: &Arguments) -> Result<CommandOutcome, Error> {
    let show = Show::new(&arguments.output);
    let Arguments { layers, heads, head_size, tokens, seed, .. } = *arguments;
    let (file, kv) = open(&arguments.from, &arguments.pick)?;
    let element = arguments.dtype.unwrap_or(kv.shape.element);
    let wanted = Synthetic { shape: TensorShape { layers, tokens, heads, head_size, element }, seed };
    let mut bar = show.bar("generate", "layers");
    let bytes = generate((&file, &kv), &wanted, &arguments.out, &mut |done, all| bar.set(done, all))?;
    drop(bar);
    let place = arguments.out.display().to_string();
    let verdict = format!("generated: {} of synthetic KV in {place}", mb(bytes));
    show.end(
        &verdict,
        &json!({ "command": "generate", "synthetic": true, "seed": seed, "bytes": bytes, "out": place }),
    );
    Ok(CommandOutcome::Good)
}
