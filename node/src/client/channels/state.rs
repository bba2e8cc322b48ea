//! How far one channel client has got: a plain type, without sockets, tasks or clocks.
//!
//! ```text
//! Fresh ─ connect ─▶ Connecting ─ welcome ─▶ Connected ─┐
//!   ▲                    │ refused                      ├─ close ─▶ Gone
//!   └────────────────────┘                              │
//! ```
//! What takes time happens between two calls: a place in a channel is reserved, and taken when the
//! channel can be heard. Whatever came in between wins, so that an unsubscribe or the end of the client
//! is never undone by a subscribe that is late.
//!
//! Invariant: at most as many channels are reserved or heard as the limit allows.

use std::sync::Arc;

use bytes::Bytes;

use crate::auth::grant::Overrides;
use crate::client::channels::for_hooks::ForHooks;
use crate::client::channels::places::Places;
use crate::cluster::directory::Listed;
use crate::protocol::ErrorCode;
use crate::protocol::channel::ChannelName;

/// How long after its end a connection or a subscription still lives if its client has to bring a newer
/// token: clients ask for one when their time is over, and not before.
const GRACE_SECONDS: u64 = 25;

/// One client's state; `S` is what keeps it in a channel.
pub(super) struct State<S> {
    phase: Phase,
    places: Places<Place<S>>,
    tickets: u32,
}

enum Phase {
    Fresh,
    Connecting,
    Connected(Box<Identity>),
    Gone,
}

enum Place<S> {
    Reserved(Ticket),
    /// It was left before it was taken. It is free once what has reserved it has noticed.
    Revoked(Ticket),
    Heard(Box<Subscription<S>>),
}

/// Who a connected client is.
pub(super) struct Identity {
    /// Empty: nobody in particular.
    pub(super) user: Arc<str>,
    /// What others in a channel are told of the connection.
    pub(super) info: Seldom,
    /// What the hooks are told of it, and nobody else.
    pub(super) for_hooks: ForHooks,
    /// When it has to have shown that it is still welcome, in UNIX seconds.
    pub(super) expire_at: Option<u64>,
    /// Who said so.
    pub(super) word: Word,
    /// Its entry in the directory, until it is dropped.
    pub(super) _listed: Option<Listed>,
}

/// Whose word a client is there on, and who is asked when its time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// A token's: the client brings a newer one.
    Token,
    /// The backend's: the node asks it again.
    Hook,
}

/// Who wants a client to be subscribed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The client asked for it.
    Client,
    /// It came with the connection, and a newer token may say otherwise.
    Connection,
    /// The application asked for it over its API.
    Application,
}

/// A channel that the client hears.
pub(super) struct Subscription<S> {
    pub(super) seat: S,
    pub(super) source: Source,
    /// What it does differently from its namespace.
    pub(super) overrides: Overrides,
    /// What others in the channel are told of the client.
    pub(super) info: Seldom,
    /// When it has to have shown that it is still welcome, in UNIX seconds.
    pub(super) expire_at: Option<u64>,
    /// Who said so.
    pub(super) word: Word,
}

/// Bytes that mostly are none, and then take a quarter of the room.
#[derive(Default, PartialEq, Eq)]
pub(super) struct Seldom(Option<Box<Bytes>>);

/// What keeps a client in a channel may end by itself.
pub(super) trait Ending {
    /// Whether the client hears the channel no more.
    fn has_ended(&self) -> bool;

    /// Whether it was told so.
    fn is_over(&self) -> bool;
}

/// A reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket(u32);

/// A command came where it has no place.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OutOfOrder;

impl Seldom {
    pub(super) fn bytes(&self) -> Bytes {
        self.0.as_deref().cloned().unwrap_or_default()
    }
}

impl From<Bytes> for Seldom {
    fn from(bytes: Bytes) -> Self {
        Self((!bytes.is_empty()).then(|| Box::new(bytes)))
    }
}

