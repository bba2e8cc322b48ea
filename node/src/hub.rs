//! Local fan-out: which clients of this node are members of which channel, and the writes to them.
//!
//! There are two kinds of channels. A *relay channel* is the one that a relay endpoint is configured with: the broker's publications
//! go to its members without offsets, history or recovery. The channels of the client protocol have all of that from their
//! [`stream`](crate::stream), which turns a publication into the *push* that clients get. The hub knows nothing of history, presence
//! or rights.
//!
//! A [`Member`] is what a channel keeps of a client: the way to the client's outbox. A client has one outbox, whatever it has
//! subscribed to. Dropping the [`Subscriber`] guard ends the membership. [`outbox`] queues what a socket does not accept, and
//! disconnects a client that reads too slowly; [`roster`] lists all clients, for pings and for the drain of the node.
//!
//! The broker delivers publications of relay channels ([`Hub::deliver`]), a channel stream the pushes of its channel
//! ([`Hub::deliver_push`]). Each is encoded once for each format that a member of the channel reads, and appended to the
//! channel's open batch. One task, spawned by the node, flushes channels with an open batch ([`Hub::run`]): each member gets the
//! whole batch in one write. It writes to the sockets itself, never waits for one, and yields to the runtime every few hundred
//! writes. [`window`] decides how long a batch is collected. What a channel delivers, each member gets in that order.
//!
//! Nothing here waits for I/O. If the flush task is so far behind that 16 full batches of a channel have been collected, the next
//! publication is dropped for all members, counted and logged; a channel stream with history then unsubscribes its members, which
//! subscribe again and recover it.
//!
//! Invariant: a channel is in [`Hub`]'s map if and only if it has a member, has one whose end the next flush has still to carry out, or
//! is pinned: the channels of relay endpoints are, so that a node's first client gets its own messages. The broker is subscribed to
//! the relay channels in the map, except between a first join or a last leave and the next flush; channel streams
//! subscribe to their channels themselves.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use parking_lot::Mutex;
use parking_lot::RwLock;
use tokio::sync::Notify;
use tokio::sync::oneshot;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::broker::Broker;
use crate::broker::Deliver;
use crate::config::Fanout;
use crate::config::SlowReader;
use crate::logging::Throttle;
use crate::metrics::DropReason;
use crate::metrics::Metrics;
use crate::protocol::Push;
use crate::protocol::channel::ChannelName;
use crate::protocol::publication::Publication;

mod batch;
mod channel;
mod cpu;
mod flush_loop;
mod format;
mod indexes;
mod member;
pub(crate) mod outbox;
pub(crate) mod roster;
mod subscribers;
mod table;
mod window;

pub(crate) use member::Member;

use channel::Appended;
use channel::Channel;
use channel::End;
use channel::SubscriberId;

/// The configuration of the hub.
pub(crate) struct HubConfig {
    /// How publications are batched.
    pub(crate) fanout: Fanout,
    /// Channels that stay subscribed without members: those of the relay endpoints, so that the first client on a node
    /// receives its own messages.
    pub(crate) pinned: Vec<ChannelName>,
}

/// The channels of this node and their members.
pub(crate) struct Hub {
    fanout: Fanout,
    metrics: Arc<Metrics>,
    channels: RwLock<HashMap<ChannelName, Arc<Channel>>>,
    channels_created: AtomicU64,
    /// Channels with work for the flush loop. Each is listed once, and once more if its batch has become too large to
    /// wait.
    listed: Mutex<Vec<Arc<Channel>>>,
    wake: Notify,
    /// How many channels have ended with their last push written.
    channels_ended: AtomicU64,
    /// Throttle the log lines about publications that are not JSON, and about dropped ones.
    not_json: Throttle,
    overruns: Throttle,
}

/// Whether a push is delivered to the members of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivered {
    /// It is in the batch of the channel, if that has members.
    Yes,
    /// It was dropped: the hub does not keep up.
    No,
}

/// Keeps a member in a channel until this guard is dropped, unless the channel ends before. What is sent to the member after the drop
/// is written behind everything that it still gets of the channel.
pub(crate) struct Subscriber {
    hub: Arc<Hub>,
    channel: Arc<Channel>,
    id: SubscriberId,
}

