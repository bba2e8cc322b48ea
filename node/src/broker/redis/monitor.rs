//! Keeps [`Health`] up to date, sends its probes and acts on what they find.

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
use super::health::Pace;
use super::health::Task;
use super::whereabouts::Answer;
use super::whereabouts::Finding;
use crate::broker::Shard;
use crate::config;
use crate::metrics::Metrics;

/// How often to look for drops that are not logged yet.
const TICK: Duration = Duration::from_secs(1);

/// The broker's health, shared by its tasks. Every change of readiness is logged once.
pub(super) struct Monitor {
    state: Mutex<State>,
    changed: Notify,
    all: Arc<AllReady>,
    /// For people.
    address: String,
    metrics: Arc<Metrics>,
}

/// Over all servers: the broker is ready if each of them is.
pub(super) struct AllReady {
    unready: AtomicUsize,
    /// For each of them, in milliseconds.
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

    /// The last proof that `shard` brings what is published is that old.
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

    /// One of them is from now on, or no longer.
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
    pub(super) fn new(config: &config::Redis, all: Arc<AllReady>, metrics: Arc<Metrics>) -> Self {
        let pace = Pace {
            interval: config.probe_interval,
            timeout: config.probe_timeout,
        };
        let health = Health::new(pace, config.lanes, Instant::now().into_std());
        Self {
            state: Mutex::new(State {
                health,
                is_ready: false,
            }),
            changed: Notify::new(),
            all,
            address: config.server.address.to_string(),
            metrics,
        }
    }

    /// Notes whether publications can come back.
    pub(super) fn subscriber(&self, state: Result<(), String>) {
        self.change(|health, now| health.subscriber(state, now));
        self.changed.notify_one();
    }

    /// Notes whether a lane is connected.
    pub(super) fn lane(&self, index: usize, state: Result<(), String>) {
        self.change(|health, now| health.lane(index, state, now));
        self.changed.notify_one();
    }

    /// Notes that a probe came back; `data` is what [`probe_data`] made.
    pub(super) fn seen(&self, data: &[u8]) {
        let Some((lane, number)) = parse_probe(data) else {
            return; // Somebody else's bytes on our channel prove nothing.
        };
        if let Some(round_trip) = self.change(|health, now| health.seen(lane, number, now)) {
            self.metrics.probe_seen(round_trip);
        }
    }

    /// Notes what Redis answered to the probe `data`; what follows from it.
    pub(super) fn answered(&self, data: &[u8], answer: Answer) -> Option<Finding> {
        let (lane, number) = parse_probe(data)?;
        let finding = self.change(|health, now| health.answered(lane, number, answer, now))?;
        let redis = &self.address;
        match finding {
            Finding::Elsewhere => warn!(
                redis,
                lane, "the subscriber is at another server than this lane, connecting it anew"
            ),
            Finding::Changed => warn!(
                redis,
                "the server was demoted and is primary again, reading all streams"
            ),
        }
        Some(finding)
    }

    pub(super) fn readiness(&self) -> Result<(), String> {
        self.state.lock().health.readiness()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Health, std::time::Instant) -> T) -> T {
        let mut state = self.state.lock();
        let result = change(&mut state.health, Instant::now().into_std());
        let readiness = state.health.readiness();
        if readiness.is_ok() != state.is_ready {
            state.is_ready = readiness.is_ok();
            self.all.change(state.is_ready);
            let redis = &self.address;
            match readiness {
                Ok(()) => info!(redis, "the broker is ready"),
                Err(reason) => warn!(redis, reason, "the broker is not ready"),
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
                Task::Probe { lane, number } => {
                    let data = probe_data(lane, number);
                    broker.lanes[lane].push_probe(&broker.probe_channel, data);
                }
                Task::Miss { lane } => {
                    monitor.metrics.probes_missed.inc();
                    tracing::debug!(lane, "a probe did not come back in time");
                }
                Task::Reconnect {
                    lane,
                    ends: Ends::Lane,
                } => {
                    warn!(
                        lane,
                        "no probe comes back through this lane, connecting it anew"
                    );
                    broker.suspect_lane(lane);
                }
                Task::Reconnect {
                    lane,
                    ends: Ends::All,
                } => {
                    warn!(lane, "no probe comes back through redis, connecting anew");
                    broker.suspect_all_lanes();
                    broker.subscribing_stalled.send_replace(());
                }
            }
        }
        broker.drops.log();
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

fn probe_data(lane: usize, number: u64) -> Bytes {
    format!("{lane}:{number}").into()
}

fn parse_probe(data: &[u8]) -> Option<(usize, u64)> {
    let (lane, number) = std::str::from_utf8(data).ok()?.split_once(':')?;
    Some((lane.parse().ok()?, number.parse().ok()?))
}
