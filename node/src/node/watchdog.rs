//! Reports to the service manager's watchdog that the process still works.

use causeway_conf::ServiceManager;
use causeway_conf::ServiceState;
use tokio::time;

/// Reports at each interval of the watchdog, if there is one, until the process ends.
///
/// If the node's tasks get no time, neither does this one: the service manager then restarts the process.
pub(super) async fn run(manager: &ServiceManager) {
    let Some(interval) = manager.watchdog_interval() else {
        return;
    };
    let mut ticks = time::interval(interval);
    loop {
        ticks.tick().await;
        manager.notify(ServiceState::Alive);
    }
}
