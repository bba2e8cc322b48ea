//! Causeway beside Centrifugo and Socket.IO: three nodes of each over Redis, of which all restart or Redis fails over, under the same
//! load, and what each client noticed.
//!
//! ```text
//! publishers ──▶ front ──▶ three nodes ◀──▶ Redis, or a primary with replicas and Sentinels
//!                  ▲            ▲            ▲
//! clients ◀────────┘            │ restarts   │ its primary is killed
//!    └──▶ tally ──▶ report
//! ```
//! `servers` starts everything, `client` speaks as the system's own SDK does and waits as long before it connects again, each
//! `publisher` numbers the messages of one channel, and the `tally` compares what was accepted with what each client received.

use std::{fmt, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep},
};

mod causeway;
mod centrifugo;
mod client;
mod haproxy;
mod publisher;
mod report;
mod sdk;
mod servers;
mod socketio;
mod tally;

use crate::harness::{descriptors, scratch::Scratch, wait};
use client::Client;
use publisher::Publisher;
pub use report::comparison;
use servers::{Servers, Setting};
use tally::Tally;
pub use tally::{Seen, Window};

/// Nodes of each system.
const NODES: usize = 3;

/// Clients that connect at a time, at first.
const CONNECTING: usize = 48;

/// How long the clients may take to be connected.
const JOIN: Duration = Duration::from_secs(120);

/// For all clients to have everything at the end.
const SETTLE: Duration = Duration::from_secs(30);

/// One of the systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// `causeway-node` behind `causeway-proxy`: channels with a history.
    Causeway,
    /// Centrifugo behind HAProxy: channels with a history and recovery.
    Centrifugo,
    /// Socket.IO with its Redis adapter behind HAProxy.
    SocketIo,
    /// Socket.IO with its Redis streams adapter and connection state recovery behind HAProxy.
    SocketIoStreams,
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// All nodes get SIGTERM and are started again, one after the other, so many times.
    Restart {
        /// How many times.
        rounds: usize,
    },
    /// The primary of Redis is killed, and the Sentinels make a replica the primary, so many times.
    Failover {
        /// How many times.
        rounds: usize,
        /// How long a server is silent before a Sentinel calls it down.
        down_after: Duration,
    },
}

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// To which system.
    pub system: System,
    /// What happens.
    pub happening: Happening,
    /// How many clients there are, each on one channel.
    pub clients: usize,
    /// Messages a second, in half as many channels.
    pub rate: u32,
    /// Before the first event, and after each.
    pub calm: Duration,
}

/// What became of an event.
#[derive(Clone, Debug)]
pub struct Happened {
    /// What it is called.
    pub name: String,
    /// How long a node drained, or was no primary named.
    pub first: Duration,
    /// How long it took until the node was ready again, or another primary was named.
    pub all: Duration,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was done.
    pub plan: Plan,
    /// The version of the nodes.
    pub version: String,
    /// What became of each event.
    pub events: Vec<Happened>,
    /// What clients and publishers saw.
    pub seen: Seen,
}

impl System {
    /// In the order of the report.
    pub const ALL: [Self; 4] = [
        Self::Causeway,
        Self::Centrifugo,
        Self::SocketIo,
        Self::SocketIoStreams,
    ];

    /// What it is called in the report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Causeway => "causeway",
            Self::Centrifugo => "centrifugo",
            Self::SocketIo => "socket.io",
            Self::SocketIoStreams => "socket.io-streams",
        }
    }

    /// What stands before the nodes.
    #[must_use]
    pub fn front(self) -> &'static str {
        match self {
            Self::Causeway => "causeway-proxy",
            _ => haproxy::NAME,
        }
    }

    /// The version that is installed.
    ///
    /// # Errors
    ///
    /// None is; the error says what to do about it.
    pub fn version(self) -> Result<String> {
        if self != Self::Causeway {
            haproxy::version()?;
        }
        match self {
            Self::Causeway => causeway::version(),
            Self::Centrifugo => centrifugo::version(),
            Self::SocketIo => socketio::version("@socket.io/redis-adapter"),
            Self::SocketIoStreams => socketio::version("@socket.io/redis-streams-adapter"),
        }
    }
}

impl Happening {
    /// What it is called on the command line and in the report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Restart { .. } => "rivals",
            Self::Failover { .. } => "failover",
        }
    }
}

impl Plan {
    /// Each channel has a message every half second.
    fn channels(&self) -> usize {
        (self.rate as usize / 2).max(1)
    }

    fn interval(&self) -> Duration {
        Duration::from_secs(self.channels() as u64) / self.rate.max(1)
    }
}

impl Outcome {
    /// What is wrong with it, if it is ours: a restart is to be noticed by no client, and a failover may lose nothing silently.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        let seen = &self.seen;
        let (ended, lost) = match self.plan.happening {
            Happening::Restart { .. } => (seen.ended + seen.refused, seen.lost),
            Happening::Failover { .. } => (0, seen.lost_silently),
        };
        let all = [
            ("connections ended or were refused", ended),
            ("messages were lost", lost),
            ("messages were repeated", seen.repeated),
            ("messages were out of order", seen.out_of_order),
        ];
        let found = all.into_iter().filter(|(_, count)| 0 < *count);
        found
            .map(|(what, count)| format!("{count} {what}"))
            .collect()
    }

    /// Whether our programs failed. What clients noticed of other systems is a result and no failure.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.plan.system == System::Causeway && !self.failures().is_empty()
    }
}

