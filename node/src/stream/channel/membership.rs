//! What keeps a stream in use: its members, and joins that are in progress.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::ChannelStream;
use crate::hub;
use crate::protocol::Position;
use crate::protocol::Publication;
use crate::protocol::channel::ChannelName;
use crate::stream::ChannelStreams;

/// What the reply to a join contains.
#[derive(Debug)]
pub(crate) struct Joined<'a> {
    /// The stream's position, if the channel has a history: the member receives everything after it.
    pub(crate) position: Option<&'a Position>,
    /// Whether `publications` is all that was missed. Always false without a position to recover from.
    pub(crate) is_recovered: bool,
    /// The publications that were missed, in order.
    pub(crate) publications: &'a [Arc<Publication>],
}

/// Membership of a client in a channel; dropping it ends the membership.
pub(crate) struct Membership {
    /// Dropped before `in_use`: the stream must outlive its subscribers.
    subscriber: hub::Subscriber,
    /// For join and leave events; boxed because most members have none.
    _joins: Option<Box<hub::Subscriber>>,
    in_use: InUse,
}

/// Guard that keeps a stream in use.
pub(in crate::stream) struct InUse {
    streams: Arc<ChannelStreams>,
    stream: Arc<ChannelStream>,
}

impl Membership {
    pub(super) fn new(
        subscriber: hub::Subscriber,
        joins: Option<Box<hub::Subscriber>>,
        in_use: InUse,
    ) -> Self {
        in_use.stream.member_joined();
        Self {
            subscriber,
            _joins: joins,
            in_use,
        }
    }

    /// The channel's name, as the one copy that all its members share.
    pub(crate) fn channel(&self) -> &ChannelName {
        &self.in_use.stream.channel
    }

    /// Whether the stream has ended. The member is then sent an unsubscribe and receives nothing more.
    pub(crate) fn has_ended(&self) -> bool {
        self.in_use.stream.has_ended()
    }

    /// Whether that unsubscribe is written. If the member leaves before, it is not sent.
    pub(crate) fn is_over(&self) -> bool {
        self.subscriber.is_over()
    }

    /// Waits until all that was published before this call is written to the member, for at most `max_wait`.
    pub(crate) fn flushed(&self, max_wait: Duration) -> impl Future<Output = ()> + Send + use<> {
        self.subscriber.flushed(max_wait)
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.in_use.stream.member_left();
    }
}

impl InUse {
    /// Must be called under the lock of the map, so that the stream is not removed meanwhile.
    pub(in crate::stream) fn new(
        streams: &Arc<ChannelStreams>,
        stream: &Arc<ChannelStream>,
    ) -> Self {
        stream.usage.users.fetch_add(1, Ordering::AcqRel);
        Self {
            streams: Arc::clone(streams),
            stream: Arc::clone(stream),
        }
    }

    pub(in crate::stream) fn streams(&self) -> &Arc<ChannelStreams> {
        &self.streams
    }

    pub(in crate::stream) fn stream(&self) -> &Arc<ChannelStream> {
        &self.stream
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        if self.stream.usage.users.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.streams.became_unused(&self.stream);
        }
    }
}
