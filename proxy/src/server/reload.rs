//! Applies a new configuration, and discovered backends, to the running edge.
//!
//! A configuration is read and checked as a whole before anything changes; then new requests use it, and those in flight keep
//! the old one. Backends that are in both keep their state, their tunnels and their sessions. Removed ones drain.
//!
//! Some settings cannot be changed in a running process. If they differ, and another process can take over from this one, it is a
//! successor that starts with the new configuration, and this process changes nothing; otherwise they are named in a warning at each
//! reload until a restart. What a reload would change can be asked for before ([`Plan`]).

mod plan;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use causeway_conf::{ConfErrors, Secret, ServiceManager, ServiceState};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::balancer::pool::{Backend, Pools, Weights};
use crate::config::BACKENDS_MAX;
use crate::config::BackendConfig;
use crate::config::Config;
use crate::config::DiscoverConfig;
use crate::config::DrainCause;
use crate::config::DrainConfig;
use crate::config::RebalanceConfig;
use crate::config::backend::{Address, BackendId};
use crate::limits::ThrottledLog;
use crate::net::resolver::{Allowed, Names};
use crate::request::exchange::ProxyState;
use crate::request::exchange::Rules;
use crate::request::parked::ParkConfig;
use crate::server::drains::{Cause, Drains};
pub(crate) use crate::server::reload::plan::Plan;
use crate::server::reload::plan::{backend_plans, changed_sections, named};
use crate::server::successors::{NoSuccessor, SuccessorRequests, SuccessorState};
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
    /// Closes the tunnels of removed backends.
    drains: Arc<Drains>,
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
    /// Asks for a successor; `None` if none can take over.
    pub(crate) successors: Option<Arc<SuccessorRequests>>,
    /// When it began to take over from another process, if it has.
    pub(crate) took_over: Option<Instant>,
}

impl Program {
    /// What changes settings that it cannot change itself.
    fn changed_by(&self) -> ChangedBy {
        match self.successors {
            Some(_) => ChangedBy::Successor,
            None => ChangedBy::Restart,
        }
    }

    /// Reads its configuration. May block.
    fn load(&self) -> impl FnOnce() -> Result<Config, ConfErrors> + Send + use<> {
        let file = self.file.clone();
        move || Config::load_with_environment(file.as_deref())
    }
}

/// What a reload has changed.
#[derive(Debug, Serialize)]
pub(crate) struct Reloaded {
    #[serde(flatten)]
    pub(crate) plan: Plan,
    /// If it takes another process, how far that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) successor: Option<SuccessorState>,
}

/// Why a reload has changed nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReloadError {
    /// One line for each error.
    #[error("{0}")]
    Invalid(String),
    /// The settings need a successor.
    #[error("{settings} can only be changed by a new process that takes over: {source}")]
    NoSuccessor {
        settings: String,
        #[source]
        source: NoSuccessor,
    },
}

/// What changes settings that a running process cannot change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChangedBy {
    /// Another process that takes over from this one.
    Successor,
    /// A restart, at some time.
    Restart,
}

/// Tells the service manager that a reload is over when it is dropped, also if nobody waits for the reload any more.
struct ReadyAtEnd<'a>(Option<&'a ServiceManager>);

impl ReadyAtEnd<'_> {
    /// Another process is the main one now, and tells it itself.
    fn leave_to_successor(mut self) {
        self.0 = None;
    }
}

impl Drop for ReadyAtEnd<'_> {
    fn drop(&mut self) {
        if let Some(manager) = self.0 {
            manager.notify(ServiceState::Ready);
        }
    }
}

/// Why the pools are rebuilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rebuild {
    Reload,
    Discovery,
}

impl Rebuild {
    /// The cause of the drain of a backend that it removes.
    fn drain_cause(self) -> DrainCause {
        match self {
            Self::Reload => DrainCause::Reload,
            Self::Discovery => DrainCause::Discovery,
        }
    }

    fn weights(self) -> Weights {
        match self {
            Self::Reload => Weights::OfConfiguration,
            Self::Discovery => Weights::OfOperator,
        }
    }
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
        drains: Arc<Drains>,
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
            drains,
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

    /// How backends are drained, by the current settings.
    pub(crate) fn drain_config(&self) -> DrainConfig {
        self.state.lock().file.drain.clone()
    }

