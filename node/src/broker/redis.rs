//! The broker of many nodes: Redis Pub/Sub.
//!
//! ```text
//! publish ─▶ lane (bounded, in order) ─▶ publisher ─▶ Redis ─▶ subscriber ─▶ hub
//!             one for each share of the channels       ▲          │
//!                              monitor ── probe ───────┴──────────┘
//! ```
//! [`lane`] holds what waits, [`publisher`] sends it in batches over one pooled connection that it keeps,
//! [`subscriber`] reads what comes back over a connection of its own, [`monitor`] sends probes the whole
//! way round and so decides readiness; their answers show a server that was demoted ([`whereabouts`]).
//!
//! When Redis is away, publications wait in their lanes, bounded in bytes and time. What was written when
//! a connection broke and not answered is given up: it may have arrived, and a second copy is worse than
//! a counted loss. What was not written yet goes out over the next connection. Publications of other
//! nodes that were missed meanwhile are gone: Pub/Sub keeps nothing. That gap is counted and logged.

use std::hash::DefaultHasher;
use std::hash::Hash;
use std::hash::Hasher;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::broker::Ask;
use crate::broker::Broker;
use crate::broker::Deliver;
use crate::broker::NotReady;
use crate::broker::PublishError;
use crate::broker::Shard;
use crate::broker::Started;
use crate::broker::Store;
use crate::broker::StoreError;
use crate::broker::Stored;
use crate::broker::Streams;
use crate::broker::TryPublishError;
use crate::broker::Unavailable;
use crate::broker::Until;
use crate::broker::history::Page;
use crate::config;
use crate::metrics::Metrics;
use crate::protocol::channel::ChannelName;
use crate::redis;
use crate::redis::Commands;

mod drops;
mod fence;
mod health;
mod lane;
mod monitor;
mod outcome;
mod publisher;
mod reader;
mod scripts;
mod sharded;
mod subscriber;
mod subscriptions;
mod whereabouts;

use drops::Drops;
use lane::Lane;
use monitor::AllReady;
use monitor::Monitor;
use reader::Reader;
use sharded::ShardedBroker;
use subscriptions::Confirmation;
use subscriptions::Counts;
use subscriptions::Subscriptions;

/// What the broker is started into.
#[derive(Clone)]
pub(super) struct Surroundings<'a> {
    pub(super) node_id: &'a str,
    pub(super) deliver: Arc<dyn Deliver>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) shutdown: CancellationToken,
}

/// The handle for everyone, and what the tasks share.
struct RedisBroker {
    config: config::Redis,
    node_id: String,
    /// Random, so that two processes with one node id never take each other's probes for their own.
    instance: u64,
    /// As many as are configured, and behind them the one for what has to be replicated.
    lanes: Vec<Lane>,
    subscriptions: Mutex<Subscriptions>,
    /// A wish has changed.
    wishes: Notify,
    probe_channel: ChannelName,
    shard: Shard,
    reader: Reader,
    monitor: Monitor,
    /// For each lane: sent when its connection may be dead without having said so.
    lane_suspects: Vec<watch::Sender<()>>,
    /// Whether everything that is wanted is subscribed: what is published now comes back.
    hearing: watch::Sender<bool>,
    /// Sent when the subscriber's connection is open and yet brings nothing, or is to the wrong server.
    subscribing_stalled: watch::Sender<()>,
    /// Sent when the server behind the subscriber's connection may not have brought everything.
    server_changed: watch::Sender<()>,
    drops: Arc<Drops>,
    deliver: Arc<dyn Deliver>,
    metrics: Arc<Metrics>,
}

/// Starts all tasks, for each server its own; connections come in the background.
pub(super) fn start(config: &config::Redis, surroundings: &Surroundings<'_>) -> Started {
    let configs = config.shards();
    let readiness = Arc::new(AllReady::new(configs.len(), &surroundings.metrics));
    let mut tasks = JoinSet::new();
    let mut shards = Vec::with_capacity(configs.len());
    for (index, config) in configs.into_iter().enumerate() {
        let identity = (Shard(index), Arc::clone(&readiness));
        shards.push(start_one(
            config,
            identity,
            surroundings.clone(),
            &mut tasks,
        ));
    }
    let broker: Arc<dyn Streams> = match <[_; 1]>::try_from(shards) {
        Ok([alone]) => alone,
        Err(shards) => Arc::new(ShardedBroker::new(shards)),
    };
    Started { broker, tasks }
}

