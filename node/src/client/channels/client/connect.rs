//! The command `connect`: authenticates the client and adds its server-side subscriptions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tracing::debug;

use crate::auth::Entry;
use crate::auth::grant::ConnectGrant;
use crate::auth::grant::SubscribeGrant;
use crate::client::channels;
use crate::client::channels::access;
use crate::client::channels::client::ChannelClient;
use crate::client::channels::client::subscribe::SubscribeSpec;
use crate::client::channels::failure;
use crate::client::channels::failure::Failure;
use crate::client::channels::for_hooks::ForHooks;
use crate::client::channels::keepalive::Direction;
use crate::client::channels::state::AuthSource;
use crate::client::channels::state::Identity;
use crate::client::channels::state::Source;
use crate::cluster::directory::ClientControl;
use crate::cluster::directory::ControlCommand;
use crate::cluster::directory::UserFull;
use crate::cluster::directory::UserLimit;
use crate::config::UserLimitPolicy;
use crate::hooks::ClientHeaders;
use crate::hooks::Connecting;
use crate::hub::Member;
use crate::protocol;
use crate::protocol::ConnectRequest;
use crate::protocol::ConnectResult;
use crate::protocol::ErrorCode;
use crate::protocol::Event;
use crate::protocol::Outcome;
use crate::protocol::ProtocolError;
use crate::protocol::Push;
use crate::protocol::Reply;
use crate::protocol::ServerSub;
use crate::protocol::SubscribeRequest;
use crate::protocol::SubscribeResult;
use crate::protocol::UnsubscribeCode;
use crate::protocol::channel::ChannelName;
use crate::protocol::disconnect::Disconnect;
use crate::protocol::disconnect::DisconnectMessage;
use crate::protocol::instance::ClientId;

/// The version in the reply to `connect`.
const VERSION: &str = concat!("causeway ", env!("CARGO_PKG_VERSION"));

/// How long `connect` waits until the client's lifecycle event is stored, so that there is one even if the node is killed
/// directly after; then it is disconnected, and reconnects. When Redis has been unavailable or full for longer, it does not wait, and the
/// event is stored later.
const EVENT_MAX_WAIT: Duration = Duration::from_secs(3);

impl ChannelClient {
    /// Connects a client that only receives. It gets a push instead of a reply, and is disconnected on failure.
    pub(crate) async fn connect_one_way(self: Arc<Self>, request: ConnectRequest) {
        match self.connect(0, request).await {
            Ok(()) => {}
            Err(Failure::Disconnect(disconnect)) => self.member.close(disconnect),
            // There is no command to reply to, so the disconnect carries the error.
            Err(Failure::Error(error)) => self.member.close(DisconnectMessage::of_error(&error)),
        }
    }

    pub(super) async fn connect(
        self: &Arc<Self>,
        id: u32,
        request: ConnectRequest,
    ) -> Result<(), Failure> {
        self.state.lock().begin_connect()?;
        let channels_max = self.clients.config.get().limits.channels_per_client;
        if channels_max < request.subs.len() {
            self.state.lock().reject_connect();
            return Err(ErrorCode::LimitExceeded.into()); // No client can have had so many.
        }
        let connected = self.connect_begun(id, request).await;
        if connected.is_err() {
            self.state.lock().reject_connect();
        }
        connected
    }

    async fn connect_begun(
        self: &Arc<Self>,
        id: u32,
        request: ConnectRequest,
    ) -> Result<(), Failure> {
        access::is_readable(self.member.codec(), &request.data)?;
        let newcomer = self.emulated_headers(&request)?;
        let (grant, auth_source) = self.connect_grant(&request, newcomer.clone()).await?;
        let identity = Identity {
            // An anonymous client shares the empty string.
            user: match grant.user.as_str() {
                "" => Arc::default(),
                user => user.into(),
            },
            info: grant.info.clone().into(),
            for_hooks: newcomer.with_meta(grant.meta.clone()),
            expire_at: grant.expire_at,
            auth_source,
            listed: None,
        };
        let directory = &self.clients.directory;
        let place = directory.reserve(&identity.user, self.user_limit());
        let place = place.map_err(|UserFull| Disconnect::CONNECTION_LIMIT)?;
        // Pushes of a channel must not overtake the reply that contains the subscription.
        let hold = self.member.hold();
        let subs = self.subscribe_all(&identity, &request, &grant).await?;
        let controls = Arc::clone(self) as Arc<dyn ClientControl>;
        let (mut listed, displaced) = place.enter(self.id, controls);
        for oldest in displaced {
            // The client may be gone already.
            let _ = oldest.command(&too_many());
        }
        // Such a client sends with separate requests, perhaps to other nodes. Its id is known to other clients, so these
        // requests are authenticated by a secret session id.
        let sends_separately =
            matches!(self.member, Member::Queue(_)) && self.direction == Direction::TwoWay;
        let session = sends_separately.then(|| ClientId::random(self.id.instance()));
        if let Some(session) = session {
            listed.set_session(session);
        }
        let lifecycle = self.clients.lifecycle.as_ref();
        let transport = self.transport.wire();
        let begun =
            lifecycle.and_then(|lifecycle| lifecycle.connected(self.id, &identity.user, transport));
        if let Some(begun) = begun {
            let entered = begun.entered(EVENT_MAX_WAIT);
            listed.keep(begun);
            if !entered.await {
                return Err(ends_connection(ErrorCode::Internal.into())); // It reconnects.
            }
        }
        let identity = Identity {
            listed: Some(listed),
            ..identity
        };
        if !self.state.lock().set_connected(identity) {
            return Ok(()); // The client has gone meanwhile.
        }
        self.note_expiry();
        let told = self.connected(id, self.connect_result(&grant, auth_source, subs, session));
        self.member.release(hold, &told);
        Ok(())
    }

