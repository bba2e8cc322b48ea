//! Finds other processes that run with this node's id. No I/O.
//!
//! A killed process leaves its lease for some seconds, and its successor finds its own id there. So only a lease that is being
//! renewed counts.

use std::collections::BTreeMap;

use super::Lease;
use super::Node;
use crate::protocol::instance::Instance;

/// State between two checks.
#[derive(Debug, Default)]
pub(super) struct DuplicateIds {
    /// When each of their leases ended at the last check.
    ends: BTreeMap<Lease, u64>,
}

/// A lease as read from Redis: when it ends, and its holder.
pub(super) type Seen = (Lease, u64, Node);

impl DuplicateIds {
    /// The processes besides `own` that run with `id` and renew their lease, by all leases.
    pub(super) fn duplicates(&mut self, own: Instance, id: &str, leases: &[Seen]) -> Vec<Node> {
        let same = leases
            .iter()
            .filter(|(_, _, node)| node.instance != own && node.id == id && !node.leaving);
        let mut found: BTreeMap<Instance, Node> = BTreeMap::new();
        let mut ends = BTreeMap::new();
        for (lease, end, node) in same {
            ends.insert(*lease, *end);
            if self.ends.get(lease).is_some_and(|before| before < end) {
                found.insert(node.instance, node.clone());
            }
        }
        self.ends = ends;
        found.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(lease: Lease, end: u64, id: &str) -> Seen {
        let node = Node {
            instance: lease.instance,
            id: id.to_owned(),
            address: None,
            zone: None,
            generation: None,
            leaving: false,
        };
        (lease, end, node)
    }

    #[test]
    fn another_process_with_this_id_is_found_once_it_renews_its_lease() {
        let own = Lease::first(Instance::random());
        let other = Lease::first(Instance::random());
        let mut duplicate_ids = DuplicateIds::default();
        let mut find = |end| {
            let leases = [seen(own, end, "n1"), seen(other, end, "n1")];
            let found = duplicate_ids.duplicates(own.instance, "n1", &leases);
            found.iter().map(|node| node.instance).collect::<Vec<_>>()
        };
        assert_eq!(find(1), []);
        assert_eq!(find(1), [], "the lease of a killed process is not renewed");
        assert_eq!(find(2), [other.instance]);
        assert_eq!(find(3), [other.instance]);
    }

    #[test]
    fn nodes_with_another_id_or_that_are_leaving_are_no_duplicates() {
        let own = Instance::random();
        let mut leaving = seen(Lease::first(Instance::random()), 1, "n1");
        leaving.2.leaving = true;
        let other = seen(Lease::first(Instance::random()), 1, "n2");
        let mut duplicate_ids = DuplicateIds::default();
        for end in 1..4 {
            (leaving.1, other.clone().1) = (end, end);
            let leases = [leaving.clone(), (other.0, end, other.2.clone())];
            assert_eq!(duplicate_ids.duplicates(own, "n1", &leases), []);
        }
    }
}
