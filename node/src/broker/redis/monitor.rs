//! Updates [`Health`], sends its probes and acts on their results.

use std::sync::Arc;

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
use super::health::Lost;
use super::health::ProbeIntervals;
use super::health::Task;
use super::primary_check::Finding;
use super::primary_check::ProbeReply;
use crate::broker::Shard;
use crate::config;
use crate::metrics::Metrics;
use crate::redis::Connector;

/// How often to check for drops that are not logged yet.
const TICK: Duration = Duration::from_secs(1);

/// The broker's health, shared by its tasks. Every change of readiness is logged once.
pub(super) struct Monitor {
    state: Mutex<State>,
    changed: Notify,
    /// The address in the metric of a shard.
    noted: Mutex<Option<String>>,
    shard: Shard,
    all: Arc<AllReady>,
    /// For logs.
    connector: Connector,
    metrics: Arc<Metrics>,
}

/// Readiness over all servers: the broker is ready if each of them is, or any.
pub(super) struct AllReady {
    shards: Mutex<Shards>,
    metrics: Arc<Metrics>,
}

struct Shards {
    each: Vec<ShardState>,
    /// Whether one that is not ready makes the broker so.
    needs_all: bool,
    /// Slots of a cluster that no server has.
    uncovered: usize,
}

#[derive(Debug, Clone, Copy, Default)]
struct ShardState {
    is_ready: bool,
    /// It has slots, or is no shard of a cluster.
    is_counted: bool,
    probe_age: Duration,
}

impl AllReady {
    /// None of `servers` is ready yet.
    pub(super) fn new(servers: usize, metrics: &Arc<Metrics>) -> Self {
        let all = Self::of_cluster(true, metrics);
        for index in 0..servers {
            all.add(Shard(index));
            all.count(Shard(index), true);
        }
        all
    }

    /// For the shards of a cluster, which are added later.
    pub(super) fn of_cluster(needs_all: bool, metrics: &Arc<Metrics>) -> Self {
        Self {
            shards: Mutex::new(Shards {
                each: Vec::new(),
                needs_all,
                uncovered: 0,
            }),
            metrics: Arc::clone(metrics),
        }
    }

    /// Adds a shard, which does not count yet.
    pub(super) fn add(&self, shard: Shard) {
        self.update(|shards| shards.each.resize(shard.0 + 1, ShardState::default()));
    }

    /// Sets whether a shard counts.
    pub(super) fn count(&self, shard: Shard, is_counted: bool) {
        self.update(|shards| shards.each[shard.0].is_counted = is_counted);
    }

    /// Sets how many slots of a cluster have no server.
    pub(super) fn note_uncovered(&self, slots: usize) {
        self.update(|shards| shards.uncovered = slots);
    }

