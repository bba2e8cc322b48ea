//! Rebalances: moves the tunnels that backends have over their share, the idle ones first, when an operator asks for it, or by itself
//! once a backend has more than `rebalance.threshold` allows.
//!
//! By itself, only after the same backends have had the new clients of the pool for `rebalance.after`: a rolling restart moves clients
//! once it is over, and not at each of its steps. No client is moved twice within `rebalance.quiet`, so there is none by itself within
//! that time of another rebalance, or of a takeover, since the former process is the one that knows about its own.
//!
//! Decides how many tunnels move, and from where; [`drains`](crate::server::drains) closes them or hands them off.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::balancer::pool::{Pool, Pools, Share};
use crate::config::RebalanceConfig;
use crate::config::backend::BackendId;
use crate::server::drains::Drains;
use crate::server::reload::Reloader;
use crate::tunnel::Tunnels;

/// How often it is checked whether a pool is uneven.
const TICK: Duration = Duration::from_secs(1);

/// The fewest tunnels that a backend has over its share when a pool is rebalanced by itself: of few tunnels, one more is many percent.
const SURPLUS_MIN: usize = 10;

/// Whether an action is done, or only what it would do is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Run {
    Do,
    Dry,
}

/// What a rebalance does, or would do.
#[derive(Debug, Serialize)]
pub(crate) struct Rebalance {
    pub(crate) pool: String,
    pub(crate) dry_run: bool,
    /// How many tunnels are closed or handed off.
    pub(crate) closing: usize,
    /// Only the backends that get new clients take part.
    pub(crate) backends: Vec<RebalancedBackend>,
}

/// The part of one backend in a rebalance.
#[derive(Debug, Serialize)]
pub(crate) struct RebalancedBackend {
    pub(crate) backend: String,
    pub(crate) tunnels: usize,
    /// Its share by weight.
    pub(crate) target: usize,
    /// How many of its tunnels are closed or handed off.
    pub(crate) closing: usize,
    /// How many more would have to be, but may be those of clients that were moved recently.
    pub(crate) spared: usize,
}

/// Rebalances pools.
pub(crate) struct Rebalancer {
    reloader: Arc<Reloader>,
    drains: Arc<Drains>,
    tunnels: Arc<Tunnels>,
    /// Held during a rebalance, so that two do not mix.
    serial: Mutex<()>,
}

impl Rebalancer {
    pub(crate) fn new(
        reloader: Arc<Reloader>,
        drains: Arc<Drains>,
        tunnels: Arc<Tunnels>,
    ) -> Arc<Self> {
        Arc::new(Self {
            reloader,
            drains,
            tunnels,
            serial: Mutex::new(()),
        })
    }

    /// Evens out the tunnels of `pool` over `spread`, or else `rebalance.spread`. Clients whose tunnels are closed reconnect to the
    /// backends with the fewest. `None` if a rebalance of the pool is running.
    pub(crate) fn rebalance(
        &self,
        pool: &Pool,
        spread: Option<Duration>,
        run: Run,
        now: Instant,
    ) -> Option<Rebalance> {
        let _serial = self.serial.lock();
        let mut backends = pool.backends().into_iter();
        if backends.any(|backend| self.drains.is_rebalancing(&backend)) {
            return None;
        }
        let config = self.reloader.rebalance_config();
        let spread = spread.unwrap_or(config.spread);
        let settled = pool.settled_below(config.quiet, now);
        let next = self.tunnels.next_key();
        let mut moves = Vec::new();
        let mut shown = Vec::new();
        for share in pool.shares(now) {
            let mut tunnels = match share.surplus() {
                0 => Vec::new(),
                _ => self.tunnels.idlest_of(&share.backend.tunnels, settled),
            };
            tunnels.truncate(share.surplus());
            shown.push(RebalancedBackend {
                backend: share.backend.id.to_string(),
                tunnels: share.tunnels,
                target: share.target,
                closing: tunnels.len(),
                spared: share.surplus() - tunnels.len(),
            });
            if !tunnels.is_empty() {
                moves.push((share.backend, tunnels));
            }
        }
        let closing = shown.iter().map(|backend| backend.closing).sum();
        if run == Run::Do && !moves.is_empty() {
            let from: Vec<_> = moves
                .iter()
                .map(|(backend, _)| Arc::clone(backend))
                .collect();
            pool.begin_rebalance(&from, spread, next, now);
            for (backend, tunnels) in moves {
                self.drains.rebalance(&backend, tunnels, spread, now);
            }
        }
        Some(Rebalance {
            pool: pool.name.clone(),
            dry_run: run == Run::Dry,
            closing,
            backends: shown,
        })
    }

