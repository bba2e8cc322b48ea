//! The backends of one route target, and which of them serves a request.
//!
//! Choosing looks at a snapshot and at atomics, takes no lock and does no I/O: probes and dials report what they
//! found. The order of choice:
//!
//! 1. the backend that holds the request's SockJS session,
//! 2. the one that its cookie names,
//! 3. for a SockJS session without a cookie, the one that the consistent hash names,
//! 4. the pick of the pool.
//!
//! The last two look only at the first [`Priority`](rank::Priority) that any backend has which was not tried yet; so when none
//! is up, health is ignored. Draining backends and those in maintenance get no new clients at all.

mod backend;
mod load;
mod machine;
mod outlier;
mod pace;
mod pick;
mod rank;
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
use tracing::info;

pub(crate) use crate::balancer::pool::backend::{
    Backend, RequestCount, TunnelCount, TunnelSlot, WaitCount,
};
pub(crate) use crate::balancer::pool::load::RequestKind;
pub(crate) use crate::balancer::pool::slots::{AcquireOutcome, QueuedRequest, RequestSlot};
pub(crate) use crate::balancer::pool::state::{Evidence, HealthStatus, ProbeResult, State};

use crate::balancer::affinity::{Affinity, Binding, Claim, Freshness, SessionKey};
use crate::balancer::pool::backend::Moment;
use crate::balancer::pool::pick::{NewClient, Picker};
use crate::balancer::pool::rank::Rank;
use crate::balancer::pool::sessions::Sessions;
use crate::balancer::pool::state::Change;
use crate::balancer::pool::table::{Table, View};
use crate::config::backend::BackendId;
use crate::config::{Config, HealthConfig, PoolConfig, PoolId};
use crate::http::scheme::Scheme;
use crate::limits::RetryBudget;
use crate::metrics::Metrics;
use crate::tls::{Connector, Connectors};

/// How long a backend that the configuration does not name any more is kept when nobody uses it: longer than a polling client
/// stays away between two polls.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// All pools of the configuration.
pub(crate) struct Pools(Vec<Arc<Pool>>);

impl Pools {
    /// The pools of `config`; `unix` is the time of day at `now`.
    pub(crate) fn new(
        config: &Config,
        tls: &Connectors,
        metrics: &Arc<Metrics>,
        now: Instant,
        unix: Duration,
    ) -> Self {
        let pool = |pool| Pool::new(config, pool, tls, None, metrics, (now, unix), now);
        Self(config.pools.iter().map(pool).collect())
    }

    /// The pools of a new configuration, in which those of the same name go on: with the sessions and backends that they have.
    pub(crate) fn renewed(
        &self,
        config: &Config,
        tls: &Connectors,
        metrics: &Arc<Metrics>,
        now: Instant,
    ) -> Self {
        let unix = |pool: &Pool| (pool.started, pool.started_unix);
        // There is never none.
        let started = self
            .0
            .first()
            .map_or((now, Duration::ZERO), |pool| unix(pool));
        let pool = |pool: &PoolConfig| {
            let old = self.0.iter().find(|old| old.name == pool.name);
            Pool::new(
                config,
                pool,
                tls,
                old.map(Arc::as_ref),
                metrics,
                started,
                now,
            )
        };
        Self(config.pools.iter().map(pool).collect())
    }

    /// Forgets backends that the configuration does not name any more, once they have been unused for a while. Whether there
    /// were any.
    pub(crate) fn forget_unused(&self, metrics: &Metrics, now: Instant) -> bool {
        let forgotten: Vec<Arc<Backend>> = self
            .0
            .iter()
            .flat_map(|pool| pool.forget_unused(now))
            .collect();
        for backend in &forgotten {
            // It may have come to another pool.
            if !self.0.iter().any(|pool| pool.has(&backend.id)) {
                metrics.forget_backend(backend.id.as_str());
            }
        }
        !forgotten.is_empty()
    }

