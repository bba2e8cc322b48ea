//! Applies a new configuration, and discovered backends, to the running edge.
//!
//! A configuration is read and checked as a whole before anything changes; then new requests use it, and those in flight keep
//! the old one. Backends that are in both keep their state, their tunnels and their sessions. Removed ones drain.
//!
//! Settings that need a restart are named in a warning at each reload until then.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use causeway_conf::{ConfErrors, ServiceManager, ServiceState};
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
use crate::limits::ThrottledLog;
use crate::net::resolver::{Allowed, Names};
use crate::request::exchange::ProxyState;
use crate::request::exchange::Rules;
use crate::request::parked::ParkConfig;
use crate::tls::{Connectors, PoolTlsError};

/// How often removed backends are checked for whether they can be forgotten.
const TICK: Duration = Duration::from_secs(5);

/// Replaces the configuration and the backends.
pub(crate) struct Reloader {
    proxy: Arc<ProxyState>,
    /// The current pools, for tasks that work on all of them.
    pools: watch::Sender<Arc<Pools>>,
    /// Locked while the pools change, so that changes are serial.
    state: Mutex<State>,
    /// The pools with a discovery.
    discoveries: watch::Sender<Vec<Discovery>>,
    /// The host names of backends.
    names: Arc<Names>,
    reload_requested: Notify,
    left_out: ThrottledLog,
}

/// The process, where it is the edge's own program.
#[derive(Clone)]
pub(crate) struct Program {
    /// The configuration file; `None` is settings of the environment alone.
    pub(crate) file: Option<PathBuf>,
    /// What is told when a reload begins and ends.
    pub(crate) manager: Arc<ServiceManager>,
}

struct State {
    /// The configuration that the process was started with.
    started: Config,
    /// The configuration as it was last applied.
    file: Config,
    /// The TLS connectors of its pools.
    tls: Connectors,
    /// Discovered backends, by pool.
    found: HashMap<String, Vec<BackendConfig>>,
    /// Whether some of them did not fit in their pool.
    is_full: bool,
    /// The number of the latest discovery.
    discoveries: u64,
}

/// The discovery of one pool.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Discovery {
    pub(crate) pool: String,
    pub(crate) config: DiscoverConfig,
    /// Changes with `config`: results of an earlier number are stale.
    number: u64,
}

