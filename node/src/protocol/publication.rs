//! One message on its way to every client of a channel.

use bytes::Bytes;

use crate::protocol::channel::ChannelName;

/// A publication as the broker delivers it: a channel and the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Publication {
    /// Where it was published.
    pub(crate) channel: ChannelName,
    /// What was published; any bytes, UTF-8 or not. It may be a slice of a larger read: what keeps it
    /// for long copies it.
    pub(crate) data: Bytes,
}
