//! Who is a backend, as the looks at the registry follow each other. Plain, time passed in.

use std::time::{Duration, Instant};

use super::Found;
use crate::config::BACKENDS_MAX;
use crate::config::BackendConfig;

/// How long a node may be missing: a Redis that lost its data hears of all of them again within that time.
const MISSING_MAX: Duration = Duration::from_secs(10);

/// The backends that were found.
pub(super) struct Roster {
    missing_max: Duration,
    /// In the order of their ids, each with when it was there last.
    backends: Vec<(BackendConfig, Instant)>,
}

impl Roster {
    /// Looks come `every` so often. The backends that are `known` from before were there `now`.
    pub(super) fn new(every: Duration, mut known: Found, now: Instant) -> Self {
        known.sort_by(|one, other| one.id.cmp(&other.id));
        Self {
            missing_max: MISSING_MAX.max(3 * every),
            backends: known.into_iter().map(|backend| (backend, now)).collect(),
        }
    }

    /// Takes note of a look. The backends from now on, if they are others than before.
    pub(super) fn seen(&mut self, found: Found, now: Instant) -> Option<Found> {
        let before = self.all();
        for backend in found {
            // The later one of two with one id: its address is the newer one.
            let mut known = self.backends.iter_mut();
            if let Some(known) = known.find(|(known, _)| known.id == backend.id) {
                *known = (backend, now);
            } else if self.backends.len() < BACKENDS_MAX {
                self.backends.push((backend, now));
            }
        }
        let missing_max = self.missing_max;
        self.backends
            .retain(|(_, at)| now.saturating_duration_since(*at) < missing_max);
        self.backends
            .sort_by(|(one, _), (other, _)| one.id.cmp(&other.id));
        let after = self.all();
        (after != before).then_some(after)
    }

    fn all(&self) -> Found {
        let backends = self.backends.iter();
        backends.map(|(backend, _)| backend.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(nodes: &[(&str, u16)]) -> Found {
        let nodes = nodes.iter().map(|(id, port)| {
            let text = format!(r#"{{"id":"{id}","address":"127.0.0.1:{port}"}}"#);
            let allowed = crate::config::AllowedAddresses::Routable { loopback: true };
            let node = super::super::read(&text, &std::sync::Arc::new(allowed));
            node.unwrap().unwrap().backend
        });
        nodes.collect()
    }

    fn empty(every: Duration, now: Instant) -> Roster {
        Roster::new(every, Vec::new(), now)
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_new_node_is_there_at_once_and_the_same_ones_are_no_news() {
        let start = Instant::now();
        let mut roster = empty(SECOND, start);
        assert_eq!(roster.seen(found(&[]), start), None);
        let two = found(&[("n1", 1), ("n2", 2)]);
        assert_eq!(
            roster.seen(found(&[("n2", 2), ("n1", 1)]), start),
            Some(two.clone())
        );
        assert_eq!(roster.seen(two, start + SECOND), None);
    }

    #[test]
    fn what_is_known_from_before_is_no_news_and_missing_from_then_on() {
        let start = Instant::now();
        let both = found(&[("n2", 2), ("n1", 1)]);
        let mut roster = Roster::new(SECOND, both.clone(), start);
        assert_eq!(roster.seen(both, start), None);
        let mut roster = Roster::new(SECOND, found(&[("n1", 1)]), start);
        assert_eq!(roster.seen(found(&[]), start + SECOND), None);
        assert_eq!(
            roster.seen(found(&[]), start + MISSING_MAX),
            Some(found(&[]))
        );
    }

    #[test]
    fn one_that_is_missing_is_dropped_after_a_while() {
        let start = Instant::now();
        let mut roster = empty(SECOND, start);
        roster.seen(found(&[("n1", 1), ("n2", 2)]), start);
        let almost = start + MISSING_MAX - Duration::from_millis(1);
        assert_eq!(roster.seen(found(&[("n1", 1)]), almost), None);
        let after = roster.seen(found(&[("n1", 1)]), start + MISSING_MAX);
        assert_eq!(after, Some(found(&[("n1", 1)])));
    }

    #[test]
    fn one_that_comes_back_in_time_was_never_gone() {
        let start = Instant::now();
        let mut roster = empty(5 * SECOND, start);
        roster.seen(found(&[("n1", 1)]), start);
        assert_eq!(roster.seen(found(&[]), start + 10 * SECOND), None);
        assert_eq!(roster.seen(found(&[("n1", 1)]), start + 14 * SECOND), None);
        assert_eq!(roster.seen(found(&[]), start + 28 * SECOND), None);
        assert_eq!(
            roster.seen(found(&[]), start + 29 * SECOND),
            Some(found(&[]))
        );
    }

    #[test]
    fn one_that_is_started_elsewhere_is_reached_there() {
        let start = Instant::now();
        let mut roster = empty(SECOND, start);
        roster.seen(found(&[("n1", 1)]), start);
        let both = found(&[("n1", 1), ("n1", 7)]);
        assert_eq!(roster.seen(both, start), Some(found(&[("n1", 7)])));
    }
}
