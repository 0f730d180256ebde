//! The pages: a summary, and an appendix with all reports in order, what failed in its place, plots beside their
//! tables.

use std::fmt::Write as _;
use std::path::Path;
use std::{fs, io};

use serde::{Deserialize, Serialize};

use crate::{Machine, Plot, Report, digest, roofline, svg};

/// One benchmark that was to run.
#[derive(Debug)]
pub enum BenchmarkOutcome {
    /// It left its report.
    Reported(Box<Report>),
    /// It did not; the end of what it said.
    Failed { name: String, said: String },
}

impl BenchmarkOutcome {
    /// Of benchmark `name` in `directory`: `NAME.json`, or else what `NAME.log` ends with.
    pub fn read(directory: &Path, name: &str) -> Self {
        let failed = |said: String| Self::Failed { name: name.into(), said };
        match fs::read_to_string(directory.join(format!("{name}.json"))) {
            Ok(text) => match serde_json::from_str(&text) {
                Ok(report) => match misnamed(&report) {
                    None => Self::Reported(Box::new(report)),
                    Some(plot) => failed(format!("{name}.json: plot {plot:?}: no file name, or of two plots")),
                },
                Err(error) => failed(format!("{name}.json is no report: {error}")),
            },
            Err(_) => {
                let log = fs::read_to_string(directory.join(format!("{name}.log"))).unwrap_or_default();
                let lines: Vec<_> = log.lines().rev().filter(|line| !line.trim().is_empty()).take(5).collect();
                let said: Vec<_> = lines.into_iter().rev().collect();
                failed(if said.is_empty() { "no report and no output".into() } else { said.join("\n") })
            }
        }
    }

    fn report(&self) -> Option<&Report> {
        match self {
            Self::Reported(report) => Some(report),
            Self::Failed { .. } => None,
        }
    }
}

/// The first plot whose name cannot be a file's, or is an earlier one's.
fn misnamed(report: &Report) -> Option<&str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let mut names = report.plots.iter().map(|plot| plot.name.as_str()).enumerate();
    let is_taken = |index: usize, name: &str| report.plots[..index].iter().any(|plot| plot.name == name);
    let bad = names.find(|(index, name)| name.is_empty() || !name.chars().all(is_plain) || is_taken(*index, name));
    bad.map(|(_, name)| name)
}

/// Of a plot of this report: begins with the report's name, so that no other report's is the same.
fn file(report: &Report, plot: &Plot) -> String {
    let (report, plot) = (&report.name, &plot.name);
    if plot.starts_with(report.as_str()) { format!("{plot}.svg") } else { format!("{report}-{plot}.svg") }
}

/// What a run left: enough to make its pages again.
#[derive(Debug, Serialize, Deserialize)]
pub struct Results {
    /// What ran, in words.
    pub built: String,
    pub reports: Vec<Report>,
}

/// Which plots are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plots {
    /// Each, and the appendix shows them.
    All,
    /// Those that the summary shows.
    OfSummary,
}

/// Columns of prose.
const COLUMNS: usize = 100;

/// Writes `results.json`, and the pages of it.
///
/// # Errors
/// What writing a file failed with.
pub fn write(outcomes: &[BenchmarkOutcome], built: &str, directory: &Path) -> io::Result<()> {
    let reports = outcomes.iter().filter_map(BenchmarkOutcome::report).cloned().collect();
    let json = serde_json::to_string_pretty(&Results { built: built.into(), reports }).map_err(io::Error::other)?;
    fs::write(directory.join("results.json"), json + "\n")?;
    render(outcomes, built, directory, Plots::All)
}

/// Makes the pages of a run again, by what it left.
///
/// # Errors
/// What reading or writing a file failed with, or that it is not such a file.
pub fn again(results: &Path, directory: &Path) -> io::Result<()> {
    let Results { built, reports } = serde_json::from_str(&fs::read_to_string(results)?).map_err(io::Error::other)?;
    let outcomes: Vec<_> = reports.into_iter().map(|report| BenchmarkOutcome::Reported(Box::new(report))).collect();
    render(&outcomes, &built, directory, Plots::OfSummary)
}

/// Writes `summary.md`, `appendix.md` and plots as SVG. The appendix ends with the roofline, if a report has one.
fn render(outcomes: &[BenchmarkOutcome], built: &str, directory: &Path, plots: Plots) -> io::Result<()> {
    let reports: Vec<&Report> = outcomes.iter().filter_map(BenchmarkOutcome::report).collect();
    let is_drawn = |plot: &Plot| plots == Plots::All || digest::plots().any(|name| name == plot.name);
    for report in &reports {
        for plot in report.plots.iter().filter(|plot| is_drawn(plot)) {
            fs::write(directory.join(file(report, plot)), svg::draw(plot, &report.source()))?;
        }
    }
    let roofline = roofline::summary(&reports);
    if let (Some((_, plot)), Some(report), Plots::All) = (&roofline, reports.first(), plots) {
        fs::write(directory.join(format!("{}.svg", plot.name)), svg::draw(plot, &report.source()))?;
    }
    let last = roofline.map_or(String::new(), |(table, plot)| {
        let picture = format!("\n![{}]({}.svg)\n", plot.title, plot.name);
        format!("## Roofline\n\n{}{}", table.markdown(), if plots == Plots::All { &picture } else { "" })
    });
    fs::write(directory.join("summary.md"), head("Benchmarks", built, &reports) + &digest::markdown(&reports))?;
    let head = head("Appendix: every table", built, &reports);
    fs::write(directory.join("appendix.md"), head + &appendix(outcomes, &last, is_drawn))
}

