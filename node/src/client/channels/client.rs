//! One channel client: executes its commands and sends its replies.

mod arrival;
mod commands;
mod connect;
mod control;
mod departure;
mod hook_context;
mod info;
mod input;
mod publish;
mod queries;
mod refresh;
mod roster;
mod subscribe;
mod values;

use std::sync::Arc;
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
use crate::client::channels::client::commands::Started;
use crate::client::channels::client::control::ControlQueue;
use crate::client::channels::client::roster::Entry;
use crate::client::channels::command_rate;
use crate::client::channels::command_rate::Admission;
use crate::client::channels::command_rate::CommandRate;
use crate::client::channels::failure::Failure;
use crate::client::channels::for_hooks::ForHooks;
use crate::client::channels::keepalive::Direction;
use crate::client::channels::state::Ending;
use crate::client::channels::state::Identity;
use crate::client::channels::state::State;
use crate::cluster::presence::Present;
use crate::config::ChannelOptions;
use crate::config::Endpoint;
use crate::config::Protocol;
use crate::hooks::ClientHeaders;
use crate::hub::Member;
use crate::hub::roster::RosterGuard;
use crate::logging;
use crate::logging::SlowClient;
use crate::logging::Throttle;
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

pub(crate) use arrival::ArrivingClient;
pub(crate) use commands::Commands;
pub(crate) use departure::Departing;
pub(super) use roster::Entry as RosterEntry;
pub(super) use roster::sweep;

/// What is known of a client before it sends anything.
pub(crate) struct Origin {
    /// The endpoint that it uses.
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) transport: Transport,
    pub(crate) direction: Direction,
    /// Its outbox.
    pub(crate) member: Member,
    /// The headers of its HTTP request.
    pub(crate) headers: HeaderMap,
}

/// A channel client.
pub(crate) struct ChannelClient {
    pub(super) clients: Arc<ChannelClients>,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) transport: Transport,
    pub(super) direction: Direction,
    pub(super) member: Member,
    pub(super) id: ClientId,
    /// Headers that are forwarded to the hooks; usually none.
    pub(super) headers: Option<Box<ClientHeaders>>,
    pub(super) state: Mutex<State<Attachment>>,
    /// Boxed because rarely present.
    control: Mutex<Option<Box<ControlQueue>>>,
    rate: AtomicU64,
    command_rate: CommandRate,
    /// Whether something was received since the last check.
    received: AtomicBool,
    /// When the connection or a subscription expires next, in UNIX seconds; `u64::MAX`: never.
    expires_next: AtomicU64,
    /// Whether a task handles expiry now.
    expiring: AtomicBool,
    /// Whether it is being handed off to another node: nothing changes it meanwhile.
    is_departing: AtomicBool,
}

/// Takes it off the gauge, which [`ChannelClients::admit`] and the arrival of a handoff have added it to. No guard in the
/// client does that: it would be eight bytes more for each.
impl Drop for ChannelClient {
    fn drop(&mut self) {
        self.clients.metrics.client_gone(self.transport);
    }
}

/// A client while its connection exists. Dropping it ends the client's subscriptions.
pub(crate) struct Admitted {
    client: Arc<ChannelClient>,
    in_roster: RosterGuard<Entry>,
}

/// A copy of the client's state for a call of a hook.
pub(super) struct ClientSnapshot<T> {
    pub(super) user: Arc<str>,
    pub(super) for_hooks: ForHooks,
    pub(super) what: T,
}

/// Keeps a client subscribed to a channel until it is dropped.
pub(super) struct Attachment {
    pub(super) membership: stream::Membership,
    /// Boxed because most channels have no presence.
    pub(super) present: Option<Box<Present>>,
}

impl Ending for Attachment {
    fn has_ended(&self) -> bool {
        self.membership.has_ended()
    }

    fn is_over(&self) -> bool {
        self.membership.is_over()
    }
}

impl ChannelClients {
    /// Adds a client. While the node drains, it is disconnected at once.
    pub(crate) fn admit(self: &Arc<Self>, origin: Origin) -> Admitted {
        let headers = self.hooks.forwarded(&origin.headers);
        self.metrics.client_connected(origin.transport);
        let client = Arc::new(ChannelClient {
            clients: Arc::clone(self),
            endpoint: origin.endpoint,
            transport: origin.transport,
            direction: origin.direction,
            member: origin.member,
            id: ClientId::random(self.instance),
            headers: (!headers.is_empty()).then(|| Box::new(headers)),
            state: Mutex::new(State::new()),
            control: Mutex::default(),
            rate: AtomicU64::new(0),
            command_rate: CommandRate::default(),
            received: AtomicBool::new(false),
            expires_next: AtomicU64::new(u64::MAX),
            expiring: AtomicBool::new(false),
            is_departing: AtomicBool::new(false),
        });
        Admitted {
            in_roster: self.roster.add(Arc::clone(&client)),
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
        // Memberships and presence entries are dropped outside the lock.
        let closed = self.client.state.lock().close();
        drop(closed);
        self.client.drop_control();
    }
}

impl ChannelClient {
    /// The endpoint that it uses.
    pub(crate) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The metrics that count it.
    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.clients.metrics
    }

    /// Notes that something was received from the client.
    pub(super) fn note_received(&self) {
        self.received.store(true, Ordering::Relaxed);
    }

    /// How many of its commands may be pending.
    pub(super) fn commands_max(&self) -> usize {
        self.clients.config.get().limits.commands_per_client
    }

    /// Executes a command that does not wait, or returns the future that executes it.
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

    /// Counts a `send` as dropped: nothing receives messages without a reply.
    fn send(&self) -> Result<(), Failure> {
        self.state.lock().identity()?;
        self.clients.metrics.dropped(DropReason::NoReceiver, 1);
        Ok(())
    }