impl Hub {
    /// Creates a hub without members. Nothing is written before [`run`](Hub::run).
    pub(crate) fn new(config: HubConfig, metrics: Arc<Metrics>) -> Arc<Self> {
        let hub = Self {
            fanout: config.fanout,
            metrics,
            channels: RwLock::default(),
            channels_created: AtomicU64::new(1), // 0 means "no channel".
            listed: Mutex::default(),
            wake: Notify::new(),
            channels_ended: AtomicU64::new(0),
            not_json: Throttle::default(),
            overruns: Throttle::default(),
        };
        for name in config.pinned {
            let channel = hub.create_channel(&name, channel::ChannelKind::PinnedRelay);
            hub.channels.write().insert(name, channel);
        }
        Arc::new(hub)
    }

    /// Adds `member` to a relay channel until the returned value is dropped. It receives what is delivered from now on.
    pub(crate) fn join(self: &Arc<Self>, name: &ChannelName, member: Member) -> Subscriber {
        self.join_channel(name, member, channel::ChannelKind::Relay)
    }

    /// Adds `member` to a channel whose pushes come from a channel stream, which subscribes in the broker itself. All
    /// members of a channel have the same `slow`.
    pub(crate) fn join_stream(
        self: &Arc<Self>,
        name: &ChannelName,
        member: Member,
        slow: SlowReader,
    ) -> Subscriber {
        self.join_channel(name, member, channel::ChannelKind::Stream(slow))
    }

    fn join_channel(
        self: &Arc<Self>,
        name: &ChannelName,
        member: Member,
        kind: channel::ChannelKind,
    ) -> Subscriber {
        let (channel, joined) = self.enter(name, member, kind);
        if joined.list {
            self.list(&channel);
        }
        Subscriber {
            hub: Arc::clone(self),
            channel,
            id: joined.id,
        }
    }

    /// Delivers `push` to the members of `name`, in the order of the calls. Never blocks.
    pub(crate) fn deliver_push(&self, name: &ChannelName, push: &Push) -> Delivered {
        self.append_push(name, push, self.fanout.batch_bytes_max)
    }

    /// Delivers the last push of a channel, however full its batch is. After that it has no members, see
    /// [`Subscriber::is_over`].
    pub(crate) fn deliver_last(&self, name: &ChannelName, push: &Push) {
        self.append_push(name, push, usize::MAX);
        self.end(name, End::AfterBatch);
    }

    /// Ends a channel at once: what is not written yet is dropped.
    pub(crate) fn end_at_once(&self, name: &ChannelName) {
        self.end(name, End::AtOnce);
    }

    /// How many channels have ended with their last push written.
    pub(crate) fn channels_ended(&self) -> u64 {
        self.channels_ended.load(Ordering::Acquire)
    }

    fn end(&self, name: &ChannelName, end: End) {
        let channel = self.channels.read().get(name).cloned();
        if let Some(channel) = channel
            && channel.end(end)
        {
            self.list(&channel);
        }
    }

    fn note_over(&self, channel: &Channel) {
        channel.set_over();
        self.channels_ended.fetch_add(1, Ordering::Release);
    }

    fn append_push(&self, name: &ChannelName, push: &Push, batch_bytes_max: usize) -> Delivered {
        let Some(channel) = self.channels.read().get(name).cloned() else {
            return Delivered::Yes;
        };
        match channel.append(batch_bytes_max, |batch, slots| {
            batch.append_push(push, slots)
        }) {
            Appended::Batched => Delivered::Yes,
            Appended::List => {
                self.list(&channel);
                Delivered::Yes
            }
            Appended::Dropped => Delivered::No,
        }
    }

    /// Flushes channels and keeps `broker` subscribed to them, until `shutdown`.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future may leave members without the rest of a flush; no frame is cut.
    pub(crate) async fn run(self: Arc<Self>, broker: Arc<dyn Broker>, shutdown: CancellationToken) {
        flush_loop::FlushLoop::new(&self, broker)
            .run(shutdown)
            .await;
    }

