//! Tasks that have to run for as long as the edge does.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// How long a task that has failed waits before it runs again: what made it fail may do so once more.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs a task until `shutdown`, and again whenever it panics or ends before that: the log says so, and it is counted.
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
    let mut is_to_panic = is_to_panic(name);
    loop {
        let running = async {
            assert!(!std::mem::take(&mut is_to_panic), "a test wants it");
            task().await;
        };
        let ended = AssertUnwindSafe(running).catch_unwind().await;
        if shutdown.is_cancelled() {
            return;
        }
        metrics.task_restarted(name);
        match ended {
            Ok(()) => tracing::error!(task = name, "a background task has ended, running it again"),
            Err(_) => tracing::error!(task = name, "a background task panicked, running it again"),
        }
        let pause = tokio::time::sleep(PAUSE);
        if shutdown.run_until_cancelled(pause).await.is_none() {
            return;
        }
    }
}

/// In debug builds a test may have a task panic once: `CAUSEWAY_SABOTAGE=panic:NAME`.
fn is_to_panic(name: &str) -> bool {
    let wanted = std::env::var("CAUSEWAY_SABOTAGE").unwrap_or_default();
    cfg!(debug_assertions) && wanted.strip_prefix("panic:") == Some(name)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_or_ends_runs_again_until_the_shutdown() {
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
    async fn a_task_that_ends_at_the_shutdown_does_not_run_again() {
        let (metrics, shutdown) = (Arc::new(Metrics::new()), CancellationToken::new());
        let task = || async { shutdown.cancel() };
        keep_running("test", Arc::clone(&metrics), shutdown.clone(), task).await;
        assert!(!metrics.encode().contains("task=\"test\""));
    }
}
