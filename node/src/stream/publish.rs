//! Publishing to a channel, and reading its history.

use std::time::SystemTime;

use super::ChannelStreams;
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
use crate::broker::history::Unstarted;
use crate::config::Ack;
use crate::config::ChannelOptions;
use crate::protocol::Position;
use crate::protocol::Publication;
use crate::protocol::channel::ChannelName;
use crate::protocol::envelope;
use crate::protocol::envelope::ChannelEvent;

/// Options of one publication.
#[derive(Debug, Clone)]
pub(crate) struct PublishOptions {
    pub(crate) ack: Ack,
    /// The history it is stored in; `None`: it is not stored.
    pub(crate) retention: Option<Retention>,
    /// Makes a repeated publication recognisable.
    pub(crate) idempotency: Option<Idempotency>,
}

impl PublishOptions {
    /// The options for what clients publish in the channels of a namespace.
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

/// Why a publication is not published, or may not be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PublishFailed {
    /// The options contradict each other; nothing was published.
    #[error(
        "`fast` guarantees nothing, so it cannot be used for a publication that is stored in the history"
    )]
    FastWithHistory,
    /// The options contradict each other; nothing was published.
    #[error("`replicated` needs a publication that is stored in the history, and this one is not")]
    NothingToReplicate,
    /// `fast` cannot recognise a repetition: it does not wait for the broker's reply.
    #[error("an idempotency key needs `stored` or `replicated`")]
    FastWithKey,
    /// The broker's error.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A page of a channel's history, and the stream's position at that moment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct History {
    pub(crate) position: Position,
    pub(crate) publications: Vec<Publication>,
    origin: Option<Unstarted>,
}

impl History {
    /// Whether `since` is a position in this stream.
    pub(crate) fn continues(&self, since: &Position) -> bool {
        history::is_same_stream(since, &self.position, self.origin.as_ref())
    }
}

impl ChannelStreams {
    /// Publishes to all members of `channel`, on all nodes.
    ///
    /// # Errors
    ///
    /// [`PublishFailed`] tells whether it may be published nevertheless.
    ///
    /// # Cancel safety
    ///
    /// After dropping this future, the publication may or may not be published.
    pub(crate) async fn publish(
        &self,
        channel: &ChannelName,
        publication: Publication,
        options: PublishOptions,
    ) -> Result<Stored, PublishFailed> {
        let until = match options.ack {
            Ack::Fast if options.retention.is_some() => return Err(PublishFailed::FastWithHistory),
            Ack::Fast if options.idempotency.is_some() => return Err(PublishFailed::FastWithKey),
            Ack::Replicated if options.retention.is_none() => {
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
            retention: options.retention,
            idempotency: options.idempotency,
            until,
        };
        Ok(self.broker().store(store).await?)
    }

    /// Sends an event to all members of `channel`, on all nodes, without storing it or waiting for the broker's reply.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: the event was dropped, and counted.
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

    /// Reads the history of `channel`.
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

    /// Removes the publications in the history of `channel`. Its offsets continue.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: they may be removed nevertheless.
    pub(crate) async fn remove_history(&self, channel: &ChannelName) -> Result<(), Unavailable> {
        self.broker().remove_history(channel).await
    }
}
