//! `host-ctl status`.

use std::time::{Duration, Instant};

use clap::Args;
use host_ctl::command::{CommandOutcome, Output, Show};
use host_ctl::{CardStatus, Client, Error};

use super::given::Card;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Show again every so many seconds, with what the stages did meanwhile, until interrupted
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    watch: Option<u32>,
    #[command(flatten)]
    card: Card,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(arguments: &Arguments) -> Result<CommandOutcome, Error> {
    let show = Show::new(&arguments.output);
    let mut client = Client::attach(&arguments.card.options(None), None)?;
    let mut before: Option<(CardStatus, Instant)> = None;
    loop {
        let id = client.post_status()?;
        let answer = client.wait(id, arguments.card.patience())?.ok()?.answer;
        let (status, now) = (CardStatus::parse(&answer)?, Instant::now());
        let since = before.as_ref().map(|(status, at)| (status, (now - *at).as_secs_f64()));
        show.line(&status.table(since));
        let value = status.value();
        let state = value.pointer("/card/state").and_then(|state| state.as_str()).unwrap_or("unknown");
        show.end(&format!("state: {state}"), value);
        let Some(seconds) = arguments.watch else { break };
        before = Some((status, now));
        // Not a sleep: a card that leaves meanwhile is noticed.
        if client.wait_end(Duration::from_secs(seconds.into())) {
            return client.poll().map(|_| CommandOutcome::Good);
        }
    }
    client.close(arguments.card.patience())?;
    Ok(CommandOutcome::Good)
}
