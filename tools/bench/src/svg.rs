//! Draws a [`Plot`] as one SVG, in colours that read on white and on black. A bar begins at zero and says its value;
//! where the axis is logarithmic there is no zero, so a point stands in its place.

use std::fmt::Write as _;

use crate::{Plot, PlotKind};

const WIDTH: f64 = 760.0;
/// Of titles and legends.
const MARGIN: f64 = 16.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 20.0;
/// Of the title and the line below it, which says what the figures come from.
const TITLE: f64 = 54.0;
const LEGEND_LINE: f64 = 18.0;
const DRAWING: f64 = 300.0;
const BOTTOM: f64 = 58.0;
/// Of a character, about.
const LETTER: f64 = 7.0;
/// About as many marks on an axis.
const TICKS: f64 = 6.0;
/// Decades of a logarithmic axis from which on only their ends are marked.
const DECADES_MARKED: f64 = 3.0;
/// Height of a bar, and of the space between two groups of them.
const BAR: f64 = 15.0;
const GAP: f64 = 9.0;
/// What a bar's value needs behind its end.
const VALUE: f64 = 48.0;
/// Ways of ours, which a plot of one series shows in a colour of their own.
const OURS: [&str; 2] = ["kvlane", "dpu-app"];
/// What the label of a way says that is no result: an engine that only copies. Its bars are pale.
const PALE: &str = "remembered";
/// Of equal lightness, told apart also without colour vision.
const COLOURS: [&str; 8] = ["#3b82c4", "#d9822b", "#3f9b6b", "#b0568f", "#8a7a2f", "#6b6ecf", "#c2514b", "#5f8f9b"];
const STYLE: &str = "text{font:12px sans-serif;fill:#333}.t{font-size:15px;font-weight:600}.g{stroke:#888;stroke-opacity:.3;stroke-width:1}\
.a{stroke:#888;stroke-width:1}.s{fill:#888}polyline{fill:none;stroke-width:2}@media(prefers-color-scheme:dark){text{fill:#ddd}}";

/// A number line: from values to pixels.
struct Axis {
    low: f64,
    high: f64,
    log: bool,
    from: f64,
    to: f64,
}

impl Axis {
    fn at(&self, value: f64) -> f64 {
        let place = |value: f64| if self.log { value.max(f64::MIN_POSITIVE).log10() } else { value };
        let share = (place(value) - place(self.low)) / (place(self.high) - place(self.low));
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    fn ticks(&self) -> Vec<f64> {
        if self.log {
            let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
            let few = (self.high / self.low).log10() >= DECADES_MARKED;
            let steps: &[f64] = if few { &[1.0] } else { &[1.0, 2.0, 5.0] };
            let all = decades.flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)));
            return all.filter(|tick| (self.low..=self.high).contains(tick)).collect();
        }
        let step = step(self.high - self.low);
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        (first..=last).map(|index| index as f64 * step).collect()
    }
}

/// 1, 2 or 5 times a power of ten that divides `range` into about [`TICKS`] parts.
fn step(range: f64) -> f64 {
    let rough = range / TICKS;
    let decade = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * decade).find(|step| *step >= rough).unwrap_or(rough)
}

/// The axis of these values: from 0 up to a round number, or of whole decades' parts where it is logarithmic.
fn axis(values: impl Iterator<Item = f64>, log: bool, zero: bool, from: f64, to: f64) -> Axis {
    let usable = |value: &f64| value.is_finite() && (!log || *value > 0.0);
    let (low, high) =
        values.filter(usable).fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), value| (l.min(value), h.max(value)));
    let (low, high) = if low > high { (if log { 1.0 } else { 0.0 }, 10.0) } else { (low, high) };
    if log {
        let low = if zero { 10f64.powf(low.log10().floor()) } else { low };
        return Axis { low, high: if high > low { high } else { low * 10.0 }, log, from, to };
    }
    let low = if zero { low.min(0.0) } else { low };
    let high = if high > low { high } else { low + 1.0 };
    let step = step(high - low);
    let high = if zero { (high / step).ceil() * step } else { high };
    Axis { low, high, log, from, to }
}

