//! The way of a publication into a channel.

use std::time::SystemTime;

use super::Feeds;
use crate::broker::Ask;
use crate::broker::Idempotency;
use crate::broker::Store;
use crate::broker::StoreError;
use crate::broker::Stored;
use crate::broker::TryPublishError;
use crate::broker::Unavailable;
use crate::broker::Until;
use crate::broker::history;
use crate::broker::history::Query;
use crate::broker::history::Retention;
use crate::broker::history::Unborn;
use crate::config::Ack;
use crate::config::ChannelOptions;
use crate::protocol::Position;
use crate::protocol::Publication;
use crate::protocol::channel::ChannelName;
use crate::protocol::envelope;
use crate::protocol::envelope::ChannelEvent;

/// How a publication is to be published.
#[derive(Debug, Clone)]
pub(crate) struct How {
    pub(crate) ack: Ack,
    /// What the channel keeps; `None`: this publication is not kept.
    pub(crate) retention: Option<Retention>,
    /// What makes a repetition known.
    pub(crate) idempotency: Option<Idempotency>,
}

impl How {
    /// How clients publish in the channels of a namespace.
    pub(crate) fn of(options: &ChannelOptions, skip_history: bool) -> Self {
        let retention = Retention::of(options).filter(|_| !skip_history);
        Self {
            ack: options.ack,
            retention,
            idempotency: None,
        }
    }
}

impl PublishFailed {
    /// Whether it can never be published.
    pub(crate) fn is_too_large(&self) -> bool {
        matches!(self, Self::Store(StoreError::TooLarge))
    }
}

/// Why a publication is not, or not certainly, published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PublishFailed {
    /// The request contradicts itself; nothing was published.
    #[error("`fast` promises nothing, so it is not for a publication that is kept")]
    FastWithHistory,
    /// The request contradicts itself; nothing was published.
    #[error("`replicated` is for publications that are kept, and this one is not")]
    NothingToReplicate,
    /// `fast` recognises no repetition: it does not wait to be told.
    #[error("an idempotency key needs `stored` or `replicated`")]
    FastWithKey,
    /// What the broker says.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A part of a channel's stream for a client, and where the stream stood then.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct History {
    pub(crate) position: Position,
    pub(crate) publications: Vec<Publication>,
    origin: Option<Unborn>,
}

impl History {
    /// Whether `since` is a position in this stream.
    pub(crate) fn continues(&self, since: &Position) -> bool {
        history::is_same_stream(since, &self.position, self.origin.as_ref())
    }
}

impl Feeds {
    /// Publishes to everyone in `channel`, on all nodes.
    ///
    /// # Errors
    ///
    /// [`PublishFailed`] says whether it may be published all the same.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future leaves it open whether the publication is published.
    pub(crate) async fn publish(
        &self,
        channel: &ChannelName,
        publication: Publication,
        how: How,
    ) -> Result<Stored, PublishFailed> {
        let until = match how.ack {
            Ack::Fast if how.retention.is_some() => return Err(PublishFailed::FastWithHistory),
            Ack::Fast if how.idempotency.is_some() => return Err(PublishFailed::FastWithKey),
            Ack::Replicated if how.retention.is_none() => {
                return Err(PublishFailed::NothingToReplicate);
            }
            Ack::Fast => {
                let event = ChannelEvent::Publication(publication);
                self.send(channel, &event).await?;
                return Ok(Stored { position: None });
            }
            Ack::Stored => Until::Stored,
            Ack::Replicated => Until::Replicated,
        };
        let store = Store {
            channel: channel.clone(),
            body: envelope::body(&publication, SystemTime::now()),
            retention: how.retention,
            idempotency: how.idempotency,
            until,
        };
        Ok(self.broker().store(store).await?)
    }

    /// Tells everyone in `channel`, on all nodes, without storing it and without waiting for an answer.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: it was dropped, and counted.
    pub(crate) async fn send(
        &self,
        channel: &ChannelName,
        event: &ChannelEvent,
    ) -> Result<(), StoreError> {
        let wire = ChannelName::wire(channel);
        let envelope = envelope::unstored(event, SystemTime::now());
        let broker = self.broker();
        let published = match broker.try_publish(&wire, envelope) {
            Ok(()) => Ok(()),
            Err(TryPublishError::Full(envelope)) => broker.publish(&wire, envelope).await,
        };
        Ok(published?)
    }

    /// Reads the stream of `channel`, which keeps a history.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: try again.
    pub(crate) async fn history(
        &self,
        channel: &ChannelName,
        retention: Retention,
        query: Query,
    ) -> Result<History, Unavailable> {
        let ask = Ask {
            channel: channel.clone(),
            retention,
            query,
        };
        let page = self.broker().history(ask).await?;
        let publications = page.entries.into_iter().filter_map(|entry| {
            let publication = envelope::decode_body(entry.offset, entry.body);
            publication
                .inspect_err(|error| self.malformed(channel, error))
                .ok()
        });
        Ok(History {
            position: page.position,
            origin: page.origin,
            publications: publications.collect(),
        })
    }

    /// Drops what `channel` has kept. Its offsets go on.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: it may have been dropped all the same.
    pub(crate) async fn remove_history(&self, channel: &ChannelName) -> Result<(), Unavailable> {
        self.broker().remove_history(channel).await
    }
}
