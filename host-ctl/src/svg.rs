//! A small line plot as SVG, x logarithmic: enough to see which curve is above which.

use std::fmt::Write as _;

const COLOURS: [&str; 6] = ["#1b6ca8", "#d1495b", "#2e933c", "#edae49", "#6a4c93", "#555555"];
const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 40.0;

/// One named line.
#[derive(Clone, Debug)]
pub struct Line {
    pub name: String,
    /// x above 0, y from 0 to 1.
    pub points: Vec<(f64, f64)>,
}

/// The whole picture.
pub fn plot(title: &str, x: &str, lines: &[Line]) -> String {
    let all = || lines.iter().flat_map(|line| &line.points).map(|(x, _)| x.log2());
    let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
    let across = |x: f64| LEFT + (x.log2() - low) / (high - low).max(1e-9) * WIDTH;
    let down = |y: f64| TOP + (1.0 - y) * HEIGHT;
    let mut svg = String::new();
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 720 380\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"720\" height=\"380\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{}</text>",
        escaped(title)
    );
    for tenth in 0..=5 {
        let (share, y) = (f64::from(tenth) / 5.0, down(f64::from(tenth) / 5.0));
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {y}h{WIDTH}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{}\" text-anchor=\"end\">{share:.1}</text>",
            LEFT - 6.0,
            y + 4.0
        );
    }
    for (value, _) in lines.first().map_or(&[][..], |line| &line.points) {
        let (at, foot) = (across(*value), TOP + HEIGHT + 16.0);
        let _ = writeln!(svg, "<text x=\"{at:.1}\" y=\"{foot}\" text-anchor=\"middle\">{value:.3}</text>");
    }
    let _ = writeln!(svg, "<text x=\"{}\" y=\"370\" text-anchor=\"middle\">{}</text>", LEFT + WIDTH / 2.0, escaped(x));
    for (index, Line { name, points }) in lines.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let path: Vec<_> = points.iter().map(|&(x, y)| format!("{:.1},{:.1}", across(x), down(y))).collect();
        let (right, at) = (LEFT + WIDTH + 12.0, TOP + 18.0 * index as f64 + 10.0);
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"{right}\" y=\"{at}\" fill=\"{colour}\">{}</text>",
            path.join(" "),
            escaped(name)
        );
    }
    svg + "</svg>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_drawn_inside_the_picture_and_names_are_escaped() {
        let line = |name: &str| Line { name: name.into(), points: vec![(1.0, 0.0), (4.0, 1.0)] };
        let svg = plot("a < b", "GiB", &[line("ours"), line("l&u")]);
        assert_eq!(svg.matches("points=\"60.0,320.0 580.0,40.0\"").count(), 2);
        assert!(svg.contains("a &lt; b") && svg.contains("l&amp;u") && svg.ends_with("</svg>\n"));
    }
}
