//! `make handoff-faults`: clients are handed off between nodes, round after round, and in each round something goes wrong.
//!
//! ```text
//! application ──▶ redis ◀── wires that stop at a step ──▶ three nodes ◀──▶ edge ◀──▶ clients
//!      └─────────── numbers ──▶ record ◀── what each client got ──────────────────────┘
//! ```
//! A round's [`Choice`] follows from its seed: what goes wrong, at which step of a handoff, which node is drained and
//! how. A [`tap`] on a node's wire to Redis finds the step. The [`record`] finds what is lost, repeated or out of order; [`rounds`]
//! checks the rest after each round: who has been told, that each client has one node, presence. At the end the clients leave, and
//! nothing of them may be left.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{task::JoinSet, time::timeout};

pub mod client;
pub mod faults;
pub mod odd;
pub mod polling;
pub mod publish;
pub mod record;
pub mod rounds;
pub mod scene;
pub mod shared;
pub mod tap;
pub mod tokens;

use crate::harness::{descriptors, wait};
use faults::{Choice, Fault};
use record::{Finding, Violation};
use rounds::{Counted, Rounds};
use scene::Scene;
use shared::{Kind, Shared};

/// The clients.
const CLIENTS: [(Kind, usize); 5] = [
    (Kind::Relay, 5),
    (Kind::Sockjs, 3),
    (Kind::Polling, 2),
    (Kind::History, 4),
    (Kind::Live, 4),
];

/// Files of a process beside those of its clients: connections to Redis, and of probes.
const SPARE_FILES: usize = 24;

/// For everything to be gone after the clients: a lease lasts 3 s, a session over HTTP 4 s.
const GONE_WAIT: Duration = Duration::from_secs(30);

/// The most rounds with violations, before a run ends.
const BAD_ROUNDS_MAX: usize = 20;

/// The violations of a round that are shown: most of them have one cause.
const VIOLATIONS_SHOWN: usize = 12;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// For people who look for its files.
    pub name: String,
    /// The seed of the first round; each has the next one.
    pub seed: u64,
    /// How many rounds there are.
    pub rounds: u64,
    /// What may go wrong.
    pub faults: Vec<Fault>,
    /// What the nodes do wrong on purpose, as their debug builds understand it.
    pub sabotage: Option<String>,
}

/// A round that found something.
#[derive(Clone, Debug)]
pub struct BadRound {
    /// Its choices; none for the end of the run.
    pub choice: Option<Choice>,
    /// What is wrong.
    pub violations: Vec<Violation>,
}

/// What was done and found.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Rounds by what went wrong: how many, how many of them at the step, handoffs, and ends of connections.
    pub faults: BTreeMap<Fault, Tally>,
    /// Messages that clients got.
    pub messages: u64,
    /// What clients were told, and how often.
    pub told: BTreeMap<String, u64>,
    /// Rounds that found something.
    pub bad: Vec<BadRound>,
}

/// Rounds of one kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// How many.
    pub rounds: u64,
    /// Those whose fault was made at its step.
    pub at_step: u64,
    /// Clients that were handed off.
    pub moved: u64,
    /// Ends of connections.
    pub ends: u64,
}

impl Outcome {
    /// Handoffs of all rounds.
    #[must_use]
    pub fn moved(&self) -> u64 {
        self.faults.values().map(|tally| tally.moved).sum()
    }

    /// Rounds, all together.
    #[must_use]
    pub fn rounds(&self) -> u64 {
        self.faults.values().map(|tally| tally.rounds).sum()
    }

    /// Whether something of this kind was found.
    #[must_use]
    pub fn has(&self, finding: Finding) -> bool {
        let violations = self.bad.iter().flat_map(|round| &round.violations);
        violations.into_iter().any(|one| one.finding == finding)
    }

    /// Both together.
    pub fn add(&mut self, other: Self) {
        for (fault, tally) in other.faults {
            let sum = self.faults.entry(fault).or_default();
            sum.rounds += tally.rounds;
            sum.at_step += tally.at_step;
            sum.moved += tally.moved;
            sum.ends += tally.ends;
        }
        self.messages += other.messages;
        for (why, count) in other.told {
            *self.told.entry(why).or_default() += count;
        }
        self.bad.extend(other.bad);
    }

    fn count(&mut self, fault: Fault, counted: Counted) {
        let tally = self.faults.entry(fault).or_default();
        tally.rounds += 1;
        tally.at_step += u64::from(counted.is_at_step);
        tally.moved += counted.moved;
        tally.ends += counted.ends as u64;
    }
}