    /// Joins a channel under the lock of the map, so that it is not removed meanwhile.
    fn enter(
        &self,
        name: &ChannelName,
        member: Member,
        kind: channel::ChannelKind,
    ) -> (Arc<Channel>, channel::Joined) {
        if let Some(channel) = self.channels.read().get(name) {
            if kind == channel::ChannelKind::Stream(SlowReader::Latest) {
                // What is queued was sent to an earlier membership of the same client: pushes of this one must not replace it.
                member.keep_latest(channel.id);
            }
            return (Arc::clone(channel), channel.join(member));
        }
        let mut channels = self.channels.write();
        let channel = channels
            .entry(name.clone())
            .or_insert_with(|| self.create_channel(name, kind));
        (Arc::clone(channel), channel.join(member))
    }

    fn create_channel(&self, name: &ChannelName, kind: channel::ChannelKind) -> Arc<Channel> {
        let id = self.channels_created.fetch_add(1, Ordering::Relaxed);
        Arc::new(Channel::new(id, name.clone(), kind))
    }

    /// Removes `channel` from the map if it has no members and no pending work.
    fn remove_if_unused(&self, channel: &Channel) -> bool {
        let mut channels = self.channels.write();
        let unused = channel.is_unused();
        if unused {
            channels.remove(&channel.name);
        }
        unused
    }

    fn list(&self, channel: &Arc<Channel>) {
        self.listed.lock().push(Arc::clone(channel));
        self.wake.notify_one();
    }

    fn count_dropped(&self, channel: &Channel, batch: &batch::Closed, dropped: u64) {
        if 0 < batch.not_utf8 {
            self.metrics
                .dropped(DropReason::NotUtf8, batch.not_utf8 as u64);
        }
        if 0 < batch.not_json {
            self.metrics
                .dropped(DropReason::NotJson, batch.not_json as u64);
            if let Some(held_back) = self.not_json.admit(Instant::now()) {
                warn!(channel = %channel.name, dropped = batch.not_json, held_back, "publications are not JSON, dropped for clients that use JSON");
            }
        }
        if 0 < dropped {
            self.metrics.dropped(DropReason::HubFull, dropped);
            if let Some(held_back) = self.overruns.admit(Instant::now()) {
                warn!(channel = %channel.name, dropped, held_back, "the hub did not keep up, publications dropped");
            }
        }
    }

    fn take_listed(&self) -> Vec<Arc<Channel>> {
        mem::take(&mut *self.listed.lock())
    }
}

impl Deliver for Hub {
    fn deliver(&self, publications: Vec<Publication>) {
        for publication in publications {
            let channel = self.channels.read().get(&publication.channel).cloned();
            if let Some(channel) = channel
                && channel.append(self.fanout.batch_bytes_max, |batch, slots| {
                    batch.append(&publication.data, slots);
                }) == Appended::List
            {
                self.list(&channel);
            }
        }
    }
}

impl Subscriber {
    /// Whether the channel has ended, and its last push is written.
    pub(crate) fn is_over(&self) -> bool {
        self.channel.is_over()
    }

    /// Ends the deliveries exactly here: the member still gets all that was delivered before this call, and nothing that
    /// is delivered later. The receiver completes once that is written to its outbox.
    pub(crate) fn leave_here(&self) -> oneshot::Receiver<()> {
        let (left, list) = self.channel.leave_here(self.id);
        if list {
            self.hub.list(&self.channel);
        }
        left
    }

    /// Waits until all that was delivered before this call is written to the members, for at most `max_wait`.
    pub(crate) fn flushed(&self, max_wait: Duration) -> impl Future<Output = ()> + Send + use<> {
        let (flushed, list) = self.channel.flush();
        if list {
            self.hub.list(&self.channel);
        }
        async move {
            // A timeout and a hub that has stopped are both ignored.
            let _ = time::timeout(max_wait, flushed).await;
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        if self.channel.leave(self.id) {
            self.hub.list(&self.channel);
        }
    }
}

#[cfg(test)]
mod tests;
