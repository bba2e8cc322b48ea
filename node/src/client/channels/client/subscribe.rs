//! The commands `subscribe` and `unsubscribe`, and subscriptions by the server.

use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use bytes::Bytes;
use tracing::debug;

use crate::auth::grant::SubscribeGrant;
use crate::broker::history::Retention;
use crate::client::channels;
use crate::client::channels::access;
use crate::client::channels::access::Decision;
use crate::client::channels::client::Attachment;
use crate::client::channels::client::ChannelClient;
use crate::client::channels::failure;
use crate::client::channels::failure::Failure;
use crate::client::channels::for_hooks::ForHooks;
use crate::client::channels::state::AuthSource;
use crate::client::channels::state::Removed;
use crate::client::channels::state::Source;
use crate::client::channels::state::Subscription;
use crate::client::channels::state::Ticket;
use crate::cluster::directory::SubscribeCommand;
use crate::cluster::presence::Present;
use crate::cluster::registry::Announce;
use crate::config::ChannelOptions;
use crate::protocol::ClientInfo;
use crate::protocol::ErrorCode;
use crate::protocol::Event;
use crate::protocol::Outcome;
use crate::protocol::Position;
use crate::protocol::Push;
use crate::protocol::Reply;
use crate::protocol::Subscribe;
use crate::protocol::SubscribeRequest;
use crate::protocol::SubscribeResult;
use crate::protocol::Unsubscribe;
use crate::protocol::UnsubscribeCode;
use crate::protocol::UnsubscribeRequest;
use crate::protocol::UnsubscribeResult;
use crate::protocol::channel::ChannelName;
use crate::stream;

/// How long a subscribe waits until the client is in the channel's presence. It may be added later then.
const PRESENCE_MAX_WAIT: Duration = Duration::from_secs(1);

/// How long an unsubscribe by the application waits until earlier publications are written. Only a node without free CPU
/// takes as long.
const FLUSH_MAX_WAIT: Duration = Duration::from_secs(1);

/// A subscription that is granted.
pub(super) struct SubscribeSpec<'a> {
    pub(super) channel: &'a ChannelName,
    pub(super) options: Arc<ChannelOptions>,
    pub(super) user: &'a str,
    /// Which other members see.
    pub(super) conn_info: &'a Bytes,
    /// Whether the client requests join and leave events.
    pub(super) requests_joins: bool,
    /// Epoch and offset that the client recovers from.
    pub(super) since: Option<(&'a str, u64)>,
    pub(super) auth_source: AuthSource,
    pub(super) source: Source,
    pub(super) grant: &'a SubscribeGrant,
    /// The id of the client's command, if it waits for a reply.
    pub(super) command: Option<u32>,
}

impl SubscribeSpec<'_> {
    /// Whether joins and leaves of this client are published in the channel.
    fn publishes_joins(&self) -> bool {
        let join_leave = self.grant.overrides.join_leave;
        join_leave.unwrap_or(self.options.join_leave)
    }

    /// Whether this client receives join and leave events.
    fn receives_joins(&self) -> bool {
        let force = self.grant.overrides.force_push_join_leave;
        self.requests_joins || force.unwrap_or(self.options.force_push_join_leave)
    }
}

/// A reserved subscription, which is cancelled on drop unless it is active.
struct Reserved<'a> {
    client: &'a ChannelClient,
    channel: &'a ChannelName,
    ticket: Ticket,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.client.state.lock().cancel(self.channel, self.ticket);
    }
}

impl ChannelClient {
    pub(super) async fn subscribe(
        &self,
        id: u32,
        request: SubscribeRequest,
    ) -> Result<(), Failure> {
        access::is_supported(&request)?;
        access::is_readable(self.member.codec(), &request.data)?;
        let (channel, options) = self.options(&request.channel)?;
        let has_token = !request.token.is_empty();
        let decision = self.decide(&channel, |subject| {
            access::subscribe(&options, subject, has_token)
        })??;
        let (user, conn_info, for_hooks) = {
            let mut state = self.state.lock();
            let identity = state.identity()?;
            let user = Arc::clone(&identity.user);
            (user, identity.info.bytes(), identity.for_hooks.clone())
        };
        let (grant, auth_source) = self
            .subscribe_grant(decision, &channel, &request, &user, for_hooks)
            .await?;
        let spec = SubscribeSpec {
            channel: &channel,
            options,
            user: &user,
            conn_info: &conn_info,
            requests_joins: request.join_leave,
            since: request
                .recover
                .then_some((request.epoch.as_str(), request.offset)),
            auth_source,
            source: Source::Client,
            grant: &grant,
            command: Some(id).filter(|id| 0 < *id),
        };
        self.subscribe_with(spec, |result| {
            self.encoded_reply(id, Outcome::Subscribe(result))
        })
        .await
    }

