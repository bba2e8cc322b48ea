//! Tells channels who comes and goes: what the registry finds, in its order.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::cluster::registry;
use crate::metrics::DropReason;
use crate::metrics::Metrics;
use crate::protocol::ClientInfo;
use crate::protocol::channel::ChannelName;
use crate::protocol::envelope::ChannelEvent;
use crate::stream::Feeds;

/// What may wait to be told. With Redis away it is told late, and beyond that not at all: then it is
/// counted, and who is there can still be asked.
const QUEUE_MAX: usize = 16 << 10;

/// Where the registry puts what it finds.
pub(crate) struct News {
    queue: mpsc::Sender<Item>,
    metrics: Arc<Metrics>,
}

/// What waits to be told.
pub(crate) struct Untold(mpsc::Receiver<Item>);

struct Item {
    channel: ChannelName,
    info: Bytes,
    what: What,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Came,
    Left,
}

/// News, and what waits to be told of it.
pub(crate) fn news(metrics: Arc<Metrics>) -> (News, Untold) {
    let (queue, untold) = mpsc::channel(QUEUE_MAX);
    (News { queue, metrics }, Untold(untold))
}

impl News {
    fn add(&self, channel: &ChannelName, info: Bytes, what: What) {
        let channel = channel.clone();
        let item = Item {
            channel,
            info,
            what,
        };
        if self.queue.try_send(item).is_err() {
            self.metrics.dropped(DropReason::NewsFull, 1);
        }
    }
}

impl registry::News for News {
    fn came(&self, channel: &ChannelName, info: Bytes) {
        self.add(channel, info, What::Came);
    }

    fn left(&self, channel: &ChannelName, info: Bytes) {
        self.add(channel, info, What::Left);
    }
}

impl Untold {
    /// Tells everyone, until `shutdown`, and then what is left.
    ///
    /// # Cancel safety
    ///
    /// Dropping it leaves untold what waits.
    pub(crate) async fn run(mut self, feeds: Arc<Feeds>, shutdown: CancellationToken) {
        loop {
            let item = tokio::select! {
                biased;
                item = self.0.recv() => item,
                () = shutdown.cancelled() => None,
            };
            let Some(item) = item else { return };
            item.tell(&feeds).await;
        }
    }
}

impl Item {
    async fn tell(self, feeds: &Feeds) {
        let Ok(info) = ClientInfo::decode(self.info) else {
            return; // No node has written it.
        };
        let event = match self.what {
            What::Came => ChannelEvent::Join(info),
            What::Left => ChannelEvent::Leave(info),
        };
        if let Err(error) = feeds.send(&self.channel, &event).await {
            debug!(channel = %self.channel, %error, "who comes or goes could not be told");
        }
    }
}
