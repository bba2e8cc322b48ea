//! Closes idle connections to backends that are no longer usable.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::balancer::pool::Pools;
use crate::upstream::Dialer;

/// How often they are checked.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Closes the idle connections to all backends that are older than `age`, were closed by the backend, or are connected to an
/// address that its name no longer has, until `shutdown`.
pub(crate) async fn sweep(
    dialer: Arc<Dialer>,
    pools: watch::Receiver<Arc<Pools>>,
    age: Duration,
    shutdown: CancellationToken,
) {
    let mut ticks = interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let pools = Arc::clone(&pools.borrow());
        for pool in pools.iter() {
            for backend in pool.backends() {
                dialer.close_stale(&backend, age);
            }
        }
    }
}
