//! The broker of a node that is alone: what is published is delivered, in the publisher's own call.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::RwLock;

use crate::broker::Broker;
use crate::broker::Deliver;
use crate::broker::NotReady;
use crate::broker::PublishError;
use crate::broker::TryPublishError;
use crate::channel::ChannelName;
use crate::metrics::Metrics;
use crate::publication::Publication;

/// Delivers to this node what this node publishes, if a client here wants it. Always ready.
pub(super) struct MemoryBroker {
    deliver: Arc<dyn Deliver>,
    metrics: Arc<Metrics>,
    subscribed: RwLock<HashSet<ChannelName>>,
}

impl MemoryBroker {
    pub(super) fn new(deliver: Arc<dyn Deliver>, metrics: Arc<Metrics>) -> Self {
        metrics.broker_ready.set(1);
        Self {
            deliver,
            metrics,
            subscribed: RwLock::default(),
        }
    }

    fn deliver_now(&self, channel: &ChannelName, data: Bytes) {
        self.metrics.publications_published.inc();
        if self.subscribed.read().contains(channel) {
            self.metrics.publications_received.inc();
            let channel = channel.clone();
            self.deliver.deliver(vec![Publication { channel, data }]);
        }
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    fn try_publish(&self, channel: &ChannelName, data: Bytes) -> Result<(), TryPublishError> {
        self.deliver_now(channel, data);
        Ok(())
    }

    async fn publish(&self, channel: &ChannelName, data: Bytes) -> Result<(), PublishError> {
        self.deliver_now(channel, data);
        Ok(())
    }

    fn subscribe(&self, channel: &ChannelName) {
        if self.subscribed.write().insert(channel.clone()) {
            self.metrics.subscriptions.inc();
        }
    }

    fn unsubscribe(&self, channel: &ChannelName) {
        if self.subscribed.write().remove(channel) {
            self.metrics.subscriptions.dec();
        }
    }

    fn readiness(&self) -> Result<(), NotReady> {
        Ok(())
    }
}