/// Does it.
///
/// # Errors
///
/// The harness failed. What the programs did wrong is in the outcome.
pub async fn run(plan: &Plan) -> Result<Outcome> {
    descriptors::raise_limit()?;
    let scene = Scene::start(&plan.name, plan.sabotage.as_deref()).await?;
    let files = scene.files();
    let kinds = CLIENTS.iter().flat_map(|(kind, count)| vec![*kind; *count]);
    let kinds: Vec<Kind> = kinds.collect();
    let shared = Arc::new(Shared::new(scene.edge.address, kinds.len()));
    let mut publishers = JoinSet::new();
    let (own, redis) = (scene.own.address, scene.redis.address());
    publish::start(&mut publishers, &shared, own, redis, kinds.len());
    let mut clients = JoinSet::new();
    for (number, kind) in kinds.iter().copied().enumerate() {
        let shared = Arc::clone(&shared);
        if kind == Kind::Polling {
            clients.spawn(polling::Client { number, shared }.live());
        } else {
            clients.spawn(client::Client::new(number, kind, shared).live());
        }
    }
    let mut rounds = Rounds {
        scene,
        shared,
        kinds,
        waiting: None,
    };
    let outcome = run_on(plan, &mut rounds, clients, publishers, &files).await;
    let files = rounds.scene.end();
    match outcome {
        Ok(outcome) if outcome.bad.is_empty() || plan.sabotage.is_some() => Ok(outcome),
        Ok(outcome) => {
            eprintln!("files of this run: {}", files.keep().display());
            Ok(outcome)
        }
        Err(error) => {
            let kept = files.keep();
            Err(error.context(format!("files of this run: {}", kept.display())))
        }
    }
}

async fn run_on(
    plan: &Plan,
    rounds: &mut Rounds,
    mut clients: JoinSet<()>,
    mut publishers: JoinSet<()>,
    files: &[usize],
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    rounds.joined().await?;
    for seed in plan.seed..plan.seed + plan.rounds {
        let choice = Choice::new(seed, &plan.faults);
        let counted = rounds.round(&choice).await;
        let counted = counted.with_context(|| choice.to_string())?;
        outcome.count(choice.fault, counted);
        let violations = rounds.shared.record.lock().take_violations();
        if !violations.is_empty() {
            eprintln!("{choice}: {} violations", violations.len());
            let shown = violations.iter().take(VIOLATIONS_SHOWN);
            shown.for_each(|one| eprintln!("  {one}"));
            outcome.bad.push(BadRound {
                choice: Some(choice),
                violations,
            });
        }
        if BAD_ROUNDS_MAX <= outcome.bad.len() {
            break;
        }
        if plan.sabotage.is_some() && !outcome.bad.is_empty() {
            return Ok(outcome);
        }
    }
    rounds.shared.over.send_replace(true);
    let ended = async { while clients.join_next().await.is_some() {} };
    timeout(wait::SOON, ended)
        .await
        .context("the clients end")?;
    // The application publishes no more: what it publishes is not what is left of clients.
    publishers.shutdown().await;
    check_gone(rounds, files).await;
    let mut record = rounds.shared.record.lock();
    let violations = record.take_violations();
    if !violations.is_empty() {
        violations
            .iter()
            .for_each(|one| eprintln!("at the end: {one}"));
        outcome.bad.push(BadRound {
            choice: None,
            violations,
        });
    }
    outcome.messages = record.messages;
    outcome.told = std::mem::take(&mut record.told);
    Ok(outcome)
}

/// Nothing is left of the clients.
async fn check_gone(rounds: &Rounds, files_before: &[usize]) {
    let scene = &rounds.scene;
    let left = async || {
        let mut left = Vec::new();
        let counts = [
            ("clients", scene.clients().await?),
            ("sessions", scene.of_nodes("causeway_node_sessions ").await?),
            ("tunnels", scene.tunnels().await?),
            ("members", scene.present().await?.len() as u64),
        ];
        for (what, count) in counts {
            if 0 < count {
                left.push(format!("{count} {what} are left"));
            }
        }
        let keys = scene.keys().await?;
        if !keys.is_empty() {
            left.push(format!("keys are left: {keys:?}"));
        }
        for (number, (now, before)) in scene.files().iter().zip(files_before).enumerate() {
            if before + SPARE_FILES < *now {
                left.push(format!(
                    "process {number} has {now} open files, {before} at first"
                ));
            }
        }
        anyhow::Ok(left)
    };
    let gone = wait::until("nothing to be left", GONE_WAIT, async || {
        left().await.ok()?.is_empty().then_some(())
    });
    if gone.await.is_err() {
        let left = left().await.unwrap_or_else(|error| vec![error.to_string()]);
        let mut record = rounds.shared.record.lock();
        for one in left {
            record.violation(Finding::Leak, one);
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} faults, {} handoffs, {} messages, {} rounds with findings",
            self.rounds(),
            self.moved(),
            self.messages,
            self.bad.len()
        )?;
        for (fault, tally) in &self.faults {
            let Tally {
                rounds,
                at_step,
                moved,
                ends,
            } = tally;
            writeln!(
                f,
                "  {:<16} {rounds:>4}, {at_step:>4} at the step, {moved:>5} handoffs, {ends:>4} connections ended",
                format!("{fault:?}")
            )?;
        }
        for (why, count) in &self.told {
            writeln!(f, "  told: {why}: {count}")?;
        }
        for round in &self.bad {
            match &round.choice {
                Some(choice) => writeln!(f, "  {choice}")?,
                None => writeln!(f, "  at the end")?,
            }
            for violation in round.violations.iter().take(VIOLATIONS_SHOWN) {
                writeln!(f, "    {violation}")?;
            }
        }
        Ok(())
    }
}
