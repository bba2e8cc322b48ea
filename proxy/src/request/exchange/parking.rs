//! Parks a request whose backend cannot be connected to, because its client is bound to that backend.
//!
//! How long, and when it dials again, is decided by [`parked`](crate::request::parked); here is the loop around it, which sleeps,
//! follows the health status of the backend, and counts. The request's body stays unread meanwhile.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::sleep_until;

use crate::balancer::pool::AffinityOutcome;
use crate::balancer::pool::Backend;
use crate::balancer::pool::HealthStatus;
use crate::balancer::pool::WaitCount;
use crate::request::error::Rejection;
use crate::request::exchange::Exchange;
use crate::request::exchange::ProxyState;
use crate::request::parked::NotParked;
use crate::request::parked::ParkReason;
use crate::request::parked::ParkedRequest;
use crate::request::parked::Step;

/// How the parking of a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Its backend accepted a connection.
    Returned,
    /// Another backend is tried.
    Moved,
    /// Its client disconnected.
    Disconnected,
    /// `limits.waiting` was reached.
    Full,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Returned => "returned",
            Self::Moved => "moved",
            Self::Disconnected => "left",
            Self::Full => "full",
        }
    }
}

/// Whether a request is parked. It is parked once at most, for one backend.
#[derive(Default)]
pub(super) enum Parking {
    #[default]
    NotYet,
    Now(Box<Parked>),
    /// It was, for this long.
    Over(Duration),
}

/// A parked request. Dropped, it counts as one whose client disconnected.
pub(super) struct Parked {
    request: ParkedRequest,
    health_status: watch::Receiver<HealthStatus>,
    count: WaitCount,
    began: Instant,
    outcome: Outcome,
}

impl Drop for Parked {
    fn drop(&mut self) {
        let metrics = &self.count.backend().metrics;
        metrics.waited(self.outcome.as_str());
    }
}

impl Parking {
    pub(super) fn is_parked(&self) -> bool {
        matches!(self, Self::Now(_))
    }

    /// How long it has been parked so far.
    pub(super) fn duration(&self) -> Option<Duration> {
        match self {
            Self::NotYet => None,
            Self::Now(parked) => Some(parked.began.elapsed()),
            Self::Over(lasted) => Some(*lasted),
        }
    }

    fn end(&mut self, outcome: Outcome) {
        if let Self::Now(parked) = self {
            parked.outcome = outcome;
            *self = Self::Over(parked.began.elapsed());
        }
    }

    /// The backend has accepted a connection for the request.
    pub(super) fn returned(&mut self) {
        self.end(Outcome::Returned);
    }

    /// The request no longer waits for the backend.
    pub(super) fn gave_up(&mut self) {
        self.end(Outcome::Moved);
    }
}

impl ProxyState {
    /// Parks the request after a failed dial of its backend, or keeps it parked. `false` if another backend is to be tried.
    pub(super) fn park(&self, exchange: &mut Exchange, dial: ParkReason) -> bool {
        let now = Instant::now();
        if let Parking::Now(parked) = &mut exchange.parking {
            parked.request.failed(dial, now);
            return true;
        }
        let Some(backend) = exchange.bound_backend() else {
            return false;
        };
        match self.parked.park(dial, now) {
            Ok(request) => {
                exchange.parking = Parking::Now(Box::new(Parked {
                    request,
                    health_status: backend.health_status(),
                    count: backend.start_waiting(),
                    began: now,
                    outcome: Outcome::Disconnected,
                }));
                true
            }
            Err(NotParked::Full) => {
                backend.metrics.waited(Outcome::Full.as_str());
                false
            }
            Err(NotParked::Disabled) => false,
        }
    }

    /// Ready when the next attempt is due: at once, unless the request is parked.
    ///
    /// # Errors
    ///
    /// If it was parked without success and no other backend may be tried: the response for its failed dial.
    ///
    /// # Cancel safety
    ///
    /// The request stays parked; the next call continues to wait.
    pub(crate) async fn attempt_due(&self, exchange: &mut Exchange) -> Result<(), Rejection> {
        let Parking::Now(parked) = &mut exchange.parking else {
            return Ok(());
        };
        loop {
            let health_status = *parked.health_status.borrow_and_update();
            let worth_waiting = exchange.pool.is_worth_waiting_for(parked.count.backend());
            let until = match parked.request.step(worth_waiting, Instant::now()) {
                Step::Dial => return Ok(()),
                Step::GiveUp => break,
                Step::Wait(until) => until,
            };
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => break,
                changed = parked.health_status.changed() => match changed {
                    Ok(()) if health_status.responses < parked.health_status.borrow().responses => parked.request.probe_answered(Instant::now()),
                    Ok(()) => {}
                    // The backend was removed.
                    Err(_) => break,
                },
                () = sleep_until(until.into()) => {}
            }
        }
        exchange.parking.gave_up();
        exchange.exclude_backend();
        self.try_another(exchange)
    }
}

impl Exchange {
    /// The backend that the request may wait for: the one that its client is bound to, while its clients are kept.
    fn bound_backend(&self) -> Option<&std::sync::Arc<Backend>> {
        let choice = self.choice.as_ref()?;
        let may_wait = matches!(self.parking, Parking::NotYet)
            && choice.affinity == AffinityOutcome::Hit
            && self.pool.is_worth_waiting_for(&choice.backend);
        may_wait.then_some(&choice.backend)
    }

    /// Whether it is parked until its backend is reachable.
    pub(crate) fn is_parked(&self) -> bool {
        self.parking.is_parked()
    }
}
