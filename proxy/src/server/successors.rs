//! Requests to start a successor, and what becomes of them.

use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

/// Why no successor has taken over. This process goes on as before.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum NoSuccessor {
    #[error("\"takeover.socket\" is not set")]
    NoSocket,
    #[error("cannot start {program}: {source}")]
    Start {
        program: String,
        #[source]
        source: Arc<std::io::Error>,
    },
    /// It says itself why.
    #[error(
        "the new process has ended before it took over ({0}); its last lines in the log say why"
    )]
    Ended(ExitStatus),
    #[error("the new process has not taken over within {0:?}, and was ended")]
    TooSlow(Duration),
    #[error("this process drains, or another one has taken over from it already; try again there")]
    Over,
}

/// How far a successor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SuccessorState {
    /// It is not clear yet whether it takes over. The log will have it.
    Starting,
    /// It has the listeners, and takes over the connections.
    Accepting,
}

/// What became of a request: a successor accepts, or none does.
type Outcome = Result<(), NoSuccessor>;

/// Requests to start a successor.
#[derive(Debug, Default)]
pub(crate) struct SuccessorRequests {
    requested: Notify,
    waiting: Mutex<Waiting>,
}

/// Who waits for an outcome.
#[derive(Debug, Default)]
struct Waiting {
    /// For that of the successor that is being started.
    current: Vec<oneshot::Sender<Outcome>>,
    /// For that of the next one.
    next: Vec<oneshot::Sender<Outcome>>,
    /// Whether no successor is started any more.
    is_over: bool,
}

impl SuccessorRequests {
    /// Requests a successor. What becomes of it is in the log.
    pub(crate) fn request(&self) {
        self.requested.notify_one();
    }

    /// Requests a successor, and waits until it accepts, for `limit` at most.
    ///
    /// # Errors
    ///
    /// [`NoSuccessor`]; it has been logged.
    ///
    /// # Cancel safety
    ///
    /// The request stands.
    pub(crate) async fn successor(&self, limit: Duration) -> Result<SuccessorState, NoSuccessor> {
        let outcome = {
            let mut waiting = self.waiting.lock();
            if waiting.is_over {
                return Err(NoSuccessor::Over);
            }
            let (sender, outcome) = oneshot::channel();
            waiting.next.push(sender);
            outcome
        };
        self.request();
        match timeout(limit, outcome).await {
            Ok(outcome) => {
                outcome.unwrap_or(Err(NoSuccessor::Over))?;
                Ok(SuccessorState::Accepting)
            }
            Err(_) => Ok(SuccessorState::Starting),
        }
    }

    /// Ready when a successor is to be started. Those who have requested it until now wait for its outcome.
    pub(crate) async fn requested(&self) {
        self.requested.notified().await;
        let waiting = &mut *self.waiting.lock();
        waiting.current.append(&mut waiting.next);
    }

    /// The successor that was started last does not take over.
    pub(crate) fn failed(&self, error: &NoSuccessor) {
        let current = std::mem::take(&mut self.waiting.lock().current);
        tell(current, &Err(error.clone()));
    }

    /// A successor accepts. Later requests are not for this process.
    pub(crate) fn taken_over(&self) {
        let current = std::mem::take(&mut self.waiting.lock().current);
        tell(current, &Ok(()));
        self.close();
    }

    /// No successor is started any more.
    pub(crate) fn close(&self) {
        let Waiting { current, next, .. } = std::mem::replace(
            &mut *self.waiting.lock(),
            Waiting {
                is_over: true,
                ..Waiting::default()
            },
        );
        tell(current, &Err(NoSuccessor::Over));
        tell(next, &Err(NoSuccessor::Over));
    }
}

fn tell(all: Vec<oneshot::Sender<Outcome>>, outcome: &Outcome) {
    for waiting in all {
        // It may not wait any more.
        let _ = waiting.send(outcome.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn each_request_gets_the_outcome_of_the_successor_that_was_started_for_it() {
        let requests = SuccessorRequests::default();
        let mut first = pin!(requests.successor(Duration::MAX));
        assert!((&mut first).now_or_never().is_none());
        requests.requested().await;
        let mut second = pin!(requests.successor(Duration::MAX));
        assert!((&mut second).now_or_never().is_none());
        requests.failed(&NoSuccessor::TooSlow(Duration::from_secs(1)));
        assert!(matches!(first.await, Err(NoSuccessor::TooSlow(_))));
        assert!((&mut second).now_or_never().is_none());

        // The second one is for a successor of its own, and the third for none: it comes too late.
        requests.requested().await;
        let mut third = pin!(requests.successor(Duration::MAX));
        assert!((&mut third).now_or_never().is_none());
        requests.taken_over();
        assert_eq!(second.await.unwrap(), SuccessorState::Accepting);
        assert!(matches!(third.await, Err(NoSuccessor::Over)));
        assert!(matches!(
            requests.successor(Duration::MAX).await,
            Err(NoSuccessor::Over)
        ));
    }

    #[tokio::test]
    async fn a_process_that_drains_starts_none() {
        let requests = SuccessorRequests::default();
        let mut waiting = pin!(requests.successor(Duration::MAX));
        assert!((&mut waiting).now_or_never().is_none());
        requests.close();
        assert!(matches!(waiting.await, Err(NoSuccessor::Over)));
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_wait_any_more_learns_that_it_still_starts() {
        let requests = SuccessorRequests::default();
        let state = requests.successor(Duration::from_secs(20)).await;
        assert_eq!(state.unwrap(), SuccessorState::Starting);
        // The request stands.
        requests.requested().await;
    }
}
