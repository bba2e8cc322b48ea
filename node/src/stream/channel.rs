//! One channel's stream: its state under a lock, and the asynchronous work around it.

mod arriving;
mod membership;

use std::pin::pin;
use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::OnceCell;
use tokio::time::Instant;
use tracing::debug;
use tracing::warn;

use super::ChannelStreams;
use super::JoinRequest;
use super::sequence::CacheLimits;
use super::sequence::Lost;
use super::sequence::Missed;
use super::sequence::Read;
use super::sequence::Recovery;
use super::state::JoinDecision;
use super::state::Known;
use super::state::Reading;
use super::state::Received;
use super::state::State;
use crate::broker::Ask;
use crate::broker::Shard;
use crate::broker::Unavailable;
use crate::broker::history::Order;
use crate::broker::history::Query;
use crate::broker::history::Retention;
use crate::config;
use crate::config::SlowReader;
use crate::hub;
use crate::hub::Delivered;
use crate::hub::outbox::Hold;
use crate::lifecycle::Lifecycle;
use crate::metrics::DropReason;
use crate::metrics::Recovered;
use crate::protocol::Event;
use crate::protocol::Join;
use crate::protocol::Leave;
use crate::protocol::Position;
use crate::protocol::Publication;
use crate::protocol::Push;
use crate::protocol::UnsubscribeCode;
use crate::protocol::channel::ChannelName;
use crate::protocol::envelope;
use crate::protocol::envelope::ChannelEvent;
use crate::protocol::envelope::Envelope;

pub(crate) use arriving::Arriving;
pub(crate) use membership::Cut;
pub(super) use membership::InUse;
pub(crate) use membership::Joined;
pub(crate) use membership::Membership;

use arriving::ArrivingMembers;

/// The stream of one channel, from its first member until `linger` after its last one has left.
pub(super) struct ChannelStream {
    pub(super) channel: ChannelName,
    pub(super) wire: ChannelName,
    /// The channel's name in the hub. It is unique to this stream, so that members of an earlier stream of the same
    /// channel receive nothing from this one.
    pub(super) hub_channel: ChannelName,
    pub(super) shard: Shard,
    retention: Option<Retention>,
    slow: SlowReader,
    config: config::ChannelStreams,
    state: Mutex<State>,
    /// Notified when waiting joins should be tried again.
    changed: Notify,
    opened: OnceCell<()>,
    older: Mutex<Weak<Older>>,
    /// Members that other nodes hand off to this one. Locked after `state`, and while something is delivered that they must
    /// get.
    arriving: Mutex<ArrivingMembers>,
    pub(super) usage: Usage,
    /// Counts its members, if its namespace has lifecycle events.
    lifecycle: Option<Arc<Lifecycle>>,
}

/// What keeps the stream in use.
#[derive(Default)]
pub(super) struct Usage {
    /// Members and joins that are in progress.
    pub(super) users: AtomicUsize,
    /// Whether a check of the maintenance task is scheduled.
    pub(super) is_listed: AtomicBool,
}

/// Older publications, read from the broker; concurrent joins share one read.
type Older = OnceCell<Read>;

/// Publications read at once to fill a gap.
const GAP_PAGE: usize = 1000;

/// The result of an attempt to join.
pub(super) enum Outcome<F> {
    Joined(Membership),
    /// The stream has ended. Returns the reply function unused.
    Ended(F),
}

/// The next step of an attempt to join.
enum Next {
    End,
    Wait,
    Read,
    /// Reads publications before this offset.
    ReadOlder(u64),
    Reply(PendingReply),
}

/// A member that has joined and whose reply is not sent yet.
struct PendingReply {
    /// Reserves the reply's place in the outbox.
    hold: Hold,
    subscriber: hub::Subscriber,
    joins: Option<Box<hub::Subscriber>>,
    /// The stream's position at the join.
    position: Option<Position>,
    missed: Missed,
    /// What another node has not delivered, and no history holds; `None` also if that is not known.
    held: Option<Vec<Event>>,
}

impl PendingReply {
    fn recovery(&self) -> Recovered {
        match self.missed {
            Missed::These(_) => Recovered::Hit,
            Missed::TooMuch => Recovered::OverLimit,
            Missed::Older { .. } | Missed::Unknown => Recovered::Miss,
        }
    }

