//! A Redis Cluster: which primary has which slots, kept up to date.
//!
//! ```text
//! servers ─▶ view (CLUSTER NODES) ─▶ topology: slot ─▶ shard ─▶ its primary of the moment ─▶ Connector
//!    ▲                                                  └ redirect: MOVED, ASK, TRYAGAIN, CLUSTERDOWN
//!    └ Follower: asks at intervals, after a redirect, and when a connection fails
//! ```
//! All primaries are asked, since one that is cut off says what was. While no server responds, the last topology stays in use.
//! Connections to a primary that was replaced are left at once, whether they work or not ([`Tenure`](super::tenure::Tenure)).
//!
//! Invariant: the number of a shard stays the same through a failover, and so do the connectors to it.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use deadpool_redis::redis::FromRedisValue as _;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::watch;
use tokio::time;
use tokio::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tracing::info;
use tracing::warn;

use super::Batch;
use super::Connector;
use super::chain;
use super::commands::ServerCommands;
use super::connect::ConnectOptions;
use super::connect::ExpectedRole;
use super::primary::Primary;
use super::slot::Slot;
use super::tenure::CurrentPrimary;
use crate::config::ClusterServers;
use crate::config::RedisAddress;
use crate::config::RedisServer;
use crate::metrics::Metrics;

pub(crate) mod redirect;
pub(crate) mod topology;
mod view;

use topology::Topology;
use view::Naming;
use view::Seen;

/// How often the servers are asked.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The shortest pause between two rounds of questions.
const PAUSE_MIN: Duration = Duration::from_millis(20);

/// How long a round waits for the others once a server has responded.
const GRACE: Duration = Duration::from_millis(200);

/// A cluster, as the rest of the node uses it.
pub(crate) struct Cluster {
    servers: ClusterServers,
    /// The login.
    server: RedisServer,
    options: ConnectOptions,
    topology: watch::Sender<Arc<Topology>>,
    /// The primary of each shard, by its number. They are added, and never removed.
    primaries: Mutex<Vec<Arc<CurrentPrimary>>>,
    /// Rounds of questions: how many have begun, and the last one that ended.
    rounds_begun: Mutex<u64>,
    rounds_ended: watch::Sender<u64>,
    /// A round is wanted now.
    wanted: Notify,
    /// Why nothing is known, while that is so.
    why: Mutex<String>,
}

/// Asks the servers and updates a [`Cluster`].
pub(super) struct Follower {
    cluster: Arc<Cluster>,
    metrics: Arc<Metrics>,
    /// Connections to the servers that were asked last.
    asked: HashMap<RedisAddress, ServerCommands>,
    /// How many primaries were taken.
    taken: u64,
    /// Whether the last round failed, and how many slots had no server: what was logged.
    was_silent: bool,
    uncovered: usize,
    /// A primary did not respond in the last round.
    is_incomplete: bool,
}

impl Cluster {
    /// Nothing is known of it yet; `server` is the login.
    pub(super) fn new(
        servers: &ClusterServers,
        server: &RedisServer,
        options: ConnectOptions,
    ) -> Arc<Self> {
        Arc::new(Self {
            servers: servers.clone(),
            server: server.clone(),
            options,
            topology: watch::Sender::new(Arc::new(Topology::unknown())),
            primaries: Mutex::default(),
            rounds_begun: Mutex::new(0),
            rounds_ended: watch::Sender::new(0),
            wanted: Notify::new(),
            why: Mutex::new("no server of the cluster has responded yet".to_owned()),
        })
    }

    pub(crate) fn topology(&self) -> Arc<Topology> {
        Arc::clone(&self.topology.borrow())
    }

