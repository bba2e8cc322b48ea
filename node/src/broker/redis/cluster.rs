//! Channels over the primaries of a Redis Cluster: each with its own publish queues, subscriber and readiness.
//!
//! ```text
//! publish   ─▶ route of the slot ─▶ publish queue of a shard ── MOVED: its publisher moves what is queued, and the route
//! subscribe ─▶ wanted channels ─▶ subscriber of a shard ── slot moves: moved here, then streams are read as after a gap
//! ```
//! A channel and all that is kept of it are in one slot. A shard is a primary and those that replace it, so a failover is what it
//! is without a cluster: the same queues and subscriptions, over a new connection. When a slot moves, its channels and
//! publications move to another shard.
//!
//! Invariants: all publications of a slot that are queued or in flight are in the queue that its route names, so that they keep
//! their order; a wanted channel is wanted from exactly one shard.

use std::collections::HashMap;
use std::collections::HashSet;
use std::future;
use std::sync::Arc;
use std::sync::Weak;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::task::JoinError;
use tokio::task::JoinSet;
use tokio::time;
use tokio::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::AllReady;
use super::PublishQueue;
use super::RedisBroker;
use super::drop_counters::DropCounters;
use super::reader::Reader;
use crate::broker::Ask;
use crate::broker::Broker;
use crate::broker::Deliver;
use crate::broker::NotReady;
use crate::broker::PublishError;
use crate::broker::Shard;
use crate::broker::Store;
use crate::broker::StoreError;
use crate::broker::Stored;
use crate::broker::Streams;
use crate::broker::TryPublishError;
use crate::broker::Unavailable;
use crate::broker::Until;
use crate::broker::history::Page;
use crate::config;
use crate::config::RedisAddress;
use crate::metrics::DropReason;
use crate::metrics::Metrics;
use crate::protocol::channel::ChannelName;
use crate::protocol::envelope;
use crate::redis::Cluster;
use crate::redis::ConnectError;
use crate::redis::Keys;
use crate::redis::Link;
use crate::redis::PubSub;
use crate::redis::SLOTS;
use crate::redis::Server;
use crate::redis::Slot;
use crate::redis::Topology;
use crate::redis::keys;

/// No shard has the slot yet.
const NONE: u16 = u16::MAX;

/// The shards, and what is where.
pub(super) struct Router {
    config: config::Redis,
    keys: Keys,
    cluster: Arc<Cluster>,
    node_id: String,
    /// Part of the names of probe channels.
    instance: u64,
    /// By their numbers. They are added, and never removed.
    shards: RwLock<Vec<Arc<RedisBroker>>>,
    /// The topology that the shards below are started for.
    topology: watch::Sender<Arc<Topology>>,
    routes: RwLock<Routes>,
    wanted: Mutex<Wanted>,
    /// Channels for marks, which take long to name: one for each relay channel.
    marks: Mutex<HashMap<Slot, ChannelName>>,
    reader: Arc<Reader>,
    readiness: Arc<AllReady>,
    drop_counters: Arc<DropCounters>,
    deliver: Arc<dyn Deliver>,
    metrics: Arc<Metrics>,
}

/// The shard in whose queues publications of each slot are.
struct Routes {
    usual: Box<[u16]>,
    /// Of those that wait for a replica.
    replicated: Box<[u16]>,
}

/// The channels that are wanted, and where.
#[derive(Default)]
struct Wanted {
    channels: HashMap<ChannelName, Place>,
    /// Marks of handoffs are wanted too, behind the publications of each relay channel.
    marks: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    slot: Slot,
    /// `None`: no server has the slot.
    shard: Option<usize>,
    /// How many wants it stands for: marks of several channels may share one.
    wants: usize,
}

/// The part of a shard in its cluster.
#[derive(Clone)]
pub(super) struct Member {
    router: Weak<Router>,
    number: usize,
    changes: watch::Receiver<Arc<Topology>>,
    cluster: Arc<Cluster>,
}

/// The broker of a cluster.
pub(super) struct ClusterBroker {
    router: Arc<Router>,
}

/// Which queue of a shard a publication goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Usual,
    Replicated,
}

impl Member {
    /// Notified when slots have moved.
    pub(super) fn changes(&self) -> watch::Receiver<Arc<Topology>> {
        self.changes.clone()
    }

    /// Asks the servers again, and waits for that, `wait_max` at most.
    pub(super) async fn refreshed(&self, wait_max: Duration) {
        self.cluster.refreshed(Instant::now() + wait_max).await;
    }

