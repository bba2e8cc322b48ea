//! How the edge comes to its end: what is still open, and how fast tunnels are told to close.
//!
//! Every client connection is counted for as long as it lives, idle or not: a process that ends under an idle keep-alive
//! connection fails the request that is on its way. What decides the pace is plain arithmetic over elapsed time.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// The client connections that are not tunnels, and whether the edge is ending.
pub(crate) struct Connections {
    open: TaskTracker,
    late: Duration,
    draining: CancellationToken,
    refusing: CancellationToken,
}

/// One counted connection.
pub(crate) struct Counted {
    _token: TaskTrackerToken,
}

impl Connections {
    /// None yet. Idle ones get `late` more once a drain begins.
    pub(crate) fn new(late: Duration) -> Arc<Self> {
        Arc::new(Self {
            open: TaskTracker::new(),
            late,
            draining: CancellationToken::new(),
            refusing: CancellationToken::new(),
        })
    }

    /// Counts a connection until the guard is dropped.
    pub(crate) fn count(&self) -> Counted {
        Counted {
            _token: self.open.token(),
        }
    }

    /// How many there are.
    pub(crate) fn open(&self) -> usize {
        self.open.len()
    }

    /// Whether the edge is ending: answers then close their connection.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Cancelled when the edge begins to end.
    pub(crate) fn draining(&self) -> CancellationToken {
        self.draining.clone()
    }

    /// Begins the end: nothing is kept alive from here on.
    pub(crate) fn drain(&self) {
        self.draining.cancel();
        self.open.close();
    }

    /// Begins the end, and ends idle connections at once.
    pub(crate) fn refuse(&self) {
        self.refusing.cancel();
        self.drain();
    }

    /// Ready when idle connections are to end at once.
    pub(crate) async fn refused(&self) {
        self.refusing.cancelled().await;
    }

    /// Ready when an idle connection has no more time for a request.
    pub(crate) async fn too_late(&self) {
        tokio::select! {
            biased;
            () = self.refusing.cancelled() => {}
            () = async {
                self.draining.cancelled().await;
                tokio::time::sleep(self.late).await;
            } => {}
        }
    }

    /// Ready when a drain has begun and no connection is left.
    pub(crate) async fn gone(&self) {
        self.open.wait().await;
    }
}

/// Into how many parts a drain cuts the tunnels: each is told at once, and then a pause.
const PARTS: u64 = PARTS_U32 as u64;
const PARTS_U32: u32 = 256;

/// The plan by which tunnels are told to close, spread over time so that the other backends and edges are not flooded by
/// clients that come back.
#[derive(Debug)]
pub(crate) struct Pace {
    spread: Duration,
    told: u64,
}

impl Pace {
    pub(crate) fn new(spread: Duration) -> Self {
        Self { spread, told: 0 }
    }

    /// The parts that are due after `elapsed` and have not been told yet, as indices into [`Pace::parts`].
    pub(crate) fn due(&mut self, elapsed: Duration) -> std::ops::Range<u64> {
        let due = match self.spread.as_micros() {
            0 => PARTS,
            spread => {
                let share = elapsed.as_micros().saturating_mul(u128::from(PARTS)) / spread;
                u64::try_from(share).map_or(PARTS, |share| (share + 1).min(PARTS))
            }
        };
        let from = self.told;
        self.told = due.max(from);
        from..self.told
    }

    /// How many parts there are in all.
    pub(crate) fn parts() -> u64 {
        PARTS
    }

    /// Whether everyone has been told.
    pub(crate) fn is_over(&self) -> bool {
        self.told == PARTS
    }

    /// How long until the next part is due.
    pub(crate) fn step(&self) -> Duration {
        (self.spread / PARTS_U32).max(Duration::from_millis(5))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_told_exactly_once_and_evenly() {
        let mut pace = Pace::new(Duration::from_secs(5));
        let mut told = Vec::new();
        for tick in 0..=100 {
            let due = pace.due(Duration::from_millis(50) * tick);
            assert!(due.end - due.start <= 4, "{due:?} at tick {tick}");
            told.extend(due);
        }
        assert!(pace.is_over());
        assert_eq!(told, (0..Pace::parts()).collect::<Vec<_>>());
    }

    #[test]
    fn without_a_spread_all_are_told_at_once() {
        let mut pace = Pace::new(Duration::ZERO);
        assert_eq!(pace.due(Duration::ZERO), 0..Pace::parts());
        assert!(pace.is_over());
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_gets_a_little_more_when_a_drain_begins() {
        let connections = Connections::new(Duration::from_secs(1));
        let started = tokio::time::Instant::now();
        connections.drain();
        connections.too_late().await;
        assert_eq!(started.elapsed(), Duration::from_secs(1));
        connections.refuse();
        connections.too_late().await;
        assert_eq!(started.elapsed(), Duration::from_secs(1));
    }

    #[tokio::test]
    async fn a_drain_is_over_when_the_last_connection_has_gone() {
        let connections = Connections::new(Duration::ZERO);
        let guard = connections.count();
        connections.drain();
        let gone = connections.gone();
        tokio::pin!(gone);
        assert!(futures_util::poll!(&mut gone).is_pending());
        drop(guard);
        gone.await;
    }

    #[test]
    fn a_connection_is_counted_as_long_as_its_guard_lives() {
        let connections = Connections::new(Duration::ZERO);
        let guards = [connections.count(), connections.count()];
        assert_eq!(connections.open(), 2);
        drop(guards);
        assert_eq!(connections.open(), 0);
    }
}
