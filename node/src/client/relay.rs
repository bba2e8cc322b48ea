//! One client, whatever its transport: its membership, the rules for what it sends, and where that goes.
//!
//! Owns no wire. A transport or a session makes one with the [`Member`] that takes the client's messages,
//! hands in what the client sends, and closes the connection if told so.
//!
//! Invariant: what one client sends is passed on in the order of the calls, one call after the other.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use bytes::BytesMut;
use futures_util::FutureExt;
use tokio::time::Instant;

use crate::broker::Broker;
use crate::broker::PublishError;
use crate::broker::TryPublishError;
use crate::config::Endpoint;
use crate::config::Mode;
use crate::hub::Hub;
use crate::hub::Member;
use crate::hub::Membership;
use crate::hub::outbox::QueueOutbox;
use crate::metrics::Counted;
use crate::metrics::Metrics;
use crate::metrics::Transport;
use crate::protocol::channel::ChannelName;
use crate::protocol::disconnect::Disconnect;
use crate::protocol::frame::sockjs;
use crate::protocol::frame::websocket;
use crate::protocol::frame::websocket::SocketFormat;

mod ticker;

pub(crate) use ticker::tick;

pub(crate) use crate::protocol::frame::websocket::MessageKind;

/// What every client of this node shares.
pub(crate) struct Clients {
    pub(crate) hub: Arc<Hub>,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) metrics: Arc<Metrics>,
    /// What the clients' rates are counted from.
    started: Instant,
    /// The channel of endpoints with `mode: ticker`.
    ticker: ChannelName,
}

/// A connected client. Dropping it ends its membership.
pub(crate) struct Client {
    clients: Arc<Clients>,
    endpoint: Arc<Endpoint>,
    member: Member,
    rate: AtomicU64,
    _membership: Option<Membership>,
    _counted: Counted,
}

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is on its way.
    Done,
    /// There is no room at the moment. Hand the message to [`Client::wait_for_room`], and nothing else
    /// of this client before that is done.
    NoRoom(Bytes),
}

/// How long messages that came in one piece wait for room, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// As long as the broker lets a publication wait.
    Left,
    /// Not at all: the broker has given one up. Those behind it go at once or are dropped, so that their
    /// client is not left unread for as many times as it sent messages.
    Spent,
}

impl Clients {
    /// Ties hub and broker together for the clients.
    pub(crate) fn new(hub: Arc<Hub>, broker: Arc<dyn Broker>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            hub,
            broker,
            metrics,
            started: Instant::now(),
            ticker: ticker::channel(),
        })
    }

    /// A client of `endpoint` that hears its channel from now on, through `member`.
    pub(crate) fn connect(
        self: &Arc<Self>,
        endpoint: Arc<Endpoint>,
        transport: Transport,
        member: Member,
    ) -> Client {
        let membership = match &endpoint.mode {
            Mode::Relay { channel } => Some(self.hub.join(channel, member.clone())),
            Mode::Ticker => Some(self.hub.join(&self.ticker, member.clone())),
            Mode::Echo | Mode::Close | Mode::Amplify | Mode::Channels => None,
        };
        Client {
            clients: Arc::clone(self),
            endpoint,
            member,
            rate: AtomicU64::new(0),
            _membership: membership,
            _counted: self.metrics.client(transport),
        }
    }
}

