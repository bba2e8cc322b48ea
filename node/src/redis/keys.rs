//! Every name that the node itself uses in Redis, all with one prefix: `broker.prefix` and a `:`.
//!
//! Within the node, its own channels begin with [`RESERVED_PREFIX`] whatever the setting is; the names are translated where
//! they are sent to Redis and received from it. Relay channels are the same on both sides.
//!
//! Invariant: no name of one prefix is a name of another one, since a prefix contains no `:`.

use std::borrow::Cow;
use std::sync::Arc;

use super::slot::Slot;
use crate::config::RelayPubSub;
use crate::protocol::channel::ChannelName;
use crate::protocol::channel::RESERVED_PREFIX;
use crate::protocol::channel::tag;
use crate::protocol::instance::Instance;

/// The names of one deployment.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    /// With the `:`.
    prefix: Arc<str>,
    /// `None`: they are not in a cluster.
    cluster: Option<RelayPubSub>,
}

/// How a channel travels through Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PubSub {
    /// `PUBLISH`, `SUBSCRIBE`, `UNSUBSCRIBE`.
    Classic,
    /// `SPUBLISH`, `SSUBSCRIBE`, `SUNSUBSCRIBE`: on the server that has its slot.
    Sharded,
}

/// The channel for the probes of the process `instance` of node `node_id`.
///
/// `instance` is random: two nodes with the same id by mistake must not receive each other's probes.
pub(crate) fn probe_channel(node_id: &str, instance: u64) -> ChannelName {
    let name = format!("{RESERVED_PREFIX}probe:{node_id}:{instance:016x}");
    ChannelName::new(&name).expect("a node id has at most 64 bytes")
}

/// The same in a cluster, in a slot that `is_wanted` is true for; `None` if there is none.
pub(crate) fn probe_channel_in(
    node_id: &str,
    instance: u64,
    is_wanted: impl Fn(Slot) -> bool,
) -> Option<ChannelName> {
    let tag = tag_in(is_wanted)?;
    let name = format!("{RESERVED_PREFIX}probe:{node_id}:{instance:016x}:{{{tag}}}");
    Some(ChannelName::new(&name).expect("a node id has at most 64 bytes"))
}

/// The control channel of `instance`.
pub(crate) fn control_channel(instance: Instance) -> ChannelName {
    let name = format!("{RESERVED_PREFIX}node:{instance}");
    ChannelName::new(&name).expect("an instance has 16 characters")
}

/// The channel for the marks of handoffs, to which every node is subscribed on every server.
pub(crate) fn handoff_marks() -> ChannelName {
    ChannelName::new(HANDOFF_MARKS).expect("it is short")
}

/// The texts that are tried until one is in a wanted slot: each slot has one among them.
const TAGS_MAX: u32 = 400_000;

const HANDOFF_MARKS: &str = "causeway:handoff";

impl PubSub {
    pub(crate) fn publish(self) -> &'static str {
        match self {
            Self::Classic => "PUBLISH",
            Self::Sharded => "SPUBLISH",
        }
    }

    pub(crate) fn subscribe(self) -> &'static str {
        match self {
            Self::Classic => "SUBSCRIBE",
            Self::Sharded => "SSUBSCRIBE",
        }
    }

    pub(crate) fn unsubscribe(self) -> &'static str {
        match self {
            Self::Classic => "UNSUBSCRIBE",
            Self::Sharded => "SUNSUBSCRIBE",
        }
    }
}

/// The channel for the marks of handoffs behind publications on channels of `slot`, in a cluster.
pub(crate) fn handoff_marks_in(slot: Slot) -> ChannelName {
    let tag = tag_in(|tagged| tagged == slot).unwrap_or_default();
    let name = format!("{HANDOFF_MARKS}:{{{tag}}}");
    ChannelName::new(&name).expect("it is short")
}

/// Whether `channel` is one of those.
pub(crate) fn is_handoff_marks(channel: &ChannelName) -> bool {
    channel.as_str().starts_with(HANDOFF_MARKS)
}

/// A text whose slot `is_wanted` is true for; it is the same on all nodes.
fn tag_in(is_wanted: impl Fn(Slot) -> bool) -> Option<String> {
    let mut tags = (0..TAGS_MAX).map(|tag| format!("{tag:x}"));
    tags.find(|tag| is_wanted(Slot::of(tag.as_bytes())))
}

impl Keys {
    /// The names that begin with `prefix`, which contains no `:`.
    pub(crate) fn new(prefix: &str) -> Self {
        let prefix = format!("{prefix}:").into();
        Self {
            prefix,
            cluster: None,
        }
    }

    /// The same in a cluster.
    pub(crate) fn in_cluster(prefix: &str, relay_pubsub: RelayPubSub) -> Self {
        Self {
            cluster: Some(relay_pubsub),
            ..Self::new(prefix)
        }
    }