/// Short, without trailing zeros.
fn label(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 10_000.0 {
        return label(value / 1000.0) + "k";
    }
    let digits = match magnitude {
        _ if value == 0.0 || magnitude >= 100.0 => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The plot as a document of its own. `source`: what the figures come from, below the title.
pub fn draw(plot: &Plot, source: &str) -> String {
    let lines = legend(plot);
    let top = TITLE + lines.len() as f64 * LEGEND_LINE;
    let rows = rows(plot);
    let bottom = top + if plot.kind == PlotKind::Bars { rows.height } else { DRAWING };
    let height = bottom + BOTTOM;
    let left = if plot.kind == PlotKind::Bars { rows.left } else { LEFT };
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\">\n<title>{0}</title>\n<style>{STYLE}</style>\n\
         <text class=\"t\" x=\"{MARGIN}\" y=\"22\">{0}</text>\n<text class=\"s\" x=\"{MARGIN}\" y=\"40\">{1}</text>\n",
        escape(&plot.title),
        escape(source)
    );
    lines.iter().for_each(|line| out.push_str(line));
    let values =
        |side: fn(&(f64, f64)) -> f64| plot.series.iter().flat_map(move |series| series.points.iter().map(side));
    match plot.kind {
        PlotKind::Lines => {
            let x = axis(values(|point| point.0), plot.log_x, false, LEFT, WIDTH - RIGHT - 8.0);
            let y = axis(values(|point| point.1), plot.log_y, true, bottom, top + 8.0);
            draw_lines(plot, &x, &y, &mut out);
            let side = f64::midpoint(top, bottom);
            let _ = writeln!(
                out,
                "<text text-anchor=\"middle\" transform=\"translate(16 {side}) rotate(-90)\">{}</text>",
                escape(&plot.y)
            );
        }
        PlotKind::Bars => {
            let x = axis(values(|point| point.1), plot.log_y, true, left, WIDTH - RIGHT - VALUE);
            draw_bars(plot, &x, &rows, (top, bottom), &mut out);
        }
    }
    let name = if plot.kind == PlotKind::Bars { &plot.y } else { &plot.x };
    let _ = write!(
        out,
        "<line class=\"a\" x1=\"{left}\" x2=\"{}\" y1=\"{bottom}\" y2=\"{bottom}\"/>\n\
         <text text-anchor=\"middle\" x=\"{}\" y=\"{}\">{}</text>\n</svg>\n",
        WIDTH - RIGHT,
        f64::midpoint(left, WIDTH - RIGHT),
        height - 12.0,
        escape(name)
    );
    out
}

/// Names of the series, with as many to a line as fit.
fn legend(plot: &Plot) -> Vec<String> {
    if is_of_one_kind(plot) {
        return Vec::new();
    }
    let (mut lines, mut x) = (Vec::new(), f64::INFINITY);
    for (index, series) in plot.series.iter().enumerate() {
        let width = 26.0 + series.name.chars().count() as f64 * LETTER;
        if x + width > WIDTH - RIGHT {
            lines.push(String::new());
            x = MARGIN;
        }
        let y = TITLE + (lines.len() - 1) as f64 * LEGEND_LINE;
        let line = lines.last_mut().expect("one was pushed");
        let _ = writeln!(
            line,
            "<rect x=\"{x:.0}\" y=\"{y:.0}\" width=\"12\" height=\"12\" rx=\"2\" fill=\"{}\"/><text x=\"{:.0}\" y=\"{:.0}\">{}</text>",
            COLOURS[index % COLOURS.len()],
            x + 17.0,
            y + 11.0,
            escape(&series.name)
        );
        x += width;
    }
    lines
}

/// Tells whether it has bars of one series, which need no legend.
fn is_of_one_kind(plot: &Plot) -> bool {
    plot.kind == PlotKind::Bars && plot.series.len() == 1
}

fn draw_lines(plot: &Plot, x: &Axis, y: &Axis, out: &mut String) {
    for tick in y.ticks() {
        let at = y.at(tick);
        let _ = writeln!(
            out,
            "<line class=\"g\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0,
            label(tick)
        );
    }
    for tick in x.ticks() {
        let _ = writeln!(
            out,
            "<text text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            x.at(tick),
            y.from + 18.0,
            label(tick)
        );
    }
    for (index, series) in plot.series.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let points = series.points.iter().map(|point| (x.at(point.0), y.at(point.1)));
        let points: Vec<_> = points.filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
        let joined: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(out, "<polyline stroke=\"{colour}\" points=\"{}\"/>", joined.join(" "));
        if points.len() <= 40 {
            for (x, y) in points {
                let _ = writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
            }
        }
    }
}

