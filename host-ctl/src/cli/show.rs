//! What people see: lines, tables, a progress bar, amounts with units. A closed pipe is nobody's error.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use host_ctl::{Amounts, StageDelta};
use mailbox::{visible, visible_json};
use serde_json::{Value, json};

use super::given::Output;

/// Work shorter than this shows no bar.
const BAR_AFTER: Duration = Duration::from_millis(700);
const BAR_CELLS: usize = 30;

/// Prints as the arguments say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Show {
    json: bool,
    quiet: bool,
}

impl Show {
    pub(crate) fn new(output: &Output) -> Show {
        Show { json: output.json, quiet: output.quiet }
    }

    /// Lines for people, nothing with `--json` or `--quiet`.
    pub(crate) fn table(&self, rows: &[(&str, String)]) {
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in rows {
            self.line(&format!("{name:<width$}  {value}"));
        }
    }

    /// As [`Show::table`], one line.
    pub(crate) fn line(&self, text: &str) {
        if !self.json && !self.quiet {
            print(text);
        }
    }

    /// The last thing: a verdict for people, or everything for machines.
    pub(crate) fn end(&self, verdict: &str, value: &Value) {
        if self.json { print_json(value) } else { print(verdict) }
    }

    /// What each stage did.
    pub(crate) fn stages(&self, stages: &[StageDelta], elapsed: Duration) {
        if stages.is_empty() {
            return;
        }
        self.line("stage           jobs   busy ms    busy      MB in     MB out");
        for StageDelta { name, jobs, busy_ms, bytes_in, bytes_out } in stages {
            let busy = busy_ms / 1000.0 / elapsed.as_secs_f64().max(1e-9);
            let (mb_in, mb_out) = (*bytes_in as f64 / 1e6, *bytes_out as f64 / 1e6);
            self.line(&format!("{name:<11} {jobs:>8} {busy_ms:>9.1} {busy:>7.2} {mb_in:>10.1} {mb_out:>10.1}"));
        }
    }

    /// A bar on the terminal, if there is one to see it.
    pub(crate) fn bar(&self, label: &'static str, unit: &'static str) -> Bar {
        let visible = !self.quiet && std::io::stderr().is_terminal();
        Bar { label, unit, visible, since: Instant::now(), drawn: false }
    }
}

/// Writes lines to standard output. Whoever closed it does not want the rest. A line break is ours: what others may have
/// put into a name is escaped by whoever quotes it, or here.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    for line in text.trim_end_matches('\n').split('\n') {
        let _ = writeln!(out, "{}", visible(line));
    }
}

fn print_json(value: &Value) {
    let _ = writeln!(std::io::stdout().lock(), "{}", visible_json(&value.to_string()));
}

/// Longest error on one line; what is longer is a list that nobody reads.
const ERROR_CHARS_MAX: usize = 2000;

/// The end of a command that failed: text for people on standard error, and an object for a machine that asked for one.
pub(crate) fn failed(text: &str, code: u8, json: bool) {
    let shown: String = visible(text).chars().take(ERROR_CHARS_MAX).collect();
    let rest = if shown.len() < text.len() && text.chars().count() > ERROR_CHARS_MAX { " ..." } else { "" };
    eprintln!("host-ctl: {shown}{rest}");
    if json {
        print_json(&json!({ "ok": false, "error": text, "code": code }));
    }
}

/// See [`Show::bar`].
#[derive(Debug)]
pub(crate) struct Bar {
    label: &'static str,
    unit: &'static str,
    visible: bool,
    since: Instant,
    drawn: bool,
}

impl Bar {
    pub(crate) fn set(&mut self, done: usize, all: usize) {
        if !self.visible || self.since.elapsed() < BAR_AFTER {
            return;
        }
        self.drawn = true;
        let full = done.min(all) * BAR_CELLS / all.max(1);
        let (hashes, dots) = ("#".repeat(full), ".".repeat(BAR_CELLS - full));
        let seconds = self.since.elapsed().as_secs_f64();
        let _ =
            write!(std::io::stderr(), "\r{} [{hashes}{dots}] {done}/{all} {} {seconds:.0} s ", self.label, self.unit);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if self.drawn {
            let _ = write!(std::io::stderr(), "\r{:79}\r", "");
        }
    }
}

/// Bytes as people read them: units of 10^6.
pub(crate) fn mb(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{:.2} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

pub(crate) fn seconds(elapsed: Duration) -> String {
    match elapsed.as_secs_f64() {
        s if s < 0.1 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.3} s"),
    }
}

pub(crate) fn amounts_json(amounts: &Amounts) -> Value {
    json!({
        "raw_bytes": amounts.raw_bytes,
        "wire_bytes": amounts.wire_bytes,
        "ratio": amounts.ratio(),
        "seconds": amounts.elapsed.as_secs_f64(),
        "raw_mb_s": amounts.raw_mb_s(),
    })
}

pub(crate) fn stages_json(stages: &[StageDelta]) -> Value {
    let stage = |stage: &StageDelta| {
        let StageDelta { name, jobs, busy_ms, bytes_in, bytes_out } = stage;
        (name.clone(), json!({ "jobs": jobs, "busy_ms": busy_ms, "bytes_in": bytes_in, "bytes_out": bytes_out }))
    };
    Value::Object(stages.iter().map(stage).collect())
}

pub(crate) fn geometry_json(geometry: &block::Geometry) -> Value {
    json!({
        "layers": geometry.layers,
        "heads": geometry.heads,
        "head_size": geometry.head_size,
        "chunk_tokens": geometry.chunk_tokens,
        "element": geometry.element.name(),
    })
}

pub(crate) fn geometry_text(geometry: &block::Geometry) -> String {
    let block::Geometry { layers, heads, head_size, chunk_tokens, element } = geometry;
    format!("{layers} layers x {heads} KV heads x {head_size} {element}, chunks of {chunk_tokens} tokens")
}
