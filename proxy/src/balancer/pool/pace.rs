//! Keeps newcomers from flooding a backend that has nothing yet.
//!
//! The fewest live tunnels are for a long time those of a backend that has just come: without a limit it would get every
//! newcomer until it had caught up. It gets at most twice what its neighbours get, by weight. Time is counted in newcomers, so
//! that the limit holds at any rate of them: after each that a backend gets, it is not its turn until so many others have come.
//!
//! Without a lock: the generic cell rate algorithm, with one atomic word for each backend.

use std::sync::atomic::{AtomicU64, Ordering};

/// What one newcomer counts.
const NEW_CLIENT: u64 = 1 << 16;

/// How many newcomers a pool has had.
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

/// When it is the turn of one backend again, in newcomers of its pool.
#[derive(Debug, Default)]
pub(super) struct Pace(AtomicU64);

impl Pace {
    /// Whether it may get the next newcomer when its pool has had `new_clients`, having `weight` of `total` among its neighbours.
    pub(super) fn allows(&self, new_clients: u64, weight: u64, total: u64) -> bool {
        // One ahead: turns need not come at even distances.
        self.0.load(Ordering::Relaxed) <= new_clients + step(weight, total)
    }

    /// Notes that it got one.
    pub(super) fn add(&self, new_clients: u64, weight: u64, total: u64) {
        let step = step(weight, total);
        let later = |at: u64| Some(at.max(new_clients) + step);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, later)
            .ok();
    }
}

/// One newcomer out of how many makes twice the share of the neighbours: with `weight` w of `total` W, a share s is twice
/// theirs when s / w = 2 (1 - s) / (W - w), so that s = 2w / (W + w).
fn step(weight: u64, total: u64) -> u64 {
    let weight = weight.max(1);
    NEW_CLIENT * (total.max(weight) + weight) / (2 * weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `count` newcomers a backend gets that takes each that it may, with `weight` of `total`.
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
    fn a_backend_gets_twice_what_its_neighbours_get_and_no_more() {
        // Of three equals half, so that the two others have a quarter each; of two, two thirds.
        assert!((500..=502).contains(&taken(1000, 1, 3)));
        assert!((666..=668).contains(&taken(1000, 1, 2)));
        // With a tenth of the weight of two others, a tenth of twice their share.
        let slow = taken(10_500, 1, 21);
        assert!((954..=957).contains(&slow), "{slow}");
    }

    #[test]
    fn who_is_alone_gets_everybody() {
        assert_eq!(taken(1000, 7, 7), 1000);
    }

    #[test]
    fn quiet_times_are_not_saved_up() {
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
