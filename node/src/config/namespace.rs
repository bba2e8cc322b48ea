//! Namespaces: the options of each with their defaults, how they are written in the file, and how they are shown.
//!
//! In one file, so that a new option has one place beside its check in `check/channels.rs`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use causeway_conf::Effective;
use causeway_conf::Span;
use serde::Deserialize;

/// The separator between a namespace and the rest of a channel's name.
const NAMESPACE_END: char = ':';

pub(super) const SUBSCRIBE: SubscribeAccess = SubscribeAccess::Token;
pub(super) const USER_LIMITED: bool = false;
pub(super) const PUBLISH: PublishAccess = PublishAccess::Nobody;
pub(super) const READ_PRESENCE: ReadAccess = ReadAccess::Subscribers;
pub(super) const READ_HISTORY: ReadAccess = ReadAccess::Subscribers;
pub(super) const RECOVERY: bool = false;
pub(super) const PRESENCE: bool = false;
pub(super) const LIFECYCLE: bool = false;
pub(super) const JOIN_LEAVE: bool = false;
pub(super) const FORCE_PUSH_JOIN_LEAVE: bool = false;
pub(super) const DATA: DataKind = DataKind::Json;
pub(super) const SLOW: SlowReader = SlowReader::Disconnect;
pub(super) const ACK_WITH_HISTORY: Ack = Ack::Stored;
pub(super) const ACK_WITHOUT_HISTORY: Ack = Ack::Fast;

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

/// A namespace as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawNamespace {
    pub(super) name: Option<String>,
    pub(super) subscribe: Option<SubscribeAccess>,
    pub(super) user_limited: Option<bool>,
    pub(super) publish: Option<PublishAccess>,
    pub(super) read_presence: Option<ReadAccess>,
    pub(super) read_history: Option<ReadAccess>,
    pub(super) history: Option<RawHistory>,
    pub(super) recovery: Option<bool>,
    pub(super) presence: Option<bool>,
    pub(super) join_leave: Option<bool>,
    pub(super) force_push_join_leave: Option<bool>,
    pub(super) lifecycle: Option<bool>,
    pub(super) data: Option<DataKind>,
    pub(super) slow: Option<SlowReader>,
    pub(super) ack: Option<Ack>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHistory {
    pub(super) size: u64,
    pub(super) lifetime: Span,
    pub(super) meta_lifetime: Option<Span>,
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

impl ChannelOptions {
    /// What applies, in the form of the file.
    pub(super) fn effective(&self) -> Effective {
        let Self {
            namespace,
            subscribe,
            user_limited,
            publish,
            read_presence,
            read_history,
            history,
            recovery,
            presence,
            join_leave,
            force_push_join_leave,
            lifecycle,
            data,
            slow,
            ack,
        } = self;
        let history = Effective::option(history.as_ref(), |history| {
            let HistoryOptions {
                size,
                lifetime,
                meta_lifetime,
            } = history;
            Effective::map([
                ("size", Effective::plain(size)),
                ("lifetime", Effective::span(*lifetime)),
                ("meta_lifetime", Effective::span(*meta_lifetime)),
            ])
        });
        Effective::map([
            ("name", Effective::text(namespace)),
            ("subscribe", Effective::variant(subscribe)),
            ("user_limited", Effective::plain(user_limited)),
            ("publish", Effective::variant(publish)),
            ("read_presence", Effective::variant(read_presence)),
            ("read_history", Effective::variant(read_history)),
            ("history", history),
            ("recovery", Effective::plain(recovery)),
            ("presence", Effective::plain(presence)),
            ("join_leave", Effective::plain(join_leave)),
            (
                "force_push_join_leave",
                Effective::plain(force_push_join_leave),
            ),
            ("lifecycle", Effective::plain(lifecycle)),
            ("data", Effective::variant(data)),
            ("slow", Effective::variant(slow)),
            ("ack", Effective::variant(ack)),
        ])
    }
}
