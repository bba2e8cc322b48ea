//! Why a client is sent away: a close code, a reason, a name for the metrics.
//!
//! A disconnect is not an error. Codes below 3000 are those of RFC 6455 section 7.4.1 and the IANA
//! registry; those from 3000 on are ours or sockjs-node's. The reason fits a close frame (123 bytes).

/// What a client is told when its connection ends from our side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Disconnect {
    /// The close code, on WebSocket and in a SockJS close frame alike.
    pub(crate) code: u16,
    /// The text that goes with it.
    pub(crate) reason: &'static str,
    /// A short name for metrics and logs.
    pub(crate) name: &'static str,
}

impl Disconnect {
    /// The client broke the rules of RFC 6455.
    pub(crate) const PROTOCOL: Self = Self::new(1002, "protocol error", "protocol");
    /// A receiver was cut off, and nobody knows what it got. SockJS only, in the protocol's words.
    pub(crate) const INTERRUPTED: Self = Self::new(1002, "Connection interrupted", "interrupted");
    /// A text message that is not UTF-8.
    pub(crate) const NOT_UTF8: Self = Self::new(1007, "text is not UTF-8", "not_utf8");
    /// The client sent something on an endpoint with `read_only: true`.
    pub(crate) const READ_ONLY: Self = Self::new(1008, "this endpoint is read-only", "read_only");
    /// The client publishes more than `publish_rate` allows.
    pub(crate) const RATE: Self = Self::new(1008, "too many messages", "rate");
    /// A message over `message_size`.
    pub(crate) const TOO_LARGE: Self = Self::new(1009, "message too large", "too_large");
    /// This node stops; another one, or this one in a moment, takes the client.
    pub(crate) const RESTART: Self = Self::new(1012, "service restart", "restart");
    /// The session has a receiver already. SockJS only, in the protocol's words.
    pub(crate) const BUSY: Self = Self::new(2010, "Another connection still open", "busy");
    /// An endpoint with `mode: close`, in the words of the protocol's suite.
    pub(crate) const GO_AWAY: Self = Self::new(3000, "Go away!", "go_away");
    /// SockJS text that is not JSON, in the words of sockjs-node.
    pub(crate) const BROKEN_FRAMING: Self = Self::new(3000, "Broken framing.", "broken_framing");
    /// No pong came in time, in the words of sockjs-node.
    pub(crate) const NO_PONG: Self = Self::new(3000, "No response from heartbeat", "no_pong");
    /// The client reads too slowly and its outbox is full: it should reconnect.
    pub(crate) const SLOW: Self = Self::new(3008, "reads too slowly", "slow");

    const fn new(code: u16, reason: &'static str, name: &'static str) -> Self {
        Self { code, reason, name }
    }
}