    /// Notified when the topology has changed.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<Topology>> {
        self.topology.subscribe()
    }

    /// Notified after each round of questions, also if nothing has changed.
    pub(crate) fn rounds(&self) -> watch::Receiver<u64> {
        self.rounds_ended.subscribe()
    }

    /// Why no server has `slot`, or why none is known at all.
    pub(crate) fn why_uncovered(&self, slot: Option<Slot>) -> String {
        let why = self.why.lock();
        match slot {
            Some(slot) if why.is_empty() => format!("no server of the cluster has slot {slot}"),
            _ => why.clone(),
        }
    }

    /// Why no topology is known, if none is.
    pub(crate) fn why_unknown(&self) -> Option<String> {
        let why = self.why.lock();
        let is_known = self.topology.borrow().numbers().next().is_some();
        (!is_known).then(|| why.clone())
    }

    /// How long commands may take, redirects included.
    pub(crate) fn wait_max(&self) -> Duration {
        self.options.connect_timeout + self.options.response_timeout
    }

    pub(crate) fn is_unready_when_partial(&self) -> bool {
        self.servers.is_unready_when_partial
    }

    /// Has the servers asked soon.
    pub(crate) fn refresh(&self) {
        self.wanted.notify_one();
    }

    /// Waits until servers that are asked from now on have responded, `deadline` at most.
    pub(crate) async fn refreshed(&self, deadline: Instant) {
        let round = *self.rounds_begun.lock() + 1;
        let mut ended = self.rounds_ended.subscribe();
        self.refresh();
        // An error or a timeout: the caller goes on with what is known.
        let _ = time::timeout_at(deadline, ended.wait_for(|ended| round <= *ended)).await;
    }

    /// Connects to the primary of shard `number`, whichever server that is.
    pub(crate) fn connector(&self, number: usize) -> Connector {
        let primary = self.primary(number);
        Connector::to_primary(primary, self.server.clone(), self.options.clone())
    }

    /// Connects to the server at an address of a redirect, if it is a primary.
    pub(crate) fn connector_to(&self, address: &RedisAddress) -> Connector {
        let role = ExpectedRole::Primary;
        self.connector_at(&self.reached(address), role)
    }

    fn connector_at(&self, address: &RedisAddress, role: ExpectedRole) -> Connector {
        Connector::to(
            address.clone(),
            self.server.clone(),
            role,
            self.options.clone(),
        )
    }

    /// Where the server is reached that the cluster names so.
    fn reached(&self, address: &RedisAddress) -> RedisAddress {
        let mut announced = self.servers.announce.iter();
        let found = announced.find(|(named, _)| named == address);
        found.map_or(address, |(_, reached)| reached).clone()
    }

    fn primary(&self, number: usize) -> Arc<CurrentPrimary> {
        let mut primaries = self.primaries.lock();
        while primaries.len() <= number {
            let name = format!("cluster shard {}", primaries.len());
            primaries.push(Arc::new(CurrentPrimary::in_cluster(name)));
        }
        Arc::clone(&primaries[number])
    }
}

impl Follower {
    pub(super) fn new(cluster: Arc<Cluster>, metrics: Arc<Metrics>) -> Self {
        Self {
            cluster,
            metrics,
            asked: HashMap::new(),
            taken: 0,
            was_silent: false,
            uncovered: 0,
            is_incomplete: true,
        }
    }

