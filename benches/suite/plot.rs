//! Plots as SVG, readable on light and on dark pages.

use std::fmt::Write as _;

use crate::report::{Goal, Report, show};

const WIDTH: f64 = 820.0;
const COLORS: [&str; 4] = ["#2f81f7", "#8c959f", "#d29922", "#2da44e"];
const STYLE: &str = "<style>text{font:12px system-ui,sans-serif;fill:#24292f}\
    .title{font-weight:600;font-size:14px}.head{font-weight:600}.axis{stroke:#8c959f}\
    .grid{stroke:#8c959f;stroke-opacity:.3}.goal{stroke:#cf222e;stroke-width:2}\
    @media(prefers-color-scheme:dark){text{fill:#e6edf3}.goal{stroke:#f85149}}</style>";

/// The values of a plot that share a color.
pub(crate) struct Series {
    pub(crate) name: &'static str,
    /// Numbers on the horizontal axis, and values.
    pub(crate) points: Vec<(f64, f64)>,
}

fn svg(title: &str, height: f64, content: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n<title>{title}</title>{STYLE}\n\
         <text class=\"title\" x=\"10\" y=\"20\">{title}</text>\n{content}</svg>\n"
    )
}

fn text(class: &str, (x, y): (f64, f64), anchor: &str, text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    format!(
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>\n"
    )
}

fn dot((x, y): (f64, f64), color: &str) -> String {
    format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{color}\"/>")
}

fn line(class: &str, from: (f64, f64), to: (f64, f64)) -> String {
    let ((x1, y1), (x2, y2)) = (from, to);
    format!(
        "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>\n"
    )
}

fn legend(names: &[&str], y: f64) -> String {
    let mut content = String::new();
    let mut x = WIDTH - 10.0;
    for (name, color) in names.iter().zip(COLORS).rev() {
        content += &text("", (x, y), "end", name);
        x -= 6.6 * f64::from(u32::try_from(name.chars().count()).unwrap_or(0)) + 18.0;
        let top = y - 9.0;
        let _ = writeln!(
            content,
            "<rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"10\" height=\"10\" fill=\"{color}\"/>"
        );
        x -= 14.0;
    }
    content
}

/// Every ratio with its range over the runs, and its goal.
pub(crate) fn ratios(report: &Report) -> String {
    const LEFT: f64 = 400.0;
    const ROW: f64 = 20.0;
    const TOP: f64 = 50.0;
    let bounds = |ratio: f64| ratio.clamp(0.05, 100.0);
    let all = || report.rows().filter_map(|row| row.ratio);
    let low = all().map(|ratio| bounds(ratio.min)).fold(0.5, f64::min).log2().floor();
    let high = all().map(|ratio| bounds(ratio.max)).fold(2.0, f64::max).log2().ceil();
    let x = |ratio: f64| LEFT + (bounds(ratio).log2() - low) / (high - low) * (WIDTH - LEFT - 60.0);
    let mut y = TOP + ROW / 2.0;
    let mut content = String::new();
    for section in &report.sections {
        if section.rows.iter().all(|row| row.ratio.is_none()) {
            continue;
        }
        content += &text("head", (10.0, y + 4.0), "start", &section.title);
        y += ROW;
        for row in &section.rows {
            let Some(ratio) = row.ratio else { continue };
            let name = row.reference.as_ref().map_or("", |reference| &reference.name);
            let label = format!("{} / {name}", row.what);
            content += &text("", (LEFT - 10.0, y + 4.0), "end", &label);
            content += &line("axis", (x(ratio.min), y), (x(ratio.max), y));
            content += &dot((x(ratio.median), y), COLORS[0]);
            let value = format!("{:.2}", ratio.median);
            content += &text("", (WIDTH - 10.0, y + 4.0), "end", &value);
            if let Some(Goal::Ratio(limit)) = row.goal {
                content += &line("goal", (x(limit), y - 7.0), (x(limit), y + 7.0));
            }
            y += ROW;
        }
    }
    let mut grid = String::new();
    let mut power = low;
    while power <= high {
        let at = x(power.exp2());
        let class = if power == 0.0 { "axis" } else { "grid" };
        grid += &line(class, (at, TOP), (at, y - ROW / 2.0));
        grid += &text("", (at, TOP - 8.0), "middle", &format!("{}", power.exp2()));
        power += 1.0;
    }
    let title = "Gateway / reference: less is better. Red: goal";
    svg(title, y, &format!("{grid}{content}"))
}

