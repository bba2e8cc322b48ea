//! `make chaos`: nodes, Redis and the wires between them fail, under load, and a checker compares what was acknowledged with what
//! each client saw.
//!
//! ```text
//! publishers ─HTTP API─▶ three nodes ◀─wires that fail─▶ redis, and replicas that lag
//!      └──── sent, acked ──▶ checker ◀── seen, told ──── clients that come back
//! ```
//! [`faults`] are chosen by a seed, [`scene`] is what they happen to, with the [`servers`] of a [`topology`]; [`wire`] is what lies
//! between, [`clients`] and [`publishers`] say to the [`record`] what they see, and the [`checker`] finds what must not be. A
//! [`report`] is for people.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

pub mod checker;
pub mod clients;
pub mod faults;
pub mod kind;
pub mod publishers;
pub mod record;
pub mod report;
pub mod scene;
pub mod servers;
pub mod topology;
pub mod violation;
pub mod wire;

use checker::Position;
use clients::{Behaviour, Client};
use faults::{Havoc, Schedule};
use kind::Kind;
use publishers::Publisher;
use record::Record;
use report::{Outcome, Report};
use scene::Scene;
use topology::Topology;

/// Channels that keep more than anybody misses.
const DEEP_CHANNELS: usize = 8;

/// Channels that keep so little that who is away for long cannot recover.
const SHALLOW_CHANNELS: usize = 4;

/// Channels with few messages, so that no later message shows that one was missed.
const RARE_CHANNELS: usize = 10;

/// From one message to the next in these: later than a client has to be told.
const RARELY: Duration = Duration::from_secs(10);

/// How many clients there are.
const CLIENTS: usize = 48;

/// How many channels each of them follows, and how many more of the rare ones.
const FOLLOWS: usize = 3;
const FOLLOWS_RARE: usize = 3;

/// How often the checker looks for what is overdue.
const LOOK: Duration = Duration::from_millis(200);

/// For what this program was late, clients and nodes get so many times as long.
const SLACK: u32 = 4;

/// For how long that counts.
const SLACK_FOR: Duration = Duration::from_secs(10);

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// For people who look for its files.
    pub name: String,
    /// How long there are faults.
    pub lasts: Duration,
    /// Which Redis servers there are.
    pub topology: Topology,
    /// What the schedule, the victims and all other choices follow from.
    pub seed: u64,
    /// The kinds of faults; none, and there is only load.
    pub kinds: Vec<Kind>,
    /// What the nodes do wrong on purpose, by turns, as their debug builds understand it: `drop:300`, `repeat:300`, `swap:300`.
    pub sabotage: Vec<String>,
    /// For everybody to have everything once all is well again.
    pub settle: Duration,
    /// Messages a second, of all publishers together, while they are answered.
    pub rate: u32,
}

