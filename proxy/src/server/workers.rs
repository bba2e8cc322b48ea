//! The threads that serve connections.
//!
//! Each has a single-threaded runtime, and no task moves between them: a client's connection, the backend connections that it
//! uses and its tunnel are on one thread, and no wake-up crosses threads. In a work-stealing runtime an echo through a tunnel
//! costs about 7 % more, even on one thread (`edge-echo` of the bench).

use std::thread;

use tokio::runtime::{Builder, Handle};

/// The threads. They end with the process: connections outlive the service that accepts them, and the drain
/// closes them.
#[derive(Clone, Debug)]
pub(crate) struct Workers {
    /// Never empty.
    handles: Box<[Handle]>,
}

impl Workers {
    /// Starts `count` threads called `name`. If none can be started, connections are served on the runtime of the caller.
    pub(crate) fn start(name: &'static str, count: usize) -> Self {
        let mut handles = Vec::with_capacity(count);
        for number in 0..count.max(1) {
            match start(format!("{name} {number}")) {
                Ok(handle) => handles.push(handle),
                Err(error) => tracing::error!(name, number, %error, "cannot start a thread"),
            }
        }
        if handles.is_empty() {
            handles.push(Handle::current());
        }
        Self {
            handles: handles.into(),
        }
    }

    /// The thread with the fewest tasks. A connection is one task, a tunnel another.
    pub(crate) fn least_busy(&self) -> &Handle {
        let least = self
            .handles
            .iter()
            .min_by_key(|handle| handle.metrics().num_alive_tasks());
        least.expect("there is at least one thread")
    }

    /// The thread that accepts on the listener with this index.
    pub(crate) fn for_listener(&self, number: usize) -> &Handle {
        &self.handles[number % self.handles.len()]
    }
}

fn start(name: String) -> std::io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new()
        .name(name)
        .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn tasks_are_spread_evenly_over_the_threads() {
        let workers = Workers::start("test", 3);
        let mut tasks = JoinSet::new();
        let mut given: HashMap<_, usize> = HashMap::new();
        for _ in 0..30 {
            let worker = workers.least_busy();
            *given.entry(worker.id()).or_default() += 1;
            tasks.spawn_on(std::future::pending::<()>(), worker);
        }
        assert_eq!(given.into_values().collect::<Vec<_>>(), [10, 10, 10]);
    }

    #[tokio::test]
    async fn a_task_stays_on_the_thread_it_was_started_on() {
        let workers = Workers::start("test", 2);
        let mut tasks = JoinSet::new();
        for number in 0..2 {
            let both = async {
                let before = thread::current().id();
                tokio::task::yield_now().await;
                (before, thread::current().id())
            };
            tasks.spawn_on(both, workers.for_listener(number));
        }
        let seen = tasks.join_all().await;
        assert!(seen.iter().all(|(before, behind)| before == behind));
        assert_ne!(seen[0].0, seen[1].0);
    }
}
