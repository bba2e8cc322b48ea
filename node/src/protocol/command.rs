//! What a client asks for.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::protocol::raw;

/// One command of a client. Without an id it gets no reply, and without a request too it is a pong.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Command {
    /// Which reply is for it; 0: none.
    #[prost(uint32, tag = "1")]
    pub(crate) id: u32,
    /// The request.
    #[prost(oneof = "Request", tags = "4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15")]
    pub(crate) request: Option<Request>,
}

/// What a command is about.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Request {
    /// First of all.
    #[prost(message, tag = "4")]
    Connect(ConnectRequest),
    /// Subscribe to a channel.
    #[prost(message, tag = "5")]
    Subscribe(SubscribeRequest),
    /// Unsubscribe from it.
    #[prost(message, tag = "6")]
    Unsubscribe(UnsubscribeRequest),
    /// Say something in a channel.
    #[prost(message, tag = "7")]
    Publish(PublishRequest),
    /// Request the presence of a channel.
    #[prost(message, tag = "8")]
    Presence(PresenceRequest),
    /// How many are in a channel?
    #[prost(message, tag = "9")]
    PresenceStats(PresenceStatsRequest),
    /// What was said in a channel?
    #[prost(message, tag = "10")]
    History(HistoryRequest),
    /// Is the node there?
    #[prost(message, tag = "11")]
    Ping(PingRequest),
    /// A message to the application without a reply.
    #[prost(message, tag = "12")]
    Send(SendRequest),
    /// Something for the application that needs one.
    #[prost(message, tag = "13")]
    Rpc(RpcRequest),
    /// A newer token for the connection.
    #[prost(message, tag = "14")]
    Refresh(RefreshRequest),
    /// A newer token for a subscription.
    #[prost(message, tag = "15")]
    SubRefresh(SubRefreshRequest),
}

json_with_body! {
    Command { id } request: Request {
        "connect" => Connect,
        "subscribe" => Subscribe,
        "unsubscribe" => Unsubscribe,
        "publish" => Publish,
        "presence" => Presence,
        "presence_stats" => PresenceStats,
        "history" => History,
        "ping" => Ping,
        "send" => Send,
        "rpc" => Rpc,
        "refresh" => Refresh,
        "sub_refresh" => SubRefresh,
    }
}

impl Command {
    /// Whether it is a pong.
    pub(crate) fn is_pong(&self) -> bool {
        self.id == 0 && self.request.is_none()
    }
}

