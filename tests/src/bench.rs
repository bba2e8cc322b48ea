//! The bench: memory and CPU of our programs beside their rivals, on the same work in the same run.
//!
//! - [`scenario`](Scenario) says what is measured, `contender` how each server is started.
//! - `load` is the generator: one epoll thread in this process, thousands of clients, over TLS too.
//! - `proc` reads what the servers' processes used; `report` makes the table and the JSON.
//! - [`backend`] and [`relay`] are servers of the bench's own, run as processes of this program.
//!
//! Every measurement starts a fresh process, and the contenders take turns within a round, so that a
//! busy neighbour hits all of them alike.

pub mod backend;
mod certificate;
mod contender;
mod load;
mod pipe;
mod proc;
pub mod relay;
mod report;
mod scenario;
mod wire;

use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::ValueEnum as _;
use serde_json::json;

use self::contender::Contender;
use self::report::{ContenderReport, ScenarioReport};
pub use self::scenario::Scenario;
use crate::harness::descriptors;

/// What to measure, and how long.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Runs only these scenarios.
    #[arg(long, value_enum)]
    pub scenario: Vec<Scenario>,
    /// Runs only these contenders, by name.
    #[arg(long)]
    pub contender: Vec<String>,
    /// Measures each contender so many times; the table shows the medians.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Uses so many clients instead of what each scenario says.
    #[arg(long)]
    pub connections: Option<usize>,
    /// Measures CPU time for so many seconds each.
    #[arg(long, default_value_t = 5.0)]
    pub duration: f64,
    /// Gives each server so many threads or workers.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Shows in a few seconds that all of it works; the figures mean nothing.
    #[arg(long)]
    pub quick: bool,
    /// Writes the JSON here.
    #[arg(long, default_value = "target/bench/bench.json")]
    pub output: PathBuf,
}

impl Options {
    fn rounds(&self) -> usize {
        if self.quick { 1 } else { self.rounds }
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
            Duration::from_secs(2)
        }
    }

    fn scenarios(&self) -> &[Scenario] {
        if self.scenario.is_empty() {
            Scenario::value_variants()
        } else {
            &self.scenario
        }
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
    let mut reports = Vec::new();
    for scenario in options.scenarios() {
        let report = run_scenario(*scenario, options).await?;
        report.write_table(&mut io::stdout().lock())?;
        reports.push(report);
    }
    writeln!(io::stdout(), "\nHow they were set:")?;
    report::write_settings(&reports, &mut io::stdout().lock())?;
    let file = json!({
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "threads": options.threads,
        "scenarios": reports,
    });
    if let Some(directory) = options.output.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(&options.output, format!("{file:#}\n"))
        .with_context(|| format!("cannot write {}", options.output.display()))?;
    writeln!(
        io::stdout(),
        "The figures of each round are in {}.",
        options.output.display()
    )?;
    Ok(())
}

async fn run_scenario(scenario: Scenario, options: &Options) -> Result<ScenarioReport> {
    let wanted = |contender: &&Contender| {
        options.contender.is_empty()
            || options
                .contender
                .iter()
                .any(|name| name == contender.name())
    };
    let mut entries: Vec<(Contender, ContenderReport)> = scenario
        .contenders()
        .iter()
        .filter(wanted)
        .map(|contender| entry(*contender))
        .collect();
    for round in 1..=options.rounds() {
        for (contender, report) in &mut entries {
            if report.missing.is_some() || report.failed.is_some() {
                continue;
            }
            let name = contender.name();
            writeln!(io::stderr(), "{scenario:?}, round {round}: {name}")?;
            match scenario.measure(*contender, options).await {
                Ok(figures) => report.rounds.push(figures),
                Err(error) => report.failed = Some(format!("{error:#}")),
            }
        }
    }
    let contenders = entries.into_iter().map(|(_, mut report)| {
        report.conclude();
        report
    });
    let name = scenario
        .to_possible_value()
        .map(|value| value.get_name().to_owned());
    Ok(ScenarioReport {
        scenario: name.unwrap_or_default(),
        work: format!(
            "{}; rounds: {}, medians",
            scenario.work(options),
            options.rounds()
        ),
        peer: scenario.peer().name(),
        contenders: contenders.collect(),
    })
}

fn entry(contender: Contender) -> (Contender, ContenderReport) {
    let (version, missing) = match contender.version() {
        Ok(version) => (Some(version), None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    let report = ContenderReport {
        name: contender.name(),
        version,
        missing,
        failed: None,
        settings: contender.settings(),
        rounds: Vec::new(),
        medians: Vec::new(),
    };
    (contender, report)
}

/// Says where a server of the bench's own listens, as our programs do in their logs.
fn announce(address: SocketAddr) -> Result<()> {
    let fields =
        json!({ "message": "listening", "listener": "bench", "address": address.to_string() });
    writeln!(io::stderr(), "{}", json!({ "fields": fields }))?;
    Ok(())
}
