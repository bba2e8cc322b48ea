//! Lifecycle events for the application: which clients have connected and disconnected, which channels are occupied and
//! vacated.
//!
//! ```text
//! clients, channel streams ─▶ journal (in order) ─▶ writer ─▶ log: entry and event in one step ─▶ delivery ─▶ hook
//!                              other nodes: end the entries of a killed node ──┘
//! ```
//! The log is in Redis. An entry and its event are written by one script, so there is a `connected` if and only if there is an
//! entry. The entries of a killed node stay, and another node that finds its lease expired ends them, each with its event. So
//! each `connected` is followed by one `disconnected`, even if nodes fail. [`delivery`] sends the events to the hook, one batch
//! after the other, each until it is accepted.
//!
//! Without Redis the log is in this process's memory, and ends with it.
//!
//! A client that is handed off to another node has its entry moved to that node, before the first one gives it up: no event.
//!
//! Invariant: events of one client, and of one channel, are in the log in the order in which they happened.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::cluster::registry::Registry;
use crate::config;
use crate::hooks::Hooks;
use crate::metrics::Metrics;
use crate::protocol::channel::ChannelName;
use crate::protocol::instance::ClientId;
use crate::protocol::instance::Instance;
use crate::redis;
use crate::redis::Server;

mod delivery;
mod event;
mod journal;
mod memory;
mod store;
mod writer;

use delivery::Delivery;
use delivery::Log;
use delivery::Turn;
use journal::Key;
use journal::Subject;
use memory::MemoryLog;
use store::RedisLog;
use store::Scope;
use writer::Writer;

/// What [`start`] needs from the rest of the node.
pub(crate) struct Dependencies {
    pub(crate) instance: Instance,
    pub(crate) node_id: String,
    pub(crate) registry: Arc<Registry>,
    pub(crate) hooks: Arc<Hooks>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) shutdown: CancellationToken,
}

/// Records the connections and channels of this node.
pub(crate) struct Lifecycle {
    connections: bool,
    /// One for each Redis, never empty.
    writers: Vec<Arc<Writer>>,
    /// Channels with subscribers on this node. They are counted by name, since a channel's stream may end and another one
    /// begin before the last subscriber of the first has left.
    occupied: Mutex<HashMap<ChannelName, Occupied>>,
}

/// A channel with subscribers.
struct Occupied {
    subscribers: usize,
    /// Dropped with the last subscriber.
    _begun: Begun,
}

/// Running lifecycle events.
pub(crate) struct Started {
    pub(crate) lifecycle: Arc<Lifecycle>,
    /// They end after the shutdown, once pending steps are in the log.
    pub(crate) tasks: JoinSet<()>,
}

/// A connection or an occupied channel; its end is recorded when this is dropped.
pub(crate) struct Begun {
    writer: Arc<Writer>,
    key: Key,
    /// The position after its step.
    position: u64,
}

/// Starts the events that `config` enables; `None` if there are none, or no hook to deliver them to.
pub(crate) fn start(
    servers: &[Server],
    config: &config::Lifecycle,
    dependencies: &Dependencies,
) -> Option<Started> {
    let timeout = dependencies.hooks.lifecycle_timeout();
    let has_reader = timeout.is_some() || !servers.is_empty();
    if !(config.is_wanted() && has_reader) {
        return None;
    }
    let scope = Scope {
        node_id: dependencies.node_id.as_str().into(),
        coalesce: config.coalesce,
        keep: config.keep,
    };
    let mut tasks = JoinSet::new();
    let mut writers = Vec::new();
    let mut logs: Vec<Arc<dyn Log>> = Vec::new();
    if servers.is_empty() {
        let log = Arc::new(MemoryLog::new(scope.clone()));
        tasks.spawn(Arc::clone(&log).run(dependencies.shutdown.clone()));
        logs.push(Arc::clone(&log) as Arc<dyn Log>);
        writers.push(Arc::new(Writer::Memory(log)));
    }
    let leases = dependencies.registry.leases();
    for (index, (server, lease)) in servers.iter().zip(leases).enumerate() {
        let log = Arc::new(RedisLog::new(server, scope.clone(), index));
        logs.push(Arc::clone(&log) as Arc<dyn Log>);
        let (writer, work) = Writer::in_redis(writer::Parts {
            log,
            lease,
            instance: dependencies.instance,
            metrics: Arc::clone(&dependencies.metrics),
        });
        tasks.spawn(work.run(dependencies.shutdown.clone()));
        writers.push(Arc::new(writer));
    }
    if let Some(timeout) = timeout {
        let turn = Turn {
            owner: dependencies.instance,
            lasts: timeout + 2 * delivery::BACKOFF_MAX,
        };
        for log in logs {
            let delivery = Delivery {
                log,
                turn,
                hooks: Arc::clone(&dependencies.hooks),
                metrics: Arc::clone(&dependencies.metrics),
            };
            tasks.spawn(delivery.run(dependencies.shutdown.clone()));
        }
    }
    let lifecycle = Arc::new(Lifecycle::new(config.connections, writers));
    Some(Started { lifecycle, tasks })
}

