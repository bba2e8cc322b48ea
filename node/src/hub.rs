//! Local fan-out: which clients of this node hear which channel, and the writing to them.
//!
//! The broker hands publications of relays in ([`Hub::deliver`]), a feed the pushes of its channel
//! ([`Hub::deliver_push`]); each is encoded once for each format that a member of the channel reads and
//! gathers in the channel's open batch. One task ([`Hub::run`]) goes
//! over the channels with an open batch and gives each member all of it at once, in one write: it
//! writes to the sockets itself, never waits for one, and lets others run every few hundred writes. How
//! long a batch gathers is up to [`window`].
//!
//! Nothing here blocks. What a socket does not take is its outbox's business.
//!
//! Invariant: a channel is in the map if and only if it has a member, has one on its way out, or is
//! pinned. The broker is subscribed to those in the map that no feed looks after, but for the moment
//! between a first join and the task's next look.

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
use tokio::time;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::broker::Broker;
use crate::broker::Deliver;
use crate::config::Fanout;
use crate::config::SlowReader;
use crate::logging::Pace;
use crate::metrics::DropReason;
use crate::metrics::Metrics;
use crate::protocol::Push;
use crate::protocol::channel::ChannelName;
use crate::protocol::publication::Publication;

mod audience;
mod batch;
mod channel;
mod cpu;
mod format;
mod indexes;
mod member;
pub(crate) mod outbox;
pub(crate) mod roster;
mod rounds;
mod table;
mod window;

pub(crate) use member::Member;

use channel::Appended;
use channel::Channel;
use channel::End;
use channel::Seat;

/// What the hub is to be.
pub(crate) struct HubConfig {
    /// How publications gather.
    pub(crate) fanout: Fanout,
    /// Channels that stay subscribed without members: those of the relay endpoints, so that the first
    /// client on a node hears itself.
    pub(crate) pinned: Vec<ChannelName>,
}

/// The channels of this node and their members.
pub(crate) struct Hub {
    fanout: Fanout,
    metrics: Arc<Metrics>,
    channels: RwLock<HashMap<ChannelName, Arc<Channel>>>,
    channels_made: AtomicU64,
    /// Channels with something that the task has not looked at. Each is in it once, and once more if its
    /// batch has become too large to wait.
    listed: Mutex<Vec<Arc<Channel>>>,
    wake: Notify,
    /// Channels whose members have got the last that there was for them.
    channels_over: AtomicU64,
    /// For the log lines about publications that are not JSON, and about those that the hub did not keep up with.
    not_json: Pace,
    overruns: Pace,
}

/// Whether all members of a channel get something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivered {
    /// Those there are.
    Yes,
    /// Nobody: the hub does not keep up.
    No,
}

/// A client in a channel, until it is dropped. Whatever the client is sent after that stands behind all that
/// it gets of the channel.
pub(crate) struct Membership {
    hub: Arc<Hub>,
    channel: Arc<Channel>,
    seat: Seat,
}

impl Hub {
    /// A hub without members; nothing is written before [`run`](Hub::run).
    pub(crate) fn new(config: HubConfig, metrics: Arc<Metrics>) -> Arc<Self> {
        let hub = Self {
            fanout: config.fanout,
            metrics,
            channels: RwLock::default(),
            channels_made: AtomicU64::new(1), // The id 0 is nobody's.
            listed: Mutex::default(),
            wake: Notify::new(),
            channels_over: AtomicU64::new(0),
            not_json: Pace::default(),
            overruns: Pace::default(),
        };
        for name in config.pinned {
            let channel = hub.make_channel(&name, channel::Stay::Pinned);
            hub.channels.write().insert(name, channel);
        }
        Arc::new(hub)
    }

    /// Lets `member` hear what is delivered on `channel` from now on, for as long as the returned value
    /// lives, and nothing that came before.
    pub(crate) fn join(self: &Arc<Self>, name: &ChannelName, member: Member) -> Membership {
        self.join_channel(name, member, channel::Stay::WhileHeard)
    }

    /// The same for a channel whose pushes come from a feed, which also sees to its subscription in the
    /// broker. All members of a channel agree on `slow`.
    pub(crate) fn join_fed(
        self: &Arc<Self>,
        name: &ChannelName,
        member: Member,
        slow: SlowReader,
    ) -> Membership {
        self.join_channel(name, member, channel::Stay::Fed(slow))
    }

