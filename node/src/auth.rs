//! Authentication and authorization of clients by tokens and by channel names.
//!
//! No I/O, time is passed in. The one task is [`watch`], which reads key files again when they change. Tokens and keys
//! are never logged.
//!
//! Invariant: a grant comes from claims that a configured key has signed, that are for this application (`aud`, `iss`)
//! and that are valid now. A subscription token cannot be used to connect, nor a connection token to subscribe.

use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use crate::auth::grant::BadField;
use crate::auth::grant::ConnectGrant;
use crate::auth::grant::SubscribeGrant;
use crate::config::Auth;
use crate::config::Live;
use crate::jwt;
use crate::jwt::BadToken;

mod claims;
pub(crate) mod grant;
mod keys;
mod users;

pub(crate) use keys::watch;
pub(crate) use users::is_let_in;
pub(crate) use users::names_users;

use claims::Audience;
use claims::BadClaims;
use claims::Claims;
use keys::Keys;

/// Why a token is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthError {
    /// It has expired: the client should get a new one.
    #[error("the token has expired")]
    Expired,
    /// It is invalid: the client should not retry.
    #[error("{0}")]
    Invalid(#[from] Invalid),
}

/// What is wrong with a token, for the operator's log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Invalid {
    /// It is not signed by a configured key.
    #[error("{0}")]
    Token(#[from] BadToken),
    /// It is signed, but its claims are malformed.
    #[error("{0}")]
    Claims(#[from] BadClaims),
    /// The data of a claim is invalid.
    #[error("invalid claims: {0}")]
    Field(#[from] BadField),
    /// `nbf` is in the future, by more than the leeway.
    #[error("the token is not valid yet (`nbf`): check the clocks")]
    TooEarly,
    /// It is for another application.
    #[error("`aud` does not match the setting auth.audience")]
    Audience,
    /// It is from another application.
    #[error("`iss` does not match the setting auth.issuer")]
    Issuer,
    /// It is for a subscription.
    #[error("expected a connection token, found a subscription token (it has `channel`)")]
    ForSubscription,
    /// It is for a connection or for another channel.
    #[error("`channel` is not the requested channel")]
    OtherChannel,
    /// It was issued for another user.
    #[error("`sub` is not the user of this connection")]
    OtherUser,
    /// It was issued for another connection.
    #[error("`client` is not the id of this connection")]
    OtherClient,
}

/// The client that requests a subscription.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asking<'a> {
    /// Its user; empty: anonymous.
    pub(crate) user: &'a str,
    /// The id of its connection.
    pub(crate) client: &'a str,
}

/// How a client that connects is authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry<'a> {
    /// By its token.
    Token(&'a str),
    /// By the connect hook.
    Hook,
    /// It is accepted as anonymous.
    Anonymous,
    /// It is rejected: a token is required.
    Refused,
}

/// Checks tokens.
pub(crate) struct Verifier {
    rules: Live<Auth>,
    keys: Keys,
}

impl Verifier {
    /// Checks tokens by `rules`.
    pub(crate) fn new(rules: Auth) -> Self {
        Self {
            keys: Keys::new(&rules),
            rules: Live::new(rules),
        }
    }

    /// Replaces the rules.
    pub(crate) fn reload(&self, rules: Auth) {
        self.keys.reload(&rules);
        self.rules.set(rules);
    }

    /// How a client with this token, or with an empty one, is authenticated. `has_hook`: there is a connect hook.
    pub(crate) fn entry<'a>(&self, token: &'a str, has_hook: bool) -> Entry<'a> {
        match token {
            "" if has_hook => Entry::Hook,
            "" if self.rules.get().anonymous => Entry::Anonymous,
            "" => Entry::Refused,
            token => Entry::Token(token),
        }
    }

    /// The grant of `token` for a client that connects, or that refreshes its connection.
    ///
    /// # Errors
    ///
    /// [`AuthError`].
    pub(crate) fn connect(&self, token: &str, now: SystemTime) -> Result<ConnectGrant, AuthError> {
        let claims = self.claims(token, now)?;
        if claims
            .channel
            .as_ref()
            .is_some_and(|channel| !channel.is_empty())
        {
            return Err(Invalid::ForSubscription.into());
        }
        let expire_at = claims.connection_ends();
        let info = grant::either(claims.info, claims.b64info.as_deref(), "info");
        let subs = grant::subscriptions(claims.channels, claims.subs);
        Ok(ConnectGrant {
            user: claims.sub.unwrap_or_default(),
            expire_at,
            info: info.map_err(Invalid::from)?,
            data: bytes::Bytes::new(),
            subs: subs.map_err(Invalid::from)?,
            meta: grant::either(claims.meta, None, "meta").map_err(Invalid::from)?,
        })
    }

    /// The grant of `token` for a client that subscribes to `channel`, or that refreshes its subscription.
    ///
    /// # Errors
    ///
    /// [`AuthError`].
    pub(crate) fn subscribe(
        &self,
        token: &str,
        channel: &str,
        asking: Asking<'_>,
        now: SystemTime,
    ) -> Result<SubscribeGrant, AuthError> {
        let claims = self.claims(token, now)?;
        if claims.channel.as_deref() != Some(channel) {
            return Err(Invalid::OtherChannel.into());
        }
        if claims.sub.as_deref().unwrap_or_default() != asking.user {
            return Err(Invalid::OtherUser.into());
        }
        let client = claims.client.as_deref().filter(|client| !client.is_empty());
        if client.is_some_and(|client| client != asking.client) {
            return Err(Invalid::OtherClient.into());
        }
        let expire_at = claims.connection_ends();
        let info = grant::either(claims.info, claims.b64info.as_deref(), "info");
        Ok(SubscribeGrant {
            expire_at,
            info: info.map_err(Invalid::from)?,
            data: bytes::Bytes::new(),
            overrides: claims.overrides.unwrap_or_default().into(),
        })
    }

    /// The claims of a token that is signed, for this application and valid now.
    fn claims(&self, token: &str, now: SystemTime) -> Result<Claims, AuthError> {
        let claims = jwt::verify(token, &self.keys.current()).map_err(Invalid::from)?;
        let claims = Claims::read(&claims).map_err(Invalid::from)?;
        // The audience is checked first: the expiry of another application's token is irrelevant.
        let rules = self.rules.get();
        if !is_for_us(&rules, &claims) {
            return Err(Invalid::Audience.into());
        }
        if rules.issuer.is_some() && claims.iss != rules.issuer {
            return Err(Invalid::Issuer.into());
        }
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (leeway, now) = (rules.leeway.as_secs_f64(), now.as_secs_f64());
        if claims.nbf.is_some_and(|nbf| now + leeway < nbf.0) {
            return Err(Invalid::TooEarly.into());
        }
        if claims.exp.is_some_and(|exp| exp.0 + leeway <= now) {
            return Err(AuthError::Expired);
        }
        Ok(claims)
    }
}

fn is_for_us(rules: &Auth, claims: &Claims) -> bool {
    let ours = |audience: &String| rules.audience.contains(audience);
    rules.audience.is_empty()
        || match &claims.aud {
            None => false,
            Some(Audience::One(audience)) => ours(audience),
            Some(Audience::Many(audiences)) => audiences.iter().any(ours),
        }
}

#[cfg(test)]
mod tests;
