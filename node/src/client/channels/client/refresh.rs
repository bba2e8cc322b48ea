//! How long a connection and its subscriptions live: newer tokens, the backend's word, and the end.

use std::sync::Arc;
use std::time::SystemTime;

use crate::auth::Invalid;
use crate::auth::grant::RefreshGrant;
use crate::client::channels;
use crate::client::channels::client::ChannelClient;
use crate::client::channels::client::Standing;
use crate::client::channels::failure;
use crate::client::channels::failure::Failure;
use crate::client::channels::state::Word;
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
use crate::protocol::disconnect::Farewell;

/// How long the backend may go without an answer before what it should have prolonged ends.
const PATIENCE_SECONDS: u64 = 25;

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
            identity.word = Word::Token;
            identity.for_hooks = identity.for_hooks.with_meta(grant.meta);
        }
        self.change_info(grant.info);
        self.note_expiry();
        self.change_subscriptions(&grant.subs).await?;
        let (expires, ttl) = channels::time_left(grant.expire_at, Word::Token);
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
        self.prolong_subscription(&channel, grant.expire_at, Word::Token);
        let (expires, ttl) = channels::time_left(grant.expire_at, Word::Token);
        self.reply(id, Outcome::SubRefresh(SubRefreshResult { expires, ttl }));
        Ok(())
    }

    /// Lets the connection end earlier or later, as the application wishes.
    pub(super) fn refresh_by_order(&self, lifetime: Lifetime) {
        match lifetime {
            Lifetime::Expired => self.member.close(Disconnect::EXPIRED),
            Lifetime::Endless => self.prolong(None),
            Lifetime::Until(at) => self.prolong(Some(at)),
        }
    }

    /// Ends what has expired, or lets the backend say whether it has.
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

    /// Whether the connection goes on, although its time is over.
    async fn outlives(&self, now: u64) -> bool {
        let Some(standing) = self.standing(|identity| (identity.expire_at, identity.word)) else {
            return false;
        };
        let (expire_at, word) = standing.what;
        let hooks = &self.clients.hooks;
        let refused = if word == Word::Hook && hooks.has_refresh() {
            match self.ask_for_more(standing).await {
                Ok(Refreshed::For(grant)) => {
                    self.prolong_by_hook(grant);
                    return true;
                }
                Ok(Refreshed::Expired) => Disconnect::EXPIRED.into(),
                Err(Failure::Disconnect(farewell)) => farewell,
                Err(Failure::Error(_)) if is_patient(expire_at, now) => return true, // It is asked again.
                Err(Failure::Error(_)) => Disconnect::EXPIRED.into(),
            }
        } else {
            Farewell::from(Disconnect::EXPIRED)
        };
        self.member.close(refused);
        false
    }

    /// Asks the backend whether the connection goes on.
    async fn ask_for_more<T>(&self, standing: Standing<T>) -> Result<Refreshed, Failure> {
        let context = self.hook_context(standing.user, standing.for_hooks).await?;
        Ok(self.clients.hooks.refresh(&self.asker(&context)).await?)
    }

    /// The same for a subscription.
    async fn ask_for_more_in<T>(
        &self,
        standing: Standing<T>,
        channel: &ChannelName,
    ) -> Result<Refreshed, Failure> {
        let context = self.hook_context(standing.user, standing.for_hooks).await?;
        let (hooks, asker) = (&self.clients.hooks, self.asker(&context));
        Ok(hooks.sub_refresh(&asker, channel.as_str()).await?)
    }

    async fn expire_subscription(&self, channel: &ChannelName, now: u64) {
        let found = {
            let mut state = self.state.lock();
            let subscription = state.subscription(channel);
            subscription.map(|one| (one.expire_at, one.word))
        };
        let Some((expire_at, word)) = found else {
            return;
        };
        let hooks = &self.clients.hooks;
        if word == Word::Hook
            && hooks.has_sub_refresh()
            && let Some(standing) = self.standing(|_| ())
        {
            match self.ask_for_more_in(standing, channel).await {
                Ok(Refreshed::For(grant)) => {
                    self.change_info_in(channel, grant.info.unwrap_or_default());
                    return self.prolong_subscription(channel, grant.expire_at, Word::Hook);
                }
                Err(Failure::Disconnect(farewell)) => return self.member.close(farewell),
                Err(Failure::Error(_)) if is_patient(expire_at, now) => return,
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

    /// Notes when the connection ends now, and tells the client if that is its business.
    fn prolong(&self, expire_at: Option<u64>) {
        let word = {
            let mut state = self.state.lock();
            let Ok(identity) = state.identity() else {
                return;
            };
            identity.expire_at = expire_at;
            identity.word
        };
        self.note_expiry();
        if word == Word::Token {
            let (expires, ttl) = channels::time_left(expire_at, word);
            self.push(Push::new("", Event::Refresh(Refresh { expires, ttl })));
        }
    }

    fn prolong_subscription(&self, channel: &ChannelName, expire_at: Option<u64>, word: Word) {
        if let Some(subscription) = self.state.lock().subscription(channel) {
            subscription.expire_at = expire_at;
            subscription.word = word;
        }
        self.note_expiry();
    }
}

/// Whether a backend that does not answer is asked again about what ended at `expire_at`.
fn is_patient(expire_at: Option<u64>, now: u64) -> bool {
    expire_at.is_none_or(|at| now < at.saturating_add(PATIENCE_SECONDS))
}
