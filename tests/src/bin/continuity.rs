//! `make continuity`: what clients notice of restarts of nodes, of upgrades of the edge, and of a new node.

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use causeway_tests::continuity::{
    self, Pace, PauseLimits, Plan, Scenario, report, requests::RequestsPlan,
};
use clap::{Parser, ValueEnum};

/// Restarts nodes, replaces the edge and adds a node, under load, and fails if a client over WebSocket notices it.
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

/// A scenario by its name.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// All nodes are restarted, one after the other.
    Nodes,
    /// Another process takes the edge over.
    Edge,
    /// A fourth node is added, and the clients are distributed anew.
    ScaleOut,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    let clients = match cli.clients {
        Some(clients) => clients,
        None => continuity::clients_max()?,
    };
    let mut outcomes = Vec::new();
    for name in [Name::Nodes, Name::Edge, Name::ScaleOut] {
        if !cli.scenario.is_empty() && !cli.scenario.contains(&name) {
            continue;
        }
        let scenario = match name {
            Name::Nodes => Scenario::Nodes { rounds: cli.rounds },
            Name::Edge => Scenario::Edge {
                upgrades: cli.rounds,
                requests: RequestsPlan {
                    connections: cli.connections,
                    requests: cli.requests,
                },
            },
            Name::ScaleOut => Scenario::ScaleOut,
        };
        let plan = Plan {
            scenario,
            clients,
            rate: cli.rate,
            nodes: 3,
            pace: Pace::Default,
            sabotage: None,
            pauses: Some(PauseLimits {
                p99: Duration::from_millis(250),
                most: Duration::from_secs(2),
            }),
        };
        let report = continuity::run(&plan).await?;
        eprintln!("{}", report.outcome);
        outcomes.push(report.outcome.clone());
        if cli.keep {
            eprintln!("files: {}", report.files.keep().display());
        }
    }
    let written = |path: PathBuf, text: String| {
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    if let Some(directory) = cli.output.parent() {
        fs::create_dir_all(directory)?;
    }
    written(cli.output.clone(), report::markdown(&outcomes))?;
    written(cli.output.with_extension("svg"), report::picture(&outcomes))?;
    eprintln!("tables: {}", cli.output.display());
    let has_failed = outcomes
        .iter()
        .any(|outcome| !outcome.failures().is_empty());
    Ok(if has_failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
