//! A new configuration in a running edge.
//!
//! It is read and checked as a whole before anything changes; then new requests go by it, and those in flight by the old one.
//! Backends that are in both keep their state, their tunnels and their sessions. Those that are gone from it drain.
//!
//! What cannot change while the edge runs is named in a warning, each time until the restart that it takes.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::balancer::pool::Pools;
use crate::config::BACKENDS_MAX;
use crate::config::BackendConfig;
use crate::config::Config;
use crate::config::DiscoverConfig;
use crate::config::backend::{Address, BackendId};
use crate::limits::Seldom;
use crate::net::resolver::{Allowed, Names};
use crate::request::exchange::ProxyState;
use crate::request::exchange::Rules;
use crate::request::parked::ParkConfig;
use crate::tls::{Connectors, PoolTlsError};

/// How often it is looked whether a backend that has left can be forgotten.
const TICK: Duration = Duration::from_secs(5);

/// Puts new configurations in the place of old ones.
pub(crate) struct Reloader {
    proxy: Arc<ProxyState>,
    /// Whoever works on all pools follows them here.
    pools: watch::Sender<Arc<Pools>>,
    /// Locked while the pools change: one change at a time.
    state: Mutex<State>,
    /// Where backends are looked for.
    discoveries: watch::Sender<Vec<Discovery>>,
    /// The host names of backends.
    names: Arc<Names>,
    wanted: Notify,
    left_out: Seldom,
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
    /// Whether there is no room for some of them.
    is_full: bool,
    /// How many discoveries there were.
    discoveries: u64,
}

/// Where the backends of a pool are looked for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Discovery {
    pub(crate) pool: String,
    pub(crate) config: DiscoverConfig,
    /// Another one for each change of `config`: what was found by a former one is stale.
    number: u64,
}

impl Reloader {
    /// `config` is what `proxy` goes by now, and `tls` belongs to it. `names` are those of its backends.
    pub(crate) fn new(
        proxy: Arc<ProxyState>,
        config: Config,
        tls: Connectors,
        names: Arc<Names>,
    ) -> Self {
        let discoveries = discoveries(&config);
        Self {
            pools: watch::Sender::new(proxy.pools()),
            proxy,
            state: Mutex::new(State {
                started: config.clone(),
                file: config,
                tls,
                found: HashMap::new(),
                is_full: false,
                discoveries: discoveries.len() as u64,
            }),
            discoveries: watch::Sender::new(discoveries),
            names,
            wanted: Notify::new(),
            left_out: Seldom::new(Instant::now()),
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
        let wanted = self.number(&mut state, discoveries(config));
        self.put_in_place(&mut state, now);
        self.discoveries.send_if_modified(|discoveries| {
            let is_changed = *discoveries != wanted;
            *discoveries = wanted;
            is_changed
        });
        self.proxy.metrics.reloaded("applied");
        tracing::info!("configuration applied");
        for warning in config.warnings(SystemTime::now()) {
            tracing::warn!(warning, "the configuration is likely not meant so");
        }
        if !fixed.is_empty() {
            tracing::warn!(settings = fixed.join(", "), "these settings take a restart");
        }
        Ok(())
    }

    /// Numbers what is looked for from now on, and drops what was found elsewhere.
    fn number(&self, state: &mut State, mut wanted: Vec<Discovery>) -> Vec<Discovery> {
        let before = self.discoveries.borrow();
        for Discovery { pool, .. } in before.iter() {
            if !wanted.iter().any(|discovery| discovery.pool == *pool) {
                state.found.remove(pool);
                self.proxy.metrics.nodes_passed_over(pool, None);
            }
        }
        for discovery in &mut wanted {
            let old = before.iter().find(|old| old.pool == discovery.pool);
            let Discovery { pool, config, .. } = &*discovery;
            if let Some(old) = old.filter(|old| old.config == *config) {
                discovery.number = old.number;
                continue;
            }
            if !old.is_some_and(|old| old.config.is_registry_of(config)) {
                state.found.remove(pool);
            }
            for backend in state.found.get_mut(pool).into_iter().flatten() {
                backend.allowed = Some(Arc::clone(&config.allow));
            }
            if let Some(found) = state.found.get_mut(pool) {
                found.retain(|backend| match &backend.address {
                    Address::Ip(address) => config.allow.contains(address.ip()),
                    Address::Name { .. } | Address::Unix(_) => true,
                });
            }
            state.discoveries += 1;
            discovery.number = state.discoveries;
        }
        wanted
    }

    /// Goes by the backends that `discovery` has found from now on, besides those of the file: unless it is not looked for like
    /// that any more.
    pub(crate) fn found(&self, discovery: &Discovery, backends: Vec<BackendConfig>, now: Instant) {
        let mut state = self.state.lock();
        if !self.discoveries.borrow().contains(discovery) {
            tracing::debug!(pool = discovery.pool, "what was found is stale");
            return;
        }
        state.found.insert(discovery.pool.clone(), backends);
        self.put_in_place(&mut state, now);
    }

    /// The backends of `pool` that were found.
    pub(crate) fn known(&self, pool: &str) -> Vec<BackendConfig> {
        let state = self.state.lock();
        state.found.get(pool).cloned().unwrap_or_default()
    }

    /// Takes note of how many nodes in the registry of `pool` are passed over.
    pub(crate) fn passed_over(&self, pool: &str, nodes: usize) {
        self.proxy.metrics.nodes_passed_over(pool, Some(nodes));
    }

    /// Takes in that the backend called `id` of `pool` has said where it was found that it is stopping.
    pub(crate) fn announced_stop(&self, pool: &str, id: &BackendId, now: Instant) {
        let pools = self.proxy.pools();
        if let Some(pool) = pools.iter().find(|other| other.name == pool) {
            pool.announced_stop(id, now);
        }
    }

    fn put_in_place(&self, state: &mut State, now: Instant) {
        let old = self.proxy.pools();
        let (config, left_out) = with_found(&state.file, &state.found, &old);
        let config = &config;
        state.is_full = left_out.full.is_some();
        if let Some(times) = left_out.any().and_then(|_| self.left_out.note(now)) {
            let LeftOut { taken, full } = left_out;
            tracing::warn!(
                taken,
                full,
                times,
                "nodes are left out, having the id of another backend (taken) or no room (full)"
            );
        }
        let pools = Arc::new(old.renewed(config, &state.tls, &self.proxy.metrics, now));
        self.names.keep(&host_names(&pools));
        let rules = Rules::new(config, Arc::clone(&pools), &self.proxy.metrics);
        self.proxy.rules.store(Arc::new(rules));
        self.proxy.parked.change(ParkConfig::of(config));
        self.proxy
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
                        self.reload(file).await;
                    }
                }
                _ = ticks.tick() => self.forget(Instant::now()),
            }
        }
    }

    /// Reads the file anew. One that is not valid changes nothing.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future leaves it open whether the file is applied.
    pub(crate) async fn reload(self: &Arc<Self>, file: &Path) {
        let (reloader, file) = (Arc::clone(self), file.to_owned());
        // Not on a thread that others need: the file system may hang.
        let reloading = tokio::task::spawn_blocking(move || {
            let config = Config::load(&file).map_err(|errors| errors.to_string())?;
            let applied = reloader.apply(&config, Instant::now());
            applied.map_err(|error| error.to_string())
        });
        let refused = match reloading.await {
            Ok(Ok(())) => return,
            Ok(Err(errors)) => errors,
            // The log has its panic.
            Err(ended) => ended.to_string(),
        };
        self.proxy.metrics.reloaded("refused");
        tracing::error!(errors = refused, "configuration refused, the old one stays");
    }

    fn forget(&self, now: Instant) {
        let mut state = self.state.lock();
        let pools = self.proxy.pools();
        if !pools.forget_unused(&self.proxy.metrics, now) {
            return;
        }
        self.names.keep(&host_names(&pools));
        if state.is_full {
            self.put_in_place(&mut state, now);
        }
    }
}

