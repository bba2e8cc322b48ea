//! The state of one channel client: a plain type, without sockets, tasks or clocks.
//!
//! ```text
//! New ─ begin_connect ─▶ Connecting ─ set_connected ─▶ Connected ─┐
//!  ▲                         │ reject_connect                     ├─ close ─▶ Closed
//!  └─────────────────────────┘                                    │
//! ```
//! Asynchronous work happens between two calls: a subscription is reserved, and activated once the member has joined the
//! channel's stream. What happens in between wins: a late subscribe never undoes an unsubscribe or the end of the client.
//!
//! Invariant: the reserved and active subscriptions together are within the limit.

use std::sync::Arc;

use bytes::Bytes;

use crate::auth::grant::Overrides;
use crate::client::channels::channel_map::ChannelMap;
use crate::client::channels::for_hooks::ForHooks;
use crate::cluster::directory::Listed;
use crate::protocol::ErrorCode;
use crate::protocol::channel::ChannelName;

/// How long a connection or a subscription outlives its token: clients request a newer one when it expires, and not
/// before.
const GRACE_SECONDS: u64 = 25;

/// One client's state; `S` keeps it subscribed to a channel.
pub(super) struct State<S> {
    phase: Phase,
    subscriptions: ChannelMap<Entry<S>>,
    tickets: u32,
}

enum Phase {
    New,
    Connecting,
    Connected(Box<Identity>),
    Closed,
}

enum Entry<S> {
    Reserved(Ticket),
    /// It was ended before it became active. The task that has reserved it removes it.
    Revoked(Ticket),
    Active(Box<Subscription<S>>),
}

/// The identity of a connected client.
pub(super) struct Identity {
    /// Empty: anonymous.
    pub(super) user: Arc<str>,
    /// `conn_info`, which other members of a channel see.
    pub(super) info: OptionalBytes,
    /// Data for the hooks only.
    pub(super) for_hooks: ForHooks,
    /// When it has to have shown that it is still set_connected, in UNIX seconds.
    pub(super) expire_at: Option<u64>,
    /// What has granted it.
    pub(super) auth_source: AuthSource,
    /// Its entry in the directory, until it is dropped.
    pub(super) listed: Option<Listed>,
}

/// What has granted a connection or subscription, and renews it when it expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AuthSource {
    /// A token: the client sends a newer one.
    Token,
    /// The application's backend: the node calls its hook again.
    Hook,
}

/// What has requested a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// A command of the client.
    Client,
    /// The grant of the connection; a newer token may change it.
    Connection,
    /// The application, over the API.
    Application,
}

/// An active subscription.
pub(super) struct Subscription<S> {
    pub(super) attachment: S,
    pub(super) source: Source,
    /// Options that differ from the namespace's.
    pub(super) overrides: Overrides,
    /// `chan_info`, which other members of the channel see.
    pub(super) info: OptionalBytes,
    /// When it has to have shown that it is still set_connected, in UNIX seconds.
    pub(super) expire_at: Option<u64>,
    /// What has granted it.
    pub(super) auth_source: AuthSource,
}

/// Active subscriptions by channel.
pub(super) type Settled<'a, S> = Vec<(&'a ChannelName, &'a mut Subscription<S>)>;

/// Optional bytes, boxed because rarely present.
#[derive(Default, PartialEq, Eq)]
pub(super) struct OptionalBytes(Option<Box<Bytes>>);

/// An attachment to a channel, which the channel's stream may end.
pub(super) trait Ending {
    /// Whether it has ended: the client receives nothing more of the channel.
    fn has_ended(&self) -> bool;

    /// Whether the unsubscribe that tells the client so is written.
    fn is_over(&self) -> bool;
}

/// Identifies a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket(u32);

/// A command is not allowed in the client's current phase.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OutOfOrder;

impl OptionalBytes {
    pub(super) fn bytes(&self) -> Bytes {
        self.0.as_deref().cloned().unwrap_or_default()
    }
}

impl From<Bytes> for OptionalBytes {
    fn from(bytes: Bytes) -> Self {
        Self((!bytes.is_empty()).then(|| Box::new(bytes)))
    }
}