    /// Takes in that `backend` has said that it is stopping, in whichever pool it is.
    pub(crate) fn backend_stops(&self, backend: &Arc<Backend>) {
        let is_it = |other: &Arc<Backend>| Arc::ptr_eq(other, backend);
        let mut pools = self.0.iter();
        if let Some(pool) = pools.find(|pool| pool.table.load().backends.iter().any(is_it)) {
            pool.report(backend, Evidence::Stopping, Instant::now());
        }
    }

    /// The pool of a route.
    pub(crate) fn get(&self, id: PoolId) -> &Arc<Pool> {
        &self.0[id.0] // An id is an index into the pools of the same configuration.
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.0.iter()
    }
}

/// The backends of one route target.
pub(crate) struct Pool {
    pub(crate) name: String,
    pub(crate) affinity: Affinity,
    pub(crate) health: HealthConfig,
    /// What speaks TLS to its backends, if they speak it.
    pub(crate) tls: Option<Arc<Connector>>,
    /// Its own: a pool whose backends fail takes nothing from the others.
    pub(crate) retry_budget: Arc<RetryBudget>,
    table: ArcSwap<Table>,
    picker: Picker,
    sessions: Arc<Sessions>,
    metrics: Arc<Metrics>,
    started: Instant,
    started_unix: Duration,
}

/// The backends that one request was sent to already, in vain.
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

/// Where a request goes.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    pub(crate) backend: Arc<Backend>,
    pub(crate) affinity: AffinityOutcome,
    pub(crate) cookie: CookieChange,
}

/// What became of the client's claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AffinityOutcome {
    /// It goes where it belongs.
    Hit,
    /// It belonged nowhere.
    Miss,
    /// It cannot go where it belonged.
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

/// Whether the answer carries a new affinity cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CookieChange {
    Keep,
    Set,
}

/// There is no backend that may be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no backend is left to try")]
pub(crate) struct NoBackend;