    fn join_channel(
        self: &Arc<Self>,
        name: &ChannelName,
        member: Member,
        stay: channel::Stay,
    ) -> Membership {
        let (channel, joined) = self.enter(name, member, stay);
        if joined.list {
            self.list(&channel);
        }
        Membership {
            hub: Arc::clone(self),
            channel,
            seat: joined.seat,
        }
    }

    /// Gives `push` to the members of `name`, in the order of the calls. Never blocks.
    pub(crate) fn deliver_push(&self, name: &ChannelName, push: &Push) -> Delivered {
        self.gather(name, push, self.fanout.batch_bytes_max)
    }

    /// The same for the last push of a channel, however much waits before it. Its members are none from then
    /// on, see [`Membership::is_over`].
    pub(crate) fn deliver_last(&self, name: &ChannelName, push: &Push) {
        self.gather(name, push, usize::MAX);
        self.end(name, End::AfterBatch);
    }

    /// Keeps from the members of `name` all that is not written yet.
    pub(crate) fn end_at_once(&self, name: &ChannelName) {
        self.end(name, End::AtOnce);
    }

    /// In how many channels members have got the last that there was for them.
    pub(crate) fn channels_over(&self) -> u64 {
        self.channels_over.load(Ordering::Acquire)
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
        self.channels_over.fetch_add(1, Ordering::Release);
    }

    fn gather(&self, name: &ChannelName, push: &Push, batch_bytes_max: usize) -> Delivered {
        let Some(channel) = self.channels.read().get(name).cloned() else {
            return Delivered::Yes;
        };
        match channel.append(batch_bytes_max, |batch, slots| {
            batch.append_push(push, slots)
        }) {
            Appended::Gathering => Delivered::Yes,
            Appended::List => {
                self.list(&channel);
                Delivered::Yes
            }
            Appended::Dropped => Delivered::No,
        }
    }

    /// Writes rounds and keeps `broker` subscribed, until `shutdown`.
    ///
    /// # Cancel safety
    ///
    /// Dropping it leaves members without the rest of a round; no frame is cut.
    pub(crate) async fn run(self: Arc<Self>, broker: Arc<dyn Broker>, shutdown: CancellationToken) {
        rounds::Rounds::new(&self, broker).run(shutdown).await;
    }

    /// Joins under the lock of the map, so that the channel is not removed meanwhile.
    fn enter(
        &self,
        name: &ChannelName,
        member: Member,
        stay: channel::Stay,
    ) -> (Arc<Channel>, channel::Joined) {
        if let Some(channel) = self.channels.read().get(name) {
            if stay == channel::Stay::Fed(SlowReader::Latest) {
                // What waits there was for an earlier membership. What is for this one goes behind.
                member.keep_latest(channel.id);
            }
            return (Arc::clone(channel), channel.join(member));
        }
        let mut channels = self.channels.write();
        let channel = channels
            .entry(name.clone())
            .or_insert_with(|| self.make_channel(name, stay));
        (Arc::clone(channel), channel.join(member))
    }

    fn make_channel(&self, name: &ChannelName, stay: channel::Stay) -> Arc<Channel> {
        let id = self.channels_made.fetch_add(1, Ordering::Relaxed);
        Arc::new(Channel::new(id, name.clone(), stay))
    }

    /// Takes `channel` out of the map if nobody is in it and nothing is left to do for it.
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
                warn!(channel = %channel.name, dropped = batch.not_json, held_back, "publications are not JSON, clients that speak JSON did not get them");
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

impl Membership {
    /// Whether the channel has ended, and its last push is written.
    pub(crate) fn is_over(&self) -> bool {
        self.channel.is_over()
    }

    /// Waits until all that was delivered before this call is written to its members, or for as long as
    /// `patience`.
    pub(crate) fn flushed(&self, patience: Duration) -> impl Future<Output = ()> + Send + use<> {
        let (flushed, list) = self.channel.flush();
        if list {
            self.hub.list(&self.channel);
        }
        async move {
            // Neither a hub that stops nor one that takes too long is a reason not to go on.
            let _ = time::timeout(patience, flushed).await;
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if self.channel.leave(self.seat) {
            self.hub.list(&self.channel);
        }
    }
}

#[cfg(test)]
mod tests;
