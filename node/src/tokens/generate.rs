//! Makes a token for a connection or a subscription.

use std::path::PathBuf;
use std::time::Duration;
use std::time::SystemTime;

use causeway_conf::Secret;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use super::key_names;
use super::keys;
use super::unix_seconds;
use crate::config::Config;
use crate::jwt::Algorithm;
use crate::jwt::BadSigningKey;
use crate::jwt::SigningKey;

/// What a token is to say, and with which key.
#[derive(Debug, Clone, Default)]
pub struct TokenRequest {
    /// Its user; empty: anonymous.
    pub user: String,
    /// The channel of a subscription; `None`: it is for a connection.
    pub channel: Option<String>,
    /// The one connection that may use it for a subscription.
    pub client: Option<String>,
    /// When it expires; `None`: never.
    pub expires: Option<Duration>,
    /// What others in a channel see of the client, in JSON.
    pub info: Option<String>,
    /// Further claims, an object in JSON.
    pub claims: Option<String>,
    /// A file with a secret or a private key; `None`: a key of the configuration.
    pub key: Option<PathBuf>,
    /// The algorithm of the key in the file; `None`: the one of its kind.
    pub algorithm: Option<String>,
    /// The id of the key, which the header names.
    pub key_id: Option<String>,
}

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TokenError(String);

impl From<BadSigningKey> for TokenError {
    fn from(error: BadSigningKey) -> Self {
        Self(error.to_string())
    }
}

/// A token as `request` says, signed now; `aud` and `iss` are those that `config` requires.
///
/// # Errors
///
/// What of the request is wrong, or that there is no key that signs.
pub fn generate_token(
    config: &Config,
    request: &TokenRequest,
    now: SystemTime,
) -> Result<String, TokenError> {
    let key = signing_key(config, request)?;
    Ok(key.sign(&claims(config, request, now)?)?)
}

fn signing_key(config: &Config, request: &TokenRequest) -> Result<SigningKey, TokenError> {
    let algorithm = match &request.algorithm {
        None => None,
        Some(name) => Some(Algorithm::named(name).ok_or_else(|| {
            TokenError(format!(
                "--algorithm: expected HS256, RS256, PS256, ES256, ES384 or EdDSA, found {name:?}"
            ))
        })?),
    };
    if let Some(path) = &request.key {
        let secret =
            Secret::from_path(path).map_err(|error| TokenError(format!("--key: {error}")))?;
        let key = SigningKey::new(request.key_id.clone(), algorithm, secret.expose());
        return key.map_err(|error| TokenError(format!("--key: {error}")));
    }
    let all = keys(config);
    let is_meant = |key: &&crate::jwt::Key| {
        let has_id = request.key_id.is_none() || key.id() == request.key_id.as_deref();
        has_id && algorithm.is_none_or(|algorithm| algorithm == key.algorithm())
    };
    let mut failure = None;
    for key in all.iter().filter(is_meant) {
        match SigningKey::of(key) {
            Ok(key) => return Ok(key),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    Err(match failure {
        Some(error) => error.into(),
        None => TokenError(format!(
            "no key of the configuration fits: {}; expected one of auth.keys, or --key FILE",
            key_names(&all)
        )),
    })
}

fn claims(config: &Config, request: &TokenRequest, now: SystemTime) -> Result<String, TokenError> {
    let mut claims = match &request.claims {
        None => Map::new(),
        Some(text) => serde_json::from_str(text).map_err(|_| {
            TokenError(
                "--claims: expected an object in JSON, such as '{\"meta\": {\"plan\": \"free\"}}'"
                    .to_owned(),
            )
        })?,
    };
    let mut set = |name: &str, value: Value| {
        claims.insert(name.to_owned(), value);
    };
    if !request.user.is_empty() {
        set("sub", json!(request.user));
    }
    if let Some(channel) = &request.channel {
        set("channel", json!(channel));
    }
    if let Some(client) = &request.client {
        if request.channel.is_none() {
            return Err(TokenError(
                "--client: expected --channel with it, only a subscription is for one connection"
                    .to_owned(),
            ));
        }
        set("client", json!(client));
    }
    if let Some(info) = &request.info {
        let info: Value = serde_json::from_str(info).map_err(|_| {
            TokenError("--info: expected JSON, such as '{\"name\": \"Ann\"}'".to_owned())
        })?;
        set("info", info);
    }
    let now = unix_seconds(now);
    set("iat", json!(now));
    if let Some(expires) = request.expires {
        set("exp", json!(now.saturating_add(expires.as_secs())));
    }
    if let Some(audience) = config.auth.audience.first() {
        claims.entry("aud").or_insert_with(|| json!(audience));
    }
    if let Some(issuer) = &config.auth.issuer {
        claims.entry("iss").or_insert_with(|| json!(issuer));
    }
    Ok(Value::Object(claims).to_string())
}