impl Pool {
    /// The pool that `config` calls for, with what `old` has of it. `started` is when the first pools began, by both clocks.
    fn new(
        config: &Config,
        pool: &PoolConfig,
        tls: &Connectors,
        old: Option<&Self>,
        metrics: &Arc<Metrics>,
        started: (Instant, Duration),
        now: Instant,
    ) -> Arc<Self> {
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
        let (table, moved) = Table::new(pool, config, metrics, table, at);
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
            tls: tls.of(&pool.name),
            retry_budget,
            table: ArcSwap::from_pointee(table),
            picker: Picker::new(pool.pick),
            sessions: old.map_or_else(new_sessions, |old| Arc::clone(&old.sessions)),
            metrics: Arc::clone(metrics),
            started: started.0,
            started_unix: started.1,
        };
        for (backend, change) in moved {
            pool.log(&backend, Some(change));
        }
        Arc::new(pool)
    }

    /// Takes out of the table what leaves and has been unused for [`FORGET_AFTER`].
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
            info!(pool = self.name, backend = %backend.id, "backend forgotten");
        }
        forgotten
    }

    /// How many backends it has, those that leave included.
    pub(crate) fn len(&self) -> usize {
        self.table.load().backends.len()
    }

    pub(crate) fn has(&self, id: &BackendId) -> bool {
        self.table.load().get(id).is_some()
    }

    /// The backend for one attempt at a request with this claim.
    ///
    /// # Errors
    ///
    /// [`NoBackend`] if all were tried, or the rest drains or is in maintenance.
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
            None => self.bind(&table, &view, claim, NewClient { kind, age })?,
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

    /// The backend that the request belongs to, if it may go there.
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
            // Its first answer carried a cookie: a client without one does not take it.
            return Some(hit(backend, CookieChange::Keep));
        }
        // Browsers may send several cookies of our name: the first that still holds counts.
        let holds = |binding: &'_ Binding| {
            let backend = table.get(&binding.id)?;
            view.keeps(backend, binding.bound_at)
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

    /// A backend for a client that belongs nowhere, or cannot go where it belongs.
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
        let held = |session| self.sessions.get(session).is_some();
        let belonged = !claim.bindings.is_empty() || claim.session.as_ref().is_some_and(held);
        Ok(Choice {
            backend: Arc::clone(backend),
            affinity: if belonged {
                AffinityOutcome::Rebound
            } else {
                AffinityOutcome::Miss
            },
            cookie: CookieChange::Set,
        })
    }

    /// Takes note that `backend` has begun `session`. One that is known is where it is: no response can move it.
    pub(crate) fn learn(&self, session: &SessionKey, backend: &Backend) {
        if self.sessions.get(session).is_none() {
            self.sessions.insert(session, &backend.id);
        }
    }

    /// Another backend for a client that `from` asked to send elsewhere; `None` if no other is well.
    pub(crate) fn release(&self, from: &Backend, now: Instant) -> Option<Arc<Backend>> {
        let table = self.table.load();
        let mut tried = Tried::default();
        tried.add(from);
        let new_client = NewClient {
            kind: RequestKind::Plain,
            age: self.age(now),
        };
        let view = View::new(&table, &tried, 0, new_client.age);
        let backend = self.picker.pick(&table, &view, new_client)?;
        if !backend.rank().keeps_clients() {
            return None;
        }
        self.picker.bind(backend, &view, new_client);
        Some(Arc::clone(backend))
    }

    /// The `Set-Cookie` value that binds a client to `backend`; `None` if there is no cookie here.
    pub(crate) fn set_cookie(
        &self,
        backend: &Backend,
        now: Instant,
        scheme: Scheme,
    ) -> Option<HeaderValue> {
        self.affinity
            .set_cookie(&backend.id, self.unix(now), scheme)
    }

    /// Takes in what a request found out about its backend: failed dials move its state, bad answers ask for a probe.
    pub(crate) fn report(&self, backend: &Backend, evidence: Evidence, now: Instant) {
        let change = backend.evidence(evidence, self.moment(now));
        self.log(backend, change);
    }

    /// Takes in what a health check found.
    pub(crate) fn probed(&self, backend: &Backend, result: ProbeResult, now: Instant) {
        let change = backend.probed(result, self.moment(now));
        self.log(backend, change);
    }

    /// Whether a client that belongs to `backend` is to wait for it while it cannot be reached: as long as it keeps its
    /// clients, and while it drains only if no other is well, since then there is nowhere else to go.
    pub(crate) fn is_worth_waiting_for(&self, backend: &Backend) -> bool {
        let is_well = |other: &Arc<Backend>| {
            let turn = other.turn().filter(|_| other.id != backend.id);
            turn.is_some_and(|turn| turn.rank().keeps_clients())
        };
        match backend.rank() {
            Rank::Draining => !self.table.load().backends.iter().any(is_well),
            rank => rank.keeps_clients(),
        }
    }

    /// Ends the grace of a backend that did not come back in time.
    pub(crate) fn tick(&self, backend: &Backend, now: Instant) {
        let change = backend.tick(self.moment(now));
        self.log(backend, change);
    }

    /// Takes in that the backend called `id` has said elsewhere that it is stopping.
    pub(crate) fn announced_stop(&self, id: &BackendId, now: Instant) {
        let table = self.table.load();
        if let Some(backend) = table.get(id).filter(|backend| !backend.is_removed()) {
            self.report(backend, Evidence::Stopping, now);
        }
    }

    /// All backends, in the order of the file.
    pub(crate) fn backends(&self) -> Vec<Arc<Backend>> {
        self.table.load().backends.clone()
    }

    /// Whether a backend has answered its probes and is not known to be gone.
    ///
    /// One that fails by what it answers counts: where all do, all stay in service.
    pub(crate) fn is_ready(&self) -> bool {
        let table = self.table.load();
        table.backends.iter().any(|backend| backend.is_there())
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

    /// The time of day in seconds, by a clock that never steps back.
    fn unix(&self, now: Instant) -> u64 {
        (self.started_unix + self.age(now)).as_secs()
    }
}

#[cfg(test)]
mod tests;
