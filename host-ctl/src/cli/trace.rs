//! `host-ctl trace`.

use std::fmt::Write as _;

use clap::Args;
use host_ctl::command::{CommandOutcome, Output, Show};
use host_ctl::{CardStatus, Client, Error};
use serde_json::Value;

use super::given::Card;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only of this session
    #[arg(long, value_name = "ID")]
    session: Option<u64>,
    /// Only of this request
    #[arg(long, value_name = "NUMBER")]
    request: Option<u64>,
    #[command(flatten)]
    card: Card,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(arguments: &Arguments) -> Result<CommandOutcome, Error> {
    let show = Show::new(&arguments.output);
    let mut client = Client::attach(&arguments.card.options(None), None)?;
    let id = client.post_trace()?;
    let answer = client.wait(id, arguments.card.patience())?.ok()?.answer;
    let trace = CardStatus::parse(&answer)?.value().clone();
    let trace = only(trace, arguments);
    show.line(&table(&trace));
    let count = |name: &str| trace[name].as_array().map_or(0, Vec::len);
    show.end(&format!("{} late requests, {} stages", count("late"), count("spans")), &trace);
    client.close(arguments.card.patience())?;
    Ok(CommandOutcome::Good)
}

/// What was asked for of it.
fn only(mut trace: Value, arguments: &Arguments) -> Value {
    let wanted = |row: &Value| {
        let is = |name: &str, number: Option<u64>| number.is_none_or(|number| row[name] == number);
        is("session", arguments.session) && is("request", arguments.request)
    };
    for name in ["late", "spans"] {
        if let Some(rows) = trace[name].as_array_mut() {
            rows.retain(wanted);
        }
    }
    trace
}

/// Lists stages for people, oldest first, so that the newest stand above the prompt.
fn table(trace: &Value) -> String {
    let mut out = String::new();
    let rows = |name: &str| trace[name].as_array().map(Vec::as_slice).unwrap_or_default().iter().rev();
    let now_ms = trace["now_ms"].as_u64().unwrap_or(0);
    let ago = |row: &Value| format!("{:.3}", now_ms.saturating_sub(row["at_ms"].as_u64().unwrap_or(0)) as f64 / 1e3);
    let number = |row: &Value, name: &str| row[name].as_u64().map_or_else(|| "-".to_owned(), |n| n.to_string());
    let word = |row: &Value, name: &str| row[name].as_str().unwrap_or("-").to_owned();
    if rows("late").len() > 0 {
        let _ = writeln!(out, "late requests");
        let _ = writeln!(out, "   s ago  session     request  asked       ms  chunks     slowest stage");
    }
    for row in rows("late") {
        let chunks = format!("{}/{}", number(row, "chunks_done"), number(row, "chunk_count"));
        let (ago, session, request) = (ago(row), number(row, "session"), number(row, "request"));
        let (asked, took, slowest) = (word(row, "operation"), number(row, "took_ms"), word(row, "slowest"));
        let _ = writeln!(out, "{ago:>8} {session:>8} {request:>11}  {asked:<7} {took:>6}  {chunks:<9}  {slowest}");
    }
    if rows("spans").len() > 0 {
        let _ = writeln!(out, "stages");
        let _ = writeln!(out, "   s ago  session     request   chunk  block  stage        queued ms   worked ms");
    }
    for row in rows("spans") {
        let ms = |name: &str| row[name].as_u64().unwrap_or(0) as f64 / 1e3;
        let (ago, session, request) = (ago(row), number(row, "session"), number(row, "request"));
        let (chunk, block, stage) = (number(row, "chunk"), number(row, "block"), word(row, "stage"));
        let (queued, worked) = (ms("queued_us"), ms("worked_us"));
        let _ = writeln!(
            out,
            "{ago:>8} {session:>8} {request:>11} {chunk:>7} {block:>6}  {stage:<10} {queued:>11.3} {worked:>11.3}"
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn late_requests_and_stages_are_told_oldest_first() {
        let span = |at_ms: u64, stage: &str| {
            json!({"at_ms": at_ms, "session": 7, "request": 12, "chunk": 3, "block": 5, "stage": stage,
                "queued_us": 1500, "worked_us": 20})
        };
        let late = json!({"at_ms": 500, "session": 7, "request": 12, "operation": "fetch", "took_ms": 1240,
            "chunks_done": 3, "chunk_count": 8, "slowest": "fetch of chunk 3 block 5 took 1100 ms (store)"});
        let trace = json!({"now_ms": 1000, "late": [late], "spans": [span(900, "write"), span(800, "fetch")]});
        let lines: Vec<String> =
            table(&trace).lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(lines[2], "0.500 7 12 fetch 1240 3/8 fetch of chunk 3 block 5 took 1100 ms (store)");
        assert_eq!(lines[5], "0.200 7 12 3 5 fetch 1.500 0.020");
        assert_eq!(lines[6], "0.100 7 12 3 5 write 1.500 0.020");
    }
}