    async fn subscribe_grant(
        &self,
        decision: Decision,
        channel: &ChannelName,
        request: &SubscribeRequest,
        user: &Arc<str>,
        for_hooks: ForHooks,
    ) -> Result<(SubscribeGrant, AuthSource), Failure> {
        match decision {
            Decision::Allowed => Ok((SubscribeGrant::default(), AuthSource::Token)),
            Decision::Token => {
                let id = self.id.to_string();
                let asking = self.asking_token(user, &id);
                let (token, now) = (&request.token, SystemTime::now());
                let grant = self
                    .clients
                    .verifier
                    .subscribe(token, channel.as_str(), asking, now);
                let grant = grant.map_err(|error| {
                    self.token_refused(&error, Some(channel));
                    failure::of_subscription_token(&error)
                })?;
                Ok((grant, AuthSource::Token))
            }
            Decision::Hook => {
                let context = self.hook_context(Arc::clone(user), for_hooks).await?;
                let asker = self.asker(&context);
                let (token, data) = (request.token.as_str(), &request.data);
                let hooks = &self.clients.hooks;
                let grant = hooks
                    .subscribe(&asker, channel.as_str(), token, data)
                    .await?;
                Ok((grant, AuthSource::Hook))
            }
        }
    }

    /// Subscribes the client to a channel. `encode` creates the reply or push, which is sent before all pushes of the
    /// channel.
    pub(super) async fn subscribe_with(
        &self,
        spec: SubscribeSpec<'_>,
        encode: impl FnOnce(SubscribeResult) -> Bytes + Send,
    ) -> Result<(), Failure> {
        let (channel, options) = (spec.channel, &spec.options);
        access::codec(options, self.member.codec())?;
        let channels_max = self.clients.config.get().limits.channels_per_client;
        let ticket = {
            let mut state = self.state.lock();
            match (state.reserve(channel, channels_max), spec.command) {
                (Ok(ticket), _) => ticket,
                (Err(error), Some(id)) => {
                    // Under the lock: "already subscribed" must precede the push that ends that subscription.
                    self.reply(id, Outcome::Error(error.into()));
                    return Ok(());
                }
                (Err(error), None) => return Err(error.into()),
            }
        };
        let reserved = Reserved {
            client: self,
            channel,
            ticket,
        };
        let recovers = spec
            .grant
            .overrides
            .force_recovery
            .unwrap_or(options.recovery);
        let since = spec.since.filter(|_| recovers && options.history.is_some());
        let since = since.map(|(epoch, offset)| Position {
            epoch: epoch.into(),
            offset,
        });
        let request = stream::JoinRequest {
            channel,
            retention: Retention::of(options),
            slow: options.slow,
            member: &self.member,
            receives_joins: spec.publishes_joins() && spec.receives_joins(),
            since: since.as_ref(),
            has_lifecycle: options.lifecycle,
            arriving: None,
        };
        let joined = self.clients.streams.join(request, |joined| {
            encode(subscribe_result(&spec, recovers, since.as_ref(), &joined))
        });
        let membership = joined.await.map_err(|error| {
            debug!(client = %self.id, %channel, %error, "cannot subscribe the client");
            ErrorCode::Internal
        })?;
        let name = membership.channel().clone();
        let present = self.present(&spec, &name);
        let seen = present
            .as_ref()
            .map(|present| present.seen(PRESENCE_MAX_WAIT));
        let subscription = Subscription {
            attachment: Attachment {
                membership,
                present,
            },
            source: spec.source,
            overrides: spec.grant.overrides,
            info: spec.grant.info.clone().into(),
            expire_at: spec.grant.expire_at,
            auth_source: spec.auth_source,
        };
        let is_taken = {
            let mut state = self.state.lock();
            let taken = state.activate(&name, ticket, subscription);
            let is_taken = taken.is_ok();
            if !is_taken {
                // The application has unsubscribed it meanwhile, or the client has gone.
                drop(taken);
                self.push(Push::unsubscribe(channel.as_str(), UnsubscribeCode::Server));
            }
            is_taken
        };
        drop(reserved);
        if !is_taken {
            return Ok(());
        }
        self.note_expiry();
        if self.state.lock().subscription(channel).is_none() {
            self.remove_ended(); // The stream has ended before the subscription was active.
        }
        if let Some(seen) = seen {
            seen.await;
        }
        Ok(())
    }

    /// Removes the subscriptions whose stream has ended, once the client's unsubscribe is written.
    pub(super) fn remove_ended(&self) {
        let left = self.state.lock().remove_ended();
        if !left.is_empty() {
            drop(left);
            self.note_expiry();
        }
    }

