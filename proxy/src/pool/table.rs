//! The snapshot of a pool's backends, and how it looks to one request.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::backend::BackendId;
use crate::config::{AffinityConfig, BackendConfig, PoolConfig};
use crate::metrics::Metrics;
use crate::pool::Tried;
use crate::pool::backend::{Backend, Rank};
use crate::pool::machine::MachineConfig;
use crate::pool::pick::schedule;
use crate::pool::ring::Ring;

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
    pub(super) fn new(
        config: &PoolConfig,
        affinity: &AffinityConfig,
        metrics: &Metrics,
        now: Instant,
    ) -> Self {
        let machine = MachineConfig {
            rise: config.health.rise,
            fall: config.health.fall,
            hold: affinity.hold,
            hold_timeout: affinity.hold_timeout,
        };
        let backend = |config: &BackendConfig| {
            let metrics = metrics.backend(config.id.as_str());
            Arc::new(Backend::new(config, machine, metrics, now))
        };
        let backends: Vec<Arc<Backend>> = config.backends.iter().map(backend).collect();
        let ids = backends.iter().map(|backend| backend.id.clone());
        let weights: Vec<u32> = backends.iter().map(|backend| backend.weight).collect();
        Self {
            schedule: schedule(&weights),
            by_id: ids.enumerate().map(|(index, id)| (id, index)).collect(),
            ring: Ring::new(backends.iter().map(|backend| (&backend.id, backend.weight))),
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
    /// The worst rank that new clients go to; `None` if there is nobody for them.
    worst: Option<Rank>,
    /// Whether a backend that was not tried is up, unknown or suspect, health ignored or not.
    is_another_well: bool,
    /// How many backends take new clients.
    pub(super) count: usize,
}

impl<'a> View<'a> {
    /// Looks at all backends once. Where less than `ignore_below` percent are not down, health is ignored.
    pub(super) fn new(table: &Table, tried: &'a Tried, ignore_below: u32) -> Self {
        let mut counts = [0_usize; Rank::Down as usize + 1];
        let (mut all, mut well) = (0, 0);
        for backend in &table.backends {
            let rank = backend.rank();
            if !rank.takes_clients() {
                continue;
            }
            all += 1;
            well += usize::from(rank.keeps_clients());
            if !tried.contains(&backend.id) {
                counts[rank as usize] += 1;
            }
        }
        let ignores = well * 100 < all * ignore_below as usize;
        let best = counts.iter().position(|count| 0 < *count);
        let (worst, count) = match best {
            None => (None, 0),
            Some(_) if ignores => (Some(Rank::Down), counts.iter().sum()),
            Some(best) => (Some(Rank::ALL[best]), counts[best]),
        };
        Self {
            tried,
            worst,
            is_another_well: best.is_some_and(|best| Rank::ALL[best].keeps_clients()),
            count,
        }
    }

    /// Whether a new client may go to `backend`.
    ///
    /// The rank may have changed since [`View::new`] looked: to a better one, or to a worse.
    pub(super) fn takes(&self, backend: &Backend) -> bool {
        self.worst.is_some_and(|worst| backend.rank() <= worst) && !self.tried.contains(&backend.id)
    }

    /// Whether a client that was bound to `backend` at `bound_at` stays there.
    pub(super) fn keeps(&self, backend: &Backend, bound_at: u64) -> bool {
        if self.tried.contains(&backend.id) {
            return false;
        }
        match backend.rank() {
            rank if rank.keeps_clients() => backend.released_at() < bound_at,
            Rank::Maintenance => false,
            // It has said that it goes away, which is no matter of health: only if all others are worse.
            Rank::Draining => !self.is_another_well,
            // It is no worse than what else there is.
            _ => self.nobody_is_well(),
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
            Rank::Draining | Rank::Answering => true,
            Rank::Maintenance => false,
            rank => rank.keeps_clients() || self.nobody_is_well(),
        }
    }

    fn nobody_is_well(&self) -> bool {
        !self.worst.is_some_and(Rank::keeps_clients)
    }
}
