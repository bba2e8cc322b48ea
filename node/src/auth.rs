//! Who a client is and what it may do, by its tokens and by the names of channels.
//!
//! Plain: the time is passed in, and nothing here waits. The one task is [`watch`], which reads the file with the key
//! set anew when it changes. No token and no key is ever in a log line.
//!
//! Invariant: a grant comes from claims that a configured key has signed, that are for this application (`aud`, `iss`)
//! and that hold at this moment. A token for a subscription connects nobody, and one for a connection subscribes nobody.

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

/// Why a token grants nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthError {
    /// It did once: the client is to get itself a newer one.
    #[error("the token has expired")]
    Expired,
    /// It never will: the client is to stop trying.
    #[error("{0}")]
    Invalid(#[from] Invalid),
}

/// What is wrong with a token, for the operator's log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Invalid {
    /// Nobody we know has signed it.
    #[error("{0}")]
    Token(#[from] BadToken),
    /// Somebody we know has signed it, and it is of no use.
    #[error("{0}")]
    Claims(#[from] BadClaims),
    /// A claim that holds bytes.
    #[error("its claims are wrong: {0}")]
    Field(#[from] BadField),
    /// `nbf` lies ahead, by more than the leeway.
    #[error("it is not valid yet: is a clock wrong?")]
    TooEarly,
    /// It is for another application.
    #[error("its `aud` is none of those of the setting auth.audience")]
    Audience,
    /// It is from another application.
    #[error("its `iss` is not that of the setting auth.issuer")]
    Issuer,
    /// It is for a subscription.
    #[error("it is for a subscription (it has `channel`), and a connection is asked for")]
    ForSubscription,
    /// It is for a connection or for another channel.
    #[error("its `channel` is not the one that is asked for")]
    OtherChannel,
    /// Somebody passes on what was given to another user.
    #[error("its `sub` is not the user of this connection")]
    OtherUser,
    /// It was made for one connection, and this is another one.
    #[error("its `client` is not the id of this connection")]
    OtherClient,
}

/// Who asks to subscribe.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asking<'a> {
    /// Its user; empty: anonymous.
    pub(crate) user: &'a str,
    /// The id of its connection.
    pub(crate) client: &'a str,
}

/// How a client that wants to connect is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry<'a> {
    /// By its token.
    Token(&'a str),
    /// The application is asked.
    Hook,
    /// It comes in as nobody.
    Anonymous,
    /// It stays outside: it has to show a token.
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

    /// How a client with this token, or with an empty one, is judged. `has_hook`: the application wants to be asked.
    pub(crate) fn entry<'a>(&self, token: &'a str, has_hook: bool) -> Entry<'a> {
        match token {
            "" if has_hook => Entry::Hook,
            "" if self.rules.get().anonymous => Entry::Anonymous,
            "" => Entry::Refused,
            token => Entry::Token(token),
        }
    }

    /// What `token` grants a client that connects, or that stays connected with a newer token.
    ///
    /// # Errors
    ///
    /// [`AuthError`]; there is no third case.
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

    /// What `token` grants a client that subscribes to `channel`, or that stays subscribed with a newer token.
    ///
    /// # Errors
    ///
    /// [`AuthError`]; there is no third case.
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

    /// The claims of a token that is genuine, ours and not out of date.
    fn claims(&self, token: &str, now: SystemTime) -> Result<Claims, AuthError> {
        let claims = jwt::verify(token, &self.keys.current()).map_err(Invalid::from)?;
        let claims = Claims::read(&claims).map_err(Invalid::from)?;
        // What it is for goes first: a token of another application says nothing to us, not even that it has expired.
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