    /// Logs that the client was disconnected because it reads too slowly.
    pub(crate) fn log_slow(&self, bytes_queued: usize) {
        logging::slow_client(&SlowClient {
            client: &self.id.to_string(),
            user: &self.user(),
            endpoint: &self.endpoint.path,
            transport: self.transport.as_str(),
            bytes_queued,
        });
    }

    /// Counts and logs why the client was disconnected.
    pub(crate) fn record_disconnect(&self, disconnect: Disconnect) {
        debug!(client = %self.id, reason = disconnect.name, transport = self.transport.as_str(), "client disconnected");
        self.clients.metrics.disconnected(disconnect);
    }

    /// Sends the reply to the command `id`.
    pub(super) fn reply(&self, id: u32, outcome: Outcome) {
        let message = self.encoded_reply(id, outcome);
        self.member.send(&message);
    }

    /// Encodes the reply to the command `id`. If it cannot be encoded, the reply is an internal error.
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

    /// Sends a push to the client.
    pub(super) fn push(&self, push: Push) {
        if let Some(message) = self.encoded(Reply::push(push)) {
            self.member.send(&message);
        }
    }

    pub(super) fn encoded(&self, reply: Reply) -> Option<Bytes> {
        let encoded = self.member.encode(&[reply]);
        encoded
            .inspect_err(
                |error| debug!(client = %self.id, %error, "cannot encode a message for the client"),
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

    /// Calls `decide` with the client's relation to `channel`.
    pub(super) fn decide<T>(
        &self,
        channel: &ChannelName,
        decide: impl FnOnce(access::Subject<'_>) -> T,
    ) -> Result<T, Failure> {
        let mut state = self.state.lock();
        let user = Arc::clone(&state.identity()?.user);
        let asking = access::Subject {
            channel: channel.as_str(),
            user: &user,
            is_subscribed: state.subscription(channel).is_some(),
        };
        Ok(decide(asking))
    }

    /// Whether `command` at `now` is within the client's command rate.
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
        static THROTTLE: Throttle = Throttle::new();
        if let Some(held_back) = THROTTLE.admit(Instant::now().into_std()) {
            info!(
                client = %self.id,
                user = %self.user(),
                endpoint = self.endpoint.path,
                per_second,
                held_back,
                setting = "command_rate",
                "commands rejected: the client exceeds its command rate"
            );
        }
    }

    /// Whether a publication at `now` is within the client's publish rate.
    pub(super) fn is_within_rate(&self, now: Instant) -> bool {
        let since_start = now.saturating_duration_since(self.clients.started);
        match self.endpoint.publish_rate {
            Some(rate) => crate::client::rate::admit(&self.rate, rate, 1, since_start),
            None => true,
        }
    }

    /// Whether something was received from the client since the last call.
    pub(super) fn take_received(&self) -> bool {
        let received = self.received.swap(false, Ordering::Relaxed);
        received || self.member.is_reading_paused()
    }

    /// Whether something has expired at `now`, in UNIX seconds, and no task handles it yet. If so, the caller has to handle
    /// it and then call [`end_expiry`](Self::end_expiry).
    pub(super) fn take_expiry(&self, now: u64) -> bool {
        self.expires_next.load(Ordering::Relaxed) <= now
            && !self.expiring.swap(true, Ordering::Relaxed)
    }

    /// Notes that expiry is handled.
    pub(super) fn end_expiry(&self) {
        self.expiring.store(false, Ordering::Relaxed);
    }

    /// Whether it has not connected yet.
    pub(super) fn is_connect_pending(&self) -> bool {
        self.state.lock().is_connect_pending()
    }

    /// Its user; empty: anonymous, or not connected yet.
    pub(super) fn user(&self) -> String {
        let mut state = self.state.lock();
        let identity = state.identity();
        identity.map_or_else(|_| String::new(), |identity| identity.user.to_string())
    }

    /// A snapshot of the client with the result of `what`; `None` if it is not connected.
    pub(super) fn snapshot<T>(
        &self,
        what: impl FnOnce(&Identity) -> T,
    ) -> Option<ClientSnapshot<T>> {
        let mut state = self.state.lock();
        let identity = state.identity().ok()?;
        Some(ClientSnapshot {
            user: Arc::clone(&identity.user),
            for_hooks: identity.for_hooks.clone(),
            what: what(identity),
        })
    }

    /// Updates when something expires next. Must be called after each change of an expiry.
    pub(super) fn note_expiry(&self) {
        let next = self.state.lock().next_expiry();
        self.expires_next
            .store(next.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Logs why a token of the client was rejected, at most once a second: usually the application creates tokens wrongly,
    /// and its users cannot tell why. An expired token is normal.
    pub(super) fn token_refused(&self, error: &AuthError, channel: Option<&ChannelName>) {
        let (client, channel) = (self.id, channel.map(ChannelName::as_str));
        let user = self.user();
        match error {
            AuthError::Expired => debug!(%client, user, channel, "token rejected: it has expired"),
            AuthError::Invalid(reason) => {
                let now = std::time::Instant::now();
                if let Some(held_back) = self.clients.refused_tokens.admit(now) {
                    info!(%client, user, channel, %reason, held_back, "token rejected");
                }
            }
        }
    }

    pub(super) fn asking_token<'a>(&self, user: &'a str, client: &'a str) -> auth::Asking<'a> {
        auth::Asking { user, client }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_client_is_as_small_as_an_allocation_of_192_bytes() {
        // The next size of jemalloc's is 224; 16 bytes are the counters of the Arc.
        assert!(size_of::<ChannelClient>() <= 176);
    }
}
