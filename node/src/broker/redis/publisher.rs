//! The task of a publish queue: takes batches off the queue and pipelines them over one connection, one batch at a time.
//!
//! It takes one connection from the pool and keeps it: deadpool checks at each checkout whether the
//! connection is alive, which is a round trip. It is returned for just that check when the subscriber has
//! lost Redis, since then this one is probably dead too, and what is written to a dead connection is lost.
//!
//! One batch is in flight at a time, so at most one batch can be lost with a connection, and one queue is
//! enough to keep the order.

use std::sync::Arc;

use deadpool_redis::redis::Value;
use tokio::sync::watch;
use tokio::time;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::RedisBroker;
use super::outcome;
use super::primary_check::Finding;
use super::publish_queue::Entry;
use super::publish_queue::Outcome;
use super::publish_queue::PublishQueue;
use super::scripts;
use crate::metrics::Side;
use crate::redis::Backoff;
use crate::redis::Batch;
use crate::redis::Fence;
use crate::redis::Link;
use crate::redis::LinkPool;
use crate::redis::PooledLink;
use crate::redis::Script;
use crate::redis::chain;

/// Publishes the entries of queue `index` until `shutdown`, then those that are left.
pub(super) async fn run(broker: Arc<RedisBroker>, index: usize, shutdown: CancellationToken) {
    let (connector, role) = (broker.server.connector.clone(), format!("publish-{index}"));
    let pool = LinkPool::new(connector, role);
    let mut publisher = Publisher {
        queue: &broker.queues[index],
        suspect: broker.queue_suspects[index].subscribe(),
        backoff: Backoff::new(broker.config.backoff_max),
        fence: Fence::default(),
        store_script: Err("not loaded yet".to_owned()),
        is_probe_script_loaded: false,
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
    /// The last abandoned connection, until Redis has certainly closed it.
    fence: Fence,
    /// Whether Redis has [`scripts::STORE`], or why it rejects it.
    store_script: Result<(), String>,
    /// Whether Redis has [`scripts::PROBE`]. Without it probes are published like publications.
    is_probe_script_loaded: bool,
}

/// Why a connection is no longer used.
enum End {
    /// The node is stopping.
    Shutdown(PooledLink),
    /// It may be dead: the pool is to check it.
    Suspect(PooledLink),
    /// It has failed.
    Broken(String),
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
                End::Broken(reason) => {
                    self.broker.metrics.broker_lost(Side::Publish);
                    self.broker.monitor.queue(self.index, Err(reason));
                }
            }
        }
    }

    async fn publish(&mut self, mut connection: PooledLink, shutdown: &CancellationToken) -> End {
        let mut tenure = connection.link().tenure();
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return End::Shutdown(connection),
                () = tenure.over() => {
                    connection.close();
                    return End::Broken("another redis is the primary now".to_owned());
                }
                Ok(()) = self.suspect.changed() => return End::Suspect(connection),
                () = self.queue.arrival() => {}
            }
            if let Err(reason) = self.send(&mut connection).await {
                connection.close();
                return End::Broken(reason);
            }
        }
    }

    /// Sends the next batch and waits for its replies.
    async fn send(&mut self, connection: &mut PooledLink) -> Result<(), String> {
        let batch = self.queue.take_batch();
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
            Ok(replies) => self.settle(batch, replies),
            Err(error) => {
                let unanswered = batch.into_iter().map(|entry| (entry, Outcome::Unanswered));
                self.queue.settle(unanswered);
                Err(chain(&error))
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
        let keys = &self.broker.server.keys;
        for entry in batch {
            let channel = || keys.channel(&entry.channel);
            match &entry.storing {
                Some(storing) => {
                    scripts::store(&mut commands, keys, &storing.store, failover);
                }
                None if entry.is_probe() && self.is_probe_script_loaded => {
                    scripts::probe(&mut commands, &channel(), entry.data.as_ref());
                }
                None => {
                    let command = commands.cmd("PUBLISH").arg(&*channel());
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

    /// Completes a batch by the replies of Redis.
    fn settle(&mut self, batch: Vec<Entry>, mut replies: Vec<Value>) -> Result<(), String> {
        let confirmed = replies.get(batch.len()).cloned();
        replies.truncate(batch.len());
        for (probe, reply) in batch.iter().zip(&replies) {
            if probe.is_probe() {
                self.probed(&probe.data, reply);
            }
        }
        let mut sorted = outcome::sort(batch, replies);
        if self.kind == QueueKind::Replicated {
            outcome::need_replica(&mut sorted.ended, confirmed.as_ref());
        }
        let refusal = sorted.ended.iter().find_map(|(_, outcome)| match outcome {
            Outcome::Refused(reply) => Some(reply.clone()),
            _ => None,
        });
        if let Some(reply) = refusal {
            self.broker.drop_counters.note_reply(reply);
        }
        self.queue.settle(sorted.ended);
        if sorted.retried.is_empty() {
            return Ok(());
        }
        self.queue.put_back(sorted.retried);
        Err("redis accepts no publications at the moment".to_owned())
    }

    /// Processes the reply to a probe.
    fn probed(&mut self, probe: &[u8], reply: &Value) {
        if let Value::ServerError(error) = reply
            && !outcome::is_for_now(error.code())
        {
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
        match prepared.await {
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
                    monitor.queue(publisher.index, Err(reason));
                }
            }
            time::sleep(publisher.backoff.next(fastrand::f64())).await;
        }
    };
    let connection = tokio::select! {
        connection = open => connection,
        () = expire => unreachable!("it does not return"),
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