    /// Rebalances pools by itself, if the settings say so, until `shutdown`. This process has taken over from another one at
    /// `took_over`, if it has.
    pub(crate) async fn run(
        self: Arc<Self>,
        pools: watch::Receiver<Arc<Pools>>,
        took_over: Option<Instant>,
        shutdown: CancellationToken,
    ) {
        let mut watched = Watched::new(took_over);
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {
                    let pools = Arc::clone(&pools.borrow());
                    self.rebalance_uneven(&mut watched, &pools, Instant::now());
                }
            }
        }
    }

    /// Rebalances those of `pools` that are to be by the settings.
    fn rebalance_uneven(&self, watched: &mut Watched, pools: &Pools, now: Instant) {
        let config = self.reloader.rebalance_config();
        let Some(threshold) = config.threshold else {
            return watched.pools.clear();
        };
        watched.pools.retain(|name, _| pools.named(name).is_some());
        for pool in pools.iter() {
            let shares = pool.shares(now);
            let is_due = watched.is_due(pool, &shares, &config, now);
            let most = shares.iter().find(|share| is_uneven(share, threshold));
            let Some(most) = most.filter(|_| is_due) else {
                continue;
            };
            let Some(done) = self.rebalance(pool, None, Run::Do, now) else {
                continue;
            };
            tracing::info!(
                pool = pool.name,
                backend = %most.backend.id,
                tunnels = most.tunnels,
                target = most.target,
                threshold,
                closing = done.closing,
                spread = config.spread.as_secs_f64(),
                "rebalancing a pool: a backend has more tunnels over its share than rebalance.threshold allows"
            );
        }
    }
}

/// Whether a backend has over `threshold` percent more tunnels than its share.
fn is_uneven(share: &Share, threshold: u32) -> bool {
    let (tunnels, target) = (share.tunnels as u128, share.target as u128);
    SURPLUS_MIN <= share.surplus() && target * (100 + u128::from(threshold)) < tunnels * 100
}

/// What is remembered of the pools, to tell whether one may be rebalanced by itself.
struct Watched {
    took_over: Option<Instant>,
    /// By name.
    pools: HashMap<String, Members>,
}

/// The backends that get the new clients of a pool, with their weights.
struct Members {
    backends: Vec<(BackendId, u32)>,
    since: Instant,
}

impl Watched {
    fn new(took_over: Option<Instant>) -> Self {
        Self {
            took_over,
            pools: HashMap::new(),
        }
    }

    /// Whether `pool`, which has `shares` now, has had the same backends for long enough, and was not rebalanced for long enough.
    fn is_due(
        &mut self,
        pool: &Pool,
        shares: &[Share],
        config: &RebalanceConfig,
        now: Instant,
    ) -> bool {
        let backends = shares
            .iter()
            .map(|share| (share.backend.id.clone(), share.backend.weight()));
        let backends: Vec<_> = backends.collect();
        let members = self.pools.get(&pool.name);
        let known = members.filter(|members| members.backends == backends);
        let Some(Members { since, .. }) = known else {
            let members = Members {
                backends,
                since: now,
            };
            self.pools.insert(pool.name.clone(), members);
            return false;
        };
        let is_long_ago = |then: Instant, wait| then + wait <= now;
        is_long_ago(*since, config.after)
            && self
                .took_over
                .is_none_or(|then| is_long_ago(then, config.quiet))
            && !pool.was_rebalanced_within(config.quiet, now)
    }
}

#[cfg(test)]
mod tests;
