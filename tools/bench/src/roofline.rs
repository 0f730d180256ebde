//! The roofline: what each stage does alone, what the machine's memory and processors allow, and what of that the whole
//! path reaches. A benchmark that has measured these in one run says so in its report; the page ends with it.

use serde::{Deserialize, Serialize};

use crate::{Plot, PlotKind, Report, Series, Table};

/// One setting of the whole path (a recipe, a store). All speeds are MB/s of restored elements, so that they compare.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Roofline {
    /// What ran: the recipe, and whatever else tells it from the others.
    pub name: String,
    /// Each stage and its speed alone, in the order of the path; a stage that this setting skips is left out.
    pub stages: Vec<(String, f64)>,
    /// One core copying as many bytes as are restored.
    pub memcpy: f64,
    /// What all processors could do if they did nothing but the stages' work: processors over the sum of CPU seconds a
    /// MB. Binds where the stages share processors, as they do without a card.
    #[serde(default)]
    pub processors: Option<f64>,
    /// The whole path.
    pub whole: f64,
}

impl Roofline {
    /// The slowest stage.
    pub fn slowest(&self) -> Option<&(String, f64)> {
        self.stages.iter().min_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// What cannot be passed: the slowest stage or the processors, whichever is less.
    pub fn bound(&self) -> Option<f64> {
        let slowest = self.slowest()?.1;
        Some(self.processors.map_or(slowest, |processors| processors.min(slowest)))
    }
}

/// A table and a plot of all rooflines in these reports; `None` without any.
pub(crate) fn summary(reports: &[&Report]) -> Option<(Table, Plot)> {
    let rooflines: Vec<&Roofline> = reports.iter().flat_map(|report| &report.rooflines).collect();
    if rooflines.is_empty() {
        return None;
    }
    let mut stages: Vec<&str> = Vec::new();
    for (name, _) in rooflines.iter().flat_map(|roofline| &roofline.stages) {
        if !stages.contains(&name.as_str()) {
            stages.push(name);
        }
    }
    Some((table(&rooflines, &stages), plot(&rooflines, &stages)))
}

fn table(rooflines: &[&Roofline], stages: &[&str]) -> Table {
    let mut table = Table::default();
    let ends = ["memcpy, one core", "processors", "whole path", "slowest stage", "share of it", "share of the bound"];
    table.columns.push("MB/s of restored bytes".into());
    table.columns.extend(stages.iter().map(|stage| format!("{stage} alone")).chain(ends.map(String::from)));
    for roofline in rooflines {
        let speed = |value: Option<f64>| value.map_or(String::from("-"), |value| format!("{value:.0}"));
        let share =
            |of: Option<f64>| of.map_or(String::from("-"), |of| format!("{:.0} %", 100.0 * roofline.whole / of));
        let mut row = vec![roofline.name.clone()];
        row.extend(stages.iter().map(|stage| speed(roofline.alone(stage))));
        row.extend([speed(Some(roofline.memcpy)), speed(roofline.processors), speed(Some(roofline.whole))]);
        row.push(roofline.slowest().map_or(String::from("-"), |(name, _)| name.clone()));
        row.extend([share(roofline.slowest().map(|slowest| slowest.1)), share(roofline.bound())]);
        table.rows.push(row);
    }
    table.note = "Processors: what they could do if they did the stages' work and nothing else; stages share them here, on a card \
                  engines have none to share. The bound is the less of that and of the slowest stage. -: the path skips the stage, \
                  or nobody measured it."
        .into();
    table
}

/// Settings side by side, each with its stages and what they come to: there are more settings than colours.
fn plot(rooflines: &[&Roofline], stages: &[&str]) -> Plot {
    let labels: Vec<String> = rooflines.iter().map(|roofline| roofline.name.clone()).collect();
    let series = |name: &str, speed: &dyn Fn(&Roofline) -> Option<f64>| {
        let speeds = rooflines.iter().enumerate();
        let points = speeds.filter_map(|(place, roofline)| Some((place as f64, speed(roofline)?))).collect();
        Series { name: name.into(), points, labels: labels.clone() }
    };
    let mut all: Vec<Series> = stages.iter().map(|stage| series(stage, &|roofline| roofline.alone(stage))).collect();
    all.push(series("memcpy", &|roofline| Some(roofline.memcpy)));
    all.push(series("processors", &|roofline| roofline.processors));
    all.push(series("whole path", &|roofline| Some(roofline.whole)));
    Plot {
        name: "roofline".into(),
        title: "Each stage alone, and the whole path".into(),
        x: String::new(),
        y: "MB/s of restored bytes".into(),
        log_x: false,
        log_y: true,
        kind: PlotKind::Bars,
        series: all,
    }
}

impl Roofline {
    fn alone(&self, stage: &str) -> Option<f64> {
        self.stages.iter().find(|(name, _)| name == stage).map(|(_, speed)| *speed)
    }
}

#[cfg(test)]
mod tests {
    use super::{Roofline, summary};
    use crate::Report;

    #[test]
    fn the_lesser_of_slowest_stage_and_processors_binds() {
        let mut report = Report::new("path", "The whole path", "cargo bench");
        let stages = |list: &[(&str, f64)]| list.iter().map(|(name, speed)| ((*name).into(), *speed)).collect();
        let (inflated, raw) = ([("fetch", 9000.0), ("inflate", 5000.0)], [("fetch", 4000.0), ("write", 8000.0)]);
        let (stages, raw) = (stages(&inflated), stages(&raw));
        let (memcpy, whole) = (10_000.0, 2000.0);
        report.rooflines.push(Roofline { name: "q5".into(), stages, memcpy, processors: Some(2500.0), whole });
        report.rooflines.push(Roofline { name: "raw".into(), stages: raw, memcpy, processors: None, whole });
        let (table, plot) = summary(&[&report]).unwrap();
        assert_eq!(table.rows[0], ["q5", "9000", "5000", "-", "10000", "2500", "2000", "inflate", "40 %", "80 %"]);
        assert_eq!(table.rows[1], ["raw", "4000", "-", "8000", "10000", "-", "2000", "fetch", "50 %", "50 %"]);
        let of = |name: &str| &plot.series.iter().find(|series| series.name == name).unwrap().points;
        assert_eq!((of("fetch"), of("write")), (&vec![(0.0, 9000.0), (1.0, 4000.0)], &vec![(1.0, 8000.0)]));
        assert_eq!((of("processors"), of("whole path").len()), (&vec![(0.0, 2500.0)], 2));
        assert!(summary(&[&Report::new("fetch", "Fetch", "cargo bench")]).is_none());
    }
}
