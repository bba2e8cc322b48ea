//! A request at a backend that has as many as it may get (`limits.requests_per_backend`): it waits for its turn, or is passed on.
//!
//! A client that belongs to the backend waits. Any other is sent to a backend with room, and waits only if there is none.

use std::time::Instant;

use crate::balancer::affinity::Claim;
use crate::balancer::pool::AffinityOutcome;
use crate::balancer::pool::Choice;
use crate::balancer::pool::Seeks;
use crate::balancer::pool::{Entry, RequestSlot, Ticket};
use crate::limits::Limit;
use crate::request::error::Refusal;
use crate::request::exchange::{Exchange, Policy};

/// The right of a request to be at its backend.
#[derive(Debug, Default)]
pub(super) enum Turn {
    /// None is needed.
    #[default]
    Free,
    Slot(#[expect(dead_code, reason = "held for its drop")] RequestSlot),
    Waits(Box<Ticket>),
}

impl Policy {
    /// Chooses a backend that has room for a plain request, or in whose queue it waits.
    pub(super) fn pick_for_request(&self, exchange: &mut Exchange) -> Result<Choice, Refusal> {
        exchange.turn = Turn::Free;
        let Some(limit) = self.gate.requests_of_backend() else {
            let now = exchange.attempt_time();
            return self.pick_any(exchange, now);
        };
        // The first backend that would have it wait.
        let mut waits: Option<(Choice, Box<Ticket>)> = None;
        loop {
            let now = exchange.attempt_time();
            let choice = match (self.pick_any(exchange, now), waits.take()) {
                (Ok(choice), first) => {
                    waits = first;
                    choice
                }
                (Err(_), Some((choice, ticket))) => {
                    exchange.turn = Turn::Waits(ticket);
                    return Ok(choice);
                }
                (Err(refusal), None) => return Err(refusal),
            };
            match choice.backend.request_slots.enter(limit, now) {
                Entry::Slot(slot) => {
                    exchange.turn = Turn::Slot(slot);
                    return Ok(choice);
                }
                Entry::Queued(ticket) if choice.affinity == AffinityOutcome::Hit => {
                    exchange.turn = Turn::Waits(Box::new(ticket));
                    return Ok(choice);
                }
                Entry::Queued(ticket) => {
                    exchange.tried.add(&choice.backend);
                    waits.get_or_insert((choice, Box::new(ticket)));
                }
                Entry::Full => exchange.tried.add(&choice.backend),
            }
            let full = Refusal::Limited(Limit::RequestsPerBackend);
            exchange.failure.get_or_insert(full);
        }
    }

    fn pick_any(&self, exchange: &Exchange, now: Instant) -> Result<Choice, Refusal> {
        let claim: &Claim = &exchange.claim;
        let chosen = exchange
            .pool
            .choose(claim, Seeks::Answer, &exchange.tried, now);
        chosen.map_err(|_| {
            let refusal = exchange.failure();
            if let Refusal::Limited(limit) = refusal {
                let client = Some(exchange.forwarded.client);
                self.gate.refuse(limit, client, now);
            }
            refusal
        })
    }

    /// Waits for the turn of a request at the chosen backend. `false` if it did not come, and another is to be chosen.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: the next call waits on.
    pub(crate) async fn turn_comes(&self, exchange: &mut Exchange) -> bool {
        let Turn::Waits(ticket) = &mut exchange.turn else {
            return true;
        };
        match ticket.slot().await {
            Ok(slot) => {
                exchange.turn = Turn::Slot(slot);
                true
            }
            Err(error) => {
                if let Some(choice) = &exchange.choice {
                    tracing::debug!(backend = %choice.backend.id, %error, "queue");
                }
                exchange.turn = Turn::Free;
                exchange.failure = Some(Refusal::Limited(Limit::RequestsPerBackend));
                exchange.exclude_backend();
                false
            }
        }
    }
}

impl Exchange {
    /// Whether it waits for its turn at the chosen backend.
    pub(crate) fn is_queued(&self) -> bool {
        matches!(self.turn, Turn::Waits(_))
    }

    /// The time of this attempt: nothing has happened yet in the first.
    fn attempt_time(&self) -> Instant {
        match self.attempts {
            0 => self.arrived,
            _ => Instant::now(),
        }
    }
}
