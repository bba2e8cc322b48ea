//! Figures, their medians over rounds, and what shows them: tables, JSON, Markdown and a picture.

mod markdown;
mod picture;
mod table;

use std::borrow::Cow;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

pub(crate) use self::picture::begin as picture_begin;
pub(crate) use self::table::{write_settings, write_table};

/// What comes from the code in a run, and from a file when reports are put together.
pub(crate) type Name = Cow<'static, str>;

/// One measured value.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    /// What it is, as the head of its column.
    pub(crate) name: Name,
    /// What its value counts.
    pub(crate) unit: Unit,
    /// How many of the unit.
    pub(crate) value: f64,
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// How many times as much.
    #[serde(rename = "times")]
    Times,
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
            name: name.into(),
            unit: Unit::Kilobytes,
            value: bytes / 1_024.0,
        }
    }

    /// CPU time.
    pub(crate) fn microseconds(name: &'static str, value: f64) -> Self {
        Self {
            name: name.into(),
            unit: Unit::Microseconds,
            value,
        }
    }

    /// Latency.
    pub(crate) fn milliseconds(name: &'static str, value: f64) -> Self {
        Self {
            name: name.into(),
            unit: Unit::Milliseconds,
            value,
        }
    }

    /// Throughput.
    pub(crate) fn per_second(name: &'static str, value: f64) -> Self {
        Self {
            name: name.into(),
            unit: Unit::PerSecond,
            value,
        }
    }

    /// How many times as much one is as another.
    pub(crate) fn times(name: &'static str, value: f64) -> Self {
        Self {
            name: name.into(),
            unit: Unit::Times,
            value,
        }
    }

    /// A share.
    pub(crate) fn percent(name: &'static str, value: f64) -> Self {
        Self {
            name: name.into(),
            unit: Unit::Percent,
            value,
        }
    }

    /// A number of things.
    pub(crate) fn count(name: &'static str, value: f64) -> Self {
        Self {
            name: name.into(),
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
            Unit::Times => write!(f, "{value:.2} times"),
            Unit::Percent => write!(f, "{value:.2} %"),
            Unit::Count => write!(f, "{value:.0}"),
        }
    }
}

/// What came of one scenario.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ScenarioReport {
    /// Its name.
    pub(crate) scenario: Name,
    /// What it is about.
    pub(crate) title: Name,
    /// With which others it is shown.
    pub(crate) group: Name,
    /// What the contenders had to do.
    pub(crate) work: String,
    /// Whose figures the ratios are to.
    pub(crate) peer: Name,
    /// The figures that the picture shows.
    pub(crate) shown: Vec<Name>,
    /// One for each contender, also for one that is missing.
    pub(crate) contenders: Vec<ContenderReport>,
}

/// What came of one contender in a scenario.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContenderReport {
    /// Its name.
    pub(crate) name: Name,
    /// What it says its version is.
    pub(crate) version: Option<String>,
    /// Why it could not take part.
    pub(crate) missing: Option<String>,
    /// What ended its measurement, before all rounds were through.
    pub(crate) failed: Option<String>,
    /// How it was set.
    pub(crate) settings: Name,
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

/// What a run has measured, and where.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The kernel's release.
    pub(crate) kernel: String,
    /// Processors.
    pub(crate) cpus: usize,
    /// Threads of each server.
    pub(crate) threads: usize,
    /// In the order in which they ran.
    pub(crate) scenarios: Vec<ScenarioReport>,
}

impl Report {
    /// Reads what [`Report::write`] wrote.
    ///
    /// # Errors
    ///
    /// It is no such file.
    pub(crate) fn read(file: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is no report of the bench", file.display()))
    }

    /// Takes in another run: what it measured too replaces what is here.
    pub(crate) fn merge(&mut self, other: Self) {
        for scenario in other.scenarios {
            let mine = self
                .scenarios
                .iter_mut()
                .find(|mine| mine.scenario == scenario.scenario);
            match mine {
                None => self.scenarios.push(scenario),
                Some(mine) => mine.merge(scenario),
            }
        }
    }

    /// Writes the JSON to `file`, and the same as Markdown and as a picture beside it.
    ///
    /// # Errors
    ///
    /// A file cannot be written.
    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        if let Some(directory) = file.parent() {
            fs::create_dir_all(directory)?;
        }
        let write = |file: &Path, text: String| {
            fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
        };
        write(file, format!("{}\n", serde_json::to_string_pretty(self)?))?;
        write(&file.with_extension("md"), markdown::text(&self.scenarios))?;
        write(&file.with_extension("svg"), picture::draw(&self.scenarios))
    }
}

/// Where the tables are in a document.
const MARKS: [&str; 2] = ["<!-- what make bench measured -->\n", "<!-- until here -->"];
/// The picture, beside that document.
const PICTURE: &str = "bench.svg";