/// How groups of bars lie below each other.
struct Rows<'a> {
    /// Names of the groups.
    labels: &'a [String],
    /// Where bars begin: behind the longest name.
    left: f64,
    /// Of one group, with the space behind it.
    group: f64,
    /// Of all.
    height: f64,
}

fn rows(plot: &Plot) -> Rows<'_> {
    let labels = plot.series.first().map_or(&[][..], |series| &series.labels);
    let furthest = plot.series.iter().flat_map(|series| &series.points).map(|point| point.0 as usize + 1).max();
    let count = labels.len().max(furthest.unwrap_or(0)).max(1);
    let longest = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
    let group = plot.series.len().max(1) as f64 * BAR + GAP;
    Rows { labels, left: MARGIN + longest as f64 * LETTER + 8.0, group, height: count as f64 * group + GAP }
}

fn draw_bars(plot: &Plot, x: &Axis, rows: &Rows<'_>, (top, bottom): (f64, f64), out: &mut String) {
    for tick in x.ticks() {
        let at = x.at(tick);
        let _ = writeln!(
            out,
            "<line class=\"g\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top}\" y2=\"{bottom}\"/>\
             <text text-anchor=\"middle\" x=\"{at:.1}\" y=\"{:.1}\">{}</text>",
            bottom + 16.0,
            label(tick)
        );
    }
    for (index, series) in plot.series.iter().enumerate() {
        for &(place, value) in series.points.iter().filter(|point| point.1.is_finite()) {
            let y = top + GAP + place * rows.group + index as f64 * BAR;
            let name = rows.labels.get(place as usize).map_or("", String::as_str);
            let is_ours = OURS.iter().any(|ours| name.starts_with(ours));
            let opacity = if name.ends_with(PALE) { " fill-opacity=\"0.35\"" } else { "" };
            let colour = if is_of_one_kind(plot) {
                COLOURS[if is_ours { 0 } else { COLOURS.len() - 1 }]
            } else {
                COLOURS[index % COLOURS.len()]
            };
            let (foot, end) = (x.at(if x.log { x.low } else { 0.0 }), x.at(value));
            let _ = if x.log {
                writeln!(out, "<circle cx=\"{end:.1}\" cy=\"{:.1}\" r=\"5\" fill=\"{colour}\"/>", y + BAR / 2.0)
            } else {
                writeln!(
                    out,
                    "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"{opacity}/>",
                    end.min(foot),
                    (end - foot).abs(),
                    BAR - 1.5
                )
            };
            let (behind, down) = (end.max(foot) + if x.log { 9.0 } else { 5.0 }, y + BAR / 2.0 + 3.5);
            let _ = writeln!(out, "<text x=\"{behind:.1}\" y=\"{down:.1}\">{}</text>", label(value));
        }
    }
    for (index, text) in rows.labels.iter().enumerate() {
        let middle = top + GAP + index as f64 * rows.group + (rows.group - GAP) / 2.0;
        let (at, down) = (rows.left - 8.0, middle + 4.0);
        let _ = writeln!(out, "<text text-anchor=\"end\" x=\"{at:.1}\" y=\"{down:.1}\">{}</text>", escape(text));
    }
}

#[cfg(test)]
mod tests {
    use super::{Axis, axis, draw, label, rows};
    use crate::{Plot, PlotKind, Series};

