//! The backends of one route target, and the choice of one for a request.
//!
//! A choice reads a snapshot and atomics, takes no lock and does no I/O: probes and requests report what they found. The order:
//!
//! 1. the backend that has the SockJS session of the request,
//! 2. the one in its cookie,
//! 3. for a new SockJS session, the one by consistent hashing,
//! 4. the pick of the pool.
//!
//! The last two consider only backends of the highest [`Priority`](rank::Priority) that a backend not yet tried has; so if none is
//! up, health is ignored. Draining backends and those in maintenance get no new clients.

mod backend;
mod load;
mod machine;
mod outlier;
mod pace;
mod pick;
mod rank;
mod rebalance;
mod ring;
mod schedule;
mod sessions;
mod slots;
mod state;
mod table;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::HeaderValue;
use tokio::sync::Notify;
use tracing::info;

pub(crate) use crate::balancer::pool::backend::{
    Backend, RequestCount, TunnelCount, TunnelSlot, WaitCount, Weights,
};
pub(crate) use crate::balancer::pool::load::RequestKind;
pub(crate) use crate::balancer::pool::rebalance::Share;
pub(crate) use crate::balancer::pool::slots::{AcquireOutcome, QueuedRequest, RequestSlot};
pub(crate) use crate::balancer::pool::state::{
    Evidence, HealthStatus, Override, ProbeResult, State,
};

use crate::balancer::affinity::{Affinity, Binding, Claim, Freshness, SessionKey};
use crate::balancer::pool::backend::Moment;
use crate::balancer::pool::pick::{NewClient, Picker};
use crate::balancer::pool::rank::Rank;
use crate::balancer::pool::rebalance::{Rebalances, shares};
use crate::balancer::pool::sessions::Sessions;
pub(crate) use crate::balancer::pool::sessions::SessionsPart;
use crate::balancer::pool::state::Change;
use crate::balancer::pool::table::{Table, View};
use crate::config::backend::BackendId;
use crate::config::{Config, HealthConfig, PoolConfig, PoolId};
use crate::http::scheme::Scheme;
use crate::limits::RetryBudget;
use crate::metrics::Metrics;
use crate::tls::{Connector, Connectors};

/// How long a removed backend is kept while it is unused: longer than the pause of a polling client between two polls.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// All pools of the configuration.
pub(crate) struct Pools {
    pools: Vec<Arc<Pool>>,
    /// Notified when a backend has announced that it drains.
    drain_announced: Arc<Notify>,
}

impl Pools {
    /// The pools of `config`; `unix` is the time of day at `now`.
    pub(crate) fn new(
        config: &Config,
        tls: &Connectors,
        metrics: &Arc<Metrics>,
        now: Instant,
        unix: Duration,
    ) -> Self {
        let drain_announced = Arc::new(Notify::new());
        let shared = Shared {
            config,
            tls,
            metrics,
            drain_announced: &drain_announced,
            weights: Weights::OfConfiguration,
            started: (now, unix),
        };
        let pools = config.pools.iter();
        Self {
            pools: pools
                .map(|pool| Pool::new(&shared, pool, None, now))
                .collect(),
            drain_announced,
        }
    }

    /// The pools of a new configuration. A pool with the same name keeps its sessions, backends and retry budget.
    pub(crate) fn renewed(
        &self,
        config: &Config,
        tls: &Connectors,
        metrics: &Arc<Metrics>,
        weights: Weights,
        now: Instant,
    ) -> Self {
        let unix = |pool: &Arc<Pool>| (pool.started, pool.started_unix);
        let shared = Shared {
            config,
            tls,
            metrics,
            drain_announced: &self.drain_announced,
            weights,
            // There is always at least one.
            started: self.pools.first().map_or((now, Duration::ZERO), unix),
        };
        let pool = |pool: &PoolConfig| {
            let old = self.pools.iter().find(|old| old.name == pool.name);
            Pool::new(&shared, pool, old.map(Arc::as_ref), now)
        };
        Self {
            pools: config.pools.iter().map(pool).collect(),
            drain_announced: Arc::clone(&self.drain_announced),
        }
    }