    /// The emulated headers in the client's `connect` that are forwarded to the hooks.
    fn emulated_headers(&self, request: &ConnectRequest) -> Result<ForHooks, Failure> {
        let none = ClientHeaders::default();
        let of_request = self.headers.as_deref().unwrap_or(&none);
        let emulated = self.clients.hooks.emulated(of_request, &request.headers);
        let emulated = emulated.map_err(|error| ProtocolError {
            message: error.to_string(),
            ..ErrorCode::BadRequest.into()
        })?;
        Ok(ForHooks::new(Bytes::new(), emulated))
    }

    fn user_limit(&self) -> Option<UserLimit> {
        let limits = self.clients.config.get().limits;
        Some(UserLimit {
            clients_max: limits.connections_per_user?,
            displaces_oldest: limits.connections_per_user_policy == UserLimitPolicy::DropOldest,
        })
    }

    /// The grant of the client's token or of the connect hook.
    async fn connect_grant(
        &self,
        request: &ConnectRequest,
        newcomer: ForHooks,
    ) -> Result<(ConnectGrant, AuthSource), Failure> {
        let verifier = &self.clients.verifier;
        let hooks = &self.clients.hooks;
        match verifier.entry(&request.token, hooks.has_connect()) {
            Entry::Token(token) => {
                let grant = verifier.connect(token, SystemTime::now());
                let grant = grant.map_err(|error| {
                    self.token_refused(&error, None);
                    failure::of_connection_token(&error)
                })?;
                Ok((grant, AuthSource::Token))
            }
            Entry::Hook => {
                let channels: Vec<String> = request.subs.keys().cloned().collect();
                let connecting = Connecting {
                    name: &request.name,
                    version: &request.version,
                    data: &request.data,
                    channels: &channels,
                };
                let context = self.newcomer(newcomer);
                let asker = self.asker(&context);
                Ok((hooks.connect(&asker, &connecting).await?, AuthSource::Hook))
            }
            Entry::Anonymous => Ok((ConnectGrant::default(), AuthSource::Token)),
            Entry::Refused => Err(ErrorCode::Unauthorized.into()),
        }
    }

