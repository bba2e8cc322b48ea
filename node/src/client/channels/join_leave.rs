//! Publishes join and leave events to channels, in the order in which the registry finds them.

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
use crate::stream::ChannelStreams;

/// Events that may be pending. While Redis is unavailable they are delayed; those over the limit are dropped and counted,
/// and presence can still be requested.
const QUEUE_MAX: usize = 16 << 10;

/// The sending end of the queue, for the registry.
pub(crate) struct JoinLeaveSender {
    queue: mpsc::Sender<Item>,
    metrics: Arc<Metrics>,
}

/// The receiving end of the queue.
pub(crate) struct PendingJoinLeave(mpsc::Receiver<Item>);

struct Item {
    channel: ChannelName,
    info: Bytes,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Joined,
    Left,
}

/// JoinLeaveSender, and what waits to be told of it.
pub(crate) fn join_leave_queue(metrics: Arc<Metrics>) -> (JoinLeaveSender, PendingJoinLeave) {
    let (queue, pending) = mpsc::channel(QUEUE_MAX);
    (
        JoinLeaveSender { queue, metrics },
        PendingJoinLeave(pending),
    )
}

impl JoinLeaveSender {
    fn add(&self, channel: &ChannelName, info: Bytes, kind: Kind) {
        let channel = channel.clone();
        let item = Item {
            channel,
            info,
            kind,
        };
        if self.queue.try_send(item).is_err() {
            self.metrics.dropped(DropReason::JoinLeaveFull, 1);
        }
    }
}

impl registry::MemberListener for JoinLeaveSender {
    fn joined(&self, channel: &ChannelName, info: Bytes) {
        self.add(channel, info, Kind::Joined);
    }

    fn left(&self, channel: &ChannelName, info: Bytes) {
        self.add(channel, info, Kind::Left);
    }
}

impl PendingJoinLeave {
    /// Publishes events until `shutdown`, and then those that are still pending.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future drops the pending events.
    pub(crate) async fn run(mut self, streams: Arc<ChannelStreams>, shutdown: CancellationToken) {
        loop {
            let item = tokio::select! {
                biased;
                item = self.0.recv() => item,
                () = shutdown.cancelled() => None,
            };
            let Some(item) = item else { return };
            item.tell(&streams).await;
        }
    }
}

impl Item {
    async fn tell(self, streams: &ChannelStreams) {
        let Ok(info) = ClientInfo::decode(self.info) else {
            return; // The entry cannot be decoded.
        };
        let event = match self.kind {
            Kind::Joined => ChannelEvent::Join(info),
            Kind::Left => ChannelEvent::Leave(info),
        };
        if let Err(error) = streams.send(&self.channel, &event).await {
            debug!(channel = %self.channel, %error, "join or leave event not published");
        }
    }
}
