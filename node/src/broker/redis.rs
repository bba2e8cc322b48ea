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
//!
//! With several servers each has all of this ([`sharded`]), and so has each primary of a Redis Cluster ([`cluster`]).

use std::collections::HashSet;
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
use crate::redis::Access;
use crate::redis::Connector;
use crate::redis::Keys;
use crate::redis::Server;
use crate::redis::Slot;

mod acknowledged;
mod cluster;
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

use cluster::Member;
use cluster::Router;
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

/// What a [`RedisBroker`] is made of.
struct Components {
    config: config::Redis,
    connector: Connector,
    keys: Keys,
    reader: Arc<Reader>,
    shard: Shard,
    readiness: Arc<AllReady>,
    probe_channel: Option<ChannelName>,
    member: Option<Member>,
    drop_counters: Arc<DropCounters>,
    deliver: Arc<dyn Deliver>,
    metrics: Arc<Metrics>,
}

/// The shared handle, and the state that the tasks share.
struct RedisBroker {
    config: config::Redis,
    connector: Connector,
    keys: Keys,
    /// As many as are configured, followed by the one for publications that wait for a replica.
    queues: Vec<PublishQueue>,
    subscriptions: Mutex<Subscriptions>,
    /// The wanted subscriptions have changed.
    subscription_changes: Notify,
    shard: Shard,
    /// The part in a cluster.
    member: Option<Member>,
    reader: Arc<Reader>,
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
    let metrics = &dependencies.metrics;
    let mut tasks = JoinSet::new();
    if let [server] = servers
        && let Access::Cluster(cluster) = &server.access
    {
        let router = Router::new(
            server,
            Arc::clone(cluster),
            dependencies.node_id,
            Arc::new(DropCounters::new(Arc::clone(metrics))),
            (Arc::clone(&dependencies.deliver), Arc::clone(metrics)),
        );
        let broker = router.broker();
        tasks.spawn(router.run(dependencies.shutdown.clone()));
        return Started { broker, tasks };
    }
    let readiness = Arc::new(AllReady::new(servers.len(), metrics));
    let connectors = servers.iter().filter_map(|server| match &server.access {
        Access::One(connector) => Some((server, connector)),
        Access::Cluster(_) => None, // It is always alone.
    });
    let mut shards = Vec::with_capacity(servers.len());
    for (index, (server, connector)) in connectors.enumerate() {
        // Random, so that two processes with one node id never mistake each other's probes for their own.
        let probe_channel = redis::probe_channel(dependencies.node_id, fastrand::u64(..));
        let components = Components {
            config: server.config.clone(),
            connector: connector.clone(),
            keys: server.keys.clone(),
            reader: Arc::new(Reader::new(server)),
            shard: Shard(index),
            readiness: Arc::clone(&readiness),
            probe_channel: Some(probe_channel),
            member: None,
            drop_counters: Arc::new(DropCounters::new(Arc::clone(metrics))),
            deliver: Arc::clone(&dependencies.deliver),
            metrics: Arc::clone(metrics),
        };
        shards.push(start_one(components, &dependencies.shutdown, &mut tasks));
    }
    let broker: Arc<dyn Streams> = match <[_; 1]>::try_from(shards) {
        Ok([alone]) => alone,
        Err(shards) => Arc::new(ShardedBroker::new(shards)),
    };
    Started { broker, tasks }
}

