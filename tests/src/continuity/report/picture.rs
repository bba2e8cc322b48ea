//! The pauses as histograms: text and rectangles alone, in colours that do on a light page and on a dark one.

use std::fmt::Write as _;

use crate::{
    bench::picture_begin,
    continuity::{
        pauses::{BOUNDS, Pauses},
        report::{
            Outcome,
            markdown::{milliseconds, transport},
        },
    },
};

const WIDTH: usize = 720;
const MARGIN: usize = 20;
/// From the top of a histogram to its first bar.
const HEAD: usize = 30;
const ROW: usize = 20;
const BAR: usize = 12;
/// Where bars begin, behind their labels.
const BAR_LEFT: usize = 110;
const BAR_MAX: usize = 460;

/// Draws a histogram for each scenario and transport.
#[must_use]
pub fn picture(outcomes: &[Outcome]) -> String {
    let both = [true, false];
    let charts: Vec<_> = outcomes
        .iter()
        .flat_map(|outcome| both.map(|is_websocket| (outcome, is_websocket)))
        .collect();
    let chart_height = HEAD + ROW * (BOUNDS.len() + 1) + MARGIN;
    let height = charts.len() * chart_height + MARGIN;
    let label = "How many clients had which longest pause, for each event";
    let mut out = picture_begin(WIDTH, height, label);
    for (number, (outcome, is_websocket)) in charts.into_iter().enumerate() {
        let top = MARGIN + number * chart_height;
        draw(&mut out, outcome, is_websocket, top);
    }
    out += "</svg>\n";
    out
}

fn draw(out: &mut String, outcome: &Outcome, is_websocket: bool, top: usize) {
    let pauses: Pauses = outcome.pauses(is_websocket);
    let mut text = |line: std::fmt::Arguments<'_>| {
        let written = out.write_fmt(line);
        debug_assert!(written.is_ok(), "a string takes everything");
    };
    let y = top + 14;
    let (p99, most) = (
        milliseconds(pauses.quantile(990)),
        milliseconds(pauses.most()),
    );
    text(format_args!(
        "<text class=\"title\" x=\"{MARGIN}\" y=\"{y}\">{}, {}: {} pauses, p99 {p99}, longest {most}</text>\n",
        outcome.scenario,
        transport(is_websocket),
        pauses.count(),
    ));
    let bars = pauses.histogram();
    let highest = bars.iter().copied().max().unwrap_or(0).max(1);
    let class = if is_websocket { "ours" } else { "theirs" };
    for (number, count) in bars.into_iter().enumerate() {
        let label = match BOUNDS.get(number) {
            Some(bound) => format!("≤ {bound:?}"),
            None => "longer".to_owned(),
        };
        let y = top + HEAD + ROW * number;
        let (right, baseline) = (BAR_LEFT - 8, y + BAR - 2);
        // Few of many still show.
        let width = match count {
            0 => 0,
            count => (count * BAR_MAX).div_ceil(highest),
        };
        let value = BAR_LEFT + width + 6;
        text(format_args!(
            "<text x=\"{right}\" y=\"{baseline}\" text-anchor=\"end\">{label}</text>\n\
             <rect class=\"{class}\" x=\"{BAR_LEFT}\" y=\"{y}\" width=\"{width}\" height=\"{BAR}\" rx=\"2\"/>\n\
             <text x=\"{value}\" y=\"{baseline}\">{count}</text>\n"
        ));
    }
}
