//! Tables and plots of one benchmark.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs, io};

use serde::{Deserialize, Serialize};

use crate::Machine;

/// Everything that one benchmark has to say.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// File name without its ending; the order of reports on the page is that of `scripts/bench.sh`.
    pub name: String,
    /// One line for the heading.
    pub title: String,
    /// What to type to get these figures again.
    pub command: String,
    /// Set by [`Report::new`].
    pub machine: Machine,
    /// `NAME VERSION` of what was compared with, pinned packages among them.
    #[serde(default)]
    pub versions: Vec<String>,
    /// Paragraphs of Markdown before the tables: what was measured and how.
    #[serde(default)]
    pub notes: Vec<String>,
    /// In the order of the page.
    #[serde(default)]
    pub tables: Vec<Table>,
    /// In the order of the page.
    #[serde(default)]
    pub plots: Vec<Plot>,
}

/// A table of text: benchmarks round their figures themselves.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Table {
    pub title: String,
    /// Names with their units.
    pub columns: Vec<String>,
    /// Each as long as `columns`.
    pub rows: Vec<Vec<String>>,
    /// Under the table: what a reader would get wrong without it.
    #[serde(default)]
    pub note: String,
}

/// A plot, drawn as SVG by the page.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plot {
    /// File name without its ending.
    pub name: String,
    pub title: String,
    /// With unit.
    pub x: String,
    /// With unit.
    pub y: String,
    #[serde(default)]
    pub log_x: bool,
    #[serde(default)]
    pub log_y: bool,
    #[serde(default)]
    pub kind: PlotKind,
    pub series: Vec<Series>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlotKind {
    /// Points joined by lines, over a numeric x.
    #[default]
    Lines,
    /// Groups of bars: x of a point is the index of its group, named by `labels` of the first series.
    Bars,
}

/// One line, or one colour of bars.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    /// Names of the groups of a bar plot.
    #[serde(default)]
    pub labels: Vec<String>,
}

impl Report {
    /// An empty report of the benchmark `name` on this machine.
    pub fn new(name: &str, title: &str, command: &str) -> Self {
        Self {
            name: name.into(),
            title: title.into(),
            command: command.into(),
            machine: Machine::here(),
            versions: Vec::new(),
            notes: Vec::new(),
            tables: Vec::new(),
            plots: Vec::new(),
        }
    }

    /// The whole report but its plots.
    pub fn markdown(&self) -> String {
        let mut text = format!("## {}\n\n`{}`\n", self.title, self.command);
        for note in &self.notes {
            let _ = write!(text, "\n{note}\n");
        }
        for table in &self.tables {
            let _ = write!(text, "\n{}", table.markdown());
        }
        text
    }

    /// Prints the report, and leaves it in the directory that `KVLANE_BENCH_OUT` names, if it names one.
    ///
    /// # Errors
    /// What writing `NAME.json` failed with.
    pub fn publish(&self) -> io::Result<()> {
        println!("{}", self.markdown());
        let Some(directory) = env::var_os("KVLANE_BENCH_OUT") else { return Ok(()) };
        let text = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
        fs::write(Path::new(&directory).join(format!("{}.json", self.name)), text + "\n")
    }
}

impl Table {
    /// An empty table.
    pub fn new(title: &str, columns: &[&str]) -> Self {
        let columns = columns.iter().copied().map(String::from).collect();
        Self { title: title.into(), columns, ..Self::default() }
    }

    /// Adds a row.
    ///
    /// # Panics
    /// With another number of cells than there are columns.
    pub fn row(&mut self, cells: &[&dyn std::fmt::Display]) {
        assert_eq!(cells.len(), self.columns.len(), "cells of a row of {:?}", self.title);
        self.rows.push(cells.iter().map(ToString::to_string).collect());
    }

    /// With its title above and its note below.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule = format!("|{}\n", "---|".repeat(self.columns.len()));
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        let title = if self.title.is_empty() { String::new() } else { format!("**{}**\n\n", self.title) };
        let note = if self.note.is_empty() { String::new() } else { format!("\n{}\n", self.note) };
        format!("{title}{}{rule}{rows}{note}", line(&self.columns))
    }
}

#[cfg(test)]
mod tests {
    use super::{Report, Table};

    #[test]
    fn a_table_is_markdown() {
        let mut table = Table::new("Speeds", &["recipe", "MB/s"]);
        table.row(&[&"q5", &1187]);
        assert_eq!(table.markdown(), "**Speeds**\n\n| recipe | MB/s |\n|---|---|\n| q5 | 1187 |\n");
    }

    #[test]
    fn a_report_reads_back_and_python_may_leave_lists_out() {
        let mut report = Report::new("kernels", "Kernels", "cargo bench");
        report.tables.push(Table::new("t", &["a"]));
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap().tables.len(), 1);
        let bare = r#"{"name":"p","title":"P","command":"python3 p.py",
            "machine":{"cpu":"c","cpus":2,"arch":"x86_64","memory_gib":24.0,"kernel":"6"}}"#;
        assert!(serde_json::from_str::<Report>(bare).unwrap().tables.is_empty());
    }
}
