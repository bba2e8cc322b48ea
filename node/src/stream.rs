//! Channel streams: one for each channel with members on this node, kept in sync with the broker.
//!
//! ```text
//! broker ─▶ ChannelStreams ─▶ ChannelStream (next, duplicate or gap?) ─▶ hub ─▶ members
//!                                  └ the newest publications, for members that recover
//! ```
//! A [`ChannelStream`] is created for a channel's first member and ends `linger` after its last one has left. If the
//! channel has a history, the stream tracks its position in it and delivers every publication once and in order.
//! Missing publications (an unexpected offset, a lost connection, a changed server) are read from the history. If they
//! are no longer there, every member is unsubscribed with the code "insufficient state" and the stream ends: a gap is
//! never ignored.
//!
//! Channels of relay endpoints have no stream: their publications go straight to the hub.
//!
//! A debug build can inject faults (`sabotage`), to prove that the checks of delivery detect them.
//!
//! Invariant: the broker is subscribed to a channel if and only if its stream is in the map.

use std::collections::HashMap;
use std::collections::HashSet;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use parking_lot::Mutex;
use parking_lot::RwLock;
use tokio::sync::Notify;
use tokio::task;
use tokio::time;
use tokio::time::Instant;
use tracing::debug;

use crate::broker::Deliver;
use crate::broker::Shard;
use crate::broker::Streams;
use crate::broker::Unavailable;
use crate::broker::history::Retention;
use crate::config;
use crate::config::SlowReader;
use crate::hub::Hub;
use crate::hub::Member;
use crate::lifecycle::Lifecycle;
use crate::logging::Throttle;
use crate::metrics::DropReason;
use crate::metrics::Metrics;
use crate::protocol::Position;
use crate::protocol::channel::ChannelName;
use crate::protocol::envelope;
use crate::protocol::envelope::BadEnvelope;
use crate::protocol::publication::Publication;

mod channel;
mod channel_counts;
mod maintenance;
mod publish;
#[cfg(debug_assertions)]
mod sabotage;
mod sequence;
mod state;

pub(crate) use channel::Arriving;
pub(crate) use channel::Cut;
pub(crate) use channel::Joined;
pub(crate) use channel::Membership;
pub(crate) use publish::History;
pub(crate) use publish::PublishFailed;
pub(crate) use publish::PublishOptions;

use channel::ChannelStream;
use channel::InUse;
use channel::Outcome;

/// A member's request to join a channel.
#[derive(Clone, Copy)]
pub(crate) struct JoinRequest<'a> {
    pub(crate) channel: &'a ChannelName,
    /// The channel's history; `None`: it has none.
    pub(crate) retention: Option<Retention>,
    /// How members that read too slowly are treated.
    pub(crate) slow: SlowReader,
    pub(crate) member: &'a Member,
    /// Whether the member also receives join and leave events.
    pub(crate) receives_joins: bool,
    /// The position that the member recovers from, if it was subscribed before.
    pub(crate) since: Option<&'a Position>,
    /// Whether the channel has lifecycle events.
    pub(crate) has_lifecycle: bool,
    /// The number of a member that another node hands off.
    pub(crate) arriving: Option<u64>,
}

/// The streams of all channels with members on this node.
pub(crate) struct ChannelStreams {
    config: config::ChannelStreams,
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    /// Set by [`start`](Self::start): the broker needs this value as its `deliver` first.
    broker: OnceLock<Arc<dyn Streams>>,
    /// Records which channels have subscribers here; unset without lifecycle events.
    lifecycle: OnceLock<Arc<Lifecycle>>,
    /// By the channel's name in the broker.
    streams: RwLock<HashMap<ChannelName, Arc<ChannelStream>>>,
    streams_created: AtomicU64,
    /// Throttles the log line about streams that are lost.
    lost_log: Throttle,
    due: Mutex<Due>,
    changed: Notify,
    #[cfg(debug_assertions)]
    sabotage: Option<sabotage::Sabotage>,
}

/// Work for the maintenance task.
#[derive(Default)]
struct Due {
    /// Streams that have to read missing publications, and since when.
    reads: VecDeque<(Instant, Arc<ChannelStream>)>,
    /// Streams that have lost their last member, and when to check them again.
    idle: VecDeque<(Instant, Arc<ChannelStream>)>,
}

