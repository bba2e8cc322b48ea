//! Disconnects: a close code, a reason, a label for the metrics.
//!
//! A disconnect is not an error. Codes below 3000 are those of RFC 6455 section 7.4.1 and the IANA
//! registry; those from 3000 on are ours, sockjs-node's or the channel protocol's, whose clients come back
//! after a code below 3500, and do not from there to 3999. From 4000 on they are the application's: clients
//! come back below 4500. A reason that does not fit a close frame (123 bytes) is cut.

use std::borrow::Cow;

use crate::protocol::ErrorCode;
use crate::protocol::ProtocolError;

/// Why the server disconnects a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Disconnect {
    /// The close code, on WebSocket and in a SockJS close frame alike.
    pub(crate) code: u16,
    /// The reason text.
    pub(crate) reason: &'static str,
    /// A short name for metrics and logs.
    pub(crate) name: &'static str,
}

impl Disconnect {
    /// The client broke the rules of RFC 6455.
    pub(crate) const PROTOCOL: Self = Self::new(1002, "protocol error", "protocol");
    /// A receiver was interrupted, and it is unknown what it received. SockJS only, with the protocol's text.
    pub(crate) const INTERRUPTED: Self = Self::new(1002, "Connection interrupted", "interrupted");
    /// A text message that is not UTF-8.
    pub(crate) const NOT_UTF8: Self = Self::new(1007, "text is not UTF-8", "not_utf8");
    /// The client sent something on an endpoint with `read_only: true`.
    pub(crate) const READ_ONLY: Self = Self::new(1008, "this endpoint is read-only", "read_only");
    /// The client publishes more than `publish_rate` allows.
    pub(crate) const RATE: Self = Self::new(1008, "too many messages", "rate");
    /// A message over `message_size`.
    pub(crate) const TOO_LARGE: Self = Self::new(1009, "message too large", "too_large");
    /// This node is stopping; the client can reconnect to another one, or to this one after its restart.
    pub(crate) const RESTART: Self = Self::new(1012, "service restart", "restart");
    /// The session has a receiver already. SockJS only, in the protocol's words.
    pub(crate) const BUSY: Self = Self::new(2010, "Another connection still open", "busy");
    /// An endpoint with `mode: close`, in the words of the protocol's suite.
    pub(crate) const GO_AWAY: Self = Self::new(3000, "Go away!", "go_away");
    /// SockJS text that is not JSON, in the words of sockjs-node.
    pub(crate) const BROKEN_FRAMING: Self = Self::new(3000, "Broken framing.", "broken_framing");
    /// No pong was received in time, with the text of sockjs-node.
    pub(crate) const NO_PONG: Self = Self::new(3000, "No response from heartbeat", "no_pong");
    /// The client reads too slowly and its outbox is full: it should reconnect.
    pub(crate) const SLOW: Self = Self::new(3008, "reads too slowly", "slow");

    /// Channels: this node is stopping; the client can reconnect to another one, or to this one after its restart.
    pub(crate) const SHUTDOWN: Self = Self::new(3001, "shutdown", "shutdown");
    /// Channels: something here has failed; it may work in a moment.
    pub(crate) const INTERNAL: Self = Self::new(3004, "internal server error", "internal");
    /// Channels: the connection's time is over.
    pub(crate) const EXPIRED: Self = Self::new(3005, "connection expired", "expired");
    /// Channels: a subscription's time is over, and the newer token for it is out of date too.
    pub(crate) const SUB_EXPIRED: Self = Self::new(3006, "subscription expired", "sub_expired");
    /// Channels: the client may have missed publications; it reconnects and recovers.
    pub(crate) const INSUFFICIENT_STATE: Self =
        Self::new(3010, "insufficient state", "insufficient_state");
    /// Channels: no pong was received in time.
    pub(crate) const NO_CHANNEL_PONG: Self = Self::new(3012, "no pong", "no_pong");
    /// Channels: the token is invalid, or of another user.
    pub(crate) const INVALID_TOKEN: Self = Self::new(3500, "invalid token", "invalid_token");
    /// Channels: malformed input, or a command that is not allowed in this state.
    pub(crate) const BAD_REQUEST: Self = Self::new(3501, "bad request", "bad_request");
    /// Channels: no `connect` was received in time.
    pub(crate) const STALE: Self = Self::new(3502, "stale", "stale");
    /// Channels: the user has as many connections as it may have.
    pub(crate) const CONNECTION_LIMIT: Self =
        Self::new(3504, "connection limit", "connection_limit");
    /// Channels: the client may not do what it needs to do.
    pub(crate) const PERMISSION_DENIED: Self =
        Self::new(3507, "permission denied", "permission_denied");

