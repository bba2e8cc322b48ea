//! Health checks: one task for each backend, which probes it for as long as the edge runs.
//!
//! The result of a probe is reported to the pool, whose state machine evaluates it; the interval to the next probe depends on the
//! resulting state. A backend that fails requests is probed at once, but never more often than `health.fast_interval`: clients must
//! not set the pace. Intervals vary by a fifth either way, so that many edges do not probe in step. The task also ends the grace
//! period of its backend on time, even during a probe.

mod probe;

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::balancer::health::probe::{Probed, Prober};
use crate::balancer::pool::{Backend, Pool, Pools, ProbeResult, State};
use crate::config::HealthConfig;
use crate::limits::ThrottledLog;
use crate::net::descriptors::PROBES_MAX;
use crate::net::resolver::Names;

/// The backend that one task probes.
#[derive(Clone)]
struct Watch {
    target: Arc<ArcSwap<Target>>,
    backend: Arc<Backend>,
    permits: Arc<Semaphore>,
    /// Throttles the log line about probes that could not be sent.
    skipped: Arc<ThrottledLog>,
}

/// The current pool, and the prober of its backends.
struct Target {
    pool: Arc<Pool>,
    prober: Prober,
}

/// All health check tasks.
struct Probes {
    names: Arc<Names>,
    permits: Arc<Semaphore>,
    skipped: Arc<ThrottledLog>,
    /// By the name of the pool.
    targets: HashMap<String, Arc<ArcSwap<Target>>>,
    tasks: JoinSet<()>,
    running: HashMap<Id, (Watch, AbortHandle)>,
}

/// Probes all backends of the current `pools` until `shutdown`. No probe outlives this call.
///
/// # Cancel safety
///
/// Dropping this future aborts the probes; states do not change.
pub(crate) async fn run(
    mut pools: watch::Receiver<Arc<Pools>>,
    names: Arc<Names>,
    shutdown: CancellationToken,
) {
    let mut probes = Probes {
        names,
        permits: Arc::new(Semaphore::new(PROBES_MAX)),
        skipped: Arc::new(ThrottledLog::new(Instant::now())),
        targets: HashMap::new(),
        tasks: JoinSet::new(),
        running: HashMap::new(),
    };
    loop {
        let current = Arc::clone(&pools.borrow_and_update());
        probes.update(&current, &shutdown);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                Ok(()) = pools.changed() => break,
                Some(ended) = probes.tasks.join_next_with_id() => probes.task_ended(ended, &shutdown),
            }
        }
    }
}

impl Probes {
    /// Starts and stops tasks so that the backends of `pools` are probed. Unchanged ones continue at their pace; those of a pool
    /// with changed settings are probed at once. The states, which the backends hold, do not change.
    fn update(&mut self, pools: &Pools, shutdown: &CancellationToken) {
        let mut targets = HashMap::new();
        for pool in pools.iter() {
            let target = Target {
                pool: Arc::clone(pool),
                prober: Prober::new(&pool.health, pool.tls.clone(), Arc::clone(&self.names)),
            };
            let old = self.targets.remove(&pool.name);
            let old = old.filter(|old| old.load().pool.health == pool.health);
            let target = match old {
                Some(old) => {
                    old.store(Arc::new(target));
                    old
                }
                None => Arc::new(ArcSwap::from_pointee(target)),
            };
            targets.insert(pool.name.clone(), target);
        }
        self.targets = targets;
        let mut wanted = Vec::new();
        for pool in pools.iter() {
            let target = &self.targets[&pool.name];
            for backend in pool.backends() {
                if backend.is_probed() {
                    wanted.push((Arc::clone(target), backend));
                }
            }
        }
        // The entries hold both `Arc`s, so no other object can have the same address.
        let key = |target: &Arc<ArcSwap<Target>>, backend: &Arc<Backend>| {
            (Arc::as_ptr(target) as usize, Arc::as_ptr(backend) as usize)
        };
        let mut missing: HashMap<_, _> = wanted
            .into_iter()
            .map(|(target, backend)| (key(&target, &backend), (target, backend)))
            .collect();
        self.running.retain(|_, (watch, task)| {
            let keeps_running = missing
                .remove(&key(&watch.target, &watch.backend))
                .is_some();
            if !keeps_running {
                task.abort();
            }
            keeps_running
        });
        for (target, backend) in missing.into_values() {
            let watch = Watch {
                target,
                backend,
                permits: Arc::clone(&self.permits),
                skipped: Arc::clone(&self.skipped),
            };
            let task = self.tasks.spawn(watch.clone().run(shutdown.clone()));
            self.running.insert(task.id(), (watch, task));
        }
    }

    /// Restarts a task that has panicked: otherwise its backend would keep its last state for ever.
    fn task_ended(&mut self, ended: Result<(Id, ()), JoinError>, shutdown: &CancellationToken) {
        let Err(error) = ended else { return };
        // An aborted task was removed before.
        if let Some((watch, _)) = self.running.remove(&error.id()) {
            error!(backend = %watch.backend.id, %error, "health check panicked");
            let task = self.tasks.spawn(watch.clone().run_later(shutdown.clone()));
            self.running.insert(task.id(), (watch, task));
        }
    }
}

impl Watch {
    async fn run(self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = self.with_grace_timer(self.probe()) => {}
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = self.with_grace_timer(self.pause()) => {}
            }
        }
    }

    /// As [`run`](Self::run), after an interval: it may panic again.
    async fn run_later(self, shutdown: CancellationToken) {
        let interval = self.pool().health.interval;
        time::sleep(interval).await;
        self.run(shutdown).await;
    }

    fn pool(&self) -> Arc<Pool> {
        Arc::clone(&self.target.load().pool)
    }

    async fn probe(&self) {
        let _permit = self.permits.acquire().await;
        let state = self.backend.state();
        let target = self.target.load_full();
        match target.prober.probe(&self.backend.address, state).await {
            Ok(Probed { result, generation }) => {
                // Before the backend may come up: its first new client is chosen by it.
                if result == ProbeResult::Good {
                    self.backend.announce_generation(generation);
                }
                self.pool().probed(&self.backend, result, Instant::now());
            }
            // The state does not change: the backend is not at fault.
            Err(error) => {
                self.backend.metrics.probed("skipped");
                if let Some(times) = self.skipped.note(Instant::now()) {
                    warn!(backend = %self.backend.id, %error, times, "health check skipped");
                }
            }
        }
    }

    /// Waits until the next probe is due or requested.
    async fn pause(&self) {
        let pool = self.pool();
        let pause = jittered(pause(&pool.health, self.backend.state()));
        let pause_min = pause.min(pool.health.fast_interval);
        drop(pool);
        time::sleep(pause_min).await;
        tokio::select! {
            () = self.backend.probe_wanted() => {}
            () = time::sleep(pause - pause_min) => {}
        }
    }

    /// Runs `step`, and ends the grace period of the backend when it expires meanwhile.
    async fn with_grace_timer(&self, step: impl Future<Output = ()>) {
        let mut step = pin!(step);
        let mut health_status = self.backend.health_status();
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
                () = over => self.pool().tick(&self.backend, Instant::now()),
                // A grace period may have started or ended.
                _ = health_status.changed() => {}
            }
        }
    }
}

/// The interval to the next probe of a backend in `state`.
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