/// Does it. Configurations and logs are in the directory that is returned.
///
/// # Errors
///
/// The harness failed.
pub async fn run(plan: &Plan) -> Result<(Outcome, Scratch)> {
    descriptors::raise_limit()?;
    let version = plan.system.version()?;
    let name = format!("{}-{}", plan.happening.name(), plan.system.name());
    let scratch = Scratch::new(&name)?;
    match run_in(plan, &scratch).await {
        Ok((events, seen)) => {
            let plan = *plan;
            let outcome = Outcome {
                plan,
                version,
                events,
                seen,
            };
            Ok((outcome, scratch))
        }
        Err(error) => {
            let kept = scratch.keep();
            Err(error.context(format!("files of this run: {}", kept.display())))
        }
    }
}

async fn run_in(plan: &Plan, scratch: &Scratch) -> Result<(Vec<Happened>, Seen)> {
    let setting = match plan.happening {
        Happening::Restart { .. } => Setting::OneRedis,
        // A server that was killed stays away.
        Happening::Failover { rounds, down_after } => Setting::Sentinels {
            replicas: rounds + 1,
            down_after,
        },
    };
    let mut servers = Servers::start(plan.system, NODES, setting, scratch.path()).await?;
    let channels = plan.channels();
    let tally = Arc::new(Tally::new(plan.clients, channels));
    let (is_over, watched) = watch::channel(false);
    let connecting = Arc::new(Semaphore::new(CONNECTING));
    let mut clients = JoinSet::new();
    for number in 0..plan.clients {
        let client = Client {
            number,
            channel: channel_name(number % channels),
            system: plan.system,
            front: servers.front(),
            tally: Arc::clone(&tally),
            is_over: watched.clone(),
            connecting: Arc::clone(&connecting),
        };
        clients.spawn(client.live());
    }
    wait::until("every client to be connected", JOIN, async || {
        (tally.connections() == plan.clients).then_some(())
    })
    .await
    .with_context(|| format!("{:?}", tally.seen().reasons))?;

    let (goes_on, may_publish) = watch::channel(true);
    let mut publishers = JoinSet::new();
    for channel in 0..channels {
        let publisher = Publisher {
            channel,
            name: channel_name(channel),
            system: plan.system,
            front: servers.front(),
            interval: plan.interval(),
            tally: Arc::clone(&tally),
            goes_on: may_publish.clone(),
        };
        publishers.spawn(publisher.publish());
    }
    sleep(plan.calm * 2).await;
    tally.end_window("before");
    let events = happen(plan, &mut servers, &tally).await?;

    goes_on.send_replace(false);
    while let Some(ended) = publishers.join_next().await {
        ended.context("a publisher panicked")?;
    }
    // Who has not received everything then has lost it.
    let settled = wait::until("every client to have everything", SETTLE, async || {
        tally.is_settled().then_some(())
    });
    settled.await.ok();
    is_over.send_replace(true);
    while let Some(ended) = clients.join_next().await {
        ended.context("a client panicked")?;
    }
    let seen = tally.seen();
    ensure!(0 < seen.messages, "no message reached a client");
    Ok((events, seen))
}

async fn happen(plan: &Plan, servers: &mut Servers, tally: &Tally) -> Result<Vec<Happened>> {
    let names: Vec<(String, usize)> = match plan.happening {
        Happening::Restart { rounds } => (0..rounds)
            .flat_map(|round| (0..NODES).map(move |node| (round, node)))
            .map(|(round, node)| (format!("round {}, node {}", round + 1, node + 1), node))
            .collect(),
        Happening::Failover { rounds, .. } => (0..rounds)
            .map(|round| (format!("failover {}", round + 1), round))
            .collect(),
    };
    let mut events = Vec::new();
    for (name, number) in names {
        let began = Instant::now();
        let first = match plan.happening {
            Happening::Restart { .. } => servers.restart(number).await,
            Happening::Failover { .. } => servers.fail_over().await,
        };
        let first = first.with_context(|| name.clone())?;
        let all = began.elapsed();
        sleep(plan.calm).await;
        tally.end_window(&name);
        events.push(Happened { name, first, all });
    }
    Ok(events)
}

fn channel_name(number: usize) -> String {
    format!("past:{number}")
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan {
            system,
            happening,
            clients,
            rate,
            ..
        } = self.plan;
        writeln!(
            f,
            "{} of {}: {clients} clients, {rate} messages a second in {} channels",
            happening.name(),
            system.name(),
            self.plan.channels(),
        )?;
        for Happened { name, first, all } in &self.events {
            writeln!(f, "  {name}: {first:.1?}, all {all:.1?}")?;
        }
        for Window { name, pauses } in &self.seen.windows {
            writeln!(
                f,
                "  {name:<20} p50 {:>7.1?} p99 {:>7.1?} most {:>7.1?}",
                pauses.quantile(500),
                pauses.quantile(990),
                pauses.most()
            )?;
        }
        let longest = &self.seen.longest;
        writeln!(
            f,
            "  longest of each      p50 {:>7.1?} p99 {:>7.1?} most {:>7.1?}",
            longest.quantile(500),
            longest.quantile(990),
            longest.most()
        )?;
        let Seen {
            messages,
            accepted,
            failed_attempts,
            ended,
            refused,
            lost,
            lost_silently,
            repeated,
            out_of_order,
            reasons,
            ..
        } = &self.seen;
        writeln!(
            f,
            "  {accepted} messages were accepted, after {failed_attempts} attempts that failed; {messages} reached a client"
        )?;
        writeln!(
            f,
            "  {ended} ended, {refused} refused, {lost} lost, {lost_silently} of them silently, {repeated} repeated, {out_of_order} out of order"
        )?;
        for (reason, count) in reasons {
            writeln!(f, "    {count} times: {reason}")?;
        }
        Ok(())
    }
}
