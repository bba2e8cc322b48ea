//! Closing kept connections that nobody wants.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::pool::Pools;

/// How often they are looked for.
const LOOK: Duration = Duration::from_secs(1);

/// Closes the connections to all backends that were kept for `age`, or that the backends have closed, until `shutdown`.
pub(crate) async fn sweep(
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
                backend.kept.tidy(age);
            }
        }
    }
}
