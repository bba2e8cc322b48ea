//! The bench: memory and CPU of our programs beside their rivals, on the same work in the same run.
//!
//! - `scenario` says what is measured, `contender` how each server is started, `dialect` how it is spoken to.
//! - `load` is the generator: one epoll thread in this process, thousands of clients, over TLS too.
//! - `proc` reads what the servers' processes used; `report` makes the tables, the JSON and the picture.
//! - [`redis_cost`] says what a publication costs Redis.
//! - [`soak`] lets clients come and go for long, and says what memory is left of it.
//! - [`backend`] and [`relay`] are servers of the bench's own, run as processes of this program.
//!
//! Every measurement starts a fresh process, and the contenders take turns within a round, so that a
//! busy neighbour hits all of them alike.

pub mod backend;
mod certificate;
mod contender;
mod dialect;
mod load;
mod pipe;
mod proc;
pub mod redis_cost;
pub mod relay;
mod report;
mod scenario;
pub mod soak;
mod wire;

use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::builder::PossibleValuesParser;
use serde_json::json;
use tokio::time;

pub(crate) use self::contender::installed;
pub(crate) use self::report::picture_begin;

use self::contender::Contender;
use self::report::{ContenderReport, Report, ScenarioReport};
use self::scenario::Scenario;
use crate::harness::descriptors;

/// Open files that are not clients: of the generator, and of a server with as many.
const OTHER_FILES: usize = 400;
/// How long a contender may take for one measurement. What it does not wait for has deadlines of its own.
const DEADLINE: Duration = Duration::from_secs(180);

/// What to measure, and how long.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Runs only these scenarios.
    #[arg(long, value_parser = PossibleValuesParser::new(scenario::names()))]
    pub scenario: Vec<String>,
    /// Runs only these contenders, by name.
    #[arg(long)]
    pub contender: Vec<String>,
    /// Measures each contender so many times, instead of once for memory and three times for CPU; the
    /// tables show the medians.
    #[arg(long)]
    pub rounds: Option<usize>,
    /// Uses so many clients instead of what each scenario says.
    #[arg(long)]
    pub connections: Option<usize>,
    /// Measures CPU time for so many seconds each.
    #[arg(long, default_value_t = 2.0)]
    pub duration: f64,
    /// Gives each server so many threads or workers.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Shows in a few seconds that all of it works; the figures mean nothing.
    #[arg(long)]
    pub quick: bool,
    /// Writes the JSON here, and Markdown and a picture beside it.
    #[arg(long, default_value = "target/bench/bench.json")]
    pub output: PathBuf,
}

impl Options {
    fn rounds(&self, usual: usize) -> usize {
        match (self.quick, self.rounds) {
            (true, _) => 1,
            (false, Some(rounds)) => rounds,
            (false, None) => usual,
        }
    }

    /// How many clients connect, where a scenario wants so many: one process may have so many open files.
    fn clients(&self, usual: usize) -> usize {
        let files = open_files_max().unwrap_or(usize::MAX);
        // Four is what the scenario with many channels has on each of them.
        let most = files.saturating_sub(OTHER_FILES) / 4 * 4;
        self.sessions(usual).min(most.max(4))
    }

    /// How many clients there are without a connection that is kept.
    fn sessions(&self, usual: usize) -> usize {
        self.connections
            .unwrap_or(if self.quick { usual.min(48) } else { usual })
    }

    /// How long CPU time is measured.
    fn duration(&self) -> Duration {
        if self.quick {
            Duration::from_millis(300)
        } else {
            Duration::from_secs_f64(self.duration)
        }
    }

    /// How long work goes on before it is measured.
    fn warm_up(&self) -> Duration {
        self.duration() / 5
    }

    /// How long servers may put their memory in order before it is read.
    fn settle(&self) -> Duration {
        if self.quick {
            Duration::from_millis(100)
        } else {
            Duration::from_secs(1)
        }
    }

    fn scenarios(&self) -> impl Iterator<Item = &'static dyn Scenario> {
        scenario::ALL.iter().copied().filter(|scenario| {
            self.scenario.is_empty() || self.scenario.iter().any(|name| name == scenario.name())
        })
    }

    fn wants(&self, contender: &dyn Contender) -> bool {
        self.contender.is_empty() || self.contender.iter().any(|name| name == contender.name())
    }
}

