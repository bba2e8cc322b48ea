//! Drains of single backends: closes their tunnels, paced, whoever asks for it.
//!
//! One mechanism for an operator, the backend's own announcement, a reload, discovery, and for the moves of a rebalance. It closes
//! the tunnels that were open when it began and those that were being opened then, each at most once; that no new ones come is up to
//! the state of the backend.
//!
//! Decides nothing about states: the balancer does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::balancer::pool::{Backend, Pools};
use crate::config::{DrainCause, DrainConfig};
use crate::tunnel::{CloseRequest, PacedClose, TunnelHandle, Tunnels};

/// Who asks for a drain of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// An operator.
    Operator,
    /// An operator, to even out the tunnels of a pool.
    Rebalance,
    /// The backend or the configuration, as the settings allow it.
    Settings(DrainCause),
}

impl Cause {
    fn name(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Rebalance => "rebalance",
            Self::Settings(cause) => cause.name(),
        }
    }
}

/// The running drains.
pub(crate) struct Drains {
    tunnels: Arc<Tunnels>,
    /// At most one for each backend.
    running: Mutex<Vec<Running>>,
    /// Notified when one was added.
    added: Notify,
}

/// The drain of one backend.
struct Running {
    backend: Arc<Backend>,
    cause: Cause,
    close: PacedClose,
    began: Instant,
}

impl Drains {
    pub(crate) fn new(tunnels: Arc<Tunnels>) -> Arc<Self> {
        Arc::new(Self {
            tunnels,
            running: Mutex::default(),
            added: Notify::new(),
        })
    }

    /// Closes the tunnels of `backend` over `spread`, and returns how many there are. A drain that is running goes on instead, and
    /// a rebalance of the backend ends.
    pub(crate) fn start(
        &self,
        backend: &Arc<Backend>,
        cause: Cause,
        spread: Duration,
        now: Instant,
    ) -> usize {
        let mut running = self.running.lock();
        let same = running
            .iter()
            .position(|drain| Arc::ptr_eq(&drain.backend, backend));
        if let Some(index) = same {
            if running[index].cause != Cause::Rebalance {
                return running[index].close.left();
            }
            running.swap_remove(index);
        }
        let tunnels = self.tunnels.begin_drain(&backend.tunnels, now);
        let count = tunnels.len();
        let close = PacedClose::new(tunnels, CloseRequest::BackendDrain, spread);
        self.add(&mut running, backend, cause, close, now);
        tracing::info!(
            pool = &*backend.tunnels.pool,
            backend = %backend.id,
            cause = cause.name(),
            tunnels = count,
            spread = spread.as_secs_f64(),
            "closing the tunnels of a backend"
        );
        count
    }

    /// Closes `tunnels` of `backend` over `spread`, unless it drains or is rebalanced already.
    pub(crate) fn rebalance(
        &self,
        backend: &Arc<Backend>,
        tunnels: Vec<TunnelHandle>,
        spread: Duration,
        now: Instant,
    ) {
        let mut running = self.running.lock();
        if running
            .iter()
            .any(|drain| Arc::ptr_eq(&drain.backend, backend))
        {
            return;
        }
        let close = PacedClose::new(tunnels, CloseRequest::Rebalance, spread);
        self.add(&mut running, backend, Cause::Rebalance, close, now);
    }

    fn add(
        &self,
        running: &mut Vec<Running>,
        backend: &Arc<Backend>,
        cause: Cause,
        close: PacedClose,
        began: Instant,
    ) {
        backend.metrics.drain_started(cause.name());
        backend.metrics.drain_left(close.left());
        running.push(Running {
            backend: Arc::clone(backend),
            cause,
            close,
            began,
        });
        self.added.notify_one();
    }

    /// Stops the drain of `backend`: tunnels that were not asked to close yet stay. A rebalance goes on.
    pub(crate) fn stop(&self, backend: &Arc<Backend>) {
        self.tunnels.end_drain(&backend.tunnels);
        let mut running = self.running.lock();
        let index = running.iter().position(|drain| {
            Arc::ptr_eq(&drain.backend, backend) && drain.cause != Cause::Rebalance
        });
        if let Some(index) = index {
            running.swap_remove(index);
            backend.metrics.drain_left(0);
        }
    }

    /// Whether tunnels of `backend` are being closed by a rebalance.
    pub(crate) fn is_rebalancing(&self, backend: &Arc<Backend>) -> bool {
        let running = self.running.lock();
        running
            .iter()
            .any(|drain| Arc::ptr_eq(&drain.backend, backend) && drain.cause == Cause::Rebalance)
    }

    /// How many tunnels of `backend` a drain or a rebalance has yet to close; `None` if there is none.
    pub(crate) fn left(&self, backend: &Arc<Backend>) -> Option<usize> {
        let running = self.running.lock();
        let of_backend = running
            .iter()
            .find(|drain| Arc::ptr_eq(&drain.backend, backend));
        of_backend.map(|drain| drain.close.left())
    }

    /// Closes tunnels as they are due, and starts the drains that backends announce if `config` says so, until `shutdown`.
    pub(crate) async fn run(
        self: Arc<Self>,
        mut pools: watch::Receiver<Arc<Pools>>,
        config: impl Fn() -> DrainConfig,
        shutdown: CancellationToken,
    ) {
        let announced = pools.borrow_and_update().drain_announced();
        loop {
            let pause = self.close_due(Instant::now());
            let due = async {
                match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = announced.notified() => {
                    let current = Arc::clone(&pools.borrow_and_update());
                    self.start_announced(&current, &config());
                }
                () = self.added.notified() => {}
                () = due => {}
            }
        }
    }

    /// Asks the tunnels to close that are due, and returns the time until the next ones are; `None` if no drain is running.
    fn close_due(&self, now: Instant) -> Option<Duration> {
        let mut running = self.running.lock();
        running.retain_mut(|drain| {
            drain
                .close
                .close_due(now.saturating_duration_since(drain.began));
            let left = drain.close.left();
            drain.backend.metrics.drain_left(left);
            if left == 0 {
                tracing::info!(
                    pool = &*drain.backend.tunnels.pool,
                    backend = %drain.backend.id,
                    cause = drain.cause.name(),
                    "tunnels of a backend are closed"
                );
            }
            0 < left
        });
        running.iter().map(|drain| drain.close.pause()).min()
    }

    fn start_announced(&self, pools: &Pools, config: &DrainConfig) {
        for backend in pools.iter().flat_map(|pool| pool.backends()) {
            if !backend.take_drain_announcement() {
                continue;
            }
            let cause = DrainCause::Announced;
            if config.close_tunnels.contains(&cause) {
                let spread = config.backend_spread;
                self.start(&backend, Cause::Settings(cause), spread, Instant::now());
            }
        }
    }
}

#[cfg(test)]
impl Drains {
    /// Closes all tunnels that are to be closed without a spread.
    pub(crate) fn close_now(&self) {
        self.close_due(Instant::now());
    }
}

#[cfg(test)]
mod tests;
