//! Evens out the tunnels of a pool, after a backend was added.
//!
//! Decides how many tunnels each backend has over its share by weight; closing them is left to others. While clients are moved, the
//! pool picks the backend with the fewest tunnels, whatever its policy, and limits the rate to none: they are to go to the backends
//! that have too few.
//!
//! No client is moved twice within `rebalance.quiet`: a tunnel that was opened after a rebalance began may be that of a client which it
//! has moved, and is left alone until that time is over.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::balancer::pool::backend::Backend;

/// How long clients that were moved may take to reconnect.
const RECONNECT: Duration = Duration::from_secs(30);

/// The most rebalances that are remembered. If there are more within `rebalance.quiet`, the oldest two count as one.
const REMEMBERED_MAX: usize = 64;

/// The state of the rebalances of one pool.
#[derive(Debug, Default)]
pub(super) struct Rebalances {
    /// Until when clients are being moved, in milliseconds since the pool was created.
    until: AtomicU64,
    /// Oldest first.
    recent: Mutex<VecDeque<Recent>>,
}

/// A rebalance that clients have to be kept from being moved again after.
#[derive(Debug, Clone, Copy)]
struct Recent {
    /// When its last client had been moved.
    ended: Instant,
    /// The number of the first tunnel that was opened after it began.
    first: u64,
}

impl Rebalances {
    /// Whether clients are being moved, `age` after the pool was created.
    pub(super) fn is_active(&self, age: Duration) -> bool {
        millis(age) < self.until.load(Ordering::Relaxed)
    }

    /// Records a rebalance that begins now and closes tunnels over `spread`; the next tunnel has the number `next`.
    pub(super) fn begin(&self, spread: Duration, next: u64, now: Instant, age: Duration) {
        let until = millis(age + spread + RECONNECT);
        self.until.fetch_max(until, Ordering::Relaxed);
        let mut recent = self.recent.lock();
        if REMEMBERED_MAX <= recent.len()
            && let Some(oldest) = recent.pop_front()
            && let Some(second) = recent.front_mut()
        {
            second.first = second.first.min(oldest.first);
        }
        recent.push_back(Recent {
            ended: now + spread,
            first: next,
        });
    }

    /// The number from which on tunnels may be those of clients that were moved less than `quiet` ago.
    pub(super) fn settled_below(&self, quiet: Duration, now: Instant) -> u64 {
        let mut recent = self.recent.lock();
        recent.retain(|each| now < each.ended + quiet);
        let firsts = recent.iter().map(|each| each.first);
        firsts.min().unwrap_or(u64::MAX)
    }
}

/// The tunnels of one backend, and how many it should have.
#[derive(Debug, Clone)]
pub(crate) struct Share {
    pub(crate) backend: Arc<Backend>,
    pub(crate) tunnels: usize,
    pub(crate) target: usize,
}

impl Share {
    /// How many tunnels it has too many.
    pub(crate) fn surplus(&self) -> usize {
        self.tunnels.saturating_sub(self.target)
    }
}

/// The share of each of `backends`, by weight. Targets are rounded up: nobody is moved for the sake of a fraction.
pub(super) fn shares(backends: impl Iterator<Item = Arc<Backend>>) -> Vec<Share> {
    let mut shares: Vec<Share> = backends
        .map(|backend| Share {
            tunnels: backend.tunnels_open(),
            target: 0,
            backend,
        })
        .collect();
    let all: u128 = shares.iter().map(|share| share.tunnels as u128).sum();
    let weight = |share: &Share| u128::from(share.backend.weight());
    let weights: u128 = shares.iter().map(weight).sum();
    for share in &mut shares {
        let target = (all * weight(share)).div_ceil(weights.max(1));
        share.target = usize::try_from(target).unwrap_or(usize::MAX);
    }
    shares
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const QUIET: Duration = Duration::from_secs(60);

    #[test]
    fn tunnels_that_were_opened_after_a_rebalance_began_are_left_alone_until_it_is_long_ago() {
        let rebalances = Rebalances::default();
        let start = Instant::now();
        assert_eq!(rebalances.settled_below(QUIET, start), u64::MAX);
        rebalances.begin(5 * SECOND, 100, start, SECOND);
        rebalances.begin(5 * SECOND, 130, start + 20 * SECOND, 21 * SECOND);
        let below = |seconds| rebalances.settled_below(QUIET, start + seconds * SECOND);
        assert_eq!([below(20), below(64)], [100, 100]);
        assert_eq!([below(65), below(84)], [130, 130]);
        assert_eq!(below(85), u64::MAX);
    }

    #[test]
    fn a_pool_evens_out_until_the_clients_had_time_to_reconnect() {
        let rebalances = Rebalances::default();
        assert!(!rebalances.is_active(SECOND));
        rebalances.begin(5 * SECOND, 1, Instant::now(), SECOND);
        assert!(rebalances.is_active(SECOND) && rebalances.is_active(35 * SECOND));
        assert!(!rebalances.is_active(36 * SECOND));
    }

    #[test]
    fn many_rebalances_take_bounded_memory_and_keep_the_promise() {
        let rebalances = Rebalances::default();
        let start = Instant::now();
        for number in 0..1000 {
            rebalances.begin(SECOND, number, start, SECOND);
        }
        assert_eq!(rebalances.recent.lock().len(), REMEMBERED_MAX);
        assert_eq!(rebalances.settled_below(QUIET, start), 0);
    }
}
