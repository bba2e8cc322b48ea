//! What a token says, as JSON has it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::grant;
use crate::grant::RawOverrides;
use crate::grant::RawSubscription;

/// The claims that mean something here; others are passed over.
#[derive(Debug, Deserialize)]
pub(super) struct Claims {
    /// The user.
    pub(super) sub: Option<String>,
    /// From when on the token is worth nothing.
    pub(super) exp: Option<Moment>,
    /// Before when it is worth nothing.
    pub(super) nbf: Option<Moment>,
    /// When it was made. Nothing depends on it, but what is no time is no claim.
    #[serde(rename = "iat")]
    pub(super) _iat: Option<Moment>,
    /// Who made it.
    pub(super) iss: Option<String>,
    /// For whom it was made.
    pub(super) aud: Option<Audience>,
    /// What others are told of the client.
    pub(super) info: Option<Box<RawValue>>,
    /// The same as bytes in base64.
    pub(super) b64info: Option<String>,
    /// When the connection or the subscription ends, if that is not `exp`; 0: never.
    expire_at: Option<i64>,
    /// Of a connection: channels that it hears without asking.
    pub(super) channels: Option<Vec<String>>,
    /// Of a connection: the same, with options.
    pub(super) subs: Option<BTreeMap<String, RawSubscription>>,
    /// Of a connection: for the hooks.
    pub(super) meta: Option<Box<RawValue>>,
    /// Of a subscription: which channel.
    pub(super) channel: Option<String>,
    /// Of a subscription: the one connection that may use it.
    pub(super) client: Option<String>,
    /// Of a subscription: what it does differently from its namespace.
    #[serde(rename = "override")]
    pub(super) overrides: Option<RawOverrides>,
}

/// For one or for several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Audience {
    One(String),
    Many(Vec<String>),
}

/// UNIX seconds, perhaps with a fraction: RFC 7519 section 2, NumericDate.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub(super) struct Moment(pub(super) f64);

impl Claims {
    /// When what the token grants ends.
    pub(super) fn connection_ends(&self) -> Option<u64> {
        match (self.expire_at, self.exp) {
            (Some(expire_at), _) => grant::moment(expire_at),
            // It has not passed, and a number that large means never: the cast ends at the largest one.
            (None, Some(exp)) => Some(exp.0 as u64),
            (None, None) => None,
        }
    }
}
