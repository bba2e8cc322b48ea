//! Few connections, each for a while: for a listener that is not for clients.
//!
//! Connections that say nothing can neither use up descriptors nor keep others out: of too many the oldest is closed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// The limits of such a listener.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BoundedConfig {
    /// Connections at a time.
    pub(crate) connections: usize,
    /// How long one may last.
    pub(crate) lifetime: Duration,
}

/// The connections that are open, the oldest first.
///
/// Invariant: at most as many as the configuration says.
#[derive(Debug)]
pub(super) struct Bounded {
    config: BoundedConfig,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    connections: VecDeque<(u64, CancellationToken)>,
}

impl Bounded {
    pub(super) fn new(config: BoundedConfig) -> Arc<Self> {
        Arc::new(Self {
            config,
            open: Mutex::default(),
        })
    }

    /// Serves one connection until it ends, its time is over, or it has to make room for a newer one.
    pub(super) async fn run(self: Arc<Self>, serving: impl Future<Output = ()>) {
        let counted = self.enter();
        let serving = timeout(self.config.lifetime, serving);
        counted.closing.run_until_cancelled(serving).await;
    }

    fn enter(self: &Arc<Self>) -> Counted {
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
        Counted {
            number,
            closing,
            bounded: Arc::clone(self),
        }
    }
}

/// One open connection.
struct Counted {
    number: u64,
    closing: CancellationToken,
    bounded: Arc<Bounded>,
}

impl Drop for Counted {
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

    use tokio::task::JoinSet;
    use tokio::time::Instant;

    use super::*;

    const CONFIG: BoundedConfig = BoundedConfig {
        connections: 2,
        lifetime: Duration::from_secs(30),
    };

    #[tokio::test(start_paused = true)]
    async fn of_too_many_the_oldest_is_closed_and_each_has_its_time() {
        let bounded = Bounded::new(CONFIG);
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
    async fn one_that_has_ended_leaves_room() {
        let bounded = Bounded::new(CONFIG);
        let kept = bounded.enter();
        for _ in 0..10 {
            Arc::clone(&bounded).run(async {}).await;
        }
        assert!(!kept.closing.is_cancelled());
    }
}