    /// Sends the reply, outside of all locks because it may be large.
    fn send(
        self,
        request: &JoinRequest<'_>,
        in_use: InUse,
        reply: impl FnOnce(Joined<'_>) -> Bytes,
    ) -> Membership {
        let publications = match &self.missed {
            Missed::These(publications) => publications.as_slice(),
            Missed::Older { .. } | Missed::TooMuch | Missed::Unknown => &[],
        };
        let joined = Joined {
            position: self.position.as_ref(),
            is_recovered: request.since.is_some() && matches!(self.missed, Missed::These(_)),
            publications,
            held: self.held.as_deref(),
        };
        if request.since.is_some() && request.arriving.is_none() {
            let (recovery, limits) = (self.recovery(), in_use.stream().config);
            in_use.streams().metrics.recovered(recovery);
            if recovery == Recovered::OverLimit {
                debug!(
                    channel = %request.channel,
                    recovery = limits.recovery_max,
                    history_bytes = limits.reply_bytes_max,
                    "recovery denied: the client has missed more than `channels.limits` allow"
                );
            }
        }
        request.member.release(self.hold, &reply(joined));
        Membership::new(self.subscriber, self.joins, in_use)
    }
}

impl ChannelStream {
    pub(super) fn new(
        channel: ChannelName,
        number: u64,
        shard: Shard,
        retention: Option<Retention>,
        slow: SlowReader,
        config: config::ChannelStreams,
        lifecycle: Option<Arc<Lifecycle>>,
    ) -> Arc<Self> {
        let wire = ChannelName::wire(&channel);
        Arc::new(Self {
            hub_channel: wire.numbered(number),
            channel,
            wire,
            shard,
            retention,
            slow,
            config,
            state: Mutex::new(State::new()),
            changed: Notify::new(),
            opened: OnceCell::new(),
            older: Mutex::default(),
            arriving: Mutex::default(),
            usage: Usage::default(),
            lifecycle,
        })
    }

    /// Counts a member that has joined.
    pub(super) fn member_joined(&self) {
        if let Some(lifecycle) = &self.lifecycle {
            lifecycle.subscribed(&self.channel);
        }
    }

