//! Restarts background tasks that panic or end before the shutdown.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// The pause before a failed task is restarted: the cause of the failure may persist.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs a task until `shutdown`, and restarts it whenever it panics or ends before that. Each restart is logged and counted.
///
/// # Cancel safety
///
/// Dropping this future drops the task.
pub(crate) async fn keep_running<F>(
    name: &'static str,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
    mut task: impl FnMut() -> F,
) where
    F: Future<Output = ()>,
{
    let mut panics = panics_in_test(name);
    loop {
        let running = async {
            assert!(!std::mem::take(&mut panics), "requested by a test");
            task().await;
        };
        let ended = AssertUnwindSafe(running).catch_unwind().await;
        if shutdown.is_cancelled() {
            return;
        }
        metrics.task_restarted(name);
        match ended {
            Ok(()) => tracing::error!(task = name, "background task ended, restarting it"),
            Err(_) => tracing::error!(task = name, "background task panicked, restarting it"),
        }
        let pause = tokio::time::sleep(PAUSE);
        if shutdown.run_until_cancelled(pause).await.is_none() {
            return;
        }
    }
}

/// In debug builds a test can make a task panic once: `CAUSEWAY_SABOTAGE=panic:NAME`.
fn panics_in_test(name: &str) -> bool {
    let requested = std::env::var("CAUSEWAY_SABOTAGE").unwrap_or_default();
    cfg!(debug_assertions) && requested.strip_prefix("panic:") == Some(name)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_or_ends_is_restarted_until_the_shutdown() {
        let (metrics, shutdown) = (Arc::new(Metrics::new()), CancellationToken::new());
        let runs = AtomicUsize::new(0);
        let task = || async {
            match runs.fetch_add(1, Ordering::SeqCst) {
                0 => panic!("once"),
                1 => {}
                _ => {
                    shutdown.cancel();
                    std::future::pending::<()>().await;
                }
            }
        };
        let running = keep_running("test", Arc::clone(&metrics), shutdown.clone(), task);
        tokio::select! {
            () = running => {}
            () = shutdown.cancelled() => {}
        }
        assert_eq!(runs.load(Ordering::SeqCst), 3);
        let page = metrics.encode();
        let restarts = "causeway_proxy_task_restarts_total{task=\"test\"} 2\n";
        assert!(page.contains(restarts), "{page}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ends_at_the_shutdown_is_not_restarted() {
        let (metrics, shutdown) = (Arc::new(Metrics::new()), CancellationToken::new());
        let task = || async { shutdown.cancel() };
        keep_running("test", Arc::clone(&metrics), shutdown.clone(), task).await;
        assert!(!metrics.encode().contains("task=\"test\""));
    }
}
