//! `make continuity`: nodes restart, the edge is replaced and a node is added, under load, and a checker says what clients noticed;
//! also of HAProxy and nginx in the place of the edge.
//!
//! ```text
//! clients of every transport ◀──▶ edge ◀──▶ nodes ◀──▶ redis
//!        │        ▲                 ▲         ▲
//!        ▼        │ restarts, upgrades, a new node
//!      record ──▶ report
//! ```
//! [`population`] says which clients there are, [`client`] and [`polling`] are what they do, [`requests`] are new connections and
//! requests beside them. The [`record`] has what each of them saw; lost, repeated and reordered messages are found by the checker of
//! [`chaos`](crate::chaos). The [`scene`] is what they are connected to, [`events`] is what happens to it, and the [`report`] says
//! what is wrong. In the comparison an [`other`] program stands where the edge does; [`former`] is what its old processes hold.
//!
//! [`rivals`] is another comparison, with a load of its own: restarts of nodes and failovers of Redis, of Centrifugo and Socket.IO too.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

pub mod client;
pub mod events;
pub mod former;
pub mod load;
pub mod other;
pub mod pauses;
pub mod polling;
pub mod population;
pub mod record;
pub mod report;
pub mod requests;
pub mod rivals;
pub mod scene;

use crate::harness::descriptors;
use events::Event;
use load::Load;
use other::Setup;
use population::Population;
use report::{Outcome, Report};
use requests::{Requests, RequestsPlan};
use scene::{Scene, ScenePlan};

/// Open files of each process that are not connections of clients.
const OTHER_FILES: usize = 1_900;

/// As many clients as the issue of this program asks for.
const CLIENTS_MAX: usize = 9_000;

/// How long the clients may take to be connected.
const JOIN: Duration = Duration::from_secs(120);

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// All nodes are restarted, one after the other, so many times.
    Nodes {
        /// How many times.
        rounds: usize,
    },
    /// Another process takes the edge over, so many times.
    Edge {
        /// How many times.
        upgrades: usize,
        /// New connections and requests each second beside the clients.
        requests: RequestsPlan,
    },
    /// Another node is added, and the clients are distributed anew.
    ScaleOut,
    /// HAProxy or nginx stands where the edge does, and is replaced, so many times.
    Other {
        /// Which, with what settings.
        setup: Setup,
        /// How many times.
        reloads: usize,
        /// New connections and requests each second beside the clients.
        requests: RequestsPlan,
    },
}

impl Scenario {
    /// What it is called on the command line and in the report.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Nodes { .. } => "nodes",
            Self::Edge { .. } => "edge",
            Self::ScaleOut => "scale-out",
            Self::Other { setup, .. } => setup.name(),
        }
    }

    fn requests(&self) -> Option<RequestsPlan> {
        match self {
            Self::Edge { requests, .. } | Self::Other { requests, .. } => Some(*requests),
            Self::Nodes { .. } | Self::ScaleOut => None,
        }
    }

    fn other(&self) -> Option<Setup> {
        match self {
            Self::Other { setup, .. } => Some(*setup),
            Self::Nodes { .. } | Self::Edge { .. } | Self::ScaleOut => None,
        }
    }
}

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What happens.
    pub scenario: Scenario,
    /// How many clients there are.
    pub clients: usize,
    /// Messages a second, of all publishers together.
    pub rate: u32,
    /// How many nodes there are, at least two.
    pub nodes: usize,
    /// Whether the programs have their default settings, or those that make a run short.
    pub pace: Pace,
    /// What the nodes do wrong on purpose, as their debug builds understand it.
    pub sabotage: Option<String>,
    /// The longest pauses that are no failure; `None` on a machine that may be slow.
    pub pauses: Option<PauseLimits>,
}

/// How long everything takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As the programs are by default, with some calm between the events.
    Default,
    /// As fast as the settings allow: for tests.
    Short,
}

impl Pace {
    /// Before the first event, and after each.
    fn calm(self) -> Duration {
        match self {
            Self::Default => Duration::from_secs(3),
            Self::Short => Duration::from_millis(300),
        }
    }

    /// For all clients to have everything at the end.
    fn settle(self) -> Duration {
        match self {
            Self::Default => Duration::from_secs(30),
            Self::Short => Duration::from_secs(60),
        }
    }
}