    /// Counts a member that has left.
    pub(super) fn member_left(&self) {
        if let Some(lifecycle) = &self.lifecycle {
            lifecycle.unsubscribed(&self.channel);
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.state.lock().has_ended()
    }

    #[cfg(test)]
    pub(super) fn position(&self) -> Option<Position> {
        self.state.lock().position().cloned()
    }

    /// Handles an event from the broker, and delivers what can be delivered.
    pub(super) fn handle(self: &Arc<Self>, streams: &ChannelStreams, envelope: Envelope) {
        let now = Instant::now().into_std();
        let publication = match envelope.event {
            ChannelEvent::Publication(publication) => publication,
            ChannelEvent::Join(info) => {
                let info = Some(info);
                self.push_join_leave(streams, Event::Join(Join { info }));
                return;
            }
            ChannelEvent::Leave(info) => {
                let info = Some(info);
                self.push_join_leave(streams, Event::Leave(Leave { info }));
                return;
            }
            ChannelEvent::Restarted => {
                // The history says whether it is a later epoch than that of this stream.
                if self.state.lock().doubt() {
                    streams.request_read(self);
                }
                return;
            }
        };
        let publication = Arc::new(self.to_store(publication));
        let mut state = self.state.lock();
        match state.receive(envelope.position.as_ref(), &publication, now) {
            Ok(Received::Deliver) => {
                if envelope.position.is_none() || state.position().is_none() {
                    self.hold_for_arriving(&publication);
                }
                if self.deliver(streams, &publication) == Delivered::No
                    && state.position().is_some()
                {
                    self.unsubscribe_members(streams, &mut state, Lost::Congested);
                    drop(state);
                    streams.remove(self);
                }
            }
            Ok(Received::Repeat) => streams.metrics.dropped(DropReason::Repeated, 1),
            Ok(Received::Gap) => {
                drop(state);
                streams.metrics.gaps_noticed.inc();
                streams.request_read(self);
            }
            Ok(Received::Held | Received::Ended) => {}
            Err(lost) => {
                streams.metrics.gaps_noticed.inc();
                self.unsubscribe_members(streams, &mut state, lost);
                drop(state);
                streams.remove(self);
            }
        }
    }

    /// The broker's connection is lost: nothing is received.
    pub(super) fn interrupted(&self) {
        self.state.lock().interrupted();
    }

    /// The broker's connection is back.
    pub(super) fn resumed(self: &Arc<Self>, streams: &ChannelStreams) {
        let wants_read = self.state.lock().resumed();
        if wants_read {
            streams.request_read(self);
        } else {
            self.changed.notify_waiters();
        }
    }

    /// Adds a member once the stream's position is known. The place of its reply is reserved under the lock that
    /// deliveries take too; the reply is written outside of it.
    pub(super) async fn join<F>(
        in_use: InUse,
        request: &JoinRequest<'_>,
        reply: F,
    ) -> Result<Outcome<F>, Unavailable>
    where
        F: FnOnce(Joined<'_>) -> Bytes + Send,
    {
        let (streams, stream) = (Arc::clone(in_use.streams()), Arc::clone(in_use.stream()));
        stream
            .opened
            .get_or_try_init(|| stream.open(&streams))
            .await?;
        let (mut older, mut verified_by) = (None::<Arc<Older>>, None);
        loop {
            let mut changed = pin!(stream.changed.notified());
            changed.as_mut().enable(); // Before the state is read, or a change in between is missed.
            let next = {
                let mut state = stream.state.lock();
                let known = Known {
                    older: older.as_ref().and_then(|older| older.get()),
                    verified_by,
                };
                match state.join(request.since, &known, Instant::now().into_std()) {
                    JoinDecision::Never => Next::End,
                    JoinDecision::Later => Next::Wait,
                    JoinDecision::Ahead => {
                        verified_by = Some(state.request_verification());
                        Next::Read
                    }
                    JoinDecision::Now(Missed::Older { before }) => Next::ReadOlder(before),
                    JoinDecision::Now(missed) => {
                        Next::Reply(stream.add_member(&streams, &state, request, missed))
                    }
                }
            };
            match next {
                Next::End => return Ok(Outcome::Ended(reply)),
                Next::Wait => changed.await,
                Next::Read => streams.request_read(&stream),
                Next::ReadOlder(before) => {
                    older = Some(stream.older(&streams, older, before).await?)
                }
                Next::Reply(pending) => {
                    return Ok(Outcome::Joined(pending.send(request, in_use, reply)));
                }
            }
        }
    }

    /// Adds a member to the hub, after reserving the place of its reply. Called under the lock, so the member receives
    /// everything that is delivered from now on.
    fn add_member(
        &self,
        streams: &ChannelStreams,
        state: &State,
        request: &JoinRequest<'_>,
        missed: Missed,
    ) -> PendingReply {
        let mut arriving = self.arriving.lock();
        let held = request.arriving.and_then(|number| arriving.take(number));
        let hold = request.member.hold();
        let (name, member) = (&self.hub_channel, request.member.clone());
        let subscriber = streams.hub.join_stream(name, member, self.slow);
        let joins = request
            .receives_joins
            .then(|| self.add_member_for_joins(streams, request));
        PendingReply {
            hold,
            subscriber,
            joins: joins.map(Box::new),
            position: state.position().cloned(),
            missed,
            held,
        }
    }

    /// Adds a member to the separate hub channel for join and leave events, so that they are encoded once and only for
    /// members that receive them.
    fn add_member_for_joins(
        &self,
        streams: &ChannelStreams,
        request: &JoinRequest<'_>,
    ) -> hub::Subscriber {
        let member = request.member.clone();
        streams.hub.join_stream(
            &self.hub_channel_for_joins(),
            member,
            SlowReader::Disconnect,
        )
    }

    fn hub_channel_for_joins(&self) -> ChannelName {
        self.hub_channel.numbered(0)
    }

    /// Waits until the broker has confirmed the subscription, and reads the newest publications.
    async fn open(self: &Arc<Self>, streams: &ChannelStreams) -> Result<(), Unavailable> {
        loop {
            let interruptions = self.state.lock().open();
            streams.broker().subscribed(&self.wire).await?;
            let stream = match &self.retention {
                Some(retention) => {
                    let config = &self.config;
                    let limits = CacheLimits {
                        size: retention.size.get(),
                        bytes_max: config.ring_bytes_max,
                        ttl: retention.ttl,
                        recovery: Recovery {
                            publications_max: config.recovery_max,
                            bytes_max: config.reply_bytes_max,
                        },
                    };
                    let newest = Query {
                        since: None,
                        limit: limits.publications_max(),
                        bytes_max: limits.bytes_max,
                        order: Order::NewestFirst,
                    };
                    Some((limits, self.read(streams, newest).await?))
                }
                None => None,
            };
            let mut state = self.state.lock();
            match state.opened(interruptions, stream, Instant::now().into_std()) {
                Ok(true) => {
                    let wants_read = state.wants_read();
                    drop(state);
                    if wants_read {
                        streams.request_read(self);
                    }
                    return Ok(());
                }
                Ok(false) => {}
                Err(lost) => {
                    self.unsubscribe_members(streams, &mut state, lost);
                    drop(state);
                    streams.remove(self);
                    return Ok(());
                }
            }
        }
    }

    /// Reads a part of the history. The result is in order, whatever the order of the query.
    async fn read(&self, streams: &ChannelStreams, query: Query) -> Result<Read, Unavailable> {
        let Some(retention) = self.retention else {
            return Err(Unavailable("the channel keeps no history".to_owned()));
        };
        let order = query.order;
        let since = match (order, &query.since) {
            (Order::OldestFirst, Some(since)) => since.offset,
            _ => 0,
        };
        let ask = Ask {
            channel: self.channel.clone(),
            retention,
            query,
        };
        let page = streams.broker().history(ask).await?;
        let publications = page.entries.into_iter().filter_map(|entry| {
            // An entry that cannot be decoded leaves a gap, which is detected.
            let publication = envelope::decode_body(entry.offset, entry.body);
            publication
                .inspect_err(|error| streams.malformed(&self.wire, error))
                .ok()
        });
        let mut publications: Vec<_> = publications
            .map(|one| Arc::new(self.to_store(one)))
            .collect();
        if order == Order::NewestFirst {
            publications.reverse();
        }
        Ok(Read {
            since,
            position: page.position,
            publications,
            is_cut: page.is_cut,
            origin: page.origin,
        })
    }

    /// Reads publications before an offset, as many as one recovery may return. Concurrent joins share one read.
    async fn older(
        &self,
        streams: &ChannelStreams,
        outdated: Option<Arc<Older>>,
        before: u64,
    ) -> Result<Arc<Older>, Unavailable> {
        let older = {
            let mut shared = self.older.lock();
            let current = shared.upgrade().filter(|older| {
                outdated
                    .as_ref()
                    .is_none_or(|outdated| !Arc::ptr_eq(older, outdated))
            });
            current.unwrap_or_else(|| {
                let new = Arc::default();
                *shared = Arc::downgrade(&new);
                new
            })
        };
        let position = self.state.lock().position().cloned();
        let query = Query {
            since: position.map(|position| Position {
                offset: before,
                ..position
            }),
            limit: self.config.recovery_max,
            bytes_max: self.config.reply_bytes_max,
            order: Order::NewestFirst,
        };
        older.get_or_try_init(|| self.read(streams, query)).await?;
        Ok(older)
    }

    /// Reads missing publications until there is no gap, or until it is certain that they are gone.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: the read has to be repeated.
    pub(super) async fn fill(
        self: &Arc<Self>,
        streams: &ChannelStreams,
    ) -> Result<(), Unavailable> {
        loop {
            let Some(reading) = self.state.lock().begin_read() else {
                return Ok(());
            };
            let query = Query {
                since: Some(reading.since.clone()),
                limit: GAP_PAGE,
                bytes_max: self.config.ring_bytes_max,
                order: Order::OldestFirst,
            };
            let read = self.read(streams, query).await;
            let mut state = self.state.lock();
            let read = read.inspect_err(|_| state.read_failed())?;
            if !self.absorb(streams, &mut state, &reading, read) {
                drop(state);
                streams.remove(self);
                return Ok(());
            }
        }
    }

    /// Delivers what was read. Returns false if the stream has ended.
    fn absorb(
        &self,
        streams: &ChannelStreams,
        state: &mut State,
        reading: &Reading,
        read: Read,
    ) -> bool {
        match state.absorb(reading, read, Instant::now().into_std()) {
            Ok(found) => {
                if !found.is_empty() {
                    debug!(channel = %self.channel, count = found.len(), "missing publications read from the history and delivered");
                    streams.metrics.gaps_filled.inc();
                }
                let deliver = |publication: &Arc<_>| self.deliver(streams, publication);
                if !found
                    .iter()
                    .map(deliver)
                    .all(|delivered| delivered == Delivered::Yes)
                {
                    self.unsubscribe_members(streams, state, Lost::Congested);
                    return false;
                }
                self.changed.notify_waiters();
                true
            }
            Err(lost) => {
                self.unsubscribe_members(streams, state, lost);
                false
            }
        }
    }

    /// Unsubscribes every member because of `lost`, and ends the stream. The caller must then remove it from the map.
    fn unsubscribe_members(&self, streams: &ChannelStreams, state: &mut State, lost: Lost) {
        if !state.end() {
            return;
        }
        // Throttled: all channels may be lost at once, with their broker.
        if let Some(held_back) = streams.lost_log.admit(Instant::now().into_std()) {
            warn!(channel = %self.channel, %lost, held_back, "channel stream lost, members are unsubscribed and have to recover");
        }
        streams.metrics.gaps_announced.inc();
        // Before the last push: nothing of the channel may follow it.
        streams.hub.end_at_once(&self.hub_channel_for_joins());
        let push = Push::unsubscribe(self.channel.as_str(), UnsubscribeCode::InsufficientState);
        streams.hub.deliver_last(&self.hub_channel, &push);
        self.changed.notify_waiters();
    }

    /// Ends a stream that has no members.
    pub(super) fn end(&self) {
        self.state.lock().end();
    }

    /// Unsubscribes every member, ends the stream and removes it from the map.
    pub(super) fn abandon(self: &Arc<Self>, streams: &ChannelStreams, lost: Lost) {
        self.unsubscribe_members(streams, &mut self.state.lock(), lost);
        streams.remove(self);
    }

    fn deliver(&self, streams: &ChannelStreams, publication: &Arc<Publication>) -> Delivered {
        #[cfg(debug_assertions)]
        if let Some(sabotage) = &streams.sabotage {
            return sabotage.deliver(streams, self, publication);
        }
        self.push_publication(streams, publication)
    }

    pub(super) fn push_publication(
        &self,
        streams: &ChannelStreams,
        publication: &Publication,
    ) -> Delivered {
        self.push(streams, Event::Publication(publication.clone()))
    }

    fn push(&self, streams: &ChannelStreams, event: Event) -> Delivered {
        let push = Push::new(self.channel.as_str(), event);
        streams.hub.deliver_push(&self.hub_channel, &push)
    }

    /// Delivers a join or leave event to the members that receive them.
    fn push_join_leave(&self, streams: &ChannelStreams, event: Event) {
        let mut arriving = self.arriving.lock();
        if !arriving.is_empty() {
            arriving.hold(&event);
        }
        let push = Push::new(self.channel.as_str(), event);
        streams
            .hub
            .deliver_push(&self.hub_channel_for_joins(), &push);
    }

    /// Holds a publication that has no position for members that other nodes hand off to this one. Called under the lock of
    /// the state, as joins are.
    fn hold_for_arriving(&self, publication: &Publication) {
        let mut arriving = self.arriving.lock();
        if !arriving.is_empty() {
            arriving.hold(&Event::Publication(publication.clone()));
        }
    }

    /// Adds a member that another node hands off; it joins later.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: the stream cannot be opened, or receives nothing now.
    pub(super) async fn expect(
        in_use: InUse,
        request: &JoinRequest<'_>,
        bytes_max: usize,
    ) -> Result<Arriving, Unavailable> {
        let (streams, stream) = (Arc::clone(in_use.streams()), Arc::clone(in_use.stream()));
        stream
            .opened
            .get_or_try_init(|| stream.open(&streams))
            .await?;
        let state = stream.state.lock();
        if !state.is_receiving() {
            return Err(Unavailable("the channel is not received now".to_owned()));
        }
        if state.position().is_some() != request.retention.is_some() {
            return Err(Unavailable("the channel has another history".to_owned()));
        }
        let number = { stream.arriving.lock() }.add(request.receives_joins, bytes_max);
        drop(state);
        Ok(Arriving { in_use, number })
    }

    /// Copies `publication` if the stream stores it: it may be a slice that would keep a large read in memory.
    fn to_store(&self, publication: Publication) -> Publication {
        if self.retention.is_none() {
            return publication;
        }
        let own = |bytes: Bytes| Bytes::copy_from_slice(&bytes);
        Publication {
            data: own(publication.data),
            info: publication.info.map(|info| crate::protocol::ClientInfo {
                conn_info: own(info.conn_info),
                chan_info: own(info.chan_info),
                ..info
            }),
            ..publication
        }
    }
}