    fn plot(kind: PlotKind) -> Plot {
        let series = |name: &str, points: &[(f64, f64)]| Series {
            name: name.into(),
            points: points.to_vec(),
            labels: vec!["1 Gbit/s".into(), "10 <Gbit/s>".into()],
        };
        Plot {
            name: "p".into(),
            title: "A & B".into(),
            x: "x".into(),
            y: "MB/s".into(),
            log_x: false,
            log_y: false,
            kind,
            series: vec![series("ours", &[(0.0, 3.0), (1.0, 9.0)]), series("theirs", &[(0.0, 1.0), (1.0, 2.0)])],
        }
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let linear = Axis { low: 0.0, high: 9.3, log: false, from: 0.0, to: 1.0 };
        assert_eq!(linear.ticks(), [0.0, 2.0, 4.0, 6.0, 8.0]);
        let log = Axis { low: 0.5, high: 40.0, log: true, from: 0.0, to: 1.0 };
        assert_eq!(log.ticks(), [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]);
        let wide = Axis { low: 0.5, high: 5000.0, log: true, from: 0.0, to: 1.0 };
        assert_eq!(wide.ticks(), [1.0, 10.0, 100.0, 1000.0], "only decades where there are many");
    }

    #[test]
    fn a_higher_value_is_drawn_higher_and_all_values_inside() {
        let y = axis([3.0, 9.0].into_iter(), false, true, 300.0, 0.0);
        assert!(y.at(9.0) < y.at(3.0) && y.at(9.0) >= 0.0 && y.at(0.0) == 300.0);
        let nothing = axis(std::iter::empty(), true, true, 0.0, 1.0);
        assert!(nothing.at(f64::NAN).is_finite() || nothing.low < nothing.high);
    }

    #[test]
    fn every_point_is_drawn_with_its_value_and_text_is_escaped() {
        let bars = draw(&plot(PlotKind::Bars), "emulator, 2 cores");
        for value in [">3<", ">9<", ">1<", ">2<"] {
            assert!(bars.contains(value), "{value}");
        }
        assert_eq!(bars.matches(&format!("height=\"{:.1}\"", super::BAR - 1.5)).count(), 4);
        assert!(bars.contains("A &amp; B") && bars.contains("10 &lt;Gbit/s&gt;") && bars.contains("emulator, 2 cores"));
        let lines = draw(&plot(PlotKind::Lines), "");
        assert_eq!((lines.matches("<polyline").count(), lines.matches("<circle").count()), (2, 4));
    }

    #[test]
    fn bars_begin_at_zero_and_a_logarithmic_axis_has_points_instead() {
        let mut bars = plot(PlotKind::Bars);
        let widths = |svg: &str| -> Vec<f64> {
            let rows = svg.lines().filter(|line| line.starts_with("<rect") && !line.contains("rx="));
            rows.map(|line| line.split("width=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap())
                .collect()
        };
        let drawn = widths(&draw(&bars, ""));
        assert!((drawn[0] / drawn[2] - 3.0).abs() < 0.01, "three times as long as the bar of a third: {drawn:?}");
        bars.log_y = true;
        let svg = draw(&bars, "");
        assert_eq!((widths(&svg).len(), svg.matches("<circle").count()), (0, 4));
    }

    #[test]
    fn bars_begin_behind_the_longest_name_and_a_plot_of_one_series_has_no_legend() {
        let height = |plot: &Plot| {
            draw(plot, "").split("height=\"").nth(1).unwrap().split('"').next().unwrap().parse::<f64>().unwrap()
        };
        let mut bars = plot(PlotKind::Bars);
        let (before, left) = (height(&bars), rows(&bars).left);
        bars.series[0].labels[0] = "a way with a long name ".into();
        assert!(rows(&bars).left > left);
        bars.series[0].labels.push("one more".into());
        assert!(height(&bars) > before);
        bars.series.truncate(1);
        assert!(!draw(&bars, "").contains("ours"));
    }

    #[test]
    fn what_is_no_number_is_left_out() {
        for kind in [PlotKind::Lines, PlotKind::Bars] {
            let mut plot = plot(kind);
            plot.series[0].points.push((2.0, f64::NAN));
            assert!(!draw(&plot, "").contains("NaN"));
        }
    }

    #[test]
    fn labels_are_short() {
        assert_eq!(
            [0.0, 0.25, 2.0, 0.1234, 150.4, 10_836.0, 20_000.0].map(label),
            ["0", "0.25", "2", "0.123", "150", "10.8k", "20k"]
        );
    }
}
