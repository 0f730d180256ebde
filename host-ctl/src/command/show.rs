//! What people see: lines, tables, a progress bar, amounts with units. A closed pipe is nobody's error.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use mailbox::{visible, visible_json};
use serde_json::Value;

use super::Output;

/// Work shorter than this shows no bar.
const BAR_AFTER: Duration = Duration::from_millis(700);
const BAR_CELLS: usize = 30;

/// Prints as the arguments say.
#[derive(Clone, Copy, Debug)]
pub struct Show {
    json: bool,
    quiet: bool,
}

impl Show {
    pub fn new(output: &Output) -> Show {
        Show { json: output.json, quiet: output.quiet }
    }

    /// Prints names and values in two columns, nothing with `--json` or `--quiet`.
    pub fn table(&self, rows: &[(&str, String)]) {
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in rows {
            self.line(&format!("{name:<width$}  {value}"));
        }
    }

    /// Prints one line, nothing with `--json` or `--quiet`.
    pub fn line(&self, text: &str) {
        if !self.json && !self.quiet {
            print(text);
        }
    }

    /// The last thing: a verdict for people, or everything for machines.
    pub fn end(&self, verdict: &str, value: &Value) {
        if self.json { print_json(value) } else { print(verdict) }
    }

    /// A bar on the terminal, if there is one to see it.
    pub fn bar(&self, label: &'static str, unit: &'static str) -> Bar {
        let visible = !self.quiet && std::io::stderr().is_terminal();
        Bar { label, unit, visible, since: Instant::now(), drawn: false }
    }
}

/// Writes lines to standard output. Whoever closed it does not want the rest. A line break is ours: what others may
/// have put into a name is escaped by whoever quotes it, or here.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    for line in text.trim_end_matches('\n').split('\n') {
        let _ = writeln!(out, "{}", visible(line));
    }
}

pub(super) fn print_json(value: &Value) {
    let _ = writeln!(std::io::stdout().lock(), "{}", visible_json(&value.to_string()));
}

/// See [`Show::bar`].
#[derive(Debug)]
pub struct Bar {
    label: &'static str,
    unit: &'static str,
    visible: bool,
    since: Instant,
    drawn: bool,
}

impl Bar {
    pub fn set(&mut self, done: usize, all: usize) {
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
pub fn mb(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{:.2} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}
