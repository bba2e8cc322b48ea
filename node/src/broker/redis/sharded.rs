//! Several independent Redis servers that share the channels.
//!
//! Each has its own lanes, its own subscriber and its own readiness; a channel and all that is kept of it
//! is on one of them. Which one depends on the channel's name and the number of servers alone, so that all
//! nodes agree; with one server more, only as many channels move as the new one takes.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::RedisBroker;
use crate::broker::Ask;
use crate::broker::Broker;
use crate::broker::NotReady;
use crate::broker::PublishError;
use crate::broker::Shard;
use crate::broker::Store;
use crate::broker::StoreError;
use crate::broker::Stored;
use crate::broker::Streams;
use crate::broker::TryPublishError;
use crate::broker::Unavailable;
use crate::channel::ChannelName;
use crate::history::Page;

/// The brokers of all servers, in the order of the configuration.
pub(super) struct ShardedBroker {
    shards: Vec<Arc<RedisBroker>>,
}

impl ShardedBroker {
    /// `shards` is not empty.
    pub(super) fn new(shards: Vec<Arc<RedisBroker>>) -> Self {
        Self { shards }
    }

    fn of(&self, channel: &ChannelName) -> &Arc<RedisBroker> {
        &self.shards[shard_of(channel.as_str(), self.shards.len())]
    }

    /// Where what is kept of `channel` is: where its events go.
    fn keeper(&self, channel: &ChannelName) -> &Arc<RedisBroker> {
        self.of(&ChannelName::wire(channel))
    }
}

#[async_trait]
impl Broker for ShardedBroker {
    fn try_publish(&self, channel: &ChannelName, data: Bytes) -> Result<(), TryPublishError> {
        self.of(channel).try_publish(channel, data)
    }

    async fn publish(&self, channel: &ChannelName, data: Bytes) -> Result<(), PublishError> {
        self.of(channel).publish(channel, data).await
    }

    fn subscribe(&self, channel: &ChannelName) {
        self.of(channel).subscribe(channel);
    }

    fn unsubscribe(&self, channel: &ChannelName) {
        self.of(channel).unsubscribe(channel);
    }

    fn readiness(&self) -> Result<(), NotReady> {
        self.shards.iter().try_for_each(|shard| shard.readiness())
    }
}

#[async_trait]
impl Streams for ShardedBroker {
    async fn subscribed(&self, channel: &ChannelName) -> Result<(), Unavailable> {
        self.of(channel).subscribed(channel).await
    }

    fn shard(&self, channel: &ChannelName) -> Shard {
        self.of(channel).shard
    }

    async fn store(&self, store: Store) -> Result<Stored, StoreError> {
        self.keeper(&store.channel).store(store).await
    }

    async fn history(&self, ask: Ask) -> Result<Page, Unavailable> {
        self.keeper(&ask.channel).history(ask).await
    }

    async fn remove_history(&self, channel: &ChannelName) -> Result<(), Unavailable> {
        self.keeper(channel).remove_history(channel).await
    }
}

/// The place of `name` among `shards` servers: Lamping and Veach's jump consistent hash.
fn shard_of(name: &str, shards: usize) -> usize {
    let mut key = stable_hash(name);
    let (mut shard, mut next) = (0_usize, 0_usize);
    while next < shards {
        shard = next;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        let step = 2_f64.powi(31) / ((key >> 33) + 1) as f64;
        next = ((shard + 1) as f64 * step) as usize;
    }
    shard
}

/// FNV-1a, and splitmix64's end so that every bit counts: the same in every build, since nodes of two
/// versions have to agree.
fn stable_hash(name: &str) -> u64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: u32 = 10_000;

    fn places(shards: usize) -> Vec<usize> {
        (0..NAMES)
            .map(|number| shard_of(&format!("causeway:ch:{{chat:{number}}}"), shards))
            .collect()
    }

    #[test]
    fn every_server_has_its_share() {
        for shards in 1..=7 {
            let places = places(shards);
            for shard in 0..shards {
                let share = places.iter().filter(|&&place| place == shard).count();
                let fair = NAMES as usize / shards;
                assert!(
                    (fair * 9 / 10..=fair * 11 / 10).contains(&share),
                    "{share} of {shards}"
                );
            }
        }
    }

    #[test]
    fn with_one_server_more_a_channel_stays_or_moves_to_it() {
        for shards in 1..7 {
            let moved = places(shards).into_iter().zip(places(shards + 1));
            assert!(
                moved
                    .into_iter()
                    .all(|(before, now)| now == before || now == shards)
            );
        }
    }

    #[test]
    fn all_builds_agree() {
        let places =
            ["global", "causeway:ch:{chat:1}", "causeway:ch:{ä}"].map(|name| shard_of(name, 5));
        assert_eq!(places, [3, 2, 0]);
    }
}