    /// Follows the cluster until `shutdown`. Afterwards the last topology stays in use.
    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            never = self.follow() => match never {},
        }
    }

    async fn follow(&mut self) -> Infallible {
        let cluster = Arc::clone(&self.cluster);
        loop {
            let round = {
                let mut begun = cluster.rounds_begun.lock();
                *begun += 1;
                *begun
            };
            let primaries = cluster.primaries.lock().clone();
            let failures: Vec<_> = primaries.iter().map(|primary| primary.failures()).collect();
            let views = self.ask().await;
            self.decide(views);
            cluster.rounds_ended.send_replace(round);
            time::sleep(PAUSE_MIN).await;
            let mut failed: FuturesUnordered<_> = failures
                .into_iter()
                .map(|mut failures| async move { failures.changed().await })
                .collect();
            tokio::select! {
                () = cluster.wanted.notified() => {}
                Some(Ok(())) = failed.next() => {}
                () = time::sleep(POLL_INTERVAL) => {}
            }
        }
    }

    /// The servers to ask: the primaries; the others too if not all of those have responded.
    fn to_ask(&self) -> BTreeSet<RedisAddress> {
        let topology = self.cluster.topology();
        let primaries = topology
            .shards
            .iter()
            .filter_map(|shard| shard.primary.as_ref());
        let mut all: BTreeSet<_> = primaries.map(|primary| primary.address.clone()).collect();
        if all.is_empty() || self.is_incomplete {
            all.extend(self.cluster.servers.servers.iter().cloned());
            let replicas = topology
                .shards
                .iter()
                .flat_map(|shard| shard.replicas.values());
            all.extend(replicas.flatten().cloned());
        }
        all
    }

    /// What the servers say. Those that respond much later than others are left out.
    async fn ask(&mut self) -> Result<Vec<Vec<Seen>>, String> {
        let all = self.to_ask();
        self.asked.retain(|address, _| all.contains(address));
        for address in &all {
            if !self.asked.contains_key(address) {
                let connector = self.cluster.connector_at(address, ExpectedRole::Any);
                let commands = ServerCommands::new(connector, "cluster");
                self.asked.insert(address.clone(), commands);
            }
        }
        let naming = match self.cluster.server.tls {
            Some(_) => Naming::HostName,
            None => Naming::Address,
        };
        let mut pending: FuturesUnordered<_> = { self.asked.iter() }
            .map(|(address, commands)| async move { (address, view_of(commands, naming).await) })
            .collect();
        let mut silent = all;
        let (mut views, mut whys) = (Vec::new(), Vec::new());
        // Without any response, the last one to fail ends this.
        let mut end = None;
        loop {
            let next = async {
                match end {
                    Some(end) => time::timeout_at(end, pending.next()).await.unwrap_or(None),
                    None => pending.next().await,
                }
            };
            match next.await {
                None => break,
                Some((address, Ok(view))) => {
                    silent.remove(address);
                    views.push(self.reachable(view, address));
                    end.get_or_insert_with(|| Instant::now() + GRACE);
                }
                Some((address, Err(why))) => {
                    debug!(redis = %address, why, "a server of the cluster does not respond");
                    whys.push(format!("{address}: {why}"));
                }
            }
        }
        drop(pending);
        self.is_incomplete = !silent.is_empty();
        for address in &silent {
            if let Some(commands) = self.asked.get(address) {
                commands.suspect();
            }
        }
        match views.is_empty() {
            true => Err(format!(
                "no server of the cluster responds: {}",
                whys.join("; ")
            )),
            false => Ok(views),
        }
    }

    /// Replaces addresses by those that are reached from here.
    fn reachable(&self, mut view: Vec<Seen>, asked: &RedisAddress) -> Vec<Seen> {
        for seen in &mut view {
            seen.address = match seen.address.take() {
                Some(address) => Some(self.cluster.reached(&address)),
                // It has none that it knows of.
                None => seen.is_asked.then(|| asked.clone()),
            };
        }
        view
    }

    fn decide(&mut self, views: Result<Vec<Vec<Seen>>, String>) {
        let before = self.cluster.topology();
        let views = match views {
            Ok(views) => views,
            Err(why) => {
                if !self.was_silent {
                    let has_topology = before.numbers().next().is_some();
                    warn!(why, has_topology, "no server of the redis cluster responds");
                }
                self.was_silent = true;
                *self.cluster.why.lock() = why;
                return;
            }
        };
        if std::mem::take(&mut self.was_silent) {
            info!("servers of the redis cluster respond again");
        }
        let next = before.next(&views);
        *self.cluster.why.lock() = match next.numbers().next() {
            Some(_) => String::new(),
            None => "no server of the cluster has slots".to_owned(),
        };
        self.log_uncovered(&next);
        if next != *before {
            self.take(&before, next);
        }
    }

    fn log_uncovered(&mut self, next: &Topology) {
        let uncovered = next.uncovered();
        if uncovered != self.uncovered {
            match uncovered {
                0 => info!("every slot of the redis cluster has a server"),
                _ => warn!(
                    slots = uncovered,
                    "slots of the redis cluster have no server: what belongs to them is not available"
                ),
            }
            self.uncovered = uncovered;
        }
        let uncovered = i64::try_from(uncovered).unwrap_or(i64::MAX);
        self.metrics.broker_slots_uncovered.set(uncovered);
    }

    /// Uses `next` from now on.
    fn take(&mut self, before: &Topology, next: Topology) {
        let moved = before.moved_to(&next);
        for (number, shard) in next.shards.iter().enumerate() {
            let current = self.cluster.primary(number);
            let last = before
                .shards
                .get(number)
                .and_then(|shard| shard.primary.as_ref());
            let is_same = |last: &topology::Server| {
                let now = shard.primary.as_ref();
                now.is_some_and(|now| (&now.id, &now.address) == (&last.id, &last.address))
            };
            let address = |server: &topology::Server| server.address.to_string();
            if let Some(last) = last
                && !is_same(last)
            {
                self.metrics.broker_primary(&address(last), false);
            }
            let Some(now) = &shard.primary else {
                if last.is_some() {
                    info!(
                        shard = number,
                        "a shard of the redis cluster has no slots any more"
                    );
                    current.clear("it has no slots any more".to_owned());
                }
                continue;
            };
            self.metrics.broker_primary(&address(now), true);
            if 0 < moved[number] {
                let (redis, slots) = (&now.address, moved[number]);
                info!(%redis, slots, "slots of the redis cluster have moved to this server");
                self.metrics.broker_slots_moved(&address(now), slots as u64);
            }
            if last.is_some_and(is_same) {
                continue;
            }
            self.taken += 1;
            match last {
                Some(last) => {
                    let (redis, previous) = (&now.address, &last.address);
                    warn!(shard = number, %redis, %previous, "another server is the primary of this shard now");
                    self.metrics.broker_primary_changes.inc();
                }
                None => {
                    info!(shard = number, redis = %now.address, slots = shard.slots, "found a primary of the redis cluster");
                }
            }
            current.set(Primary {
                address: now.address.clone(),
                // Of the slots, not of failovers: it changes when slots move too.
                epoch: 0,
                number: self.taken,
            });
        }
        self.cluster.topology.send_replace(Arc::new(next));
    }
}

async fn view_of(commands: &ServerCommands, naming: Naming) -> Result<Vec<Seen>, String> {
    let mut batch = Batch::new();
    batch.cmd("CLUSTER").arg("NODES");
    let replies = commands.run(&batch).await;
    let mut replies = replies.map_err(|error| chain(&error))?;
    let text = replies.values.pop().map(String::from_redis_value);
    let text = text
        .and_then(Result::ok)
        .ok_or("its reply to CLUSTER NODES is no text")?;
    view::parse(&text, naming).map_err(|error| error.to_string())
}
