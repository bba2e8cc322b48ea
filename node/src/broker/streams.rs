//! Streams: what a broker does for channels beyond carrying messages, which is to keep their publications.
//!
//! A publication is stored and published in one step: every publication has an offset, and offsets have no
//! gaps. The publisher gets the result, and a subscriber that missed publications can read them.

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
    /// Waits until the subscription of `channel` is confirmed. It has to be
    /// [requested](Broker::subscribe) before.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if the channel was unsubscribed, or the broker has stopped.
    async fn subscribed(&self, channel: &ChannelName) -> Result<(), Unavailable>;

    /// Which of several independent servers carries `channel`; see [`Deliver::interrupted`](crate::broker::Deliver::interrupted).
    fn shard(&self, channel: &ChannelName) -> Shard;

    /// Publishes an event of a channel and waits for the result.
    ///
    /// What one task publishes to a channel by this and by [`publish`](Broker::publish) stays in order.
    ///
    /// # Errors
    ///
    /// [`StoreError`] says whether it may have been stored.
    ///
    /// # Cancel safety
    ///
    /// After dropping this future it is unknown whether the event is published.
    async fn store(&self, store: Store) -> Result<Stored, StoreError>;

    /// Reads a channel's stream. Returns a position to recover from even if there is no stream yet.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: retry.
    async fn history(&self, ask: Ask) -> Result<Page, Unavailable>;

    /// Removes all publications from the stream of `channel`.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: they may have been removed.
    async fn remove_history(&self, channel: &ChannelName) -> Result<(), Unavailable>;
}

/// An event of a channel to publish.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(crate) channel: ChannelName,
    /// What follows the position on the wire; see [`envelope`](crate::protocol::envelope).
    pub(crate) body: Bytes,
    /// `None`: it is published and not stored.
    pub(crate) retention: Option<Retention>,
    /// Two with the same key within its lifetime are published once.
    pub(crate) idempotency: Option<Idempotency>,
    pub(crate) until: Until,
}

impl Store {
    /// Whether it is published alone, and no trace of it stays.
    pub(crate) fn keeps_nothing(&self) -> bool {
        self.retention.is_none() && self.idempotency.is_none()
    }
}

/// The key by which a repeated publication is detected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Idempotency {
    /// Chosen by the application, for each channel.
    pub(crate) key: Arc<str>,
    /// For how long the first result is remembered.
    pub(crate) ttl: Duration,
}

/// When a publication counts as published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// Once the broker's server has it.
    Stored,
    /// Once a replica of the broker's server has it too.
    Replicated,
}

/// The result of a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Its position in the stream, if it is stored.
    pub(crate) position: Option<Position>,
}

/// A request for a part of a channel's stream.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) channel: ChannelName,
    pub(crate) retention: Retention,
    pub(crate) query: Query,
}

/// The broker cannot be used now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the broker is not available: {0}")]
pub(crate) struct Unavailable(pub(crate) String);

/// Why a publication failed, or its result is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreError {
    /// Not published: the publish queue was full, or Redis unavailable, for too long. A retry may succeed.
    #[error("the broker did not accept the publication in time")]
    Expired,
    /// Not published, and a retry fails too.
    #[error("the publication is larger than the broker accepts")]
    TooLarge,
    /// Not published: the broker's server rejected it.
    #[error("the broker rejected the publication: {0}")]
    Refused(String),
    /// Not published: the node is stopping.
    #[error("the broker has stopped")]
    Stopped,
    /// It may have been stored and delivered: the connection broke, or the reply took too long. With an
    /// idempotency key it is safe to retry.
    #[error("the broker did not reply: the publication may have been stored")]
    MayBeStored,
    /// It is stored and delivered, but no replica has confirmed it in time.
    #[error("the publication is stored, but no replica has confirmed it in time")]
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
