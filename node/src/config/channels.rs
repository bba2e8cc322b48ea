//! Channels of `mode: channels`: which there are, what each allows, and what their clients may cost.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// The separator between a namespace and the rest of a channel's name.
pub(crate) const NAMESPACE_END: char = ':';

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

/// Options by namespace.
///
/// Invariant: a channel has options if and only if its namespace is configured.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Namespaces(HashMap<String, Arc<ChannelOptions>>);

/// What holds for the channels of one namespace.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ChannelOptions {
    /// Its name; empty: channels without a namespace.
    pub(crate) namespace: String,
    /// Which clients may subscribe without a token for the channel.
    pub(crate) subscribe: SubscribeAccess,
    /// Whether a name that ends in `#USER,USER` is for these users.
    pub(crate) user_limited: bool,
    pub(crate) publish: PublishAccess,
    /// Which clients may request presence, if the channel has it.
    pub(crate) read_presence: ReadAccess,
    /// Which clients may request history, if the channel has it.
    pub(crate) read_history: ReadAccess,
    /// What is kept of what was said; `None`: nothing.
    pub(crate) history: Option<HistoryOptions>,
    /// Whether clients that reconnect recover missed publications; never without `history`.
    pub(crate) recovery: bool,
    /// Whether members are listed.
    pub(crate) presence: bool,
    /// Whether join and leave events are published; never without `presence`.
    pub(crate) join_leave: bool,
    /// Whether all subscribers get these events, or only those that request them; never without `join_leave`.
    pub(crate) force_push_join_leave: bool,
    /// Whether channels have lifecycle events.
    pub(crate) lifecycle: bool,
    pub(crate) data: DataKind,
    pub(crate) slow: SlowReader,
    /// The acknowledgement that a client's publication waits for before its reply; never
    /// [`Ack::Fast`] with `history`.
    pub(crate) ack: Ack,
}

/// What is kept of a channel's publications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HistoryOptions {
    /// The newest so many.
    pub(crate) size: usize,
    /// For this long after the last one.
    pub(crate) lifetime: Duration,
    /// How long the stream's epoch is remembered, so that positions stay comparable; at least
    /// `lifetime`.
    pub(crate) meta_lifetime: Duration,
}

/// Which clients may subscribe without a token for the channel. With a valid token every client may, unless it is
/// `Nobody`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SubscribeAccess {
    /// Only the server subscribes clients.
    Nobody,
    /// No client.
    Token,
    /// Clients that the application's backend allows.
    Hook,
    /// Clients with a user.
    Authenticated,
    /// Every client.
    Anyone,
}

/// Which clients may publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PublishAccess {
    /// The application alone.
    Nobody,
    /// Clients that the application's backend allows.
    Hook,
    /// Subscribers of the channel.
    Subscribers,
    /// Clients with a user.
    Authenticated,
    /// Every client.
    Anyone,
}

/// Which clients may request presence or history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReadAccess {
    /// The application alone.
    Nobody,
    /// Subscribers of the channel.
    Subscribers,
    /// Clients with a user.
    Authenticated,
    /// Every client.
    Anyone,
}

/// What publications are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DataKind {
    /// Each is valid JSON; clients of both codecs may take part.
    Json,
    /// Each is any bytes; only clients that speak Protobuf may take part.
    Binary,
}

/// What becomes of a client that reads too slowly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SlowReader {
    /// It is disconnected, and recovers when it reconnects.
    Disconnect,
    /// It gets only the newest publication of this channel when it reads again. Never with recovery.
    Latest,
}

/// When a publication is acknowledged to its publisher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ack {
    /// Handed to the broker.
    Fast,
    /// Taken by the broker, and stored if the channel has history.
    Stored,
    /// On a replica of it too.
    Replicated,
}

impl Namespaces {
    /// Those of which each has a name of its own.
    pub(crate) fn new(options: impl IntoIterator<Item = ChannelOptions>) -> Self {
        let by_name = |options: ChannelOptions| (options.namespace.clone(), Arc::new(options));
        Self(options.into_iter().map(by_name).collect())
    }

    /// The options of `channel`; `None`: its namespace is not configured.
    pub(crate) fn options(&self, channel: &str) -> Option<&Arc<ChannelOptions>> {
        match channel.split_once(NAMESPACE_END) {
            Some(("", _)) => None,
            Some((namespace, _)) => self.0.get(namespace),
            None => self.0.get(""),
        }
    }

    /// The options of the namespace `name`.
    pub(super) fn named(&self, name: &str) -> Option<&ChannelOptions> {
        self.0.get(name).map(|options| &**options)
    }

    /// Whether `is_meant` holds for one of them.
    pub(crate) fn any(&self, is_meant: impl Fn(&ChannelOptions) -> bool) -> bool {
        self.0.values().any(|options| is_meant(options))
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
