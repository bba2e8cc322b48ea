//! One channel client: from bytes to commands, and from outcomes to replies.

mod ask;
mod commands;
mod connect;
mod hook_context;
mod info;
mod input;
mod orders;
mod publish;
mod refresh;
mod roster;
mod subscribe;
mod values;

use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use ::http::HeaderMap;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::debug;
use tracing::info;

use crate::auth;
use crate::auth::AuthError;
use crate::client::channels::ChannelClients;
use crate::client::channels::access;
use crate::client::channels::beat::Direction;
use crate::client::channels::client::commands::Started;
use crate::client::channels::client::orders::Orders;
use crate::client::channels::client::roster::Entry;
use crate::client::channels::command_rate;
use crate::client::channels::command_rate::Admission;
use crate::client::channels::command_rate::CommandRate;
use crate::client::channels::failure::Failure;
use crate::client::channels::for_hooks::ForHooks;
use crate::client::channels::state::Ending;
use crate::client::channels::state::Identity;
use crate::client::channels::state::State;
use crate::cluster::presence::Present;
use crate::config::ChannelOptions;
use crate::config::Endpoint;
use crate::config::Protocol;
use crate::hooks::ClientHeaders;
use crate::hub::Member;
use crate::hub::roster::Place;
use crate::logging;
use crate::logging::Pace;
use crate::logging::SlowClient;
use crate::metrics::Counted;
use crate::metrics::DropReason;
use crate::metrics::Metrics;
use crate::metrics::Transport;
use crate::protocol::Command;
use crate::protocol::ErrorCode;
use crate::protocol::Outcome;
use crate::protocol::PingResult;
use crate::protocol::Push;
use crate::protocol::Reply;
use crate::protocol::Request;
use crate::protocol::channel::ChannelName;
use crate::protocol::disconnect::Disconnect;
use crate::protocol::instance::ClientId;
use crate::stream;

pub(crate) use commands::Commands;
pub(super) use roster::Entry as RosterEntry;
pub(super) use roster::sweep;

/// What is known of a client before it says anything.
pub(crate) struct Origin {
    /// By which rules it lives.
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) transport: Transport,
    pub(crate) direction: Direction,
    /// Where it gets what it is sent.
    pub(crate) member: Member,
    /// The headers of its request.
    pub(crate) headers: HeaderMap,
}

/// A channel client.
pub(crate) struct ChannelClient {
    pub(super) this: Weak<Self>,
    pub(super) clients: Arc<ChannelClients>,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) transport: Transport,
    pub(super) direction: Direction,
    pub(super) member: Member,
    pub(super) id: ClientId,
    /// Headers that the hooks want to know; mostly there are none.
    pub(super) headers: Option<Box<ClientHeaders>>,
    pub(super) state: Mutex<State<Seat>>,
    /// In a box, because mostly there are none.
    orders: Mutex<Option<Box<Orders>>>,
    rate: AtomicU64,
    command_rate: CommandRate,
    /// Whether something was heard since the last look.
    heard: AtomicBool,
    /// When something expires, in UNIX seconds; `u64::MAX`: never.
    expires_next: AtomicU64,
    /// Whether somebody sees to that.
    expiring: AtomicBool,
    _counted: Counted,
}

/// A client for as long as its connection lives. Dropping it ends all that the client has.
pub(crate) struct Admitted {
    client: Arc<ChannelClient>,
    _place: Place<Entry>,
}

/// What questions to the backend need to know of a client.
pub(super) struct Standing<T> {
    pub(super) user: Arc<str>,
    pub(super) for_hooks: ForHooks,
    pub(super) what: T,
}

/// What keeps a client in a channel.
pub(super) struct Seat {
    pub(super) membership: stream::Membership,
    /// In a box, because most channels have no list.
    pub(super) present: Option<Box<Present>>,
}

impl Ending for Seat {
    fn has_ended(&self) -> bool {
        self.membership.has_ended()
    }

    fn is_over(&self) -> bool {
        self.membership.is_over()
    }
}

impl ChannelClients {
    /// Lets a client in that has said nothing yet. Who comes while the node drains is sent away at once.
    pub(crate) fn admit(self: &Arc<Self>, origin: Origin) -> Admitted {
        let headers = self.hooks.forwarded(&origin.headers);
        let client = Arc::new_cyclic(|this| ChannelClient {
            this: Weak::clone(this),
            clients: Arc::clone(self),
            endpoint: origin.endpoint,
            transport: origin.transport,
            direction: origin.direction,
            member: origin.member,
            id: ClientId::random(self.instance),
            headers: (!headers.is_empty()).then(|| Box::new(headers)),
            state: Mutex::new(State::new()),
            orders: Mutex::default(),
            rate: AtomicU64::new(0),
            command_rate: CommandRate::default(),
            heard: AtomicBool::new(false),
            expires_next: AtomicU64::new(u64::MAX),
            expiring: AtomicBool::new(false),
            _counted: self.metrics.client(origin.transport),
        });
        Admitted {
            _place: self.roster.add(Arc::clone(&client)),
            client,
        }
    }
}

