//! The formats of messages, and the slot of a batch that each is in.

/// How a member reads its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// The data unchanged, one WebSocket message each.
    Raw,
    /// SockJS frames in WebSocket messages.
    Sockjs,
    /// JSON strings for a SockJS session.
    Quoted,
    /// Pushes in JSON, one WebSocket message each.
    Json,
    /// Pushes in Protobuf, one WebSocket message each.
    Protobuf,
    /// Pushes in JSON for a transport over HTTP.
    JsonLine,
    /// Pushes in Protobuf for a transport over HTTP, each after its length.
    Delimited,
}

/// One of the four buffers of a channel's batch.
///
/// A channel carries messages of a relay or pushes, never both. So a slot stands for one of at most two formats, and for
/// the same one as long as the channel exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Slot {
    /// WebSocket: raw, or JSON.
    Plain,
    /// WebSocket: SockJS, or Protobuf.
    Framed,
    /// Over HTTP: quoted, or JSON lines.
    Queued,
    /// Over HTTP: Protobuf.
    Delimited,
}

impl Format {
    pub(super) fn slot(self) -> Slot {
        match self {
            Self::Raw | Self::Json => Slot::Plain,
            Self::Sockjs | Self::Protobuf => Slot::Framed,
            Self::Quoted | Self::JsonLine => Slot::Queued,
            Self::Delimited => Slot::Delimited,
        }
    }
}
