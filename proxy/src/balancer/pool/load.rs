//! The load of one backend, and how it counts for a new client.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Whether a request may become a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestKind {
    /// A plain request, long polls included.
    Plain,
    /// An upgrade, which becomes a tunnel.
    Upgrade,
}

/// Counts of one backend.
#[derive(Debug, Default)]
pub(super) struct Load {
    pub(super) tunnels: AtomicUsize,
    /// Upgrade requests in flight.
    pub(super) upgrades: AtomicUsize,
    /// All other requests in flight.
    pub(super) requests: AtomicUsize,
    /// Requests that are parked until the backend is reachable.
    pub(super) waiting: AtomicUsize,
    bindings: RecentBindings,
}

impl Load {
    /// The load of the backend as it counts for a new client, `age` after the pool was created.
    ///
    /// Tunnels count, requested ones included: they last for hours. The client of a plain request may open a tunnel later, so
    /// for it recent bindings count too. Requests in flight do not: they are short, and a slow backend, or one with many long
    /// polls, would get too few tunnels for a long time.
    pub(super) fn weight(&self, kind: RequestKind, age: Duration) -> u64 {
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed) as u64;
        let tunnels = count(&self.tunnels) + count(&self.upgrades);
        match kind {
            RequestKind::Upgrade => tunnels,
            RequestKind::Plain => tunnels + self.bindings.count(age),
        }
    }

    /// Tunnels and requests in flight.
    pub(super) fn count(&self) -> usize {
        let counters = [&self.tunnels, &self.upgrades, &self.requests];
        counters
            .map(|counter| counter.load(Ordering::Relaxed))
            .iter()
            .sum()
    }

    /// Counts a new client.
    pub(super) fn bind(&self, kind: RequestKind, age: Duration) {
        // A tunnel is counted from its upgrade request on.
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

/// How many clients were bound recently, so that a burst spreads before the first of its clients opens a tunnel.
///
/// The number of the current window in the upper half, then its bindings, then those of the previous window.
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

    /// The bindings of window `number` and of the previous one.
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
    fn bindings_expire_when_they_are_no_longer_recent() {
        let load = Load::default();
        (0..5).for_each(|_| load.bind(RequestKind::Plain, Duration::from_secs(1)));
        load.bind(RequestKind::Upgrade, Duration::from_secs(1));
        let weight = |seconds| load.weight(RequestKind::Plain, Duration::from_secs(seconds));
        assert_eq!([weight(4), weight(9), weight(10)], [5, 5, 0]);
    }

    #[test]
    fn tunnels_always_count_bindings_for_plain_requests_and_requests_never() {
        let load = Load::default();
        for (kind, number) in [(RequestKind::Plain, 7), (RequestKind::Upgrade, 2)] {
            load.in_flight(kind).fetch_add(number, Ordering::Relaxed);
            load.bind(kind, Duration::ZERO);
        }
        load.tunnels.fetch_add(3, Ordering::Relaxed);
        assert_eq!(load.weight(RequestKind::Upgrade, Duration::ZERO), 5);
        assert_eq!(load.weight(RequestKind::Plain, Duration::ZERO), 5 + 1);
    }
}