    /// Whether the broker is ready, by the readiness of `each` shard.
    ///
    /// # Errors
    ///
    /// The reason, as text.
    pub(super) fn check(&self, each: &[Result<(), String>]) -> Result<(), String> {
        let shards = self.shards.lock();
        if shards.needs_all && 0 < shards.uncovered {
            let slots = shards.uncovered;
            return Err(format!("{slots} slots of the redis cluster have no server"));
        }
        let counted = shards.each.iter().zip(each);
        let counted = counted.filter(|(shard, _)| shard.is_counted);
        let (ready, unready): (Vec<_>, Vec<_>) = counted
            .map(|(_, state)| state)
            .partition(|state| state.is_ok());
        match unready.first() {
            Some(Err(reason)) if shards.needs_all || ready.is_empty() => Err(reason.clone()),
            _ if ready.is_empty() => {
                Err("no shard of the redis cluster has been found yet".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// Sets the age of the last proof that `shard` delivers publications.
    fn note_probe_age(&self, shard: Shard, age: Duration) {
        let mut shards = self.shards.lock();
        shards.each[shard.0].probe_age = age;
        let counted = shards.each.iter().filter(|shard| shard.is_counted);
        let oldest = counted.map(|shard| shard.probe_age).max();
        let oldest = oldest.unwrap_or_default();
        self.metrics
            .probe_age_seconds
            .set(oldest.as_millis() as f64 / 1000.0);
    }

    /// A shard has become ready or not ready.
    fn change(&self, shard: Shard, is_ready: bool) {
        self.update(|shards| shards.each[shard.0].is_ready = is_ready);
    }

    fn update(&self, change: impl FnOnce(&mut Shards)) {
        let mut shards = self.shards.lock();
        change(&mut shards);
        let mut counted = shards
            .each
            .iter()
            .filter(|shard| shard.is_counted)
            .peekable();
        let has_some = counted.peek().is_some();
        let is_ready = match shards.needs_all {
            true => has_some && shards.uncovered == 0 && counted.all(|shard| shard.is_ready),
            false => counted.any(|shard| shard.is_ready),
        };
        self.metrics.broker_ready.set(i64::from(is_ready));
    }
}

struct State {
    health: Health,
    is_ready: bool,
}

impl Monitor {
    pub(super) fn new(
        config: &config::Redis,
        connector: &Connector,
        (shard, all): (Shard, Arc<AllReady>),
        metrics: Arc<Metrics>,
    ) -> Self {
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
            noted: Mutex::default(),
            shard,
            all,
            connector: connector.clone(),
            metrics,
        }
    }

    /// Sets whether publications can be received.
    pub(super) fn subscriber(&self, state: Result<(), String>) {
        self.change(|health, now| health.subscriber(state, now));
        self.changed.notify_one();
    }

    /// Sets whether a publish queue is connected.
    pub(super) fn queue(&self, index: usize, state: Result<(), Lost>) {
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

    /// Updates the metric of a shard of a cluster; `None`: it has no slots.
    fn note_ready(&self, is_ready: Option<bool>) {
        let address = self.connector.to_string();
        let mut noted = self.noted.lock();
        if let Some(before) = noted.take_if(|before| *before != address) {
            self.metrics.broker_shard_ready(&before, None);
        }
        self.metrics.broker_shard_ready(&address, is_ready);
        *noted = Some(address);
    }

    fn change<T>(&self, change: impl FnOnce(&mut Health, std::time::Instant) -> T) -> T {
        let mut state = self.state.lock();
        let result = change(&mut state.health, Instant::now().into_std());
        let readiness = state.health.readiness();
        if readiness.is_ok() != state.is_ready {
            state.is_ready = readiness.is_ok();
            self.all.change(self.shard, state.is_ready);
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
                    if let Some(channel) = broker.probe_channel() {
                        let slot = broker.slot(&channel);
                        broker.queues[queue].push_probe(&channel, slot, data);
                    }
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
        if broker.member.is_some() {
            let is_ready = monitor.state.lock().is_ready;
            let is_ready = broker.probe_channel().map(|_| is_ready);
            monitor.note_ready(is_ready);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> Result<(), String> {
        Ok(())
    }

    fn unready() -> Result<(), String> {
        Err("it is away".to_owned())
    }

    fn of_two(needs_all: bool) -> AllReady {
        let all = AllReady::of_cluster(needs_all, &Metrics::new());
        for shard in [Shard(0), Shard(1)] {
            all.add(shard);
            all.count(shard, true);
        }
        all
    }

    #[test]
    fn one_shard_of_a_cluster_makes_it_unready_or_only_all_of_them_do() {
        for needs_all in [true, false] {
            let all = of_two(needs_all);
            assert_eq!(all.check(&[ready(), ready()]), ready());
            assert_eq!(all.check(&[unready(), unready()]), unready());
            assert_eq!(all.check(&[ready(), unready()]).is_ok(), !needs_all);
            all.note_uncovered(3);
            assert_eq!(all.check(&[ready(), ready()]).is_ok(), !needs_all);
        }
    }

    #[test]
    fn a_shard_without_slots_does_not_count() {
        let all = of_two(true);
        all.count(Shard(1), false);
        assert_eq!(all.check(&[ready(), unready()]), ready());
        all.count(Shard(0), false);
        assert!(all.check(&[ready(), ready()]).is_err());
    }
}
