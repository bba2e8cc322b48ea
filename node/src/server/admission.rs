//! Admission of connections, above all when the node is full.
//!
//! A full node accepts no new clients and continues to serve connected ones: operators' requests, the server API, and requests of
//! existing sessions have separate permits. The purpose of a connection is known from its first request. So a full node reads the
//! first request of a limited number of further connections; above that limit it rejects the one that has been idle longest.
//!
//! Invariant: a connection holds exactly one permit, or waits in the bounded queue of undecided connections.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::logging::Throttle;
use crate::metrics::Counted;
use crate::metrics::Metrics;
use crate::metrics::RefuseReason;
use crate::server::memory_budget::Budget;
use crate::server::open_files::ConnectionLimits;
use crate::server::routing::Purpose;

/// Gives out permits.
pub(super) struct Admission {
    limits: ConnectionLimits,
    budget: Arc<Budget>,
    metrics: Arc<Metrics>,
    clients: Arc<Semaphore>,
    sessions: Arc<Semaphore>,
    api: Arc<Semaphore>,
    operators: Arc<Semaphore>,
    undecided: Arc<Undecided>,
    /// Limits the log lines about rejected connections.
    refusals: Throttle,
}

/// What a connection holds while it is open.
pub(super) struct Admitted {
    permit: Permit,
    _counted: Counted,
}

enum Permit {
    /// It is a client's: any request is served.
    Client { _permit: OwnedSemaphorePermit },
    /// It was accepted without a client permit: each of its requests is decided on its own.
    Reserve(Box<Reserve>),
}

struct Reserve {
    /// Why it is no client's.
    reason: RefuseReason,
    held: Held,
}

enum Held {
    /// Its first request is not known yet.
    Undecided(Ticket),
    /// Its last request was served.
    Permit { _permit: OwnedSemaphorePermit },
    /// Its last request was refused, and it is about to be closed.
    Nothing,
}

impl Admission {
    pub(super) fn new(
        limits: ConnectionLimits,
        budget: Arc<Budget>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let permits = |count: usize| Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)));
        Self {
            clients: permits(limits.clients),
            sessions: permits(limits.sessions),
            api: permits(limits.api),
            operators: permits(limits.operators),
            undecided: Arc::new(Undecided::new(limits.undecided)),
            refusals: Throttle::default(),
            limits,
            budget,
            metrics,
        }
    }

    /// Admits a connection, at least until its first request.
    pub(super) fn admit(&self) -> Admitted {
        let permit = match self.client() {
            Ok(_permit) => Permit::Client { _permit },
            Err(reason) => Permit::Reserve(Box::new(Reserve {
                reason,
                held: Held::Undecided(Undecided::enter(&self.undecided)),
            })),
        };
        Admitted {
            permit,
            _counted: self.metrics.connection(),
        }
    }

    /// Whether a request with this purpose is served on the connection of `admitted`. If not, the connection has to be closed.
    pub(super) fn decide(
        &self,
        admitted: &mut Admitted,
        purpose: impl FnOnce() -> Purpose,
    ) -> bool {
        let Permit::Reserve(reserve) = &mut admitted.permit else {
            return true;
        };
        reserve.held = Held::Nothing;
        let (own, is_client) = match purpose() {
            Purpose::Operator => (Some(&self.operators), false),
            Purpose::Api => (Some(&self.api), true),
            Purpose::Session => (Some(&self.sessions), true),
            Purpose::New => (None, true),
        };
        let client = if is_client {
            self.client()
        } else {
            Err(reserve.reason)
        };
        let reason = match client {
            Ok(_permit) => {
                admitted.permit = Permit::Client { _permit };
                return true;
            }
            Err(reason) => reason,
        };
        if let Some(_permit) = own.and_then(|own| Arc::clone(own).try_acquire_owned().ok()) {
            reserve.held = Held::Permit { _permit };
            return true;
        }
        self.refused(reason);
        false
    }

    /// Notes that the connection of `admitted` was refused before its first request was there.
    pub(super) fn evicted(&self, admitted: &Admitted) {
        if let Permit::Reserve(reserve) = &admitted.permit {
            self.refused(reserve.reason);
        }
    }

    fn client(&self) -> Result<OwnedSemaphorePermit, RefuseReason> {
        let permit = Arc::clone(&self.clients).try_acquire_owned();
        let permit = permit.map_err(|_| RefuseReason::Connections)?;
        if !self.budget.admit() {
            return Err(RefuseReason::Memory);
        }
        Ok(permit)
    }

    fn refused(&self, reason: RefuseReason) {
        self.metrics.refused(reason);
        let Some(held_back) = self.refusals.admit(Instant::now()) else {
            return;
        };
        match reason {
            RefuseReason::Memory => {
                warn!(
                    setting = "limits.memory",
                    held_back, "new client refused: the node has no memory for it"
                );
            }
            _ => warn!(
                limit = self.limits.clients,
                setting = "limits.connections",
                held_back,
                "new client refused: the node has too many connections"
            ),
        }
    }
}

