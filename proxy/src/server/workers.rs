//! The threads that connections live on.
//!
//! Each has a runtime of its own, and nothing moves between them: a client's connection, those to backends that it uses and its
//! tunnel are on one thread, and no wake-up goes from one to another. In a runtime whose threads take work from each other an echo
//! through a tunnel costs about 7 % more, even on one thread (`edge-echo` of the bench).

use std::thread;

use tokio::runtime::{Builder, Handle};

/// Threads that serve connections. They end with the process: connections outlive the service that accepts them, and the drain
/// sees to their end.
#[derive(Clone, Debug)]
pub(crate) struct Workers {
    /// One at least.
    handles: Box<[Handle]>,
}

impl Workers {
    /// Starts `count` threads called `name`. Where there can be none, connections live on the runtime of the caller.
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

    /// The thread with the fewest tasks. A connection is one, and so is a tunnel.
    pub(crate) fn least_busy(&self) -> &Handle {
        let least = self
            .handles
            .iter()
            .min_by_key(|handle| handle.metrics().num_alive_tasks());
        least.expect("there is one")
    }

    /// The thread that accepts on the listener of this number.
    pub(crate) fn acceptor(&self, number: usize) -> &Handle {
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
    async fn each_thread_gets_as_much() {
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
    async fn what_is_started_on_a_thread_stays_there() {
        let workers = Workers::start("test", 2);
        let mut tasks = JoinSet::new();
        for number in 0..2 {
            let both = async {
                let before = thread::current().id();
                tokio::task::yield_now().await;
                (before, thread::current().id())
            };
            tasks.spawn_on(both, workers.acceptor(number));
        }
        let seen = tasks.join_all().await;
        assert!(seen.iter().all(|(before, behind)| before == behind));
        assert_ne!(seen[0].0, seen[1].0);
    }
}
