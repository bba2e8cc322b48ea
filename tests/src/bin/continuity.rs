//! `make continuity`: what clients notice of restarts of nodes, of upgrades of the edge, and of a new node; and of reloads of HAProxy
//! and nginx, of restarts of Centrifugo and Socket.IO, and of failovers of Redis.

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use causeway_tests::continuity::{
    self, Pace, PauseLimits, Plan, Scenario,
    other::Setup,
    report::{self, Outcome},
    requests::RequestsPlan,
    rivals::{self, Happening, System},
};
use clap::{Parser, ValueEnum};

/// Restarts nodes, replaces the edge and adds a node, under load, and fails if a client over WebSocket notices it. Compares with HAProxy
/// and nginx, Centrifugo and Socket.IO.
///
/// Uses the programs beside this one, or those in the directory that `CAUSEWAY_BIN` names.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Runs only these.
    #[arg(long, value_enum)]
    scenario: Vec<Name>,
    /// Connects so many clients; by default as many as the limit of open files allows, at most 9,000.
    #[arg(long)]
    clients: Option<usize>,
    /// Publishes so many messages a second, in half as many channels.
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Restarts all nodes, or replaces the edge, so many times.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Opens so many new connections each second while the edge is replaced.
    #[arg(long, default_value_t = 500)]
    connections: u32,
    /// Sends so many requests each second on kept connections while the edge is replaced.
    #[arg(long, default_value_t = 1_000)]
    requests: u32,
    /// Writes the tables here, and a picture beside it.
    #[arg(long, default_value = "target/continuity/continuity.md")]
    output: PathBuf,
    /// Keeps configurations and logs, and says where.
    #[arg(long)]
    keep: bool,
}

/// Most clients of each system that is compared with; a failover has as many unless it is told otherwise.
const RIVALS_CLIENTS_MAX: usize = 2_000;

/// How long a primary of Redis is silent before a Sentinel calls it down.
const DOWN_AFTER: Duration = Duration::from_secs(5);

/// A scenario by its name.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// All nodes are restarted, one after the other.
    Nodes,
    /// Another process takes the edge over.
    Edge,
    /// A fourth node is added, and the clients are distributed anew.
    ScaleOut,
    /// The edge, HAProxy and nginx are replaced, one after the other; what clients notice of the others is no failure.
    Others,
    /// All nodes of Causeway, Centrifugo and Socket.IO are restarted; what clients notice of the others is no failure.
    Rivals,
    /// The primary of Redis is killed, of each of them; what clients notice of the others is no failure.
    Failover,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    let clients = match cli.clients {
        Some(clients) => clients,
        None => continuity::clients_max()?,
    };
    let mut outcomes = Vec::new();
    for scenario in cli.scenarios() {
        let is_ours = !matches!(scenario, Scenario::Other { .. });
        let plan = Plan {
            scenario,
            clients,
            rate: cli.rate,
            nodes: 3,
            pace: Pace::Default,
            sabotage: None,
            pauses: is_ours.then_some(PauseLimits {
                p99: Duration::from_millis(250),
                most: Duration::from_secs(2),
            }),
        };
        let report = match continuity::run(&plan).await {
            Err(error) if !is_ours => {
                eprintln!("{}: not measured: {error:#}", scenario.name());
                continue;
            }
            report => report?,
        };
        eprintln!("{}", report.outcome);
        outcomes.push(report.outcome.clone());
        if cli.keep {
            eprintln!("files: {}", report.files.keep().display());
        }
    }
    let mut tables = report::markdown(&outcomes);
    if let Some(table) = report::comparison(&outcomes) {
        eprintln!("{table}");
    }
    let mut has_failed = outcomes.iter().any(Outcome::has_failed);
    for happening in cli.happenings() {
        let beside = cli.beside(happening, clients).await?;
        has_failed |= beside.iter().any(rivals::Outcome::has_failed);
        if let Some(table) = rivals::comparison(&beside) {
            eprintln!("{table}");
            tables += &format!("\n{table}");
        }
    }
    let written = |path: PathBuf, text: String| {
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    if let Some(directory) = cli.output.parent() {
        fs::create_dir_all(directory)?;
    }
    written(cli.output.clone(), tables)?;
    written(cli.output.with_extension("svg"), report::picture(&outcomes))?;
    eprintln!("tables: {}", cli.output.display());
    Ok(if has_failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

impl Cli {
    fn runs(&self, name: Name) -> bool {
        self.scenario.is_empty() || self.scenario.contains(&name)
    }

    /// What happens to each system that is compared with.
    fn happenings(&self) -> Vec<Happening> {
        let rounds = self.rounds;
        let all = [
            (Name::Rivals, Happening::Restart { rounds }),
            (
                Name::Failover,
                Happening::Failover {
                    rounds,
                    down_after: DOWN_AFTER,
                },
            ),
        ];
        let wanted = all.into_iter().filter(|(name, _)| self.runs(*name));
        wanted.map(|(_, happening)| happening).collect()
    }

    /// Each system that is installed, one after the other; says which one is missing.
    async fn beside(&self, happening: Happening, clients: usize) -> Result<Vec<rivals::Outcome>> {
        let calm = match happening {
            Happening::Restart { .. } => Duration::from_secs(3),
            // Sentinels fail over again only after some time.
            Happening::Failover { .. } => Duration::from_secs(15),
        };
        let mut outcomes = Vec::new();
        for system in System::ALL {
            let plan = rivals::Plan {
                system,
                happening,
                clients: clients.min(RIVALS_CLIENTS_MAX),
                rate: self.rate,
                calm,
            };
            match rivals::run(&plan).await {
                Ok((outcome, files)) => {
                    eprintln!("{outcome}");
                    outcomes.push(outcome);
                    if self.keep {
                        eprintln!("files: {}", files.keep().display());
                    }
                }
                Err(error) if system != System::Causeway => {
                    eprintln!("{}: not measured: {error:#}", system.name());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(outcomes)
    }

    fn scenarios(&self) -> Vec<Scenario> {
        let requests = RequestsPlan {
            connections: self.connections,
            requests: self.requests,
        };
        let mut scenarios = Vec::new();
        if self.runs(Name::Nodes) {
            let rounds = self.rounds;
            scenarios.push(Scenario::Nodes { rounds });
        }
        if self.runs(Name::Edge) || self.runs(Name::Others) {
            let upgrades = self.rounds;
            scenarios.push(Scenario::Edge { upgrades, requests });
        }
        if self.runs(Name::ScaleOut) {
            scenarios.push(Scenario::ScaleOut);
        }
        if self.runs(Name::Others) {
            let setups = installed();
            scenarios.extend(setups.into_iter().map(|setup| Scenario::Other {
                setup,
                reloads: self.rounds,
                requests,
            }));
        }
        scenarios
    }
}

/// The programs to compare with; says which one is missing.
fn installed() -> Vec<Setup> {
    let mut installed = Vec::new();
    for setup in Setup::ALL {
        match setup.version() {
            Ok(_) => installed.push(setup),
            Err(error) => eprintln!("{}: not measured: {error:#}", setup.name()),
        }
    }
    installed
}
