//! One feed: its state under a lock, and what is awaited around it.

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

use super::Feeds;
use super::Joining as Wish;
use super::sequence::Keeping;
use super::sequence::Lost;
use super::sequence::Missed;
use super::sequence::Read;
use super::sequence::Recovery;
use super::state::Heard;
use super::state::Joining;
use super::state::Known;
use super::state::Reading;
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

pub(crate) use membership::Joined;
pub(crate) use membership::Membership;
pub(super) use membership::Using;

/// A channel as this node hears it, from its first member to a while after its last.
pub(super) struct Feed {
    pub(super) channel: ChannelName,
    pub(super) wire: ChannelName,
    /// What the hub knows it by. Another feed of the same channel has another, so that nobody hears a feed
    /// that he has not joined.
    pub(super) seats: ChannelName,
    pub(super) shard: Shard,
    retention: Option<Retention>,
    slow: SlowReader,
    config: config::Feeds,
    state: Mutex<State>,
    /// Somebody may join now who could not before.
    changed: Notify,
    opened: OnceCell<()>,
    older: Mutex<Weak<Older>>,
    pub(super) usage: Usage,
    /// Where its members are counted, if its namespace has lifecycle events.
    lifecycle: Option<Arc<Lifecycle>>,
}

/// Who needs the feed.
#[derive(Default)]
pub(super) struct Usage {
    /// Members and those who are about to be.
    pub(super) users: AtomicUsize,
    /// Whether the keeper will look at it when nobody does.
    pub(super) is_listed: AtomicBool,
}

/// What the broker had of the stream when somebody asked; shared by all who ask meanwhile.
type Older = OnceCell<Read>;

/// Publications that fill a gap in one step.
const GAP_PAGE: usize = 1000;

/// How an attempt to join ends.
pub(super) enum Outcome<F> {
    Seated(Membership),
    /// The feed has ended; here is the reply again.
    Ended(F),
}

/// What an attempt to join does next.
enum Next {
    End,
    Wait,
    Read,
    /// Back from this offset on.
    ReadOlder(u64),
    Tell(Seated),
}

/// A member that is in and is yet to be told.
struct Seated {
    /// The place of what it is told.
    hold: Hold,
    seat: hub::Membership,
    joins: Option<Box<hub::Membership>>,
    /// Where it joined.
    position: Option<Position>,
    missed: Missed,
}

impl Seated {
    fn recovery(&self) -> Recovered {
        match self.missed {
            Missed::These(_) => Recovered::Hit,
            Missed::TooMuch => Recovered::OverLimit,
            Missed::Older { .. } | Missed::Unknown => Recovered::Miss,
        }
    }

    /// Tells the member, outside of all locks: a reply may be large.
    fn tell(
        self,
        wish: &Wish<'_>,
        using: Using,
        reply: impl FnOnce(Joined<'_>) -> Bytes,
    ) -> Membership {
        let publications = match &self.missed {
            Missed::These(publications) => publications.as_slice(),
            Missed::Older { .. } | Missed::TooMuch | Missed::Unknown => &[],
        };
        let joined = Joined {
            position: self.position.as_ref(),
            is_recovered: wish.since.is_some() && matches!(self.missed, Missed::These(_)),
            publications,
        };
        if wish.since.is_some() {
            let (recovery, limits) = (self.recovery(), using.feed().config);
            using.feeds().metrics.recovered(recovery);
            if recovery == Recovered::OverLimit {
                debug!(
                    channel = %wish.channel,
                    recovery = limits.recovery_max,
                    history_bytes = limits.reply_bytes_max,
                    "a client has missed more than `channels.limits` allow to recover"
                );
            }
        }
        wish.member.release(self.hold, &reply(joined));
        Membership::new(self.seat, self.joins, using)
    }
}

impl Feed {
    pub(super) fn new(
        channel: ChannelName,
        number: u64,
        shard: Shard,
        retention: Option<Retention>,
        slow: SlowReader,
        config: config::Feeds,
        lifecycle: Option<Arc<Lifecycle>>,
    ) -> Arc<Self> {
        let wire = ChannelName::wire(&channel);
        Arc::new(Self {
            seats: wire.numbered(number),
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
            usage: Usage::default(),
            lifecycle,
        })
    }

    /// Notes that a member has joined.
    pub(super) fn member_joined(&self) {
        if let Some(lifecycle) = &self.lifecycle {
            lifecycle.subscribed(&self.channel);
        }
    }

    /// Notes that a member has left.
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

