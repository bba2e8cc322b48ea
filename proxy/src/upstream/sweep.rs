//! Closing kept connections that nobody wants.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::balancer::pool::Pools;
use crate::upstream::Dialer;

/// How often they are looked for.
const LOOK: Duration = Duration::from_secs(1);

/// Closes the idle connections to all backends that are older than `age`, that the backends have closed, or that lead to an
/// address which the backend's name no longer has, until `shutdown`.
pub(crate) async fn sweep(
    dialer: Arc<Dialer>,
    pools: watch::Receiver<Arc<Pools>>,
    age: Duration,
    shutdown: CancellationToken,
) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            _ = looks.tick() => {}
        }
        let pools = Arc::clone(&pools.borrow());
        for pool in pools.iter() {
            for backend in pool.backends() {
                dialer.tidy(&backend, age);
            }
        }
    }
}
