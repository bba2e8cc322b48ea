//! A request whose backend cannot be dialled, and that waits for it because its client belongs there.
//!
//! How long, and when it dials again, is what [`hold`](crate::request::parked) says; here is the loop around it, which sleeps, listens to
//! what becomes known about the backend, and keeps count. The request's body stays unread meanwhile.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::sleep_until;

use crate::balancer::pool::AffinityOutcome;
use crate::balancer::pool::Backend;
use crate::balancer::pool::Verdict;
use crate::balancer::pool::WaitCount;
use crate::request::error::Refusal;
use crate::request::exchange::Exchange;
use crate::request::exchange::Policy;
use crate::request::parked::FailedDial;
use crate::request::parked::Hold;
use crate::request::parked::NoPlace;
use crate::request::parked::Step;

/// How the wait of a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Its backend took it.
    Returned,
    /// It goes elsewhere.
    Moved,
    /// Its client left, or its connection broke.
    Left,
    /// There was no place to wait at.
    Full,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Returned => "returned",
            Self::Moved => "moved",
            Self::Left => "left",
            Self::Full => "full",
        }
    }
}

/// Whether a request waits. Each does so for one backend at most.
#[derive(Default)]
pub(super) enum Waiting {
    #[default]
    NotYet,
    Now(Box<Wait>),
    /// It did for so long.
    Over(Duration),
}

/// A wait that goes on. Dropped, it counts as one whose client left.
pub(super) struct Wait {
    hold: Hold,
    verdict: watch::Receiver<Verdict>,
    count: WaitCount,
    began: Instant,
    outcome: Outcome,
}

impl Drop for Wait {
    fn drop(&mut self) {
        let metrics = &self.count.backend().metrics;
        metrics.waited(self.outcome.as_str());
    }
}

impl Waiting {
    /// Whether the request stays with the backend that it was to go to.
    pub(super) fn goes_on(&self) -> bool {
        matches!(self, Self::Now(_))
    }

    /// For how long it has waited so far.
    pub(super) fn lasted(&self) -> Option<Duration> {
        match self {
            Self::NotYet => None,
            Self::Now(wait) => Some(wait.began.elapsed()),
            Self::Over(lasted) => Some(*lasted),
        }
    }

    fn end(&mut self, outcome: Outcome) {
        if let Self::Now(wait) = self {
            wait.outcome = outcome;
            *self = Self::Over(wait.began.elapsed());
        }
    }

    /// The backend has taken the request.
    pub(super) fn returned(&mut self) {
        self.end(Outcome::Returned);
    }

    /// The request has to do without it.
    pub(super) fn moved(&mut self) {
        self.end(Outcome::Moved);
    }
}

impl Policy {
    /// Has the request wait, or wait on, for its backend after a dial of it has failed. `false` if it is to go elsewhere.
    pub(super) fn hold(&self, exchange: &mut Exchange, dial: FailedDial) -> bool {
        let now = Instant::now();
        if let Waiting::Now(wait) = &mut exchange.waiting {
            wait.hold.failed(dial, now);
            return true;
        }
        let Some(backend) = exchange.awaited() else {
            return false;
        };
        match self.waiting_room.enter(dial, now) {
            Ok(hold) => {
                exchange.waiting = Waiting::Now(Box::new(Wait {
                    hold,
                    verdict: backend.verdict(),
                    count: backend.start_waiting(),
                    began: now,
                    outcome: Outcome::Left,
                }));
                true
            }
            Err(NoPlace::Full) => {
                backend.metrics.waited(Outcome::Full.as_str());
                false
            }
            Err(NoPlace::Off) => false,
        }
    }

    /// Ready when the next attempt is due: at once, unless the request waits for its backend.
    ///
    /// # Errors
    ///
    /// If it has waited in vain and nothing else may be tried: what its failed dial amounts to.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: the next call waits on.
    pub(crate) async fn attempt_is_due(&self, exchange: &mut Exchange) -> Result<(), Refusal> {
        let Waiting::Now(wait) = &mut exchange.waiting else {
            return Ok(());
        };
        loop {
            let verdict = *wait.verdict.borrow_and_update();
            let is_worth_it = exchange.pool.is_worth_waiting_for(wait.count.backend());
            let until = match wait.hold.step(is_worth_it, Instant::now()) {
                Step::Dial => return Ok(()),
                Step::Leave => break,
                Step::Wait(until) => until,
            };
            tokio::select! {
                biased;
                () = self.ending.cancelled() => break,
                changed = wait.verdict.changed() => match changed {
                    Ok(()) if verdict.answers < wait.verdict.borrow().answers => wait.hold.answered(Instant::now()),
                    Ok(()) => {}
                    // The backend is no more.
                    Err(_) => break,
                },
                () = sleep_until(until.into()) => {}
            }
        }
        exchange.waiting.moved();
        exchange.exclude_backend();
        self.go_elsewhere(exchange)
    }
}

impl Exchange {
    /// The backend that the request may wait for: the one that its client belongs to, as long as that keeps its clients.
    fn awaited(&self) -> Option<&std::sync::Arc<Backend>> {
        let choice = self.choice.as_ref()?;
        let waits = matches!(self.waiting, Waiting::NotYet)
            && choice.affinity == AffinityOutcome::Hit
            && self.pool.is_worth_waiting_for(&choice.backend);
        waits.then_some(&choice.backend)
    }

    /// Whether it waits for its backend.
    pub(crate) fn waits(&self) -> bool {
        self.waiting.goes_on()
    }
}
