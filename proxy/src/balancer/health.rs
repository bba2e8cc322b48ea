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

use arc_swap::ArcSwap;
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::balancer::health::probe::Prober;
use crate::balancer::pool::{Backend, Pool, Pools, State};
use crate::config::HealthConfig;
use crate::limits::Seldom;
use crate::net::descriptors::PROBES_MAX;
use crate::net::resolver::Names;

/// What one task probes.
#[derive(Clone)]
struct Watch {
    target: Arc<ArcSwap<Target>>,
    backend: Arc<Backend>,
    turns: Arc<Semaphore>,
    /// For the log lines about probes that could not be sent.
    skipped: Arc<Seldom>,
}

/// A pool as it is now, and how its backends are probed.
struct Target {
    pool: Arc<Pool>,
    prober: Prober,
}

/// The probes that are running.
struct Probes {
    names: Arc<Names>,
    turns: Arc<Semaphore>,
    skipped: Arc<Seldom>,
    /// By the name of the pool.
    targets: HashMap<String, Arc<ArcSwap<Target>>>,
    tasks: JoinSet<()>,
    running: HashMap<Id, (Watch, AbortHandle)>,
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
    let mut probes = Probes {
        names,
        turns: Arc::new(Semaphore::new(PROBES_MAX)),
        skipped: Arc::new(Seldom::new(Instant::now())),
        targets: HashMap::new(),
        tasks: JoinSet::new(),
        running: HashMap::new(),
    };
    loop {
        let current = Arc::clone(&pools.borrow_and_update());
        probes.follow(&current, &shutdown);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                Ok(()) = pools.changed() => break,
                Some(ended) = probes.tasks.join_next_with_id() => probes.ended(ended, &shutdown),
            }
        }
    }
}

impl Probes {
    /// Probes the backends of `pools` from now on. Those that are probed as before go on at their pace; those of a pool with other
    /// settings are probed at once. Their states are where they were: in the backends.
    fn follow(&mut self, pools: &Pools, shutdown: &CancellationToken) {
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
                if backend.state() != State::Maintenance && !backend.is_removed() {
                    wanted.push((Arc::clone(target), backend));
                }
            }
        }
        // Both live as long as what they are compared by: the address of neither can have gone to another.
        let key = |target: &Arc<ArcSwap<Target>>, backend: &Arc<Backend>| {
            (Arc::as_ptr(target) as usize, Arc::as_ptr(backend) as usize)
        };
        let mut missing: HashMap<_, _> = wanted
            .into_iter()
            .map(|(target, backend)| (key(&target, &backend), (target, backend)))
            .collect();
        self.running.retain(|_, (watch, task)| {
            let goes_on = missing
                .remove(&key(&watch.target, &watch.backend))
                .is_some();
            if !goes_on {
                task.abort();
            }
            goes_on
        });
        for (target, backend) in missing.into_values() {
            let watch = Watch {
                target,
                backend,
                turns: Arc::clone(&self.turns),
                skipped: Arc::clone(&self.skipped),
            };
            let task = self.tasks.spawn(watch.clone().run(shutdown.clone()));
            self.running.insert(task.id(), (watch, task));
        }
    }

    /// Begins anew with a backend whose probes have panicked: it would keep its last state for ever.
    fn ended(&mut self, ended: Result<(Id, ()), JoinError>, shutdown: &CancellationToken) {
        let Err(error) = ended else { return };
        // One that was aborted is not among them any more.
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
        let interval = self.pool().health.interval;
        time::sleep(interval).await;
        self.run(shutdown).await;
    }

    fn pool(&self) -> Arc<Pool> {
        Arc::clone(&self.target.load().pool)
    }

    async fn probe(&self) {
        let _turn = self.turns.acquire().await;
        let state = self.backend.state();
        let target = self.target.load_full();
        match target.prober.probe(&self.backend.address, state).await {
            Ok(result) => self.pool().probed(&self.backend, result, Instant::now()),
            // The backend stays what it is: the fault is not its own.
            Err(error) => {
                self.backend.metrics.probed("skipped");
                if let Some(times) = self.skipped.note(Instant::now()) {
                    warn!(backend = %self.backend.id, %error, times, "health check skipped");
                }
            }
        }
    }

    /// Waits until the next probe is due, or wanted.
    async fn pause(&self) {
        let pool = self.pool();
        let pause = jittered(pause(&pool.health, self.backend.state()));
        let least = pause.min(pool.health.fast_interval);
        drop(pool);
        time::sleep(least).await;
        tokio::select! {
            () = self.backend.probe_wanted() => {}
            () = time::sleep(pause - least) => {}
        }
    }

    /// Runs `step`, and meanwhile ends the grace of the backend when it is over.
    async fn keeping_time(&self, step: impl Future<Output = ()>) {
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
                // A grace may have begun or ended.
                _ = health_status.changed() => {}
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