impl<S: Ending> State<S> {
    /// A client that has said nothing yet.
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Fresh,
            places: Places::new(),
            tickets: 0,
        }
    }

    /// Notes that the client asks to connect.
    ///
    /// # Errors
    ///
    /// [`OutOfOrder`] if it has done so before.
    pub(super) fn begin_connect(&mut self) -> Result<(), OutOfOrder> {
        match self.phase {
            Phase::Fresh => {
                self.phase = Phase::Connecting;
                Ok(())
            }
            _ => Err(OutOfOrder),
        }
    }

    /// Lets the client try again.
    pub(super) fn refuse_connect(&mut self) {
        if matches!(self.phase, Phase::Connecting) {
            self.phase = Phase::Fresh;
        }
    }

    /// Notes who the client is; false if it has gone meanwhile.
    pub(super) fn welcome(&mut self, identity: Identity) -> bool {
        let is_awaited = matches!(self.phase, Phase::Connecting);
        if is_awaited {
            self.phase = Phase::Connected(Box::new(identity));
        }
        is_awaited
    }

    /// Who the client is.
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
    pub(super) fn is_outside(&self) -> bool {
        matches!(self.phase, Phase::Fresh | Phase::Connecting)
    }

    /// Keeps a place in `channel`, one of `max`, for a subscription that is on its way.
    ///
    /// # Errors
    ///
    /// Why the client cannot subscribe.
    pub(super) fn reserve(
        &mut self,
        channel: &ChannelName,
        max: usize,
    ) -> Result<Ticket, ErrorCode> {
        if matches!(self.phase, Phase::Gone) {
            return Err(ErrorCode::Internal);
        }
        match self.places.get(channel) {
            Some(Place::Heard(subscription)) if subscription.seat.has_ended() => {}
            Some(_) => return Err(ErrorCode::AlreadySubscribed),
            None if max <= self.places.len() => return Err(ErrorCode::LimitExceeded),
            None => {}
        }
        self.tickets = self.tickets.wrapping_add(1);
        let ticket = Ticket(self.tickets);
        self.places.insert(channel.clone(), Place::Reserved(ticket));
        Ok(ticket)
    }

    /// Takes the reserved place. This handle of the channel's name is the one that stays.
    ///
    /// # Errors
    ///
    /// It was given up meanwhile: here is the subscription again.
    pub(super) fn sit(
        &mut self,
        channel: &ChannelName,
        ticket: Ticket,
        subscription: Subscription<S>,
    ) -> Result<(), Subscription<S>> {
        if !self.holds(channel, ticket) {
            return Err(subscription);
        }
        let heard = Place::Heard(Box::new(subscription));
        self.places.insert(channel.clone(), heard);
        Ok(())
    }

    /// Gives a reserved place up, unless it is taken.
    pub(super) fn cancel(&mut self, channel: &ChannelName, ticket: Ticket) {
        if let Some(Place::Reserved(kept) | Place::Revoked(kept)) = self.places.get(channel)
            && *kept == ticket
        {
            self.places.remove(channel);
        }
    }

    fn holds(&self, channel: &ChannelName, ticket: Ticket) -> bool {
        matches!(self.places.get(channel), Some(Place::Reserved(kept)) if *kept == ticket)
    }

    /// Ends a subscription, or keeps one that is on its way from beginning.
    pub(super) fn leave(&mut self, channel: &ChannelName) -> Left<S> {
        if let Some(place) = self.places.get_mut(channel)
            && let Place::Reserved(ticket) = *place
        {
            *place = Place::Revoked(ticket);
        }
        match self.places.get(channel) {
            None => Left::Nothing,
            Some(Place::Reserved(_) | Place::Revoked(_)) => Left::Reservation,
            Some(Place::Heard(_)) => match self.places.remove(channel) {
                Some(Place::Heard(subscription)) => Left::Subscription(subscription),
                _ => Left::Nothing,
            },
        }
    }

    /// Ends the subscriptions that have ended by themselves, once the client was told.
    pub(super) fn leave_ended(&mut self) -> Vec<Box<Subscription<S>>> {
        let ended = self.places.take(|place| match place {
            Place::Heard(subscription) => subscription.seat.is_over(),
            Place::Reserved(_) | Place::Revoked(_) => false,
        });
        let subscriptions = ended.into_iter().filter_map(|place| match place {
            Place::Heard(subscription) => Some(subscription),
            Place::Reserved(_) | Place::Revoked(_) => None,
        });
        subscriptions.collect()
    }

    /// The subscription to `channel`, if the client hears it.
    pub(super) fn subscription(&mut self, channel: &ChannelName) -> Option<&mut Subscription<S>> {
        match self.places.get_mut(channel)? {
            Place::Heard(subscription) if !subscription.seat.has_ended() => Some(subscription),
            _ => None,
        }
    }

    /// The channels that came with the connection.
    pub(super) fn of_connection(&mut self) -> impl Iterator<Item = (&ChannelName, &Overrides)> {
        self.places
            .iter()
            .filter_map(|(channel, place)| match place {
                Place::Heard(one) if one.source == Source::Connection && !one.seat.has_ended() => {
                    Some((channel, &one.overrides))
                }
                _ => None,
            })
    }

    /// All that the client hears.
    pub(super) fn subscriptions(&mut self) -> impl Iterator<Item = &mut Subscription<S>> {
        self.places.values_mut().filter_map(|place| match place {
            Place::Heard(subscription) if !subscription.seat.has_ended() => {
                Some(&mut **subscription)
            }
            _ => None,
        })
    }

    /// Channels that the client hears and whose time is over at `now`.
    pub(super) fn expired(&self, now: u64) -> Vec<ChannelName> {
        let is_over = |place: &Place<S>| match place {
            Place::Heard(one) => deadline(one.expire_at, one.word).is_some_and(|at| at <= now),
            Place::Reserved(_) | Place::Revoked(_) => false,
        };
        let places = self.places.iter().filter(|(_, place)| is_over(place));
        places.map(|(channel, _)| channel.clone()).collect()
    }

    /// Whether the connection's time is over at `now`.
    pub(super) fn has_expired(&self, now: u64) -> bool {
        self.connection_deadline().is_some_and(|at| at <= now)
    }

    /// When something has to be done about the connection or a subscription, in UNIX seconds.
    pub(super) fn next_expiry(&self) -> Option<u64> {
        let subscriptions = self.places.values().filter_map(|place| match place {
            Place::Heard(one) => deadline(one.expire_at, one.word),
            Place::Reserved(_) | Place::Revoked(_) => None,
        });
        subscriptions.chain(self.connection_deadline()).min()
    }

    fn connection_deadline(&self) -> Option<u64> {
        match &self.phase {
            Phase::Connected(identity) => deadline(identity.expire_at, identity.word),
            _ => None,
        }
    }

    /// Ends everything. What it held is to be dropped outside the lock.
    pub(super) fn close(&mut self) -> Closed<S> {
        Closed {
            _phase: std::mem::replace(&mut self.phase, Phase::Gone),
            _places: std::mem::replace(&mut self.places, Places::new()),
        }
    }
}

/// When something has to be done about what ends at `expire_at`.
fn deadline(expire_at: Option<u64>, word: Word) -> Option<u64> {
    let grace = match word {
        Word::Token => GRACE_SECONDS,
        Word::Hook => 0,
    };
    expire_at.map(|at| at.saturating_add(grace))
}

/// What a client held.
pub(super) struct Closed<S> {
    _phase: Phase,
    _places: Places<Place<S>>,
}

/// What a client has left.
pub(super) enum Left<S> {
    Nothing,
    Reservation,
    /// To be dropped outside the lock.
    Subscription(#[expect(dead_code, reason = "it is there to be dropped")] Box<Subscription<S>>),
}

#[cfg(test)]
mod tests;