fn start_one(
    components: Components,
    shutdown: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> Arc<RedisBroker> {
    let Components {
        config,
        connector,
        keys,
        reader,
        shard,
        readiness,
        probe_channel,
        member,
        drop_counters,
        deliver,
        metrics,
    } = components;
    let queue = |_| PublishQueue::new(&config, Arc::clone(&drop_counters), Arc::clone(&metrics));
    let mut subscriptions = Subscriptions::default();
    subscriptions.set_probe_channel(probe_channel);
    let broker = Arc::new(RedisBroker {
        queues: (0..=config.publish_queues).map(queue).collect(),
        subscriptions: Mutex::new(subscriptions),
        subscription_changes: Notify::new(),
        shard,
        member,
        reader,
        monitor: Monitor::new(
            &config,
            &connector,
            (shard, readiness),
            Arc::clone(&metrics),
        ),
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
        connector,
        keys,
    });
    for index in 0..broker.queues.len() {
        let queue = publisher::run(Arc::clone(&broker), index, shutdown.clone());
        tasks.spawn(queue);
    }
    tasks.spawn(subscriber::run(Arc::clone(&broker), shutdown.clone()));
    tasks.spawn(monitor::run(Arc::clone(&broker), shutdown.clone()));
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

    /// The slot of a channel, in a cluster.
    fn slot(&self, channel: &ChannelName) -> Slot {
        match self.keys.is_in_cluster() {
            true => self.keys.slot(channel),
            false => Slot::default(),
        }
    }

    fn probe_channel(&self) -> Option<ChannelName> {
        self.subscriptions.lock().probe_channel().cloned()
    }

    /// Sends probes over another channel from now on, or none.
    fn set_probe_channel(&self, channel: Option<ChannelName>) {
        let before = self.probe_channel();
        if before == channel {
            return;
        }
        if let Some(before) = before {
            self.abandon(&before);
        }
        self.change_subscriptions(|subscriptions| subscriptions.set_probe_channel(channel));
        self.subscription_changes.notify_one();
    }

    /// Wants a channel whose slot has moved here; the streams of the slot read what they have missed.
    fn move_in(&self, channel: &ChannelName, slot: Slot) {
        self.change_subscriptions(|subscriptions| subscriptions.move_in(channel, slot));
        self.subscription_changes.notify_one();
    }

    /// No longer wants a channel whose slot has moved away.
    fn abandon(&self, channel: &ChannelName) {
        let slot = self.keys.slot(channel);
        self.change_subscriptions(|subscriptions| subscriptions.abandon(channel, slot));
        self.subscription_changes.notify_one();
    }

    /// Has channels subscribed again that the server has rejected.
    fn unpark(&self) {
        if self.subscriptions.lock().unpark() {
            self.subscription_changes.notify_one();
        }
    }

    /// What is received over this broker is not received from now on.
    fn interrupted(&self) {
        if self.member.is_none() {
            self.deliver.interrupted(self.shard);
            return;
        }
        let slots = { self.subscriptions.lock() }.wanted_slots(|channel| self.keys.slot(channel));
        self.deliver.interrupted_all(&shards_of(slots));
    }

    /// All that is wanted is subscribed; publications before that were missed.
    fn resumed(&self) {
        if self.member.is_none() {
            self.deliver.resumed(self.shard);
            return;
        }
        let slots = { self.subscriptions.lock() }.resumed_slots(|channel| self.keys.slot(channel));
        self.deliver.resumed_all(&shards_of(slots));
    }

    /// Counts a time after which publications may have been missed.
    fn note_gap(&self) {
        self.metrics.broker_gaps.inc();
        if self.member.is_some() {
            self.metrics.broker_shard_gap(&self.connector.to_string());
        }
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
        self.queue(channel)
            .try_publish(channel, self.slot(channel), data)
    }

    async fn publish(&self, channel: &ChannelName, data: Bytes) -> Result<(), PublishError> {
        let slot = self.slot(channel);
        self.queue(channel).publish(channel, slot, data).await
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
        let slot = self.slot(mark);
        self.queue(channel).publish(mark, slot, data).await
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
        let slot = self.slot(&wire);
        match store.until {
            Until::Stored => self.queue(&wire).store(slot, store).await,
            Until::Replicated => {
                self.queues[self.config.publish_queues]
                    .store(slot, store)
                    .await
            }
        }
    }

    async fn history(&self, ask: Ask) -> Result<Page, Unavailable> {
        self.reader.history(&ask).await
    }

    async fn remove_history(&self, channel: &ChannelName) -> Result<(), Unavailable> {
        self.reader.remove_history(channel).await
    }
}

fn shards_of(slots: HashSet<Slot>) -> HashSet<Shard> {
    slots.into_iter().map(cluster::shard_of_slot).collect()
}
