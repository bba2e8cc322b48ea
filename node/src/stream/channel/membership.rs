//! Who needs a feed: members, and those who are about to be.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Feed;
use crate::hub;
use crate::protocol::Position;
use crate::protocol::Publication;
use crate::protocol::channel::ChannelName;
use crate::stream::Feeds;

/// What a member is told when it joins.
#[derive(Debug)]
pub(crate) struct Joined<'a> {
    /// Where the stream is, if the channel keeps a history: everything after that will come.
    pub(crate) position: Option<&'a Position>,
    /// Whether `publications` is all that was missed. Never without a position to recover from.
    pub(crate) is_recovered: bool,
    /// What was missed, in order.
    pub(crate) publications: &'a [Arc<Publication>],
}

/// A member of a channel, until it is dropped.
pub(crate) struct Membership {
    /// Dropped first: who has no seat needs no feed.
    seat: hub::Membership,
    /// For joins and leaves; in a box, because most members have none.
    _joins: Option<Box<hub::Membership>>,
    using: Using,
}

/// Keeps a feed from being idle.
pub(in crate::stream) struct Using {
    feeds: Arc<Feeds>,
    feed: Arc<Feed>,
}

impl Membership {
    pub(super) fn new(
        seat: hub::Membership,
        joins: Option<Box<hub::Membership>>,
        using: Using,
    ) -> Self {
        using.feed.member_joined();
        Self {
            seat,
            _joins: joins,
            using,
        }
    }

    /// The channel, by the one copy of its name that all its members may share.
    pub(crate) fn channel(&self) -> &ChannelName {
        &self.using.feed.channel
    }

    /// Whether the feed has ended: then the member is told so, and hears the channel no more.
    pub(crate) fn has_ended(&self) -> bool {
        self.using.feed.has_ended()
    }

    /// Whether the member has been told so. If it leaves before, it is not told.
    pub(crate) fn is_over(&self) -> bool {
        self.seat.is_over()
    }

    /// Waits until the member has been sent all that was published before this call, or for as long as
    /// `patience`.
    pub(crate) fn flushed(&self, patience: Duration) -> impl Future<Output = ()> + Send + use<> {
        self.seat.flushed(patience)
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.using.feed.member_left();
    }
}

impl Using {
    /// To be called under the lock of the map, so that the feed does not go meanwhile.
    pub(in crate::stream) fn new(feeds: &Arc<Feeds>, feed: &Arc<Feed>) -> Self {
        feed.usage.users.fetch_add(1, Ordering::AcqRel);
        Self {
            feeds: Arc::clone(feeds),
            feed: Arc::clone(feed),
        }
    }

    pub(in crate::stream) fn feeds(&self) -> &Arc<Feeds> {
        &self.feeds
    }

    pub(in crate::stream) fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }
}

impl Drop for Using {
    fn drop(&mut self) {
        if self.feed.usage.users.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.feeds.left(&self.feed);
        }
    }
}
