//! Expiry of a connection and its subscriptions: newer tokens, the refresh hooks, and the end.

use std::sync::Arc;
use std::time::SystemTime;

use crate::auth::Invalid;
use crate::auth::grant::RefreshGrant;
use crate::client::channels;
use crate::client::channels::client::ChannelClient;
use crate::client::channels::client::ClientSnapshot;
use crate::client::channels::failure;
use crate::client::channels::failure::Failure;
use crate::client::channels::state::AuthSource;
use crate::cluster::directory::Lifetime;
use crate::hooks::Refreshed;
use crate::protocol::ErrorCode;
use crate::protocol::Event;
use crate::protocol::Outcome;
use crate::protocol::Push;
use crate::protocol::Refresh;
use crate::protocol::RefreshRequest;
use crate::protocol::RefreshResult;
use crate::protocol::SubRefreshRequest;
use crate::protocol::SubRefreshResult;
use crate::protocol::UnsubscribeCode;
use crate::protocol::channel::ChannelName;
use crate::protocol::disconnect::Disconnect;
use crate::protocol::disconnect::DisconnectMessage;

/// How long after an expiry a refresh hook that fails is tried again before the connection or subscription ends.
const RETRY_SECONDS: u64 = 25;

impl ChannelClient {
    pub(super) async fn refresh(&self, id: u32, request: &RefreshRequest) -> Result<(), Failure> {
        let user = Arc::clone(&self.state.lock().identity()?.user);
        if request.token.is_empty() {
            return Err(ErrorCode::BadRequest.into());
        }
        let granted = self
            .clients
            .verifier
            .connect(&request.token, SystemTime::now());
        let grant = granted.map_err(|error| {
            self.token_refused(&error, None);
            failure::of_refresh_token(&error)
        })?;
        if *grant.user != *user {
            self.token_refused(&Invalid::OtherUser.into(), None);
            return Err(Disconnect::INVALID_TOKEN.into());
        }
        {
            let mut state = self.state.lock();
            let identity = state.identity()?;
            identity.expire_at = grant.expire_at;
            identity.auth_source = AuthSource::Token;
            identity.for_hooks = identity.for_hooks.with_meta(grant.meta);
        }
        self.change_info(grant.info);
        self.note_expiry();
        self.change_subscriptions(&grant.subs).await?;
        let (expires, ttl) = channels::time_left(grant.expire_at, AuthSource::Token);
        let result = RefreshResult {
            client: self.id.to_string(),
            version: String::new(),
            expires,
            ttl,
        };
        self.reply(id, Outcome::Refresh(result));
        Ok(())
    }

    pub(super) fn sub_refresh(&self, id: u32, request: &SubRefreshRequest) -> Result<(), Failure> {
        let (channel, _) = self.options(&request.channel)?;
        let user = {
            let mut state = self.state.lock();
            let user = Arc::clone(&state.identity()?.user);
            if state.subscription(&channel).is_none() {
                return Err(ErrorCode::PermissionDenied.into());
            }
            user
        };
        if request.kind != 0 {
            return Err(ErrorCode::NotAvailable.into());
        }
        if request.token.is_empty() {
            return Err(ErrorCode::BadRequest.into());
        }
        let client = self.id.to_string();
        let asking = self.asking_token(&user, &client);
        let (token, now) = (&request.token, SystemTime::now());
        let verifier = &self.clients.verifier;
        let granted = verifier.subscribe(token, channel.as_str(), asking, now);
        let grant = granted.map_err(|error| {
            self.token_refused(&error, Some(&channel));
            failure::of_sub_refresh_token(&error)
        })?;
        self.change_info_in(&channel, grant.info);
        self.prolong_subscription(&channel, grant.expire_at, AuthSource::Token);
        let (expires, ttl) = channels::time_left(grant.expire_at, AuthSource::Token);
        self.reply(id, Outcome::SubRefresh(SubRefreshResult { expires, ttl }));
        Ok(())
    }

    /// Changes when the connection expires, as the application requests.
    pub(super) fn refresh_by_control(&self, lifetime: Lifetime) {
        match lifetime {
            Lifetime::Expired => self.member.close(Disconnect::EXPIRED),
            Lifetime::Endless => self.prolong(None),
            Lifetime::Until(at) => self.prolong(Some(at)),
        }
    }

    /// Ends what has expired, unless a refresh hook renews it.
    pub(super) async fn expire(self: Arc<Self>) {
        let now = channels::unix_seconds();
        let is_over = self.state.lock().has_expired(now);
        if is_over && !self.outlives(now).await {
            return;
        }
        let expired = self.state.lock().expired(now);
        for channel in expired {
            self.expire_subscription(&channel, now).await;
        }
        self.note_expiry();
    }