/// The host names of all backends, with the addresses that each may have.
fn host_names(pools: &Pools) -> HashMap<(String, u16), Allowed> {
    let mut names = HashMap::new();
    for backend in pools.iter().flat_map(|pool| pool.backends()) {
        let Address::Name { host, port } = &backend.address else {
            continue;
        };
        let allowed = backend.allowed();
        names
            .entry((host.clone(), *port))
            // A name that the file has too is believed.
            .and_modify(|before: &mut Allowed| {
                if allowed.is_none() {
                    *before = None;
                }
            })
            .or_insert_with(|| backend.allowed());
    }
    names
}

fn discoveries(config: &Config) -> Vec<Discovery> {
    let pools = config.pools.iter();
    let discoveries = pools.filter_map(|pool| {
        Some(Discovery {
            pool: pool.name.clone(),
            config: pool.discover.clone()?,
            number: 0,
        })
    });
    discoveries.collect()
}

/// Nodes that cannot be backends: one of those whose id is taken, and one of those for which there is no room.
#[derive(Default)]
struct LeftOut {
    taken: Option<String>,
    full: Option<String>,
}

impl LeftOut {
    fn any(&self) -> Option<&String> {
        self.taken.as_ref().or(self.full.as_ref())
    }
}

/// `file` with the backends that were found. An id that is in it already, in whichever pool, is taken; and one that is new in its
/// pool of `old` needs room there, where those that leave count too: a registry that has new ids all the time fills nothing.
fn with_found(
    file: &Config,
    found: &HashMap<String, Vec<BackendConfig>>,
    old: &Pools,
) -> (Config, LeftOut) {
    let mut config = file.clone();
    let mut left_out = LeftOut::default();
    let named = config.pools.iter().flat_map(|pool| &pool.backends);
    let mut taken: HashSet<BackendId> = named.map(|backend| backend.id.clone()).collect();
    for pool in &mut config.pools {
        let old = old.iter().find(|old| old.name == pool.name);
        let mut room = BACKENDS_MAX.saturating_sub(old.map_or(0, |old| old.len()));
        for backend in found.get(&pool.name).into_iter().flatten() {
            let is_new = !old.is_some_and(|old| old.has(&backend.id));
            if is_new && room == 0 {
                left_out.full = Some(backend.id.to_string());
            } else if taken.insert(backend.id.clone()) {
                room -= usize::from(is_new);
                pool.backends.push(backend.clone());
            } else {
                left_out.taken = Some(backend.id.to_string());
            }
        }
    }
    (config, left_out)
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