    /// Notified when a backend has announced that it drains: see [`Backend::take_drain_announcement`].
    pub(crate) fn drain_announced(&self) -> Arc<Notify> {
        Arc::clone(&self.drain_announced)
    }

    /// The backend called `id`, with its pool. One that was removed is found only if no other has that id.
    pub(crate) fn find(&self, id: &str) -> Option<(Arc<Pool>, Arc<Backend>)> {
        let all = self.pools.iter().flat_map(|pool| {
            let backends = pool.backends().into_iter();
            backends.map(move |backend| (Arc::clone(pool), backend))
        });
        all.filter(|(_, backend)| backend.id.as_str() == id)
            .min_by_key(|(_, backend)| backend.is_removed())
    }

    /// The pool called `name`.
    pub(crate) fn named(&self, name: &str) -> Option<&Arc<Pool>> {
        self.pools.iter().find(|pool| pool.name == name)
    }

    /// Deletes removed backends that have been unused for [`FORGET_AFTER`]. Whether there were any.
    pub(crate) fn forget_unused(&self, metrics: &Metrics, now: Instant) -> bool {
        let forgotten: Vec<Arc<Backend>> = self
            .pools
            .iter()
            .flat_map(|pool| pool.forget_unused(now))
            .collect();
        for backend in &forgotten {
            // Another pool may have a backend with this id.
            if !self.pools.iter().any(|pool| pool.has(&backend.id)) {
                metrics.forget_backend(backend.id.as_str());
            }
        }
        !forgotten.is_empty()
    }

    /// Reports to the pool of `backend` that it has announced that it is stopping.
    pub(crate) fn backend_stops(&self, backend: &Arc<Backend>) {
        if let Some(pool) = self.of(backend) {
            pool.report(backend, Evidence::Stopping, Instant::now());
        }
    }

    /// The pool that has `backend`.
    pub(crate) fn of(&self, backend: &Arc<Backend>) -> Option<Arc<Pool>> {
        let has_it = |pool: &&Arc<Pool>| {
            let table = pool.table.load();
            table
                .backends
                .iter()
                .any(|other| Arc::ptr_eq(other, backend))
        };
        self.pools.iter().find(has_it).cloned()
    }

    /// The pool of a route.
    pub(crate) fn get(&self, id: PoolId) -> &Arc<Pool> {
        &self.pools[id.0] // An id is an index into the pools of the same configuration.
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.pools.iter()
    }
}

/// The backends of one route target.
pub(crate) struct Pool {
    pub(crate) name: String,
    pub(crate) affinity: Affinity,
    pub(crate) health: HealthConfig,
    /// Connects to its backends over TLS, if they use it.
    pub(crate) tls: Option<Arc<Connector>>,
    /// Not shared: a pool whose backends fail does not use up the budget of others.
    pub(crate) retry_budget: Arc<RetryBudget>,
    table: ArcSwap<Table>,
    picker: Picker,
    sessions: Arc<Sessions>,
    rebalances: Arc<Rebalances>,
    metrics: Arc<Metrics>,
    drain_announced: Arc<Notify>,
    started: Instant,
    started_unix: Duration,
}

/// What all pools of a configuration have in common.
struct Shared<'a> {
    config: &'a Config,
    tls: &'a Connectors,
    metrics: &'a Arc<Metrics>,
    drain_announced: &'a Arc<Notify>,
    weights: Weights,
    /// When the first pools were created, by both clocks.
    started: (Instant, Duration),
}

/// The backends that one request was tried on without success.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tried(Vec<BackendId>);

impl Tried {
    pub(crate) fn add(&mut self, backend: &Backend) {
        self.0.push(backend.id.clone());
    }

