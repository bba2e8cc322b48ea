//! Open client connections during a shutdown.
//!
//! Every client connection is counted while it is open, idle or not: a process that exits with an idle keep-alive connection
//! fails the request that is on its way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// The client connections that are not tunnels, and whether the edge is draining.
pub(crate) struct Connections {
    open: TaskTracker,
    /// In milliseconds.
    late: AtomicU64,
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
            late: AtomicU64::new(millis(late)),
            draining: CancellationToken::new(),
            closing_idle: CancellationToken::new(),
        })
    }

    /// Changes how long idle connections stay open after a drain begins.
    pub(crate) fn set_late(&self, late: Duration) {
        self.late.store(millis(late), Ordering::Relaxed);
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
                let late = Duration::from_millis(self.late.load(Ordering::Relaxed));
                tokio::time::sleep(late).await;
            } => {}
        }
    }

    /// Ready when the drain has begun and no connection is open.
    pub(crate) async fn wait_closed(&self) {
        self.open.wait().await;
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

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
