//! Tables for a document: a row for each figure that is shown, a column for each contender, and how each was set.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::bench::report::{ContenderReport, Figure, Name, ScenarioReport, Unit};

/// A table for each group of scenarios, and how the contenders were set.
pub(super) fn text(scenarios: &[ScenarioReport]) -> String {
    let mut groups: Vec<&Name> = Vec::new();
    for scenario in scenarios {
        if !groups.contains(&&scenario.group) && !scenario.shown.is_empty() {
            groups.push(&scenario.group);
        }
    }
    let tables = groups.into_iter().map(|group| {
        let of_group: Vec<_> = scenarios
            .iter()
            .filter(|scenario| scenario.group == *group && !scenario.shown.is_empty())
            .collect();
        table(&of_group)
    });
    let mut out = tables.collect::<Vec<_>>().join("\n");
    out += "\n### Settings of each server\n\n| server | version | settings |\n|---|---|---|\n";
    let mut named = BTreeSet::new();
    for contender in scenarios.iter().flat_map(|scenario| &scenario.contenders) {
        if let Some(version) = &contender.version
            && named.insert(&contender.name)
        {
            let (name, settings) = (&contender.name, &contender.settings);
            let written = writeln!(out, "| {name} | {version} | {settings} |");
            debug_assert!(written.is_ok(), "a string takes everything");
        }
    }
    out
}

fn table(scenarios: &[&ScenarioReport]) -> String {
    let mut names: Vec<&Name> = Vec::new();
    for contender in scenarios.iter().flat_map(|scenario| &scenario.contenders) {
        if !names.contains(&&contender.name) && contender.missing.is_none() {
            names.push(&contender.name);
        }
    }
    let mut out = String::from("| |");
    for name in &names {
        let written = write!(out, " {name} |");
        debug_assert!(written.is_ok(), "a string takes everything");
    }
    out += "\n|---|";
    out += &"---|".repeat(names.len());
    out.push('\n');
    for scenario in scenarios {
        for shown in scenario.shown() {
            let written = write!(out, "| {}: {shown} |", scenario.title);
            debug_assert!(written.is_ok(), "a string takes everything");
            let best = best(scenario, shown);
            for name in &names {
                let contender = scenario
                    .contenders
                    .iter()
                    .find(|contender| contender.name == **name);
                out.push(' ');
                out += &contender.map_or(String::new(), |contender| cell(contender, shown, best));
                out += " |";
            }
            out.push('\n');
        }
    }
    out
}

/// The least value of a figure, of those that lost nothing.
fn best(scenario: &ScenarioReport, shown: &str) -> Option<f64> {
    scenario
        .contenders
        .iter()
        .filter(|contender| contender.remark().is_none())
        .filter_map(|contender| contender.figure(shown))
        .map(|figure| figure.value)
        .min_by(f64::total_cmp)
}

fn cell(contender: &ContenderReport, shown: &str, best: Option<f64>) -> String {
    let Some(figure) = contender.figure(shown) else {
        return match contender.failed {
            Some(_) => "failed".to_owned(),
            None => String::new(),
        };
    };
    let text = short(figure);
    match contender.remark() {
        Some(remark) => format!("{text}, {remark}"),
        None if best == Some(figure.value) => format!("**{text}**"),
        None => text,
    }
}

/// As many digits as say something.
pub(super) fn short(figure: &Figure) -> String {
    let value = figure.value;
    let digits = match value.abs() {
        small if small < 10.0 => 2,
        middle if middle < 100.0 => 1,
        _ => 0,
    };
    let unit = match figure.unit {
        Unit::Kilobytes => " KB",
        Unit::Microseconds => " µs",
        Unit::Milliseconds => " ms",
        Unit::PerSecond => "/s",
        Unit::Times => " times",
        Unit::Percent => " %",
        Unit::Count => "",
    };
    format!("{value:.digits$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::{contender, scenario};

    #[test]
    fn the_least_is_bold_and_one_that_lost_messages_is_never_it() {
        let mut lossy = contender("lossy", &[1.0]);
        lossy.medians.push(Figure::percent("lost", 57.0));
        let mut failed = contender("failed", &[]);
        failed.failed = Some("died".to_owned());
        let report = scenario(vec![contender("ours", &[2.0]), lossy, failed]);
        let text = text(&[report]);
        let row = "| echo: CPU | **2.00 µs** | 1.00 µs, 57.0 % lost | failed |\n";
        assert!(text.contains(row), "{text}");
        assert!(text.contains("\n| lossy | 1.0 | as it comes |\n"), "{text}");
    }
}
