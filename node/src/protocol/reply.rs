//! Replies to commands.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::protocol::ClientInfo;
use crate::protocol::ErrorCode;
use crate::protocol::Publication;
use crate::protocol::Push;
use crate::protocol::ServerSub;
use crate::protocol::SubscribeResult;
use crate::protocol::raw;
use crate::protocol::server_subs;

/// The reply to the command with the same id, or a push. Empty it is a ping.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Reply {
    /// The id of the command; 0: it is a push.
    #[prost(uint32, tag = "1")]
    pub(crate) id: u32,
    /// The outcome.
    #[prost(
        oneof = "Outcome",
        tags = "2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15"
    )]
    pub(crate) outcome: Option<Outcome>,
}

/// The content of a reply.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Outcome {
    /// The command was refused.
    #[prost(message, tag = "2")]
    Error(ProtocolError),
    /// A push: it is no reply to a command.
    #[prost(message, tag = "4")]
    Push(Push),
    #[prost(message, tag = "5")]
    Connect(ConnectResult),
    #[prost(message, tag = "6")]
    Subscribe(SubscribeResult),
    #[prost(message, tag = "7")]
    Unsubscribe(UnsubscribeResult),
    #[prost(message, tag = "8")]
    Publish(PublishResult),
    #[prost(message, tag = "9")]
    Presence(PresenceResult),
    #[prost(message, tag = "10")]
    PresenceStats(PresenceStatsResult),
    #[prost(message, tag = "11")]
    History(HistoryResult),
    #[prost(message, tag = "12")]
    Ping(PingResult),
    #[prost(message, tag = "13")]
    Rpc(RpcResult),
    #[prost(message, tag = "14")]
    Refresh(RefreshResult),
    #[prost(message, tag = "15")]
    SubRefresh(SubRefreshResult),
}

json_with_body! {
    Reply { id } outcome: Outcome {
        "error" => Error,
        "push" => Push,
        "connect" => Connect,
        "subscribe" => Subscribe,
        "unsubscribe" => Unsubscribe,
        "publish" => Publish,
        "presence" => Presence,
        "presence_stats" => PresenceStats,
        "history" => History,
        "ping" => Ping,
        "rpc" => Rpc,
        "refresh" => Refresh,
        "sub_refresh" => SubRefresh,
    }
}

impl Reply {
    /// A push.
    pub(crate) fn push(push: Push) -> Self {
        Self {
            id: 0,
            outcome: Some(Outcome::Push(push)),
        }
    }
}

impl From<ErrorCode> for ProtocolError {
    fn from(code: ErrorCode) -> Self {
        Self {
            code: code as u32,
            message: code.message().to_owned(),
            temporary: code.is_temporary(),
        }
    }
}

messages! {
    /// Why a command was refused.
    pub(crate) struct ProtocolError {
        /// One of [`ErrorCode`], or the application's own.
        #[prost(uint32, tag = "1")]
        pub(crate) code: u32,
        /// As text.
        #[prost(string, tag = "2")]
        pub(crate) message: String,
        /// Whether the client may try again.
        #[prost(bool, tag = "3")]
        pub(crate) temporary: bool,
    }

    /// The client is connected.
    pub(crate) struct ConnectResult {
        /// The id of the connection.
        #[prost(string, tag = "1")]
        pub(crate) client: String,
        /// Which server this is.
        #[prost(string, tag = "2")]
        pub(crate) version: String,
        /// Whether the connection ends after `ttl` seconds unless it is refreshed.
        #[prost(bool, tag = "3")]
        pub(crate) expires: bool,
        #[prost(uint32, tag = "4")]
        pub(crate) ttl: u32,
        /// From the application.
        #[prost(bytes = "bytes", tag = "5")]
        #[serde(with = "raw")]
        pub(crate) data: Bytes,
        /// Server-side subscriptions.
        #[prost(message, repeated, tag = "6")]
        #[serde(with = "server_subs")]
        pub(crate) subs: Vec<ServerSub>,
        /// Every how many seconds the client is pinged.
        #[prost(uint32, tag = "7")]
        pub(crate) ping: u32,
        /// Whether pongs are expected.
        #[prost(bool, tag = "8")]
        pub(crate) pong: bool,
        /// Names the connection in requests of its own (emulation).
        #[prost(string, tag = "9")]
        pub(crate) session: String,
        /// Which node holds it (emulation).
        #[prost(string, tag = "10")]
        pub(crate) node: String,
        /// The node's clock, in UNIX milliseconds.
        #[prost(int64, tag = "11")]
        pub(crate) time: i64,
    }

    /// The client is unsubscribed from a channel.
    pub(crate) struct UnsubscribeResult {}

    /// The publication is on its way.
    pub(crate) struct PublishResult {}

    /// The presence of a channel.
    pub(crate) struct PresenceResult {
        /// By client id.
        #[prost(btree_map = "string, message", tag = "1")]
        pub(crate) presence: BTreeMap<String, ClientInfo>,
    }

    /// How many are in a channel.
    pub(crate) struct PresenceStatsResult {
        #[prost(uint32, tag = "1")]
        pub(crate) num_clients: u32,
        #[prost(uint32, tag = "2")]
        pub(crate) num_users: u32,
    }

    /// What was said in a channel, and how far its stream has got.
    pub(crate) struct HistoryResult {
        #[prost(message, repeated, tag = "1")]
        pub(crate) publications: Vec<Publication>,
        #[prost(string, tag = "2")]
        pub(crate) epoch: String,
        #[prost(uint64, tag = "3")]
        pub(crate) offset: u64,
    }

    /// The node is there.
    pub(crate) struct PingResult {}

    /// The response of the application.
    pub(crate) struct RpcResult {
        #[prost(bytes = "bytes", tag = "1")]
        #[serde(with = "raw")]
        pub(crate) data: Bytes,
    }

    /// The connection lives on.
    pub(crate) struct RefreshResult {
        #[prost(string, tag = "1")]
        pub(crate) client: String,
        #[prost(string, tag = "2")]
        pub(crate) version: String,
        #[prost(bool, tag = "3")]
        pub(crate) expires: bool,
        #[prost(uint32, tag = "4")]
        pub(crate) ttl: u32,
    }

    /// The subscription lives on.
    pub(crate) struct SubRefreshResult {
        #[prost(bool, tag = "1")]
        pub(crate) expires: bool,
        #[prost(uint32, tag = "2")]
        pub(crate) ttl: u32,
    }
}
