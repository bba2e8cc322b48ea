//! The task of a publish queue: takes batches off the queue and pipelines them over one connection, one batch at a time.
//!
//! It takes one connection from the pool and keeps it: deadpool checks at each checkout whether the
//! connection is alive, which is a round trip. It is returned for just that check when the subscriber has
//! lost Redis, since then this one is probably dead too, and what is written to a dead connection is lost.
//!
//! One batch is in flight at a time, so at most one batch can be lost with a connection, and one queue is
//! enough to keep the order.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;
use std::future;
use std::sync::Arc;
use std::time::Duration;

use deadpool_redis::redis::Value;
use tokio::sync::watch;
use tokio::time;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tracing::warn;

use super::RedisBroker;
use super::acknowledged::Acknowledged;
use super::cluster::Member;
use super::health::Lost;
use super::outcome;
use super::primary_check::Finding;
use super::publish_queue::Entry;
use super::publish_queue::Outcome;
use super::publish_queue::PublishQueue;
use super::scripts;
use crate::broker::Store;
use crate::config::RedisAddress;
use crate::metrics::Side;
use crate::protocol::channel::ChannelName;
use crate::protocol::envelope;
use crate::redis::Backoff;
use crate::redis::Batch;
use crate::redis::Fence;
use crate::redis::Link;
use crate::redis::LinkPool;
use crate::redis::PooledLink;
use crate::redis::Redirect;
use crate::redis::Script;
use crate::redis::Slot;
use crate::redis::Topology;
use crate::redis::chain;

/// The first and the longest pause before publications are sent again that the server of a cluster does not accept now.
const HOLD_MIN: Duration = Duration::from_millis(10);
const HOLD_MAX: Duration = Duration::from_millis(160);

/// Channels that are checked at once after a failover.
const RENEWALS_MAX: usize = 512;

/// The most servers with which connections are kept because of a slot that is on its way.
const ASKED_MAX: usize = 16;

/// Publishes the entries of queue `index` until `shutdown`, then those that are left.
pub(super) async fn run(broker: Arc<RedisBroker>, index: usize, shutdown: CancellationToken) {
    let (connector, role) = (broker.connector.clone(), format!("publish-{index}"));
    let pool = LinkPool::new(connector, role);
    let mut publisher = Publisher {
        queue: &broker.queues[index],
        suspect: broker.queue_suspects[index].subscribe(),
        backoff: Backoff::new(broker.config.backoff_max),
        acknowledged: Acknowledged::default(),
        fence: Fence::default(),
        store_script: Err("not loaded yet".to_owned()),
        is_probe_script_loaded: false,
        held: Held::default(),
        asked: HashMap::new(),
        kind: if index < broker.config.publish_queues {
            QueueKind::Usual
        } else {
            QueueKind::Replicated
        },
        broker: &broker,
        index,
        pool,
    };
    let connection = publisher.serve(&shutdown).await;
    publisher.finish(connection).await;
}

/// The kind of publications in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum QueueKind {
    /// The publications of its subset of the channels.
    Usual,
    /// Those that need a replica's confirmation, for which others must not wait. It connects for the first
    /// one.
    Replicated,
}

struct Publisher<'a> {
    broker: &'a RedisBroker,
    index: usize,
    kind: QueueKind,
    queue: &'a PublishQueue,
    pool: LinkPool,
    suspect: watch::Receiver<()>,
    backoff: Backoff,
    /// Where publications may be lost with the primary of before.
    acknowledged: Acknowledged,
    /// The last abandoned connection, until Redis has certainly closed it.
    fence: Fence,
    /// Whether Redis has [`scripts::STORE`], or why it rejects it.
    store_script: Result<(), String>,
    /// Whether Redis has [`scripts::PROBE`]. Without it probes are published like publications.
    is_probe_script_loaded: bool,
    /// In a cluster, slots that the server does not serve now.
    held: Held,
    /// In a cluster, servers that are about to get a slot.
    asked: HashMap<RedisAddress, Link>,
}

