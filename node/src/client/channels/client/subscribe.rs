//! Into a channel and out of it again.

use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use bytes::Bytes;
use tracing::debug;

use crate::auth::grant::SubscribeGrant;
use crate::broker::history::Retention;
use crate::client::channels;
use crate::client::channels::access;
use crate::client::channels::access::Way;
use crate::client::channels::client::ChannelClient;
use crate::client::channels::client::Seat;
use crate::client::channels::failure;
use crate::client::channels::failure::Failure;
use crate::client::channels::for_hooks::ForHooks;
use crate::client::channels::state::Left;
use crate::client::channels::state::Source;
use crate::client::channels::state::Subscription;
use crate::client::channels::state::Ticket;
use crate::client::channels::state::Word;
use crate::cluster::directory::SubscribeOrder;
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

/// How long a client that has come waits to be seen by others. It may then be seen a little later.
const SEEN_WITHIN: Duration = Duration::from_secs(1);

/// How long the end of a subscription by order waits for what was published before. Only a node without CPU
/// takes as long.
const FLUSHED_WITHIN: Duration = Duration::from_secs(1);

/// A subscription that is decided on.
pub(super) struct Wish<'a> {
    pub(super) channel: &'a ChannelName,
    pub(super) options: Arc<ChannelOptions>,
    pub(super) user: &'a str,
    /// What others are told of the connection.
    pub(super) conn_info: &'a Bytes,
    /// Whether the client asks to be told who comes and goes.
    pub(super) asks_for_joins: bool,
    /// Epoch and offset up to which the client has heard everything.
    pub(super) since: Option<(&'a str, u64)>,
    pub(super) word: Word,
    pub(super) source: Source,
    pub(super) grant: &'a SubscribeGrant,
    /// The id of the client's command, if one asks for it and waits for a reply.
    pub(super) command: Option<u32>,
}

impl Wish<'_> {
    /// Whether it is told in the channel who comes and goes, this client included.
    fn tells_joins(&self) -> bool {
        let join_leave = self.grant.overrides.join_leave;
        join_leave.unwrap_or(self.options.join_leave)
    }

    /// Whether this client is to hear it.
    fn wants_joins(&self) -> bool {
        let force = self.grant.overrides.force_push_join_leave;
        self.asks_for_joins || force.unwrap_or(self.options.force_push_join_leave)
    }
}

