//! Figures, their medians over rounds, and the table and JSON that show them.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

/// One measured value.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    /// What it is, as the head of its column.
    pub(crate) name: &'static str,
    /// What its value counts.
    pub(crate) unit: Unit,
    /// How many of the unit.
    pub(crate) value: f64,
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Unit {
    /// 1,024 bytes.
    #[serde(rename = "KB")]
    Kilobytes,
    /// Microseconds.
    #[serde(rename = "us")]
    Microseconds,
    /// Milliseconds.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Events in each second.
    #[serde(rename = "1/s")]
    PerSecond,
    /// Hundredths.
    #[serde(rename = "%")]
    Percent,
    /// Things.
    #[serde(rename = "count")]
    Count,
}

impl Figure {
    /// Memory, given in bytes.
    pub(crate) fn kilobytes(name: &'static str, bytes: f64) -> Self {
        Self {
            name,
            unit: Unit::Kilobytes,
            value: bytes / 1_024.0,
        }
    }

    /// CPU time.
    pub(crate) fn microseconds(name: &'static str, value: f64) -> Self {
        Self {
            name,
            unit: Unit::Microseconds,
            value,
        }
    }

    /// Latency.
    pub(crate) fn milliseconds(name: &'static str, value: f64) -> Self {
        Self {
            name,
            unit: Unit::Milliseconds,
            value,
        }
    }

    /// Throughput.
    pub(crate) fn per_second(name: &'static str, value: f64) -> Self {
        Self {
            name,
            unit: Unit::PerSecond,
            value,
        }
    }

    /// A share.
    pub(crate) fn percent(name: &'static str, value: f64) -> Self {
        Self {
            name,
            unit: Unit::Percent,
            value,
        }
    }

    /// A number of things.
    pub(crate) fn count(name: &'static str, value: f64) -> Self {
        Self {
            name,
            unit: Unit::Count,
            value,
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.value;
        match self.unit {
            Unit::Kilobytes => write!(f, "{value:.2} KB"),
            Unit::Microseconds => write!(f, "{value:.2} µs"),
            Unit::Milliseconds => write!(f, "{value:.1} ms"),
            Unit::PerSecond => write!(f, "{value:.0}/s"),
            Unit::Percent => write!(f, "{value:.2} %"),
            Unit::Count => write!(f, "{value:.0}"),
        }
    }
}

/// What came of one scenario.
#[derive(Debug, Serialize)]
pub(crate) struct ScenarioReport {
    /// Its name.
    pub(crate) scenario: String,
    /// What the contenders had to do.
    pub(crate) work: String,
    /// Whose figures the ratios are to.
    pub(crate) peer: &'static str,
    /// One for each contender, also for one that is missing.
    pub(crate) contenders: Vec<ContenderReport>,
}

/// What came of one contender in a scenario.
#[derive(Debug, Serialize)]
pub(crate) struct ContenderReport {
    /// Its name.
    pub(crate) name: &'static str,
    /// What it says its version is.
    pub(crate) version: Option<String>,
    /// Why it could not take part.
    pub(crate) missing: Option<String>,
    /// What ended its measurement, before all rounds were through.
    pub(crate) failed: Option<String>,
    /// How it was set.
    pub(crate) settings: &'static str,
    /// The figures of each round, in the order of the rounds.
    pub(crate) rounds: Vec<Vec<Figure>>,
    /// The median of each figure.
    pub(crate) medians: Vec<Figure>,
}

impl ContenderReport {
    /// Puts the medians of the rounds in place.
    pub(crate) fn conclude(&mut self) {
        let Some(first) = self.rounds.first() else {
            return;
        };
        self.medians = (0..first.len())
            .map(|column| {
                let values = self.rounds.iter().map(|round| round[column].value);
                Figure {
                    value: median(values.collect()),
                    ..first[column].clone()
                }
            })
            .collect();
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) {
        f64::midpoint(values[middle - 1], values[middle])
    } else {
        values[middle]
    }
}

impl ScenarioReport {
    /// Writes the table that people read.
    pub(crate) fn write_table(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "\n{}: {}", self.scenario, self.work)?;
        let rows = self.rows();
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
        for contender in &self.contenders {
            if let Some(missing) = &contender.missing {
                writeln!(out, "  {} is missing: {missing}", contender.name)?;
            }
            if let Some(failed) = &contender.failed {
                writeln!(out, "  {} failed: {failed}", contender.name)?;
            }
        }
        Ok(())
    }

    /// The head and a row for each contender that has figures.
    fn rows(&self) -> Vec<Vec<String>> {
        let measured = || {
            self.contenders
                .iter()
                .filter(|contender| !contender.medians.is_empty())
        };
        let peer = measured()
            .find(|contender| contender.name == self.peer)
            .filter(|_| 1 < measured().count());
        let Some(first) = measured().next() else {
            return Vec::new();
        };
        let head = match peer {
            Some(peer) => format!("(ratio to {})", peer.name),
            None => String::new(),
        };
        let names = first.medians.iter().map(|figure| figure.name.to_owned());
        let mut rows = vec![std::iter::once(head).chain(names).collect::<Vec<_>>()];
        for contender in measured() {
            let cells = contender
                .medians
                .iter()
                .enumerate()
                .map(|(column, figure)| {
                    let ratio = peer.and_then(|peer| ratio(figure, &peer.medians[column]));
                    ratio.map_or(format!("{figure}"), |ratio| {
                        format!("{figure} ({ratio:.2})")
                    })
                });
            rows.push(
                std::iter::once(contender.name.to_owned())
                    .chain(cells)
                    .collect(),
            );
        }
        rows
    }
}

/// Writes how each contender that took part was set, once for all scenarios.
pub(crate) fn write_settings(reports: &[ScenarioReport], out: &mut impl Write) -> io::Result<()> {
    let mut named = BTreeSet::new();
    for contender in reports.iter().flat_map(|report| &report.contenders) {
        if let Some(version) = &contender.version
            && named.insert(contender.name)
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
    let compares = !matches!(figure.unit, Unit::Percent | Unit::Count);
    (compares && 0.0 < peer.value).then(|| figure.value / peer.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contender(name: &'static str, values: &[f64]) -> ContenderReport {
        let rounds = values
            .iter()
            .map(|value| vec![Figure::microseconds("CPU", *value)])
            .collect();
        let mut report = ContenderReport {
            name,
            version: Some("1.0".to_owned()),
            missing: None,
            failed: None,
            settings: "as it comes",
            rounds,
            medians: Vec::new(),
        };
        report.conclude();
        report
    }

    fn table(contenders: Vec<ContenderReport>) -> String {
        let report = ScenarioReport {
            scenario: "echo".to_owned(),
            work: "64 clients".to_owned(),
            peer: "theirs",
            contenders,
        };
        let mut out = Vec::new();
        report.write_table(&mut out).unwrap();
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
}