/// Slots whose publications wait, and until when.
#[derive(Default)]
struct Held {
    slots: HashSet<Slot>,
    until: Option<Instant>,
    /// The last pause.
    pause: Duration,
}

/// Why a connection is no longer used.
enum End {
    /// The node is stopping.
    Shutdown(PooledLink),
    /// It may be dead: the pool is to check it.
    Suspect(PooledLink),
    /// It has failed.
    Broken(Lost),
}

impl Publisher<'_> {
    /// Publishes until `shutdown`; returns the connection, if there is one.
    async fn serve(&mut self, shutdown: &CancellationToken) -> Option<PooledLink> {
        loop {
            let connection = tokio::select! {
                biased;
                () = shutdown.cancelled() => return None,
                connection = connect(self) => connection,
            };
            match self.publish(connection, shutdown).await {
                End::Shutdown(connection) => return Some(connection),
                End::Suspect(connection) => {
                    self.fence.lift(); // All commands sent over it have their replies.
                    drop(connection); // Back into the pool, which checks it at the next checkout.
                }
                End::Broken(lost) => {
                    self.broker.metrics.broker_lost(Side::Publish);
                    self.broker.monitor.queue(self.index, Err(lost));
                }
            }
        }
    }

    async fn publish(&mut self, mut connection: PooledLink, shutdown: &CancellationToken) -> End {
        let mut tenure = connection.link().tenure();
        let mut routes = self.broker.member.as_ref().map(Member::changes);
        loop {
            self.move_slots();
            let is_held = self.held.until;
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return End::Shutdown(connection),
                () = tenure.over() => {
                    connection.close();
                    return End::Broken(Lost::closed("another redis is the primary now"));
                }
                Ok(()) = self.suspect.changed() => return End::Suspect(connection),
                () = changed(routes.as_mut()) => continue,
                () = self.queue.arrival_but(&self.held.slots) => {}
                () = until(is_held) => self.held.release(),
            }
            if let Err(lost) = self.send(&mut connection).await {
                connection.close();
                return End::Broken(lost);
            }
        }
    }

    /// Sends the next batch and waits for its replies.
    async fn send(&mut self, connection: &mut PooledLink) -> Result<(), Lost> {
        let batch = self.queue.take_batch(&self.held.slots);
        if batch.is_empty() {
            return Ok(());
        }
        let (batch, unpublishable) = self.publishable(batch);
        self.queue.settle(unpublishable);
        if batch.is_empty() {
            return Ok(());
        }
        let commands = self.commands(&batch, connection.link().failover());
        match connection.link().send_once(&commands).await {
            Ok(mut replies) => {
                if self.broker.member.is_some() {
                    self.follow_asks(connection.link(), &batch, &mut replies)
                        .await;
                }
                let was_redirected = self.settle(batch, replies)?;
                if was_redirected {
                    self.redirected().await;
                }
                Ok(())
            }
            Err(error) => {
                let unanswered = batch.into_iter().map(|entry| (entry, Outcome::Unanswered));
                self.queue.settle(unanswered);
                Err(Lost::silent(chain(&error)))
            }
        }
    }

    /// Removes entries that need the script if Redis has rejected that.
    fn publishable(&self, batch: Vec<Entry>) -> (Vec<Entry>, Vec<(Entry, Outcome)>) {
        let Err(reason) = &self.store_script else {
            return (batch, Vec::new());
        };
        let (storing, plain): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|entry| entry.storing.is_some());
        let refused = |entry| (entry, Outcome::Refused(reason.clone()));
        (plain, storing.into_iter().map(refused).collect())
    }

    fn commands(&self, batch: &[Entry], failover: u64) -> Batch {
        let mut commands = Batch::new();
        let keys = &self.broker.keys;
        for entry in batch {
            let publish = keys.pubsub(&entry.channel).publish();
            match &entry.storing {
                Some(storing) if self.is_published_plainly(&storing.store) => {
                    let command = commands.cmd(publish).arg(&*keys.channel(&entry.channel));
                    command.arg(envelope::unstored_body(&storing.store.body).as_ref());
                }
                Some(storing) => {
                    scripts::store(&mut commands, keys, &storing.store, failover);
                }
                None if entry.is_probe() && self.is_probe_script_loaded => {
                    scripts::probe(&mut commands, keys, &entry.channel, entry.data.as_ref());
                }
                None => {
                    let command = commands.cmd(publish).arg(&*keys.channel(&entry.channel));
                    command.arg(entry.data.as_ref());
                }
            }
        }
        if self.kind == QueueKind::Replicated && !batch.is_empty() {
            let wait_max = self.broker.config.response_timeout / 2;
            commands
                .cmd("WAIT")
                .arg(1)
                .arg(wait_max.as_millis().to_string());
        }
        commands
    }

    /// Whether nothing is kept of a publication, so that no script is needed. Outside of a cluster one is used nevertheless. In a
    /// cluster, a script whose keys do not exist is not executed while the slot is on its way.
    fn is_published_plainly(&self, store: &Store) -> bool {
        store.keeps_nothing() && self.broker.keys.is_in_cluster()
    }

    /// Has the server that is about to get the slot execute what this one says is there, and puts its replies in the place of
    /// the redirects. Subscribers are still with this server: what was published there is published here too.
    async fn follow_asks(&mut self, link: &mut Link, batch: &[Entry], replies: &mut [Value]) {
        let mut blocked: HashSet<&ChannelName> = HashSet::new();
        let mut asks: BTreeMap<RedisAddress, Vec<usize>> = BTreeMap::new();
        for (index, (entry, reply)) in batch.iter().zip(replies.iter()).enumerate() {
            match redirect_in(reply) {
                _ if entry.storing.is_none() => {}
                // A replica's confirmation would be that of a replica of this server.
                Some(Redirect::Ask { to: Some(to), .. })
                    if !blocked.contains(&entry.channel) && self.kind == QueueKind::Usual =>
                {
                    asks.entry(to).or_default().push(index);
                }
                Some(_) => {
                    blocked.insert(&entry.channel);
                }
                None => {}
            }
        }
        for (to, indexes) in asks {
            let mut calls = Batch::new();
            let keys = &self.broker.keys;
            for index in &indexes {
                if let Some(storing) = &batch[*index].storing {
                    // Nothing counts the failovers of a cluster.
                    scripts::store(&mut calls, keys, &storing.store, 0);
                }
            }
            let Some(asked) = self.ask(&to, &calls.asking()).await else {
                continue; // Nothing was sent: the redirects stay.
            };
            let mut repeats = Batch::new();
            for (index, reply) in indexes.into_iter().zip(asked) {
                if let Some(storing) = &batch[index].storing
                    && scripts::is_newly_stored(&reply)
                    && let Ok(stored) = scripts::stored(&reply)
                {
                    let (wire, body) = (&batch[index].channel, &storing.store.body);
                    let data = match &stored.position {
                        Some(position) => envelope::stored(position, body),
                        None => envelope::unstored_body(body),
                    };
                    let command = repeats.cmd(keys.pubsub(wire).publish());
                    command.arg(&*keys.channel(wire)).arg(data.as_ref());
                }
                replies[index] = reply;
            }
            // An error means that the slot has moved, or the connection is lost: subscribers read what they have missed.
            let _ = link.send_once(&repeats).await;
        }
    }

    /// Sends `calls` to the server at `to`; one reply for each, nil if it is unknown whether it was executed. `None`: nothing
    /// was sent.
    async fn ask(&mut self, to: &RedisAddress, calls: &Batch) -> Option<Vec<Value>> {
        let member = self.broker.member.as_ref()?;
        if !self.asked.contains_key(to) {
            if ASKED_MAX <= self.asked.len() {
                self.asked.clear();
            }
            match member.link_to(to).await {
                Ok(link) => {
                    self.asked.insert(to.clone(), link);
                }
                Err(error) => {
                    let error = chain(&error);
                    debug!(queue = self.index, redis = %to, error, "cannot follow a slot");
                    return None;
                }
            }
        }
        let link = self.asked.get_mut(to)?;
        match link.send_once(calls).await {
            Ok(replies) => Some(replies.into_iter().skip(1).step_by(2).collect()),
            Err(error) => {
                let error = chain(&error);
                debug!(queue = self.index, redis = %to, error, "lost a server that is about to get a slot");
                self.asked.remove(to);
                Some(vec![Value::Nil; calls.len() / 2])
            }
        }
    }

    /// Moves publications of slots that the server no longer has to the queues of those that have them. Nothing is in flight.
    fn move_slots(&mut self) {
        if let Some(member) = &self.broker.member {
            member.move_slots(self.index);
        }
    }

    /// The server has rejected publications whose slot belongs elsewhere, or is not served now.
    async fn redirected(&mut self) {
        self.held.hold();
        if let Some(member) = &self.broker.member {
            member.refreshed(self.broker.config.connect_timeout).await;
        }
    }

    /// Completes a batch by the replies of Redis. Returns whether some of it is to be sent again, here or elsewhere.
    fn settle(&mut self, batch: Vec<Entry>, mut replies: Vec<Value>) -> Result<bool, Lost> {
        let confirmed = replies.get(batch.len()).cloned();
        replies.truncate(batch.len());
        for (probe, reply) in batch.iter().zip(&replies) {
            if probe.is_probe() {
                self.probed(&probe.data, reply);
            }
        }
        let is_cluster = self.broker.member.is_some();
        let redirected: HashSet<Slot> = match is_cluster {
            true => redirected_slots(&batch, &replies),
            false => HashSet::new(),
        };
        let mut sorted = outcome::sort(batch, replies, is_cluster);
        if self.kind == QueueKind::Replicated {
            outcome::need_replica(&mut sorted.ended, confirmed.as_ref());
        }
        for (entry, outcome) in &sorted.ended {
            self.note_acknowledged(entry, outcome);
        }
        let refusal = sorted.ended.iter().find_map(|(_, outcome)| match outcome {
            Outcome::Refused(reply) => Some(reply.clone()),
            _ => None,
        });
        if let Some(reply) = refusal {
            self.broker.drop_counters.note_reply(reply);
        }
        // A probe whose slot has moved proves nothing any more.
        let (probes, retried): (Vec<_>, Vec<_>) =
            { sorted.retried.into_iter() }.partition(|entry| is_cluster && entry.is_probe());
        let dropped = probes.into_iter().map(|probe| (probe, Outcome::Unanswered));
        self.queue.settle(sorted.ended.into_iter().chain(dropped));
        if retried.is_empty() {
            if redirected.is_empty() {
                self.held.pause = Duration::ZERO;
            }
            return Ok(!redirected.is_empty());
        }
        let is_redirected = retried.iter().all(|entry| redirected.contains(&entry.slot));
        if is_cluster {
            let slots = retried.iter().map(|entry| entry.slot);
            self.held
                .slots
                .extend(slots.filter(|slot| redirected.contains(slot)));
        }
        self.queue.put_back(retried);
        if is_redirected {
            return Ok(true);
        }
        Err(Lost::closed("redis accepts no publications at the moment"))
    }

    fn note_acknowledged(&mut self, entry: &Entry, outcome: &Outcome) {
        if !self.broker.connector.counts_failovers() {
            return;
        }
        let kept = { entry.storing.as_ref() }
            .and_then(|storing| Some((&storing.store.channel, storing.store.retention?)));
        if let (Some((channel, retention)), Outcome::Taken(_)) = (kept, outcome) {
            let now = Instant::now().into_std();
            self.acknowledged.note(channel, retention.meta_ttl, now);
        }
    }

    /// Processes the reply to a probe.
    fn probed(&mut self, probe: &[u8], reply: &Value) {
        if let Value::ServerError(error) = reply
            && !outcome::is_for_now(error.code())
        {
            if let Some(member) = &self.broker.member
                && scripts::is_elsewhere(error)
            {
                return member.refresh(); // Another channel is about to be chosen.
            }
            debug!(queue = self.index, %error, "probes are published without a script");
            self.is_probe_script_loaded = false;
        }
        let Ok(reply) = scripts::probed(reply) else {
            return;
        };
        match self.broker.monitor.answered(probe, reply) {
            Some(Finding::Elsewhere) => {
                self.broker.subscribing_stalled.send_replace(());
            }
            Some(Finding::Changed) => {
                self.broker.server_changed.send_replace(());
            }
            None => {}
        }
    }

    /// Takes a connection from the pool and waits until Redis has closed the last one.
    async fn open(&mut self) -> Result<PooledLink, String> {
        let mut connection = self.pool.take().await?;
        let link = connection.link();
        let prepared = async {
            self.fence.pass(link).await.map_err(|error| chain(&error))?;
            let store = load(link, &scripts::STORE).await?;
            let probe = load(link, &scripts::PROBE).await?;
            Ok::<_, String>((store, probe))
        };
        let prepared = match prepared.await {
            Ok(prepared) => self.renew(link).await.map(|()| prepared),
            Err(reason) => Err(reason),
        };
        match prepared {
            Ok((store, probe)) => {
                self.store_script = store;
                self.is_probe_script_loaded = probe.is_ok();
                Ok(connection)
            }
            Err(reason) => {
                connection.close();
                Err(reason)
            }
        }
    }

    /// If `link` leads to the primary of another failover than the last one: has a new epoch begin in each channel that
    /// was used there before this queue has acknowledged a publication elsewhere.
    async fn renew(&mut self, link: &mut Link) -> Result<(), String> {
        let failover = link.failover();
        let channels = self.acknowledged.before(failover);
        let mut renewed = 0;
        for channels in channels.chunks(RENEWALS_MAX) {
            let mut batch = Batch::new();
            let now = Instant::now().into_std();
            for (channel, last) in channels {
                let keys = &self.broker.keys;
                scripts::renew(&mut batch, keys, channel, last, (failover, now));
            }
            let replies = link.send(&batch).await.map_err(|error| chain(&error))?;
            for reply in replies {
                match reply {
                    Value::ServerError(error) if outcome::is_for_now(error.code()) => {
                        return Err(error.to_string());
                    }
                    Value::ServerError(error) => {
                        debug!(queue = self.index, %error, "cannot begin a new epoch");
                    }
                    reply => renewed += u64::from(reply == Value::Int(1)),
                }
            }
        }
        self.acknowledged.follow(failover);
        if 0 < renewed {
            warn!(
                queue = self.index,
                channels = renewed,
                "publications were acknowledged by the previous primary after others had left it, new epochs have begun"
            );
        }
        Ok(())
    }

    /// Publishes what is left with `connection`, about one response timeout long, and drops the rest.
    async fn finish(&mut self, connection: Option<PooledLink>) {
        self.queue.close();
        let end = Instant::now() + self.broker.config.response_timeout;
        if let Some(mut connection) = connection {
            while !self.queue.is_empty()
                && Instant::now() < end
                && self.send(&mut connection).await.is_ok()
            {}
        }
        self.queue.lose_all();
    }
}

