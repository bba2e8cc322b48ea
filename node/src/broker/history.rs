//! The history of a channel: how much is kept, for how long, and how it is queried.
//!
//! Independent of brokers and clients. [`Log`] is the stream of a channel on a single node; Redis keeps the
//! same for several nodes, and both behave the same.

use std::num::NonZeroUsize;
use std::time::Duration;

use bytes::Bytes;

use crate::config::ChannelOptions;
use crate::protocol::Position;

mod log;
mod unstarted;

pub(crate) use log::Log;
#[cfg(test)]
pub(crate) use log::testing;
pub(crate) use unstarted::Unstarted;
pub(crate) use unstarted::is_same_stream;

/// How much of a channel's history is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retention {
    /// The number of publications.
    pub(crate) size: NonZeroUsize,
    /// How long they are kept after the newest one.
    pub(crate) ttl: Duration,
    /// How long the channel's position is kept after its last use. A client that reconnects later than that
    /// cannot recover.
    pub(crate) meta_ttl: Duration,
}

impl Retention {
    /// The retention of a namespace's channels; `None`: no history.
    pub(crate) fn of(options: &ChannelOptions) -> Option<Self> {
        let history = options.history.as_ref()?;
        Some(Self {
            size: NonZeroUsize::new(history.size)?,
            ttl: history.lifetime,
            meta_ttl: history.meta_lifetime,
        })
    }
}

/// A query of a stream. It is bounded: reading delays other users of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Query {
    /// Only publications after this position in the requested order.
    pub(crate) since: Option<Position>,
    /// The most publications. With 0, only the position.
    pub(crate) limit: usize,
    /// The most bytes, but at least one publication if there is any.
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

/// A part of a stream, and the position of the stream at that moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) position: Position,
    /// In the requested order. Empty if `since` was of another epoch.
    pub(crate) entries: Vec<Entry>,
    /// Whether a limit may have left some out.
    pub(crate) is_cut: bool,
    /// When the stream began, or that it does not exist, if known.
    pub(crate) origin: Option<Unstarted>,
}

/// A publication in a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) offset: u64,
    pub(crate) body: Bytes,
}
