//! Every name that the node itself uses in Redis, all with one prefix.

use crate::protocol::channel::ChannelName;
use crate::protocol::channel::RESERVED_PREFIX;
use crate::protocol::channel::tag;
use crate::protocol::instance::Instance;

/// The channel for the probes of the process `instance` of node `node_id`.
///
/// `instance` is random: two nodes with the same id by mistake must not receive each other's probes.
pub(crate) fn probe_channel(node_id: &str, instance: u64) -> ChannelName {
    let name = format!("{RESERVED_PREFIX}probe:{node_id}:{instance:016x}");
    ChannelName::new(&name).expect("a node id has at most 64 bytes")
}

/// The stream of `channel`. The braces keep all keys of a channel in one slot of a cluster, so that one script
/// may use them together.
pub(crate) fn stream(channel: &ChannelName) -> String {
    format!("{RESERVED_PREFIX}st:{}", tag(channel.as_str()))
}

/// The position of the stream of `channel`, and its server.
pub(crate) fn stream_meta(channel: &ChannelName) -> String {
    format!("{RESERVED_PREFIX}me:{}", tag(channel.as_str()))
}

/// The result of the publication with this idempotency key.
pub(crate) fn past_result(channel: &ChannelName, key: &str) -> String {
    format!("{RESERVED_PREFIX}id:{}:{key}", tag(channel.as_str()))
}

/// The leases of live nodes: a sorted set by when they end. The braces keep all keys of leases in one slot of a
/// cluster, so that one script may use them together.
pub(crate) const LIVE_LEASES: &str = "causeway:{no}:live";

/// Leases that have lapsed and are being swept, by when a sweeper began.
pub(crate) const DEAD_LEASES: &str = "causeway:{no}:dead";

/// The description of the holder of each live lease.
pub(crate) const LEASE_INFO: &str = "causeway:{no}:info";

/// Marks for a time that this lease was swept.
pub(crate) fn swept_lease(lease: &str) -> String {
    format!("causeway:{{no}}:swept:{lease}")
}

/// All entries under this lease.
pub(crate) fn lease_entries(lease: &str) -> String {
    format!("causeway:ix:{{{lease}}}")
}

/// The leases of nodes that have clients of this user.
pub(crate) fn user_leases(user: &str) -> String {
    format!("causeway:us:{}", tag(user))
}

/// The stream of lifecycle events. Its scripts contain the names of the other keys with this tag.
pub(crate) const LIFECYCLE_EVENTS: &str = "causeway:{lc}:events";

/// The lease of each holder of entries there.
pub(crate) const LIFECYCLE_HOLDERS: &str = "causeway:{lc}:holders";

/// The key with which a node checks that it may write lifecycle events.
pub(crate) fn lifecycle_trial(instance: Instance) -> String {
    format!("causeway:{{lc}}:try:{instance}")
}

/// The members of this channel.
pub(crate) fn channel_members(channel: &ChannelName) -> String {
    format!("causeway:pr:{}", tag(channel.as_str()))
}

/// The values of this owner, by their names.
pub(crate) fn owner_values(owner: &str) -> String {
    format!("causeway:va:{}", tag(owner))
}

/// When each of them ends.
pub(crate) fn owner_value_ends(owner: &str) -> String {
    format!("causeway:vx:{}", tag(owner))
}

/// The control channel of `instance`.
pub(crate) fn control_channel(instance: Instance) -> ChannelName {
    let name = format!("{RESERVED_PREFIX}node:{instance}");
    ChannelName::new(&name).expect("an instance has 16 characters")
}

/// The channel for the marks of handoffs, to which every node is subscribed on every server.
pub(crate) fn handoff_marks() -> ChannelName {
    ChannelName::new(&format!("{RESERVED_PREFIX}handoff")).expect("it is short")
}

/// The unique name of a connection in `CLIENT LIST`.
pub(crate) fn connection_name(node_id: &str, role: &str, instance: u64) -> String {
    format!("{RESERVED_PREFIX}{node_id}:{role}:{instance:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The part of a key that Redis Cluster hashes: the text in its first braces, unless empty.
    fn hashed(key: &str) -> &str {
        let tag = key
            .split_once('{')
            .and_then(|(_, rest)| rest.split_once('}'));
        tag.map_or(key, |(tag, _)| if tag.is_empty() { key } else { tag })
    }

    #[test]
    fn all_keys_of_one_name_are_in_one_slot_even_if_it_contains_braces() {
        for name in ["chat:1", "}", "}x", "{}", "a}b", "{a}", "%", "%}", "}}{{"] {
            let channel = ChannelName::new(name).unwrap();
            let keys = [
                stream(&channel),
                stream_meta(&channel),
                past_result(&channel, "}{"),
                channel_members(&channel),
                ChannelName::wire(&channel).to_string(),
                user_leases(name),
                owner_values(name),
                owner_value_ends(name),
            ];
            for key in &keys {
                assert_eq!(hashed(key), hashed(&keys[0]), "{key}");
                assert_ne!(hashed(key), key, "{key} is hashed as a whole");
            }
        }
    }

    #[test]
    fn different_names_have_different_keys() {
        let names = ["}", "%}", "%%}", "%", "%%", "a", "%a"];
        let keys: std::collections::BTreeSet<String> = names
            .iter()
            .map(|name| stream(&ChannelName::new(name).unwrap()))
            .collect();
        assert_eq!(keys.len(), names.len());
    }

    #[test]
    fn names_are_reserved_and_fit_even_for_the_longest_node_id() {
        let id = "n".repeat(64);
        assert!(probe_channel(&id, u64::MAX).is_reserved());
        assert!(connection_name(&id, "publish-63", u64::MAX).len() <= 255);
    }
}
