//! A cap on the connections of a listener that is not for clients, and on the lifetime of each.
//!
//! Silent connections can neither exhaust descriptors nor block new ones: over the cap, the oldest is closed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The limits of a bounded listener.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BoundedConfig {
    /// The most connections at a time.
    pub(crate) connections: usize,
    /// How long one may last.
    pub(crate) lifetime: Duration,
}

/// The open connections of a bounded listener, the oldest first.
///
/// Invariant: there are at most `config.connections`.
#[derive(Debug)]
pub(crate) struct BoundedConnections {
    config: BoundedConfig,
    open: Mutex<OpenConnections>,
    serving: TaskTracker,
}

#[derive(Debug, Default)]
struct OpenConnections {
    next: u64,
    connections: VecDeque<(u64, CancellationToken)>,
}

impl BoundedConnections {
    pub(crate) fn new(config: BoundedConfig) -> Arc<Self> {
        Arc::new(Self {
            config,
            open: Mutex::default(),
            serving: TaskTracker::new(),
        })
    }

    /// Serves one connection until it ends, its lifetime is over, or it is closed in favour of a newer one.
    pub(crate) async fn run(self: Arc<Self>, serving: impl Future<Output = ()>) {
        let (guard, _serving) = (self.enter(), self.serving.token());
        let serving = timeout(self.config.lifetime, serving);
        guard.closing.run_until_cancelled(serving).await;
    }

    /// Ready when no connection is open.
    pub(crate) async fn wait_closed(&self) {
        self.serving.close();
        self.serving.wait().await;
    }

    fn enter(self: &Arc<Self>) -> BoundedGuard {
        let mut open = self.open.lock();
        if self.config.connections <= open.connections.len()
            && let Some((_, oldest)) = open.connections.pop_front()
        {
            oldest.cancel();
        }
        let (number, closing) = (open.next, CancellationToken::new());
        open.next += 1;
        open.connections.push_back((number, closing.clone()));
        drop(open);
        BoundedGuard {
            number,
            closing,
            bounded: Arc::clone(self),
        }
    }
}

/// One open connection.
struct BoundedGuard {
    number: u64,
    closing: CancellationToken,
    bounded: Arc<BoundedConnections>,
}

impl Drop for BoundedGuard {
    fn drop(&mut self) {
        let mut open = self.bounded.open.lock();
        let found = open
            .connections
            .binary_search_by_key(&self.number, |(number, _)| *number);
        if let Ok(index) = found {
            open.connections.remove(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_util::FutureExt;
    use tokio::task::JoinSet;
    use tokio::time::Instant;

    use super::*;

    const CONFIG: BoundedConfig = BoundedConfig {
        connections: 2,
        lifetime: Duration::from_secs(30),
    };

    #[tokio::test(start_paused = true)]
    async fn over_the_cap_the_oldest_is_closed_and_each_ends_after_its_lifetime() {
        let bounded = BoundedConnections::new(CONFIG);
        let mut open = JoinSet::new();
        let started = Instant::now();
        for number in 0..3 {
            let serving = Arc::clone(&bounded).run(pending());
            open.spawn(async move {
                serving.await;
                number
            });
            tokio::task::yield_now().await;
        }
        assert_eq!(open.join_next().await.unwrap().unwrap(), 0);
        assert_eq!(started.elapsed(), Duration::ZERO);
        assert_eq!(bounded.open.lock().connections.len(), 2);
        open.join_all().await;
        assert_eq!(started.elapsed(), CONFIG.lifetime);
        assert_eq!(bounded.open.lock().connections.len(), 0);
    }

    #[tokio::test]
    async fn open_connections_are_waited_for() {
        let bounded = BoundedConnections::new(CONFIG);
        bounded.wait_closed().await;
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let mut open = JoinSet::new();
        open.spawn(Arc::clone(&bounded).run(async { drop(ended.await) }));
        tokio::task::yield_now().await;
        let mut closed = std::pin::pin!(bounded.wait_closed());
        assert!((&mut closed).now_or_never().is_none());
        drop(end);
        closed.await;
    }

    #[tokio::test]
    async fn a_connection_that_has_ended_does_not_count() {
        let bounded = BoundedConnections::new(CONFIG);
        let kept = bounded.enter();
        for _ in 0..10 {
            Arc::clone(&bounded).run(async {}).await;
        }
        assert!(!kept.closing.is_cancelled());
    }
}