    /// Has the servers asked soon.
    pub(super) fn refresh(&self) {
        self.cluster.refresh();
    }

    /// Moves what is in queue `index` of this shard, and belongs elsewhere. Nothing of the queue may be in flight.
    pub(super) fn move_slots(&self, index: usize) {
        if let Some(router) = self.router.upgrade() {
            router.move_slots(self.number, index);
        }
    }

    /// A connection to a primary that a redirect names.
    pub(super) async fn link_to(&self, address: &RedisAddress) -> Result<Link, ConnectError> {
        Link::open(&self.cluster.connector_to(address), "publish-moving").await
    }
}

impl Router {
    pub(super) fn new(
        server: &Server,
        cluster: Arc<Cluster>,
        node_id: &str,
        drop_counters: Arc<DropCounters>,
        (deliver, metrics): (Arc<dyn Deliver>, Arc<Metrics>),
    ) -> Arc<Self> {
        let needs_all = cluster.is_unready_when_partial();
        let nowhere = || vec![NONE; SLOTS].into_boxed_slice();
        Arc::new(Self {
            config: server.config.clone(),
            keys: server.keys.clone(),
            topology: watch::Sender::new(cluster.topology()),
            cluster,
            node_id: node_id.to_owned(),
            instance: fastrand::u64(..),
            shards: RwLock::default(),
            routes: RwLock::new(Routes {
                usual: nowhere(),
                replicated: nowhere(),
            }),
            wanted: Mutex::default(),
            marks: Mutex::default(),
            reader: Arc::new(Reader::new(server)),
            readiness: Arc::new(AllReady::of_cluster(needs_all, &metrics)),
            drop_counters,
            deliver,
            metrics,
        })
    }

    pub(super) fn broker(self: &Arc<Self>) -> Arc<ClusterBroker> {
        let router = Arc::clone(self);
        Arc::new(ClusterBroker { router })
    }