/// Does it. Configurations and logs are in a directory that goes with the report, unless a test fails meanwhile.
///
/// # Errors
///
/// The harness failed. What the programs did wrong is in the report.
pub async fn run(plan: &Plan) -> Result<Report> {
    let mut scene = Scene::start(&plan.name, plan.topology, &plan.sabotage).await?;
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

async fn run_on(plan: &Plan, scene: &mut Scene) -> Result<Outcome> {
    let mut dice = fastrand::Rng::with_seed(plan.seed);
    let nodes: Vec<_> = scene.nodes.iter().map(|node| node.address).collect();
    let load = Load::start(&nodes, &nodes, plan.rate, &mut dice);

    let began = Instant::now();
    let mut schedule = Schedule::new(plan.seed, &plan.kinds);
    let mut counts = BTreeMap::new();
    let mut havoc = Havoc {
        scene: &mut *scene,
        record: &load.record,
        behaviours: &load.behaviours,
        dice: dice.fork(),
        lost_writes: 0,
    };
    sleep(Duration::from_secs(1)).await;
    while began.elapsed() < plan.lasts {
        let slot = schedule.next_slot();
        havoc.inflict(&slot.kinds).await?;
        for kind in slot.kinds {
            *counts.entry(kind).or_insert(0) += 1;
        }
        sleep(slot.calm).await;
    }
    let lost_writes = havoc.lost_writes;
    let lasted = began.elapsed();
    let Finished {
        record,
        settled_after,
        stall_max,
    } = load.finish(plan.settle).await?;
    let (tally, checker) = (record.tally().clone(), record.checker());
    Ok(Outcome {
        topology: plan.topology,
        seed: plan.seed,
        lasted,
        faults: counts,
        tally,
        counts: checker.counts.clone(),
        epochs: checker.epochs(),
        lost_writes,
        settled_after,
        stall_max,
        violations: checker.violations().to_vec(),
        violations_count: checker.violations_count(),
        errors: scene.errors(),
    })
}

/// Clients, publishers and the checker, at work.
#[derive(Debug)]
pub struct Load {
    /// What they saw.
    pub record: Arc<Record>,
    /// What each client is to do.
    pub behaviours: Vec<watch::Sender<Behaviour>>,
    clients: JoinSet<()>,
    publishers: JoinSet<(usize, Result<Position>)>,
    looking: JoinSet<()>,
    stalled: watch::Receiver<Duration>,
    goes_on: watch::Sender<bool>,
}

/// What is left of a load.
#[derive(Debug)]
pub struct Finished {
    /// What all saw.
    pub record: Arc<Record>,
    /// How long it took until everybody had everything.
    pub settled_after: Duration,
    /// The longest that this program itself was late.
    pub stall_max: Duration,
}

impl Load {
    /// Starts it: clients connect to one of `for_clients`, publishers to one of `for_publishers`, and publish `rate` messages a
    /// second, all together.
    #[must_use]
    pub fn start(
        for_clients: &[SocketAddr],
        for_publishers: &[SocketAddr],
        rate: u32,
        dice: &mut fastrand::Rng,
    ) -> Self {
        let channels = channels();
        let busy = DEEP_CHANNELS + SHALLOW_CHANNELS;
        let mut follows = Vec::new();
        for _ in 0..CLIENTS {
            let mut channels_of = dice.choose_multiple(0..busy, FOLLOWS);
            channels_of.extend(dice.choose_multiple(busy..channels.len(), FOLLOWS_RARE));
            follows.push(channels_of);
        }
        let record = Arc::new(Record::new(channels, &follows));
        let mut clients = JoinSet::new();
        let mut behaviours = Vec::new();
        for (number, follows) in follows.into_iter().enumerate() {
            let (behaviour, watched) = watch::channel(Behaviour::Listen);
            behaviours.push(behaviour);
            let client = Client {
                number,
                follows,
                nodes: for_clients.to_vec(),
                record: Arc::clone(&record),
                behaviour: watched,
                dice: dice.fork(),
            };
            clients.spawn(client.live());
        }
        let (goes_on, watched) = watch::channel(true);
        let ids = Arc::new(AtomicU64::new(1));
        let mut publishers = JoinSet::new();
        for channel in 0..record.channels() {
            let publisher = Publisher {
                channel,
                nodes: for_publishers.to_vec(),
                record: Arc::clone(&record),
                ids: Arc::clone(&ids),
                interval: if channel < busy {
                    Duration::from_secs(busy as u64) / rate.max(1)
                } else {
                    RARELY
                },
                goes_on: watched.clone(),
                dice: dice.fork(),
            };
            publishers.spawn(async move { (channel, publisher.publish().await) });
        }
        let mut looking = JoinSet::new();
        let (stall_max, stalled) = watch::channel(Duration::ZERO);
        looking.spawn(look(Arc::clone(&record), stall_max));
        Self {
            record,
            behaviours,
            clients,
            publishers,
            looking,
            stalled,
            goes_on,
        }
    }

    /// Publishes no more, gives all clients `settle` to have everything, and ends them.
    ///
    /// # Errors
    ///
    /// The harness failed, or a channel's last message was not acknowledged.
    pub async fn finish(mut self, settle: Duration) -> Result<Finished> {
        let (record, quiet) = (self.record, Instant::now());
        self.goes_on.send_replace(false);
        let mut marks: BTreeMap<usize, Position> = BTreeMap::new();
        while let Some(ended) = self.publishers.join_next().await {
            let (channel, mark) = ended.context("a publisher panicked")?;
            let name = || format!("in {}", record.channel(channel));
            marks.insert(channel, mark.with_context(name)?);
        }
        let marks: Vec<Position> = marks.into_values().collect();
        let deadline = Instant::now() + settle;
        while !record.checker().unsettled(&marks).is_empty() && Instant::now() < deadline {
            sleep(LOOK).await;
        }
        let settled_after = quiet.elapsed();
        record.checker().finish(&marks, record.now());
        for behaviour in &self.behaviours {
            behaviour.send_replace(Behaviour::End);
        }
        while let Some(ended) = self.clients.join_next().await {
            ended.context("a client panicked")?;
        }
        self.looking.shutdown().await;
        let stall_max = *self.stalled.borrow();
        Ok(Finished {
            record,
            settled_after,
            stall_max,
        })
    }
}

fn channels() -> Vec<String> {
    let deep = (0..DEEP_CHANNELS).map(|number| format!("deep:{number}"));
    let shallow = (0..SHALLOW_CHANNELS).map(|number| format!("shallow:{number}"));
    let rare = (0..RARE_CHANNELS).map(|number| format!("rare:{number}"));
    deep.chain(shallow).chain(rare).collect()
}

/// Has the checker look, and notes how late that is: then everything else is late too.
async fn look(record: Arc<Record>, stall_max: watch::Sender<Duration>) {
    let mut stalls: Vec<(Instant, Duration)> = Vec::new();
    let mut next = Instant::now() + LOOK;
    loop {
        sleep_until(next).await;
        let now = Instant::now();
        let stall = now - next;
        next = now + LOOK;
        stall_max.send_modify(|max| *max = stall.max(*max));
        stalls.retain(|(at, _)| now < *at + SLACK_FOR);
        stalls.push((now, stall));
        let longest = stalls.iter().map(|(_, stall)| *stall).max();
        let slack = longest.unwrap_or_default() * SLACK;
        record.checker().look(record.now(), slack);
    }
}
