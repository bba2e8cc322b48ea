//! Pushes: messages to a client that are not replies.

use bytes::Bytes;

use crate::protocol::ClientInfo;
use crate::protocol::Publication;
use crate::protocol::ServerSub;
use crate::protocol::UnsubscribeCode;
use crate::protocol::raw;
use crate::protocol::server_subs;

/// Something that has happened, in a channel or to the connection.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Push {
    /// Where; empty: to the connection.
    #[prost(string, tag = "2")]
    pub(crate) channel: String,
    /// What.
    #[prost(oneof = "Event", tags = "4, 5, 6, 7, 8, 9, 10, 11, 12")]
    pub(crate) event: Option<Event>,
}

/// The content of a push.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Event {
    /// Somebody said something in the channel.
    #[prost(message, tag = "4")]
    Publication(Publication),
    /// A client joined the channel.
    #[prost(message, tag = "5")]
    Join(Join),
    /// Somebody left it.
    #[prost(message, tag = "6")]
    Leave(Leave),
    /// The client is unsubscribed from the channel.
    #[prost(message, tag = "7")]
    Unsubscribe(Unsubscribe),
    /// Something from the application, in no channel.
    #[prost(message, tag = "8")]
    Message(Message),
    /// The client is subscribed to a channel by the server.
    #[prost(message, tag = "9")]
    Subscribe(Subscribe),
    /// The client is connected without having asked (one-way transports).
    #[prost(message, tag = "10")]
    Connect(Connect),
    /// The client is disconnected (where the transport has no close codes).
    #[prost(message, tag = "11")]
    Disconnect(Disconnect),
    /// The connection lives on, without having asked.
    #[prost(message, tag = "12")]
    Refresh(Refresh),
}

json_with_body! {
    Push { channel } event: Event {
        "pub" => Publication,
        "join" => Join,
        "leave" => Leave,
        "unsubscribe" => Unsubscribe,
        "message" => Message,
        "subscribe" => Subscribe,
        "connect" => Connect,
        "disconnect" => Disconnect,
        "refresh" => Refresh,
    }
}

impl Push {
    /// `event` in `channel`.
    pub(crate) fn new(channel: &str, event: Event) -> Self {
        Self {
            channel: channel.to_owned(),
            event: Some(event),
        }
    }

    /// The client is unsubscribed from `channel`.
    pub(crate) fn unsubscribe(channel: &str, code: UnsubscribeCode) -> Self {
        let unsubscribe = Unsubscribe {
            code: code as u32,
            reason: code.reason().to_owned(),
        };
        Self::new(channel, Event::Unsubscribe(unsubscribe))
    }
}

messages! {
    /// A client joined.
    pub(crate) struct Join {
        #[prost(message, optional, tag = "1")]
        pub(crate) info: Option<ClientInfo>,
    }

    /// Somebody left.
    pub(crate) struct Leave {
        #[prost(message, optional, tag = "1")]
        pub(crate) info: Option<ClientInfo>,
    }

    /// A subscription has ended.
    pub(crate) struct Unsubscribe {
        /// One of [`UnsubscribeCode`], or the application's own: below 2500 it is for good.
        #[prost(uint32, tag = "2")]
        pub(crate) code: u32,
        #[prost(string, tag = "3")]
        pub(crate) reason: String,
    }

    /// A server-side subscription has begun.
    pub(crate) struct Subscribe {
        #[prost(bool, tag = "1")]
        pub(crate) recoverable: bool,
        #[prost(string, tag = "4")]
        pub(crate) epoch: String,
        #[prost(uint64, tag = "5")]
        pub(crate) offset: u64,
        #[prost(bool, tag = "6")]
        pub(crate) positioned: bool,
        /// From the application.
        #[prost(bytes = "bytes", tag = "7")]
        #[serde(with = "raw")]
        pub(crate) data: Bytes,
    }

    /// Something from the application.
    pub(crate) struct Message {
        #[prost(bytes = "bytes", tag = "1")]
        #[serde(with = "raw")]
        pub(crate) data: Bytes,
    }

    /// The [`ConnectResult`](crate::protocol::ConnectResult) for a unidirectional client.
    pub(crate) struct Connect {
        #[prost(string, tag = "1")]
        pub(crate) client: String,
        #[prost(string, tag = "2")]
        pub(crate) version: String,
        #[prost(bytes = "bytes", tag = "3")]
        #[serde(with = "raw")]
        pub(crate) data: Bytes,
        #[prost(message, repeated, tag = "4")]
        #[serde(with = "server_subs")]
        pub(crate) subs: Vec<ServerSub>,
        #[prost(bool, tag = "5")]
        pub(crate) expires: bool,
        #[prost(uint32, tag = "6")]
        pub(crate) ttl: u32,
        #[prost(uint32, tag = "7")]
        pub(crate) ping: u32,
        #[prost(bool, tag = "8")]
        pub(crate) pong: bool,
        #[prost(string, tag = "9")]
        pub(crate) session: String,
        #[prost(string, tag = "10")]
        pub(crate) node: String,
        #[prost(int64, tag = "11")]
        pub(crate) time: i64,
    }

    /// The client is disconnected.
    pub(crate) struct Disconnect {
        #[prost(uint32, tag = "1")]
        pub(crate) code: u32,
        #[prost(string, tag = "2")]
        pub(crate) reason: String,
        #[prost(bool, tag = "3")]
        pub(crate) reconnect: bool,
    }

    /// The connection lives on.
    pub(crate) struct Refresh {
        #[prost(bool, tag = "1")]
        pub(crate) expires: bool,
        #[prost(uint32, tag = "2")]
        pub(crate) ttl: u32,
    }
}
