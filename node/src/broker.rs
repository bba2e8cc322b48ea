//! The way of a message between nodes, behind one trait.
//!
//! A broker takes publications of this node's clients and brings back those of all nodes, this one
//! included. [`memory`] is for one node that is alone, [`redis`] for any number; anything a client sees is
//! the same on both.
//!
//! What a broker promises:
//! - **Order.** What one task publishes to one channel, one call after the other, arrives everywhere in
//!   that order.
//! - **At most once.** Nothing is delivered twice. What is lost is counted and logged.
//! - **No head start.** A client of this node hears nothing that clients of other nodes do not.
//! - **Bare bytes.** What goes over the wire is the message and nothing else, so that any Redis client
//!   can take part.
//!
//! For channels it promises more, see [`Streams`].

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::metrics::Metrics;
use crate::protocol::channel::ChannelName;
use crate::protocol::publication::Publication;

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

/// Carries publications between nodes; see the module for its promises.
#[async_trait]
pub(crate) trait Broker: Send + Sync + 'static {
    /// Hands `data` to the channel's lane without waiting.
    ///
    /// `Ok` means accepted, not yet published: what is lost after that is counted and logged by the
    /// broker.
    ///
    /// # Errors
    ///
    /// [`TryPublishError::Full`] gives `data` back when the lane has no room now: pass it to
    /// [`publish`](Broker::publish) before anything else of the same client.
    fn try_publish(&self, channel: &ChannelName, data: Bytes) -> Result<(), TryPublishError>;

    /// Waits for room in the channel's lane, so that a client that publishes too fast is read no further.
    ///
    /// # Errors
    ///
    /// The publication is dropped, counted and logged.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future before it is ready drops the publication; that is counted too.
    async fn publish(&self, channel: &ChannelName, data: Bytes) -> Result<(), PublishError>;

    /// Asks for the channel's publications. A wish, fulfilled in the background; repeating it changes
    /// nothing.
    fn subscribe(&self, channel: &ChannelName);

    /// Takes the wish back.
    fn unsubscribe(&self, channel: &ChannelName);

    /// Whether what is published here arrives, here and elsewhere.
    ///
    /// # Errors
    ///
    /// Why not, for people.
    fn readiness(&self) -> Result<(), NotReady>;
}

/// Where a broker puts what it brings: the hub.
pub(crate) trait Deliver: Send + Sync + 'static {
    /// Takes all publications that came with one read, in order. Must not block.
    fn deliver(&self, publications: Vec<Publication>);

    /// Nothing is heard on channels of `shard` from now on, whatever is published there.
    fn interrupted(&self, shard: Shard) {
        let _ = shard;
    }

    /// Everything that is wanted of `shard` is heard again; what was published meanwhile was not.
    fn resumed(&self, shard: Shard) {
        let _ = shard;
    }
}

/// One of the servers that share the channels, by its place in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Shard(pub(crate) usize);

/// Why a publication was not accepted at once.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TryPublishError {
    /// The lane has no room at the moment; here is the data again.
    #[error("the lane is full")]
    Full(Bytes),
}

/// Why a publication was dropped before it was accepted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PublishError {
    /// The lane had no room for as long as a publication may wait; a later one may succeed.
    #[error("the lane had no room in time")]
    Expired,
    /// The publication is larger than its lane and can never be accepted.
    #[error("the publication is larger than its lane")]
    TooLarge,
    /// The broker has stopped.
    #[error("the broker has stopped")]
    Stopped,
}

/// Why the broker is not ready, for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NotReady(pub(crate) String);

/// A broker at work. Its tasks end after `shutdown`; whoever holds them waits for them.
pub(crate) struct Started {
    /// The handle for everyone.
    pub(crate) broker: Arc<dyn Streams>,
    /// Everything that runs for it.
    pub(crate) tasks: JoinSet<()>,
}

/// Starts the broker that `config` names. Returns at once: a Redis that is away is waited for in the
/// background, and [`Broker::readiness`] tells.
pub(crate) fn start(
    config: &config::Broker,
    node_id: &str,
    deliver: Arc<dyn Deliver>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
) -> Started {
    match config {
        config::Broker::Memory => memory::start(deliver, metrics, shutdown),
        config::Broker::Redis(config) => {
            let surroundings = redis::Surroundings {
                node_id,
                deliver,
                metrics,
                shutdown,
            };
            redis::start(config, &surroundings)
        }
    }
}

#[cfg(test)]
mod tests;
