//! The broker for several nodes: Redis Pub/Sub.
//!
//! ```text
//! publish ─▶ publish queue (bounded, in order) ─▶ publisher ─▶ Redis ─▶ subscriber ─▶ hub
//!           one for each subset of the channels        ▲          │
//!                              monitor ── probe ───────┴──────────┘
//! ```
//! [`publish_queue`] holds pending publications, [`publisher`] sends them in batches over one pooled connection that it keeps,
//! [`subscriber`] receives over a connection of its own, [`monitor`] sends probes over the whole round trip
//! and so decides readiness; the replies to probes reveal a server that was demoted ([`primary_check`]).
//!
//! While Redis is unavailable, publications wait in their publish queues, bounded in bytes and time. Publications
//! that were written without a reply when a connection broke are not retried: they may have arrived, and a
//! duplicate is worse than a counted loss. Those not written yet are sent over the next connection. Publications
//! of other nodes in between are missed: Pub/Sub keeps nothing. That gap is counted and logged.

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
use crate::redis::Server;

mod drop_counters;
mod health;
mod monitor;
mod outcome;
mod primary_check;
mod publish_queue;
mod publisher;
mod reader;
mod scripts;
mod sharded;
mod subscriber;
mod subscriptions;

use drop_counters::DropCounters;
use monitor::AllReady;
use monitor::Monitor;
use publish_queue::PublishQueue;
use reader::Reader;
use sharded::ShardedBroker;
use subscriptions::Confirmation;
use subscriptions::Counts;
use subscriptions::Subscriptions;

/// What [`start`] needs from the rest of the node.
#[derive(Clone)]
pub(super) struct Dependencies<'a> {
    pub(super) node_id: &'a str,
    pub(super) deliver: Arc<dyn Deliver>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) shutdown: CancellationToken,
}

/// The shared handle, and the state that the tasks share.
struct RedisBroker {
    config: config::Redis,
    server: Server,
    /// As many as are configured, followed by the one for publications that wait for a replica.
    queues: Vec<PublishQueue>,
    subscriptions: Mutex<Subscriptions>,
    /// The wanted subscriptions have changed.
    subscription_changes: Notify,
    probe_channel: ChannelName,
    shard: Shard,
    reader: Reader,
    monitor: Monitor,
    /// For each publish queue: sent when its connection may be dead without having said so.
    queue_suspects: Vec<watch::Sender<()>>,
    /// Whether all wanted channels are subscribed, so that publications are received.
    subscribed: watch::Sender<bool>,
    /// Sent when the subscriber's connection is open but delivers nothing, or leads to the wrong server.
    subscribing_stalled: watch::Sender<()>,
    /// Sent when the subscriber's server may not have delivered everything.
    server_changed: watch::Sender<()>,
    drop_counters: Arc<DropCounters>,
    deliver: Arc<dyn Deliver>,
    metrics: Arc<Metrics>,
}

