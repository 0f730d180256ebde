//! The page: reports in order, what failed in its place, plots beside their tables.

use std::fmt::Write as _;
use std::path::Path;
use std::{fs, io};

use crate::{Machine, Plot, Report, roofline, svg};

/// One benchmark that was to run.
#[derive(Debug)]
pub enum Outcome {
    /// It left its report.
    Reported(Box<Report>),
    /// It did not; the end of what it said.
    Failed { name: String, said: String },
}

impl Outcome {
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

/// Writes `summary.md`, `results.json` and an SVG for every plot to `directory`; `built` says what ran. The page ends with
/// the roofline, if a report has one.
///
/// # Errors
/// What writing a file failed with.
pub fn write(outcomes: &[Outcome], built: &str, directory: &Path) -> io::Result<()> {
    let reports: Vec<&Report> = outcomes.iter().filter_map(Outcome::report).collect();
    let roofline = roofline::summary(&reports);
    for report in &reports {
        for plot in &report.plots {
            fs::write(directory.join(file(report, plot)), svg::draw(plot))?;
        }
    }
    if let Some((_, plot)) = &roofline {
        fs::write(directory.join(format!("{}.svg", plot.name)), svg::draw(plot))?;
    }
    let last = roofline.map_or(String::new(), |(table, plot)| {
        format!("## Roofline\n\n{}\n![{}]({}.svg)\n", table.markdown(), plot.title, plot.name)
    });
    let json = serde_json::to_string_pretty(&reports).map_err(io::Error::other)?;
    fs::write(directory.join("results.json"), json + "\n")?;
    fs::write(directory.join("summary.md"), summary(outcomes, built, &last))
}

fn summary(outcomes: &[Outcome], built: &str, last: &str) -> String {
    let mut text = String::from(
        "# Benchmarks\n\nMade by `scripts/bench.sh`. Nothing here ran on a card: engines are the emulator's, in software, on the machine\n\
         named below, unless a table says that its figures are a model's. Ratios are of one run, its variants in turn.\n",
    );
    if !built.is_empty() {
        let _ = write!(text, "\nBuilt from {built}.\n");
    }
    let mut machine: Option<&Machine> = None;
    for outcome in outcomes {
        match outcome {
            Outcome::Reported(report) => {
                if machine.is_none_or(|machine| *machine != report.machine) {
                    machine = Some(&report.machine);
                    let _ = write!(text, "\nMachine: {}.\n", report.machine);
                }
                let _ = write!(text, "\n{}", report.markdown());
                if !report.versions.is_empty() {
                    let _ = write!(text, "\nVersions: {}.\n", report.versions.join(", "));
                }
                for plot in &report.plots {
                    let _ = write!(text, "\n![{}]({})\n", plot.title, file(report, plot));
                }
            }
            Outcome::Failed { name, said } => {
                let _ = write!(text, "\n## {name}: no figures\n\n```\n{said}\n```\n");
            }
        }
    }
    if !last.is_empty() {
        let _ = write!(text, "\n{last}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{Outcome, write};
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
        let outcomes = ["fast", "broken", "absent"].map(|name| Outcome::read(directory.path(), name));
        write(&outcomes, "commit 123", directory.path()).unwrap();
        let page = fs::read_to_string(directory.path().join("summary.md")).unwrap();
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
        let results: Vec<Report> =
            serde_json::from_str(&fs::read_to_string(directory.path().join("results.json")).unwrap()).unwrap();
        assert_eq!(results.len(), 1);
    }

    #[test]
    fn a_report_whose_plots_would_overwrite_files_gives_no_figures() {
        let directory = tempfile::tempdir().unwrap();
        let outcome = |names: &[&str]| {
            let mut report = Report::new("fast", "How fast", "cargo bench");
            let plot = |name: &&str| serde_json::json!({"name": name, "title": "", "x": "", "y": "", "series": []});
            report.plots = names.iter().map(|name| serde_json::from_value(plot(name)).unwrap()).collect();
            fs::write(directory.path().join("fast.json"), serde_json::to_string(&report).unwrap()).unwrap();
            Outcome::read(directory.path(), "fast")
        };
        assert!(matches!(outcome(&["a", "fast-b"]), Outcome::Reported(_)));
        for names in [&["a", "a"][..], &["../a"], &[""]] {
            assert!(matches!(outcome(names), Outcome::Failed { .. }), "{names:?}");
        }
    }
}
