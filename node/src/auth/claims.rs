//! The claims of a token, in JSON.

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

/// The claims that are used here; others are ignored.
///
/// Libraries write unset claims as `null` or empty, and times with a fraction or as a string: all are accepted. A claim of
/// another type is rejected, and so is a duplicate: parsers differ in which one they use.
#[derive(Debug, Deserialize)]
pub(super) struct Claims {
    /// The user.
    pub(super) sub: Option<String>,
    /// When the token expires.
    pub(super) exp: Option<Moment>,
    /// Before which it is not valid.
    pub(super) nbf: Option<Moment>,
    /// When it was issued. Not used, but it has to be a time.
    #[serde(rename = "iat")]
    pub(super) _iat: Option<Moment>,
    /// The issuer.
    pub(super) iss: Option<String>,
    /// The audience.
    pub(super) aud: Option<Audience>,
    /// The client's info for others.
    pub(super) info: Option<Box<RawValue>>,
    /// The same as bytes in base64.
    pub(super) b64info: Option<String>,
    /// When the connection or the subscription expires, if not at `exp`; 0: never.
    expire_at: Option<Moment>,
    /// Of a connection: server-side subscriptions.
    pub(super) channels: RawChannels,
    /// Of a connection: the same, with options.
    pub(super) subs: Option<RawSubscriptions>,
    /// Of a connection: for the hooks.
    pub(super) meta: Option<Box<RawValue>>,
    /// Of a subscription: which channel.
    pub(super) channel: Option<String>,
    /// Of a subscription: the one connection that may use it.
    pub(super) client: Option<String>,
    /// Of a subscription: options that differ from its namespace.
    #[serde(rename = "override")]
    pub(super) overrides: Option<RawOverrides>,
}

/// One or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Audience {
    One(String),
    Many(Vec<String>),
}

/// UNIX seconds, perhaps with a fraction: RFC 7519 section 2, NumericDate. Also as a text that holds such a number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Moment(pub(super) f64);

/// Why claims are rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadClaims {
    /// They are not JSON or not an object.
    #[error("the claims are not a JSON object")]
    NotAnObject,
    /// A claim has the wrong type.
    #[error("the claim `{name}` is not {kind}")]
    Kind {
        /// The claim.
        name: &'static str,
        /// The expected type.
        kind: &'static str,
    },
    /// It is ambiguous which one counts.
    #[error("a claim is duplicated")]
    Repeated,
}

/// The type of each claim.
const KINDS: [(&str, &str); 15] = [
    ("sub", "a string"),
    ("exp", "a number of seconds"),
    ("nbf", "a number of seconds"),
    ("iat", "a number of seconds"),
    ("iss", "a string"),
    ("aud", "a string or a list of strings"),
    ("info", "JSON"),
    ("b64info", "a string"),
    ("expire_at", "a number of seconds"),
    ("channels", "a list of channels"),
    ("subs", "an object with the options of each channel"),
    ("meta", "JSON"),
    ("channel", "a string"),
    ("client", "a string"),
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
    /// Parses claims.
    ///
    /// # Errors
    ///
    /// [`BadClaims`] names the claim, but not its value.
    pub(super) fn read(json: &[u8]) -> Result<Self, BadClaims> {
        // serde would accept a list as the claims in their order.
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

    /// When the grant of the token expires.
    pub(super) fn connection_ends(&self) -> Option<u64> {
        match (self.expire_at, self.exp) {
            (Some(expire_at), _) => Some(expire_at.0 as u64).filter(|&seconds| 0 < seconds),
            // It has not passed, and a number that large means never: the cast ends at the largest one.
            (None, Some(exp)) => Some(exp.0 as u64),
            (None, None) => None,
        }
    }
}