/// The head of a page: what the figures are of.
fn head(title: &str, built: &str, reports: &[&Report]) -> String {
    let mut text = format!(
        "# {title}\n\n{}\n",
        wrapped(
            "Made by `scripts/bench.sh`. Nothing here ran on a card: engines are the emulator's, in software, on the machine named \
             below, unless a table says that its figures are a model's. Ratios are of one run, its variants in turn."
        )
    );
    if !built.is_empty() {
        let _ = write!(text, "\n{}\n", wrapped(&format!("Built from {built}.")));
    }
    let mut machines: Vec<&Machine> = Vec::new();
    for report in reports {
        if !machines.contains(&&report.machine) {
            machines.push(&report.machine);
            let _ = write!(text, "\nMachine: {}.\n", report.machine);
        }
    }
    text
}

fn appendix(outcomes: &[BenchmarkOutcome], last: &str, is_drawn: impl Fn(&Plot) -> bool) -> String {
    let mut text = String::from("\nThe [summary](summary.md) has what most readers look for.\n");
    for outcome in outcomes {
        match outcome {
            BenchmarkOutcome::Reported(report) => {
                let _ = write!(text, "\n{}", report.markdown());
                if !report.versions.is_empty() {
                    let _ = write!(text, "\n{}\n", wrapped(&format!("Versions: {}.", report.versions.join(", "))));
                }
                for plot in report.plots.iter().filter(|plot| is_drawn(plot)) {
                    let _ = write!(text, "\n![{}]({})\n", plot.title, file(report, plot));
                }
            }
            BenchmarkOutcome::Failed { name, said } => {
                let _ = write!(text, "\n## {name}: no figures\n\n```\n{said}\n```\n");
            }
        }
    }
    if !last.is_empty() {
        let _ = write!(text, "\n{last}");
    }
    text
}

/// Breaks a paragraph into lines of [`COLUMNS`].
pub(crate) fn wrapped(text: &str) -> String {
    let (mut out, mut columns) = (String::new(), 0);
    for word in text.split_whitespace() {
        let width = word.chars().count();
        if columns > 0 {
            let fits = columns + 1 + width <= COLUMNS;
            out.push(if fits { ' ' } else { '\n' });
            columns = if fits { columns + 1 } else { 0 };
        }
        out.push_str(word);
        columns += width;
    }
    out
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{BenchmarkOutcome, again, write};
    use crate::{Plot, Report, Roofline, Series, Table};

    #[test]
    fn the_page_has_every_report_and_says_what_failed() {
        let directory = tempfile::tempdir().unwrap();
        let mut report = Report::new("fast", "How fast", "cargo bench");
        let mut table = Table::new("T", &["a", "b"]);
        table.row(&[&1, &"x"]);
        report.tables.push(table);
        let stages = vec![("inflate".into(), 2.0)];
        report.rooflines.push(Roofline { name: "q5".into(), stages, memcpy: 4.0, processors: None, whole: 1.0 });
        report.plots.push(Plot {
            name: "fast-plot".into(),
            title: "Plot".into(),
            x: "x".into(),
            y: "y".into(),
            log_x: false,
            log_y: true,
            kind: Default::default(),
            series: vec![Series { name: "s".into(), points: vec![(1.0, 2.0)], labels: vec![] }],
        });
        fs::write(directory.path().join("fast.json"), serde_json::to_string(&report).unwrap()).unwrap();
        fs::write(directory.path().join("broken.log"), "starts\n\nno redis-server: install it\n").unwrap();
        let outcomes = ["fast", "broken", "absent"].map(|name| BenchmarkOutcome::read(directory.path(), name));
        write(&outcomes, "commit 123", directory.path()).unwrap();
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        let page = read("appendix.md");
        for part in [
            "## How fast",
            "| 1 | x |",
            "![Plot](fast-plot.svg)",
            "no redis-server",
            "absent: no figures",
            "## Roofline",
            "![Each stage alone, and the whole path](roofline.svg)",
            "Built from commit 123.",
        ] {
            assert!(page.contains(part), "{part} in {page}");
        }
        assert_eq!(page.matches("Machine:").count(), 1);
        assert!(fs::read_to_string(directory.path().join("fast-plot.svg")).unwrap().starts_with("<svg"));
        let (summary, results) = (read("summary.md"), directory.path().join("results.json"));
        fs::remove_file(directory.path().join("fast-plot.svg")).unwrap();
        again(&results, directory.path()).unwrap();
        assert_eq!(read("summary.md"), summary, "the same page again, by what the run left");
        assert!(!directory.path().join("fast-plot.svg").exists(), "only the plots that the summary shows");
    }

    #[test]
    fn a_report_whose_plots_would_overwrite_files_gives_no_figures() {
        let directory = tempfile::tempdir().unwrap();
        let outcome = |names: &[&str]| {
            let mut report = Report::new("fast", "How fast", "cargo bench");
            let plot = |name: &&str| serde_json::json!({"name": name, "title": "", "x": "", "y": "", "series": []});
            report.plots = names.iter().map(|name| serde_json::from_value(plot(name)).unwrap()).collect();
            fs::write(directory.path().join("fast.json"), serde_json::to_string(&report).unwrap()).unwrap();
            BenchmarkOutcome::read(directory.path(), "fast")
        };
        assert!(matches!(outcome(&["a", "fast-b"]), BenchmarkOutcome::Reported(_)));
        for names in [&["a", "a"][..], &["../a"], &[""]] {
            assert!(matches!(outcome(names), BenchmarkOutcome::Failed { .. }), "{names:?}");
        }
    }
}