    /// How clients are moved by a rebalance, by the current settings.
    pub(crate) fn rebalance_config(&self) -> RebalanceConfig {
        self.state.lock().file.rebalance
    }

    /// The token for actions of operators, by the current settings.
    pub(crate) fn admin_token(&self) -> Option<Secret> {
        self.state.lock().file.admin.token.clone()
    }

    /// Sets the weight of a backend until the next reload.
    pub(crate) fn set_weight(&self, pool: &str, backend: &Backend, weight: u32) {
        // The pool in use, which changes only under the lock.
        let _state = self.state.lock();
        if let Some(pool) = self.proxy.pools().named(pool) {
            pool.set_weight(backend, weight);
        }
    }

    /// What a reload would change with `config`, whose settings that need another process are `changed_by` it.
    ///
    /// # Errors
    ///
    /// As [`Reloader::apply`].
    pub(crate) fn plan(
        &self,
        config: &Config,
        changed_by: ChangedBy,
    ) -> Result<Plan, PoolTlsError> {
        Connectors::load(config)?;
        Ok(self.plan_for(&self.state.lock(), config, changed_by))
    }

    fn plan_for(&self, state: &State, config: &Config, changed_by: ChangedBy) -> Plan {
        let pools = self.proxy.pools();
        let (before, _) = with_found(&state.file, &state.found, &pools);
        let found = config.pools.iter().filter_map(|pool| {
            let old = state.file.pools.iter().find(|old| old.name == pool.name);
            let old = old.and_then(|old| old.discover.as_ref());
            let mut found = state.found.get(&pool.name)?.clone();
            keep_allowed(&mut found, old, pool.discover.as_ref()?);
            Some((pool.name.clone(), found))
        });
        let (after, _) = with_found(config, &found.collect(), &pools);
        let needs_restart = fixed(&state.started, config);
        let hands_over = changed_by == ChangedBy::Successor && !needs_restart.is_empty();
        // What a successor has no backend for stays here, and is drained with this process.
        let closes = hands_over || config.drain.close_tunnels.contains(&DrainCause::Reload);
        let backends = backend_plans(&before, &after, &pools, closes);
        let closed = backends.iter().filter(|backend| backend.closes_tunnels);
        Plan {
            sections: changed_sections(&state.file, config),
            needs_restart,
            hands_over,
            tunnels_closed: closed.map(|backend| backend.tunnels).sum(),
            backends,
            warnings: config.warnings(SystemTime::now()),
        }
    }

