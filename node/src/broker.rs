//! Brokers carry publications between nodes, behind one trait.
//!
//! A broker accepts publications of this node's clients and delivers those of all nodes, this one
//! included. [`memory`] is for a single node, [`redis`] for any number; clients see no difference.
//!
//! A broker guarantees:
//! - **Order.** What one task publishes to one channel, one call after the other, is delivered in that
//!   order on all nodes.
//! - **At most once.** Nothing is delivered twice. Lost publications are counted and logged.
//! - **No local shortcut.** Publications reach clients of this node the same way as those of other nodes.
//! - **Plain payloads.** A message in Redis is the publication and nothing else, so that any Redis client
//!   can take part.
//!
//! For channels it guarantees more, see [`Streams`].

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::protocol::channel::ChannelName;
use crate::protocol::publication::Publication;
use crate::redis::Server;

pub(crate) mod history;
mod memory;
mod redis;
mod streams;

pub(crate) use streams::Ask;
pub(crate) use streams::Idempotency;
pub(crate) use streams::Store;
pub(crate) use streams::StoreError;
pub(crate) use streams::Stored;
pub(crate) use streams::Streams;
pub(crate) use streams::Unavailable;
pub(crate) use streams::Until;

/// Carries publications between nodes; see the module for its guarantees.
#[async_trait]
pub(crate) trait Broker: Send + Sync + 'static {
    /// Adds `data` to the channel's publish queue without waiting.
    ///
    /// `Ok` means accepted, not yet published: what is lost after that is counted and logged by the
    /// broker.
    ///
    /// # Errors
    ///
    /// [`TryPublishError::Full`] returns `data` when the queue is full: pass it to
    /// [`publish`](Broker::publish) before anything else of the same client.
    fn try_publish(&self, channel: &ChannelName, data: Bytes) -> Result<(), TryPublishError>;

    /// Waits for room in the channel's publish queue, which is backpressure for a client that publishes too fast.
    ///
    /// # Errors
    ///
    /// The publication is dropped, counted and logged.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future before it is ready drops the publication; that is counted too.
    async fn publish(&self, channel: &ChannelName, data: Bytes) -> Result<(), PublishError>;

    /// Subscribes to the channel, in the background. Repeating it has no effect.
    fn subscribe(&self, channel: &ChannelName);

    /// Unsubscribes from the channel, in the background.
    fn unsubscribe(&self, channel: &ChannelName);

    /// Publishes `data` on `mark`, over the server that carries `channel` and behind all that was published to `channel`
    /// before this call.
    ///
    /// # Errors
    ///
    /// It was not published, and will not be.
    async fn mark(
        &self,
        channel: &ChannelName,
        mark: &ChannelName,
        data: Bytes,
    ) -> Result<(), PublishError> {
        let _ = channel;
        self.publish(mark, data).await
    }

    /// Subscribes to the channel on every server.
    fn subscribe_everywhere(&self, channel: &ChannelName) {
        self.subscribe(channel);
    }

    /// Whether publications are delivered, here and on other nodes.
    ///
    /// # Errors
    ///
    /// The reason, as text.
    fn readiness(&self) -> Result<(), NotReady>;
}

/// Receives the publications of a broker: the hub.
pub(crate) trait Deliver: Send + Sync + 'static {
    /// Receives all publications of one read, in order. Must not block.
    fn deliver(&self, publications: Vec<Publication>);

    /// Publications on channels of `shard` are not received from now on.
    fn interrupted(&self, shard: Shard) {
        let _ = shard;
    }

    /// All channels of `shard` are subscribed again; publications in between were missed.
    fn resumed(&self, shard: Shard) {
        let _ = shard;
    }

    /// The same as [`interrupted`](Self::interrupted) for each of `shards`, of which there may be thousands.
    fn interrupted_all(&self, shards: &HashSet<Shard>) {
        shards.iter().for_each(|shard| self.interrupted(*shard));
    }

    /// The same as [`resumed`](Self::resumed) for each of `shards`.
    fn resumed_all(&self, shards: &HashSet<Shard>) {
        shards.iter().for_each(|shard| self.resumed(*shard));
    }
}

/// A part of the channels whose publications are missed together: one of the servers over which channels are spread, by its
/// index in the configuration, or a slot of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Shard(pub(crate) usize);

/// Why a publication was not accepted at once.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TryPublishError {
    /// The publish queue has no room at the moment; here is the data again.
    #[error("the publish queue is full")]
    Full(Bytes),
}

/// Why a publication was dropped before it was accepted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PublishError {
    /// The publish queue had no room for as long as a publication may wait; a later one may succeed.
    #[error("the publish queue had no room in time")]
    Expired,
    /// The publication is larger than its publish queue and can never be accepted.
    #[error("the publication is larger than its publish queue")]
    TooLarge,
    /// The broker has stopped.
    #[error("the broker has stopped")]
    Stopped,
}

/// Why the broker is not ready, as text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NotReady(pub(crate) String);

/// A running broker. Its tasks end after `shutdown`; the caller waits for them.
pub(crate) struct Started {
    /// The shared handle.
    pub(crate) broker: Arc<dyn Streams>,
    /// Its background tasks.
    pub(crate) tasks: JoinSet<()>,
}

/// Starts the broker on `servers`, or for this node alone if there are none. Returns at once: connections to Redis are made
/// in the background, see [`Broker::readiness`].
pub(crate) fn start(
    servers: &[Server],
    node_id: &str,
    deliver: Arc<dyn Deliver>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
) -> Started {
    if servers.is_empty() {
        return memory::start(deliver, metrics, shutdown);
    }
    let dependencies = redis::Dependencies {
        node_id,
        deliver,
        metrics,
        shutdown,
    };
    redis::start(servers, &dependencies)
}

#[cfg(test)]
mod tests;
