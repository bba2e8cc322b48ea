//! Updates [`Health`], sends its probes and acts on their results.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time;
use tokio::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing::warn;

use super::RedisBroker;
use super::health::Ends;
use super::health::Health;
use super::health::ProbeIntervals;
use super::health::Task;
use super::primary_check::Finding;
use super::primary_check::ProbeReply;
use crate::broker::Shard;
use crate::metrics::Metrics;
use crate::redis::Connector;
use crate::redis::Server;

/// How often to check for drops that are not logged yet.
const TICK: Duration = Duration::from_secs(1);

/// The broker's health, shared by its tasks. Every change of readiness is logged once.
pub(super) struct Monitor {
    state: Mutex<State>,
    changed: Notify,
    all: Arc<AllReady>,
    /// For logs.
    connector: Connector,
    metrics: Arc<Metrics>,
}

/// Readiness over all servers: the broker is ready if each of them is.
pub(super) struct AllReady {
    unready: AtomicUsize,
    /// For each server, in milliseconds.
    probe_ages: Vec<AtomicU64>,
    metrics: Arc<Metrics>,
}

impl AllReady {
    /// None of `servers` is ready yet.
    pub(super) fn new(servers: usize, metrics: &Arc<Metrics>) -> Self {
        Self {
            unready: AtomicUsize::new(servers),
            probe_ages: (0..servers).map(|_| AtomicU64::new(0)).collect(),
            metrics: Arc::clone(metrics),
        }
    }

    /// Sets the age of the last proof that `shard` delivers publications.
    fn note_probe_age(&self, shard: Shard, age: Duration) {
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        self.probe_ages[shard.0].store(age, Ordering::Relaxed);
        let ages = self
            .probe_ages
            .iter()
            .map(|age| age.load(Ordering::Relaxed));
        let oldest = ages.max().unwrap_or(0);
        self.metrics.probe_age_seconds.set(oldest as f64 / 1000.0);
    }

    /// One of them has become ready or not ready.
    fn change(&self, is_ready: bool) {
        let unready = if is_ready {
            self.unready.fetch_sub(1, Ordering::AcqRel) - 1
        } else {
            self.unready.fetch_add(1, Ordering::AcqRel) + 1
        };
        self.metrics.broker_ready.set(i64::from(unready == 0));
    }
}

struct State {
    health: Health,
    is_ready: bool,
}

impl Monitor {
    pub(super) fn new(server: &Server, all: Arc<AllReady>, metrics: Arc<Metrics>) -> Self {
        let config = &server.config;
        let intervals = ProbeIntervals {
            interval: config.probe_interval,
            timeout: config.probe_timeout,
        };
        let health = Health::new(intervals, config.publish_queues, Instant::now().into_std());
        Self {
            state: Mutex::new(State {
                health,
                is_ready: false,
            }),
            changed: Notify::new(),
            all,
            connector: server.connector.clone(),
            metrics,
        }
    }

    /// Sets whether publications can be received.
    pub(super) fn subscriber(&self, state: Result<(), String>) {
        self.change(|health, now| health.subscriber(state, now));
        self.changed.notify_one();
    }

    /// Sets whether a publish queue is connected.
    pub(super) fn queue(&self, index: usize, state: Result<(), String>) {
        self.change(|health, now| health.queue(index, state, now));
        self.changed.notify_one();
    }

    /// A probe was received; `data` was made by [`probe_data`].
    pub(super) fn seen(&self, data: &[u8]) {
        let Some((queue, number)) = parse_probe(data) else {
            return; // Other data on the probe channel proves nothing.
        };
        if let Some(round_trip) = self.change(|health, now| health.seen(queue, number, now)) {
            self.metrics.probe_seen(round_trip);
        }
    }

    /// Redis has replied to the probe `data`; returns what follows from the reply.
    pub(super) fn answered(&self, data: &[u8], reply: ProbeReply) -> Option<Finding> {
        let (queue, number) = parse_probe(data)?;
        let finding = self.change(|health, now| health.answered(queue, number, reply, now))?;
        let redis = &self.connector;
        match finding {
            Finding::Elsewhere => warn!(
                %redis,
                queue,
                "the subscriber is connected to another server than this publish queue, reconnecting it"
            ),
            Finding::Changed => warn!(
                %redis,
                "the server was demoted and is primary again, reading all streams"
            ),
        }
        Some(finding)
    }

    pub(super) fn readiness(&self) -> Result<(), String> {
        let readiness = self.state.lock().health.readiness();
        readiness.map_err(|reason| format!("redis {}: {reason}", self.connector))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Health, std::time::Instant) -> T) -> T {
        let mut state = self.state.lock();
        let result = change(&mut state.health, Instant::now().into_std());
        let readiness = state.health.readiness();
        if readiness.is_ok() != state.is_ready {
            state.is_ready = readiness.is_ok();
            self.all.change(state.is_ready);
            let redis = &self.connector;
            match readiness {
                Ok(()) => info!(%redis, "the broker is ready"),
                Err(reason) => warn!(%redis, reason, "the broker is not ready"),
            }
        }
        result
    }
}

/// Sends probes and acts on missed ones, until `shutdown`.
pub(super) async fn run(broker: Arc<RedisBroker>, shutdown: CancellationToken) {
    let monitor = &broker.monitor;
    loop {
        let tasks = monitor.change(Health::due);
        for task in tasks {
            match task {
                Task::Probe { queue, number } => {
                    let data = probe_data(queue, number);
                    broker.queues[queue].push_probe(&broker.probe_channel, data);
                }
                Task::Miss { queue } => {
                    monitor.metrics.probes_missed.inc();
                    tracing::debug!(queue, "a probe was not received in time");
                }
                Task::Reconnect {
                    queue,
                    ends: Ends::Queue,
                } => {
                    warn!(
                        queue,
                        "no probes are received through this publish queue, reconnecting it"
                    );
                    broker.suspect_queue(queue);
                }
                Task::Reconnect {
                    queue,
                    ends: Ends::All,
                } => {
                    warn!(
                        queue,
                        "no probes are received through redis, reconnecting all"
                    );
                    broker.suspect_all_queues();
                    broker.subscribing_stalled.send_replace(());
                }
            }
        }
        broker.drop_counters.log();
        let age = monitor
            .state
            .lock()
            .health
            .probe_age(Instant::now().into_std());
        monitor.all.note_probe_age(broker.shard, age);
        let tick = Instant::now() + TICK;
        let next_at = monitor.state.lock().health.next_at();
        let wake_at = next_at.map_or(tick, |at| tick.min(at.into()));
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = monitor.changed.notified() => {}
            () = time::sleep_until(wake_at) => {}
        }
    }
}

fn probe_data(queue: usize, number: u64) -> Bytes {
    format!("{queue}:{number}").into()
}

fn parse_probe(data: &[u8]) -> Option<(usize, u64)> {
    let (queue, number) = std::str::from_utf8(data).ok()?.split_once(':')?;
    Some((queue.parse().ok()?, number.parse().ok()?))
}
