//! The result of a subscription, which a reply, a push and a list of server-side subscriptions carry.

use bytes::Bytes;

use crate::protocol::Publication;
use crate::protocol::raw;

messages! {
    /// The client is subscribed to a channel.
    pub(crate) struct SubscribeResult {
        /// Whether the subscription ends after `ttl` seconds unless it is refreshed.
        #[prost(bool, tag = "1")]
        pub(crate) expires: bool,
        #[prost(uint32, tag = "2")]
        pub(crate) ttl: u32,
        /// Whether the client may come back to `epoch` and `offset` for what it missed.
        #[prost(bool, tag = "3")]
        pub(crate) recoverable: bool,
        #[prost(string, tag = "6")]
        pub(crate) epoch: String,
        /// What it missed, in order.
        #[prost(message, repeated, tag = "7")]
        pub(crate) publications: Vec<Publication>,
        /// Whether it has got everything that it missed.
        #[prost(bool, tag = "8")]
        pub(crate) recovered: bool,
        #[prost(uint64, tag = "9")]
        pub(crate) offset: u64,
        #[prost(bool, tag = "10")]
        pub(crate) positioned: bool,
        /// From the application.
        #[prost(bytes = "bytes", tag = "11")]
        #[serde(with = "raw")]
        pub(crate) data: Bytes,
        /// Whether it asked for what it missed.
        #[prost(bool, tag = "12")]
        pub(crate) was_recovering: bool,
    }
}
