//! Other processes that have this node's id: plain.
//!
//! A process that was killed leaves its lease for some seconds, and the one that is started after it finds its own id there. So
//! only a lease that is renewed counts.

use std::collections::BTreeMap;

use super::Lease;
use super::Node;
use crate::protocol::instance::Instance;

/// What was seen of them.
#[derive(Debug, Default)]
pub(super) struct Namesakes {
    /// When each of their leases ended at the last look.
    ends: BTreeMap<Lease, u64>,
}

/// A lease as a look finds it: when it ends, and its holder.
pub(super) type Seen = (Lease, u64, Node);

impl Namesakes {
    /// Looks at all leases. Those processes besides `own` that are at work under `id`.
    pub(super) fn look(&mut self, own: Instance, id: &str, leases: &[Seen]) -> Vec<Node> {
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
            leaving: false,
        };
        (lease, end, node)
    }

    #[test]
    fn another_process_with_this_id_is_found_once_it_renews_its_lease() {
        let own = Lease::first(Instance::random());
        let other = Lease::first(Instance::random());
        let mut namesakes = Namesakes::default();
        let mut look = |end| {
            let leases = [seen(own, end, "n1"), seen(other, end, "n1")];
            let found = namesakes.look(own.instance, "n1", &leases);
            found.iter().map(|node| node.instance).collect::<Vec<_>>()
        };
        assert_eq!(look(1), []);
        assert_eq!(look(1), [], "a killed one leaves its lease");
        assert_eq!(look(2), [other.instance]);
        assert_eq!(look(3), [other.instance]);
    }

    #[test]
    fn one_with_another_id_or_on_its_way_out_is_none() {
        let own = Instance::random();
        let mut leaving = seen(Lease::first(Instance::random()), 1, "n1");
        leaving.2.leaving = true;
        let other = seen(Lease::first(Instance::random()), 1, "n2");
        let mut namesakes = Namesakes::default();
        for end in 1..4 {
            (leaving.1, other.clone().1) = (end, end);
            let leases = [leaving.clone(), (other.0, end, other.2.clone())];
            assert_eq!(namesakes.look(own, "n1", &leases), []);
        }
    }
}
