//! A new configuration in a running edge.
//!
//! It is read and checked as a whole before anything changes; then new requests go by it, and those in flight by the old one.
//! Backends that are in both keep their state, their tunnels and their sessions. Those that are gone from it drain.
//!
//! What cannot change while the edge runs is named in a warning, each time until the restart that it takes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::config::Limits;
use crate::exchange::Policy;
use crate::exchange::Rules;
use crate::hold::HoldConfig;
use crate::pool::Pools;

/// How often it is looked whether a backend that has left can be forgotten.
const TICK: Duration = Duration::from_secs(5);

/// Puts new configurations in the place of old ones.
pub(crate) struct Reloader {
    policy: Arc<Policy>,
    /// Whoever works on all pools follows them here.
    pools: watch::Sender<Arc<Pools>>,
    /// What the process was started with. Locked while the pools change: one change at a time.
    started: Mutex<Config>,
    wanted: Notify,
}

impl Reloader {
    /// `config` is what `policy` goes by now.
    pub(crate) fn new(policy: Arc<Policy>, config: Config) -> Self {
        Self {
            pools: watch::Sender::new(policy.pools()),
            policy,
            started: Mutex::new(config),
            wanted: Notify::new(),
        }
    }

    /// The pools, from now on.
    pub(crate) fn pools(&self) -> watch::Receiver<Arc<Pools>> {
        self.pools.subscribe()
    }

    /// Goes by `config` from now on.
    pub(crate) fn apply(&self, config: &Config, now: Instant) {
        let started = self.started.lock();
        let fixed = fixed(&started, config);
        let old = self.policy.pools();
        let pools = Arc::new(old.renewed(config, &self.policy.metrics, now));
        let rules = Rules::new(config, Arc::clone(&pools));
        self.policy.rules.store(Arc::new(rules));
        self.policy.waiting_room.change(HoldConfig::of(config));
        self.pools.send_replace(pools);
        self.policy.metrics.reloaded("applied");
        tracing::info!("configuration applied");
        if !fixed.is_empty() {
            tracing::warn!(settings = fixed.join(", "), "these settings take a restart");
        }
    }

    /// Asks for `file` to be read anew, soon.
    pub(crate) fn ask(&self) {
        self.wanted.notify_one();
    }

    /// Reads `file` whenever somebody asks, and forgets backends that have left, until `shutdown`.
    pub(crate) async fn run(self: Arc<Self>, file: Option<PathBuf>, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = self.wanted.notified() => {
                    if let Some(file) = &file {
                        self.reload(file);
                    }
                }
                _ = ticks.tick() => self.forget(Instant::now()),
            }
        }
    }

    /// Reads the file anew. One that is not valid changes nothing.
    pub(crate) fn reload(&self, file: &Path) {
        match Config::load(file) {
            Ok(config) => self.apply(&config, Instant::now()),
            Err(errors) => {
                self.policy.metrics.reloaded("refused");
                tracing::error!(%errors, "configuration refused, the old one stays");
            }
        }
    }

    fn forget(&self, now: Instant) {
        let _turn = self.started.lock();
        self.policy.pools().forget_unused(now);
    }
}

/// The settings that differ and that nothing but a restart can change.
fn fixed(started: &Config, new: &Config) -> Vec<&'static str> {
    // Each field is named, so that a new one is thought of here.
    let Config {
        listeners,
        admin,
        pools: _,
        zone: _,
        routes: _,
        no_route: _,
        affinity,
        timeouts,
        limits,
        drain,
        trusted_proxies: _,
        log,
        threads,
    } = new;
    let limits = Limits {
        retries: started.limits.retries,
        retry_budget: started.limits.retry_budget,
        waiting: started.limits.waiting,
        ..*limits
    };
    let sessions = affinity.sockjs_sessions != started.affinity.sockjs_sessions;
    let differ = [
        (*listeners != started.listeners, "listeners"),
        (*admin != started.admin, "admin"),
        (sessions, "affinity.sockjs_sessions"),
        (*timeouts != started.timeouts, "timeouts"),
        (
            limits != started.limits,
            "limits (connections, head_size, handshakes_per_address)",
        ),
        (*drain != started.drain, "drain"),
        (*log != started.log, "log"),
        (*threads != started.threads, "threads"),
    ];
    let changed = differ.into_iter().filter(|(differs, _)| *differs);
    changed.map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests;
