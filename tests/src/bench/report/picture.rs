//! The comparison as SVG: for each figure that is shown, a bar for each contender.
//!
//! Text and rectangles alone, in colours that do on a light page and on a dark one.

use std::fmt::Write as _;

use crate::bench::report::markdown::short;
use crate::bench::report::{ContenderReport, Name, ScenarioReport};

/// Charts side by side.
const COLUMNS: usize = 2;
const CHART_WIDTH: usize = 440;
const GAP: usize = 40;
/// From the top of a chart to its first bar.
const HEAD: usize = 30;
const ROW: usize = 20;
const BAR: usize = 12;
/// Where bars begin, behind the names.
const BAR_LEFT: usize = 130;
/// The longest bar, before its value.
const BAR_MAX: usize = 180;
/// Longer than so many times the median, and a bar is cut: one bad value would hide all others.
const CUT: f64 = 4.0;
/// What our own programs are called by.
const OURS: &str = "causeway";

/// One chart: what it is of, and its bars.
struct Chart<'a> {
    title: String,
    shown: &'a str,
    contenders: Vec<&'a ContenderReport>,
}

impl Chart<'_> {
    fn height(&self) -> usize {
        HEAD + ROW * self.contenders.len() + GAP / 2
    }
}

/// Draws all figures of `scenarios` that are to be shown.
pub(super) fn draw(scenarios: &[ScenarioReport]) -> String {
    let charts: Vec<Chart<'_>> = scenarios
        .iter()
        .flat_map(|scenario| scenario.shown().map(move |shown| chart(scenario, shown)))
        .filter(|chart| !chart.contenders.is_empty())
        .collect();
    let rows = charts.chunks(COLUMNS);
    let heights: Vec<usize> = rows
        .clone()
        .map(|row| row.iter().map(Chart::height).max().unwrap_or(0))
        .collect();
    let width = COLUMNS * CHART_WIDTH + GAP;
    let height = heights.iter().sum::<usize>() + GAP;
    let label = "Causeway beside its rivals; shorter bars are better";
    let mut out = begin(width, height, label);
    let mut top = GAP / 2;
    for (row, height) in rows.zip(heights) {
        for (column, chart) in row.iter().enumerate() {
            draw_chart(chart, GAP / 2 + column * CHART_WIDTH, top, &mut out);
        }
        top += height;
    }
    out += "</svg>\n";
    out
}

/// The beginning of a picture, with the colours of its texts and bars.
pub(crate) fn begin(width: usize, height: usize, label: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         role=\"img\" aria-label=\"{label}\">\n\
         <style>\n\
         text {{ font: 12px system-ui, sans-serif; fill: #57606a; }}\n\
         .title {{ font-weight: 600; font-size: 13px; }}\n\
         .ours {{ fill: #1a7f64; }}\n\
         .theirs {{ fill: #9aa4ae; }}\n\
         text.mine {{ fill: #1a7f64; font-weight: 600; }}\n\
         @media (prefers-color-scheme: dark) {{ text {{ fill: #b0b8c0; }} .ours, text.mine {{ fill: #3fb98f; }} \
         .theirs {{ fill: #6a737d; }} }}\n\
         </style>\n"
    )
}

/// The chart of one figure, with those that are installed.
fn chart<'a>(scenario: &'a ScenarioReport, shown: &'a Name) -> Chart<'a> {
    let contenders = scenario.contenders.iter();
    Chart {
        title: format!("{}: {shown}", scenario.title),
        shown,
        contenders: contenders
            .filter(|contender| contender.missing.is_none())
            .collect(),
    }
}

fn draw_chart(chart: &Chart<'_>, left: usize, top: usize, out: &mut String) {
    let mut values: Vec<f64> = chart
        .contenders
        .iter()
        .filter_map(|contender| contender.figure(chart.shown))
        .map(|figure| figure.value)
        .collect();
    values.sort_by(f64::total_cmp);
    let median = values.get(values.len() / 2).copied().unwrap_or(0.0);
    let most = values.last().copied().unwrap_or(0.0);
    let longest = most.min(median * CUT).max(f64::MIN_POSITIVE);
    let title = escaped(&chart.title);
    let y = top + 14;
    let mut text = |line: std::fmt::Arguments<'_>| {
        let written = out.write_fmt(line);
        debug_assert!(written.is_ok(), "a string takes everything");
    };
    text(format_args!(
        "<text class=\"title\" x=\"{left}\" y=\"{y}\">{title}</text>\n"
    ));
    for (number, contender) in chart.contenders.iter().enumerate() {
        let y = top + HEAD + ROW * number;
        let is_ours = contender.name.starts_with(OURS);
        let (bar_class, text_class) = match is_ours {
            true => ("ours", "mine"),
            false => ("theirs", "name"),
        };
        let (name_right, baseline) = (left + BAR_LEFT - 8, y + BAR - 2);
        text(format_args!(
            "<text class=\"{text_class}\" x=\"{name_right}\" y=\"{baseline}\" text-anchor=\"end\">{}</text>\n",
            escaped(&contender.name)
        ));
        let bar_left = left + BAR_LEFT;
        let mut value = match contender.figure(chart.shown) {
            Some(figure) => short(figure),
            None => "failed".to_owned(),
        };
        let mut width = 0.0;
        if let Some(figure) = contender.figure(chart.shown) {
            width = (figure.value / longest).clamp(0.0, 1.0) * BAR_MAX as f64;
            if longest < figure.value {
                value.insert_str(0, "» ");
            }
            text(format_args!(
                "<rect class=\"{bar_class}\" x=\"{bar_left}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"2\"/>\n"
            ));
        }
        if let Some(remark) = contender.remark() {
            value += ", ";
            value += &remark;
        }
        let value_left = bar_left as f64 + width + 6.0;
        text(format_args!(
            "<text class=\"{text_class}\" x=\"{value_left:.1}\" y=\"{baseline}\">{}</text>\n",
            escaped(&value)
        ));
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::{contender, scenario};

    #[test]
    fn bars_are_as_long_as_their_values_and_one_that_hides_the_others_is_cut() {
        let picture = draw(&[scenario(vec![
            contender("causeway-node", &[1.0]),
            contender("fair", &[2.0]),
            contender("poor", &[100.0]),
        ])]);
        // The median is 2, so that the longest bar stands for 8.
        for width in ["22.5", "45.0", "180.0"] {
            assert!(picture.contains(&format!("width=\"{width}\"")), "{picture}");
        }
        assert!(picture.contains("» 100 µs"), "{picture}");
        assert_eq!(picture.matches("class=\"ours\"").count(), 1);
    }

    #[test]
    fn names_are_escaped() {
        let picture = draw(&[scenario(vec![contender("a<b&c", &[1.0])])]);
        assert!(picture.contains("a&lt;b&amp;c"), "{picture}");
    }
}