    /// Takes what the broker brought, and delivers what is due.
    pub(super) fn take(self: &Arc<Self>, feeds: &Feeds, envelope: Envelope) {
        let now = Instant::now().into_std();
        let publication = match envelope.event {
            ChannelEvent::Publication(publication) => publication,
            ChannelEvent::Join(info) => {
                let info = Some(info);
                self.tell(feeds, Event::Join(Join { info }));
                return;
            }
            ChannelEvent::Leave(info) => {
                let info = Some(info);
                self.tell(feeds, Event::Leave(Leave { info }));
                return;
            }
        };
        let publication = Arc::new(self.to_keep(publication));
        let mut state = self.state.lock();
        match state.hear(envelope.position.as_ref(), &publication, now) {
            Ok(Heard::Deliver) => {
                if self.deliver(feeds, &publication) == Delivered::No && state.position().is_some()
                {
                    self.announce(feeds, &mut state, Lost::Congested);
                    drop(state);
                    feeds.remove(self);
                }
            }
            Ok(Heard::Repeat) => feeds.metrics.dropped(DropReason::Repeated, 1),
            Ok(Heard::Gap) => {
                drop(state);
                feeds.metrics.gaps_noticed.inc();
                feeds.want_read(self);
            }
            Ok(Heard::Held | Heard::Nobody) => {}
            Err(lost) => {
                feeds.metrics.gaps_noticed.inc();
                self.announce(feeds, &mut state, lost);
                drop(state);
                feeds.remove(self);
            }
        }
    }

    /// Nothing comes any more.
    pub(super) fn interrupted(&self) {
        self.state.lock().interrupted();
    }

    /// What is published comes again.
    pub(super) fn resumed(self: &Arc<Self>, feeds: &Feeds) {
        let wants_read = self.state.lock().resumed();
        if wants_read {
            feeds.want_read(self);
        } else {
            self.changed.notify_waiters();
        }
    }

