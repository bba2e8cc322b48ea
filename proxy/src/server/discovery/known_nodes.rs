//! The backends of a pool's registry over successive polls. Does no I/O; time is passed in.

use std::time::{Duration, Instant};

use super::Found;
use crate::config::BACKENDS_MAX;
use crate::config::BackendConfig;

/// How long a node may be missing: a Redis that lost its data gets all nodes registered again within that time.
const MISSING_MAX: Duration = Duration::from_secs(10);

/// The known nodes, as backends.
pub(super) struct KnownNodes {
    missing_max: Duration,
    /// Sorted by id, each with the time at which it was last seen.
    backends: Vec<(BackendConfig, Instant)>,
}

impl KnownNodes {
    /// `every` is the poll interval. The backends that are `known` already count as seen `now`.
    pub(super) fn new(every: Duration, mut known: Found, now: Instant) -> Self {
        known.sort_by(|one, other| one.id.cmp(&other.id));
        Self {
            missing_max: MISSING_MAX.max(3 * every),
            backends: known.into_iter().map(|backend| (backend, now)).collect(),
        }
    }

    /// Records the result of a poll. Returns the backends if they have changed.
    pub(super) fn seen(&mut self, found: Found, now: Instant) -> Option<Found> {
        let before = self.all();
        for backend in found {
            // Of two with one id the later one wins: its address is the newer one.
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

    fn empty(every: Duration, now: Instant) -> KnownNodes {
        KnownNodes::new(every, Vec::new(), now)
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_new_node_is_added_at_once_and_the_same_nodes_are_no_change() {
        let start = Instant::now();
        let mut known_nodes = empty(SECOND, start);
        assert_eq!(known_nodes.seen(found(&[]), start), None);
        let two = found(&[("n1", 1), ("n2", 2)]);
        assert_eq!(
            known_nodes.seen(found(&[("n2", 2), ("n1", 1)]), start),
            Some(two.clone())
        );
        assert_eq!(known_nodes.seen(two, start + SECOND), None);
    }

    #[test]
    fn nodes_known_from_before_are_no_change_and_are_dropped_if_they_stay_missing() {
        let start = Instant::now();
        let both = found(&[("n2", 2), ("n1", 1)]);
        let mut known_nodes = KnownNodes::new(SECOND, both.clone(), start);
        assert_eq!(known_nodes.seen(both, start), None);
        let mut known_nodes = KnownNodes::new(SECOND, found(&[("n1", 1)]), start);
        assert_eq!(known_nodes.seen(found(&[]), start + SECOND), None);
        assert_eq!(
            known_nodes.seen(found(&[]), start + MISSING_MAX),
            Some(found(&[]))
        );
    }

    #[test]
    fn a_missing_node_is_dropped_after_a_while() {
        let start = Instant::now();
        let mut known_nodes = empty(SECOND, start);
        known_nodes.seen(found(&[("n1", 1), ("n2", 2)]), start);
        let almost = start + MISSING_MAX - Duration::from_millis(1);
        assert_eq!(known_nodes.seen(found(&[("n1", 1)]), almost), None);
        let after = known_nodes.seen(found(&[("n1", 1)]), start + MISSING_MAX);
        assert_eq!(after, Some(found(&[("n1", 1)])));
    }

    #[test]
    fn a_node_that_returns_in_time_is_not_dropped() {
        let start = Instant::now();
        let mut known_nodes = empty(5 * SECOND, start);
        known_nodes.seen(found(&[("n1", 1)]), start);
        assert_eq!(known_nodes.seen(found(&[]), start + 10 * SECOND), None);
        assert_eq!(
            known_nodes.seen(found(&[("n1", 1)]), start + 14 * SECOND),
            None
        );
        assert_eq!(known_nodes.seen(found(&[]), start + 28 * SECOND), None);
        assert_eq!(
            known_nodes.seen(found(&[]), start + 29 * SECOND),
            Some(found(&[]))
        );
    }

    #[test]
    fn a_node_that_moved_has_its_new_address() {
        let start = Instant::now();
        let mut known_nodes = empty(SECOND, start);
        known_nodes.seen(found(&[("n1", 1)]), start);
        let both = found(&[("n1", 1), ("n1", 7)]);
        assert_eq!(known_nodes.seen(both, start), Some(found(&[("n1", 7)])));
    }
}