messages! {
    /// The first command, with the client's credentials.
    pub(crate) struct ConnectRequest {
        /// A JSON Web Token; empty: none.
        #[prost(string, tag = "1")]
        pub(crate) token: String,
        /// For the application.
        #[prost(bytes = "bytes", tag = "2")]
        #[serde(with = "raw")]
        pub(crate) data: Bytes,
        /// Where server-side subscriptions of an earlier connection had got to.
        #[prost(btree_map = "string, message", tag = "3")]
        pub(crate) subs: BTreeMap<String, SubscribeRequest>,
        /// What the client is.
        #[prost(string, tag = "4")]
        pub(crate) name: String,
        /// Which one.
        #[prost(string, tag = "5")]
        pub(crate) version: String,
        /// What browsers cannot set on a WebSocket, for hooks.
        #[prost(btree_map = "string, string", tag = "6")]
        pub(crate) headers: BTreeMap<String, String>,
        /// Extensions that the client knows.
        #[prost(int64, tag = "7")]
        pub(crate) flag: i64,
    }

    /// Subscribes to a channel.
    pub(crate) struct SubscribeRequest {
        #[prost(string, tag = "1")]
        pub(crate) channel: String,
        /// A JSON Web Token for this channel; empty: none.
        #[prost(string, tag = "2")]
        pub(crate) token: String,
        /// Whether the client was here before and wants what it missed since `epoch` and `offset`.
        #[prost(bool, tag = "3")]
        pub(crate) recover: bool,
        #[prost(string, tag = "6")]
        pub(crate) epoch: String,
        #[prost(uint64, tag = "7")]
        pub(crate) offset: u64,
        /// For the application.
        #[prost(bytes = "bytes", tag = "8")]
        #[serde(with = "raw")]
        pub(crate) data: Bytes,
        /// Whether the client wants to get its position.
        #[prost(bool, tag = "9")]
        pub(crate) positioned: bool,
        /// Whether the client wants to be able to recover.
        #[prost(bool, tag = "10")]
        pub(crate) recoverable: bool,
        /// Whether the client wants join and leave events.
        #[prost(bool, tag = "11")]
        pub(crate) join_leave: bool,
        /// How publications may be shortened to what has changed.
        #[prost(string, tag = "12")]
        pub(crate) delta: String,
        /// Which publications the client wants.
        #[prost(message, optional, tag = "13")]
        pub(crate) tf: Option<FilterNode>,
        /// Extensions that the client knows.
        #[prost(int64, tag = "14")]
        pub(crate) flag: i64,
        /// The kind of channel that the client expects; 0: a stream.
        #[prost(int32, tag = "15")]
        #[serde(rename = "type")]
        pub(crate) kind: i32,
    }

    /// A filter of publications by tags. Its content is not parsed: filters are rejected.
    pub(crate) struct FilterNode {}

    /// Unsubscribes from a channel.
    pub(crate) struct UnsubscribeRequest {
        #[prost(string, tag = "1")]
        pub(crate) channel: String,
    }

    /// Asks to say something in a channel.
    pub(crate) struct PublishRequest {
        #[prost(string, tag = "1")]
        pub(crate) channel: String,
        #[prost(bytes = "bytes", tag = "2")]
        #[serde(with = "raw")]
        pub(crate) data: Bytes,
        /// The kind of channel that the client expects; 0: a stream.
        #[prost(int32, tag = "3")]
        #[serde(rename = "type")]
        pub(crate) kind: i32,
    }

    /// Requests the members of a channel.
    pub(crate) struct PresenceRequest {
        #[prost(string, tag = "1")]
        pub(crate) channel: String,
    }

    /// Asks how many are in a channel.
    pub(crate) struct PresenceStatsRequest {
        #[prost(string, tag = "1")]
        pub(crate) channel: String,
    }

    /// A place in a channel's stream.
    pub(crate) struct StreamPosition {
        #[prost(uint64, tag = "1")]
        pub(crate) offset: u64,
        #[prost(string, tag = "2")]
        pub(crate) epoch: String,
    }

    /// Asks what was said in a channel.
    pub(crate) struct HistoryRequest {
        #[prost(string, tag = "1")]
        pub(crate) channel: String,
        /// How many publications at most; 0: none, only the position; below 0: all.
        #[prost(int32, tag = "7")]
        pub(crate) limit: i32,
        /// Those after it, or before it if `reverse`; missing: from the beginning, or from the end.
        #[prost(message, optional, tag = "8")]
        pub(crate) since: Option<StreamPosition>,
        /// The newest first.
        #[prost(bool, tag = "9")]
        pub(crate) reverse: bool,
    }

    /// Asks whether the node is there.
    pub(crate) struct PingRequest {}

    /// Something for the application.
    pub(crate) struct SendRequest {
        #[prost(bytes = "bytes", tag = "1")]
        #[serde(with = "raw")]
        pub(crate) data: Bytes,
    }

    /// A question for the application.
    pub(crate) struct RpcRequest {
        #[prost(bytes = "bytes", tag = "1")]
        #[serde(with = "raw")]
        pub(crate) data: Bytes,
        #[prost(string, tag = "2")]
        pub(crate) method: String,
    }

    /// A newer token for the connection.
    pub(crate) struct RefreshRequest {
        #[prost(string, tag = "1")]
        pub(crate) token: String,
    }

    /// A newer token for a subscription.
    pub(crate) struct SubRefreshRequest {
        #[prost(string, tag = "1")]
        pub(crate) channel: String,
        #[prost(string, tag = "2")]
        pub(crate) token: String,
        /// The kind of channel that the client expects; 0: a stream.
        #[prost(int32, tag = "3")]
        #[serde(rename = "type")]
        pub(crate) kind: i32,
    }
}