impl Client {
    /// What counts it.
    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.clients.metrics
    }

    /// Takes a message of the client, if that is possible without waiting.
    ///
    /// # Errors
    ///
    /// The client broke a rule of its endpoint and is to be sent away.
    pub(crate) fn try_message(
        &self,
        data: &[u8],
        kind: MessageKind,
        now: Instant,
    ) -> Result<Taken, Disconnect> {
        self.check(data, now)?;
        match &self.endpoint.mode {
            Mode::Echo => {
                self.echo(data, kind);
                Ok(Taken::Done)
            }
            Mode::Amplify => {
                self.echo(&amplified(data), MessageKind::Text);
                Ok(Taken::Done)
            }
            Mode::Close | Mode::Ticker | Mode::Channels => Ok(Taken::Done), // Nobody hears it.
            Mode::Relay { channel } => {
                // A copy: what waits in a lane must not keep the whole read that it came with.
                let data = Bytes::copy_from_slice(data);
                match self.clients.broker.try_publish(channel, data) {
                    Ok(()) => Ok(Taken::Done),
                    Err(TryPublishError::Full(data)) => Ok(Taken::NoRoom(data)),
                }
            }
        }
    }

    /// Publishes what [`try_message`](Self::try_message) found no room for, as soon as there is some.
    ///
    /// What the broker gives up on is counted and logged there; the client stays, and its `patience` is
    /// spent.
    ///
    /// # Errors
    ///
    /// The client is to be sent away: its message can never be published.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future drops the message.
    pub(crate) async fn wait_for_room(
        &self,
        data: Bytes,
        patience: &mut Patience,
    ) -> Result<(), Disconnect> {
        let Mode::Relay { channel } = &self.endpoint.mode else {
            return Ok(());
        };
        let publish = self.clients.broker.publish(channel, data);
        let published = match patience {
            Patience::Left => publish.await,
            // One look; what is dropped by it the broker counts as well.
            Patience::Spent => publish.now_or_never().unwrap_or(Err(PublishError::Expired)),
        };
        match published {
            Ok(()) | Err(PublishError::Stopped) => Ok(()),
            Err(PublishError::Expired) => {
                *patience = Patience::Spent;
                Ok(())
            }
            Err(PublishError::TooLarge) => Err(Disconnect::TOO_LARGE),
        }
    }

    /// Takes a message of the client and waits for room if there is none.
    ///
    /// # Errors
    ///
    /// The client broke a rule of its endpoint and is to be sent away.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future may drop the message.
    pub(crate) async fn on_message(
        &self,
        data: Bytes,
        kind: MessageKind,
        patience: &mut Patience,
    ) -> Result<(), Disconnect> {
        match self.try_message(&data, kind, Instant::now())? {
            Taken::Done => Ok(()),
            Taken::NoRoom(data) => self.wait_for_room(data, patience).await,
        }
    }

    /// Takes text messages that came in one piece, in order, and waits where there is no room.
    ///
    /// What they echo goes back in one piece too: the client cannot have read any of it in between, so
    /// that it is one of many must not make it slow.
    ///
    /// # Errors
    ///
    /// The client broke a rule of its endpoint and is to be sent away. What stands before is taken.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future drops the messages that were not taken yet.
    pub(crate) async fn on_messages(&self, messages: Vec<String>) -> Result<(), Disconnect> {
        if let (Mode::Echo, Member::Queue(outbox)) = (&self.endpoint.mode, &self.member) {
            return self.echo_all(outbox, &messages);
        }
        let mut patience = Patience::Left;
        for message in messages {
            let taken = self.on_message(message.into(), MessageKind::Text, &mut patience);
            taken.await?;
        }
        Ok(())
    }

    /// The rules that it lives by.
    pub(crate) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    fn check(&self, data: &[u8], now: Instant) -> Result<(), Disconnect> {
        self.clients.metrics.messages_received.inc();
        if self.endpoint.read_only {
            return Err(Disconnect::READ_ONLY);
        }
        if self.endpoint.message_bytes_max < data.len() {
            return Err(Disconnect::TOO_LARGE);
        }
        let since_start = now.saturating_duration_since(self.clients.started);
        match self.endpoint.publish_rate {
            Some(rate) if !crate::client::rate::admit(&self.rate, rate, 1, since_start) => {
                Err(Disconnect::RATE)
            }
            _ => Ok(()),
        }
    }

    fn echo(&self, data: &[u8], kind: MessageKind) {
        let mut out = BytesMut::new();
        match &self.member {
            Member::Socket(outbox) if outbox.format() == SocketFormat::Raw => {
                websocket::append_message(&mut out, kind, data);
                outbox.send(&out.freeze());
            }
            Member::Socket(outbox) => {
                let quoted = quoted(&String::from_utf8_lossy(data));
                websocket::append_sockjs_message(&mut out, &quoted);
                outbox.send(&out.freeze());
            }
            Member::Queue(outbox) => outbox.push(quoted(&String::from_utf8_lossy(data))),
        }
    }

    fn echo_all(&self, outbox: &QueueOutbox, messages: &[String]) -> Result<(), Disconnect> {
        let now = Instant::now();
        let mut echoes = Vec::with_capacity(messages.len());
        let mut checked = Ok(());
        for message in messages {
            checked = self.check(message.as_bytes(), now);
            if checked.is_err() {
                break;
            }
            echoes.push(quoted(message));
        }
        outbox.push_all(&echoes);
        checked
    }
}

fn quoted(text: &str) -> Bytes {
    let mut quoted = BytesMut::new();
    sockjs::append_quoted(&mut quoted, text);
    quoted.freeze()
}

/// Two to the power that the client names, of 1 to 18, in `x`; whatever else it says counts as 1.
fn amplified(power: &[u8]) -> Vec<u8> {
    let power = std::str::from_utf8(power).ok();
    let power = power.and_then(|power| power.trim().parse().ok());
    vec![b'x'; 1 << power.filter(|power| (1..=18).contains(power)).unwrap_or(1)]
}

#[cfg(test)]
mod tests;
