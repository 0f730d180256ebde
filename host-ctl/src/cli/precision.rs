//! Arguments of `host-ctl store` for precision by importance, and what it prints of it.

use block::Recipe;
use clap::Args;
use host_ctl::command::{bad, mb, parse_recipe};
use host_ctl::{Budget, MixedReport, Mixture, Portion};
use serde_json::{Value, json};

#[derive(Debug, Args)]
#[group(id = "budget", multiple = false, args = ["bits_per_element", "budget_bytes"])]
pub(crate) struct Precision {
    /// Store chunks of low importance (--importance) in fewer bits; this is what an element may take in the store, on
    /// average. Readers name the prefix as always (--recipe); give it a --model of its own if they rely on a least
    /// precision
    #[arg(long, value_name = "BITS", requires = "importance")]
    bits_per_element: Option<f64>,
    /// Store chunks of low importance in fewer bits; this is what the whole prefix may take in the store, as in 200M
    #[arg(long, value_name = "BYTES", requires = "importance", value_parser = parse_bytes)]
    budget_bytes: Option<u64>,
    /// Recipes that --bits-per-element and --budget-bytes choose from
    #[arg(
        long,
        value_name = "RECIPE,...",
        value_delimiter = ',',
        default_value = "q8,q6,q5,q4,peak4,q3,peak2,peak1",
        value_parser = parse_recipe
    )]
    levels: Vec<Recipe>,
}

impl Precision {
    /// None where all chunks are to have the same precision.
    pub(crate) fn mixture(&self) -> Result<Option<Mixture<'_>>, host_ctl::Error> {
        let budget = match (self.bits_per_element, self.budget_bytes) {
            (None, None) => return Ok(None),
            (Some(bits), _) if !(bits.is_finite() && bits > 0.0) => {
                return Err(bad("--bits-per-element", bits.to_string(), "give a number above 0"));
            }
            (Some(bits), _) => Budget::BitsPerElement(bits),
            (None, Some(bytes)) => Budget::Bytes(bytes),
        };
        Ok(Some(Mixture { levels: &self.levels, budget }))
    }
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    store::bytes(text).ok_or_else(|| "not a number of bytes above 0, as in 200M".to_owned())
}

/// Rows of the table.
pub(crate) fn rows(report: &MixedReport) -> Vec<(&'static str, String)> {
    let portion = |portion: &Portion| {
        let Portion { recipe, chunks, stored, wire_bytes, .. } = portion;
        ("precision", format!("{recipe}: {chunks} chunks ({stored} stored now, {})", mb(*wire_bytes)))
    };
    let budget = format!("{} of {} planned", mb(report.planned_bytes), mb(report.budget_bytes));
    report.portions.iter().map(portion).chain([("budget", budget)]).collect()
}

pub(crate) fn json(report: &MixedReport) -> Value {
    let portion = |portion: &Portion| {
        json!({
            "recipe": portion.recipe.to_string(), "chunk_bytes": portion.chunk_bytes, "chunks": portion.chunks,
            "stored": portion.stored, "wire_bytes": portion.wire_bytes,
        })
    };
    json!({
        "budget_bytes": report.budget_bytes, "planned_bytes": report.planned_bytes,
        "levels": report.portions.iter().map(portion).collect::<Vec<_>>(),
    })
}
