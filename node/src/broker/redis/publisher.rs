//! The task of a publish queue: takes batches off the queue and pipelines them over one connection, one batch at a time.
//!
//! It takes one connection from the pool and keeps it: deadpool checks at each checkout whether the
//! connection is alive, which is a round trip. It is returned for just that check when the subscriber has
//! lost Redis, since then this one is probably dead too, and what is written to a dead connection is lost.
//!
//! One batch is in flight at a time, so at most one batch can be lost with a connection, and one queue is
//! enough to keep the order.

use std::sync::Arc;

use deadpool_redis::Connection;
use deadpool_redis::Manager;
use deadpool_redis::Pool;
use deadpool_redis::PoolConfig;
use deadpool_redis::Runtime;
use deadpool_redis::Timeouts;
use deadpool_redis::redis::AsyncConnectionConfig;
use deadpool_redis::redis::Pipeline;
use deadpool_redis::redis::RedisError;
use deadpool_redis::redis::Value;
use tokio::sync::watch;
use tokio::time;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::RedisBroker;
use super::chain;
use super::fence;
use super::fence::Identity;
use super::outcome;
use super::primary_check::Finding;
use super::publish_queue::Entry;
use super::publish_queue::Outcome;
use super::publish_queue::PublishQueue;
use super::scripts;
use super::scripts::Run;
use crate::config;
use crate::metrics::Side;
use crate::redis;
use crate::redis::Backoff;

/// A pool with room for one connection of each publish queue. Nothing is connected yet.
pub(super) fn pool(config: &config::Redis) -> Pool {
    let info = redis::connection_info(&config.server);
    // redis-rs times out after 500 ms without a reply by default, and deadpool never.
    let timeouts = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(config.connect_timeout))
        .set_response_timeout(Some(config.response_timeout));
    let manager = Manager::new_with_config(info, timeouts).expect("an address needs no parsing");
    let mut settings = PoolConfig::new(config.lanes + 1);
    settings.timeouts = Timeouts {
        wait: Some(config.connect_timeout),
        create: Some(config.connect_timeout),
        recycle: Some(config.connect_timeout),
    };
    Pool::builder(manager)
        .config(settings)
        .runtime(Runtime::Tokio1)
        .build()
        .expect("a runtime is named, as timeouts need")
}

