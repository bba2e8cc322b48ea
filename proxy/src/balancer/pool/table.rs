//! The snapshot of a pool's backends, and how it looks to one request.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::balancer::pool::Tried;
use crate::balancer::pool::backend::{Backend, Moment};
use crate::balancer::pool::machine::MachineConfig;
use crate::balancer::pool::rank::{Priority, Rank, Tier};
use crate::balancer::pool::ring::Ring;
use crate::balancer::pool::schedule::schedule;
use crate::balancer::pool::state::Change;
use crate::config::backend::BackendId;
use crate::config::{Config, PoolConfig};
use crate::metrics::Metrics;

/// A backend that new settings have brought into another state.
pub(super) type Moved = (Arc<Backend>, Change);

/// The backends of a pool. Only their atomics change.
///
/// Invariant: `by_id`, `ring` and `schedule` hold indices into `backends`.
pub(super) struct Table {
    pub(super) backends: Vec<Arc<Backend>>,
    by_id: HashMap<BackendId, usize>,
    pub(super) ring: Ring,
    /// Whose turn it is in round robin.
    pub(super) schedule: Vec<u16>,
}

impl Table {
    /// The backends of `pool`, one of the pools of `config`, and behind them those of `old` that it does not name: they leave.
    ///
    /// A backend that `old` has at the same address stays what it is, under new settings. At another address it is another
    /// server: nothing is known about it, and the tunnels that go on at the old address are none of its load.
    pub(super) fn new(
        pool: &PoolConfig,
        config: &Config,
        metrics: &Metrics,
        old: Option<&Self>,
        at: Moment,
    ) -> (Self, Vec<Moved>) {
        let machine = MachineConfig {
            rise: pool.health.rise,
            fall: pool.health.fall,
            hold: config.affinity.hold,
            hold_timeout: config.affinity.hold_timeout,
        };
        let slow_start = pool.health.slow_start;
        let mut moved = Vec::new();
        let mut backends = Vec::with_capacity(pool.backends.len());
        for backend in &pool.backends {
            let place = Tier::of(backend, config.zone.as_deref());
            let same = old.and_then(|old| old.get(&backend.id));
            match same.filter(|old| old.address == backend.address) {
                Some(old) => {
                    let change = old.configure(backend, place, machine, slow_start, at);
                    moved.extend(change.map(|change| (Arc::clone(old), change)));
                    backends.push(Arc::clone(old));
                }
                None => {
                    let metrics = metrics.backend(backend.id.as_str());
                    let new = Backend::new(backend, place, machine, slow_start, metrics, at);
                    backends.push(Arc::new(new));
                }
            }
        }
        let named = |id: &BackendId| pool.backends.iter().any(|backend| backend.id == *id);
        for backend in old.map_or(&[][..], |old| &old.backends) {
            if !named(&backend.id) {
                let change = backend.remove(at);
                moved.extend(change.map(|change| (Arc::clone(backend), change)));
                backends.push(Arc::clone(backend));
            }
        }
        (Self::of(backends), moved)
    }

    /// The table of `backends`, of which those that leave come last.
    pub(super) fn of(backends: Vec<Arc<Backend>>) -> Self {
        let ids = backends.iter().map(|backend| backend.id.clone());
        let staying = backends.iter().filter(|backend| !backend.is_removed());
        let weights: Vec<u32> = staying.clone().map(|backend| backend.weight()).collect();
        Self {
            schedule: schedule(&weights),
            by_id: ids.enumerate().map(|(index, id)| (id, index)).collect(),
            ring: Ring::new(staying.map(|backend| (&backend.id, backend.weight()))),
            backends,
        }
    }

    pub(super) fn get(&self, id: &BackendId) -> Option<&Arc<Backend>> {
        self.by_id.get(id).map(|index| &self.backends[*index])
    }
}

/// Which backends one request may go to, given those that it was sent to already.
pub(super) struct View<'a> {
    tried: &'a Tried,
    eligible: Eligible,
    /// The best rank of a backend that was not tried; `None` if there is nobody for clients.
    best: Option<Rank>,
    /// How many backends take new clients.
    pub(super) count: usize,
    /// The weights of those, in thousandths.
    pub(super) weight: u64,
}