impl Report {
    /// Puts the tables into `readme` between its marks, and the picture beside it.
    ///
    /// # Errors
    ///
    /// It cannot be read or written, or has no marks.
    pub(crate) fn write_into(&self, readme: &Path) -> Result<()> {
        let old = fs::read_to_string(readme)
            .with_context(|| format!("cannot read {}", readme.display()))?;
        let [start, end] = MARKS;
        let parts = old
            .split_once(start)
            .and_then(|(before, rest)| Some((before, rest.split_once(end)?.1)));
        let (before, after) =
            parts.with_context(|| format!("{} has no marks for the figures", readme.display()))?;
        let tables = markdown::text(&self.scenarios);
        let image = format!("![Causeway beside its rivals; shorter is better]({PICTURE})");
        let new = format!("{before}{start}\n{image}\n\n{tables}\n{end}{after}");
        let folder = readme.parent().unwrap_or(Path::new(""));
        fs::write(folder.join(PICTURE), picture::draw(&self.scenarios))?;
        fs::write(readme, new)?;
        Ok(())
    }
}

impl ScenarioReport {
    fn merge(&mut self, other: Self) {
        for contender in other.contenders {
            let mine = self
                .contenders
                .iter_mut()
                .find(|mine| mine.name == contender.name);
            match mine {
                None => self.contenders.push(contender),
                Some(mine) => *mine = contender,
            }
        }
        self.work = other.work;
    }

    /// The figures that the picture shows: their names, with what they are of where there are several.
    fn shown(&self) -> impl Iterator<Item = &Name> {
        self.shown.iter()
    }
}

impl ContenderReport {
    /// The median of the figure of this name.
    fn figure(&self, name: &str) -> Option<&Figure> {
        self.medians.iter().find(|figure| figure.name == name)
    }

    /// What has to be said beside each of its figures: whether messages, or clients, were lost.
    fn remark(&self) -> Option<String> {
        if self.failed.is_some() && !self.medians.is_empty() {
            return Some("failed later".to_owned());
        }
        let lost = self
            .medians
            .iter()
            .find(|figure| figure.unit == Unit::Percent && 0.05 <= figure.value)?;
        Some(format!("{:.1} % lost", lost.value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn contender(name: &'static str, values: &[f64]) -> ContenderReport {
        let rounds = values
            .iter()
            .map(|value| vec![Figure::microseconds("CPU", *value)])
            .collect();
        let mut report = ContenderReport {
            name: name.into(),
            version: Some("1.0".to_owned()),
            missing: None,
            failed: None,
            settings: "as it comes".into(),
            rounds,
            medians: Vec::new(),
        };
        report.conclude();
        report
    }

    pub(super) fn scenario(contenders: Vec<ContenderReport>) -> ScenarioReport {
        ScenarioReport {
            scenario: "echo".into(),
            title: "echo".into(),
            group: "edge".into(),
            work: "64 clients".to_owned(),
            peer: "theirs".into(),
            shown: vec!["CPU".into()],
            contenders,
        }
    }

    fn report(contenders: Vec<ContenderReport>) -> Report {
        Report {
            kernel: "6".to_owned(),
            cpus: 2,
            threads: 1,
            scenarios: vec![scenario(contenders)],
        }
    }

    #[test]
    fn a_later_run_replaces_what_it_measured_too_and_keeps_the_rest() {
        let mut all = report(vec![contender("a", &[1.0]), contender("b", &[1.0])]);
        all.merge(report(vec![contender("b", &[2.0]), contender("c", &[3.0])]));
        let values: Vec<_> = all.scenarios[0]
            .contenders
            .iter()
            .map(|contender| contender.medians[0].value.to_string())
            .collect();
        assert_eq!(values, ["1", "2", "3"]);
    }

    #[test]
    fn a_readme_gets_the_tables_between_its_marks_and_keeps_the_rest() {
        let scratch = crate::harness::scratch::Scratch::new("readme").unwrap();
        let readme = scratch.path().join("README.md");
        let [start, end] = MARKS;
        fs::write(&readme, format!("before\n{start}old\n{end}\nafter\n")).unwrap();
        let report = report(vec![contender("ours", &[1.0])]);
        report.write_into(&readme).unwrap();
        let text = fs::read_to_string(&readme).unwrap();
        assert!(text.starts_with("before\n"), "{text}");
        assert!(text.ends_with("\nafter\n"), "{text}");
        assert!(
            text.contains("**1.00 µs**") && !text.contains("old"),
            "{text}"
        );
        fs::write(&readme, "no marks").unwrap();
        report.write_into(&readme).unwrap_err();
    }

    #[test]
    fn what_is_written_can_be_read_again() {
        let scratch = crate::harness::scratch::Scratch::new("report").unwrap();
        let file = scratch.path().join("bench.json");
        report(vec![contender("a", &[1.0])]).write(&file).unwrap();
        let read = Report::read(&file).unwrap();
        assert_eq!(read.scenarios[0].contenders[0].medians[0].name, "CPU");
        assert!(file.with_extension("svg").exists());
    }
}
