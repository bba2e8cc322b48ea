//! Several independent Redis servers over which channels are spread.
//!
//! Each has its own publish queues, its own subscriber and its own readiness; a channel and all its data are on
//! one of them. Which one depends only on the channel's name and the number of servers, so that all nodes
//! agree; when a server is added, only the channels that move to it change their server.

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
use crate::broker::history::Page;
use crate::protocol::channel::ChannelName;
use crate::redis::shard_of;

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

    /// The broker of the server that `channel` is on.
    fn broker_of(&self, channel: &ChannelName) -> &Arc<RedisBroker> {
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

    async fn mark(
        &self,
        channel: &ChannelName,
        mark: &ChannelName,
        data: Bytes,
    ) -> Result<(), PublishError> {
        self.of(channel).mark(channel, mark, data).await
    }

    fn subscribe_everywhere(&self, channel: &ChannelName) {
        self.shards
            .iter()
            .for_each(|shard| shard.subscribe(channel));
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
        self.broker_of(&store.channel).store(store).await
    }

    async fn history(&self, ask: Ask) -> Result<Page, Unavailable> {
        self.broker_of(&ask.channel).history(ask).await
    }

    async fn remove_history(&self, channel: &ChannelName) -> Result<(), Unavailable> {
        self.broker_of(channel).remove_history(channel).await
    }
}
