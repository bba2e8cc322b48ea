//! Every name that the node itself uses in Redis, all with one prefix.

use crate::channel::ChannelName;
use crate::channel::RESERVED_PREFIX;
use crate::channel::WIRE_PREFIX;

/// The channel on which the process `instance` of node `node_id` probes its own way through Redis.
///
/// `instance` is random: two nodes that were given one id by mistake must not answer each other's probes.
pub(crate) fn probe_channel(node_id: &str, instance: u64) -> ChannelName {
    let name = format!("{RESERVED_PREFIX}probe:{node_id}:{instance:016x}");
    ChannelName::new(&name).expect("a node id has at most 64 bytes")
}

/// The names on the wire of channels that match a glob `pattern`.
pub(crate) fn wire_pattern(pattern: &str) -> String {
    format!("{WIRE_PREFIX}{{{pattern}}}")
}

/// The publications that `channel` has kept. The braces keep all that belongs to one channel in one slot
/// of a cluster, so that one script may use it together.
pub(crate) fn stream(channel: &ChannelName) -> String {
    format!("{RESERVED_PREFIX}st:{{{channel}}}")
}

/// Where the stream of `channel` is, and on which server.
pub(crate) fn stream_meta(channel: &ChannelName) -> String {
    format!("{RESERVED_PREFIX}me:{{{channel}}}")
}

/// What the publication with this idempotency key came to.
pub(crate) fn past_result(channel: &ChannelName, key: &str) -> String {
    format!("{RESERVED_PREFIX}id:{{{channel}}}:{key}")
}

/// What `CLIENT LIST` shows of a connection; unique to it.
pub(crate) fn connection_name(node_id: &str, role: &str, instance: u64) -> String {
    format!("{RESERVED_PREFIX}{node_id}:{role}:{instance:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_reserved_and_fit_even_for_the_longest_node_id() {
        let id = "n".repeat(64);
        assert!(probe_channel(&id, u64::MAX).is_reserved());
        assert!(connection_name(&id, "lane-63", u64::MAX).len() <= 255);
    }
}
