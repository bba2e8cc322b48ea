//! Reports to the service manager's watchdog that the process still works.

use causeway_conf::{ServiceManager, ServiceState};
use tokio_util::sync::CancellationToken;

/// Reports at each interval of the watchdog, if there is one, until `shutdown`.
///
/// If the background tasks get no time, neither does this one: the service manager then restarts the process.
pub(crate) async fn run(manager: &ServiceManager, shutdown: CancellationToken) {
    let Some(interval) = manager.watchdog_interval() else {
        return shutdown.cancelled().await;
    };
    let mut ticks = tokio::time::interval(interval);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        manager.notify(ServiceState::Alive);
    }
}
