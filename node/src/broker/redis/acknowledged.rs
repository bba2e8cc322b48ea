//! The channels in which a publish queue has lately acknowledged publications. No I/O, time is passed in.
//!
//! Nodes learn of a failover by Sentinels one after the other. A node that is late goes on publishing to the old
//! primary, which may be alive, and what that acknowledges is lost. Clients of other nodes that have subscribed on the
//! new primary already are not told of a new epoch a second time by that alone. So the late node, once it has learnt of
//! the failover, has a new epoch begin in each of these channels that was used on the new primary before the last
//! acknowledgement.

use std::collections::HashMap;
use std::mem;
use std::time::Duration;
use std::time::Instant;

use crate::protocol::channel::ChannelName;

/// How late a node may learn of a failover. Channels are forgotten after once or twice this time.
const LATE_MAX: Duration = Duration::from_secs(60);

/// The last publication in a channel that was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Last {
    pub(super) at: Instant,
    /// How long the channel's position is kept.
    pub(super) meta_ttl: Duration,
}

/// The channels of one queue.
///
/// Invariant: all of them were acknowledged on primaries of failovers up to `failover`.
#[derive(Debug, Default)]
pub(super) struct Acknowledged {
    /// `None` before the first primary.
    failover: Option<u64>,
    newer: HashMap<ChannelName, Last>,
    older: HashMap<ChannelName, Last>,
    /// When `newer` was empty last.
    turned_at: Option<Instant>,
}

impl Acknowledged {
    /// Notes a publication in `channel` that is acknowledged now, on the primary of the last failover.
    pub(super) fn note(&mut self, channel: &ChannelName, meta_ttl: Duration, now: Instant) {
        let turned_at = *self.turned_at.get_or_insert(now);
        if LATE_MAX <= now.saturating_duration_since(turned_at) {
            self.older = mem::take(&mut self.newer);
            self.turned_at = Some(now);
        }
        let last = Last { at: now, meta_ttl };
        match self.newer.get_mut(channel) {
            Some(known) => *known = last,
            None => {
                self.newer.insert(channel.clone(), last);
            }
        }
    }

    /// The channels to check on the primary of `failover`; none if it is that of the last one.
    pub(super) fn before(&self, failover: u64) -> Vec<(ChannelName, Last)> {
        if self.failover.is_none_or(|last| last == failover) {
            return Vec::new();
        }
        let older = { self.older.iter() }.filter(|(channel, _)| !self.newer.contains_key(*channel));
        { self.newer.iter().chain(older) }
            .map(|(channel, last)| (channel.clone(), *last))
            .collect()
    }

    /// All channels are checked: what is acknowledged from now on is on the primary of `failover`.
    pub(super) fn follow(&mut self, failover: u64) {
        if self.failover != Some(failover) {
            *self = Self {
                failover: Some(failover),
                ..Self::default()
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(3600);

    fn name(name: &str) -> ChannelName {
        ChannelName::new(name).unwrap()
    }

    fn names(acknowledged: &Acknowledged, failover: u64) -> Vec<String> {
        let channels = acknowledged.before(failover).into_iter();
        let mut names: Vec<_> = channels.map(|(channel, _)| channel.to_string()).collect();
        names.sort();
        names
    }

    #[test]
    fn channels_are_checked_once_after_the_next_failover() {
        let (mut acknowledged, now) = (Acknowledged::default(), Instant::now());
        acknowledged.note(&name("a"), TTL, now);
        assert_eq!(
            names(&acknowledged, 7),
            [""; 0],
            "there was no primary before"
        );
        acknowledged.follow(7);
        for channel in ["a", "b", "a"] {
            acknowledged.note(&name(channel), TTL, now);
        }
        assert_eq!(names(&acknowledged, 7), [""; 0]);
        assert_eq!(names(&acknowledged, 8), ["a", "b"]);
        assert_eq!(
            names(&acknowledged, 8),
            ["a", "b"],
            "until they are checked"
        );
        acknowledged.follow(8);
        assert_eq!(names(&acknowledged, 9), [""; 0]);
    }

    #[test]
    fn a_channel_is_kept_for_as_long_as_a_node_may_be_late_and_not_twice_longer() {
        let (mut acknowledged, start) = (Acknowledged::default(), Instant::now());
        acknowledged.follow(1);
        acknowledged.note(&name("a"), TTL, start);
        let at = start + LATE_MAX;
        acknowledged.note(&name("b"), TTL, at);
        assert_eq!(names(&acknowledged, 2), ["a", "b"]);
        acknowledged.note(&name("a"), TTL, at);
        let of_a = acknowledged
            .before(2)
            .into_iter()
            .find(|(of, _)| *of == name("a"));
        assert_eq!(of_a.unwrap().1.at, at);
        acknowledged.note(&name("c"), TTL, at + LATE_MAX);
        assert_eq!(names(&acknowledged, 2), ["a", "b", "c"]);
        acknowledged.note(&name("c"), TTL, at + 2 * LATE_MAX);
        assert_eq!(names(&acknowledged, 2), ["c"]);
    }
}