    /// Starts and updates the shards until `shutdown`; then waits for their tasks.
    pub(super) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut tasks = JoinSet::new();
        let mut changes = self.cluster.changes();
        let mut rounds = self.cluster.rounds();
        loop {
            let topology = Arc::clone(&changes.borrow_and_update());
            self.apply(topology, &mut tasks, &shutdown);
            self.unpark();
            let ended = async {
                match tasks.join_next().await {
                    Some(ended) => ended,
                    None => future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                ended = ended => must_not_end(ended),
                Ok(()) = changes.changed() => {}
                Ok(()) = rounds.changed() => {}
            }
        }
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                must_not_end(Err(error));
            }
        }
        self.shards.write().clear();
    }

    /// Makes everything agree with `topology`.
    fn apply(
        self: &Arc<Self>,
        topology: Arc<Topology>,
        tasks: &mut JoinSet<()>,
        shutdown: &CancellationToken,
    ) {
        let is_new = !Arc::ptr_eq(&topology, &self.topology.borrow());
        let started = self.shards.read().len();
        if !is_new && topology.shards.len() <= started {
            return;
        }
        for number in started..topology.shards.len() {
            let shard = self.start_shard(number, tasks, shutdown);
            self.shards.write().push(shard);
        }
        let shards = self.shards.read().clone();
        for (number, shard) in shards.iter().enumerate() {
            let has_slots = { topology.shards.get(number) }.is_some_and(|shard| 0 < shard.slots);
            self.readiness.count(Shard(number), has_slots);
            let probes = shard.probe_channel();
            let is_mine = |slot| topology.shard_of(slot) == Some(number);
            let is_right = has_slots
                && probes
                    .as_ref()
                    .is_some_and(|probes| is_mine(self.keys.slot(probes)));
            if !is_right {
                let probes = keys::probe_channel_in(&self.node_id, self.instance, is_mine);
                shard.set_probe_channel(probes.filter(|_| has_slots));
            }
        }
        self.readiness.note_uncovered(topology.uncovered());
        {
            let mut routes = self.routes.write();
            let Routes { usual, replicated } = &mut *routes;
            for route in [usual, replicated] {
                for (index, shard) in route.iter_mut().enumerate() {
                    if *shard == NONE {
                        *shard = number_of(&topology, index);
                    }
                }
            }
        }
        self.move_subscriptions(&shards, topology);
    }

    /// Publishes `topology`, and moves wanted channels to the shards that have their slots.
    fn move_subscriptions(&self, shards: &[Arc<RedisBroker>], topology: Arc<Topology>) {
        let moving = {
            let wanted = self.wanted.lock();
            // Under the lock: whatever is wanted from now on is wanted from the right shard.
            self.topology.send_replace(Arc::clone(&topology));
            let channels = wanted.channels.iter();
            let moving = channels.filter_map(|(channel, place)| {
                let to = topology.shard_of(place.slot)?;
                (place.shard != Some(to)).then(|| (channel.clone(), *place, to))
            });
            moving.collect::<Vec<_>>()
        };
        let interrupted = moving.iter().filter(|(_, place, _)| place.shard.is_some());
        let slots: HashSet<Shard> = interrupted
            .map(|(_, place, _)| shard_of_slot(place.slot))
            .collect();
        if !slots.is_empty() {
            self.deliver.interrupted_all(&slots);
        }
        let mut wanted = self.wanted.lock();
        for (channel, before, to) in moving {
            let Some(place) = wanted.channels.get_mut(&channel) else {
                continue; // It is no longer wanted.
            };
            if place.shard != before.shard {
                continue;
            }
            place.shard = Some(to);
            match before.shard {
                Some(from) => {
                    match self.keys.pubsub(&channel) {
                        PubSub::Sharded => shards[from].abandon(&channel),
                        PubSub::Classic => shards[from].want(&channel, false),
                    }
                    shards[to].move_in(&channel, place.slot);
                }
                None => shards[to].want(&channel, true),
            }
        }
    }

    fn unpark(&self) {
        self.shards.read().iter().for_each(|shard| shard.unpark());
    }

    fn start_shard(
        self: &Arc<Self>,
        number: usize,
        tasks: &mut JoinSet<()>,
        shutdown: &CancellationToken,
    ) -> Arc<RedisBroker> {
        self.readiness.add(Shard(number));
        let member = Member {
            router: Arc::downgrade(self),
            number,
            changes: self.topology.subscribe(),
            cluster: Arc::clone(&self.cluster),
        };
        let components = super::Components {
            config: self.config.clone(),
            connector: self.cluster.connector(number),
            keys: self.keys.clone(),
            reader: Arc::clone(&self.reader),
            shard: Shard(number),
            readiness: Arc::clone(&self.readiness),
            probe_channel: None,
            member: Some(member),
            drop_counters: Arc::clone(&self.drop_counters),
            deliver: Arc::clone(&self.deliver),
            metrics: Arc::clone(&self.metrics),
        };
        super::start_one(components, shutdown, tasks)
    }

    /// Moves what is in queue `index` of shard `number` and belongs elsewhere, and its routes.
    fn move_slots(&self, number: usize, index: usize) {
        let topology = Arc::clone(&self.topology.borrow());
        let queues = self.config.publish_queues;
        let is_replicated = index == queues;
        let is_leaving = |slot: usize, route: u16| {
            let is_here = usize::from(route) == number && (is_replicated || slot % queues == index);
            let to = number_of(&topology, slot);
            is_here && to != NONE && usize::from(to) != number
        };
        let of = |routes: &Routes| -> Vec<usize> {
            let route = routes.of(is_replicated);
            let leaving = route.iter().enumerate();
            let leaving = leaving.filter(|(slot, route)| is_leaving(*slot, **route));
            leaving.map(|(slot, _)| slot).collect()
        };
        if of(&self.routes.read()).is_empty() {
            return;
        }
        let shards = self.shards.read();
        let mut routes = self.routes.write();
        let leaving: HashSet<usize> = of(&routes).into_iter().collect();
        let Some(from) = shards.get(number) else {
            return;
        };
        from.queues[index].move_slots(
            |slot| leaving.contains(&slot.index()),
            |slot| {
                let to = usize::from(number_of(&topology, slot.index()));
                &shards[to].queues[index]
            },
        );
        for slot in leaving {
            routes.of_mut(is_replicated)[slot] = number_of(&topology, slot);
        }
    }

    /// Calls `push` with the queue of `slot`, if there is one: its route does not change meanwhile.
    fn with_queue<T>(
        &self,
        kind: Kind,
        slot: Slot,
        push: impl FnOnce(&PublishQueue) -> T,
    ) -> Option<T> {
        let shards = self.shards.read();
        let routes = self.routes.read();
        let queue = self.queue(&shards, &routes, kind, slot)?;
        Some(push(&shards[queue.0].queues[queue.1]))
    }

    fn queue(
        &self,
        shards: &[Arc<RedisBroker>],
        routes: &Routes,
        kind: Kind,
        slot: Slot,
    ) -> Option<(usize, usize)> {
        let number = routes.of(kind == Kind::Replicated)[slot.index()];
        let index = match kind {
            Kind::Usual => slot.index() % self.config.publish_queues,
            Kind::Replicated => self.config.publish_queues,
        };
        let number = usize::from(number);
        (number < shards.len()).then_some((number, index))
    }

    /// Waits for room in the queue of `slot`, and calls `push` with the room and the queue.
    async fn push<T>(
        &self,
        kind: Kind,
        slot: Slot,
        data: &Bytes,
        push: impl FnOnce(&PublishQueue, super::publish_queue::Room) -> T + Send,
    ) -> Result<T, PublishError> {
        let mut changes = self.topology.subscribe();
        let expires_at = Instant::now() + self.config.publish_queue_wait;
        loop {
            let found = {
                let (shards, routes) = (self.shards.read(), self.routes.read());
                let queue = self.queue(&shards, &routes, kind, slot);
                queue.map(|(number, index)| (number, index, Arc::clone(&shards[number])))
            };
            let Some((number, index, shard)) = found else {
                // No server has it yet.
                match time::timeout_at(expires_at, changes.changed()).await {
                    Ok(Ok(())) => continue,
                    Ok(Err(_)) => return Err(PublishError::Stopped),
                    Err(_) => {
                        self.drop_counters.note(DropReason::QueueExpired, 1);
                        return Err(PublishError::Expired);
                    }
                }
            };
            let queue = &shard.queues[index];
            let room = queue.room_for(data, Some(expires_at)).await?;
            let (shards, routes) = (self.shards.read(), self.routes.read());
            if self.queue(&shards, &routes, kind, slot) == Some((number, index)) {
                return Ok(push(queue, room));
            }
            queue.release(&room);
        }
    }

    fn want(&self, channel: &ChannelName) {
        let slot = self.keys.slot(channel);
        let mut wanted = self.wanted.lock();
        let shard = self.topology.borrow().shard_of(slot);
        let place = wanted.channels.entry(channel.clone()).or_insert(Place {
            slot,
            shard,
            wants: 0,
        });
        place.wants += 1;
        if place.wants == 1
            && let Some(shard) = shard
            && let Some(shard) = self.shards.read().get(shard)
        {
            shard.want(channel, true);
        }
    }

    fn unwant(&self, channel: &ChannelName) {
        let mut wanted = self.wanted.lock();
        let Some(place) = wanted.channels.get_mut(channel) else {
            return;
        };
        place.wants -= 1;
        if 0 < place.wants {
            return;
        }
        if let Some(shard) = place.shard
            && let Some(shard) = self.shards.read().get(shard)
        {
            shard.want(channel, false);
        }
        wanted.channels.remove(channel);
    }

    /// The channel for marks behind publications of `slot`.
    fn marks_in(&self, slot: Slot) -> ChannelName {
        let mut marks = self.marks.lock();
        let mark = marks
            .entry(slot)
            .or_insert_with(|| keys::handoff_marks_in(slot));
        mark.clone()
    }

    /// Whether marks are wanted behind publications on `channel`.
    fn has_marks(&self, channel: &ChannelName) -> bool {
        !channel.is_reserved() && self.wanted.lock().marks
    }
}

