//! Tables and plots of one benchmark.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use serde::{Deserialize, Serialize};

use crate::page::wrapped;
use crate::{Machine, Roofline};

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
    /// Of a benchmark that knows stages and the whole; the page ends with them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rooflines: Vec<Roofline>,
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
            rooflines: Vec::new(),
        }
    }

    /// Puts what an earlier run of the same benchmark said before what this one says: for benchmarks that run once for
    /// each setting of the machine. Lines of plots are joined by name.
    pub fn follow(&mut self, earlier: Report) {
        let Report { tables, plots, .. } = earlier;
        self.tables.splice(0..0, tables);
        for before in plots {
            match self.plots.iter_mut().find(|plot| plot.name == before.name) {
                Some(plot) => plot.follow(before.series),
                None => self.plots.push(before),
            }
        }
    }

    /// What its figures come from, for a picture that travels without its page.
    pub(crate) fn source(&self) -> String {
        let Machine { cpus, .. } = self.machine;
        if self.name == "model" { "simulated, not measured".into() } else { format!("emulator, {cpus} cores") }
    }

    /// The whole report but its plots.
    pub fn markdown(&self) -> String {
        let mut text = format!("## {}\n\n`{}`\n", self.title, self.command);
        for note in &self.notes {
            let _ = write!(text, "\n{}\n", wrapped(note));
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
        self.write(Path::new(&directory))
    }

    /// As [`Self::publish`], behind what a report of this name that lies there already says.
    ///
    /// # Errors
    /// As there, or what lies there is no report.
    pub fn publish_behind(mut self) -> io::Result<()> {
        println!("{}", self.markdown());
        let Some(directory) = env::var_os("KVLANE_BENCH_OUT") else { return Ok(()) };
        match fs::read_to_string(self.path(Path::new(&directory))) {
            Ok(text) => self.follow(serde_json::from_str(&text).map_err(io::Error::other)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.write(Path::new(&directory))
    }

    fn path(&self, directory: &Path) -> PathBuf {
        directory.join(format!("{}.json", self.name))
    }

    fn write(&self, directory: &Path) -> io::Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
        fs::write(self.path(directory), text + "\n")
    }
}

impl Plot {
    fn follow(&mut self, earlier: Vec<Series>) {
        for before in earlier.into_iter().rev() {
            match self.series.iter_mut().find(|series| series.name == before.name) {
                Some(series) => drop(series.points.splice(0..0, before.points)),
                None => self.series.insert(0, before),
            }
        }
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
        let title = if self.title.is_empty() {
            String::new()
        } else {
            format!("{}\n\n", wrapped(&format!("**{}**", self.title)))
        };
        let note = if self.note.is_empty() { String::new() } else { format!("\n{}\n", wrapped(&self.note)) };
        format!("{title}{}{rule}{rows}{note}", line(&self.columns))
    }
}

#[cfg(test)]
mod tests {
    use super::{Plot, PlotKind, Report, Series, Table};

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

    #[test]
    fn a_report_follows_the_one_before_it() {
        let run = |title: &str, point| {
            let mut report = Report::new("link", "Links", "scripts/bench-links.sh");
            report.tables.push(Table::new(title, &["a"]));
            let series = vec![Series { name: "q5".into(), points: vec![point], labels: vec![] }];
            let (name, text) = (String::from("links"), String::new);
            let (log_x, log_y, kind) = (true, false, PlotKind::Lines);
            report.plots.push(Plot { name, title: text(), x: text(), y: text(), log_x, log_y, kind, series });
            report
        };
        let mut second = run("5 Gbit/s", (5.0, 2.0));
        second.follow(run("1 Gbit/s", (1.0, 1.0)));
        let titles: Vec<_> = second.tables.iter().map(|table| table.title.as_str()).collect();
        assert_eq!(titles, ["1 Gbit/s", "5 Gbit/s"]);
        assert_eq!((second.plots.len(), second.plots[0].series.len()), (1, 1));
        assert_eq!(second.plots[0].series[0].points, [(1.0, 1.0), (5.0, 2.0)]);
    }
}