    /// Applies `config` as far as a running process can, and returns what has changed.
    ///
    /// # Errors
    ///
    /// [`PoolTlsError`] if a TLS file that it names cannot be used; then nothing changes.
    pub(crate) fn apply(&self, config: &Config, now: Instant) -> Result<Plan, PoolTlsError> {
        let tls = Connectors::load(config)?;
        let mut state = self.state.lock();
        let plan = self.plan_for(&state, config, ChangedBy::Restart);
        state.file = config.clone();
        state.tls = tls;
        let reload_requested = self.number(&mut state, discoveries(config));
        self.rebuild(&mut state, Rebuild::Reload, now);
        self.discoveries.send_if_modified(|discoveries| {
            let is_changed = *discoveries != reload_requested;
            *discoveries = reload_requested;
            is_changed
        });
        self.proxy.metrics.reloaded("applied");
        tracing::info!("configuration applied");
        for warning in &plan.warnings {
            tracing::warn!(warning, "configuration warning");
        }
        if !plan.needs_restart.is_empty() {
            tracing::warn!(
                settings = plan.needs_restart.join(", "),
                "changed settings need a restart to take effect"
            );
        }
        Ok(plan)
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
                self.proxy.metrics.nodes_skipped(pool, None);
            }
        }
        for discovery in &mut reload_requested {
            let old = before.iter().find(|old| old.pool == discovery.pool);
            let Discovery { pool, config, .. } = &*discovery;
            if let Some(old) = old.filter(|old| old.config == *config) {
                discovery.number = old.number;
                continue;
            }
            if let Some(found) = state.found.get_mut(pool) {
                keep_allowed(found, old.map(|old| &old.config), config);
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
        self.rebuild(&mut state, Rebuild::Discovery, now);
    }

    /// The discovered backends of `pool`.
    pub(crate) fn known(&self, pool: &str) -> Vec<BackendConfig> {
        let state = self.state.lock();
        state.found.get(pool).cloned().unwrap_or_default()
    }

    /// Records how many nodes in the registry of `pool` are skipped.
    pub(crate) fn skipped(&self, pool: &str, nodes: usize) {
        self.proxy.metrics.nodes_skipped(pool, Some(nodes));
    }

    /// Records that the backend `id` of `pool` has announced in the registry that it is stopping.
    pub(crate) fn announced_stop(&self, pool: &str, id: &BackendId, now: Instant) {
        let pools = self.proxy.pools();
        if let Some(pool) = pools.iter().find(|other| other.name == pool) {
            pool.announced_stop(id, now);
        }
    }

    fn rebuild(&self, state: &mut State, why: Rebuild, now: Instant) {
        let old = self.proxy.pools();
        let before = serving(&old);
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
        let pools =
            Arc::new(old.renewed(config, &state.tls, &self.proxy.metrics, why.weights(), now));
        self.names.keep(&host_names(&pools));
        let rules = Rules::new(config, Arc::clone(&pools), &self.proxy.metrics);
        self.proxy.rules.store(Arc::new(rules));
        self.proxy.parked.change(ParkConfig::of(config));
        self.proxy
            .gate
            .change(&config.limits, &config.trusted_proxies);
        let after = serving(&pools);
        self.pools.send_replace(pools);
        let cause = why.drain_cause();
        if !config.drain.close_tunnels.contains(&cause) {
            return;
        }
        for backend in before {
            if !after.iter().any(|other| Arc::ptr_eq(other, &backend)) {
                let spread = config.drain.backend_spread;
                self.drains
                    .start(&backend, Cause::Settings(cause), spread, now);
            }
        }
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
                    if let Some(program) = &program {
                        // The outcome is in the log.
                        let _ = self.reload_program(program, Duration::MAX).await;
                    }
                }
                _ = ticks.tick() => self.forget(Instant::now()),
            }
        }
    }

    /// Reads the configuration with `load` and applies it. An invalid one changes nothing.
    ///
    /// # Errors
    ///
    /// [`ReloadError::Invalid`]. It has been logged.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future leaves it open whether the file is applied.
    pub(crate) async fn reload(
        self: &Arc<Self>,
        load: impl FnOnce() -> Result<Config, ConfErrors> + Send + 'static,
    ) -> Result<Plan, ReloadError> {
        let applied = self.read(load, |reloader, config| {
            reloader.apply(config, Instant::now())
        });
        applied.await.inspect_err(|error| self.note_failure(error))
    }

    /// As [`Reloader::reload`] with the file and the environment of `program`, whose service manager is told. If that takes a successor,
    /// this process changes nothing, and waits until the successor accepts, for `limit` at most.
    ///
    /// # Errors
    ///
    /// [`ReloadError`]. It has been logged.
    ///
    /// # Cancel safety
    ///
    /// As [`Reloader::reload`].
    pub(crate) async fn reload_program(
        self: &Arc<Self>,
        program: &Program,
        limit: Duration,
    ) -> Result<Reloaded, ReloadError> {
        program.manager.notify(ServiceState::Reloading);
        let ready = ReadyAtEnd(Some(&program.manager));
        let reloaded = self.reload_or_hand_over(program, limit).await;
        match &reloaded {
            Ok(reloaded) if reloaded.successor == Some(SuccessorState::Accepting) => {
                ready.leave_to_successor();
            }
            Ok(_) => {}
            Err(error) => self.note_failure(error),
        }
        reloaded
    }

    async fn reload_or_hand_over(
        self: &Arc<Self>,
        program: &Program,
        limit: Duration,
    ) -> Result<Reloaded, ReloadError> {
        let changed_by = program.changed_by();
        let plan = self.read(program.load(), move |reloader, config| {
            let plan = reloader.plan(config, changed_by)?;
            if plan.hands_over {
                return Ok(plan);
            }
            reloader.apply(config, Instant::now())
        });
        let plan = plan.await?;
        let Some(successors) = program.successors.as_ref().filter(|_| plan.hands_over) else {
            return Ok(Reloaded {
                plan,
                successor: None,
            });
        };
        let settings = plan.needs_restart.join(", ");
        tracing::info!(
            settings,
            "changed settings need another process, starting a successor"
        );
        match successors.successor(limit).await {
            Ok(state) => Ok(Reloaded {
                plan,
                successor: Some(state),
            }),
            Err(source) => Err(ReloadError::NoSuccessor { settings, source }),
        }
    }

    /// What [`Reloader::reload_program`] would change.
    ///
    /// # Errors
    ///
    /// [`ReloadError::Invalid`].
    pub(crate) async fn plan_reload(
        self: &Arc<Self>,
        program: &Program,
    ) -> Result<Plan, ReloadError> {
        let changed_by = program.changed_by();
        self.read(program.load(), move |reloader, config| {
            reloader.plan(config, changed_by)
        })
        .await
    }

    fn note_failure(&self, error: &ReloadError) {
        self.proxy.metrics.reloaded("refused");
        let errors = error.to_string();
        tracing::error!(
            errors,
            "configuration reload failed, still using the previous one"
        );
    }

    /// Reads a configuration, and gives it to `then`.
    async fn read(
        self: &Arc<Self>,
        load: impl FnOnce() -> Result<Config, ConfErrors> + Send + 'static,
        then: impl FnOnce(&Self, &Config) -> Result<Plan, PoolTlsError> + Send + 'static,
    ) -> Result<Plan, ReloadError> {
        let reloader = Arc::clone(self);
        // Not on a runtime thread: the file system may hang.
        let reading = tokio::task::spawn_blocking(move || {
            let config = load().map_err(|errors| errors.to_string())?;
            then(&reloader, &config).map_err(|error| error.to_string())
        });
        // A panic has been logged.
        let read = reading.await.unwrap_or_else(|ended| Err(ended.to_string()));
        read.map_err(ReloadError::Invalid)
    }

    fn forget(&self, now: Instant) {
        let mut state = self.state.lock();
        let pools = self.proxy.pools();
        if !pools.forget_unused(&self.proxy.metrics, now) {
            return;
        }
        self.names.keep(&host_names(&pools));
        if state.is_full {
            self.rebuild(&mut state, Rebuild::Discovery, now);
        }
    }
}