impl Admitted {
    /// The client.
    pub(crate) fn client(&self) -> &Arc<ChannelClient> {
        &self.client
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        // Memberships and entries go outside the lock.
        let closed = self.client.state.lock().close();
        drop(closed);
        self.client.drop_orders();
    }
}

impl ChannelClient {
    /// The rules that it lives by.
    pub(crate) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// What counts it.
    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.clients.metrics
    }

    /// Notes that something was heard of the client.
    pub(super) fn note_heard(&self) {
        self.heard.store(true, Ordering::Relaxed);
    }

    /// How many of its commands may be under way.
    pub(super) fn commands_max(&self) -> usize {
        self.clients.config.get().limits.commands_per_client
    }

    /// Carries out a command that waits for nothing, or returns what carries it out.
    fn start(self: &Arc<Self>, command: Command) -> Started {
        let Command { id, request } = command;
        let Some(request) = request else {
            return Started::Done(Err(ErrorCode::MethodNotFound.into()));
        };
        let this = Arc::clone(self);
        match request {
            Request::Connect(request) => {
                Started::Waits(Box::pin(async move { this.connect(id, request).await }))
            }
            Request::Send(_) => Started::Done(self.send()),
            _ if id == 0 => Started::Done(Err(Disconnect::BAD_REQUEST.into())),
            Request::Subscribe(request) => {
                Started::Waits(Box::pin(async move { this.subscribe(id, request).await }))
            }
            Request::Unsubscribe(request) => Started::Done(self.unsubscribe(id, &request)),
            Request::Publish(request) => {
                Started::Waits(Box::pin(async move { this.publish(id, request).await }))
            }
            Request::Presence(request) => {
                Started::Waits(Box::pin(async move { this.presence(id, &request).await }))
            }
            Request::PresenceStats(request) => {
                Started::Waits(Box::pin(
                    async move { this.presence_stats(id, &request).await },
                ))
            }
            Request::History(request) => {
                Started::Waits(Box::pin(async move { this.history(id, request).await }))
            }
            Request::Ping(_) => Started::Done(self.ping(id)),
            Request::Rpc(request) => {
                Started::Waits(Box::pin(async move { this.rpc(id, &request).await }))
            }
            Request::Refresh(request) => {
                Started::Waits(Box::pin(async move { this.refresh(id, &request).await }))
            }
            Request::SubRefresh(request) => Started::Done(self.sub_refresh(id, &request)),
        }
    }

    fn ping(&self, id: u32) -> Result<(), Failure> {
        self.state.lock().identity()?;
        self.reply(id, Outcome::Ping(PingResult {}));
        Ok(())
    }

    /// What a client sends without wanting an answer has nobody who takes it.
    fn send(&self) -> Result<(), Failure> {
        self.state.lock().identity()?;
        self.clients.metrics.dropped(DropReason::NoReceiver, 1);
        Ok(())
    }

    /// Logs that it was disconnected because it reads too slowly.
    pub(crate) fn log_slow(&self, bytes_queued: usize) {
        logging::slow_client(&SlowClient {
            client: &self.id.to_string(),
            user: &self.user(),
            endpoint: &self.endpoint.path,
            transport: self.transport.as_str(),
            bytes_queued,
        });
    }

    /// Counts that the client was sent away, and why.
    pub(crate) fn was_sent_away(&self, disconnect: Disconnect) {
        debug!(client = %self.id, reason = disconnect.name, transport = self.transport.as_str(), "client sent away");
        self.clients.metrics.disconnected(disconnect);
    }

    /// Answers the command `id`.
    pub(super) fn reply(&self, id: u32, outcome: Outcome) {
        let message = self.encoded_reply(id, outcome);
        self.member.send(&message);
    }

    /// The same, to be sent by somebody else. What cannot be written down is an error of ours.
    pub(super) fn encoded_reply(&self, id: u32, outcome: Outcome) -> Bytes {
        let reply = Reply {
            id,
            outcome: Some(outcome),
        };
        self.encoded(reply).unwrap_or_else(|| {
            let outcome = Some(Outcome::Error(ErrorCode::Internal.into()));
            self.encoded(Reply { id, outcome }).unwrap_or_default()
        })
    }

    /// Tells the client something unasked.
    pub(super) fn push(&self, push: Push) {
        if let Some(message) = self.encoded(Reply::push(push)) {
            self.member.send(&message);
        }
    }

    pub(super) fn encoded(&self, reply: Reply) -> Option<Bytes> {
        let encoded = self.member.encode(&[reply]);
        encoded
            .inspect_err(
                |error| debug!(client = %self.id, %error, "cannot write a client's message"),
            )
            .ok()
    }

    /// The options of `channel`.
    pub(super) fn options(
        &self,
        channel: &str,
    ) -> Result<(ChannelName, Arc<ChannelOptions>), Failure> {
        let name = ChannelName::new(channel).map_err(|_| ErrorCode::BadRequest)?;
        let config = self.clients.config.get();
        let options = config.namespaces.options(channel);
        Ok((name, Arc::clone(options.ok_or(ErrorCode::UnknownChannel)?)))
    }

    /// What the client's standing in `channel` is, for a decision.
    pub(super) fn decide<T>(
        &self,
        channel: &ChannelName,
        decide: impl FnOnce(access::Asking<'_>) -> T,
    ) -> Result<T, Failure> {
        let mut state = self.state.lock();
        let user = Arc::clone(&state.identity()?.user);
        let asking = access::Asking {
            channel: channel.as_str(),
            user: &user,
            is_subscribed: state.subscription(channel).is_some(),
        };
        Ok(decide(asking))
    }

    /// Whether the client may send `command` at `now`, as fast as it has sent others.
    pub(super) fn admit_command(&self, command: &Command, now: Instant) -> Admission {
        let Protocol::Channels(endpoint) = &self.endpoint.protocol else {
            return Admission::Within;
        };
        let rate = endpoint.command_rate(self.clients.config.get().limits.channels_per_client);
        let since_start = now.saturating_duration_since(self.clients.started);
        let cost = command_rate::cost(command);
        let admission = self.command_rate.admit(rate, cost, since_start);
        if admission != Admission::Within {
            self.clients.metrics.commands_refused.inc();
            self.log_too_fast(rate.per_second);
        }
        admission
    }

    fn log_too_fast(&self, per_second: u32) {
        static PACE: Pace = Pace::new();
        if let Some(held_back) = PACE.admit(Instant::now().into_std()) {
            info!(
                client = %self.id,
                user = %self.user(),
                endpoint = self.endpoint.path,
                per_second,
                held_back,
                setting = "command_rate",
                "commands refused: the client sends too many"
            );
        }
    }

    /// Whether the client may publish at `now`, as far as its pace is concerned.
    pub(super) fn is_within_rate(&self, now: Instant) -> bool {
        let since_start = now.saturating_duration_since(self.clients.started);
        match self.endpoint.publish_rate {
            Some(rate) => crate::client::rate::admit(&self.rate, rate, 1, since_start),
            None => true,
        }
    }

    /// Whether something was heard of the client since the last call.
    pub(super) fn take_heard(&self) -> bool {
        let heard = self.heard.swap(false, Ordering::Relaxed);
        heard || self.member.is_reading_paused()
    }

    /// Whether something of the client has expired at `now`, in UNIX seconds, and nobody sees to it yet;
    /// who asks does, until it calls [`end_expiry`](Self::end_expiry).
    pub(super) fn take_expiry(&self, now: u64) -> bool {
        self.expires_next.load(Ordering::Relaxed) <= now
            && !self.expiring.swap(true, Ordering::Relaxed)
    }

    /// Gives the duty back.
    pub(super) fn end_expiry(&self) {
        self.expiring.store(false, Ordering::Relaxed);
    }

    /// Whether it has not connected yet.
    pub(super) fn is_outside(&self) -> bool {
        self.state.lock().is_outside()
    }

    /// Its user; empty: nobody in particular, or not known yet.
    pub(super) fn user(&self) -> String {
        let mut state = self.state.lock();
        let identity = state.identity();
        identity.map_or_else(|_| String::new(), |identity| identity.user.to_string())
    }

    /// Who the client is, and `what` of it; `None` if it is not connected.
    pub(super) fn standing<T>(&self, what: impl FnOnce(&Identity) -> T) -> Option<Standing<T>> {
        let mut state = self.state.lock();
        let identity = state.identity().ok()?;
        Some(Standing {
            user: Arc::clone(&identity.user),
            for_hooks: identity.for_hooks.clone(),
            what: what(identity),
        })
    }

    /// Notes when the next thing expires; to be called after a change of what does.
    pub(super) fn note_expiry(&self) {
        let next = self.state.lock().next_expiry();
        self.expires_next
            .store(next.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Logs why a token of the client was refused, once a second at most: mostly it is a mistake in how the application
    /// makes tokens, and its users cannot tell. That one has expired is no mistake.
    pub(super) fn token_refused(&self, error: &AuthError, channel: Option<&ChannelName>) {
        let (client, channel) = (self.id, channel.map(ChannelName::as_str));
        let user = self.user();
        match error {
            AuthError::Expired => debug!(%client, user, channel, "a token has expired"),
            AuthError::Invalid(reason) => {
                let now = std::time::Instant::now();
                if let Some(held_back) = self.clients.refused_tokens.admit(now) {
                    info!(%client, user, channel, %reason, held_back, "a token was refused");
                }
            }
        }
    }

    pub(super) fn asking_token<'a>(&self, user: &'a str, client: &'a str) -> auth::Asking<'a> {
        auth::Asking { user, client }
    }
}