/// A place that is given up unless it is taken.
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
        access::is_offered(&request)?;
        access::is_readable(self.member.codec(), &request.data)?;
        let (channel, options) = self.options(&request.channel)?;
        let has_token = !request.token.is_empty();
        let way = self.decide(&channel, |asking| {
            access::subscribe(&options, asking, has_token)
        })??;
        let (user, conn_info, for_hooks) = {
            let mut state = self.state.lock();
            let identity = state.identity()?;
            let user = Arc::clone(&identity.user);
            (user, identity.info.bytes(), identity.for_hooks.clone())
        };
        let (grant, word) = self
            .subscribe_grant(way, &channel, &request, &user, for_hooks)
            .await?;
        let wish = Wish {
            channel: &channel,
            options,
            user: &user,
            conn_info: &conn_info,
            asks_for_joins: request.join_leave,
            since: request
                .recover
                .then_some((request.epoch.as_str(), request.offset)),
            word,
            source: Source::Client,
            grant: &grant,
            command: Some(id).filter(|id| 0 < *id),
        };
        self.sit(wish, |result| {
            self.encoded_reply(id, Outcome::Subscribe(result))
        })
        .await
    }

    async fn subscribe_grant(
        &self,
        way: Way,
        channel: &ChannelName,
        request: &SubscribeRequest,
        user: &Arc<str>,
        for_hooks: ForHooks,
    ) -> Result<(SubscribeGrant, Word), Failure> {
        match way {
            Way::Open => Ok((SubscribeGrant::default(), Word::Token)),
            Way::Token => {
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
                Ok((grant, Word::Token))
            }
            Way::Hook => {
                let context = self.hook_context(Arc::clone(user), for_hooks).await?;
                let asker = self.asker(&context);
                let (token, data) = (request.token.as_str(), &request.data);
                let hooks = &self.clients.hooks;
                let grant = hooks
                    .subscribe(&asker, channel.as_str(), token, data)
                    .await?;
                Ok((grant, Word::Hook))
            }
        }
    }

    /// Lets the client hear a channel; `tell` makes the message that says so, and stands before everything
    /// that comes in the channel.
    pub(super) async fn sit(
        &self,
        wish: Wish<'_>,
        tell: impl FnOnce(SubscribeResult) -> Bytes + Send,
    ) -> Result<(), Failure> {
        let (channel, options) = (wish.channel, &wish.options);
        access::codec(options, self.member.codec())?;
        let channels_max = self.clients.config.get().limits.channels_per_client;
        let ticket = {
            let mut state = self.state.lock();
            match (state.reserve(channel, channels_max), wish.command) {
                (Ok(ticket), _) => ticket,
                (Err(error), Some(id)) => {
                    // Under the lock: "already subscribed" comes before the push that ends that subscription.
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
        let recovers = wish
            .grant
            .overrides
            .force_recovery
            .unwrap_or(options.recovery);
        let since = wish.since.filter(|_| recovers && options.history.is_some());
        let since = since.map(|(epoch, offset)| Position {
            epoch: epoch.into(),
            offset,
        });
        let joining = stream::Joining {
            channel,
            retention: Retention::of(options),
            slow: options.slow,
            member: &self.member,
            hears_joins: wish.tells_joins() && wish.wants_joins(),
            since: since.as_ref(),
            has_lifecycle: options.lifecycle,
        };
        let joined = self.clients.feeds.join(joining, |joined| {
            tell(subscribe_result(&wish, recovers, since.as_ref(), &joined))
        });
        let membership = joined.await.map_err(|error| {
            debug!(client = %self.id, %channel, %error, "a client cannot hear a channel now");
            ErrorCode::Internal
        })?;
        let name = membership.channel().clone();
        let present = self.present(&wish, &name);
        let seen = present.as_ref().map(|present| present.seen(SEEN_WITHIN));
        let subscription = Subscription {
            seat: Seat {
                membership,
                present,
            },
            source: wish.source,
            overrides: wish.grant.overrides,
            info: wish.grant.info.clone().into(),
            expire_at: wish.grant.expire_at,
            word: wish.word,
        };
        let is_taken = {
            let mut state = self.state.lock();
            let taken = state.sit(&name, ticket, subscription);
            let is_taken = taken.is_ok();
            if !is_taken {
                // The application was faster with an unsubscribe, or the client has gone.
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
            self.leave_ended(); // The feed has ended before the seat was there to be found.
        }
        if let Some(seen) = seen {
            seen.await;
        }
        Ok(())
    }

    /// Gives up the seats of feeds that have ended, of which the client was told.
    pub(super) fn leave_ended(&self) {
        let left = self.state.lock().leave_ended();
        if !left.is_empty() {
            drop(left);
            self.note_expiry();
        }
    }

    /// Puts the client on the channel's list, if it has one.
    fn present(&self, wish: &Wish<'_>, channel: &ChannelName) -> Option<Box<Present>> {
        let presence = wish.grant.overrides.presence;
        if !presence.unwrap_or(wish.options.presence) {
            return None;
        }
        let info = ClientInfo {
            user: wish.user.to_owned(),
            client: self.id.to_string(),
            conn_info: wish.conn_info.clone(),
            chan_info: wish.grant.info.clone(),
        };
        let announce = if wish.tells_joins() {
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
            // The reply stands behind all of the old subscription and before a new one.
            drop(state.leave(&channel));
            self.reply(id, Outcome::Unsubscribe(UnsubscribeResult {}));
        }
        self.note_expiry();
        Ok(())
    }

    /// Ends a subscription without having been asked by the client, and tells it.
    pub(super) fn end_subscription(&self, channel: &ChannelName, code: u32, reason: &str) {
        let unsubscribe = Unsubscribe {
            code,
            reason: reason.to_owned(),
        };
        {
            let mut state = self.state.lock();
            let left = state.leave(channel);
            if !matches!(left, Left::Subscription(_)) {
                return; // One on its way is told when it arrives.
            }
            drop(left); // Before the push, behind which nothing of the channel may come.
            let event = Event::Unsubscribe(unsubscribe);
            self.push(Push::new(channel.as_str(), event)); // Before a new subscription can begin.
        }
        self.note_expiry();
    }

    /// Ends a subscription as the application wishes, behind what was published before.
    pub(super) async fn unsubscribe_by_order(
        &self,
        channel: &ChannelName,
        code: u32,
        reason: &str,
    ) {
        let flushed = {
            let mut state = self.state.lock();
            let subscription = state.subscription(channel);
            subscription.map(|one| one.seat.membership.flushed(FLUSHED_WITHIN))
        };
        if let Some(flushed) = flushed {
            flushed.await;
        }
        self.end_subscription(channel, code, reason);
    }

    /// Subscribes the client as the application wishes.
    pub(super) async fn subscribe_by_order(&self, order: SubscribeOrder) -> Result<(), Failure> {
        let grant = SubscribeGrant {
            expire_at: None,
            info: order.info,
            data: order.data,
            overrides: order.overrides,
        };
        let since = order.recover_since.as_ref();
        let since = since.map(|since| (since.epoch.as_str(), since.offset));
        let channel = order.channel.as_str();
        self.subscribe_unasked(channel, &grant, since, Source::Application)
            .await
    }

    /// Subscribes the client without having been asked by it, and tells it by a push.
    pub(super) async fn subscribe_unasked(
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
        let wish = Wish {
            channel: &channel,
            options,
            user: &user,
            conn_info: &conn_info,
            asks_for_joins: false,
            since,
            word: Word::Token,
            source,
            grant,
            command: None,
        };
        self.sit(wish, |result| {
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

/// What the client is told. After a recovery its position is where it was: each publication moves it on.
fn subscribe_result(
    wish: &Wish<'_>,
    recovers: bool,
    since: Option<&Position>,
    joined: &stream::Joined<'_>,
) -> SubscribeResult {
    let (expires, ttl) = channels::time_left(wish.grant.expire_at, wish.word);
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
        data: wish.grant.data.clone(),
        was_recovering: since.is_some(),
    }
}
