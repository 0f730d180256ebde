//! A metric: its name, what it means, and how its series are written.

use std::fmt::{self, Display, Write as _};
use std::time::Duration;

use super::clerk::MetricsView;
use crate::count::histogram::{BOUNDS_US, HistogramReading};
use crate::count::json::BoundedText;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

impl MetricKind {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric with all its series.
#[derive(Clone, Copy, Debug)]
pub struct MetricFamily {
    pub name: &'static str,
    pub kind: MetricKind,
    pub labels: &'static [&'static str],
    /// Meaning; ends the HELP line and the row of docs/metrics.md.
    pub help: &'static str,
    /// Writes its series.
    pub(super) series: Writer,
}

pub(super) type Writer = fn(&MetricsView<'_, '_>, &mut MetricSeries<'_, '_>) -> fmt::Result;

pub(super) const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    series: Writer,
) -> MetricFamily {
    MetricFamily { name, kind: MetricKind::Counter, labels, help, series }
}

pub(super) const fn gauge(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    series: Writer,
) -> MetricFamily {
    MetricFamily { name, kind: MetricKind::Gauge, labels, help, series }
}

/// A duration in seconds, to the nanosecond, without the noise of floating point.
pub(super) struct Seconds(pub(super) Duration);

impl Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}", self.0.as_secs(), self.0.subsec_nanos())
    }
}

/// Writes the series of one family.
#[derive(Debug)]
pub(super) struct MetricSeries<'a, 'b> {
    pub(super) text: &'a mut BoundedText<'b>,
    pub(super) family: &'static MetricFamily,
}

impl MetricSeries<'_, '_> {
    /// Writes one value; `labels` are the values of the family's labels.
    pub(super) fn put(&mut self, labels: &[&str], value: impl Display) -> fmt::Result {
        self.line("", labels, None::<u64>, value)
    }

    pub(super) fn put_histogram(&mut self, labels: &[&str], reading: &HistogramReading) -> fmt::Result {
        let mut below = 0;
        for (bound, count) in BOUNDS_US.iter().zip(&reading.buckets) {
            below += count;
            self.line("_bucket", labels, Some(*bound as f64 / 1e6), below)?;
        }
        self.line("_bucket", labels, Some("+Inf"), reading.count())?;
        self.line("_sum", labels, None::<u64>, Seconds(Duration::from_micros(reading.sum_us)))?;
        self.line("_count", labels, None::<u64>, reading.count())
    }

    fn line(&mut self, end: &str, labels: &[&str], le: Option<impl Display>, value: impl Display) -> fmt::Result {
        assert_eq!(labels.len(), self.family.labels.len(), "{}", self.family.name);
        write!(self.text, "{}{end}", self.family.name)?;
        let mut before = '{';
        for (name, value) in self.family.labels.iter().zip(labels) {
            write!(self.text, "{before}{name}=\"{}\"", Escaped(value))?;
            before = ',';
        }
        if let Some(le) = le {
            write!(self.text, "{before}le=\"{le}\"")?;
            before = ',';
        }
        let after = if before == ',' { "}" } else { "" };
        writeln!(self.text, "{after} {value}")
    }
}

/// A label's value.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\\' | '"' => write!(f, "\\{c}"),
            '\n' => f.write_str("\\n"),
            c => f.write_char(c),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_histograms_add_up() {
        static FAMILY: MetricFamily = MetricFamily {
            name: "kvlane_build_info",
            kind: MetricKind::Gauge,
            labels: &["node"],
            help: "",
            series: |_, _| Ok(()),
        };
        let mut bytes = [0; 4096];
        let mut text = BoundedText::new(&mut bytes);
        let mut series = MetricSeries { text: &mut text, family: &FAMILY };
        series.put(&["a\"b\\c\nd"], 7).unwrap();
        let histogram = crate::count::histogram::DurationHistogram::default();
        [5, 15, 20_000_000].into_iter().for_each(|us| histogram.record(us));
        series.put_histogram(&["x"], &histogram.read()).unwrap();
        let written = text.written();
        let text = std::str::from_utf8(&bytes[..written]).unwrap();
        for line in [
            "kvlane_build_info{node=\"a\\\"b\\\\c\\nd\"} 7\n",
            "_bucket{node=\"x\",le=\"0.00001\"} 1\n",
            "_bucket{node=\"x\",le=\"10\"} 2\n",
            "_bucket{node=\"x\",le=\"+Inf\"} 3\n",
            "_sum{node=\"x\"} 20.000020000\n",
            "_count{node=\"x\"} 3\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
