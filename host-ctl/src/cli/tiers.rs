//! `host-ctl tiers`.

use clap::{Args, Subcommand};
use host_ctl::command::{CommandOutcome, Output, Show, mb};
use host_ctl::{CardStatus, Client, Error, tier_scores};
use serde_json::{Value, json};

use super::given::Card;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the tiers of a card: what they hold, serve, take and give up, and how worth is spread over their chunks
    Show(ShowTiers),
}

#[derive(Debug, Args)]
struct ShowTiers {
    #[command(flatten)]
    card: Card,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(arguments: &Arguments) -> Result<CommandOutcome, Error> {
    let Command::Show(arguments) = &arguments.command;
    show_tiers(arguments)
}

fn show_tiers(arguments: &ShowTiers) -> Result<CommandOutcome, Error> {
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
        for (score, count) in tier_scores(tier).into_iter().filter(|(_, count)| *count > 0) {
            show.line(&format!("  score from {score:<9} {count} chunks"));
        }
    }
    let verdict = if tiers.is_empty() { "this card's store has no tiers" } else { "tiers shown" };
    show.end(verdict, &json!({ "command": "tiers show", "ok": true, "tiers": tiers }));
    Ok(CommandOutcome::Good)
}
