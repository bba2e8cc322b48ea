//! A request at a backend that has as many as it may get (`limits.requests_per_backend`): it waits for its turn, or is passed on.
//!
//! A client that belongs to the backend waits. Any other is sent to a backend with room, and waits only if there is none.

use std::time::Instant;

use crate::balancer::affinity::Claim;
use crate::balancer::pool::AffinityOutcome;
use crate::balancer::pool::Choice;
use crate::balancer::pool::RequestKind;
use crate::balancer::pool::{AcquireOutcome, QueuedRequest, RequestSlot};
use crate::limits::Limit;
use crate::request::error::Rejection;
use crate::request::exchange::{Exchange, ProxyState};

/// The right of a request to be at its backend.
#[derive(Debug, Default)]
pub(super) enum SlotState {
    /// None is needed.
    #[default]
    NotNeeded,
    Held(#[expect(dead_code, reason = "held for its drop")] RequestSlot),
    Queued(Box<QueuedRequest>),
}

impl ProxyState {
    /// Chooses a backend that has room for a plain request, or in whose queue it waits.
    pub(super) fn pick_for_request(&self, exchange: &mut Exchange) -> Result<Choice, Rejection> {
        exchange.slot_state = SlotState::NotNeeded;
        let Some(limit) = self.gate.requests_of_backend() else {
            let now = exchange.attempt_time();
            return self.pick_any(exchange, now);
        };
        // The first backend that would have it wait.
        let mut waits: Option<(Choice, Box<QueuedRequest>)> = None;
        loop {
            let now = exchange.attempt_time();
            let choice = match (self.pick_any(exchange, now), waits.take()) {
                (Ok(choice), first) => {
                    waits = first;
                    choice
                }
                (Err(_), Some((choice, queued))) => {
                    exchange.slot_state = SlotState::Queued(queued);
                    return Ok(choice);
                }
                (Err(rejection), None) => return Err(rejection),
            };
            match choice.backend.request_slots.acquire(limit, now) {
                AcquireOutcome::Slot(slot) => {
                    exchange.slot_state = SlotState::Held(slot);
                    return Ok(choice);
                }
                AcquireOutcome::Queued(queued) if choice.affinity == AffinityOutcome::Hit => {
                    exchange.slot_state = SlotState::Queued(Box::new(queued));
                    return Ok(choice);
                }
                AcquireOutcome::Queued(queued) => {
                    exchange.tried.add(&choice.backend);
                    waits.get_or_insert((choice, Box::new(queued)));
                }
                AcquireOutcome::Full => exchange.tried.add(&choice.backend),
            }
            let full = Rejection::Limited(Limit::RequestsPerBackend);
            exchange.failure.get_or_insert(full);
        }
    }

    fn pick_any(&self, exchange: &Exchange, now: Instant) -> Result<Choice, Rejection> {
        let claim: &Claim = &exchange.claim;
        let chosen = exchange
            .pool
            .choose(claim, RequestKind::Plain, &exchange.tried, now);
        chosen.map_err(|_| {
            let rejection = exchange.failure();
            if let Rejection::Limited(limit) = rejection {
                let client = Some(exchange.forwarded.client);
                self.gate.refuse(limit, client, now);
            }
            rejection
        })
    }

    /// Waits for the turn of a request at the chosen backend. `false` if it did not come, and another is to be chosen.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: the next call waits on.
    pub(crate) async fn slot_granted(&self, exchange: &mut Exchange) -> bool {
        let SlotState::Queued(queued) = &mut exchange.slot_state else {
            return true;
        };
        match queued.slot().await {
            Ok(slot) => {
                exchange.slot_state = SlotState::Held(slot);
                true
            }
            Err(error) => {
                if let Some(choice) = &exchange.choice {
                    tracing::debug!(backend = %choice.backend.id, %error, "queue");
                }
                exchange.slot_state = SlotState::NotNeeded;
                exchange.failure = Some(Rejection::Limited(Limit::RequestsPerBackend));
                exchange.exclude_backend();
                false
            }
        }
    }
}

impl Exchange {
    /// Whether it waits for its turn at the chosen backend.
    pub(crate) fn is_queued(&self) -> bool {
        matches!(self.slot_state, SlotState::Queued(_))
    }

    /// The time of this attempt: nothing has happened yet in the first.
    fn attempt_time(&self) -> Instant {
        match self.attempts {
            0 => self.arrived,
            _ => Instant::now(),
        }
    }
}
