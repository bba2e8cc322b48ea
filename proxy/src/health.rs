//! Health checks: probes each backend at its own pace, for as long as the edge runs.
//!
//! What a probe found goes to the pool, which decides what it means; how soon the next one comes depends
//! on the state that the backend is in then. A backend that requests found failing is probed at once, unless that was just
//! done: clients must not set the pace. Intervals vary by a fifth either way, so that many edges do not probe in step.
//! The grace of a backend is ended here too, to the moment, whatever its probe is doing.

mod probe;

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};
use tokio::task::{Id, JoinSet};
use tokio::time;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::config::HealthConfig;
use crate::files::PROBES_MAX;
use crate::health::probe::Prober;
use crate::names::Names;
use crate::pool::{Backend, Pool, Pools, State};

/// What one task probes.
#[derive(Clone)]
struct Watch {
    pool: Arc<Pool>,
    backend: Arc<Backend>,
    prober: Arc<Prober>,
    turns: Arc<Semaphore>,
}

/// Probes all backends of `pools` until `shutdown`, and when there are new pools, theirs. No probe outlives this call.
///
/// # Cancel safety
///
/// Dropping this future drops the probes that are under way; states stay as they are.
pub(crate) async fn run(
    mut pools: watch::Receiver<Arc<Pools>>,
    names: Arc<Names>,
    shutdown: CancellationToken,
) {
    loop {
        let current = Arc::clone(&pools.borrow_and_update());
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            // Each backend is probed at once under its new settings, and its state is where it was: in the backend.
            Ok(()) = pools.changed() => {}
            () = probe_all(&current, &names, &shutdown) => return,
        }
    }
}

/// Probes all backends of `pools` until `shutdown`.
async fn probe_all(pools: &Pools, names: &Arc<Names>, shutdown: &CancellationToken) {
    let turns = Arc::new(Semaphore::new(PROBES_MAX));
    let mut tasks = JoinSet::new();
    let mut watched: HashMap<Id, Watch> = HashMap::new();
    for pool in pools.iter() {
        let prober = Arc::new(Prober::new(
            &pool.health,
            pool.tls.clone(),
            Arc::clone(names),
        ));
        for backend in pool.backends() {
            if backend.state() == State::Maintenance || backend.is_leaving() {
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
    // There may be nobody to probe.
    shutdown.cancelled().await;
}

impl Watch {
    async fn run(self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = self.keeping_time(self.probe()) => {}
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = self.keeping_time(self.pause()) => {}
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
        let state = self.backend.state();
        match self.prober.probe(&self.backend.address, state).await {
            Ok(result) => self.pool.probed(&self.backend, result, Instant::now()),
            // The backend stays what it is: the fault is not its own.
            Err(error) => warn!(backend = %self.backend.id, %error, "health check skipped"),
        }
    }

    /// Waits until the next probe is due, or wanted.
    async fn pause(&self) {
        let config = &self.pool.health;
        let pause = jittered(pause(config, self.backend.state()));
        let least = pause.min(config.fast_interval);
        time::sleep(least).await;
        tokio::select! {
            () = self.backend.probe_wanted() => {}
            () = time::sleep(pause - least) => {}
        }
    }

    /// Runs `step`, and meanwhile ends the grace of the backend when it is over.
    async fn keeping_time(&self, step: impl Future<Output = ()>) {
        let mut step = pin!(step);
        let mut verdict = self.backend.verdict();
        loop {
            let end = self.backend.grace_end();
            let over = async {
                match end {
                    Some(end) => time::sleep_until(end.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = &mut step => return,
                () = over => self.pool.tick(&self.backend, Instant::now()),
                // A grace may have begun or ended.
                _ = verdict.changed() => {}
            }
        }
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
