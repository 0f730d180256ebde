//! `host-ctl ping`, `drain` (and its undoing) and `stop`.

use std::time::{Duration, Instant};

use clap::Args;
use host_ctl::command::{CommandOutcome, Output, Show};
use host_ctl::{Client, Error};
use serde_json::json;

use super::given::Card;

#[derive(Debug, Args)]
pub(crate) struct PingArguments {
    /// How many pings, one after the other
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    count: u32,
    #[command(flatten)]
    card: Card,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct DrainArguments {
    /// Take requests again
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    card: Card,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    card: Card,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn ping(arguments: &PingArguments) -> Result<CommandOutcome, Error> {
    let show = Show::new(&arguments.output);
    let attached = Instant::now();
    let mut client = Client::attach(&arguments.card.options(None), None)?;
    let attach = attached.elapsed();
    let mut times = Vec::with_capacity(arguments.count as usize);
    for _ in 0..arguments.count {
        let id = client.post_ping()?;
        times.push(client.wait(id, arguments.card.patience())?.ok()?.elapsed);
    }
    times.sort_unstable();
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    // The nearest rank: with few pings, p99 is the slowest.
    let at = |percent: usize| times[(times.len() * percent).div_ceil(100).max(1) - 1];
    let (p50, p99, max) = (at(50), at(99), times[times.len() - 1]);
    let card = client.card_facts().card.clone();
    show.table(&[
        ("card", card.clone()),
        ("recipe", client.card_facts().recipe.to_string()),
        ("attach", format!("{:.0} us", us(attach))),
    ]);
    let verdict =
        format!("alive: {} pings, p50 {:.1} us, p99 {:.1} us, max {:.1} us", times.len(), us(p50), us(p99), us(max));
    let value = json!({
        "command": "ping",
        "card": card,
        "recipe": client.card_facts().recipe.to_string(),
        "count": times.len(),
        "attach_us": us(attach),
        "p50_us": us(p50),
        "p99_us": us(p99),
        "max_us": us(max),
    });
    client.close(arguments.card.patience())?;
    show.end(&verdict, &value);
    Ok(CommandOutcome::Good)
}

pub(crate) fn drain(arguments: &DrainArguments) -> Result<CommandOutcome, Error> {
    let show = Show::new(&arguments.output);
    let mut client = Client::attach(&arguments.card.options(None), None)?;
    let id = if arguments.undo { client.post_resume()? } else { client.post_drain()? };
    client.wait(id, arguments.card.patience())?.ok()?;
    client.close(arguments.card.patience())?;
    let (state, verdict) = match arguments.undo {
        true => ("steady", "resumed: dpu-app takes requests again"),
        false => ("draining", "draining: dpu-app finishes what runs and takes nothing new, until `drain --undo`"),
    };
    show.end(verdict, &json!({ "command": "drain", "ok": true, "state": state }));
    Ok(CommandOutcome::Good)
}

pub(crate) fn stop(arguments: &Arguments) -> Result<CommandOutcome, Error> {
    let show = Show::new(&arguments.output);
    let mut client = Client::attach(&arguments.card.options(None), None)?;
    let id = client.post_stop()?;
    client.wait(id, arguments.card.patience())?.ok()?;
    let ended = client.wait_end(arguments.card.patience());
    let verdict = match ended {
        true => "stopped: dpu-app has ended".to_owned(),
        false => format!("stopping: dpu-app at {} still finishes what runs", arguments.card.route()),
    };
    show.end(&verdict, &json!({ "command": "stop", "ok": ended }));
    Ok(if ended { CommandOutcome::Good } else { CommandOutcome::Bad })
}
