//! Limits the rate of new clients to a backend that has no tunnels yet.
//!
//! A backend that has just come up has the fewest tunnels for a long time: without a limit it would get every new client until it
//! had caught up. It gets at most twice as many as the others, by weight. Time is counted in new clients of the pool, so that the
//! limit holds at any rate: after each new client, a backend has to skip a number of them.
//!
//! Without a lock: the generic cell rate algorithm, with one atomic word for each backend.

use std::sync::atomic::{AtomicU64, Ordering};

/// One new client, as a fixed-point number.
const NEW_CLIENT: u64 = 1 << 16;

/// How many new clients a pool has had.
#[derive(Debug, Default)]
pub(super) struct NewClients(AtomicU64);

impl NewClients {
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self) {
        self.0.fetch_add(NEW_CLIENT, Ordering::Relaxed);
    }
}

/// When one backend may get a new client again, in new clients of its pool.
#[derive(Debug, Default)]
pub(super) struct Pace(AtomicU64);

impl Pace {
    /// Whether it may get the next new client when its pool has had `new_clients`, with its `weight` of `total`.
    pub(super) fn allows(&self, new_clients: u64, weight: u64, total: u64) -> bool {
        // One ahead is allowed: picks are not evenly spaced.
        self.0.load(Ordering::Relaxed) <= new_clients + step(weight, total)
    }

    /// Counts a new client of the backend.
    pub(super) fn add(&self, new_clients: u64, weight: u64, total: u64) {
        let step = step(weight, total);
        let later = |at: u64| Some(at.max(new_clients) + step);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, later)
            .ok();
    }
}

/// The number of new clients of which a backend gets one at twice the share of the others: with `weight` w of `total` W, a share
/// s is twice theirs when s / w = 2 (1 - s) / (W - w), so that s = 2w / (W + w).
fn step(weight: u64, total: u64) -> u64 {
    let weight = weight.max(1);
    NEW_CLIENT * (total.max(weight) + weight) / (2 * weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `count` new clients a backend gets at most, with `weight` of `total`.
    fn taken(count: u64, weight: u64, total: u64) -> u64 {
        let (pace, new_clients) = (Pace::default(), NewClients::default());
        let mut taken = 0;
        for _ in 0..count {
            let before = new_clients.count();
            new_clients.add();
            if pace.allows(before, weight, total) {
                pace.add(before, weight, total);
                taken += 1;
            }
        }
        taken
    }

    #[test]
    fn a_backend_gets_at_most_twice_the_share_of_the_others() {
        // Of three equals half, so that the two others have a quarter each; of two, two thirds.
        assert!((500..=502).contains(&taken(1000, 1, 3)));
        assert!((666..=668).contains(&taken(1000, 1, 2)));
        // With a tenth of the weight of two others, a tenth of twice their share.
        let slow = taken(10_500, 1, 21);
        assert!((954..=957).contains(&slow), "{slow}");
    }

    #[test]
    fn a_single_backend_gets_all_new_clients() {
        assert_eq!(taken(1000, 7, 7), 1000);
    }

    #[test]
    fn idle_periods_give_no_credit() {
        let (pace, new_clients) = (Pace::default(), NewClients::default());
        (0..1000).for_each(|_| new_clients.add());
        let now = new_clients.count();
        let mut burst = 0;
        while pace.allows(now, 1, 3) {
            pace.add(now, 1, 3);
            burst += 1;
        }
        assert_eq!(burst, 2);
    }
}