impl Reloader {
    /// `config` is the configuration in use, with its connectors `tls`; `names` resolves its backends.
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
            reload_requested: Notify::new(),
            left_out: ThrottledLog::new(Instant::now()),
        }
    }

    /// Subscribes to the pools.
    pub(crate) fn pools(&self) -> watch::Receiver<Arc<Pools>> {
        self.pools.subscribe()
    }

    /// Subscribes to the discoveries.
    pub(crate) fn discoveries(&self) -> watch::Receiver<Vec<Discovery>> {
        self.discoveries.subscribe()
    }

    /// Applies `config`.
    ///
    /// # Errors
    ///
    /// [`PoolTlsError`] if a TLS file that it names cannot be used; then nothing changes.
    pub(crate) fn apply(&self, config: &Config, now: Instant) -> Result<(), PoolTlsError> {
        let tls = Connectors::load(config)?;
        let mut state = self.state.lock();
        let fixed = fixed(&state.started, config);
        state.file = config.clone();
        state.tls = tls;
        let reload_requested = self.number(&mut state, discoveries(config));
        self.rebuild(&mut state, now);
        self.discoveries.send_if_modified(|discoveries| {
            let is_changed = *discoveries != reload_requested;
            *discoveries = reload_requested;
            is_changed
        });
        self.proxy.metrics.reloaded("applied");
        tracing::info!("configuration applied");
        for warning in config.warnings(SystemTime::now()) {
            tracing::warn!(warning, "configuration warning");
        }
        if !fixed.is_empty() {
            tracing::warn!(
                settings = fixed.join(", "),
                "changed settings need a restart to take effect"
            );
        }
        Ok(())
    }

    /// Numbers the new discoveries, and drops backends that were found in another registry or are no longer allowed.
    fn number(&self, state: &mut State, mut reload_requested: Vec<Discovery>) -> Vec<Discovery> {
        let before = self.discoveries.borrow();
        for Discovery { pool, .. } in before.iter() {
            if !reload_requested
                .iter()
                .any(|discovery| discovery.pool == *pool)
            {
                state.found.remove(pool);
                self.proxy.metrics.nodes_passed_over(pool, None);
            }
        }
        for discovery in &mut reload_requested {
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
        reload_requested
    }

    /// Uses the backends that `discovery` has found, besides those of the file. Ignores them if the discovery has changed
    /// meanwhile.
    pub(crate) fn found(&self, discovery: &Discovery, backends: Vec<BackendConfig>, now: Instant) {
        let mut state = self.state.lock();
        if !self.discoveries.borrow().contains(discovery) {
            tracing::debug!(
                pool = discovery.pool,
                "ignoring backends found with former discovery settings"
            );
            return;
        }
        state.found.insert(discovery.pool.clone(), backends);
        self.rebuild(&mut state, now);
    }

    /// The discovered backends of `pool`.
    pub(crate) fn known(&self, pool: &str) -> Vec<BackendConfig> {
        let state = self.state.lock();
        state.found.get(pool).cloned().unwrap_or_default()
    }

    /// Records how many nodes in the registry of `pool` are skipped.
    pub(crate) fn skipped(&self, pool: &str, nodes: usize) {
        self.proxy.metrics.nodes_passed_over(pool, Some(nodes));
    }

    /// Records that the backend `id` of `pool` has announced in the registry that it is stopping.
    pub(crate) fn announced_stop(&self, pool: &str, id: &BackendId, now: Instant) {
        let pools = self.proxy.pools();
        if let Some(pool) = pools.iter().find(|other| other.name == pool) {
            pool.announced_stop(id, now);
        }
    }

    fn rebuild(&self, state: &mut State, now: Instant) {
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
                "discovered nodes are not used: their id is already used (taken), or their pool is full (full)"
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

    /// Requests a reload of the configuration file.
    pub(crate) fn request_reload(&self) {
        self.reload_requested.notify_one();
    }

    /// Reloads the file of `program` on request, and forgets removed backends, until `shutdown`.
    pub(crate) async fn run(
        self: Arc<Self>,
        program: Option<Program>,
        shutdown: CancellationToken,
    ) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = self.reload_requested.notified() => {
                    if let Some(Program { file, manager }) = &program {
                        manager.notify(ServiceState::Reloading);
                        let file = file.clone();
                        self.reload(move || Config::load_with_environment(file.as_deref())).await;
                        manager.notify(ServiceState::Ready);
                    }
                }
                _ = ticks.tick() => self.forget(Instant::now()),
            }
        }
    }

    /// Reads the configuration with `load` and applies it. An invalid one changes nothing.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future leaves it open whether the file is applied.
    pub(crate) async fn reload(
        self: &Arc<Self>,
        load: impl FnOnce() -> Result<Config, ConfErrors> + Send + 'static,
    ) {
        let reloader = Arc::clone(self);
        // Not on a runtime thread: the file system may hang.
        let reloading = tokio::task::spawn_blocking(move || {
            let config = load().map_err(|errors| errors.to_string())?;
            let applied = reloader.apply(&config, Instant::now());
            applied.map_err(|error| error.to_string())
        });
        let refused = match reloading.await {
            Ok(Ok(())) => return,
            Ok(Err(errors)) => errors,
            // The panic has been logged.
            Err(ended) => ended.to_string(),
        };
        self.proxy.metrics.reloaded("refused");
        tracing::error!(
            errors = refused,
            "configuration reload failed, still using the previous one"
        );
    }

    fn forget(&self, now: Instant) {
        let mut state = self.state.lock();
        let pools = self.proxy.pools();
        if !pools.forget_unused(&self.proxy.metrics, now) {
            return;
        }
        self.names.keep(&host_names(&pools));
        if state.is_full {
            self.rebuild(&mut state, now);
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
            // A name that the configuration file has too may have any address.
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

/// Discovered nodes that are not used: an example of an id that is already used, and one that did not fit in its pool.
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

/// `file` with the discovered backends. A node is left out if its id is already used in any pool, or if it is new and its pool in
/// `old` is full. Removed backends that are not forgotten yet count too, so a registry with ever new ids cannot grow a pool.
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

/// The changed settings that need a restart.
fn fixed(started: &Config, new: &Config) -> Vec<&'static str> {
    // Each field is named, so that a new one does not compile until it is handled here.
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
