//! Publications and client info.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::protocol::raw;

messages! {
    /// A message in a channel.
    pub(crate) struct Publication {
        /// What was published.
        #[prost(bytes = "bytes", tag = "4")]
        #[serde(with = "raw")]
        pub(crate) data: Bytes,
        /// Which client published it; missing if the application did.
        #[prost(message, optional, tag = "5")]
        pub(crate) info: Option<ClientInfo>,
        /// Its place in the channel's stream; 0: it is not stored.
        #[prost(uint64, tag = "6")]
        pub(crate) offset: u64,
        /// What the application wants to go with it.
        #[prost(btree_map = "string, string", tag = "7")]
        pub(crate) tags: BTreeMap<String, String>,
        /// When it was published, in UNIX milliseconds.
        #[prost(int64, tag = "9")]
        pub(crate) time: i64,
    }

    /// The info of a client in a channel.
    pub(crate) struct ClientInfo {
        /// The user, as the application knows it; empty: anonymous.
        #[prost(string, tag = "1")]
        pub(crate) user: String,
        /// The id of the connection.
        #[prost(string, tag = "2")]
        pub(crate) client: String,
        /// The connection's info, set by the application.
        #[prost(bytes = "bytes", tag = "3")]
        #[serde(with = "raw")]
        pub(crate) conn_info: Bytes,
        /// The client's info in this channel, set by the application.
        #[prost(bytes = "bytes", tag = "4")]
        #[serde(with = "raw")]
        pub(crate) chan_info: Bytes,
    }
}
