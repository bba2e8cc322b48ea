//! One client of a relay, echo or test endpoint, for every transport: its membership, the limits for its messages, and
//! where they are published.
//!
//! Owns no transport. A transport or a session creates a client with the [`Member`] that receives its output, passes on
//! what the client sends, and closes the connection if a call returns a [`Disconnect`].
//!
//! Invariant: the messages of one client are published in the order of the calls, one call after the other.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use async_trait::async_trait;
use bytes::Bytes;
use bytes::BytesMut;
use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::broker::Broker;
use crate::broker::PublishError;
use crate::broker::TryPublishError;
use crate::config::Endpoint;
use crate::config::Mode;
use crate::config::Protocol;
use crate::hub::Hub;
use crate::hub::Member;
use crate::hub::Subscriber;
use crate::hub::outbox::QueueOutbox;
use crate::metrics::Counted;
use crate::metrics::Metrics;
use crate::metrics::Transport;
use crate::protocol::channel::ChannelName;
use crate::protocol::disconnect::Disconnect;
use crate::protocol::frame::sockjs;
use crate::protocol::frame::websocket;
use crate::protocol::frame::websocket::SocketFormat;
use crate::protocol::handoff::Target;

mod ticker;

pub(crate) use ticker::tick;

pub(crate) use crate::protocol::frame::websocket::MessageKind;

/// The components that all such clients of this node share.
pub(crate) struct Clients {
    pub(crate) hub: Arc<Hub>,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) metrics: Arc<Metrics>,
    /// The start of the clock for the clients' rate limits.
    started: Instant,
    /// The channel of endpoints with `mode: ticker`.
    ticker: ChannelName,
    /// Missing in a node without a broker for several.
    hand_off: OnceLock<Arc<dyn HandOff>>,
}

/// Hands clients off to other nodes.
#[async_trait]
pub(crate) trait HandOff: Send + Sync + 'static {
    /// Hands `client` off. Afterwards it gets nothing of its channel any more.
    ///
    /// # Errors
    ///
    /// [`HandoffError`]: whether it stays or has to connect again.
    ///
    /// # Cancel safety
    ///
    /// After dropping this future the client must be disconnected.
    async fn hand_off(&self, client: Arc<Client>, target: Target) -> Result<(), HandoffError>;

    /// Waits until all that this node has published to `channel` so far is delivered, for some seconds at most.
    async fn flush(&self, channel: &ChannelName);
}

/// Why a client was not handed off.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HandoffError {
    /// Nothing has changed for it; the reason.
    #[error("{0}")]
    Kept(String),
    /// It may be at the other node, or at neither: it has to connect again.
    #[error("the handoff has failed half-way")]
    Lost,
}

/// A connected client. Dropping it ends its membership.
pub(crate) struct Client {
    clients: Arc<Clients>,
    endpoint: Arc<Endpoint>,
    member: Member,
    rate: AtomicU64,
    subscriber: Option<Subscriber>,
    _counted: Counted,
}

/// Publishes for a client that was handed off: what was under way to this node.
pub(crate) struct LatePublisher {
    clients: Arc<Clients>,
    endpoint: Arc<Endpoint>,
}

impl LatePublisher {
    /// Publishes messages in order, before those that their client sends to its new node afterwards. What the endpoint does not
    /// allow is dropped.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future drops the messages that were not published yet.
    pub(crate) async fn publish(&self, messages: Vec<String>) {
        let Mode::Relay { channel } = &self.endpoint.mode else {
            return;
        };
        let Clients {
            broker,
            metrics,
            hand_off,
            ..
        } = &*self.clients;
        for message in messages {
            metrics.messages_received.inc();
            if self.endpoint.read_only || self.endpoint.message_bytes_max < message.len() {
                continue;
            }
            let _ = broker.publish(channel, message.into()).await; // It counts and logs what it drops.
        }
        if let Some(hand_off) = hand_off.get() {
            hand_off.flush(channel).await;
        }
    }
}