    pub(crate) fn contains(&self, id: &BackendId) -> bool {
        self.0.contains(id)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The backend chosen for a request.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    pub(crate) backend: Arc<Backend>,
    pub(crate) affinity: AffinityOutcome,
    pub(crate) cookie: CookieChange,
}

/// Whether the request goes to the backend that its client is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AffinityOutcome {
    /// It does.
    Hit,
    /// The client was not bound.
    Miss,
    /// The backend that it was bound to cannot serve it: it is bound to another one.
    Rebound,
}

impl AffinityOutcome {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Rebound => "bound_anew",
        }
    }
}

/// Whether the response sets a new affinity cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CookieChange {
    Keep,
    Set,
}

/// There is no backend left that may be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no backend is left to try")]
pub(crate) struct NoBackend;

impl Pool {
    /// The pool of `pool`, with the state of `old`.
    fn new(shared: &Shared<'_>, pool: &PoolConfig, old: Option<&Self>, now: Instant) -> Arc<Self> {
        let Shared {
            config,
            metrics,
            started,
            ..
        } = *shared;
        let cookies = config
            .pools
            .iter()
            .filter_map(|pool| Some(pool.cookie.as_ref()?.name.clone()))
            .collect();
        let table = old.map(|old| old.table.load());
        let age = now.saturating_duration_since(started.0);
        let at = Moment {
            now,
            age,
            unix: (started.1 + age).as_secs(),
        };
        let table = table.as_deref().map(Arc::as_ref);
        let (table, changed) = Table::new(pool, config, metrics, table, shared.weights, at);
        let percent = config.limits.retry_budget;
        let retry_budget = match old {
            None => Arc::new(RetryBudget::new(percent)),
            Some(old) => {
                old.retry_budget.change(percent);
                Arc::clone(&old.retry_budget)
            }
        };
        let new_sessions = || Arc::new(Sessions::new(config.affinity.sockjs_sessions));
        let pool = Self {
            name: pool.name.clone(),
            affinity: Affinity::new(&config.affinity, pool.cookie.clone(), cookies),
            health: pool.health.clone(),
            tls: shared.tls.of(&pool.name),
            retry_budget,
            table: ArcSwap::from_pointee(table),
            picker: Picker::new(pool.pick),
            sessions: old.map_or_else(new_sessions, |old| Arc::clone(&old.sessions)),
            rebalances: old.map_or_else(Arc::default, |old| Arc::clone(&old.rebalances)),
            metrics: Arc::clone(metrics),
            drain_announced: Arc::clone(shared.drain_announced),
            started: started.0,
            started_unix: started.1,
        };
        for (backend, change) in changed {
            pool.log(&backend, Some(change));
        }
        Arc::new(pool)
    }

    /// Deletes removed backends that have been unused for [`FORGET_AFTER`].
    fn forget_unused(&self, now: Instant) -> Vec<Arc<Backend>> {
        let table = self.table.load();
        let unused = |backend: &Arc<Backend>| {
            backend.is_removed() && backend.is_unused_for(FORGET_AFTER, now)
        };
        let (forgotten, kept): (Vec<_>, Vec<_>) = table.backends.iter().cloned().partition(unused);
        if !forgotten.is_empty() {
            self.table.store(Arc::new(Table::of(kept)));
            let ids: Vec<BackendId> = forgotten.iter().map(|it| it.id.clone()).collect();
            self.sessions.forget(&ids);
        }
        for backend in &forgotten {
            info!(pool = self.name, backend = %backend.id, "removed backend deleted");
        }
        forgotten
    }

    /// How many backends it has, removed ones included.
    pub(crate) fn len(&self) -> usize {
        self.table.load().backends.len()
    }

    /// The backend called `id`.
    pub(crate) fn backend(&self, id: &BackendId) -> Option<Arc<Backend>> {
        self.table.load().get(id).cloned()
    }

    pub(crate) fn has(&self, id: &BackendId) -> bool {
        self.table.load().get(id).is_some()
    }

