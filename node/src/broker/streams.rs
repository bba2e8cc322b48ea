//! What a broker does for channels beyond carrying messages: streams that keep what was published.
//!
//! A publication and its place in its channel's stream are one: what is heard has an offset, and offsets
//! have no holes. Whoever publishes is told what became of it, and whoever has missed something can read
//! it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::broker::Broker;
use crate::broker::PublishError;
use crate::broker::Shard;
use crate::broker::history::Page;
use crate::broker::history::Query;
use crate::broker::history::Retention;
use crate::protocol::Position;
use crate::protocol::channel::ChannelName;

/// A broker that keeps streams.
#[async_trait]
pub(crate) trait Streams: Broker {
    /// Waits until what is published on `channel` from now on is certainly heard here. `channel` has to be
    /// wished for.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if the wish was taken back, or the broker has stopped.
    async fn subscribed(&self, channel: &ChannelName) -> Result<(), Unavailable>;

    /// Which of several independent servers carries `channel`; see [`Deliver::interrupted`](crate::broker::Deliver::interrupted).
    fn shard(&self, channel: &ChannelName) -> Shard;

    /// Publishes an event of a channel and waits for what becomes of it.
    ///
    /// What one task publishes to a channel by this and by [`publish`](Broker::publish) stays in order.
    ///
    /// # Errors
    ///
    /// [`StoreError`] says whether it may have been stored.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future leaves it open whether the event is published.
    async fn store(&self, store: Store) -> Result<Stored, StoreError>;

    /// Reads a channel's stream. Begins one if there is none, so that there is a position to come back to.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: try again.
    async fn history(&self, ask: Ask) -> Result<Page, Unavailable>;

    /// Drops what the stream of `channel` has kept.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: it may have been dropped all the same.
    async fn remove_history(&self, channel: &ChannelName) -> Result<(), Unavailable>;
}

/// An event of a channel on its way.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(crate) channel: ChannelName,
    /// What comes behind the position on the wire; see [`envelope`](crate::protocol::envelope).
    pub(crate) body: Bytes,
    /// `None`: it is published and not kept.
    pub(crate) retention: Option<Retention>,
    /// Two with one key within its time are published once.
    pub(crate) idempotency: Option<Idempotency>,
    pub(crate) until: Until,
}

/// What makes a repeated publication known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Idempotency {
    /// Chosen by the application, for each channel.
    pub(crate) key: Arc<str>,
    /// For how long the first result is remembered.
    pub(crate) ttl: Duration,
}

/// How far a publication has to get before it counts as published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// The broker has it.
    Stored,
    /// A replica of the broker's server has it too.
    Replicated,
}

/// What became of a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Its place in the stream, if it is kept.
    pub(crate) position: Option<Position>,
}

/// Which part of which channel's stream is wanted.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) channel: ChannelName,
    pub(crate) retention: Retention,
    pub(crate) query: Query,
}

/// The broker cannot do it now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the broker is not available: {0}")]
pub(crate) struct Unavailable(pub(crate) String);

/// Why a publication is not, or not certainly, published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreError {
    /// It is not: the broker could not take it in time. A later attempt may succeed.
    #[error("the broker could not take it in time")]
    Expired,
    /// It is not, and never can be.
    #[error("it is larger than the broker takes")]
    TooLarge,
    /// It is not: the broker's server does not want it.
    #[error("the broker refused it: {0}")]
    Refused(String),
    /// It is not: the node stops.
    #[error("the broker has stopped")]
    Stopped,
    /// It may have been stored and delivered: the connection broke, or the answer took too long. With an
    /// idempotency key it is safe to try again.
    #[error("the broker did not answer: it may have been stored")]
    MayBeStored,
    /// It is stored and delivered, but no replica has confirmed it in time.
    #[error("it is stored, but no replica has confirmed it in time")]
    NotReplicated,
}

impl From<PublishError> for StoreError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Expired => Self::Expired,
            PublishError::TooLarge => Self::TooLarge,
            PublishError::Stopped => Self::Stopped,
        }
    }
}