/// Groups of bars: a label, and a value for each series.
pub(crate) fn bars(title: &str, names: &[&str], groups: &[(String, Vec<f64>)]) -> String {
    const LEFT: f64 = 130.0;
    const BAR: f64 = 18.0;
    let most = groups.iter().flat_map(|(_, values)| values).fold(0.0, |a: f64, b| a.max(*b));
    let mut y = 50.0;
    let mut content = legend(names, 20.0);
    for (label, values) in groups {
        let middle = y + BAR * f64::from(u32::try_from(values.len()).unwrap_or(0)) / 2.0;
        content += &text("", (LEFT - 10.0, middle + 4.0), "end", label);
        for (value, color) in values.iter().zip(COLORS) {
            let width = value / most * (WIDTH - LEFT - 80.0);
            let _ = writeln!(
                content,
                "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{:.1}\" \
                 fill=\"{color}\"/>",
                BAR - 3.0
            );
            content += &text("", (LEFT + width + 6.0, y + 12.0), "start", &show(*value));
            y += BAR;
        }
        y += 12.0;
    }
    svg(title, y, &content)
}

/// Lines over a logarithmic axis of numbers, with a logarithmic axis of values.
pub(crate) fn lines(title: &str, axis: &str, series: &[Series]) -> String {
    const LEFT: f64 = 80.0;
    const TOP: f64 = 50.0;
    const HEIGHT: f64 = 260.0;
    let points = || series.iter().flat_map(|series| &series.points);
    let range = |of: fn(&(f64, f64)) -> f64| {
        let low = points().map(of).fold(f64::INFINITY, f64::min).log10().floor();
        let high = points().map(of).fold(0.0, f64::max).log10().ceil();
        (low, high.max(low + 1.0))
    };
    let ((x_low, x_high), (y_low, y_high)) = (range(|point| point.0), range(|point| point.1));
    let x = |n: f64| LEFT + (n.log10() - x_low) / (x_high - x_low) * (WIDTH - LEFT - 40.0);
    let y = |n: f64| TOP + HEIGHT - (n.log10() - y_low) / (y_high - y_low) * HEIGHT;
    let names: Vec<_> = series.iter().map(|series| series.name).collect();
    let mut content = legend(&names, 38.0);
    let mut power = x_low;
    while power <= x_high {
        let at = x(10_f64.powf(power));
        content += &line("grid", (at, TOP), (at, TOP + HEIGHT));
        content +=
            &text("", (at, TOP + HEIGHT + 16.0), "middle", &format!("{:.0}", 10_f64.powf(power)));
        power += 1.0;
    }
    power = y_low;
    while power <= y_high {
        let at = y(10_f64.powf(power));
        content += &line("grid", (LEFT, at), (WIDTH - 40.0, at));
        content += &text("", (LEFT - 8.0, at + 4.0), "end", &show(10_f64.powf(power)));
        power += 1.0;
    }
    for (series, color) in series.iter().zip(COLORS) {
        let path = series.points.iter().map(|(n, value)| format!("{:.1},{:.1}", x(*n), y(*value)));
        let path = path.collect::<Vec<_>>().join(" ");
        let _ = writeln!(
            content,
            "<polyline points=\"{path}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>"
        );
        for (n, value) in &series.points {
            content += &dot((x(*n), y(*value)), color);
        }
    }
    content += &text("", (WIDTH / 2.0, TOP + HEIGHT + 34.0), "middle", axis);
    svg(title, TOP + HEIGHT + 44.0, &content)
}
