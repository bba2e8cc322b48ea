//! Health checks: probes each backend at its own pace, for as long as the edge runs.
//!
//! What a probe found goes to the pool, which decides what it means; how soon the next one comes depends
//! on the state that the backend is in then. A backend that a request found failing is probed at once.
//! Intervals vary by a fifth either way, so that many edges do not probe in step.

mod probe;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::{Id, JoinSet};
use tokio::time;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::config::HealthConfig;
use crate::health::probe::Prober;
use crate::pool::{Backend, Pool, Pools, State};

/// How many probes are under way at a time.
const PARALLEL: usize = 64;

/// What one task probes.
#[derive(Clone)]
struct Watch {
    pool: Arc<Pool>,
    backend: Arc<Backend>,
    prober: Arc<Prober>,
    turns: Arc<Semaphore>,
}

/// Probes all backends of `pools` until `shutdown`. No probe outlives this call.
///
/// # Cancel safety
///
/// Dropping this future drops the probes that are under way; states stay as they are.
pub(crate) async fn run(pools: Arc<Pools>, shutdown: CancellationToken) {
    let turns = Arc::new(Semaphore::new(PARALLEL));
    let mut tasks = JoinSet::new();
    let mut watched: HashMap<Id, Watch> = HashMap::new();
    for pool in pools.iter() {
        let prober = Arc::new(Prober::new(&pool.health));
        for backend in pool.backends() {
            if backend.state() == State::Maintenance {
                continue;
            }
            let watch = Watch {
                pool: Arc::clone(pool),
                backend,
                prober: Arc::clone(&prober),
                turns: Arc::clone(&turns),
            };
            let task = tasks.spawn(watch.clone().run(shutdown.clone()));
            watched.insert(task.id(), watch);
        }
    }
    while let Some(ended) = tasks.join_next_with_id().await {
        let Err(ended) = ended else { continue };
        // A backend whose probes have stopped would keep its last state for ever.
        if let Some(watch) = watched.remove(&ended.id()) {
            error!(backend = %watch.backend.id, error = %ended, "health check panicked");
            let task = tasks.spawn(watch.clone().run_later(shutdown.clone()));
            watched.insert(task.id(), watch);
        }
    }
}

impl Watch {
    async fn run(self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = self.probe() => {}
            }
            let pause = jittered(pause(&self.pool.health, self.backend.state()));
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = self.backend.suspected() => {}
                () = time::sleep(pause) => {}
            }
        }
    }

    /// As [`run`](Self::run), but not at once: what made it panic may do so again.
    async fn run_later(self, shutdown: CancellationToken) {
        time::sleep(self.pool.health.interval).await;
        self.run(shutdown).await;
    }

    async fn probe(&self) {
        let _turn = self.turns.acquire().await;
        let result = self.prober.probe(&self.backend.address).await;
        self.pool.probed(&self.backend, result, Instant::now());
    }
}

/// How long to wait for the next probe of a backend in `state`.
fn pause(config: &HealthConfig, state: State) -> Duration {
    match state {
        State::Up | State::Draining | State::Maintenance => config.interval,
        State::Unknown | State::Suspect => config.fast_interval,
        State::Down => config.down_interval,
    }
}

/// `pause`, up to a fifth shorter or longer.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.8 + 0.4 * fastrand::f64())
}

#[cfg(test)]
mod tests;