/// Starts the tasks of each server; connections are made in the background.
pub(super) fn start(servers: &[Server], dependencies: &Dependencies<'_>) -> Started {
    let readiness = Arc::new(AllReady::new(servers.len(), &dependencies.metrics));
    let mut tasks = JoinSet::new();
    let mut shards = Vec::with_capacity(servers.len());
    for (index, server) in servers.iter().enumerate() {
        let identity = (Shard(index), Arc::clone(&readiness));
        shards.push(start_one(
            server.clone(),
            identity,
            dependencies.clone(),
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
    server: Server,
    (shard, readiness): (Shard, Arc<AllReady>),
    dependencies: Dependencies<'_>,
    tasks: &mut JoinSet<()>,
) -> Arc<RedisBroker> {
    let Dependencies {
        node_id,
        deliver,
        metrics,
        shutdown,
    } = dependencies;
    // Random, so that two processes with one node id never mistake each other's probes for their own.
    let probe_channel = redis::probe_channel(node_id, fastrand::u64(..));
    let drop_counters = Arc::new(DropCounters::new(Arc::clone(&metrics)));
    let config = server.config.clone();
    let queue = |_| PublishQueue::new(&config, Arc::clone(&drop_counters), Arc::clone(&metrics));
    let mut subscriptions = Subscriptions::default();
    subscriptions.want(&probe_channel, true);
    let broker = Arc::new(RedisBroker {
        queues: (0..=config.publish_queues).map(queue).collect(),
        subscriptions: Mutex::new(subscriptions),
        subscription_changes: Notify::new(),
        probe_channel,
        shard,
        reader: Reader::new(&server),
        monitor: Monitor::new(&server, readiness, Arc::clone(&metrics)),
        queue_suspects: (0..=config.publish_queues)
            .map(|_| watch::Sender::new(()))
            .collect(),
        subscribed: watch::Sender::new(false),
        subscribing_stalled: watch::Sender::new(()),
        server_changed: watch::Sender::new(()),
        drop_counters,
        deliver,
        metrics,
        config,
        server,
    });
    for index in 0..broker.queues.len() {
        let queue = publisher::run(Arc::clone(&broker), index, shutdown.clone());
        tasks.spawn(queue);
    }
    tasks.spawn(subscriber::run(Arc::clone(&broker), shutdown.clone()));
    tasks.spawn(monitor::run(Arc::clone(&broker), shutdown));
    broker
}

impl RedisBroker {
    /// The publish queue of a channel, always the same, so that its publications keep their order.
    fn queue(&self, channel: &ChannelName) -> &PublishQueue {
        let mut hasher = DefaultHasher::new();
        channel.hash(&mut hasher);
        let queues = self.config.publish_queues as u64;
        let index = usize::try_from(hasher.finish() % queues).expect("below the number of queues");
        &self.queues[index]
    }

    fn suspect_queue(&self, index: usize) {
        self.queue_suspects[index].send_replace(());
    }

    fn suspect_all_queues(&self) {
        (0..self.queues.len()).for_each(|index| self.suspect_queue(index));
    }

    fn want(&self, channel: &ChannelName, is_wanted: bool) {
        if self.change_subscriptions(|subscriptions| subscriptions.want(channel, is_wanted)) {
            self.subscription_changes.notify_one();
        }
    }

    /// Changes wanted or confirmed subscriptions, and updates the metrics.
    fn change_subscriptions<T>(&self, change: impl FnOnce(&mut Subscriptions) -> T) -> T {
        let mut subscriptions = self.subscriptions.lock();
        let before = subscriptions.counts();
        let result = change(&mut subscriptions);
        self.count_subscriptions(before, &subscriptions);
        result
    }

    /// Updates the metrics by the change since `before`.
    fn count_subscriptions(&self, before: Counts, subscriptions: &Subscriptions) {
        // The probe channel, which is always wanted, is not counted.
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
        self.queue(channel).try_publish(channel, data)
    }

    async fn publish(&self, channel: &ChannelName, data: Bytes) -> Result<(), PublishError> {
        self.queue(channel).publish(channel, data).await
    }

    fn subscribe(&self, channel: &ChannelName) {
        self.want(channel, true);
    }

    fn unsubscribe(&self, channel: &ChannelName) {
        self.want(channel, false);
    }

    async fn mark(
        &self,
        channel: &ChannelName,
        mark: &ChannelName,
        data: Bytes,
    ) -> Result<(), PublishError> {
        self.queue(channel).publish(mark, data).await
    }

    fn readiness(&self) -> Result<(), NotReady> {
        self.monitor.readiness().map_err(NotReady)
    }
}

#[async_trait]
impl Streams for RedisBroker {
    async fn subscribed(&self, channel: &ChannelName) -> Result<(), Unavailable> {
        let confirmed = self.subscriptions.lock().confirmation(channel);
        let not_wanted = || Unavailable(format!("`{channel}` is not subscribed"));
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
            Until::Stored => self.queue(&wire).store(store).await,
            Until::Replicated => self.queues[self.config.publish_queues].store(store).await,
        }
    }

    async fn history(&self, ask: Ask) -> Result<Page, Unavailable> {
        self.reader.history(&ask).await
    }

    async fn remove_history(&self, channel: &ChannelName) -> Result<(), Unavailable> {
        self.reader.remove_history(channel).await
    }
}
