//! Background tasks that the node relies on: when one panics or ends early, the node ends.

use std::collections::HashMap;

use tokio::task::Id;
use tokio::task::JoinError;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::error;

/// Tasks that run until they are told to end.
#[derive(Default)]
pub(super) struct Tasks {
    tasks: JoinSet<()>,
    /// By task id, until the task has ended.
    running: HashMap<Id, Task>,
}

struct Task {
    name: &'static str,
    /// The task must not end before this is cancelled.
    until: CancellationToken,
}

/// A task has panicked or ended too early; the log names it.
#[derive(Debug)]
pub(super) struct TaskFailed;

impl Tasks {
    /// Runs `task`, which must not end before `until` is cancelled. `name` is for the log.
    pub(super) fn spawn(
        &mut self,
        name: &'static str,
        until: &CancellationToken,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let id = self.tasks.spawn(task).id();
        let until = until.clone();
        self.running.insert(id, Task { name, until });
    }

    /// The same for tasks that run already.
    pub(super) fn adopt(
        &mut self,
        name: &'static str,
        until: &CancellationToken,
        mut tasks: JoinSet<()>,
    ) {
        let ending = until.clone();
        self.spawn(name, until, async move {
            while let Some(ended) = tasks.join_next().await {
                match ended {
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                    Ok(()) if !ending.is_cancelled() => return, // Too early.
                    Ok(()) => {}
                }
            }
            ending.cancelled().await; // There may be none.
        });
    }

    /// Returns when a task fails.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: a failure is returned in the step in which it is found.
    pub(super) async fn failed(&mut self) -> TaskFailed {
        while let Some(ended) = self.tasks.join_next_with_id().await {
            if let Err(failed) = self.check(ended) {
                return failed;
            }
        }
        std::future::pending().await
    }

    /// Waits until all have ended, after they were told to.
    ///
    /// # Errors
    ///
    /// [`TaskFailed`]: one has panicked.
    pub(super) async fn wait(mut self) -> Result<(), TaskFailed> {
        while let Some(ended) = self.tasks.join_next_with_id().await {
            self.check(ended)?;
        }
        Ok(())
    }

    fn check(&mut self, ended: Result<(Id, ()), JoinError>) -> Result<(), TaskFailed> {
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        let task = self.running.remove(&id);
        let name = task.as_ref().map_or("unknown", |task| task.name);
        if let Err(error) = ended {
            error!(task = name, %error, "a background task panicked, the node ends");
            return Err(TaskFailed);
        }
        if task.is_some_and(|task| !task.until.is_cancelled()) {
            error!(
                task = name,
                "a background task ended too early, the node ends"
            );
            return Err(TaskFailed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_a_failure_wherever_it_was_spawned() {
        for is_adopted in [false, true] {
            let (mut tasks, until) = (Tasks::default(), CancellationToken::new());
            tasks.spawn("good", &until, until.clone().cancelled_owned());
            if is_adopted {
                let mut others = JoinSet::new();
                others.spawn(until.clone().cancelled_owned());
                others.spawn(async { panic!("on purpose") });
                tasks.adopt("bad", &until, others);
            } else {
                tasks.spawn("bad", &until, async { panic!("on purpose") });
            }
            tasks.failed().await;
        }
    }

    #[tokio::test]
    async fn a_task_that_ends_too_early_is_a_failure() {
        for is_adopted in [false, true] {
            let (mut tasks, until) = (Tasks::default(), CancellationToken::new());
            if is_adopted {
                let mut others = JoinSet::new();
                others.spawn(until.clone().cancelled_owned());
                others.spawn(async {});
                tasks.adopt("bad", &until, others);
            } else {
                tasks.spawn("bad", &until, async {});
            }
            tasks.failed().await;
        }
    }

    #[tokio::test]
    async fn tasks_that_end_when_they_are_told_to_are_no_failure() {
        let (mut tasks, until) = (Tasks::default(), CancellationToken::new());
        tasks.spawn("one", &until, until.clone().cancelled_owned());
        let mut others = JoinSet::new();
        others.spawn(until.clone().cancelled_owned());
        tasks.adopt("others", &until, others);
        tasks.adopt("nobody", &until, JoinSet::new());
        assert!(tasks.failed().now_or_never().is_none());
        until.cancel();
        tasks.wait().await.unwrap();
    }
}