impl Held {
    /// Waits for a time with the slots that were added, and longer each time.
    fn hold(&mut self) {
        self.pause = (2 * self.pause).clamp(HOLD_MIN, HOLD_MAX);
        self.until = Some(Instant::now() + self.pause);
    }

    fn release(&mut self) {
        self.slots.clear();
        self.until = None;
    }
}

fn redirect_in(reply: &Value) -> Option<Redirect> {
    match reply {
        Value::ServerError(error) => {
            Redirect::parse(error.code(), error.details().unwrap_or_default())
        }
        _ => None,
    }
}

/// The slots of entries that were redirected.
fn redirected_slots(batch: &[Entry], replies: &[Value]) -> HashSet<Slot> {
    let answered = batch.iter().zip(replies);
    let redirected = answered.filter(|(_, reply)| redirect_in(reply).is_some());
    redirected.map(|(entry, _)| entry.slot).collect()
}

/// Waits for `at`, or without end.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => time::sleep_until(at).await,
        None => future::pending().await,
    }
}

/// Waits until slots have moved.
async fn changed(routes: Option<&mut watch::Receiver<Arc<Topology>>>) {
    if let Some(routes) = routes
        && routes.changed().await.is_ok()
    {
        return;
    }
    // There is no cluster, or it is no longer followed: the node is stopping.
    future::pending().await
}

