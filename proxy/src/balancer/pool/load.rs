//! What one backend carries, and what a newcomer makes of it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestKind {
    /// An answer, now or, of a parked poll, later.
    Plain,
    /// A tunnel.
    Upgrade,
}

/// Counts of one backend.
#[derive(Debug, Default)]
pub(super) struct Load {
    pub(super) tunnels: AtomicUsize,
    /// Requests for a tunnel that are under way.
    pub(super) upgrades: AtomicUsize,
    /// All other requests in flight.
    pub(super) requests: AtomicUsize,
    /// Requests that wait for the backend to come back.
    pub(super) waiting: AtomicUsize,
    bindings: RecentBindings,
}

impl Load {
    /// What counts against the backend for a newcomer, `age` after the pool was made.
    ///
    /// Tunnels, those on their way included: they stay for hours. Who seeks an answer may come back for a tunnel, so for it the
    /// newcomers of late count too. Requests in flight do not: they come and go, and a slow backend, or one with many parked
    /// polls, would be short of tunnels long after.
    pub(super) fn weighs(&self, kind: RequestKind, age: Duration) -> u64 {
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed) as u64;
        let tunnels = count(&self.tunnels) + count(&self.upgrades);
        match kind {
            RequestKind::Upgrade => tunnels,
            RequestKind::Plain => tunnels + self.bindings.count(age),
        }
    }

    /// Tunnels and requests in flight.
    pub(super) fn carried(&self) -> usize {
        let counters = [&self.tunnels, &self.upgrades, &self.requests];
        counters
            .map(|counter| counter.load(Ordering::Relaxed))
            .iter()
            .sum()
    }

    /// Notes a newcomer.
    pub(super) fn bind(&self, kind: RequestKind, age: Duration) {
        // A tunnel is counted from the request for it on.
        if kind == RequestKind::Plain {
            self.bindings.add(age);
        }
    }

    /// The counter of requests in flight of this kind.
    pub(super) fn in_flight(&self, kind: RequestKind) -> &AtomicUsize {
        match kind {
            RequestKind::Plain => &self.requests,
            RequestKind::Upgrade => &self.upgrades,
        }
    }
}

/// How many clients were bound lately: a burst spreads before the first of them comes back for its tunnel.
///
/// The number of the current window in the upper half, then its bindings, then those of the one before.
#[derive(Debug, Default)]
struct RecentBindings(AtomicU64);

impl RecentBindings {
    const WINDOW: Duration = Duration::from_secs(5);

    fn add(&self, age: Duration) {
        let number = Self::number(age);
        let add = |word: u64| {
            let (current, before) = Self::at(word, number);
            Some(number << 32 | u64::from(current.saturating_add(1)) << 16 | u64::from(before))
        };
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
            .ok();
    }

    fn count(&self, age: Duration) -> u64 {
        let (current, before) = Self::at(self.0.load(Ordering::Relaxed), Self::number(age));
        u64::from(current) + u64::from(before)
    }

    /// The bindings of window `number` and of the one before it.
    fn at(word: u64, number: u64) -> (u16, u16) {
        match number.wrapping_sub(word >> 32) {
            0 => ((word >> 16) as u16, word as u16),
            1 => (0, (word >> 16) as u16),
            _ => (0, 0),
        }
    }

    fn number(age: Duration) -> u64 {
        (age.as_secs() / Self::WINDOW.as_secs()) & u64::from(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bindings_are_forgotten_when_they_are_not_recent_any_more() {
        let load = Load::default();
        (0..5).for_each(|_| load.bind(RequestKind::Plain, Duration::from_secs(1)));
        load.bind(RequestKind::Upgrade, Duration::from_secs(1));
        let weighs = |seconds| load.weighs(RequestKind::Plain, Duration::from_secs(seconds));
        assert_eq!([weighs(4), weighs(9), weighs(10)], [5, 5, 0]);
    }

    #[test]
    fn tunnels_weigh_for_everybody_newcomers_for_some_and_requests_for_nobody() {
        let load = Load::default();
        for (kind, number) in [(RequestKind::Plain, 7), (RequestKind::Upgrade, 2)] {
            load.in_flight(kind).fetch_add(number, Ordering::Relaxed);
            load.bind(kind, Duration::ZERO);
        }
        load.tunnels.fetch_add(3, Ordering::Relaxed);
        assert_eq!(load.weighs(RequestKind::Upgrade, Duration::ZERO), 5);
        assert_eq!(load.weighs(RequestKind::Plain, Duration::ZERO), 5 + 1);
    }
}
