//! The snapshot of the backends of a pool, and which of them one request may go to.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::balancer::pool::Tried;
use crate::balancer::pool::backend::{Backend, BackendSettings, Moment, Weights};
use crate::balancer::pool::machine::MachineConfig;
use crate::balancer::pool::rank::{Priority, Rank, Tier};
use crate::balancer::pool::ring::Ring;
use crate::balancer::pool::schedule::schedule;
use crate::balancer::pool::state::Change;
use crate::config::backend::BackendId;
use crate::config::{Config, PoolConfig};
use crate::metrics::Metrics;

/// A backend whose state new settings have changed.
pub(super) type Changed = (Arc<Backend>, Change);

/// The backends of a pool. Only their atomics change.
///
/// Invariant: `by_id`, `ring` and `schedule` hold indices into `backends`.
pub(super) struct Table {
    pub(super) backends: Vec<Arc<Backend>>,
    by_id: HashMap<BackendId, usize>,
    pub(super) ring: Ring,
    /// The order for round robin.
    pub(super) schedule: Vec<u16>,
}

impl Table {
    /// The backends of `pool`, one of the pools of `config`, followed by those that only `old` has, which are marked as removed.
    ///
    /// A backend that `old` has at the same address keeps its state, with new settings. At another address it is another server:
    /// its state starts as unknown, and tunnels to the old address do not count for it.
    pub(super) fn new(
        pool: &PoolConfig,
        config: &Config,
        metrics: &Metrics,
        old: Option<&Self>,
        weights: Weights,
        at: Moment,
    ) -> (Self, Vec<Changed>) {
        let machine = MachineConfig {
            rise: pool.health.rise,
            fall: pool.health.fall,
            hold: config.affinity.hold,
            hold_timeout: config.affinity.hold_timeout,
        };
        let mut changed = Vec::new();
        let mut backends = Vec::with_capacity(pool.backends.len());
        for backend in &pool.backends {
            let settings = BackendSettings {
                config: backend,
                tier: Tier::of(backend, config.zone.as_deref()),
                machine,
                slow_start: pool.health.slow_start,
                weights,
            };
            let known = old.and_then(|old| old.get(&backend.id));
            match known.filter(|old| old.address == backend.address) {
                Some(old) => {
                    let change = old.configure(&settings, at);
                    changed.extend(change.map(|change| (Arc::clone(old), change)));
                    backends.push(Arc::clone(old));
                }
                None => {
                    let metrics = metrics.backend(backend.id.as_str());
                    let new = Backend::new(&pool.name, &settings, metrics, at);
                    backends.push(Arc::new(new));
                }
            }
        }
        let is_configured = |id: &BackendId| pool.backends.iter().any(|backend| backend.id == *id);
        for backend in old.map_or(&[][..], |old| &old.backends) {
            if !is_configured(&backend.id) {
                let change = backend.remove(at);
                changed.extend(change.map(|change| (Arc::clone(backend), change)));
                backends.push(Arc::clone(backend));
            }
        }
        (Self::of(backends), changed)
    }

    /// The table of `backends`, of which removed ones come last.
    pub(super) fn of(backends: Vec<Arc<Backend>>) -> Self {
        let ids = backends.iter().map(|backend| backend.id.clone());
        let configured = backends.iter().filter(|backend| !backend.is_removed());
        let weights: Vec<u32> = configured.clone().map(|backend| backend.weight()).collect();
        Self {
            schedule: schedule(&weights),
            by_id: ids.enumerate().map(|(index, id)| (id, index)).collect(),
            ring: Ring::new(configured.map(|backend| (&backend.id, backend.weight()))),
            backends,
        }
    }

    pub(super) fn get(&self, id: &BackendId) -> Option<&Arc<Backend>> {
        self.by_id.get(id).map(|index| &self.backends[*index])
    }
}

/// Which backends one request may go to, given those that were tried already.
pub(super) struct View<'a> {
    tried: &'a Tried,
    eligible: Eligible,
    /// The best rank of a backend that was not tried; `None` if none gets clients.
    best: Option<Rank>,
    /// How many backends are eligible for new clients.
    pub(super) count: usize,
    /// The sum of their weights, in thousandths.
    pub(super) weight: u64,
}

/// Which backends get new clients.
enum Eligible {
    None,
    /// Those with a higher priority, and those with this one whose generation is at least `generation`, the newest of them.
    AtLeast {
        priority: Priority,
        generation: u64,
    },
    /// All primaries, or all backups, whatever their health.
    Any {
        backup: bool,
    },
}

