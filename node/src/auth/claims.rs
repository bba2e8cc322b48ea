//! What a token says, as JSON has it.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::Deserializer;
use serde::de::Error;
use serde::de::Unexpected;
use serde::de::Visitor;
use serde_json::value::RawValue;

use crate::auth::grant::RawChannels;
use crate::auth::grant::RawOverrides;
use crate::auth::grant::RawSubscriptions;

/// The claims that mean something here; others are passed over.
///
/// Libraries write claims that they were not given as `null` or empty, and times with a fraction or as a text: that changes
/// nothing. A claim of another kind is refused, and so is one that is there twice: two readers would take it differently.
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
    expire_at: Option<Moment>,
    /// Of a connection: channels that it hears without asking.
    pub(super) channels: RawChannels,
    /// Of a connection: the same, with options.
    pub(super) subs: Option<RawSubscriptions>,
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

/// UNIX seconds, perhaps with a fraction: RFC 7519 section 2, NumericDate. Also as a text that holds such a number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Moment(pub(super) f64);

/// What is wrong with claims as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadClaims {
    /// Not even that.
    #[error("its claims are not a JSON object")]
    NotAnObject,
    /// A claim that means something here does not say it.
    #[error("its claim `{name}` is not {kind}")]
    Kind {
        /// Which claim.
        name: &'static str,
        /// What it should be.
        kind: &'static str,
    },
    /// It is not said which one counts.
    #[error("one of its claims is there twice")]
    Repeated,
}

/// What each claim has to be.
const KINDS: [(&str, &str); 15] = [
    ("sub", "a text"),
    ("exp", "a number of seconds"),
    ("nbf", "a number of seconds"),
    ("iat", "a number of seconds"),
    ("iss", "a text"),
    ("aud", "a text or a list of texts"),
    ("info", "JSON"),
    ("b64info", "a text"),
    ("expire_at", "a number of seconds"),
    ("channels", "a list of channels"),
    ("subs", "an object with the options of each channel"),
    ("meta", "JSON"),
    ("channel", "a text"),
    ("client", "a text"),
    (
        "override",
        "an object of options such as {\"presence\": {\"value\": true}}",
    ),
];

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Seconds;

        impl Visitor<'_> for Seconds {
            type Value = Moment;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of seconds")
            }

            fn visit_f64<E: Error>(self, seconds: f64) -> Result<Moment, E> {
                Ok(Moment(seconds))
            }

            fn visit_u64<E: Error>(self, seconds: u64) -> Result<Moment, E> {
                Ok(Moment(seconds as f64))
            }

            fn visit_i64<E: Error>(self, seconds: i64) -> Result<Moment, E> {
                Ok(Moment(seconds as f64))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Moment, E> {
                let seconds = text
                    .parse()
                    .ok()
                    .filter(|seconds: &f64| seconds.is_finite());
                let seconds = seconds.ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self));
                seconds.map(Moment)
            }
        }

        deserializer.deserialize_any(Seconds)
    }
}

impl Claims {
    /// Reads claims.
    ///
    /// # Errors
    ///
    /// [`BadClaims`] says which claim is wrong, and nothing of what it holds.
    pub(super) fn read(json: &[u8]) -> Result<Self, BadClaims> {
        // A list would be taken for the claims in their order.
        if !json.trim_ascii_start().starts_with(b"{") {
            return Err(BadClaims::NotAnObject);
        }
        serde_json::from_slice(json).map_err(|_| Self::what_is_wrong(json))
    }

    fn what_is_wrong(json: &[u8]) -> BadClaims {
        let Ok(claims) = serde_json::from_slice::<BTreeMap<String, &RawValue>>(json) else {
            return BadClaims::NotAnObject;
        };
        let is_wrong = |name: &str| {
            let claim = claims.get(name);
            claim.is_some_and(|claim| {
                let alone = format!("{{\"{name}\":{claim}}}");
                serde_json::from_str::<Self>(&alone).is_err()
            })
        };
        let wrong = KINDS.into_iter().find(|(name, _)| is_wrong(name));
        wrong.map_or(BadClaims::Repeated, |(name, kind)| BadClaims::Kind {
            name,
            kind,
        })
    }

    /// When what the token grants ends.
    pub(super) fn connection_ends(&self) -> Option<u64> {
        match (self.expire_at, self.exp) {
            (Some(expire_at), _) => Some(expire_at.0 as u64).filter(|&seconds| 0 < seconds),
            // It has not passed, and a number that large means never: the cast ends at the largest one.
            (None, Some(exp)) => Some(exp.0 as u64),
            (None, None) => None,
        }
    }
}