impl Admitted {
    /// Whether any request is served.
    pub(super) fn is_client(&self) -> bool {
        matches!(self.permit, Permit::Client { .. })
    }

    /// Cancelled when the connection has to make room for another, if that may happen.
    pub(super) fn eviction(&self) -> Option<CancellationToken> {
        match &self.permit {
            Permit::Reserve(reserve) => match &reserve.held {
                Held::Undecided(ticket) => Some(ticket.evicted.clone()),
                Held::Permit { .. } | Held::Nothing => None,
            },
            Permit::Client { .. } => None,
        }
    }
}

/// The connections whose first request is not known yet, the oldest first.
///
/// Invariant: at most `max`.
struct Undecided {
    max: usize,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    next: u64,
    waiting: VecDeque<(u64, CancellationToken)>,
}

/// A place among them, given up on drop.
struct Ticket {
    number: u64,
    evicted: CancellationToken,
    undecided: Arc<Undecided>,
}

impl Undecided {
    fn new(max: usize) -> Self {
        Self {
            max: max.max(1),
            queue: Mutex::default(),
        }
    }

    fn enter(undecided: &Arc<Self>) -> Ticket {
        let evicted = CancellationToken::new();
        let mut queue = undecided.queue.lock();
        if undecided.max <= queue.waiting.len()
            && let Some((_, oldest)) = queue.waiting.pop_front()
        {
            oldest.cancel();
        }
        let number = queue.next;
        queue.next += 1;
        queue.waiting.push_back((number, evicted.clone()));
        drop(queue);
        Ticket {
            number,
            evicted,
            undecided: Arc::clone(undecided),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut queue = self.undecided.queue.lock();
        let place = queue
            .waiting
            .binary_search_by_key(&self.number, |(number, _)| *number);
        if let Ok(place) = place {
            queue.waiting.remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ConnectionLimits = ConnectionLimits {
        clients: 1,
        sessions: 1,
        api: 1,
        operators: 1,
        undecided: 2,
    };

    fn admission() -> Admission {
        Admission::new(LIMITS, Budget::new(None), Metrics::new())
    }

    fn decide(admission: &Admission, admitted: &mut Admitted, purpose: Purpose) -> bool {
        admission.decide(admitted, || purpose)
    }

    #[test]
    fn a_full_node_serves_each_purpose_but_new_clients_by_permits_of_its_own() {
        let admission = admission();
        let client = admission.admit();
        assert!(client.is_client());
        let mut held = Vec::new();
        for purpose in [Purpose::Operator, Purpose::Api, Purpose::Session] {
            let mut first = admission.admit();
            assert!(!first.is_client());
            assert!(decide(&admission, &mut first, purpose));
            assert!(decide(&admission, &mut first, purpose), "the next request");
            let mut second = admission.admit();
            assert!(!decide(&admission, &mut second, purpose));
            held.push(first);
        }
        let mut new = admission.admit();
        assert!(!decide(&admission, &mut new, Purpose::New));
        // What was one purpose's is not left behind with another.
        assert!(!decide(&admission, &mut held[0], Purpose::New));
        let mut operator = admission.admit();
        assert!(decide(&admission, &mut operator, Purpose::Operator));
    }

    #[test]
    fn a_connection_becomes_a_clients_once_there_is_room() {
        let admission = admission();
        let client = admission.admit();
        let mut later = admission.admit();
        drop(client);
        assert!(decide(&admission, &mut later, Purpose::New));
        assert!(later.is_client());
        assert!(!admission.admit().is_client());
    }

    #[test]
    fn what_a_client_holds_of_it_is_small() {
        assert_eq!(size_of::<Admitted>(), 24);
    }

    #[test]
    fn a_clients_connection_serves_everything() {
        let admission = admission();
        let mut client = admission.admit();
        assert!(admission.decide(&mut client, || panic!("it is not asked for")));
    }

    #[test]
    fn of_too_many_undecided_the_oldest_makes_room() {
        let admission = admission();
        let _client = admission.admit();
        let first = admission.admit();
        let mut second = admission.admit();
        assert!(decide(&admission, &mut second, Purpose::Operator));
        assert!(second.eviction().is_none());
        let third = admission.admit();
        let evicted = first.eviction().unwrap();
        assert!(!evicted.is_cancelled());
        let fourth = admission.admit();
        assert!(evicted.is_cancelled());
        for kept in [&third, &fourth] {
            assert!(!kept.eviction().unwrap().is_cancelled());
        }
        drop(third);
        let _fifth = admission.admit();
        assert!(!fourth.eviction().unwrap().is_cancelled());
    }

    #[test]
    fn without_memory_it_is_full_too() {
        let budget = Budget::new(Some(1));
        let limits = ConnectionLimits {
            clients: 10,
            ..LIMITS
        };
        let admission = Admission::new(limits, budget, Metrics::new());
        let mut admitted = admission.admit();
        assert!(!admitted.is_client());
        assert!(decide(&admission, &mut admitted, Purpose::Session));
        assert!(!decide(&admission, &mut admitted, Purpose::New));
    }
}