/// Runs the scenarios, prints a table for each and writes the JSON.
///
/// # Errors
///
/// A server of the bench's own fails, or the output cannot be written. A contender that fails is
/// named in its table.
pub async fn run(options: &Options) -> Result<()> {
    descriptors::raise_limit()?;
    let mut scenarios = Vec::new();
    for scenario in options.scenarios() {
        let report = run_scenario(scenario, options).await?;
        report::write_table(&report, &mut io::stdout().lock())?;
        scenarios.push(report);
    }
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let report = Report {
        kernel: kernel.trim().to_owned(),
        cpus: std::thread::available_parallelism().map_or(0, usize::from),
        threads: options.threads,
        scenarios,
    };
    conclude(&report, &options.output)
}

/// Puts the reports in `files` together, prints their tables and writes them to `output`.
///
/// What is in several of them is taken from the last. A README gets their tables and the picture too, between its
/// marks.
///
/// # Errors
///
/// There is no file, one is no report, or the output cannot be written.
pub fn put_together(files: &[PathBuf], output: &Path, readme: Option<&Path>) -> Result<()> {
    let (first, others) = files.split_first().context("there is no file")?;
    let mut report = Report::read(first)?;
    for file in others {
        report.merge(Report::read(file)?);
    }
    for scenario in &report.scenarios {
        report::write_table(scenario, &mut io::stdout().lock())?;
    }
    if let Some(readme) = readme {
        report.write_into(readme)?;
    }
    conclude(&report, output)
}

fn conclude(report: &Report, output: &Path) -> Result<()> {
    writeln!(io::stdout(), "\nHow they were set:")?;
    report::write_settings(&report.scenarios, &mut io::stdout().lock())?;
    report.write(output)?;
    writeln!(
        io::stdout(),
        "The figures of each round are in {}, with the same as .md and .svg beside it.",
        output.display()
    )?;
    Ok(())
}

async fn run_scenario(scenario: &dyn Scenario, options: &Options) -> Result<ScenarioReport> {
    let mut entries: Vec<(&dyn Contender, ContenderReport)> = scenario
        .contenders()
        .iter()
        .filter(|contender| options.wants(**contender))
        .map(|contender| (*contender, entry(*contender)))
        .collect();
    let rounds = options.rounds(scenario.rounds());
    for round in 1..=rounds {
        for (contender, report) in &mut entries {
            if report.missing.is_some() || report.failed.is_some() {
                continue;
            }
            let (scenario_name, name) = (scenario.name(), contender.name());
            writeln!(io::stderr(), "{scenario_name}, round {round}: {name}")?;
            match time::timeout(DEADLINE, scenario.measure(*contender, options)).await {
                Ok(Ok(figures)) => report.rounds.push(figures),
                Ok(Err(error)) => report.failed = Some(format!("{error:#}")),
                Err(_) => report.failed = Some(format!("not done after {DEADLINE:?}")),
            }
        }
    }
    let contenders = entries.into_iter().map(|(_, mut report)| {
        report.conclude();
        report
    });
    Ok(ScenarioReport {
        scenario: scenario.name().into(),
        title: scenario.title().into(),
        group: scenario.group().into(),
        work: format!(
            "{}; rounds: {rounds}{}",
            scenario.work(options),
            if 1 < rounds { ", medians" } else { "" }
        ),
        peer: scenario.peer().into(),
        shown: scenario.shown().iter().map(|name| (*name).into()).collect(),
        contenders: contenders.collect(),
    })
}

fn entry(contender: &dyn Contender) -> ContenderReport {
    let (version, missing) = match contender.version() {
        Ok(version) => (Some(version), None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    ContenderReport {
        name: contender.name().into(),
        version,
        missing,
        failed: None,
        settings: contender.settings().into(),
        rounds: Vec::new(),
        medians: Vec::new(),
    }
}

/// How many files this process may have open at a time.
fn open_files_max() -> Option<usize> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Says where a server of the bench's own listens, as our programs do in their logs.
fn announce(address: SocketAddr) -> Result<()> {
    let fields =
        json!({ "message": "listening", "listener": "bench", "address": address.to_string() });
    writeln!(io::stderr(), "{}", json!({ "fields": fields }))?;
    Ok(())
}