impl<S: Ending> State<S> {
    /// Creates the state of a client that has sent nothing yet.
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::New,
            subscriptions: ChannelMap::new(),
            tickets: 0,
        }
    }

    /// Creates the state of a client that another node hands off.
    pub(super) fn continued(
        identity: Identity,
        subscriptions: Vec<(ChannelName, Subscription<S>)>,
    ) -> Self {
        let mut state = Self::new();
        state.phase = Phase::Connected(Box::new(identity));
        for (channel, subscription) in subscriptions {
            let active = Entry::Active(Box::new(subscription));
            state.subscriptions.insert(channel, active);
        }
        state
    }

    /// The client's identity and subscriptions, if it is connected and none of them begins or ends now.
    pub(super) fn settled(&mut self) -> Option<(&mut Identity, Settled<'_, S>)> {
        let Phase::Connected(identity) = &mut self.phase else {
            return None;
        };
        let is_settled = |place: &Entry<S>| match place {
            Entry::Active(subscription) => !subscription.attachment.has_ended(),
            Entry::Reserved(_) | Entry::Revoked(_) => false,
        };
        if !self.subscriptions.values().all(is_settled) {
            return None;
        }
        let subscriptions = self.subscriptions.iter_mut();
        let subscriptions = subscriptions.filter_map(|(channel, place)| match place {
            Entry::Active(subscription) => Some((channel, &mut **subscription)),
            Entry::Reserved(_) | Entry::Revoked(_) => None,
        });
        Some((identity, subscriptions.collect()))
    }

    /// Notes that the client has sent `connect`.
    ///
    /// # Errors
    ///
    /// [`OutOfOrder`] if it has done so before.
    pub(super) fn begin_connect(&mut self) -> Result<(), OutOfOrder> {
        match self.phase {
            Phase::New => {
                self.phase = Phase::Connecting;
                Ok(())
            }
            _ => Err(OutOfOrder),
        }
    }

    /// Notes that `connect` is rejected: the client may send it again.
    pub(super) fn reject_connect(&mut self) {
        if matches!(self.phase, Phase::Connecting) {
            self.phase = Phase::New;
        }
    }

    /// Notes that the client is connected. Returns false if it has gone meanwhile.
    pub(super) fn set_connected(&mut self, identity: Identity) -> bool {
        let is_awaited = matches!(self.phase, Phase::Connecting);
        if is_awaited {
            self.phase = Phase::Connected(Box::new(identity));
        }
        is_awaited
    }

    /// The client's identity.
    ///
    /// # Errors
    ///
    /// [`OutOfOrder`] unless it is connected.
    pub(super) fn identity(&mut self) -> Result<&mut Identity, OutOfOrder> {
        match &mut self.phase {
            Phase::Connected(identity) => Ok(identity),
            _ => Err(OutOfOrder),
        }
    }

    /// Whether it has not connected yet.
    pub(super) fn is_connect_pending(&self) -> bool {
        matches!(self.phase, Phase::New | Phase::Connecting)
    }

    /// Reserves a subscription to `channel`, one of at most `max`.
    ///
    /// # Errors
    ///
    /// Why the client cannot subscribe.
    pub(super) fn reserve(
        &mut self,
        channel: &ChannelName,
        max: usize,
    ) -> Result<Ticket, ErrorCode> {
        if matches!(self.phase, Phase::Closed) {
            return Err(ErrorCode::Internal);
        }
        match self.subscriptions.get(channel) {
            Some(Entry::Active(subscription)) if subscription.attachment.has_ended() => {}
            Some(_) => return Err(ErrorCode::AlreadySubscribed),
            None if max <= self.subscriptions.len() => return Err(ErrorCode::LimitExceeded),
            None => {}
        }
        self.tickets = self.tickets.wrapping_add(1);
        let ticket = Ticket(self.tickets);
        self.subscriptions
            .insert(channel.clone(), Entry::Reserved(ticket));
        Ok(ticket)
    }

    /// Activates a reserved subscription. This handle of the channel's name becomes the key.
    ///
    /// # Errors
    ///
    /// The reservation was revoked meanwhile. Returns the subscription.
    pub(super) fn activate(
        &mut self,
        channel: &ChannelName,
        ticket: Ticket,
        subscription: Subscription<S>,
    ) -> Result<(), Subscription<S>> {
        if !self.holds(channel, ticket) {
            return Err(subscription);
        }
        let active = Entry::Active(Box::new(subscription));
        self.subscriptions.insert(channel.clone(), active);
        Ok(())
    }

    /// Removes a reservation, unless it has become active.
    pub(super) fn cancel(&mut self, channel: &ChannelName, ticket: Ticket) {
        if let Some(Entry::Reserved(kept) | Entry::Revoked(kept)) = self.subscriptions.get(channel)
            && *kept == ticket
        {
            self.subscriptions.remove(channel);
        }
    }

    fn holds(&self, channel: &ChannelName, ticket: Ticket) -> bool {
        matches!(self.subscriptions.get(channel), Some(Entry::Reserved(kept)) if *kept == ticket)
    }

    /// Ends a subscription, or revokes its reservation.
    pub(super) fn unsubscribe(&mut self, channel: &ChannelName) -> Removed<S> {
        if let Some(place) = self.subscriptions.get_mut(channel)
            && let Entry::Reserved(ticket) = *place
        {
            *place = Entry::Revoked(ticket);
        }
        match self.subscriptions.get(channel) {
            None => Removed::Nothing,
            Some(Entry::Reserved(_) | Entry::Revoked(_)) => Removed::Reservation,
            Some(Entry::Active(_)) => match self.subscriptions.remove(channel) {
                Some(Entry::Active(subscription)) => Removed::Subscription(subscription),
                _ => Removed::Nothing,
            },
        }
    }

    /// Removes the subscriptions whose stream has ended, once the client's unsubscribe is written.
    pub(super) fn remove_ended(&mut self) -> Vec<Box<Subscription<S>>> {
        let ended = self.subscriptions.take(|place| match place {
            Entry::Active(subscription) => subscription.attachment.is_over(),
            Entry::Reserved(_) | Entry::Revoked(_) => false,
        });
        let subscriptions = ended.into_iter().filter_map(|place| match place {
            Entry::Active(subscription) => Some(subscription),
            Entry::Reserved(_) | Entry::Revoked(_) => None,
        });
        subscriptions.collect()
    }

    /// The active subscription to `channel`.
    pub(super) fn subscription(&mut self, channel: &ChannelName) -> Option<&mut Subscription<S>> {
        match self.subscriptions.get_mut(channel)? {
            Entry::Active(subscription) if !subscription.attachment.has_ended() => {
                Some(subscription)
            }
            _ => None,
        }
    }

    /// The subscriptions that were granted with the connection.
    pub(super) fn of_connection(&mut self) -> impl Iterator<Item = (&ChannelName, &Overrides)> {
        self.subscriptions
            .iter()
            .filter_map(|(channel, place)| match place {
                Entry::Active(one)
                    if one.source == Source::Connection && !one.attachment.has_ended() =>
                {
                    Some((channel, &one.overrides))
                }
                _ => None,
            })
    }

    /// All active subscriptions.
    pub(super) fn subscriptions(&mut self) -> impl Iterator<Item = &mut Subscription<S>> {
        self.subscriptions
            .values_mut()
            .filter_map(|place| match place {
                Entry::Active(subscription) if !subscription.attachment.has_ended() => {
                    Some(&mut **subscription)
                }
                _ => None,
            })
    }

    /// Calls `visit` with all active subscriptions, also those whose stream has ended.
    pub(super) fn each_subscription(&mut self, mut visit: impl FnMut(&mut Subscription<S>)) {
        for place in self.subscriptions.values_mut() {
            if let Entry::Active(subscription) = place {
                visit(subscription);
            }
        }
    }

    /// Channels whose subscription has expired at `now`.
    pub(super) fn expired(&self, now: u64) -> Vec<ChannelName> {
        let is_over = |place: &Entry<S>| match place {
            Entry::Active(one) => {
                deadline(one.expire_at, one.auth_source).is_some_and(|at| at <= now)
            }
            Entry::Reserved(_) | Entry::Revoked(_) => false,
        };
        let places = self
            .subscriptions
            .iter()
            .filter(|(_, place)| is_over(place));
        places.map(|(channel, _)| channel.clone()).collect()
    }

    /// Whether the connection has expired at `now`.
    pub(super) fn has_expired(&self, now: u64) -> bool {
        self.connection_deadline().is_some_and(|at| at <= now)
    }

    /// The next moment at which the connection or a subscription has to be handled, in UNIX seconds.
    pub(super) fn next_expiry(&self) -> Option<u64> {
        let subscriptions = self.subscriptions.values().filter_map(|place| match place {
            Entry::Active(one) => deadline(one.expire_at, one.auth_source),
            Entry::Reserved(_) | Entry::Revoked(_) => None,
        });
        subscriptions.chain(self.connection_deadline()).min()
    }

    fn connection_deadline(&self) -> Option<u64> {
        match &self.phase {
            Phase::Connected(identity) => deadline(identity.expire_at, identity.auth_source),
            _ => None,
        }
    }

    /// Ends the client. What it held must be dropped outside the lock.
    pub(super) fn close(&mut self) -> Closed<S> {
        Closed {
            _phase: std::mem::replace(&mut self.phase, Phase::Closed),
            _subscriptions: std::mem::replace(&mut self.subscriptions, ChannelMap::new()),
        }
    }
}

/// When a connection or subscription that expires at `expire_at` has to be handled.
fn deadline(expire_at: Option<u64>, auth_source: AuthSource) -> Option<u64> {
    let grace = match auth_source {
        AuthSource::Token => GRACE_SECONDS,
        AuthSource::Hook => 0,
    };
    expire_at.map(|at| at.saturating_add(grace))
}

/// The connection and subscriptions of a closed client.
pub(super) struct Closed<S> {
    _phase: Phase,
    _subscriptions: ChannelMap<Entry<S>>,
}

/// The result of an unsubscribe.
pub(super) enum Removed<S> {
    Nothing,
    Reservation,
    /// Must be dropped outside the lock.
    Subscription(#[expect(dead_code, reason = "it is there to be dropped")] Box<Subscription<S>>),
}

#[cfg(test)]
mod tests;