    /// Renews an expired connection. Returns false if it was disconnected instead.
    async fn outlives(&self, now: u64) -> bool {
        let Some(snapshot) = self.snapshot(|identity| (identity.expire_at, identity.auth_source))
        else {
            return false;
        };
        let (expire_at, auth_source) = snapshot.what;
        let hooks = &self.clients.hooks;
        let disconnect = if auth_source == AuthSource::Hook && hooks.has_refresh() {
            match self.call_refresh(snapshot).await {
                Ok(Refreshed::For(grant)) => {
                    self.prolong_by_hook(grant);
                    return true;
                }
                Ok(Refreshed::Expired) => Disconnect::EXPIRED.into(),
                Err(Failure::Disconnect(disconnect_message)) => disconnect_message,
                Err(Failure::Error(_)) if may_retry(expire_at, now) => return true, // The hook is called again.
                Err(Failure::Error(_)) => Disconnect::EXPIRED.into(),
            }
        } else {
            DisconnectMessage::from(Disconnect::EXPIRED)
        };
        self.member.close(disconnect);
        false
    }

    /// Calls the refresh hook for the connection.
    async fn call_refresh<T>(&self, snapshot: ClientSnapshot<T>) -> Result<Refreshed, Failure> {
        let context = self.hook_context(snapshot.user, snapshot.for_hooks).await?;
        Ok(self.clients.hooks.refresh(&self.asker(&context)).await?)
    }

    /// Calls the refresh hook for a subscription.
    async fn call_sub_refresh<T>(
        &self,
        snapshot: ClientSnapshot<T>,
        channel: &ChannelName,
    ) -> Result<Refreshed, Failure> {
        let context = self.hook_context(snapshot.user, snapshot.for_hooks).await?;
        let (hooks, asker) = (&self.clients.hooks, self.asker(&context));
        Ok(hooks.sub_refresh(&asker, channel.as_str()).await?)
    }

    async fn expire_subscription(&self, channel: &ChannelName, now: u64) {
        let found = {
            let mut state = self.state.lock();
            let subscription = state.subscription(channel);
            subscription.map(|one| (one.expire_at, one.auth_source))
        };
        let Some((expire_at, auth_source)) = found else {
            return;
        };
        let hooks = &self.clients.hooks;
        if auth_source == AuthSource::Hook
            && hooks.has_sub_refresh()
            && let Some(snapshot) = self.snapshot(|_| ())
        {
            match self.call_sub_refresh(snapshot, channel).await {
                Ok(Refreshed::For(grant)) => {
                    self.change_info_in(channel, grant.info.unwrap_or_default());
                    return self.prolong_subscription(channel, grant.expire_at, AuthSource::Hook);
                }
                Err(Failure::Disconnect(disconnect_message)) => {
                    return self.member.close(disconnect_message);
                }
                Err(Failure::Error(_)) if may_retry(expire_at, now) => return,
                Ok(Refreshed::Expired) | Err(Failure::Error(_)) => {}
            }
        }
        let code = UnsubscribeCode::Expired;
        self.end_subscription(channel, code as u32, code.reason());
    }

    fn prolong_by_hook(&self, grant: RefreshGrant) {
        self.change_info(grant.info.unwrap_or_default());
        self.prolong(grant.expire_at);
    }

    /// Changes when the connection expires, and tells the client if it has to send a newer token.
    fn prolong(&self, expire_at: Option<u64>) {
        let auth_source = {
            let mut state = self.state.lock();
            let Ok(identity) = state.identity() else {
                return;
            };
            identity.expire_at = expire_at;
            identity.auth_source
        };
        self.note_expiry();
        if auth_source == AuthSource::Token {
            let (expires, ttl) = channels::time_left(expire_at, auth_source);
            self.push(Push::new("", Event::Refresh(Refresh { expires, ttl })));
        }
    }

    fn prolong_subscription(
        &self,
        channel: &ChannelName,
        expire_at: Option<u64>,
        auth_source: AuthSource,
    ) {
        if let Some(subscription) = self.state.lock().subscription(channel) {
            subscription.expire_at = expire_at;
            subscription.auth_source = auth_source;
        }
        self.note_expiry();
    }
}

/// Whether a failed refresh hook is called again for what expired at `expire_at`.
fn may_retry(expire_at: Option<u64>, now: u64) -> bool {
    expire_at.is_none_or(|at| now < at.saturating_add(RETRY_SECONDS))
}