/// The result of handling a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is handled.
    Done,
    /// The broker's queue is full. The caller has to pass the message to [`Client::wait_for_room`], and no other message of
    /// this client before that is done.
    NoRoom(Bytes),
}

/// How long the messages of one read may wait for room in the broker's queue, together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitBudget {
    /// As long as the broker lets one publication wait.
    Full,
    /// Not at all: one has timed out. Those after it are published at once or dropped, so that reading from the client is
    /// not paused for one timeout per message.
    Spent,
}

impl Clients {
    /// Creates the shared state.
    pub(crate) fn new(hub: Arc<Hub>, broker: Arc<dyn Broker>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            hub,
            broker,
            metrics,
            started: Instant::now(),
            ticker: ticker::channel(),
            hand_off: OnceLock::new(),
        })
    }

    /// Lets clients be handed off. Called once, before there are any.
    pub(crate) fn set_hand_off(&self, hand_off: Arc<dyn HandOff>) {
        let _ = self.hand_off.set(hand_off);
    }

    /// Creates a client of `endpoint`, which receives its channel's publications from now on through `member`.
    pub(crate) fn connect(
        self: &Arc<Self>,
        endpoint: Arc<Endpoint>,
        transport: Transport,
        member: Member,
    ) -> Client {
        let subscriber = match &endpoint.mode {
            Mode::Relay { channel } => Some(self.hub.join(channel, member.clone())),
            Mode::Ticker => Some(self.hub.join(&self.ticker, member.clone())),
            Mode::Echo | Mode::Close | Mode::Amplify | Mode::Channels => None,
        };
        Client {
            clients: Arc::clone(self),
            endpoint,
            member,
            rate: AtomicU64::new(0),
            subscriber,
            _counted: self.metrics.client(transport),
        }
    }
}