    /// The backend for one attempt at a request with this claim.
    ///
    /// # Errors
    ///
    /// [`NoBackend`] if all were tried, are draining or in maintenance.
    pub(crate) fn choose(
        &self,
        claim: &Claim,
        kind: RequestKind,
        tried: &Tried,
        now: Instant,
    ) -> Result<Choice, NoBackend> {
        let table = self.table.load();
        let age = self.age(now);
        let view = View::new(&table, tried, self.health.ignore_below, age);
        let choice = match self.bound(&table, &view, claim) {
            Some(choice) => choice,
            None => self.bind(&table, &view, claim, self.new_client(kind, age))?,
        };
        if let Some(session) = &claim.session {
            self.sessions.insert(session, &choice.backend.id);
        }
        match choice.affinity {
            AffinityOutcome::Hit => self.metrics.affinity_hit.inc(),
            AffinityOutcome::Miss => self.metrics.affinity_miss.inc(),
            AffinityOutcome::Rebound => self.metrics.affinity_bound_anew.inc(),
        };
        if claim.forged && tried.is_empty() {
            self.metrics.affinity_forged();
        }
        Ok(choice)
    }

    /// The backend that the client is bound to, if it may still serve it.
    fn bound(&self, table: &Table, view: &View<'_>, claim: &Claim) -> Option<Choice> {
        let hit = |backend: &Arc<Backend>, cookie| Choice {
            backend: Arc::clone(backend),
            affinity: AffinityOutcome::Hit,
            cookie,
        };
        let session = claim.session.as_ref();
        let holder = session.and_then(|session| self.sessions.get(session));
        if let Some(backend) = holder.and_then(|id| table.get(&id))
            && view.keeps_session(backend)
        {
            // The first response of the session set a cookie: a client without one does not accept cookies.
            return Some(hit(backend, CookieChange::Keep));
        }
        // Browsers may send several cookies with the name of ours: the first valid one counts.
        let holds = |binding: &'_ Binding| {
            let backend = table.get(&binding.id)?;
            view.keeps_client(backend, binding.bound_at)
                .then(|| (Arc::clone(backend), binding.freshness))
        };
        let (backend, freshness) = claim.bindings.iter().find_map(holds)?;
        Some(hit(
            &backend,
            match freshness {
                Freshness::Current => CookieChange::Keep,
                Freshness::OldKey => CookieChange::Set,
            },
        ))
    }

    /// A backend for a client that is not bound, or whose backend cannot serve it.
    fn bind(
        &self,
        table: &Table,
        view: &View<'_>,
        claim: &Claim,
        new_client: NewClient,
    ) -> Result<Choice, NoBackend> {
        let by_ring = claim.session.as_ref().and_then(|session| {
            let eligible = |index: usize| view.is_eligible(&table.backends[index]);
            table.ring.find(session.as_str(), eligible)
        });
        let backend = match by_ring {
            Some(index) => &table.backends[index],
            None => self.picker.pick(table, view, new_client).ok_or(NoBackend)?,
        };
        self.picker.bind(backend, view, new_client);
        let is_known = |session| self.sessions.get(session).is_some();
        let was_bound = !claim.bindings.is_empty() || claim.session.as_ref().is_some_and(is_known);
        Ok(Choice {
            backend: Arc::clone(backend),
            affinity: if was_bound {
                AffinityOutcome::Rebound
            } else {
                AffinityOutcome::Miss
            },
            cookie: CookieChange::Set,
        })
    }

    /// Remembers that `backend` has the new `session`. A known session is not changed: no response can move it.
    pub(crate) fn learn(&self, session: &SessionKey, backend: &Backend) {
        if self.sessions.get(session).is_none() {
            self.sessions.insert(session, &backend.id);
        }
    }

    /// The backend that has `session`, if it drains.
    pub(crate) fn departing_holder(&self, session: &SessionKey) -> Option<Arc<Backend>> {
        let id = self.sessions.get(session)?;
        let backend = self.table.load().get(&id).cloned()?;
        matches!(backend.rank(), Rank::Draining | Rank::Removed).then_some(backend)
    }

    /// Remembers that `backend` continues `session`.
    pub(crate) fn move_session(&self, session: &SessionKey, backend: &Backend) {
        self.sessions.insert(session, &backend.id);
    }

    /// The part of the remembered sessions that begins at `from`, for another process; `None` if there is none.
    pub(crate) fn sessions_part(&self, from: usize) -> Option<SessionsPart> {
        self.sessions.part(from)
    }

    /// Remembers sessions that another process has remembered; how many. Only before the first request.
    pub(crate) fn adopt_sessions(&self, part: &SessionsPart) -> usize {
        self.sessions.adopt(part, |id| self.has(id))
    }

    /// Another backend for a client that `from` has released; `None` if no other keeps clients.
    pub(crate) fn release(&self, from: &Backend, now: Instant) -> Option<Arc<Backend>> {
        let mut tried = Tried::default();
        tried.add(from);
        self.pick_other(&tried, RequestKind::Plain, now)
    }

    /// A backend for a tunnel that is handed off, none of those `tried`; `None` if no other keeps clients.
    pub(crate) fn other_than(&self, tried: &Tried, now: Instant) -> Option<Arc<Backend>> {
        self.pick_other(tried, RequestKind::Upgrade, now)
    }

    fn pick_other(&self, tried: &Tried, kind: RequestKind, now: Instant) -> Option<Arc<Backend>> {
        let table = self.table.load();
        let new_client = self.new_client(kind, self.age(now));
        let view = View::new(&table, tried, 0, new_client.age);
        let backend = self.picker.pick(&table, &view, new_client)?;
        if !backend.rank().keeps_clients() {
            return None;
        }
        self.picker.bind(backend, &view, new_client);
        Some(Arc::clone(backend))
    }

    /// The `Set-Cookie` value that binds a client to `backend`; `None` if the pool has no cookie.
    pub(crate) fn set_cookie(
        &self,
        backend: &Backend,
        now: Instant,
        scheme: Scheme,
    ) -> Option<HeaderValue> {
        self.affinity
            .set_cookie(&backend.id, self.unix(now), scheme)
    }

    fn new_client(&self, kind: RequestKind, age: Duration) -> NewClient {
        NewClient {
            kind,
            age,
            rebalances: self.rebalances.is_active(age),
        }
    }

    /// Evaluates the evidence of a request about its backend: failed dials change its state, too many bad responses trigger a probe.
    pub(crate) fn report(&self, backend: &Backend, evidence: Evidence, now: Instant) {
        let change = backend.evidence(evidence, self.moment(now));
        self.found(backend, change);
    }

    /// Evaluates the result of a probe.
    pub(crate) fn probed(&self, backend: &Backend, result: ProbeResult, now: Instant) {
        let change = backend.probed(result, self.moment(now));
        self.found(backend, change);
    }

    /// Logs a change of state that the backend itself has caused.
    fn found(&self, backend: &Backend, change: Option<Change>) {
        if change
            .as_ref()
            .is_some_and(|change| change.to == State::Draining)
        {
            self.drain_announced.notify_one();
        }
        self.log(backend, change);
    }

    /// Sets what an operator wants for `backend`, or lifts it.
    pub(crate) fn set_override(&self, backend: &Backend, to: Option<Override>, now: Instant) {
        let change = backend.set_override(to, self.moment(now));
        self.log(backend, change);
    }

    /// Sets the weight that an operator wants for `backend`. Not during a reload: both replace the table.
    pub(crate) fn set_weight(&self, backend: &Backend, weight: u32) {
        backend.set_weight(weight);
        // The ring and the schedule depend on the weights.
        self.table.store(Arc::new(Table::of(self.backends())));
    }

    /// Whether another backend than `backend` would get its clients.
    pub(crate) fn has_other(&self, backend: &Backend) -> bool {
        self.table
            .load()
            .backends
            .iter()
            .any(|other| !std::ptr::eq(&**other, backend) && other.rank().keeps_clients())
    }

    /// How the tunnels of the backends that get new clients now are distributed, and should be.
    pub(crate) fn shares(&self, now: Instant) -> Vec<Share> {
        let table = self.table.load();
        let tried = Tried::default();
        let view = View::new(&table, &tried, 0, self.age(now));
        let eligible =
            |backend: &&Arc<Backend>| view.is_eligible(backend) && backend.rank().keeps_clients();
        shares(table.backends.iter().filter(eligible).cloned())
    }

    /// The number from which on tunnels may be those of clients that a rebalance has moved less than `quiet` ago.
    pub(crate) fn settled_below(&self, quiet: Duration, now: Instant) -> u64 {
        self.rebalances.settled_below(quiet, now)
    }

    /// Whether a rebalance has moved clients less than `quiet` ago, or they may still be on their way.
    pub(crate) fn was_rebalanced_within(&self, quiet: Duration, now: Instant) -> bool {
        self.rebalances.is_active(self.age(now)) || self.settled_below(quiet, now) != u64::MAX
    }

    /// Begins a rebalance that closes tunnels of the backends `from` over `spread`; the next tunnel has the number `next`.
    pub(crate) fn begin_rebalance(
        &self,
        from: &[Arc<Backend>],
        spread: Duration,
        next: u64,
        now: Instant,
    ) {
        let at = self.moment(now);
        self.rebalances.begin(spread, next, now, at.age);
        // A client whose cookie still holds would come straight back.
        from.iter().for_each(|backend| backend.release_clients(at));
    }

    /// Whether a client that is bound to `backend` is to wait while it cannot be reached: as long as it keeps its clients; while it
    /// drains, only if no other backend keeps clients.
    pub(crate) fn is_worth_waiting_for(&self, backend: &Backend) -> bool {
        let keeps_clients = |other: &Arc<Backend>| {
            let priority = other.priority().filter(|_| other.id != backend.id);
            priority.is_some_and(|priority| priority.rank().keeps_clients())
        };
        match backend.rank() {
            Rank::Draining => !self.table.load().backends.iter().any(keeps_clients),
            rank => rank.keeps_clients(),
        }
    }

    /// Ends the grace period of a backend if it has expired.
    pub(crate) fn tick(&self, backend: &Backend, now: Instant) {
        let change = backend.tick(self.moment(now));
        self.log(backend, change);
    }

    /// Reports that the backend `id` has announced in the registry that it is stopping.
    pub(crate) fn announced_stop(&self, id: &BackendId, now: Instant) {
        let table = self.table.load();
        if let Some(backend) = table.get(id).filter(|backend| !backend.is_removed()) {
            self.report(backend, Evidence::Stopping, now);
        }
    }

    /// All backends, in the order of the file, removed ones last.
    pub(crate) fn backends(&self) -> Vec<Arc<Backend>> {
        self.table.load().backends.clone()
    }

    /// Whether a backend has responded to probes and is not known to be unreachable.
    ///
    /// One with unexpected responses counts: if all backends have them, all stay in service.
    pub(crate) fn is_ready(&self) -> bool {
        let table = self.table.load();
        table.backends.iter().any(|backend| backend.is_present())
    }

    fn log(&self, backend: &Backend, change: Option<Change>) {
        let Some(change) = change else { return };
        if change.to == State::Down {
            backend.request_slots.clear_queue();
        }
        info!(
            pool = self.name,
            backend = %backend.id,
            from = change.from.name(),
            to = change.to.name(),
            why = &*change.why,
            lasted = change.lasted.as_secs_f64(),
            "backend changed state"
        );
    }

    fn moment(&self, now: Instant) -> Moment {
        Moment {
            now,
            age: self.age(now),
            unix: self.unix(now),
        }
    }

    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }

    /// UNIX time in seconds, by a monotonic clock.
    fn unix(&self, now: Instant) -> u64 {
        (self.started_unix + self.age(now)).as_secs()
    }
}

#[cfg(test)]
mod tests;