impl ChannelStreams {
    /// Creates an empty map. [`start`](Self::start) must be called before anything else.
    pub(crate) fn new(
        config: config::ChannelStreams,
        hub: Arc<Hub>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            config,
            hub,
            metrics,
            broker: OnceLock::new(),
            lifecycle: OnceLock::new(),
            streams: RwLock::default(),
            streams_created: AtomicU64::new(0),
            lost_log: Throttle::default(),
            due: Mutex::default(),
            changed: Notify::new(),
            #[cfg(debug_assertions)]
            sabotage: sabotage::Sabotage::from_environment(),
        })
    }

    /// Sets the broker, which delivers to this value.
    pub(crate) fn start(&self, broker: Arc<dyn Streams>) {
        assert!(self.broker.set(broker).is_ok(), "started twice");
    }

    /// Records in `lifecycle` from now on which channels have subscribers.
    pub(crate) fn set_lifecycle(&self, lifecycle: Arc<Lifecycle>) {
        assert!(self.lifecycle.set(lifecycle).is_ok(), "set twice");
    }

    /// Adds a member to a channel; it receives the channel's publications directly after `reply`.
    ///
    /// Waits until the broker has confirmed the subscription and the stream's position is known. Then `reply` is
    /// called with what the member has missed, and what it returns is sent to the member before anything else of the
    /// channel: no publication is lost or duplicated between the two.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if that takes longer than `join_timeout`; `reply` is not called then.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future before it is ready does not add the member, and `reply` is not called.
    pub(crate) async fn join<F>(
        self: &Arc<Self>,
        request: JoinRequest<'_>,
        mut reply: F,
    ) -> Result<Membership, Unavailable>
    where
        F: FnOnce(Joined<'_>) -> Bytes + Send,
    {
        let joined = time::timeout(self.config.join_timeout, async {
            loop {
                let in_use = self.acquire(&request);
                match ChannelStream::join(in_use, &request, reply).await? {
                    Outcome::Joined(membership) => return Ok(membership),
                    Outcome::Ended(unused) => {
                        reply = unused;
                        task::yield_now().await; // The task that ended it is about to remove it from the map.
                    }
                }
            }
        });
        joined.await.unwrap_or_else(|_| {
            let timeout = self.config.join_timeout;
            Err(Unavailable(format!(
                "the channel was not subscribed within {timeout:?}"
            )))
        })
    }

    /// Prepares the join of a member that another node hands off to this one. At most `bytes_max` of what no history holds
    /// are kept for it.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: the channel cannot be subscribed, is not received now, or has another history than `request` says.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future prepares nothing.
    pub(crate) async fn expect(
        self: &Arc<Self>,
        request: JoinRequest<'_>,
        bytes_max: usize,
    ) -> Result<Arriving, Unavailable> {
        ChannelStream::expect(self.acquire(&request), &request, bytes_max).await
    }

    /// Adds a member that was [expected](Self::expect), from where the other node has stopped. `reply` must return
    /// everything that it has missed, see [`Joined`].
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: the stream has ended, or cannot be read.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future before it is ready does not add the member, and `reply` is not called.
    pub(crate) async fn resume<F>(
        arriving: &Arriving,
        request: JoinRequest<'_>,
        reply: F,
    ) -> Result<Membership, Unavailable>
    where
        F: FnOnce(Joined<'_>) -> Bytes + Send,
    {
        let request = JoinRequest {
            arriving: Some(arriving.number),
            ..request
        };
        match ChannelStream::join(arriving.in_use.again(), &request, reply).await? {
            Outcome::Joined(membership) => Ok(membership),
            Outcome::Ended(_) => Err(Unavailable("the channel's stream has ended".to_owned())),
        }
    }

    /// Returns the channel's stream, in use until the guard is dropped. Creates it if there is none.
    fn acquire(self: &Arc<Self>, request: &JoinRequest<'_>) -> InUse {
        let channel = request.channel;
        let wire = ChannelName::wire(channel);
        if let Some(stream) = self.streams.read().get(&wire) {
            return InUse::new(self, stream);
        }
        let mut streams = self.streams.write();
        let stream = streams.entry(wire.clone()).or_insert_with(|| {
            self.metrics.channel_streams.inc();
            self.broker().subscribe(&wire);
            ChannelStream::new(
                channel.clone(),
                self.streams_created.fetch_add(1, Ordering::Relaxed),
                self.broker().shard(&wire),
                request.retention,
                request.slow,
                self.config,
                self.lifecycle_of(request),
            )
        });
        InUse::new(self, stream)
    }

    fn lifecycle_of(&self, request: &JoinRequest<'_>) -> Option<Arc<Lifecycle>> {
        let lifecycle = self.lifecycle.get().filter(|_| request.has_lifecycle);
        lifecycle.map(Arc::clone)
    }

    /// Schedules the check that ends `stream` if it is still unused after `linger`.
    fn became_unused(&self, stream: &Arc<ChannelStream>) {
        if stream.usage.is_listed.swap(true, Ordering::AcqRel) {
            return;
        }
        let at = Instant::now() + self.config.linger;
        self.due.lock().idle.push_back((at, Arc::clone(stream)));
        self.changed.notify_one();
    }

    /// Removes a stream that has ended from the map.
    fn remove(&self, stream: &Arc<ChannelStream>) {
        self.remove_from(&mut self.streams.write(), stream);
    }

    fn remove_from(
        &self,
        streams: &mut HashMap<ChannelName, Arc<ChannelStream>>,
        stream: &Arc<ChannelStream>,
    ) {
        if streams
            .get(&stream.wire)
            .is_some_and(|current| Arc::ptr_eq(current, stream))
        {
            streams.remove(&stream.wire);
            stream.end();
            self.broker().unsubscribe(&stream.wire); // Under the lock: a new stream subscribes after this.
            self.metrics.channel_streams.dec();
        }
    }

    /// Has the maintenance task read the publications that `stream` is missing.
    fn request_read(&self, stream: &Arc<ChannelStream>) {
        let read = (Instant::now(), Arc::clone(stream));
        self.due.lock().reads.push_back(read);
        self.changed.notify_one();
    }

    /// How many streams have ended while they had members and have unsubscribed them. While the number is unchanged,
    /// no further [`Membership`] is over.
    pub(crate) fn streams_ended(&self) -> u64 {
        self.hub.channels_ended()
    }

    /// The limit for publications of a channel's history in one reply, in bytes.
    pub(crate) fn reply_bytes_max(&self) -> usize {
        self.config.reply_bytes_max
    }

    fn next_read(&self) -> Option<(Instant, Arc<ChannelStream>)> {
        self.due.lock().reads.pop_front()
    }

    fn of_shards(&self, is_meant: impl Fn(Shard) -> bool) -> Vec<Arc<ChannelStream>> {
        let streams = self.streams.read();
        streams
            .values()
            .filter(|stream| is_meant(stream.shard))
            .cloned()
            .collect()
    }

    fn interrupt_streams(&self, is_meant: impl Fn(Shard) -> bool) {
        let streams = self.of_shards(is_meant);
        streams.iter().for_each(|stream| stream.interrupted());
    }

    fn resume_streams(&self, is_meant: impl Fn(Shard) -> bool) {
        let streams = self.of_shards(is_meant);
        streams.iter().for_each(|stream| stream.resumed(self));
    }

    fn broker(&self) -> &Arc<dyn Streams> {
        self.broker
            .get()
            .expect("`start` is called before the first join")
    }

    /// Counts an entry that cannot be decoded.
    fn malformed(&self, channel: &ChannelName, error: &BadEnvelope) {
        self.metrics.dropped(DropReason::Malformed, 1);
        debug!(%channel, %error, "publication dropped: it cannot be decoded");
    }
}

impl Deliver for ChannelStreams {
    fn deliver(&self, publications: Vec<Publication>) {
        let mut relayed = Vec::new();
        for publication in publications {
            if !publication.channel.is_wire() {
                relayed.push(publication);
                continue;
            }
            let stream = self.streams.read().get(&publication.channel).cloned();
            let Some(stream) = stream else {
                continue; // It has ended, and the broker is not unsubscribed yet.
            };
            match envelope::decode(publication.data) {
                Ok(envelope) => stream.handle(self, envelope),
                Err(error) => self.malformed(&publication.channel, &error),
            }
        }
        if !relayed.is_empty() {
            self.hub.deliver(relayed);
        }
    }

    fn interrupted(&self, shard: Shard) {
        self.interrupt_streams(|of| of == shard);
    }

    fn resumed(&self, shard: Shard) {
        self.resume_streams(|of| of == shard);
    }

    fn interrupted_all(&self, shards: &HashSet<Shard>) {
        self.interrupt_streams(|of| shards.contains(&of));
    }

    fn resumed_all(&self, shards: &HashSet<Shard>) {
        self.resume_streams(|of| shards.contains(&of));
    }
}

#[cfg(test)]
mod tests;
