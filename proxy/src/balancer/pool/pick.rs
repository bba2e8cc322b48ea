//! Picks a backend for a client that is not bound: by load, at random or round robin, always by weight.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::balancer::pool::backend::Backend;
use crate::balancer::pool::load::RequestKind;
use crate::balancer::pool::pace::NewClients;
use crate::balancer::pool::table::{Table, View};
use crate::config::Pick;

/// Up to this many candidates the least loaded is found exactly; of more, the better of two random ones is picked. That is nearly
/// as even, compares only two, and avoids that many edges pick the same idle backend at once.
const EXACT_MAX: usize = 8;

/// The pick policy of one pool, with its state.
pub(super) struct Picker {
    pick: Pick,
    /// The position in the round robin schedule; with `least`, the first candidate among equals.
    position: AtomicUsize,
    new_clients: NewClients,
}

/// The new client that a backend is picked for.
#[derive(Clone, Copy)]
pub(super) struct NewClient {
    pub(super) kind: RequestKind,
    /// The time since the pool was created.
    pub(super) age: Duration,
    /// Whether clients are being moved to the backends with the fewest tunnels.
    pub(super) rebalances: bool,
}

impl NewClient {
    /// The weight of `backend` for it, in thousandths.
    fn weight_of(self, backend: &Backend) -> u64 {
        if self.rebalances {
            u64::from(backend.weight()) * 1000
        } else {
            backend.weight_at(self.age)
        }
    }
}

impl Picker {
    pub(super) fn new(pick: Pick) -> Self {
        Self {
            pick,
            position: AtomicUsize::new(0),
            new_clients: NewClients::default(),
        }
    }

    /// One of the backends that are eligible in `view`, or `None` if there is none.
    ///
    /// States may change meanwhile: if a backend that `view` counted is no longer eligible, any other is picked.
    pub(super) fn pick<'t>(
        &self,
        table: &'t Table,
        view: &View<'_>,
        new_client: NewClient,
    ) -> Option<&'t Arc<Backend>> {
        let candidates = || {
            table
                .backends
                .iter()
                .filter(|backend| view.is_eligible(backend))
        };
        let picked = match self.pick {
            _ if new_client.rebalances => self.least(table, view, new_client),
            Pick::Least if view.count <= EXACT_MAX => self.least(table, view, new_client),
            Pick::Least => {
                let (one, other) = (fastrand::usize(..view.count), fastrand::usize(..view.count));
                let (one, other) = (candidates().nth(one), candidates().nth(other));
                one.zip(other)
                    .map(|(one, other)| self.better(one, other, view, new_client))
            }
            Pick::Random => {
                let point = fastrand::u64(..view.weight.max(1));
                by_weight(candidates(), point, new_client.age)
            }
            Pick::RoundRobin => self.round_robin(table, view, new_client.age),
        };
        picked.or_else(|| candidates().next())
    }

    /// Counts the new client for `backend`, picked here or not.
    pub(super) fn bind(&self, backend: &Backend, view: &View<'_>, new_client: NewClient) {
        let (before, weight) = (self.new_clients.count(), backend.weight_at(new_client.age));
        self.new_clients.add();
        backend.pace.add(before, weight, view.weight);
        backend.load.bind(new_client.kind, new_client.age);
    }

    /// The least loaded; among equals, the first in a rotating order.
    fn least<'t>(
        &self,
        table: &'t Table,
        view: &View<'_>,
        new_client: NewClient,
    ) -> Option<&'t Arc<Backend>> {
        let backends = &table.backends;
        let first = self.position.fetch_add(1, Ordering::Relaxed) % backends.len().max(1);
        let (before, from) = backends.split_at(first);
        let in_order = from.iter().chain(before);
        in_order
            .filter(|backend| view.is_eligible(backend))
            .reduce(|one, other| self.better(one, other, view, new_client))
    }

    /// The one whose pace allows a new client, else the one with less load for its weight; the first of two equals.
    fn better<'t>(
        &self,
        one: &'t Arc<Backend>,
        other: &'t Arc<Backend>,
        view: &View<'_>,
        new_client: NewClient,
    ) -> &'t Arc<Backend> {
        let new_clients = self.new_clients.count();
        let (one_weight, other_weight) = (new_client.weight_of(one), new_client.weight_of(other));
        let too_fast = |backend: &Backend, weight| {
            !new_client.rebalances && !backend.pace.allows(new_clients, weight, view.weight)
        };
        // The load with this client, multiplied by the weight of the other one: compares the loads by weight without a division.
        let load = |backend: &Backend, weight| {
            (backend.load.weight(new_client.kind, new_client.age) + 1) * weight
        };
        let of_one = (too_fast(one, one_weight), load(one, other_weight));
        let of_other = (too_fast(other, other_weight), load(other, one_weight));
        if of_other < of_one { other } else { one }
    }

    /// The next in a schedule in which each occurs in proportion to its weight.
    ///
    /// The turn of an ineligible backend is skipped, so that its share goes to all others and not to its neighbour. During slow
    /// start, a backend uses only some of its turns.
    fn round_robin<'t>(
        &self,
        table: &'t Table,
        view: &View<'_>,
        age: Duration,
    ) -> Option<&'t Arc<Backend>> {
        let schedule = &table.schedule;
        for _ in 0..schedule.len() {
            let turn = self.position.fetch_add(1, Ordering::Relaxed) % schedule.len();
            let backend = &table.backends[usize::from(schedule[turn])];
            let (weight, full) = (backend.weight_at(age), u64::from(backend.weight()) * 1000);
            if view.is_eligible(backend) && (weight == full || fastrand::u64(..full) < weight) {
                return Some(backend);
            }
        }
        None
    }
}

/// The backend whose interval in the sum of the weights contains `point`.
fn by_weight<'t>(
    candidates: impl Iterator<Item = &'t Arc<Backend>>,
    mut point: u64,
    age: Duration,
) -> Option<&'t Arc<Backend>> {
    for backend in candidates {
        let weight = backend.weight_at(age);
        if point < weight {
            return Some(backend);
        }
        point -= weight;
    }
    None
}
