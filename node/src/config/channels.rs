//! Channels of `mode: channels`: how this node follows them, and what their clients may cost.

use std::time::Duration;

use super::namespace::Namespaces;

/// Settings of channels for the whole node.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Channels {
    pub(crate) namespaces: Namespaces,
    pub(crate) streams: ChannelStreams,
    pub(crate) limits: ClientLimits,
}

/// How this node follows channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChannelStreams {
    /// How long a channel stays subscribed in the broker after its last subscriber has left.
    pub(crate) linger: Duration,
    /// How long a client may wait to subscribe.
    pub(crate) join_timeout: Duration,
    /// For a gap to be filled, after which members are told of it.
    pub(crate) gap_timeout: Duration,
    /// What may stay in this node of one channel, in bytes.
    pub(crate) ring_bytes_max: usize,
    /// Publications that one recovery brings.
    pub(crate) recovery_max: usize,
    /// What one reply carries of a channel's history, in bytes.
    pub(crate) reply_bytes_max: usize,
}

/// What one client, or one user, may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClientLimits {
    /// How long a connection may take to send its `connect`.
    pub(crate) connect_timeout: Duration,
    /// The most channels of one client, server-side subscriptions included.
    pub(crate) channels_per_client: usize,
    /// Commands of one client that are carried out at a time; further ones wait.
    pub(crate) commands_per_client: usize,
    /// Connections of one user to this node; `None`: any number.
    pub(crate) connections_per_user: Option<usize>,
    pub(crate) connections_per_user_policy: UserLimitPolicy,
    /// The most publications in the reply to one `history`.
    pub(crate) history_page: usize,
}

/// What happens to the connections of a user that has as many as it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum UserLimitPolicy {
    /// One more is refused.
    RefuseNewest,
    /// A new client displaces the oldest.
    DropOldest,
}
