//! Server-side subscriptions in a reply: a map from channels, in both codecs.
//!
//! In Protobuf a map is a list of entries. prost's own map leaves out a value without any field, which is right, and
//! which the JavaScript SDK takes for no value at all: here it is always written.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Deserializer;
use serde::Serializer;

use crate::protocol::SubscribeResult;

/// One channel.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ServerSub {
    #[prost(string, tag = "1")]
    pub(crate) channel: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) result: Option<SubscribeResult>,
}

impl ServerSub {
    /// The value of the map for these channels.
    pub(crate) fn list(subs: BTreeMap<String, SubscribeResult>) -> Vec<Self> {
        let entry = |(channel, result)| Self {
            channel,
            result: Some(result),
        };
        subs.into_iter().map(entry).collect()
    }
}

/// Writes an object, a key for each channel.
pub(super) fn serialize<S: Serializer>(
    subs: &[ServerSub],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(subs.iter().map(|sub| (&sub.channel, &sub.result)))
}

/// Reads it.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<ServerSub>, D::Error> {
    BTreeMap::deserialize(deserializer).map(ServerSub::list)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_result_without_a_field_is_there_all_the_same() {
        let subs = BTreeMap::from([("news".to_owned(), SubscribeResult::default())]);
        let [sub] = &ServerSub::list(subs)[..] else {
            panic!("there is one")
        };
        // The key, and a value of no bytes.
        assert_eq!(sub.encode_to_vec(), b"\x0a\x04news\x12\x00");
    }
}