fn start_one(
    config: config::Redis,
    (shard, readiness): (Shard, Arc<AllReady>),
    surroundings: Surroundings<'_>,
    tasks: &mut JoinSet<()>,
) -> Arc<RedisBroker> {
    let Surroundings {
        node_id,
        deliver,
        metrics,
        shutdown,
    } = surroundings;
    let instance = fastrand::u64(..);
    let probe_channel = redis::probe_channel(node_id, instance);
    let drops = Arc::new(Drops::new(Arc::clone(&metrics)));
    let connection_name = redis::connection_name(node_id, "reader", instance);
    let lane = |_| Lane::new(&config, Arc::clone(&drops), Arc::clone(&metrics));
    let mut subscriptions = Subscriptions::default();
    subscriptions.want(&probe_channel, true);
    let broker = Arc::new(RedisBroker {
        node_id: node_id.to_owned(),
        instance,
        lanes: (0..=config.lanes).map(lane).collect(),
        subscriptions: Mutex::new(subscriptions),
        wishes: Notify::new(),
        probe_channel,
        shard,
        reader: Reader::new(Commands::new(&config, connection_name)),
        monitor: Monitor::new(&config, readiness, Arc::clone(&metrics)),
        lane_suspects: (0..=config.lanes).map(|_| watch::Sender::new(())).collect(),
        hearing: watch::Sender::new(false),
        subscribing_stalled: watch::Sender::new(()),
        server_changed: watch::Sender::new(()),
        drops,
        deliver,
        metrics,
        config,
    });
    let pool = publisher::pool(&broker.config);
    for index in 0..broker.lanes.len() {
        let lane = publisher::run(Arc::clone(&broker), index, pool.clone(), shutdown.clone());
        tasks.spawn(lane);
    }
    tasks.spawn(subscriber::run(Arc::clone(&broker), shutdown.clone()));
    tasks.spawn(monitor::run(Arc::clone(&broker), shutdown));
    broker
}

impl RedisBroker {
    /// The lane of a channel, always the same, so that its publications keep their order.
    fn lane(&self, channel: &ChannelName) -> &Lane {
        let mut hasher = DefaultHasher::new();
        channel.hash(&mut hasher);
        let lanes = self.config.lanes as u64;
        let index = usize::try_from(hasher.finish() % lanes).expect("below the number of lanes");
        &self.lanes[index]
    }

    fn suspect_lane(&self, index: usize) {
        self.lane_suspects[index].send_replace(());
    }

    fn suspect_all_lanes(&self) {
        (0..self.lanes.len()).for_each(|index| self.suspect_lane(index));
    }

    fn wish(&self, channel: &ChannelName, is_wanted: bool) {
        if self.change_subscriptions(|subscriptions| subscriptions.want(channel, is_wanted)) {
            self.wishes.notify_one();
        }
    }

    /// Changes what is wanted or confirmed, and counts it.
    fn change_subscriptions<T>(&self, change: impl FnOnce(&mut Subscriptions) -> T) -> T {
        let mut subscriptions = self.subscriptions.lock();
        let before = subscriptions.counts();
        let result = change(&mut subscriptions);
        self.count_subscriptions(before, &subscriptions);
        result
    }

    /// Counts what has changed since `before`.
    fn count_subscriptions(&self, before: Counts, subscriptions: &Subscriptions) {
        // Our own probes are no client's wish. They are wanted from the beginning to the end.
        let for_clients = |count: usize| i64::try_from(count.saturating_sub(1)).unwrap_or(i64::MAX);
        let (metrics, now) = (&self.metrics, subscriptions.counts());
        let wanted = for_clients(now.wanted) - for_clients(before.wanted);
        let confirmed = for_clients(now.confirmed) - for_clients(before.confirmed);
        metrics.subscriptions_wanted.inc_by(wanted);
        metrics.subscriptions.inc_by(confirmed);
    }
}

#[async_trait]
impl Broker for RedisBroker {
    fn try_publish(&self, channel: &ChannelName, data: Bytes) -> Result<(), TryPublishError> {
        self.lane(channel).try_publish(channel, data)
    }

    async fn publish(&self, channel: &ChannelName, data: Bytes) -> Result<(), PublishError> {
        self.lane(channel).publish(channel, data).await
    }

    fn subscribe(&self, channel: &ChannelName) {
        self.wish(channel, true);
    }

    fn unsubscribe(&self, channel: &ChannelName) {
        self.wish(channel, false);
    }

    fn readiness(&self) -> Result<(), NotReady> {
        self.monitor.readiness().map_err(NotReady)
    }
}

#[async_trait]
impl Streams for RedisBroker {
    async fn subscribed(&self, channel: &ChannelName) -> Result<(), Unavailable> {
        let confirmed = self.subscriptions.lock().confirmation(channel);
        let not_wanted = || Unavailable(format!("nobody wants `{channel}`"));
        match confirmed {
            Confirmation::Here => Ok(()),
            Confirmation::Awaited(confirmed) => confirmed.await.map_err(|_| not_wanted()),
            Confirmation::Never => Err(not_wanted()),
        }
    }

    fn shard(&self, _: &ChannelName) -> Shard {
        self.shard
    }

    async fn store(&self, store: Store) -> Result<Stored, StoreError> {
        let wire = ChannelName::wire(&store.channel);
        match store.until {
            Until::Stored => self.lane(&wire).store(store).await,
            Until::Replicated => self.lanes[self.config.lanes].store(store).await,
        }
    }

    async fn history(&self, ask: Ask) -> Result<Page, Unavailable> {
        self.reader.history(&ask).await
    }

    async fn remove_history(&self, channel: &ChannelName) -> Result<(), Unavailable> {
        self.reader.remove_history(channel).await
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