/// Publishes the entries of queue `index` until `shutdown`, then those that are left.
pub(super) async fn run(
    broker: Arc<RedisBroker>,
    index: usize,
    pool: Pool,
    shutdown: CancellationToken,
) {
    let mut publisher = Publisher {
        queue: &broker.queues[index],
        suspect: broker.queue_suspects[index].subscribe(),
        backoff: Backoff::new(broker.config.backoff_max),
        last: None,
        store_script: Err("not loaded yet".to_owned()),
        probe_script: None,
        kind: if index < broker.config.lanes {
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
    pool: Pool,
    suspect: watch::Receiver<()>,
    backoff: Backoff,
    /// The last abandoned connection, until Redis has certainly closed it.
    last: Option<Identity>,
    /// The digest of [`scripts::STORE`], or why Redis rejects it.
    store_script: Result<String, String>,
    /// The digest of [`scripts::PROBE`]. Without it probes are published like publications.
    probe_script: Option<String>,
}

/// Why a connection is no longer used.
enum End {
    /// The node is stopping.
    Shutdown(Connection),
    /// It may be dead: the pool is to check it.
    Suspect(Connection),
    /// It has failed.
    Broken(String),
}

impl Publisher<'_> {
    /// Publishes until `shutdown`; returns the connection, if there is one.
    async fn serve(&mut self, shutdown: &CancellationToken) -> Option<Connection> {
        loop {
            let connection = tokio::select! {
                biased;
                () = shutdown.cancelled() => return None,
                connection = connect(self) => connection,
            };
            match self.publish(connection, shutdown).await {
                End::Shutdown(connection) => return Some(connection),
                End::Suspect(connection) => {
                    self.last = None; // All commands sent over it have their replies.
                    drop(connection); // Back into the pool, which checks it at the next checkout.
                }
                End::Broken(reason) => {
                    self.broker.metrics.broker_lost(Side::Publish);
                    self.broker.monitor.queue(self.index, Err(reason));
                }
            }
        }
    }

    async fn publish(&mut self, mut connection: Connection, shutdown: &CancellationToken) -> End {
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return End::Shutdown(connection),
                Ok(()) = self.suspect.changed() => return End::Suspect(connection),
                () = self.queue.arrival() => {}
            }
            if let Err(reason) = self.send(&mut connection).await {
                drop(Connection::take(connection)); // Closed, instead of returned to the pool.
                return End::Broken(reason);
            }
        }
    }

    /// Sends the next batch and waits for its replies.
    async fn send(&mut self, connection: &mut Connection) -> Result<(), String> {
        let batch = self.queue.take_batch();
        if batch.is_empty() {
            return Ok(());
        }
        let (batch, unpublishable) = self.publishable(batch);
        self.queue.settle(unpublishable);
        let commands = self.commands(&batch);
        let answers = connection.send_packed_commands(&commands, 0, commands.len());
        match answers.await {
            Ok(answers) => self.settle(batch, answers),
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

    fn commands(&self, batch: &[Entry]) -> Pipeline {
        let mut commands = Pipeline::with_capacity(batch.len());
        for entry in batch {
            match (&entry.storing, &self.store_script, &self.probe_script) {
                (Some(storing), Ok(digest), _) => {
                    commands.add_command(scripts::store(Run::Digest(digest), &storing.store));
                }
                (None, _, Some(digest)) if entry.is_probe() => {
                    let (run, data) = (Run::Digest(digest), entry.data.as_ref());
                    commands.add_command(scripts::probe(run, &entry.channel, data));
                }
                _ => {
                    let command = commands.cmd("PUBLISH").arg(entry.channel.as_str());
                    command.arg(entry.data.as_ref());
                }
            }
        }
        if self.kind == QueueKind::Replicated && !batch.is_empty() {
            let patience = self.broker.config.response_timeout / 2;
            commands
                .cmd("WAIT")
                .arg(1)
                .arg(patience.as_millis().to_string());
        }
        commands
    }

    /// Completes a batch by the replies of Redis.
    fn settle(&mut self, batch: Vec<Entry>, mut answers: Vec<Value>) -> Result<(), String> {
        let confirmed = answers.get(batch.len()).cloned();
        answers.truncate(batch.len());
        for (probe, answer) in batch.iter().zip(&answers) {
            if probe.is_probe() {
                self.probed(&probe.data, answer);
            }
        }
        let mut sorted = outcome::sort(batch, answers);
        if self.kind == QueueKind::Replicated {
            outcome::need_replica(&mut sorted.ended, confirmed.as_ref());
        }
        let refusal = sorted.ended.iter().find_map(|(_, outcome)| match outcome {
            Outcome::Refused(answer) => Some(answer.clone()),
            _ => None,
        });
        if let Some(answer) = refusal {
            self.broker.drop_counters.note_answer(answer);
        }
        self.queue.settle(sorted.ended);
        if sorted.retried.is_empty() {
            return Ok(());
        }
        self.queue.put_back(sorted.retried);
        Err("redis accepts no publications at the moment".to_owned())
    }

    /// Processes the reply to a probe.
    fn probed(&mut self, probe: &[u8], answer: &Value) {
        if let Value::ServerError(error) = answer
            && !outcome::is_for_now(error.code())
        {
            debug!(queue = self.index, %error, "probes are published without a script");
            self.probe_script = None;
        }
        let Ok(answer) = scripts::probed(answer) else {
            return;
        };
        match self.broker.monitor.answered(probe, answer) {
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
    async fn open(&mut self) -> Result<Connection, String> {
        let mut connection = self.pool.get().await.map_err(|error| chain(&error))?;
        let role = format!("publish-{}", self.index);
        let name = redis::connection_name(&self.broker.node_id, &role, fastrand::u64(..));
        let fenced = async {
            let identity = fence::identify(&mut connection, name).await?;
            if let Some(last) = &self.last {
                fence::wait_closed(&mut connection, last).await?;
            }
            let store = load(&mut connection, scripts::STORE).await?;
            let probe = load(&mut connection, scripts::PROBE).await?;
            Ok::<_, RedisError>((identity, store, probe))
        };
        match fenced.await {
            Ok((identity, store, probe)) => {
                self.last = identity;
                self.store_script = store;
                self.probe_script = probe.ok();
                Ok(connection)
            }
            Err(error) => {
                drop(Connection::take(connection));
                Err(chain(&error))
            }
        }
    }

    /// Publishes what is left with `connection`, about one response timeout long, and drops the rest.
    async fn finish(&mut self, connection: Option<Connection>) {
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

/// Loads a script; returns its digest, or Redis's error.
async fn load(
    connection: &mut Connection,
    script: &str,
) -> Result<Result<String, String>, RedisError> {
    let mut load = Pipeline::new();
    load.cmd("SCRIPT").arg("LOAD").arg(script);
    let answers = connection.send_packed_commands(&load, 0, 1).await?;
    Ok(match answers.as_slice() {
        [Value::BulkString(digest)] => Ok(String::from_utf8_lossy(digest).into_owned()),
        [Value::ServerError(error)] => Err(error.to_string()),
        _ => Err("redis returned no digest for a script".to_owned()),
    })
}

/// Connects, with retries without end. Meanwhile expired entries are dropped from the queue.
async fn connect(publisher: &mut Publisher<'_>) -> Connection {
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
                    hear_first(publisher.broker).await;
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
async fn hear_first(broker: &RedisBroker) {
    let mut hearing = broker.hearing.subscribe();
    let patience = broker.config.backoff_max + broker.config.connect_timeout;
    // The sender is the broker's own, so it exists; and a timeout is no failure.
    let _ = time::timeout(patience, hearing.wait_for(|hears| *hears)).await;
}
