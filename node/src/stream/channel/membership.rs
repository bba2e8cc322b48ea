//! What keeps a stream in use: its members, and joins that are in progress.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;

use super::ChannelStream;
use crate::broker::Shard;
use crate::hub;
use crate::protocol::Event;
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
    /// For a member that another node hands off: what that has not delivered, and no history holds; `None` if that is not
    /// known.
    pub(crate) held: Option<&'a [Event]>,
}

/// Where the deliveries to a member have ended.
pub(crate) struct Cut {
    /// The stream's position there; `None` if the channel has no history.
    pub(crate) position: Option<Position>,
    /// Complete once all before is in the member's outbox.
    pub(crate) written: Vec<oneshot::Receiver<()>>,
}

/// Membership of a client in a channel; dropping it ends the membership.
pub(crate) struct Membership {
    /// Dropped before `in_use`: the stream must outlive its subscribers.
    subscriber: hub::Subscriber,
    /// For join and leave events; boxed because most members have none.
    joins: Option<Box<hub::Subscriber>>,
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
            joins,
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

    /// Whether the member receives join and leave events.
    pub(crate) fn receives_joins(&self) -> bool {
        self.joins.is_some()
    }

    /// Whether the channel has a history.
    pub(crate) fn has_history(&self) -> bool {
        self.in_use.stream.retention.is_some()
    }

    /// The server that carries the channel.
    pub(crate) fn shard(&self) -> Shard {
        self.in_use.stream.shard
    }

    /// Ends the deliveries exactly here; `None` if the stream has ended.
    pub(crate) fn cut(&self) -> Option<Cut> {
        let stream = &self.in_use.stream;
        let state = stream.state.lock(); // Deliveries take it too, so the position is that of the last one.
        if state.has_ended() {
            return None;
        }
        let position = state.position().cloned();
        let joins = self.joins.as_deref();
        let subscribers = [Some(&self.subscriber), joins].into_iter().flatten();
        Some(Cut {
            position,
            written: subscribers.map(hub::Subscriber::leave_here).collect(),
        })
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

    /// Another guard of the same stream.
    pub(in crate::stream) fn again(&self) -> Self {
        Self::new(&self.streams, &self.stream) // It is in use, so it is not removed.
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
