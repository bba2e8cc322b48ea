//! The tables that people read in a terminal.

use std::collections::BTreeSet;
use std::io::{self, Write};

use crate::bench::report::{Figure, ScenarioReport, Unit};

/// Writes the table of a scenario.
pub(crate) fn write_table(report: &ScenarioReport, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "\n{}: {}", report.scenario, report.work)?;
    let rows = rows(report);
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    for row in &rows {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            match column {
                0 => write!(out, "  {cell:<width$}")?,
                _ => write!(out, "  {cell:>width$}")?,
            }
        }
        writeln!(out)?;
    }
    for contender in &report.contenders {
        if let Some(missing) = &contender.missing {
            writeln!(out, "  {} is missing: {missing}", contender.name)?;
        }
        if let Some(failed) = &contender.failed {
            let why = failed.lines().next().unwrap_or_default();
            writeln!(out, "  {} failed: {why}", contender.name)?;
        }
    }
    Ok(())
}

/// The head and a row for each contender that has figures.
fn rows(report: &ScenarioReport) -> Vec<Vec<String>> {
    let measured = || {
        report
            .contenders
            .iter()
            .filter(|contender| !contender.medians.is_empty())
    };
    let peer = measured()
        .find(|contender| contender.name == report.peer)
        .filter(|_| 1 < measured().count());
    let Some(first) = measured().next() else {
        return Vec::new();
    };
    let head = match peer {
        Some(peer) => format!("(ratio to {})", peer.name),
        None => String::new(),
    };
    let names = first
        .medians
        .iter()
        .map(|figure| figure.name.clone().into_owned());
    let mut rows = vec![std::iter::once(head).chain(names).collect::<Vec<_>>()];
    for contender in measured() {
        let cells = contender
            .medians
            .iter()
            .enumerate()
            .map(|(column, figure)| {
                let of_peer = peer.and_then(|peer| peer.medians.get(column));
                let ratio = of_peer.and_then(|of_peer| ratio(figure, of_peer));
                ratio.map_or(format!("{figure}"), |ratio| {
                    format!("{figure} ({ratio:.2})")
                })
            });
        rows.push(
            std::iter::once(contender.name.clone().into_owned())
                .chain(cells)
                .collect(),
        );
    }
    rows
}

/// Writes how each contender that took part was set, once for all scenarios.
pub(crate) fn write_settings(reports: &[ScenarioReport], out: &mut impl Write) -> io::Result<()> {
    let mut named = BTreeSet::new();
    for contender in reports.iter().flat_map(|report| &report.contenders) {
        if let Some(version) = &contender.version
            && named.insert(contender.name.clone())
        {
            writeln!(
                out,
                "{} ({version}): {}",
                contender.name, contender.settings
            )?;
        }
    }
    Ok(())
}

/// How a figure compares, where that says something.
fn ratio(figure: &Figure, peer: &Figure) -> Option<f64> {
    let compares = !matches!(figure.unit, Unit::Times | Unit::Percent | Unit::Count);
    (compares && 0.0 < peer.value).then(|| figure.value / peer.value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::ContenderReport;
    use crate::bench::report::tests::{contender, scenario};

    fn table(contenders: Vec<ContenderReport>) -> String {
        let mut out = Vec::new();
        write_table(&scenario(contenders), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_row_shows_the_median_of_the_rounds_and_its_ratio_to_the_peer() {
        let text = table(vec![
            contender("ours", &[9.0, 1.0, 2.0]),
            contender("theirs", &[3.0, 5.0]),
        ]);
        let row = text
            .lines()
            .find(|line| line.trim_start().starts_with("ours"))
            .unwrap();
        assert!(row.ends_with("2.00 µs (0.50)"), "{row}");
    }

    #[test]
    fn one_that_is_missing_is_named_with_the_reason() {
        let mut missing = contender("theirs", &[]);
        missing.version = None;
        missing.missing = Some("not installed".to_owned());
        let text = table(vec![contender("ours", &[2.0]), missing]);
        assert!(text.contains("theirs is missing: not installed"), "{text}");
        assert!(!text.contains("(1.00)"), "{text}");
    }

    #[test]
    fn one_that_failed_is_named_with_the_first_line_of_why() {
        let mut failed = contender("theirs", &[]);
        failed.failed = Some("it died\nwith a long log".to_owned());
        let text = table(vec![contender("ours", &[2.0]), failed]);
        assert!(text.contains("theirs failed: it died\n"), "{text}");
        assert!(!text.contains("long log"), "{text}");
    }
}
