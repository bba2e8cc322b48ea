//! Counts dropped publications, and logs them at a limited rate.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use parking_lot::Mutex;
use tracing::warn;

use crate::metrics::DropReason;
use crate::metrics::Metrics;

/// The shortest time between two log lines.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Counts everything that this broker drops.
pub(super) struct DropCounters {
    metrics: Arc<Metrics>,
    unlogged: Mutex<Unlogged>,
}

/// Drops that were not logged yet.
#[derive(Debug, Default)]
struct Unlogged {
    counts: HashMap<DropReason, u64>,
    /// Redis's error for the last rejected publication.
    reply: Option<String>,
    logged_at: Option<Instant>,
}

impl DropCounters {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        let unlogged = Mutex::default();
        Self { metrics, unlogged }
    }

    /// Counts `count` lost publications now, and logs them now or with the next line.
    pub(super) fn note(&self, reason: DropReason, count: usize) {
        let count = count as u64;
        if count == 0 {
            return;
        }
        self.metrics.dropped(reason, count);
        *self.unlogged.lock().counts.entry(reason).or_default() += count;
        self.log();
    }

    /// Keeps Redis's error for the next line.
    pub(super) fn note_reply(&self, reply: String) {
        self.unlogged.lock().reply = Some(reply);
    }

    /// Logs drops that were held back, once the interval has passed. To be called periodically.
    pub(super) fn log(&self) {
        let mut unlogged = self.unlogged.lock();
        let counts = unlogged.take(Instant::now());
        let reply = match counts.is_empty() {
            true => None,
            false => unlogged.reply.take(),
        };
        drop(unlogged);
        for (reason, count) in counts {
            warn!(
                reason = reason.as_str(),
                count, reply, "publications were dropped"
            );
        }
    }
}

impl Unlogged {
    fn take(&mut self, now: Instant) -> Vec<(DropReason, u64)> {
        let is_early = self
            .logged_at
            .is_some_and(|at| now.saturating_duration_since(at) < LOG_INTERVAL);
        if self.counts.is_empty() || is_early {
            return Vec::new();
        }
        self.logged_at = Some(now);
        self.counts.drain().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_line_a_second_and_every_drop_is_logged() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut unlogged = Unlogged::default();
        unlogged.counts.insert(DropReason::QueueFull, 1);
        assert_eq!(unlogged.take(at(0)), [(DropReason::QueueFull, 1)]);
        unlogged.counts.insert(DropReason::QueueFull, 7);
        assert_eq!(unlogged.take(at(999)), []);
        assert_eq!(unlogged.take(at(1000)), [(DropReason::QueueFull, 7)]);
        assert_eq!(unlogged.take(at(5000)), []);
    }
}
