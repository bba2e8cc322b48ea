//! Channels as this node hears them: each one's stream without a hole, and who joins it where.
//!
//! ```text
//! broker ─▶ Feeds ─▶ Feed (the next one? a repeat? a gap?) ─▶ hub ─▶ members
//!                     └ the newest publications, for those who come back
//! ```
//! A [`Feed`] is made for a channel's first member and ends a while after its last. If the channel keeps
//! a history, the feed knows its position in the channel's stream and delivers every publication once and
//! in order. What is missing (another offset than expected, a lost connection, a changed server) is read
//! from the stream; if that can no longer be done, every member is told so with an unsubscribe and the
//! feed ends. Nothing is passed over in silence.
//!
//! Channels of relay endpoints have no feed: their publications go straight to the hub.
//!
//! A debug build can be told to do its worst (`sabotage`), so that what checks all this is seen to work.
//!
//! Invariant: the broker is asked for a channel if and only if its feed is in the map.

use std::collections::HashMap;
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
use crate::logging::Pace;
use crate::metrics::DropReason;
use crate::metrics::Metrics;
use crate::protocol::Position;
use crate::protocol::channel::ChannelName;
use crate::protocol::envelope;
use crate::protocol::envelope::BadEnvelope;
use crate::protocol::publication::Publication;

mod census;
mod channel;
mod keeper;
mod publish;
#[cfg(debug_assertions)]
mod sabotage;
mod sequence;
mod state;

pub(crate) use channel::Joined;
pub(crate) use channel::Membership;
pub(crate) use publish::History;
pub(crate) use publish::How;
pub(crate) use publish::PublishFailed;

use channel::Feed;
use channel::Outcome;
use channel::Using;

/// Who wants to hear what.
#[derive(Clone, Copy)]
pub(crate) struct Joining<'a> {
    pub(crate) channel: &'a ChannelName,
    /// What the channel keeps.
    pub(crate) retention: Option<Retention>,
    /// What becomes of members that read too slowly.
    pub(crate) slow: SlowReader,
    pub(crate) member: &'a Member,
    /// Whether the member is told who comes and goes, too.
    pub(crate) hears_joins: bool,
    /// Up to where the member has heard everything, if it was here before.
    pub(crate) since: Option<&'a Position>,
    /// Whether the channel has lifecycle events.
    pub(crate) has_lifecycle: bool,
}

/// The feeds of all channels that this node hears.
pub(crate) struct Feeds {
    config: config::Feeds,
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    /// It is started with this value as its `deliver`, so it comes later.
    broker: OnceLock<Arc<dyn Streams>>,
    /// Where it is noted which channels have subscribers here; unset without lifecycle events.
    lifecycle: OnceLock<Arc<Lifecycle>>,
    /// By their names on the wire.
    feeds: RwLock<HashMap<ChannelName, Arc<Feed>>>,
    feeds_made: AtomicU64,
    /// For the log lines about them.
    announcements: Pace,
    due: Mutex<Due>,
    changed: Notify,
    #[cfg(debug_assertions)]
    sabotage: Option<sabotage::Sabotage>,
}

/// What the keeper has to look at.
#[derive(Default)]
struct Due {
    /// Feeds whose stream is to be read, and since when.
    reads: VecDeque<(Instant, Arc<Feed>)>,
    /// Feeds that had no members a moment ago, and when to look again.
    idle: VecDeque<(Instant, Arc<Feed>)>,
}