/// The backends that are not removed.
fn serving(pools: &Pools) -> Vec<Arc<Backend>> {
    let all = pools.iter().flat_map(|pool| pool.backends());
    all.filter(|backend| !backend.is_removed()).collect()
}

/// Keeps of the backends that a discovery with the settings `old` has found those that it could find with `new`.
fn keep_allowed(
    found: &mut Vec<BackendConfig>,
    old: Option<&DiscoverConfig>,
    new: &DiscoverConfig,
) {
    if !old.is_some_and(|old| old.is_registry_of(new)) {
        found.clear();
    }
    for backend in &mut *found {
        backend.allowed = Some(Arc::clone(&new.allow));
    }
    found.retain(|backend| match &backend.address {
        Address::Ip(address) => new.allow.contains(address.ip()),
        Address::Name { .. } | Address::Unix(_) => true,
    });
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

/// The changed settings that a running process cannot change.
fn fixed(started: &Config, new: &Config) -> Vec<&'static str> {
    // Each field is named, so that a new one does not compile until it is handled here.
    let Config {
        listeners,
        admin,
        takeover,
        websockets_over_http2,
        abort_on_client_close,
        pools: _,
        zone: _,
        routes: _,
        no_route: _,
        affinity,
        timeouts,
        limits,
        drain: _,
        rebalance: _,
        trusted_proxies: _,
        log,
        threads,
        renamed: _,
    } = new;
    let sessions = affinity.sockjs_sessions != started.affinity.sockjs_sessions;
    let differ = [
        (*listeners != started.listeners, "listeners"),
        (admin.address != started.admin.address, "admin.address"),
        (admin.socket != started.admin.socket, "admin.socket"),
        (*takeover != started.takeover, "takeover"),
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
        (*log != started.log, "log"),
        (*threads != started.threads, "threads"),
    ];
    named(differ.into_iter().chain(limits.fixed(&started.limits)))
}

#[cfg(test)]
mod tests;
