//! Delivers events to the application's hook: one batch after the other, each until it is accepted.
//!
//! Of all nodes that share a log, one delivers at a time; another takes over when its turn expires. Events that were
//! delivered but could not be marked so are delivered again, with the same ids.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tracing::warn;

use super::event::Batch;
use super::event::Event;
use crate::hooks::Hooks;
use crate::metrics::Metrics;
use crate::protocol::instance::Instance;
use crate::redis::Backoff;
use crate::redis::CommandError;

/// Events in one request.
const BATCH_MAX: usize = 200;

/// How often the log is read while it has no new events.
const IDLE_PAUSE: Duration = Duration::from_millis(100);

/// How often a node tries to take the turn while another delivers, and to read events while Redis is unavailable.
const TURN_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause after a request that failed.
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// How long a stopping node may take to deliver events that no other node can.
const FINISH_WITHIN: Duration = Duration::from_secs(2);

/// The source of events.
#[async_trait]
pub(super) trait Log: Send + Sync + 'static {
    /// The first events that are not delivered; `None` while it is another's turn.
    async fn pending(&self, turn: Turn, count: usize) -> Result<Option<Pending>, CommandError>;

    /// Marks all events up to `last` as delivered, if it is still the node's turn.
    async fn delivered(&self, turn: Turn, last: &Event) -> Result<(), CommandError>;

    /// Ends the turn. Returns whether pending events are lost with this node.
    async fn hand_over(&self, turn: Turn) -> Result<bool, CommandError>;
}

/// A node's turn to deliver: renewed each time that it reads events.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    pub(super) owner: Instance,
    /// Longer than a request and the pause after it, or nodes deliver the same events in turns.
    pub(super) lasts: Duration,
}

/// Events to deliver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pending {
    /// The number of the last event that was delivered, 0 before the first.
    pub(super) delivered: u64,
    pub(super) events: Vec<Event>,
}

/// Delivers the events of one log.
pub(super) struct Delivery {
    pub(super) log: Arc<dyn Log>,
    pub(super) turn: Turn,
    pub(super) hooks: Arc<Hooks>,
    pub(super) metrics: Arc<Metrics>,
}

/// The result of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    /// It is another node's turn.
    NotOurTurn,
    Nothing,
    Taken,
    Failed,
}

impl Delivery {
    /// Delivers until `shutdown`. Events that are pending then are delivered by another node or, without Redis, at once.
    pub(super) async fn run(self, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(self.deliver_all()).await;
        if time::timeout(FINISH_WITHIN, self.finish()).await.is_err() {
            warn!("the application did not accept the last lifecycle events in time");
        }
    }

    async fn deliver_all(&self) {
        let mut backoff = Backoff::new(BACKOFF_MAX);
        loop {
            let pause = match self.deliver().await {
                Ok(Attempt::Taken) => {
                    backoff.reset();
                    continue;
                }
                Ok(Attempt::Nothing) => IDLE_PAUSE,
                Ok(Attempt::NotOurTurn) => TURN_PAUSE,
                Ok(Attempt::Failed) => backoff.next(fastrand::f64()),
                Err(error) => {
                    debug!(%error, "cannot read lifecycle events");
                    TURN_PAUSE
                }
            };
            time::sleep(pause).await;
        }
    }

    async fn finish(&self) {
        match self.log.hand_over(self.turn).await {
            Ok(false) => {}
            Ok(true) => loop {
                match self.deliver().await {
                    Ok(Attempt::Taken) => {}
                    Ok(Attempt::Failed) => time::sleep(IDLE_PAUSE).await,
                    _ => return,
                }
            },
            // Another node waits until the turn has ended.
            Err(error) => debug!(%error, "cannot hand over the delivery of lifecycle events"),
        }
    }

    /// Delivers one batch.
    async fn deliver(&self) -> Result<Attempt, CommandError> {
        let Some(pending) = self.log.pending(self.turn, BATCH_MAX).await? else {
            return Ok(Attempt::NotOurTurn);
        };
        let Pending { delivered, events } = pending;
        let (Some(first), Some(last)) = (events.first(), events.last()) else {
            return Ok(Attempt::Nothing);
        };
        if self
            .hooks
            .lifecycle(&Batch { events: &events })
            .await
            .is_err()
        {
            return Ok(Attempt::Failed);
        }
        let lost = first.number.saturating_sub(delivered + 1);
        if 0 < lost {
            self.metrics.lifecycle_lost.inc_by(lost);
            warn!(
                lost,
                setting = "lifecycle.keep",
                "lifecycle events were dropped before the application accepted them"
            );
        }
        self.metrics.lifecycle_delivered.inc_by(events.len() as u64);
        self.log.delivered(self.turn, last).await?;
        Ok(Attempt::Taken)
    }
}