impl Routes {
    fn of(&self, is_replicated: bool) -> &[u16] {
        match is_replicated {
            true => &self.replicated,
            false => &self.usual,
        }
    }

    fn of_mut(&mut self, is_replicated: bool) -> &mut [u16] {
        match is_replicated {
            true => &mut self.replicated,
            false => &mut self.usual,
        }
    }
}

#[async_trait]
impl Broker for ClusterBroker {
    fn try_publish(&self, channel: &ChannelName, data: Bytes) -> Result<(), TryPublishError> {
        let slot = self.router.keys.slot(channel);
        let full = TryPublishError::Full(data.clone());
        let pushed = self.router.with_queue(Kind::Usual, slot, |queue| {
            queue.try_publish(channel, slot, data)
        });
        pushed.unwrap_or(Err(full))
    }

    async fn publish(&self, channel: &ChannelName, data: Bytes) -> Result<(), PublishError> {
        let slot = self.router.keys.slot(channel);
        let copy = data.clone();
        let pushed = self.router.push(Kind::Usual, slot, &copy, |queue, room| {
            queue.push_publication(room, channel, slot, data);
        });
        pushed.await
    }

    fn subscribe(&self, channel: &ChannelName) {
        let is_new = !self.router.wanted.lock().channels.contains_key(channel);
        if !is_new {
            return;
        }
        self.router.want(channel);
        if self.router.has_marks(channel) {
            let slot = self.router.keys.slot(channel);
            self.router.want(&self.router.marks_in(slot));
        }
    }