    /// Lets a member in once the feed knows where it is. Its place is kept under the lock, which what the broker
    /// brings needs too; the reply is written outside of it.
    pub(super) async fn join<F>(
        using: Using,
        wish: &Wish<'_>,
        reply: F,
    ) -> Result<Outcome<F>, Unavailable>
    where
        F: FnOnce(Joined<'_>) -> Bytes + Send,
    {
        let (feeds, feed) = (Arc::clone(using.feeds()), Arc::clone(using.feed()));
        feed.opened.get_or_try_init(|| feed.open(&feeds)).await?;
        let (mut older, mut proof) = (None::<Arc<Older>>, None);
        loop {
            let mut changed = pin!(feed.changed.notified());
            changed.as_mut().enable(); // Before the look at the state, or a change between them is lost.
            let next = {
                let mut state = feed.state.lock();
                let known = Known {
                    older: older.as_ref().and_then(|older| older.get()),
                    proof,
                };
                match state.join(wish.since, &known, Instant::now().into_std()) {
                    Joining::Never => Next::End,
                    Joining::Later => Next::Wait,
                    Joining::Ahead => {
                        proof = Some(state.prove());
                        Next::Read
                    }
                    Joining::Now(Missed::Older { before }) => Next::ReadOlder(before),
                    Joining::Now(missed) => Next::Tell(feed.seat(&feeds, &state, wish, missed)),
                }
            };
            match next {
                Next::End => return Ok(Outcome::Ended(reply)),
                Next::Wait => changed.await,
                Next::Read => feeds.want_read(&feed),
                Next::ReadOlder(before) => older = Some(feed.older(&feeds, older, before).await?),
                Next::Tell(seated) => {
                    return Ok(Outcome::Seated(seated.tell(wish, using, reply)));
                }
            }
        }
    }

    /// Lets a member in, behind the place of its reply. Under the lock: what is delivered next finds it there.
    fn seat(&self, feeds: &Feeds, state: &State, wish: &Wish<'_>, missed: Missed) -> Seated {
        let hold = wish.member.hold();
        let (name, member) = (&self.seats, wish.member.clone());
        let seat = feeds.hub.join_fed(name, member, self.slow);
        let joins = wish.hears_joins.then(|| self.seat_for_joins(feeds, wish));
        Seated {
            hold,
            seat,
            joins: joins.map(Box::new),
            position: state.position().cloned(),
            missed,
        }
    }

    /// Who hears of joins and leaves sits in a channel of its own, so that what they hear is written down once,
    /// and nobody else is asked.
    fn seat_for_joins(&self, feeds: &Feeds, wish: &Wish<'_>) -> hub::Membership {
        let member = wish.member.clone();
        feeds
            .hub
            .join_fed(&self.seats_for_joins(), member, SlowReader::Disconnect)
    }

    fn seats_for_joins(&self) -> ChannelName {
        self.seats.numbered(0)
    }

    /// Waits until the channel is heard, and reads its stream.
    async fn open(self: &Arc<Self>, feeds: &Feeds) -> Result<(), Unavailable> {
        loop {
            let losses = self.state.lock().open();
            feeds.broker().subscribed(&self.wire).await?;
            let stream = match &self.retention {
                Some(retention) => {
                    let config = &self.config;
                    let keeping = Keeping {
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
                        limit: keeping.publications_max(),
                        bytes_max: keeping.bytes_max,
                        order: Order::NewestFirst,
                    };
                    Some((keeping, self.read(feeds, newest).await?))
                }
                None => None,
            };
            let mut state = self.state.lock();
            match state.opened(losses, stream, Instant::now().into_std()) {
                Ok(true) => {
                    let wants_read = state.wants_read();
                    drop(state);
                    if wants_read {
                        feeds.want_read(self);
                    }
                    return Ok(());
                }
                Ok(false) => {}
                Err(lost) => {
                    self.announce(feeds, &mut state, lost);
                    drop(state);
                    feeds.remove(self);
                    return Ok(());
                }
            }
        }
    }

    /// Reads a part of the stream; whatever the order of the query, in order.
    async fn read(&self, feeds: &Feeds, query: Query) -> Result<Read, Unavailable> {
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
        let page = feeds.broker().history(ask).await?;
        let publications = page.entries.into_iter().filter_map(|entry| {
            // What cannot be read leaves a hole, and that is noticed.
            let publication = envelope::decode_body(entry.offset, entry.body);
            publication
                .inspect_err(|error| feeds.malformed(&self.wire, error))
                .ok()
        });
        let mut publications: Vec<_> = publications
            .map(|one| Arc::new(self.to_keep(one)))
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

    /// What the broker has of the stream before an offset, as much of it as somebody may recover; read once for
    /// all who ask at a time.
    async fn older(
        &self,
        feeds: &Feeds,
        outdated: Option<Arc<Older>>,
        before: u64,
    ) -> Result<Arc<Older>, Unavailable> {
        let older = {
            let mut shared = self.older.lock();
            let at_hand = shared.upgrade().filter(|older| {
                outdated
                    .as_ref()
                    .is_none_or(|outdated| !Arc::ptr_eq(older, outdated))
            });
            at_hand.unwrap_or_else(|| {
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
        older.get_or_try_init(|| self.read(feeds, query)).await?;
        Ok(older)
    }

    /// Reads what is missing until nothing is, or until it is certain that it cannot be had.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: the read is wanted still.
    pub(super) async fn fill(self: &Arc<Self>, feeds: &Feeds) -> Result<(), Unavailable> {
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
            let read = self.read(feeds, query).await;
            let mut state = self.state.lock();
            let read = read.inspect_err(|_| state.read_failed())?;
            if !self.absorb(feeds, &mut state, &reading, read) {
                drop(state);
                feeds.remove(self);
                return Ok(());
            }
        }
    }

    /// Delivers what was read; whether the feed goes on.
    fn absorb(&self, feeds: &Feeds, state: &mut State, reading: &Reading, read: Read) -> bool {
        match state.absorb(reading, read, Instant::now().into_std()) {
            Ok(found) => {
                if !found.is_empty() {
                    debug!(channel = %self.channel, count = found.len(), "publications were missing, and are delivered");
                    feeds.metrics.gaps_filled.inc();
                }
                let deliver = |publication: &Arc<_>| self.deliver(feeds, publication);
                if !found
                    .iter()
                    .map(deliver)
                    .all(|delivered| delivered == Delivered::Yes)
                {
                    self.announce(feeds, state, Lost::Congested);
                    return false;
                }
                self.changed.notify_waiters();
                true
            }
            Err(lost) => {
                self.announce(feeds, state, lost);
                false
            }
        }
    }

    /// Tells every member that the channel can no longer be followed, and ends the feed. It has to be taken
    /// out of the map after that.
    fn announce(&self, feeds: &Feeds, state: &mut State, lost: Lost) {
        if !state.end() {
            return;
        }
        // All channels may be lost at once, with their broker.
        if let Some(held_back) = feeds.announcements.admit(Instant::now().into_std()) {
            warn!(channel = %self.channel, %lost, held_back, "members of the channel are told to start over");
        }
        feeds.metrics.gaps_announced.inc();
        // Before the last push, behind which nothing of the channel may come.
        feeds.hub.end_at_once(&self.seats_for_joins());
        let push = Push::unsubscribe(self.channel.as_str(), UnsubscribeCode::InsufficientState);
        feeds.hub.deliver_last(&self.seats, &push);
        self.changed.notify_waiters();
    }

    /// Ends a feed that nobody needs.
    pub(super) fn retire(&self) {
        self.state.lock().end();
    }

    /// [`announce`](Self::announce) for who is not in the middle of something.
    pub(super) fn give_up(self: &Arc<Self>, feeds: &Feeds, lost: Lost) {
        self.announce(feeds, &mut self.state.lock(), lost);
        feeds.remove(self);
    }

    fn deliver(&self, feeds: &Feeds, publication: &Arc<Publication>) -> Delivered {
        #[cfg(debug_assertions)]
        if let Some(sabotage) = &feeds.sabotage {
            return sabotage.deliver(feeds, self, publication);
        }
        self.push_publication(feeds, publication)
    }

    pub(super) fn push_publication(&self, feeds: &Feeds, publication: &Publication) -> Delivered {
        self.push(feeds, Event::Publication(publication.clone()))
    }

    fn push(&self, feeds: &Feeds, event: Event) -> Delivered {
        let push = Push::new(self.channel.as_str(), event);
        feeds.hub.deliver_push(&self.seats, &push)
    }

    /// Tells those who want to hear it who comes or goes.
    fn tell(&self, feeds: &Feeds, event: Event) {
        let push = Push::new(self.channel.as_str(), event);
        feeds.hub.deliver_push(&self.seats_for_joins(), &push);
    }

    /// `publication` without the large read that it may be a slice of, if it stays here for long.
    fn to_keep(&self, publication: Publication) -> Publication {
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