/// Has Redis keep `script`. The inner result is the reason why it rejects that for as long as the connection lasts.
///
/// # Errors
///
/// The connection failed, or Redis rejects the script for now, as it does while it loads its data set: what it will
/// accept is not known yet, so nothing may be published over the connection.
async fn load(link: &mut Link, script: &'static Script) -> Result<Result<(), String>, String> {
    match link.load(script).await {
        Ok(Err(error)) if outcome::is_for_now(error.code()) => Err(error.to_string()),
        Ok(loaded) => Ok(loaded.map_err(|error| error.to_string())),
        Err(error) => Err(chain(&error)),
    }
}

/// Connects, with retries without end. Meanwhile expired entries are dropped from the queue.
async fn connect(publisher: &mut Publisher<'_>) -> PooledLink {
    let queue = publisher.queue;
    if publisher.kind == QueueKind::Replicated {
        queue.arrival().await;
    }
    let expire = async {
        loop {
            match queue.expire() {
                Some(at) => time::sleep_until(at).await,
                None => queue.arrival().await,
            }
        }
    };
    let member = publisher.broker.member.as_ref();
    let index = publisher.index;
    let move_slots = async {
        let mut routes = member.map(Member::changes);
        loop {
            if let Some(member) = member {
                member.move_slots(index);
            }
            changed(routes.as_mut()).await;
        }
    };
    let open = async {
        loop {
            // From here on a suspicion concerns the new connection.
            publisher.suspect.mark_unchanged();
            match publisher.open().await {
                Ok(connection) => {
                    subscribe_first(publisher.broker).await;
                    return connection;
                }
                Err(reason) => {
                    debug!(queue = publisher.index, reason, "cannot connect");
                    let reason = format!("cannot publish to redis: {reason}");
                    let monitor = &publisher.broker.monitor;
                    monitor.queue(publisher.index, Err(Lost::closed(reason)));
                }
            }
            time::sleep(publisher.backoff.next(fastrand::f64())).await;
        }
    };
    let connection = tokio::select! {
        connection = open => connection,
        () = expire => unreachable!("it does not return"),
        () = move_slots => unreachable!("it does not return"),
    };
    publisher.backoff.reset();
    publisher.broker.metrics.broker_connected(Side::Publish);
    publisher.broker.monitor.queue(publisher.index, Ok(()));
    connection
}

/// Waits until the subscriber is subscribed again, or for as long as that usually takes.
///
/// Otherwise publications that waited for Redis would be sent before nodes are subscribed again. A node that
/// cannot subscribe at all still publishes: other nodes may receive it.
async fn subscribe_first(broker: &RedisBroker) {
    let mut subscribed = broker.subscribed.subscribe();
    let wait_max = broker.config.backoff_max + broker.config.connect_timeout;
    // The sender is the broker's own, so it exists; and a timeout is no failure.
    let _ = time::timeout(
        wait_max,
        subscribed.wait_for(|is_subscribed| *is_subscribed),
    )
    .await;
}