/// Who takes new clients.
enum Eligible {
    Nobody,
    /// Those whose turn it is, or comes earlier.
    Until(Priority),
    /// Primaries, or else backups, whatever is known about them.
    Any {
        backup: bool,
    },
}

impl<'a> View<'a> {
    /// Looks at all backends once, `age` after the pool was made.
    ///
    /// Where less than `ignore_below` percent are not down, health is ignored.
    pub(super) fn new(table: &Table, tried: &'a Tried, ignore_below: u32, age: Duration) -> Self {
        let mut turns = [(0, 0); Priority::COUNT];
        let mut any = [(0, 0); 2];
        let (mut all, mut well) = (0, 0);
        for backend in &table.backends {
            let Some(turn) = backend.turn() else { continue };
            all += 1;
            well += usize::from(turn.rank().keeps_clients());
            if tried.contains(&backend.id) {
                continue;
            }
            let weight = backend.weight_at(age);
            for (count, sum) in [
                &mut turns[turn.index()],
                &mut any[usize::from(backend.place().is_backup())],
            ] {
                *count += 1;
                *sum += weight;
            }
        }
        let first = |counts: &[(usize, u64)]| counts.iter().position(|(count, _)| 0 < *count);
        let best = first(&turns);
        let ignores = well * 100 < all * ignore_below as usize;
        let (eligible, (count, weight)) = match (best, first(&any)) {
            (Some(_), Some(tier)) if ignores => (Eligible::Any { backup: tier == 1 }, any[tier]),
            (Some(best), _) => (Eligible::Until(Priority::at(best)), turns[best]),
            (None, _) => (Eligible::Nobody, (0, 0)),
        };
        Self {
            tried,
            eligible,
            best: best.map(|best| Priority::at(best).rank()),
            count,
            weight,
        }
    }

    /// Whether a new client may go to `backend`.
    ///
    /// Its turn may have changed since [`View::new`] looked: to an earlier one, or to a later.
    pub(super) fn is_eligible(&self, backend: &Backend) -> bool {
        let Some(turn) = backend.turn() else {
            return false;
        };
        let is_eligible = match self.eligible {
            Eligible::Nobody => false,
            Eligible::Until(last) => turn <= last,
            Eligible::Any { backup } => backend.place().is_backup() == backup,
        };
        is_eligible && !self.tried.contains(&backend.id)
    }

    /// Whether a client that was bound to `backend` at `bound_at` stays there.
    pub(super) fn keeps(&self, backend: &Backend, bound_at: u64) -> bool {
        if self.tried.contains(&backend.id) {
            return false;
        }
        match backend.rank() {
            rank if rank.keeps_clients() => backend.released_at() < bound_at,
            Rank::Removed | Rank::Maintenance => false,
            // It has said that it goes away, which is no matter of health: only if all others are worse.
            Rank::Draining => !self.is_another_well(),
            rank => self.nobody_is_better(rank),
        }
    }

    /// Whether a SockJS session that `backend` holds goes on there: also while it drains, or answers its
    /// probes badly. The session is nowhere else, and a backend whose own needs are away (its Redis, say)
    /// still has it.
    pub(super) fn keeps_session(&self, backend: &Backend) -> bool {
        if self.tried.contains(&backend.id) {
            return false;
        }
        match backend.rank() {
            Rank::Draining | Rank::Removed | Rank::Responding => true,
            Rank::Maintenance => false,
            rank => rank.keeps_clients() || self.nobody_is_better(rank),
        }
    }

    /// Whether a backend that was not tried is up, unknown or suspect, health ignored or not.
    fn is_another_well(&self) -> bool {
        self.best.is_some_and(Rank::keeps_clients)
    }

    /// Whether a backend that is down with this rank is no worse than what else there is.
    fn nobody_is_better(&self, rank: Rank) -> bool {
        let ignored = matches!(self.eligible, Eligible::Any { .. });
        ignored || self.best.is_none_or(|best| rank <= best)
    }
}