    /// Adds the server-side subscriptions, several at a time.
    async fn subscribe_all(
        &self,
        identity: &Identity,
        request: &ConnectRequest,
        grant: &ConnectGrant,
    ) -> Result<BTreeMap<String, SubscribeResult>, Failure> {
        let mut results = BTreeMap::new();
        let mut subs = grant.subs.iter();
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < self.commands_max()
                && let Some((channel, sub)) = subs.next()
            {
                running.push(self.subscribe_named(identity, channel, request, sub));
            }
            let Some(subscribed) = running.next().await else {
                return Ok(results);
            };
            let (channel, result) = subscribed?;
            results.insert(channel, result);
        }
    }

    /// Replaces the server-side subscriptions by those of a newer token; pushes tell the client of each change.
    ///
    /// # Errors
    ///
    /// A channel cannot be subscribed, or its options have changed: the client is disconnected, reconnects and recovers.
    pub(super) async fn change_subscriptions(
        &self,
        subs: &BTreeMap<String, SubscribeGrant>,
    ) -> Result<(), Failure> {
        for channel in self.no_longer_in(subs)? {
            let code = UnsubscribeCode::Server;
            self.end_subscription(&channel, code as u32, code.reason());
        }
        let mut subs = subs.iter();
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < self.commands_max()
                && let Some((channel, grant)) = subs.next()
            {
                running.push(self.keep_or_subscribe(channel, grant));
            }
            match running.next().await {
                Some(subscribed) => subscribed.map_err(ends_connection)?,
                None => return Ok(()),
            }
        }
    }

    /// Server-side subscriptions that are not in `subs`.
    fn no_longer_in(
        &self,
        subs: &BTreeMap<String, SubscribeGrant>,
    ) -> Result<Vec<ChannelName>, Disconnect> {
        let mut gone = Vec::new();
        for (channel, overrides) in self.state.lock().of_connection() {
            match subs.get(channel.as_str()) {
                None => gone.push(channel.clone()),
                Some(grant) if grant.overrides != *overrides => {
                    return Err(Disconnect::INSUFFICIENT_STATE);
                }
                Some(_) => {}
            }
        }
        Ok(gone)
    }

    async fn keep_or_subscribe(
        &self,
        channel: &str,
        grant: &SubscribeGrant,
    ) -> Result<(), Failure> {
        let (name, _) = self.options(channel)?;
        if self.state.lock().subscription(&name).is_some() {
            self.change_info_in(&name, grant.info.clone());
            return Ok(());
        }
        let subscribed = self.subscribe_server_side(channel, grant, None, Source::Connection);
        match subscribed.await {
            // The client subscribes to it at this moment.
            Err(Failure::Error(error)) if error.code == ErrorCode::AlreadySubscribed as u32 => {
                Ok(())
            }
            subscribed => subscribed,
        }
    }

    async fn subscribe_named(
        &self,
        identity: &Identity,
        channel: &str,
        request: &ConnectRequest,
        grant: &SubscribeGrant,
    ) -> Result<(String, SubscribeResult), Failure> {
        let nothing = SubscribeRequest::default();
        let before = request.subs.get(channel).unwrap_or(&nothing);
        let result = self.subscribe_one(identity, channel, before, grant).await;
        let result = result.inspect_err(|_| {
            debug!(client = %self.id, channel, "a server-side subscription failed");
        });
        Ok((channel.to_owned(), result.map_err(ends_connection)?))
    }

    async fn subscribe_one(
        &self,
        identity: &Identity,
        channel: &str,
        before: &SubscribeRequest,
        grant: &SubscribeGrant,
    ) -> Result<SubscribeResult, Failure> {
        let (channel, options): (ChannelName, _) = self.options(channel)?;
        let spec = SubscribeSpec {
            channel: &channel,
            options,
            user: &identity.user,
            conn_info: &identity.info.bytes(),
            requests_joins: before.join_leave,
            since: before
                .recover
                .then_some((before.epoch.as_str(), before.offset)),
            auth_source: AuthSource::Token,
            source: Source::Connection,
            grant,
            command: None,
        };
        let mut told = None;
        self.subscribe_with(spec, |result| {
            told = Some(result);
            Bytes::new() // The result is part of the reply to `connect`.
        })
        .await?;
        told.ok_or_else(|| ErrorCode::Internal.into())
    }

    fn connect_result(
        &self,
        grant: &ConnectGrant,
        auth_source: AuthSource,
        subs: BTreeMap<String, SubscribeResult>,
        session: Option<ClientId>,
    ) -> ConnectResult {
        let now = channels::unix_milliseconds();
        let (expires, ttl) = channels::time_left(grant.expire_at, auth_source);
        let ping = self.endpoint.ping.interval;
        let mut result = ConnectResult {
            client: self.id.to_string(),
            version: VERSION.to_owned(),
            expires,
            ttl,
            data: grant.data.clone(),
            subs: ServerSub::list(subs),
            // In whole seconds, rounded up, or the client gives up too early.
            ping: u32::try_from(ping.as_millis().div_ceil(1000)).unwrap_or(u32::MAX),
            pong: self.direction == Direction::TwoWay,
            time: now,
            ..ConnectResult::default()
        };
        if let Some(session) = session {
            result.session = session.to_string();
            result.node = session.instance().to_string();
        }
        result
    }

    fn connected(&self, id: u32, result: ConnectResult) -> Bytes {
        if self.direction == Direction::TwoWay {
            return self.encoded_reply(id, Outcome::Connect(result));
        }
        let connect = protocol::Connect {
            client: result.client,
            version: result.version,
            data: result.data,
            subs: result.subs,
            expires: result.expires,
            ttl: result.ttl,
            ping: result.ping,
            pong: result.pong,
            session: result.session,
            node: result.node,
            time: result.time,
        };
        let push = Reply::push(Push::new("", Event::Connect(connect)));
        self.encoded(push).unwrap_or_default()
    }
}

/// The command that disconnects the oldest client of a user with too many.
fn too_many() -> ControlCommand {
    ControlCommand::Disconnect {
        code: Disconnect::CONNECTION_LIMIT.code.into(),
        reason: Disconnect::CONNECTION_LIMIT.reason.to_owned(),
    }
}

/// Turns an error into a disconnect: a client with only some of its subscriptions has to reconnect.
fn ends_connection(failure: Failure) -> Failure {
    match failure {
        Failure::Error(error) => Failure::Disconnect(DisconnectMessage::of_error(&error)),
        Failure::Disconnect(_) => failure,
    }
}
