//! Open client connections during a shutdown.
//!
//! Every client connection is counted while it is open, idle or not: a process that exits with an idle keep-alive connection
//! fails the request that is on its way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::downstream::ParkedIdle;

/// The client connections that are not tunnels, and whether the edge is draining.
pub(crate) struct Connections {
    open: TaskTracker,
    /// In milliseconds.
    late: AtomicU64,
    draining: CancellationToken,
    closing_idle: CancellationToken,
    /// Where idle connections go that another process continues, while it takes over.
    parking: Mutex<Option<mpsc::Sender<ParkedIdle>>>,
}

/// What becomes of an idle connection.
#[derive(Debug)]
pub(crate) enum IdleEnd {
    /// It is to be closed.
    Close,
    /// It is to be parked there.
    Park(mpsc::Sender<ParkedIdle>),
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
            parking: Mutex::default(),
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

    /// Whether responses close their connection: the edge is draining, and no other process takes idle connections.
    pub(crate) fn closes_after_response(&self) -> bool {
        self.draining.is_cancelled() && self.parking().is_none()
    }

    fn parking(&self) -> Option<mpsc::Sender<ParkedIdle>> {
        let parking = self.parking.lock();
        parking.clone().filter(|parking| !parking.is_closed())
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

    /// Begins the drain with connections being parked when they are idle, until the receiver is closed. It still has to receive what was
    /// sent before. At most `waiting_max` wait in it at a time.
    pub(crate) fn drain_parking(&self, waiting_max: usize) -> mpsc::Receiver<ParkedIdle> {
        let (parking, parked) = mpsc::channel(waiting_max);
        *self.parking.lock() = Some(parking);
        self.drain();
        parked
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

    /// Ready when an idle connection is to be closed or parked because of the drain.
    pub(crate) async fn idle_ended(&self, may_be_parked: bool) -> IdleEnd {
        if may_be_parked {
            self.draining.cancelled().await;
            if let Some(parking) = self.parking() {
                return IdleEnd::Park(parking);
            }
        }
        self.idle_expired().await;
        IdleEnd::Close
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