    /// Channels: the client keeps sending commands far faster than `command_rate` allows.
    pub(crate) const TOO_MANY_ERRORS: Self = Self::new(3509, "too many errors", "too_many_errors");

    const fn new(code: u16, reason: &'static str, name: &'static str) -> Self {
        Self { code, reason, name }
    }

    /// Whether a channel client reconnects by itself.
    pub(crate) fn may_reconnect(self) -> bool {
        !matches!(self.code, 3500..4000 | 4500..5000)
    }
}

/// A disconnect in words of its own, such as the application's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DisconnectMessage {
    /// Code and name; its reason does not count.
    pub(crate) disconnect: Disconnect,
    /// The reason text.
    pub(crate) reason: Cow<'static, str>,
}

impl DisconnectMessage {
    /// A disconnect by the application; an invalid code is replaced by that of a bad request.
    pub(crate) fn by_application(code: u32, reason: String) -> Self {
        let fits = u16::try_from(code).ok();
        let fits = fits.filter(|code| (3000..5000).contains(code));
        let code = fits.unwrap_or(Disconnect::BAD_REQUEST.code);
        Self {
            disconnect: Disconnect::new(code, "", "application"),
            reason: reason.into(),
        }
    }

    /// The disconnect for `error`, for a client that cannot receive errors.
    pub(crate) fn of_error(error: &ProtocolError) -> Self {
        const EXPIRED: [u32; 2] = [ErrorCode::TokenExpired as u32, ErrorCode::Expired as u32];
        const DENIED: [u32; 2] = [
            ErrorCode::Unauthorized as u32,
            ErrorCode::PermissionDenied as u32,
        ];
        let disconnect = match error.code {
            code if EXPIRED.contains(&code) => Disconnect::EXPIRED,
            code if DENIED.contains(&code) => Disconnect::PERMISSION_DENIED,
            _ if error.temporary => Disconnect::INTERNAL,
            _ => Disconnect::BAD_REQUEST,
        };
        Self {
            disconnect,
            reason: error.message.clone().into(),
        }
    }
}

impl From<Disconnect> for DisconnectMessage {
    fn from(disconnect: Disconnect) -> Self {
        Self {
            disconnect,
            reason: Cow::Borrowed(disconnect.reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_decides_whether_the_client_reconnects() {
        for (code, comes_back) in [
            (1012, true),
            (3000, true),
            (3499, true),
            (3500, false),
            (3999, false),
            (4000, true),
            (4499, true),
            (4500, false),
            (4999, false),
        ] {
            let disconnect_message = DisconnectMessage::by_application(code, String::new());
            let disconnect = Disconnect {
                code: u16::try_from(code).unwrap(),
                ..disconnect_message.disconnect
            };
            assert_eq!(disconnect.may_reconnect(), comes_back, "{code}");
        }
    }

    #[test]
    fn an_application_cannot_use_the_codes_of_websocket() {
        for (code, used) in [
            (0, 3501),
            (1000, 3501),
            (2999, 3501),
            (3000, 3000),
            (4999, 4999),
            (5000, 3501),
            (70000, 3501),
        ] {
            let disconnect_message = DisconnectMessage::by_application(code, "bye".to_owned());
            assert_eq!(disconnect_message.disconnect.code, used, "{code}");
            assert_eq!(disconnect_message.reason, "bye");
        }
    }

    #[test]
    fn errors_are_mapped_to_disconnect_codes() {
        for (error, disconnect) in [
            (ErrorCode::TokenExpired, Disconnect::EXPIRED),
            (ErrorCode::Unauthorized, Disconnect::PERMISSION_DENIED),
            (ErrorCode::PermissionDenied, Disconnect::PERMISSION_DENIED),
            (ErrorCode::Internal, Disconnect::INTERNAL),
            (ErrorCode::UnknownChannel, Disconnect::BAD_REQUEST),
        ] {
            assert_eq!(
                DisconnectMessage::of_error(&error.into()).disconnect,
                disconnect
            );
        }
    }
}