    pub(crate) fn is_in_cluster(&self) -> bool {
        self.cluster.is_some()
    }

    /// How `channel` travels.
    pub(crate) fn pubsub(&self, channel: &ChannelName) -> PubSub {
        match self.cluster {
            None => PubSub::Classic,
            Some(RelayPubSub::Classic) if !channel.is_reserved() => PubSub::Classic,
            Some(_) => PubSub::Sharded,
        }
    }

    /// The slot of `channel`, and of all that is kept of it.
    pub(crate) fn slot(&self, channel: &ChannelName) -> Slot {
        Slot::of(self.channel(channel).as_bytes())
    }

    /// What Redis knows `channel` by.
    pub(crate) fn channel<'a>(&self, channel: &'a ChannelName) -> Cow<'a, str> {
        let name = channel.as_str();
        match name.strip_prefix(RESERVED_PREFIX) {
            Some(rest) if *self.prefix != *RESERVED_PREFIX => {
                format!("{}{rest}", self.prefix).into()
            }
            _ => name.into(),
        }
    }

    /// What the node knows a channel by whose name in Redis is `name`.
    pub(crate) fn channel_of<'a>(&self, name: &'a str) -> Cow<'a, str> {
        match name.strip_prefix(&*self.prefix) {
            Some(rest) if *self.prefix != *RESERVED_PREFIX => {
                format!("{RESERVED_PREFIX}{rest}").into()
            }
            _ => name.into(),
        }
    }

    /// The stream of `channel`. The braces keep all keys of a channel in one slot of a cluster, so that one script
    /// may use them together.
    pub(crate) fn stream(&self, channel: &ChannelName) -> String {
        self.tagged("st", channel.as_str())
    }

    /// The position of the stream of `channel`, and its server.
    pub(crate) fn stream_meta(&self, channel: &ChannelName) -> String {
        self.tagged("me", channel.as_str())
    }

    /// The result of the publication with this idempotency key.
    pub(crate) fn past_result(&self, channel: &ChannelName, key: &str) -> String {
        format!("{}:{key}", self.tagged("id", channel.as_str()))
    }

    /// The leases of live nodes: a sorted set by when they end. The braces keep all keys of leases in one slot of a
    /// cluster, so that one script may use them together.
    pub(crate) fn live_leases(&self) -> String {
        format!("{}{{no}}:live", self.prefix)
    }

    /// Leases that have lapsed and are being swept, by when a sweeper began.
    pub(crate) fn dead_leases(&self) -> String {
        format!("{}{{no}}:dead", self.prefix)
    }

    /// The description of the holder of each live lease.
    pub(crate) fn lease_info(&self) -> String {
        format!("{}{{no}}:info", self.prefix)
    }

    /// Marks for a time that this lease was swept.
    pub(crate) fn swept_lease(&self, lease: &str) -> String {
        format!("{}{{no}}:swept:{lease}", self.prefix)
    }

    /// All entries under this lease.
    pub(crate) fn lease_entries(&self, lease: &str) -> String {
        format!("{}ix:{{{lease}}}", self.prefix)
    }

    /// The leases of nodes that have clients of this user.
    pub(crate) fn user_leases(&self, user: &str) -> String {
        self.tagged("us", user)
    }

    /// The stream of lifecycle events. Its scripts derive the other keys with this tag from it.
    pub(crate) fn lifecycle_events(&self) -> String {
        format!("{}{{lc}}:events", self.prefix)
    }

    /// The lease of each holder of entries there.
    pub(crate) fn lifecycle_holders(&self) -> String {
        format!("{}{{lc}}:holders", self.prefix)
    }

    /// The key with which a node checks that it may write lifecycle events. In a cluster it is in the slot of the other
    /// keys of that check, which are used together.
    pub(crate) fn lifecycle_trial(&self, instance: Instance) -> String {
        match self.cluster {
            None => format!("{}{{lc}}:try:{instance}", self.prefix),
            Some(_) => format!("{}lc:{{try:{instance}}}", self.prefix),
        }
    }

    /// The members of this channel.
    pub(crate) fn channel_members(&self, channel: &ChannelName) -> String {
        self.tagged("pr", channel.as_str())
    }

    /// The values of this owner, by their names.
    pub(crate) fn owner_values(&self, owner: &str) -> String {
        self.tagged("va", owner)
    }

    /// When each of them ends.
    pub(crate) fn owner_value_ends(&self, owner: &str) -> String {
        self.tagged("vx", owner)
    }

    /// The unique name of a connection in `CLIENT LIST`.
    pub(crate) fn connection(&self, node_id: &str, role: &str, instance: u64) -> String {
        format!("{}{node_id}:{role}:{instance:016x}", self.prefix)
    }

    fn tagged(&self, kind: &str, name: &str) -> String {
        format!("{}{kind}:{}", self.prefix, tag(name))
    }
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

    fn of_channel(keys: &Keys, name: &str) -> Vec<String> {
        let channel = ChannelName::new(name).unwrap();
        let wire = ChannelName::wire(&channel);
        vec![
            keys.stream(&channel),
            keys.stream_meta(&channel),
            keys.past_result(&channel, "}{"),
            keys.channel_members(&channel),
            keys.channel(&wire).into_owned(),
            keys.user_leases(name),
            keys.owner_values(name),
            keys.owner_value_ends(name),
        ]
    }

    #[test]
    fn all_keys_of_one_name_are_in_one_slot_even_if_it_contains_braces() {
        let keys = Keys::new("causeway");
        for name in ["chat:1", "}", "}x", "{}", "a}b", "{a}", "%", "%}", "}}{{"] {
            let keys = of_channel(&keys, name);
            for key in &keys {
                assert_eq!(hashed(key), hashed(&keys[0]), "{key}");
                assert_ne!(hashed(key), key, "{key} is hashed as a whole");
            }
        }
    }

    #[test]
    fn different_names_have_different_keys() {
        let names = ["}", "%}", "%%}", "%", "%%", "a", "%a"];
        let keys = Keys::new("causeway");
        let keys: std::collections::BTreeSet<String> = names
            .iter()
            .map(|name| keys.stream(&ChannelName::new(name).unwrap()))
            .collect();
        assert_eq!(keys.len(), names.len());
    }

    #[test]
    fn names_are_reserved_and_fit_even_for_the_longest_node_id() {
        let id = "n".repeat(64);
        assert!(probe_channel(&id, u64::MAX).is_reserved());
        let connection = Keys::new(&id).connection(&id, "publish-63", u64::MAX);
        assert!(connection.len() <= 255);
    }

    #[test]
    fn every_name_begins_with_the_prefix() {
        let (keys, instance) = (Keys::new("staging"), Instance::random());
        let mut names = of_channel(&keys, "a");
        names.extend([
            keys.live_leases(),
            keys.dead_leases(),
            keys.lease_info(),
            keys.swept_lease("a"),
            keys.lease_entries("a"),
            keys.lifecycle_events(),
            keys.lifecycle_holders(),
            keys.lifecycle_trial(instance),
            keys.connection("n1", "reader", 7),
            keys.channel(&control_channel(instance)).into_owned(),
            keys.channel(&probe_channel("n1", 7)).into_owned(),
        ]);
        for name in names {
            assert!(name.starts_with("staging:"), "{name}");
        }
    }

    #[test]
    fn every_slot_has_a_channel_for_probes_and_one_for_marks() {
        let keys = Keys::in_cluster("staging", RelayPubSub::Sharded);
        let mut missing: std::collections::HashSet<usize> =
            (0..crate::redis::slot::SLOTS).collect();
        for tag in 0..TAGS_MAX {
            missing.remove(&Slot::of(format!("{tag:x}").as_bytes()).index());
        }
        assert!(missing.is_empty(), "{missing:?}");
        let slot = keys.slot(&ChannelName::new("global").unwrap());
        let marks = handoff_marks_in(slot);
        assert!(is_handoff_marks(&marks) && is_handoff_marks(&handoff_marks()));
        assert_eq!(keys.slot(&marks), slot);
        let probes = probe_channel_in("n1", 7, |wanted| wanted == slot).unwrap();
        assert_eq!(keys.slot(&probes), slot);
        assert_eq!(probe_channel_in("n1", 7, |_| false), None);
    }

    #[test]
    fn in_a_cluster_only_relay_channels_may_travel_classically() {
        let relay = ChannelName::new("global").unwrap();
        let wire = ChannelName::wire(&relay);
        let classic = Keys::in_cluster("causeway", RelayPubSub::Classic);
        assert_eq!(classic.pubsub(&relay), PubSub::Classic);
        assert_eq!(classic.pubsub(&wire), PubSub::Sharded);
        let sharded = Keys::in_cluster("causeway", RelayPubSub::Sharded);
        assert_eq!(sharded.pubsub(&relay), PubSub::Sharded);
        assert_eq!(Keys::new("causeway").pubsub(&wire), PubSub::Classic);
    }

    #[test]
    fn own_channels_are_translated_both_ways_and_relay_channels_are_not() {
        for prefix in ["causeway", "staging", "c", "causeway.2"] {
            let keys = Keys::new(prefix);
            let wire = ChannelName::wire(&ChannelName::new("chat:1").unwrap());
            let in_redis = keys.channel(&wire);
            assert_eq!(in_redis, format!("{prefix}:ch:{{chat:1}}"));
            assert_eq!(keys.channel_of(&in_redis), wire.as_str());
            let relay = ChannelName::new("global").unwrap();
            assert_eq!(keys.channel(&relay), "global");
            assert_eq!(keys.channel_of("global"), "global");
        }
    }
}