    fn unsubscribe(&self, channel: &ChannelName) {
        if !self.router.wanted.lock().channels.contains_key(channel) {
            return;
        }
        self.router.unwant(channel);
        if self.router.has_marks(channel) {
            let slot = self.router.keys.slot(channel);
            self.router.unwant(&self.router.marks_in(slot));
        }
    }

    async fn mark(
        &self,
        channel: &ChannelName,
        _: &ChannelName,
        data: Bytes,
    ) -> Result<(), PublishError> {
        if channel.is_wire() {
            // On the channel itself, to which both nodes are subscribed.
            return self.publish(channel, envelope::mark(&data)).await;
        }
        // Through the same queue, since its slot is the same.
        let mark = self.router.marks_in(self.router.keys.slot(channel));
        self.publish(&mark, data).await
    }

    /// Only the marks of handoffs are meant for every server. They follow the publications of each relay channel.
    fn subscribe_everywhere(&self, channel: &ChannelName) {
        self.router.want(channel);
        let slot = self.router.keys.slot(channel);
        self.router.want(&self.router.marks_in(slot));
        let relays: Vec<ChannelName> = {
            let mut wanted = self.router.wanted.lock();
            wanted.marks = true;
            let channels = wanted.channels.keys();
            channels
                .filter(|channel| !channel.is_reserved())
                .cloned()
                .collect()
        };
        for relay in relays {
            let slot = self.router.keys.slot(&relay);
            self.router.want(&self.router.marks_in(slot));
        }
    }

    fn readiness(&self) -> Result<(), NotReady> {
        if let Some(why) = self.router.cluster.why_unknown() {
            return Err(NotReady(format!("redis cluster: {why}")));
        }
        // Before it is checked, since monitors lock their state first and then the readiness of all.
        let shards = self.router.shards.read();
        let each = shards.iter().map(|shard| shard.monitor.readiness());
        let each: Vec<Result<(), String>> = each.collect();
        drop(shards);
        self.router.readiness.check(&each).map_err(NotReady)
    }
}

#[async_trait]
impl Streams for ClusterBroker {
    async fn subscribed(&self, channel: &ChannelName) -> Result<(), Unavailable> {
        let mut changes = self.router.topology.subscribe();
        loop {
            let place = self.router.wanted.lock().channels.get(channel).copied();
            let not_wanted = || Unavailable(format!("`{channel}` is not subscribed"));
            let place = place.ok_or_else(not_wanted)?;
            let shard = place
                .shard
                .map(|shard| self.router.shards.read().get(shard).cloned());
            let Some(shard) = shard else {
                // No server has the slot.
                changes.changed().await.map_err(|_| not_wanted())?;
                continue;
            };
            match shard.ok_or_else(not_wanted)?.subscribed(channel).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    let now = self.router.wanted.lock().channels.get(channel).copied();
                    if now.is_none_or(|now| now.shard == place.shard) {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn shard(&self, channel: &ChannelName) -> Shard {
        shard_of_slot(self.router.keys.slot(channel))
    }

    async fn store(&self, store: Store) -> Result<Stored, StoreError> {
        let slot = self.router.keys.slot(&ChannelName::wire(&store.channel));
        let kind = match store.until {
            Until::Stored => Kind::Usual,
            Until::Replicated => Kind::Replicated,
        };
        let data = store.body.clone();
        let pushed = self.router.push(kind, slot, &data, |queue, room| {
            queue.push_store(room, slot, store)
        });
        pushed.await?.await.unwrap_or(Err(StoreError::Stopped))
    }

    async fn history(&self, ask: Ask) -> Result<Page, Unavailable> {
        self.router.reader.history(&ask).await
    }

    async fn remove_history(&self, channel: &ChannelName) -> Result<(), Unavailable> {
        self.router.reader.remove_history(channel).await
    }
}

/// What streams of channels in `slot` are interrupted by.
pub(super) fn shard_of_slot(slot: Slot) -> Shard {
    Shard(slot.index())
}

fn number_of(topology: &Topology, slot: usize) -> u16 {
    let shard = Slot::new(slot).and_then(|slot| topology.shard_of(slot));
    shard
        .and_then(|shard| u16::try_from(shard).ok())
        .unwrap_or(NONE)
}

/// A task of a shard has ended although nothing stops it.
fn must_not_end(ended: Result<(), JoinError>) {
    match ended {
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => {}
        Ok(()) => panic!("a task of the broker has ended"),
    }
}
