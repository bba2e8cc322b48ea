//! The ways to write down a message, and where each stands in a batch.

/// How a member reads its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// One WebSocket message each, as it is.
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

/// One of the four places that a channel keeps for formats.
///
/// A channel carries messages of a relay or pushes, never both: so a place means one of at most two formats, and
/// the same one for as long as the channel lives.
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
