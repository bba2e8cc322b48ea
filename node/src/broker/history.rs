//! What a channel keeps of its past: how much, for how long, and how to ask for it.
//!
//! Knows neither brokers nor clients. [`Log`] is the stream of a channel on a node that is alone; Redis
//! keeps the same for many nodes, and the same cases hold on both.

use std::num::NonZeroUsize;
use std::time::Duration;

use bytes::Bytes;

use crate::config::ChannelOptions;
use crate::protocol::Position;

mod log;
mod unborn;

pub(crate) use log::Log;
#[cfg(test)]
pub(crate) use log::testing;
pub(crate) use unborn::Unborn;
pub(crate) use unborn::is_same_stream;

/// How much of a channel is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retention {
    /// The newest publications, in number.
    pub(crate) size: NonZeroUsize,
    /// How long they are kept after the newest one.
    pub(crate) ttl: Duration,
    /// How long the channel's position outlives its publications. A client that comes back later than
    /// that starts over.
    pub(crate) meta_ttl: Duration,
}

impl Retention {
    /// What the channels of a namespace keep; `None`: nothing.
    pub(crate) fn of(options: &ChannelOptions) -> Option<Self> {
        let history = options.history.as_ref()?;
        Some(Self {
            size: NonZeroUsize::new(history.size)?,
            ttl: history.lifetime,
            meta_ttl: history.meta_lifetime,
        })
    }
}

/// What of the past somebody wants. It is bounded: reading a stream takes time from all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Query {
    /// Only what comes after this position in the order that is asked for.
    pub(crate) since: Option<Position>,
    /// At most so many. With 0, the position alone.
    pub(crate) limit: usize,
    /// At most so many bytes, but one publication if there is any.
    pub(crate) bytes_max: usize,
    pub(crate) order: Order,
}

/// From which end a stream is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Order {
    #[default]
    OldestFirst,
    NewestFirst,
}

/// A part of a stream, and where the stream stood at that moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) position: Position,
    /// In the order that was asked for. Empty if `since` was of another epoch.
    pub(crate) entries: Vec<Entry>,
    /// Whether a limit may have left some out.
    pub(crate) is_cut: bool,
    /// When the stream began, or that it has not, if that is known.
    pub(crate) origin: Option<Unborn>,
}

/// A publication as a stream keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) offset: u64,
    pub(crate) body: Bytes,
}