impl Lifecycle {
    fn new(connections: bool, writers: Vec<Arc<Writer>>) -> Self {
        let occupied = Mutex::default();
        Self {
            connections,
            writers,
            occupied,
        }
    }

    /// Records that a client of `user` has connected. `None`: these events are not enabled.
    pub(crate) fn connected(
        &self,
        client: ClientId,
        user: &str,
        transport: &'static str,
    ) -> Option<Begun> {
        self.begin_client(client, user, transport, None)
    }

    /// Records that a client, which the node `from` has handed off, continues here: without an event, if it has an entry there.
    pub(crate) fn arrived(
        &self,
        client: ClientId,
        user: &str,
        transport: &'static str,
        from: Instance,
    ) -> Option<Begun> {
        self.begin_client(client, user, transport, Some(from))
    }

    fn begin_client(
        &self,
        client: ClientId,
        user: &str,
        transport: &'static str,
        from: Option<Instance>,
    ) -> Option<Begun> {
        if !self.connections {
            return None;
        }
        let subject = Subject {
            user: user.into(),
            transport,
            from,
        };
        let writer = self.writer_of(&client_log(client, user));
        Some(begin(writer, Key::Client(client), subject))
    }

    /// Whether the log does not have all of this client yet.
    pub(crate) fn is_behind(&self, client: ClientId, user: &str) -> bool {
        let writer = self.writer_of(&client_log(client, user));
        writer.is_waiting(&Key::Client(client))
    }

    /// Waits until all that was recorded so far is in the log, `max_wait` at most: whether it is. As [`Begun::entered`].
    pub(crate) fn entered(&self, max_wait: Duration) -> impl Future<Output = bool> + Send + use<> {
        let writers = self.writers.iter();
        let positions: Vec<_> = writers
            .map(|writer| (Arc::clone(writer), writer.position()))
            .collect();
        async move {
            let entered = async {
                for (writer, position) in positions {
                    writer.entered(position).await;
                }
            };
            time::timeout(max_wait, entered).await.is_ok()
        }
    }

    /// Records that a client has subscribed to `channel`.
    pub(crate) fn subscribed(&self, channel: &ChannelName) {
        let mut occupied = self.occupied.lock();
        if let Some(occupied) = occupied.get_mut(channel) {
            occupied.subscribers += 1;
            return;
        }
        let key = Key::Channel(channel.clone());
        let first = Occupied {
            subscribers: 1,
            _begun: begin(self.writer_of(channel.as_str()), key, Subject::default()),
        };
        occupied.insert(channel.clone(), first);
    }

    /// Records that one of those clients is no longer subscribed.
    pub(crate) fn unsubscribed(&self, channel: &ChannelName) {
        let mut occupied = self.occupied.lock();
        let Some(left) = occupied.get_mut(channel) else {
            debug_assert!(false, "it has subscribed before");
            return;
        };
        left.subscribers -= 1;
        if left.subscribers == 0 {
            occupied.remove(channel); // Under the lock, so that the next step of the channel comes after this one.
        }
    }

    fn writer_of(&self, name: &str) -> &Arc<Writer> {
        &self.writers[redis::shard_of(name, self.writers.len())]
    }
}

/// The clients of a user share a log, where a reconnect finds the session that it continues.
fn client_log(client: ClientId, user: &str) -> String {
    match user {
        "" => client.to_string(),
        user => user.to_owned(),
    }
}

fn begin(writer: &Arc<Writer>, key: Key, subject: Subject) -> Begun {
    let position = writer.begin(key.clone(), subject);
    Begun {
        writer: Arc::clone(writer),
        key,
        position,
    }
}

impl Begun {
    /// Waits until it is in the log, `max_wait` at most: whether it is. While Redis has been unavailable or full for long it does not
    /// wait: the event is written later.
    pub(crate) fn entered(&self, max_wait: Duration) -> impl Future<Output = bool> + Send + use<> {
        let (writer, position) = (Arc::clone(&self.writer), self.position);
        async move {
            let entered = time::timeout(max_wait, writer.entered(position)).await;
            entered.is_ok()
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.writer.end(&self.key);
    }
}

#[cfg(test)]
mod tests;