/// The backends of the newest generation among those with one priority.
#[derive(Clone, Copy, Default)]
struct Newest {
    generation: u64,
    count: usize,
    /// The sum of their weights, in thousandths.
    weight: u64,
}

impl Newest {
    fn add(&mut self, generation: u64, weight: u64) {
        if self.generation < generation {
            *self = Self {
                generation,
                ..Self::default()
            };
        }
        if self.generation == generation {
            self.count += 1;
            self.weight += weight;
        }
    }
}

impl<'a> View<'a> {
    /// Evaluates all backends once, `age` after the pool was created.
    ///
    /// If fewer than `ignore_below` percent keep clients, health is ignored.
    pub(super) fn new(table: &Table, tried: &'a Tried, ignore_below: u32, age: Duration) -> Self {
        let mut by_priority = [Newest::default(); Priority::COUNT];
        let mut by_tier = [(0, 0); 2];
        let (mut all, mut healthy) = (0, 0);
        for backend in &table.backends {
            let Some(priority) = backend.priority() else {
                continue;
            };
            all += 1;
            healthy += usize::from(priority.rank().keeps_clients());
            if tried.contains(&backend.id) {
                continue;
            }
            let weight = backend.weight_at(age);
            by_priority[priority.index()].add(backend.generation_or_0(), weight);
            let (count, sum) = &mut by_tier[usize::from(backend.tier().is_backup())];
            *count += 1;
            *sum += weight;
        }
        let best = by_priority.iter().position(|newest| 0 < newest.count);
        let tier = by_tier.iter().position(|(count, _)| 0 < *count);
        let ignores_health = healthy * 100 < all * ignore_below as usize;
        let (eligible, (count, weight)) = match (best, tier) {
            (Some(_), Some(tier)) if ignores_health => {
                (Eligible::Any { backup: tier == 1 }, by_tier[tier])
            }
            (Some(best), _) => {
                let Newest {
                    generation,
                    count,
                    weight,
                } = by_priority[best];
                let priority = Priority::at(best);
                let eligible = Eligible::AtLeast {
                    priority,
                    generation,
                };
                (eligible, (count, weight))
            }
            (None, _) => (Eligible::None, (0, 0)),
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
    /// Its priority and generation may have changed since [`View::new`].
    pub(super) fn is_eligible(&self, backend: &Backend) -> bool {
        let Some(priority) = backend.priority() else {
            return false;
        };
        let is_eligible = match self.eligible {
            Eligible::None => false,
            Eligible::AtLeast {
                priority: lowest,
                generation,
            } => priority < lowest || priority == lowest && generation <= backend.generation_or_0(),
            Eligible::Any { backup } => backend.tier().is_backup() == backup,
        };
        is_eligible && !self.tried.contains(&backend.id)
    }

    /// Whether a client that was bound to `backend` at `bound_at` stays there.
    pub(super) fn keeps_client(&self, backend: &Backend, bound_at: u64) -> bool {
        if self.tried.contains(&backend.id) {
            return false;
        }
        match backend.rank() {
            rank if rank.keeps_clients() => backend.released_at() < bound_at,
            Rank::Removed | Rank::Lost | Rank::Maintenance => false,
            // Draining is announced, not a matter of health: it keeps clients only if all others are worse.
            Rank::Draining => !self.has_healthy_other(),
            rank => self.none_is_better(rank),
        }
    }

    /// Whether a SockJS session of `backend` continues there: also while it drains, or fails its probes with a response. No other
    /// backend has the session, and a backend that has lost a dependency, such as its Redis, still has it.
    pub(super) fn keeps_session(&self, backend: &Backend) -> bool {
        if self.tried.contains(&backend.id) {
            return false;
        }
        match backend.rank() {
            Rank::Draining | Rank::Removed | Rank::Responding => true,
            Rank::Lost | Rank::Maintenance => false,
            rank => rank.keeps_clients() || self.none_is_better(rank),
        }
    }

    /// Whether a backend that was not tried is up, unknown or suspect, even if health is ignored.
    fn has_healthy_other(&self) -> bool {
        self.best.is_some_and(Rank::keeps_clients)
    }

    /// Whether no backend is better than one that is down with this rank.
    fn none_is_better(&self, rank: Rank) -> bool {
        let ignores_health = matches!(self.eligible, Eligible::Any { .. });
        ignores_health || self.best.is_none_or(|best| rank <= best)
    }
}