/// The longest pauses that are no failure.
#[derive(Clone, Copy, Debug)]
pub struct PauseLimits {
    /// 99 of 100 pauses are at most so long.
    pub p99: Duration,
    /// All are.
    pub most: Duration,
}

/// As many clients as the limit of open files allows: the edge has two files for each.
///
/// # Errors
///
/// The system does not tell the limit.
pub fn clients_max() -> Result<usize> {
    descriptors::raise_limit()?;
    let files = descriptors::limit()?;
    let most = files.saturating_sub(OTHER_FILES) / 2;
    Ok(most.clamp(100, CLIENTS_MAX))
}

/// Does it. Configurations and logs are in a directory that goes with the report, unless it is kept.
///
/// # Errors
///
/// The harness failed. What the programs did wrong is in the report.
pub async fn run(plan: &Plan) -> Result<Report> {
    descriptors::raise_limit()?;
    let mut scene = Scene::start(&ScenePlan {
        name: format!("continuity-{}", plan.scenario.name()),
        nodes: plan.nodes,
        channels: plan.channels(),
        pace: plan.pace,
        sabotage: plan.sabotage.clone(),
        other: plan.scenario.other(),
    })
    .await?;
    let outcome = run_on(plan, &mut scene).await;
    let files = scene.end();
    match outcome {
        Ok(outcome) => Ok(Report { outcome, files }),
        Err(error) => {
            let kept = files.keep();
            Err(error.context(format!("files of this run: {}", kept.display())))
        }
    }
}

impl Plan {
    /// Each channel has a message every half second, so that a pause shows.
    fn channels(&self) -> usize {
        (self.rate as usize / 2).max(population::CHANNELS_MIN)
    }

    fn events(&self) -> Vec<Event> {
        match self.scenario {
            Scenario::Nodes { rounds } => (0..rounds)
                .flat_map(|round| (0..self.nodes).map(move |node| Event::Restart { round, node }))
                .collect(),
            Scenario::Edge { upgrades, .. } => {
                let numbers = 1..=upgrades;
                numbers.map(|number| Event::Upgrade { number }).collect()
            }
            Scenario::ScaleOut => vec![Event::ScaleOut],
            Scenario::Other { reloads, .. } => {
                let numbers = 1..=reloads;
                numbers.map(|number| Event::Reload { number }).collect()
            }
        }
    }
}

async fn run_on(plan: &Plan, scene: &mut Scene) -> Result<Outcome> {
    let population = Population::new(plan.clients, plan.channels());
    let (clients, channels) = (population.counts(), population.channels.len());
    let began = Instant::now();
    let load = Load::start(population, scene.listeners()?, plan.rate);
    let record = Arc::clone(&load.record);
    load.joined(JOIN).await?;
    let joined_after = began.elapsed();
    let requests = plan.scenario.requests();
    let requests = requests.map(|requests| Requests::start(scene.plain, requests));
    let mut watching = JoinSet::new();
    let watched = scene.watch(&mut watching);
    sleep(plan.pace.calm()).await;
    record.end_window("before");

    let mut lines = Vec::new();
    for event in plan.events() {
        let name = event.to_string();
        let number = record.streams.fault_began(name.clone(), Vec::new());
        let line = event.happen(scene, plan.pace).await;
        lines.push(line.with_context(|| name.clone())?);
        record.streams.fault_ended(number);
        sleep(plan.pace.calm()).await;
        record.end_window(&name);
        watched.set_programs(scene);
    }
    let requests = match requests {
        Some(requests) => Some(requests.finish().await?),
        None => None,
    };
    let lasted = began.elapsed();
    let handoffs = scene.handoffs().await?;
    let stall_max = load.finish(plan.pace.settle()).await?;
    let files_max = watched.files_max();
    watching.shutdown().await;
    ensure!(0 < record.messages(), "no message reached a client");
    Ok(Outcome {
        scenario: plan.scenario.name(),
        other: plan.scenario.other(),
        clients,
        channels,
        rate: plan.rate,
        joined_after,
        lasted,
        events: lines,
        handoffs,
        requests,
        files_max,
        stall_max,
        limits: plan.pauses,
        errors: scene.errors(),
        seen: record.seen(),
    })
}