    /// Adds the client to the channel's presence, if it has one.
    fn present(&self, spec: &SubscribeSpec<'_>, channel: &ChannelName) -> Option<Box<Present>> {
        let presence = spec.grant.overrides.presence;
        if !presence.unwrap_or(spec.options.presence) {
            return None;
        }
        let info = ClientInfo {
            user: spec.user.to_owned(),
            client: self.id.to_string(),
            conn_info: spec.conn_info.clone(),
            chan_info: spec.grant.info.clone(),
        };
        let announce = if spec.publishes_joins() {
            Announce::Yes
        } else {
            Announce::No
        };
        let presence = &self.clients.presence;
        let present = presence.enter(channel, self.id, &info, announce);
        Some(Box::new(present))
    }

    pub(super) fn unsubscribe(&self, id: u32, request: &UnsubscribeRequest) -> Result<(), Failure> {
        let (channel, _) = self.options(&request.channel)?;
        {
            let mut state = self.state.lock();
            state.identity()?;
            // The reply follows all pushes of the old subscription and precedes a new one.
            drop(state.unsubscribe(&channel));
            self.reply(id, Outcome::Unsubscribe(UnsubscribeResult {}));
        }
        self.note_expiry();
        Ok(())
    }

    /// Ends a subscription by the server, and sends the client an unsubscribe.
    pub(super) fn end_subscription(&self, channel: &ChannelName, code: u32, reason: &str) {
        let unsubscribe = Unsubscribe {
            code,
            reason: reason.to_owned(),
        };
        {
            let mut state = self.state.lock();
            let left = state.unsubscribe(channel);
            if !matches!(left, Removed::Subscription(_)) {
                return; // A revoked reservation sends the unsubscribe itself.
            }
            drop(left); // Before the push: nothing of the channel may follow it.
            let event = Event::Unsubscribe(unsubscribe);
            self.push(Push::new(channel.as_str(), event)); // Before a new subscription can begin.
        }
        self.note_expiry();
    }

    /// Ends a subscription by request of the application, after earlier publications are written.
    pub(super) async fn unsubscribe_by_control(
        &self,
        channel: &ChannelName,
        code: u32,
        reason: &str,
    ) {
        let flushed = {
            let mut state = self.state.lock();
            let subscription = state.subscription(channel);
            subscription.map(|one| one.attachment.membership.flushed(FLUSH_MAX_WAIT))
        };
        if let Some(flushed) = flushed {
            flushed.await;
        }
        self.end_subscription(channel, code, reason);
    }

    /// Subscribes the client by request of the application.
    pub(super) async fn subscribe_by_control(
        &self,
        order: SubscribeCommand,
    ) -> Result<(), Failure> {
        let grant = SubscribeGrant {
            expire_at: None,
            info: order.info,
            data: order.data,
            overrides: order.overrides,
        };
        let since = order.recover_since.as_ref();
        let since = since.map(|since| (since.epoch.as_str(), since.offset));
        let channel = order.channel.as_str();
        self.subscribe_server_side(channel, &grant, since, Source::Application)
            .await
    }

    /// Subscribes the client by the server, and sends it a push.
    pub(super) async fn subscribe_server_side(
        &self,
        channel: &str,
        grant: &SubscribeGrant,
        since: Option<(&str, u64)>,
        source: Source,
    ) -> Result<(), Failure> {
        let (channel, options) = self.options(channel)?;
        let (user, conn_info) = {
            let mut state = self.state.lock();
            let identity = state.identity()?;
            (Arc::clone(&identity.user), identity.info.bytes())
        };
        let spec = SubscribeSpec {
            channel: &channel,
            options,
            user: &user,
            conn_info: &conn_info,
            requests_joins: false,
            since,
            auth_source: AuthSource::Token,
            source,
            grant,
            command: None,
        };
        self.subscribe_with(spec, |result| {
            let subscribe = Subscribe {
                recoverable: result.recoverable,
                epoch: result.epoch,
                offset: result.offset,
                positioned: result.positioned,
                data: result.data,
            };
            let push = Push::new(channel.as_str(), Event::Subscribe(subscribe));
            self.encoded(Reply::push(push)).unwrap_or_default()
        })
        .await
    }
}

/// The result for the client. After a recovery, its position is the one before: the recovered publications advance it.
fn subscribe_result(
    spec: &SubscribeSpec<'_>,
    recovers: bool,
    since: Option<&Position>,
    joined: &stream::Joined<'_>,
) -> SubscribeResult {
    let (expires, ttl) = channels::time_left(spec.grant.expire_at, spec.auth_source);
    let position = match since {
        Some(since) if joined.is_recovered => Some(since),
        _ => joined.position,
    };
    let recoverable = recovers && joined.position.is_some();
    let publications = joined.publications.iter();
    SubscribeResult {
        expires,
        ttl,
        recoverable,
        epoch: position.map_or_else(String::new, |position| position.epoch.to_string()),
        offset: position.map_or(0, |position| position.offset),
        publications: publications.map(|one| (**one).clone()).collect(),
        recovered: joined.is_recovered,
        positioned: recoverable,
        data: spec.grant.data.clone(),
        was_recovering: since.is_some(),
    }
}
