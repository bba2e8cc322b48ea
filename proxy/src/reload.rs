//! A new configuration in a running edge.
//!
//! It is read and checked as a whole before anything changes; then new requests go by it, and those in flight by the old one.
//! Backends that are in both keep their state, their tunnels and their sessions. Those that are gone from it drain.
//!
//! What cannot change while the edge runs is named in a warning, each time until the restart that it takes.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::backend::BackendId;
use crate::config::BackendConfig;
use crate::config::Config;
use crate::config::DiscoverConfig;
use crate::exchange::Policy;
use crate::exchange::Rules;
use crate::hold::HoldConfig;
use crate::pool::Pools;
use crate::tls::{Connectors, PoolTlsError};

/// How often it is looked whether a backend that has left can be forgotten.
const TICK: Duration = Duration::from_secs(5);

/// Puts new configurations in the place of old ones.
pub(crate) struct Reloader {
    policy: Arc<Policy>,
    /// Whoever works on all pools follows them here.
    pools: watch::Sender<Arc<Pools>>,
    /// Locked while the pools change: one change at a time.
    state: Mutex<State>,
    /// Where backends are looked for.
    discoveries: watch::Sender<Vec<Discovery>>,
    wanted: Notify,
}

struct State {
    /// What the process was started with.
    started: Config,
    /// What the file says now.
    file: Config,
    /// What speaks TLS to the backends of its pools.
    tls: Connectors,
    /// Backends that were found besides, by pool.
    found: HashMap<String, Vec<BackendConfig>>,
}

/// Where the backends of a pool are looked for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Discovery {
    pub(crate) pool: String,
    pub(crate) config: DiscoverConfig,
}

impl Reloader {
    /// `config` is what `policy` goes by now, and `tls` belongs to it.
    pub(crate) fn new(policy: Arc<Policy>, config: Config, tls: Connectors) -> Self {
        Self {
            pools: watch::Sender::new(policy.pools()),
            policy,
            discoveries: watch::Sender::new(discoveries(&config)),
            state: Mutex::new(State {
                started: config.clone(),
                file: config,
                tls,
                found: HashMap::new(),
            }),
            wanted: Notify::new(),
        }
    }

    /// The pools, from now on.
    pub(crate) fn pools(&self) -> watch::Receiver<Arc<Pools>> {
        self.pools.subscribe()
    }

    /// Where backends are looked for, from now on.
    pub(crate) fn discoveries(&self) -> watch::Receiver<Vec<Discovery>> {
        self.discoveries.subscribe()
    }

    /// Goes by `config` from now on.
    ///
    /// # Errors
    ///
    /// [`PoolTlsError`] if a file that it names is wrong; then nothing changes.
    pub(crate) fn apply(&self, config: &Config, now: Instant) -> Result<(), PoolTlsError> {
        let tls = Connectors::load(config)?;
        let mut state = self.state.lock();
        let fixed = fixed(&state.started, config);
        state.file = config.clone();
        state.tls = tls;
        let wanted = discoveries(config);
        // What was found elsewhere is nothing to go by.
        state.found.retain(|pool, _| {
            let is_same = |discovery: &&Discovery| discovery.pool == *pool;
            let before = self.discoveries.borrow();
            wanted.iter().find(is_same) == before.iter().find(is_same)
        });
        self.put_in_place(&state, now);
        self.discoveries.send_if_modified(|discoveries| {
            let is_changed = *discoveries != wanted;
            *discoveries = wanted;
            is_changed
        });
        self.policy.metrics.reloaded("applied");
        tracing::info!("configuration applied");
        if !fixed.is_empty() {
            tracing::warn!(settings = fixed.join(", "), "these settings take a restart");
        }
        Ok(())
    }

    /// Goes by these backends of `pool` from now on, besides those of the file.
    pub(crate) fn found(&self, pool: &str, backends: Vec<BackendConfig>, now: Instant) {
        let mut state = self.state.lock();
        state.found.insert(pool.to_owned(), backends);
        self.put_in_place(&state, now);
    }

    fn put_in_place(&self, state: &State, now: Instant) {
        let config = &with_found(&state.file, &state.found);
        let old = self.policy.pools();
        let pools = Arc::new(old.renewed(config, &state.tls, &self.policy.metrics, now));
        let rules = Rules::new(config, Arc::clone(&pools), &self.policy.metrics);
        self.policy.rules.store(Arc::new(rules));
        self.policy.waiting_room.change(HoldConfig::of(config));
        self.policy
            .gate
            .change(&config.limits, &config.trusted_proxies);
        self.pools.send_replace(pools);
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
        let applied = match Config::load(file) {
            Ok(config) => self
                .apply(&config, Instant::now())
                .map_err(|error| error.to_string()),
            Err(errors) => Err(errors.to_string()),
        };
        if let Err(errors) = applied {
            self.policy.metrics.reloaded("refused");
            tracing::error!(errors, "configuration refused, the old one stays");
        }
    }

    fn forget(&self, now: Instant) {
        let _turn = self.state.lock();
        self.policy.pools().forget_unused(now);
    }
}

fn discoveries(config: &Config) -> Vec<Discovery> {
    let pools = config.pools.iter();
    let discoveries = pools.filter_map(|pool| {
        Some(Discovery {
            pool: pool.name.clone(),
            config: pool.discover.clone()?,
        })
    });
    discoveries.collect()
}

/// `file` with the backends that were found. An id that is in it already, in whichever pool, is taken.
fn with_found(file: &Config, found: &HashMap<String, Vec<BackendConfig>>) -> Config {
    let mut config = file.clone();
    let named = config.pools.iter().flat_map(|pool| &pool.backends);
    let mut taken: HashSet<BackendId> = named.map(|backend| backend.id.clone()).collect();
    for pool in &mut config.pools {
        for backend in found.get(&pool.name).into_iter().flatten() {
            if taken.insert(backend.id.clone()) {
                pool.backends.push(backend.clone());
            } else {
                tracing::warn!(pool = pool.name, backend = %backend.id, "a node has the id of another backend and is left out");
            }
        }
    }
    config
}

/// The settings that differ and that nothing but a restart can change.
fn fixed(started: &Config, new: &Config) -> Vec<&'static str> {
    // Each field is named, so that a new one is thought of here.
    let Config {
        listeners,
        admin,
        websockets_over_http2,
        abort_on_client_close,
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
    let sessions = affinity.sockjs_sessions != started.affinity.sockjs_sessions;
    let differ = [
        (*listeners != started.listeners, "listeners"),
        (*admin != started.admin, "admin"),
        (
            *websockets_over_http2 != started.websockets_over_http2,
            "websockets_over_http2",
        ),
        (
            *abort_on_client_close != started.abort_on_client_close,
            "abort_on_client_close",
        ),
        (sessions, "affinity.sockjs_sessions"),
        (*timeouts != started.timeouts, "timeouts"),
        (
            limits.connections != started.limits.connections,
            "limits.connections",
        ),
        (
            limits.head_size != started.limits.head_size,
            "limits.head_size",
        ),
        (
            limits.response_head_size != started.limits.response_head_size,
            "limits.response_head_size",
        ),
        (limits.headers != started.limits.headers, "limits.headers"),
        (
            limits.http2_streams != started.limits.http2_streams,
            "limits.http2_streams",
        ),
        (
            limits.http2_send_buffer != started.limits.http2_send_buffer,
            "limits.http2_send_buffer",
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
