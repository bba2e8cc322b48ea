//! What another node needs to continue a channel client, as it is encoded: Protobuf.
//!
//! Times are distances from now, since each node has a clock of its own for them; expiry is in UNIX seconds, as in tokens.
//! It is part of the snapshot of a handoff, which has a version and a limit.

use bytes::Bytes;

use crate::auth::grant::Overrides;
use crate::client::channels::state::AuthSource;
use crate::client::channels::state::Source;
use crate::hooks::ClientHeaders;

/// A connected channel client.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ClientState {
    #[prost(string, tag = "1")]
    pub(super) client: String,
    /// Empty: anonymous.
    #[prost(string, tag = "2")]
    pub(super) user: String,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) info: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    pub(super) meta: Bytes,
    /// Headers of its request that are forwarded to the hooks.
    #[prost(message, repeated, tag = "5")]
    pub(super) headers: Vec<HeaderState>,
    /// The same of its `connect`.
    #[prost(message, repeated, tag = "6")]
    pub(super) emulated: Vec<HeaderState>,
    #[prost(uint64, optional, tag = "7")]
    pub(super) expire_at: Option<u64>,
    /// Whether a hook has granted it, and renews it.
    #[prost(bool, tag = "8")]
    pub(super) is_by_hook: bool,
    /// How long its rate limits need to be at their full burst again, in nanoseconds: publications, commands, rejected
    /// commands.
    #[prost(uint64, repeated, tag = "9")]
    pub(super) rates_ahead: Vec<u64>,
    /// How long ago it was pinged, in milliseconds.
    #[prost(uint64, tag = "10")]
    pub(super) pinged_ms: u64,
    #[prost(bool, tag = "11")]
    pub(super) is_ping_unanswered: bool,
    #[prost(message, repeated, tag = "12")]
    pub(super) subscriptions: Vec<SubscriptionState>,
    /// How many servers carry its channels.
    #[prost(uint32, tag = "13")]
    pub(super) marks: u32,
    /// The instance of the node that hands it off; empty: from a version without lifecycle events of such clients.
    #[prost(string, tag = "14")]
    pub(super) from: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HeaderState {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
    #[prost(bool, tag = "3")]
    is_secret: bool,
}

/// An active subscription.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SubscriptionState {
    #[prost(string, tag = "1")]
    pub(super) channel: String,
    #[prost(uint32, tag = "2")]
    pub(super) source: u32,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) info: Bytes,
    #[prost(uint64, optional, tag = "4")]
    pub(super) expire_at: Option<u64>,
    #[prost(bool, tag = "5")]
    pub(super) is_by_hook: bool,
    /// Whether the client receives joins and leaves.
    #[prost(bool, tag = "6")]
    pub(super) receives_joins: bool,
    /// Whether it is in the channel's presence.
    #[prost(bool, tag = "7")]
    pub(super) is_present: bool,
    /// Whether its own join and leave are told.
    #[prost(bool, tag = "8")]
    pub(super) is_announced: bool,
    #[prost(bool, tag = "9")]
    pub(super) has_history: bool,
    /// The number of the mark on the server that carries it.
    #[prost(uint32, tag = "10")]
    pub(super) mark: u32,
    #[prost(bool, optional, tag = "11")]
    pub(super) presence: Option<bool>,
    #[prost(bool, optional, tag = "12")]
    pub(super) join_leave: Option<bool>,
    #[prost(bool, optional, tag = "13")]
    pub(super) force_push_join_leave: Option<bool>,
    #[prost(bool, optional, tag = "14")]
    pub(super) force_positioning: Option<bool>,
    #[prost(bool, optional, tag = "15")]
    pub(super) force_recovery: Option<bool>,
}

impl HeaderState {
    pub(super) fn all(headers: &ClientHeaders) -> Vec<Self> {
        let headers = headers.parts();
        let headers = headers.map(|(name, value, is_secret)| Self {
            name: name.to_owned(),
            value: Bytes::copy_from_slice(value),
            is_secret,
        });
        headers.collect()
    }

    /// `None` if one of them is no header.
    pub(super) fn parse(all: &[Self]) -> Option<ClientHeaders> {
        let parts = all.iter();
        let parts = parts.map(|one| (one.name.as_str(), &one.value[..], one.is_secret));
        ClientHeaders::from_parts(parts)
    }
}

impl SubscriptionState {
    pub(super) fn overrides(&self) -> Overrides {
        Overrides {
            presence: self.presence,
            join_leave: self.join_leave,
            force_push_join_leave: self.force_push_join_leave,
            force_positioning: self.force_positioning,
            force_recovery: self.force_recovery,
        }
    }

    /// `None` if this version does not know it.
    pub(super) fn source(&self) -> Option<Source> {
        [Source::Client, Source::Connection, Source::Application]
            .into_iter()
            .find(|source| source_number(*source) == self.source)
    }
}

/// The number of a source; 0 is none of them.
pub(super) fn source_number(source: Source) -> u32 {
    match source {
        Source::Client => 1,
        Source::Connection => 2,
        Source::Application => 3,
    }
}

/// What has granted something.
pub(super) fn auth_source(is_by_hook: bool) -> AuthSource {
    if is_by_hook {
        AuthSource::Hook
    } else {
        AuthSource::Token
    }
}
