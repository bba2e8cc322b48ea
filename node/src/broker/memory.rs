//! The broker of a single node: publications are delivered in the publisher's own call.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::RwLock;
use tokio::task::JoinSet;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::broker::Ask;
use crate::broker::Broker;
use crate::broker::Deliver;
use crate::broker::NotReady;
use crate::broker::PublishError;
use crate::broker::Shard;
use crate::broker::Started;
use crate::broker::Store;
use crate::broker::StoreError;
use crate::broker::Stored;
use crate::broker::Streams;
use crate::broker::TryPublishError;
use crate::broker::Unavailable;
use crate::broker::Until;
use crate::broker::history::Page;
use crate::metrics::Metrics;
use crate::protocol::channel::ChannelName;
use crate::protocol::publication::Publication;

mod logs;

use logs::Logs;

/// How often expired streams are removed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// Delivers publications on subscribed channels to this node. Always ready.
struct MemoryBroker {
    deliver: Arc<dyn Deliver>,
    metrics: Arc<Metrics>,
    subscribed: RwLock<HashSet<ChannelName>>,
    logs: Logs,
}

/// Starts it, and the task that removes expired streams.
pub(super) fn start(
    deliver: Arc<dyn Deliver>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
) -> Started {
    metrics.broker_ready.set(1);
    let broker = Arc::new(MemoryBroker {
        deliver,
        metrics,
        subscribed: RwLock::default(),
        logs: Logs::new(now()),
    });
    let mut tasks = JoinSet::new();
    tasks.spawn({
        let broker = Arc::clone(&broker);
        async move {
            let sweep = async {
                loop {
                    time::sleep(SWEEP_INTERVAL).await;
                    broker.logs.sweep(now());
                }
            };
            shutdown.run_until_cancelled(sweep).await;
        }
    });
    Started { broker, tasks }
}

impl MemoryBroker {
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
            self.metrics.subscriptions_wanted.inc();
            self.metrics.subscriptions.inc();
        }
    }

    fn unsubscribe(&self, channel: &ChannelName) {
        if self.subscribed.write().remove(channel) {
            self.metrics.subscriptions_wanted.dec();
            self.metrics.subscriptions.dec();
        }
    }

    fn readiness(&self) -> Result<(), NotReady> {
        Ok(())
    }
}

#[async_trait]
impl Streams for MemoryBroker {
    async fn subscribed(&self, channel: &ChannelName) -> Result<(), Unavailable> {
        if self.subscribed.read().contains(channel) {
            return Ok(());
        }
        Err(Unavailable(format!("`{channel}` is not subscribed")))
    }

    fn shard(&self, _: &ChannelName) -> Shard {
        Shard(0)
    }

    async fn store(&self, store: Store) -> Result<Stored, StoreError> {
        let wire = ChannelName::wire(&store.channel);
        let until = store.until;
        let stored = self.logs.store(store, now(), |envelope| {
            self.deliver_now(&wire, envelope);
        });
        match until {
            Until::Stored => Ok(stored),
            Until::Replicated => Err(StoreError::NotReplicated), // There is no replica.
        }
    }

    async fn history(&self, ask: Ask) -> Result<Page, Unavailable> {
        Ok(self.logs.page(&ask, now()))
    }

    async fn remove_history(&self, channel: &ChannelName) -> Result<(), Unavailable> {
        self.logs.clear(channel);
        Ok(())
    }
}

/// Tokio's clock, so that tests can advance it.
fn now() -> Instant {
    time::Instant::now().into_std()
}
