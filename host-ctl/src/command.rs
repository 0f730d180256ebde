//! What the programs `host-ctl` and `kvlane-plan` share: arguments, how results are shown, and how a program ends.

mod ending;
mod show;

use std::path::Path;

use block::Recipe;
use clap::Args;

use crate::{Error, KvFile, KvTensor};

pub use ending::{failed, log, refused};
pub use show::{Bar, Show, mb};

/// How a command ended, errors apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandOutcome {
    Good,
    /// It ran, and what it found is not good: exit code 1.
    Bad,
}

/// How to print.
#[derive(Debug, Args)]
pub struct Output {
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
    /// Print the last line only, and no progress
    #[arg(long)]
    pub quiet: bool,
}

/// Which tensor of a file.
#[derive(Debug, Args)]
pub struct Pick {
    /// Tensor with keys and values: [layers, 2, tokens, heads, head size], or that with a number of texts in front
    #[arg(long, default_value = "kv", value_name = "NAME")]
    pub tensor: String,
    /// Which text of a tensor that holds several, from 0 [default: 0]
    #[arg(long, value_name = "N")]
    pub text: Option<usize>,
}

/// Opens a file and finds its KV tensor.
pub fn open(path: &Path, pick: &Pick) -> Result<(KvFile, KvTensor), Error> {
    let file = KvFile::open(path)?;
    let kv = file.kv(&pick.tensor, pick.text)?;
    Ok((file, kv))
}

pub fn bad(place: &str, what: String, fix: &str) -> Error {
    Error::Input { place: place.to_owned(), what, fix: fix.to_owned() }
}

pub fn parse_recipe(text: &str) -> Result<Recipe, String> {
    text.parse().map_err(|error: block::RecipeError| error.to_string())
}