impl Feeds {
    /// Without a feed. [`start`](Self::start) has to follow before anything else is called.
    pub(crate) fn new(config: config::Feeds, hub: Arc<Hub>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            config,
            hub,
            metrics,
            broker: OnceLock::new(),
            lifecycle: OnceLock::new(),
            feeds: RwLock::default(),
            feeds_made: AtomicU64::new(0),
            announcements: Pace::default(),
            due: Mutex::default(),
            changed: Notify::new(),
            #[cfg(debug_assertions)]
            sabotage: sabotage::Sabotage::asked_for(),
        })
    }

    /// Lets feeds use `broker`, which delivers to this value.
    pub(crate) fn start(&self, broker: Arc<dyn Streams>) {
        assert!(self.broker.set(broker).is_ok(), "it is started once");
    }

    /// Notes in `lifecycle` from now on which channels have subscribers.
    pub(crate) fn set_lifecycle(&self, lifecycle: Arc<Lifecycle>) {
        assert!(self.lifecycle.set(lifecycle).is_ok(), "it is set once");
    }

    /// Lets a member hear a channel, right behind what it is told by `reply`.
    ///
    /// Waits until this node certainly hears the channel and knows where its stream is. Then `reply` is
    /// called with what the member has missed, and what it returns is sent to the member before anything
    /// else of the channel: nothing is missing between the two, and nothing comes twice.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if that takes too long; `reply` is not called then.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future before it is ready leaves the member outside, and `reply` uncalled.
    pub(crate) async fn join<F>(
        self: &Arc<Self>,
        joining: Joining<'_>,
        mut reply: F,
    ) -> Result<Membership, Unavailable>
    where
        F: FnOnce(Joined<'_>) -> Bytes + Send,
    {
        let joined = time::timeout(self.config.join_timeout, async {
            loop {
                let using = self.using(&joining);
                match Feed::join(using, &joining, reply).await? {
                    Outcome::Seated(membership) => return Ok(membership),
                    Outcome::Ended(unused) => {
                        reply = unused;
                        task::yield_now().await; // Whoever has ended it is about to take it out of the map.
                    }
                }
            }
        });
        joined.await.unwrap_or_else(|_| {
            let timeout = self.config.join_timeout;
            Err(Unavailable(format!(
                "the channel could not be heard within {timeout:?}"
            )))
        })
    }

    /// The feed of `channel`, kept from being idle. A new one if there is none.
    fn using(self: &Arc<Self>, joining: &Joining<'_>) -> Using {
        let channel = joining.channel;
        let wire = ChannelName::wire(channel);
        if let Some(feed) = self.feeds.read().get(&wire) {
            return Using::new(self, feed);
        }
        let mut feeds = self.feeds.write();
        let feed = feeds.entry(wire.clone()).or_insert_with(|| {
            self.metrics.feeds.inc();
            self.broker().subscribe(&wire);
            Feed::new(
                channel.clone(),
                self.feeds_made.fetch_add(1, Ordering::Relaxed),
                self.broker().shard(&wire),
                joining.retention,
                joining.slow,
                self.config,
                self.lifecycle_of(joining),
            )
        });
        Using::new(self, feed)
    }

    fn lifecycle_of(&self, joining: &Joining<'_>) -> Option<Arc<Lifecycle>> {
        let lifecycle = self.lifecycle.get().filter(|_| joining.has_lifecycle);
        lifecycle.map(Arc::clone)
    }

    /// The last one who used `feed` no longer does.
    fn left(&self, feed: &Arc<Feed>) {
        if feed.usage.is_listed.swap(true, Ordering::AcqRel) {
            return;
        }
        let at = Instant::now() + self.config.linger;
        self.due.lock().idle.push_back((at, Arc::clone(feed)));
        self.changed.notify_one();
    }

    /// Takes a feed that has ended out of the map.
    fn remove(&self, feed: &Arc<Feed>) {
        self.remove_from(&mut self.feeds.write(), feed);
    }

    fn remove_from(&self, feeds: &mut HashMap<ChannelName, Arc<Feed>>, feed: &Arc<Feed>) {
        if feeds
            .get(&feed.wire)
            .is_some_and(|in_map| Arc::ptr_eq(in_map, feed))
        {
            feeds.remove(&feed.wire);
            feed.retire();
            self.broker().unsubscribe(&feed.wire); // Under the lock: a new feed's wish comes after it.
            self.metrics.feeds.dec();
        }
    }

    /// Has the keeper read what `feed` is missing.
    fn want_read(&self, feed: &Arc<Feed>) {
        let read = (Instant::now(), Arc::clone(feed));
        self.due.lock().reads.push_back(read);
        self.changed.notify_one();
    }

    /// How many feeds have ended although they had members, and have told them so. If it is the same number
    /// as before, no [`Membership`] is over that was not before.
    pub(crate) fn feeds_over(&self) -> u64 {
        self.hub.channels_over()
    }

    /// How many bytes of a channel's history one reply may carry.
    pub(crate) fn reply_bytes_max(&self) -> usize {
        self.config.reply_bytes_max
    }

    fn next_read(&self) -> Option<(Instant, Arc<Feed>)> {
        self.due.lock().reads.pop_front()
    }

    fn of_shard(&self, shard: Shard) -> Vec<Arc<Feed>> {
        let feeds = self.feeds.read();
        feeds
            .values()
            .filter(|feed| feed.shard == shard)
            .cloned()
            .collect()
    }

    fn broker(&self) -> &Arc<dyn Streams> {
        self.broker
            .get()
            .expect("it is started before anybody comes")
    }

    /// Counts bytes that no node can have sent.
    fn malformed(&self, channel: &ChannelName, error: &BadEnvelope) {
        self.metrics.dropped(DropReason::Malformed, 1);
        debug!(%channel, %error, "dropped what no node can have published");
    }
}

impl Deliver for Feeds {
    fn deliver(&self, publications: Vec<Publication>) {
        let mut relayed = Vec::new();
        for publication in publications {
            if !publication.channel.is_wire() {
                relayed.push(publication);
                continue;
            }
            let feed = self.feeds.read().get(&publication.channel).cloned();
            let Some(feed) = feed else {
                continue; // It has ended, and the broker has not been told yet.
            };
            match envelope::decode(publication.data) {
                Ok(envelope) => feed.take(self, envelope),
                Err(error) => self.malformed(&publication.channel, &error),
            }
        }
        if !relayed.is_empty() {
            self.hub.deliver(relayed);
        }
    }

    fn interrupted(&self, shard: Shard) {
        self.of_shard(shard)
            .iter()
            .for_each(|feed| feed.interrupted());
    }

    fn resumed(&self, shard: Shard) {
        self.of_shard(shard)
            .iter()
            .for_each(|feed| feed.resumed(self));
    }
}

#[cfg(test)]
mod tests;
