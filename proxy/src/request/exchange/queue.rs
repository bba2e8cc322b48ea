//! Requests to a backend that has reached `limits.requests_per_backend`: they queue for a slot, or go to another backend.
//!
//! A request whose client is bound to the backend queues. Any other goes to a backend with a free slot, and queues only if there
//! is none.

use std::time::Instant;

use crate::balancer::affinity::Claim;
use crate::balancer::pool::AffinityOutcome;
use crate::balancer::pool::Choice;
use crate::balancer::pool::RequestKind;
use crate::balancer::pool::{AcquireOutcome, QueuedRequest, RequestSlot};
use crate::limits::Limit;
use crate::request::error::Rejection;
use crate::request::exchange::{Exchange, ProxyState};

/// The request slot of one request at its backend.
#[derive(Debug, Default)]
pub(super) enum SlotState {
    /// There is no limit, so no slot is needed.
    #[default]
    NotNeeded,
    Held(#[expect(dead_code, reason = "held for its drop")] RequestSlot),
    Queued(Box<QueuedRequest>),
}

impl ProxyState {
    /// Chooses a backend with a free slot for a plain request, or one in whose queue it waits.
    pub(super) fn pick_for_request(&self, exchange: &mut Exchange) -> Result<Choice, Rejection> {
        exchange.slot_state = SlotState::NotNeeded;
        let Some(limit) = self.gate.requests_of_backend() else {
            let now = exchange.attempt_time();
            return self.pick_any(exchange, now);
        };
        // The first backend that has only queued it.
        let mut queued_at: Option<(Choice, Box<QueuedRequest>)> = None;
        loop {
            let now = exchange.attempt_time();
            let choice = match (self.pick_any(exchange, now), queued_at.take()) {
                (Ok(choice), first) => {
                    queued_at = first;
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
                    queued_at.get_or_insert((choice, Box::new(queued)));
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

    /// Waits for the slot of a queued request at the chosen backend. `false` if it got none, and another backend is to be chosen.
    ///
    /// # Cancel safety
    ///
    /// The request keeps its position in the queue; the next call continues to wait.
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
                    tracing::debug!(backend = %choice.backend.id, %error, "queued request got no slot");
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
    /// Whether it is queued for a slot at the chosen backend.
    pub(crate) fn is_queued(&self) -> bool {
        matches!(self.slot_state, SlotState::Queued(_))
    }

    /// The time of this attempt; that of the first is the arrival, which spares a look at the clock.
    fn attempt_time(&self) -> Instant {
        match self.attempts {
            0 => self.arrived,
            _ => Instant::now(),
        }
    }
}