impl Client {
    /// The metrics that count it.
    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.clients.metrics
    }

    /// Hands it off to another node.
    ///
    /// # Errors
    ///
    /// [`HandoffError`]: whether it stays or has to connect again.
    ///
    /// # Cancel safety
    ///
    /// After dropping this future the client must be disconnected.
    pub(crate) async fn hand_off(self: Arc<Self>, target: Target) -> Result<(), HandoffError> {
        let hand_off = self.clients.hand_off.get().cloned();
        match hand_off {
            Some(hand_off) => hand_off.hand_off(self, target).await,
            None => Err(HandoffError::Kept("this node is alone".to_owned())),
        }
    }

    /// Ends the deliveries of its channel exactly here; the receiver completes once all before is in its outbox. `None`
    /// without a channel.
    pub(crate) fn leave_here(&self) -> Option<oneshot::Receiver<()>> {
        self.subscriber.as_ref().map(Subscriber::leave_here)
    }

    /// The channel that it relays to.
    pub(crate) fn channel(&self) -> Option<&ChannelName> {
        match &self.endpoint.mode {
            Mode::Relay { channel } => Some(channel),
            _ => None,
        }
    }

    /// How it is connected.
    pub(crate) fn transport(&self) -> Transport {
        match (&self.member, &self.endpoint.protocol) {
            (Member::Queue(_), _) => Transport::SockjsHttp,
            (Member::Socket(outbox), _) if outbox.format() == SocketFormat::Sockjs => {
                Transport::SockjsWebsocket
            }
            (Member::Socket(_), Protocol::Sockjs(_)) => Transport::SockjsRaw,
            (Member::Socket(_), _) => Transport::Websocket,
        }
    }

    /// How long its rate limit needs to be full again, in nanoseconds.
    pub(crate) fn rate_ahead(&self) -> u64 {
        crate::client::rate::ahead(&self.rate, self.clients.started.elapsed())
    }

    /// Continues a rate limit that needs so long to be full again, in nanoseconds.
    pub(crate) fn set_rate_ahead(&mut self, rate_ahead: u64) {
        self.rate = crate::client::rate::continued(rate_ahead, self.clients.started.elapsed());
    }

    /// Handles a message of the client, if that is possible without waiting.
    ///
    /// # Errors
    ///
    /// The client has violated a limit of its endpoint and has to be disconnected.
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
            Mode::Close | Mode::Ticker | Mode::Channels => Ok(Taken::Done), // Ignored.
            Mode::Relay { channel } => {
                // A copy, so that a queued publication does not keep the whole read in memory.
                let data = Bytes::copy_from_slice(data);
                match self.clients.broker.try_publish(channel, data) {
                    Ok(()) => Ok(Taken::Done),
                    Err(TryPublishError::Full(data)) => Ok(Taken::NoRoom(data)),
                }
            }
        }
    }

    /// Publishes a message that [`try_message`](Self::try_message) found no room for, as soon as there is some.
    ///
    /// A timeout is counted and logged by the broker; the client stays connected, and its `wait_budget` is spent.
    ///
    /// # Errors
    ///
    /// The message can never be published, and the client has to be disconnected.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future drops the message.
    pub(crate) async fn wait_for_room(
        &self,
        data: Bytes,
        wait_budget: &mut WaitBudget,
    ) -> Result<(), Disconnect> {
        let Mode::Relay { channel } = &self.endpoint.mode else {
            return Ok(());
        };
        let publish = self.clients.broker.publish(channel, data);
        let published = match wait_budget {
            WaitBudget::Full => publish.await,
            // Polled once; if that drops the message, the broker counts it.
            WaitBudget::Spent => publish.now_or_never().unwrap_or(Err(PublishError::Expired)),
        };
        match published {
            Ok(()) | Err(PublishError::Stopped) => Ok(()),
            Err(PublishError::Expired) => {
                *wait_budget = WaitBudget::Spent;
                Ok(())
            }
            Err(PublishError::TooLarge) => Err(Disconnect::TOO_LARGE),
        }
    }

    /// Handles a message of the client, and waits for room if there is none.
    ///
    /// # Errors
    ///
    /// The client has violated a limit of its endpoint and has to be disconnected.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future may drop the message.
    pub(crate) async fn on_message(
        &self,
        data: Bytes,
        kind: MessageKind,
        wait_budget: &mut WaitBudget,
    ) -> Result<(), Disconnect> {
        match self.try_message(&data, kind, Instant::now())? {
            Taken::Done => Ok(()),
            Taken::NoRoom(data) => self.wait_for_room(data, wait_budget).await,
        }
    }

    /// Handles the text messages of one request, in order, and waits for room if there is none.
    ///
    /// Echoes are queued at once too: the client cannot read any in between, so their number must not make it slow.
    ///
    /// # Errors
    ///
    /// The client has violated a limit of its endpoint and has to be disconnected. Earlier messages are handled.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future drops the messages that were not handled yet.
    pub(crate) async fn on_messages(&self, messages: Vec<String>) -> Result<(), Disconnect> {
        if let (Mode::Echo, Member::Queue(outbox)) = (&self.endpoint.mode, &self.member) {
            return self.echo_all(outbox, &messages);
        }
        let mut wait_budget = WaitBudget::Full;
        for message in messages {
            let taken = self.on_message(message.into(), MessageKind::Text, &mut wait_budget);
            taken.await?;
        }
        Ok(())
    }

    /// Publishes for it after it was handed off.
    pub(crate) fn late_publisher(&self) -> LatePublisher {
        LatePublisher {
            clients: Arc::clone(&self.clients),
            endpoint: Arc::clone(&self.endpoint),
        }
    }

    /// The endpoint that it uses.
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

/// The letter `x`, 2 to the power of the number in the message times. The number is 1 to 18; anything else counts as 1.
fn amplified(power: &[u8]) -> Vec<u8> {
    let power = std::str::from_utf8(power).ok();
    let power = power.and_then(|power| power.trim().parse().ok());
    vec![b'x'; 1 << power.filter(|power| (1..=18).contains(power)).unwrap_or(1)]
}

#[cfg(test)]
mod tests;
