//! Open client connections during a shutdown, and the schedule on which a drain closes tunnels.
//!
//! Every client connection is counted while it is open, idle or not: a process that exits with an idle keep-alive connection
//! fails the request that is on its way. The schedule is a plain function of elapsed time.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// The client connections that are not tunnels, and whether the edge is draining.
pub(crate) struct Connections {
    open: TaskTracker,
    late: Duration,
    draining: CancellationToken,
    closing_idle: CancellationToken,
}

/// One counted connection.
pub(crate) struct ConnectionGuard {
    _token: TaskTrackerToken,
}

impl Connections {
    /// Idle connections stay open for `late` after a drain begins.
    pub(crate) fn new(late: Duration) -> Arc<Self> {
        Arc::new(Self {
            open: TaskTracker::new(),
            late,
            draining: CancellationToken::new(),
            closing_idle: CancellationToken::new(),
        })
    }

    /// Counts a connection until the guard is dropped.
    pub(crate) fn count(&self) -> ConnectionGuard {
        ConnectionGuard {
            _token: self.open.token(),
        }
    }

    /// The number of open connections.
    pub(crate) fn open(&self) -> usize {
        self.open.len()
    }

    /// Whether the edge is draining: responses then close their connection.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Cancelled when the drain begins.
    pub(crate) fn draining(&self) -> CancellationToken {
        self.draining.clone()
    }

    /// Begins the drain: no connection is kept alive from here on.
    pub(crate) fn drain(&self) {
        self.draining.cancel();
        self.open.close();
    }

    /// Begins the drain, and closes idle connections at once.
    pub(crate) fn close_idle(&self) {
        self.closing_idle.cancel();
        self.drain();
    }

    /// Ready when idle connections are to be closed at once.
    pub(crate) async fn closing_idle(&self) {
        self.closing_idle.cancelled().await;
    }

    /// Ready when an idle connection is to be closed because of the drain.
    pub(crate) async fn idle_expired(&self) {
        tokio::select! {
            biased;
            () = self.closing_idle.cancelled() => {}
            () = async {
                self.draining.cancelled().await;
                tokio::time::sleep(self.late).await;
            } => {}
        }
    }

    /// Ready when the drain has begun and no connection is open.
    pub(crate) async fn wait_closed(&self) {
        self.open.wait().await;
    }
}

/// The number of batches in which a drain closes tunnels, with a pause after each.
const BATCHES: u64 = BATCHES_U32 as u64;
const BATCHES_U32: u32 = 256;

/// When to close which batch of tunnels, spread over time so that the other backends and edges are not flooded by
/// reconnecting clients.
#[derive(Debug)]
pub(crate) struct DrainSchedule {
    spread: Duration,
    closed: u64,
}

impl DrainSchedule {
    pub(crate) fn new(spread: Duration) -> Self {
        Self { spread, closed: 0 }
    }

    /// The batches that are due after `elapsed` and were not returned before, as indices below [`DrainSchedule::batches`].
    pub(crate) fn due(&mut self, elapsed: Duration) -> std::ops::Range<u64> {
        let due = match self.spread.as_micros() {
            0 => BATCHES,
            spread => {
                let share = elapsed.as_micros().saturating_mul(u128::from(BATCHES)) / spread;
                u64::try_from(share).map_or(BATCHES, |share| (share + 1).min(BATCHES))
            }
        };
        let from = self.closed;
        self.closed = due.max(from);
        from..self.closed
    }

    /// The number of batches.
    pub(crate) fn batches() -> u64 {
        BATCHES
    }

    /// Whether all batches were due.
    pub(crate) fn is_over(&self) -> bool {
        self.closed == BATCHES
    }

    /// The time between two batches.
    pub(crate) fn step(&self) -> Duration {
        (self.spread / BATCHES_U32).max(Duration::from_millis(5))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_batch_is_due_exactly_once_and_evenly_spread() {
        let mut schedule = DrainSchedule::new(Duration::from_secs(5));
        let mut all = Vec::new();
        for tick in 0..=100 {
            let due = schedule.due(Duration::from_millis(50) * tick);
            assert!(due.end - due.start <= 4, "{due:?} at tick {tick}");
            all.extend(due);
        }
        assert!(schedule.is_over());
        assert_eq!(all, (0..DrainSchedule::batches()).collect::<Vec<_>>());
    }

    #[test]
    fn without_a_spread_all_batches_are_due_at_once() {
        let mut schedule = DrainSchedule::new(Duration::ZERO);
        assert_eq!(schedule.due(Duration::ZERO), 0..DrainSchedule::batches());
        assert!(schedule.is_over());
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_stays_open_for_a_while_when_a_drain_begins() {
        let connections = Connections::new(Duration::from_secs(1));
        let started = tokio::time::Instant::now();
        connections.drain();
        connections.idle_expired().await;
        assert_eq!(started.elapsed(), Duration::from_secs(1));
        connections.close_idle();
        connections.idle_expired().await;
        assert_eq!(started.elapsed(), Duration::from_secs(1));
    }

    #[tokio::test]
    async fn a_drain_is_over_when_the_last_connection_is_closed() {
        let connections = Connections::new(Duration::ZERO);
        let guard = connections.count();
        connections.drain();
        let closed = connections.wait_closed();
        tokio::pin!(closed);
        assert!(futures_util::poll!(&mut closed).is_pending());
        drop(guard);
        closed.await;
    }

    #[test]
    fn a_connection_is_counted_until_its_guard_is_dropped() {
        let connections = Connections::new(Duration::ZERO);
        let guards = [connections.count(), connections.count()];
        assert_eq!(connections.open(), 2);
        drop(guards);
        assert_eq!(connections.open(), 0);
    }
}
