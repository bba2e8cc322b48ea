//! Says what the node says of a token, and what would be right.

use std::fmt::Write as _;
use std::time::Duration;
use std::time::SystemTime;

use causeway_conf::Span;
use serde_json::Value;

use super::date;
use super::key_names;
use super::keys;
use super::unix_seconds;
use crate::auth::Asking;
use crate::auth::AuthError;
use crate::auth::Invalid;
use crate::auth::Verifier;
use crate::auth::grant::ConnectGrant;
use crate::auth::grant::SubscribeGrant;
use crate::config::Config;
use crate::config::SubscribeAccess;
use crate::jwt;
use crate::jwt::BadToken;
use crate::jwt::Key;

/// How a token is used.
#[derive(Debug, Clone, Default)]
pub struct TokenCheck {
    /// The channel that is subscribed to with it; `None`: what it says itself.
    pub channel: Option<String>,
    /// The user of the connection; `None`: what it says itself.
    pub user: Option<String>,
    /// The id of the connection; `None`: what it says itself.
    pub client: Option<String>,
}

/// What the node says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it accepts the token.
    pub is_valid: bool,
    /// The reason, what would be right, and the claims, one line each.
    pub text: String,
}

/// What the node with `config` says of `token`.
pub fn check_token(config: &Config, token: &str, check: &TokenCheck, now: SystemTime) -> Verdict {
    let keys = keys(config);
    let token = token.trim();
    let payload = match jwt::verify(token, &keys) {
        Ok(payload) => payload,
        Err(error) => return unsigned(&error, &keys),
    };
    let claims: Value = serde_json::from_slice(&payload).unwrap_or_default();
    let claim = |name: &str| claims.get(name).and_then(Value::as_str).unwrap_or_default();
    let verifier = Verifier::new(config.auth.clone());
    let is_subscription = check.channel.is_some() || !claim("channel").is_empty();
    let lines = if is_subscription {
        let channel = check.channel.as_deref().unwrap_or(claim("channel"));
        let asking = Asking {
            user: check.user.as_deref().unwrap_or(claim("sub")),
            client: check.client.as_deref().unwrap_or(claim("client")),
        };
        let grant = verifier.subscribe(token, channel, asking, now);
        grant
            .map_err(|error| refusal(&error, config, &claims, check, now))
            .and_then(|grant| subscription(config, channel, asking, &grant, now))
    } else {
        let grant = verifier.connect(token, now);
        grant
            .map_err(|error| refusal(&error, config, &claims, check, now))
            .map(|grant| connection(config, &grant, now))
    };
    let is_valid = lines.is_ok();
    let mut text = match lines {
        Ok(text) | Err(text) => text,
    };
    // Writing to a string does not fail.
    let _ = write!(
        text,
        "claims: {}",
        printable(&String::from_utf8_lossy(&payload))
    );
    Verdict { is_valid, text }
}

/// Nothing of such a token is shown: anybody may have made it.
fn unsigned(error: &BadToken, keys: &[Key]) -> Verdict {
    let mut text = format!("refused: {error}\n");
    let expected = match error {
        BadToken::NoKey(..) | BadToken::Signature => {
            format!("a signature by one of the keys: {}", key_names(keys))
        }
        BadToken::Critical => "a header without `crit`".to_owned(),
        BadToken::TooLarge(_) => "a shorter token, with fewer channels or less info".to_owned(),
        BadToken::Parts | BadToken::Header | BadToken::Algorithm(_) => {
            "a JSON Web Token as a library makes it: HEADER.CLAIMS.SIGNATURE".to_owned()
        }
    };
    let _ = write!(text, "expected: {expected}");
    Verdict {
        is_valid: false,
        text,
    }
}

fn connection(config: &Config, grant: &ConnectGrant, now: SystemTime) -> String {
    let mut text = format!("valid: connects {}\n", user(&grant.user));
    text.push_str(&expiry("the connection", grant.expire_at, now));
    for channel in grant.subs.keys() {
        let _ = match config.channels.namespaces.options(channel) {
            Some(_) => writeln!(text, "subscribes to: {channel:?}"),
            None => writeln!(
                text,
                "does not subscribe to: {channel:?}, no namespace of channels.namespaces has it"
            ),
        };
    }
    text
}

fn subscription(
    config: &Config,
    channel: &str,
    asking: Asking<'_>,
    grant: &SubscribeGrant,
    now: SystemTime,
) -> Result<String, String> {
    match config.channels.namespaces.options(channel) {
        None => {
            return Err(format!(
                "refused: no namespace of channels.namespaces has the channel {channel:?}\n\
                 expected: the name of a namespace, a colon and more; without a colon, the namespace \"\"\n"
            ));
        }
        Some(options) if options.subscribe == SubscribeAccess::Nobody => {
            return Err(format!(
                "refused: nobody may subscribe to {channel:?}\n\
                 expected: `subscribe` of the namespace {:?} other than nobody\n",
                options.namespace
            ));
        }
        Some(_) => {}
    }
    let by = match asking.client {
        "" => String::new(),
        client => format!(", on the connection {client:?} alone"),
    };
    let mut text = format!(
        "valid: subscribes {} to {channel:?}{by}\n",
        user(asking.user)
    );
    text.push_str(&expiry("the subscription", grant.expire_at, now));
    Ok(text)
}

fn user(user: &str) -> String {
    match user {
        "" => "an anonymous client".to_owned(),
        user => format!("the user {user:?}"),
    }
}

fn expiry(what: &str, expire_at: Option<u64>, now: SystemTime) -> String {
    match expire_at {
        None => format!("expires: never, so {what} is not refreshed\n"),
        Some(seconds) => format!("expires: {}, {}\n", date(seconds), distance(seconds, now)),
    }
}

/// How far a moment is from now.
fn distance(seconds: u64, now: SystemTime) -> String {
    let now = unix_seconds(now);
    let span = Span(Duration::from_secs(seconds.abs_diff(now)));
    if now < seconds {
        format!("in {span}")
    } else {
        format!("{span} ago")
    }
}

/// The rule that refuses the token, and what would be right.
fn refusal(
    error: &AuthError,
    config: &Config,
    claims: &Value,
    check: &TokenCheck,
    now: SystemTime,
) -> String {
    let auth = &config.auth;
    let leeway = Span(auth.leeway);
    let found = |name: &str| match claims.get(name) {
        None => "none".to_owned(),
        Some(value) => printable(&value.to_string()),
    };
    let moment = |name: &str| {
        let seconds = claims.get(name).and_then(Value::as_f64);
        seconds.map_or_else(
            || found(name),
            |seconds| {
                format!(
                    "{}, {}",
                    date(seconds as u64),
                    distance(seconds as u64, now)
                )
            },
        )
    };
    let expected = match error {
        AuthError::Expired => format!(
            "`exp` in the future, found {} (auth.leeway is {leeway}); the SDK gets a new token",
            moment("exp")
        ),
        AuthError::Invalid(invalid) => match invalid {
            Invalid::TooEarly => {
                format!(
                    "`nbf` in the past, found {} (auth.leeway is {leeway})",
                    moment("nbf")
                )
            }
            Invalid::Audience => {
                format!(
                    "`aud` with one of {:?}, found {}",
                    auth.audience,
                    found("aud")
                )
            }
            Invalid::Issuer => format!(
                "`iss` {:?}, found {}",
                auth.issuer.as_deref().unwrap_or_default(),
                found("iss")
            ),
            Invalid::ForSubscription => "no `channel` in a token that connects".to_owned(),
            Invalid::OtherChannel => format!(
                "`channel` {:?}, found {}",
                check.channel.as_deref().unwrap_or_default(),
                found("channel")
            ),
            Invalid::OtherUser => format!(
                "`sub` {:?}, found {}",
                check.user.as_deref().unwrap_or_default(),
                found("sub")
            ),
            Invalid::OtherClient => format!(
                "`client` {:?} or none, found {}",
                check.client.as_deref().unwrap_or_default(),
                found("client")
            ),
            Invalid::Token(_) | Invalid::Claims(_) | Invalid::Field(_) => {
                "claims as in node/README.md, section Tokens".to_owned()
            }
        },
    };
    format!("refused: {error}\nexpected: {expected}\n")
}

/// A text of somebody else for a terminal: control characters are escaped.
fn printable(text: &str) -> String {
    text.chars().fold(String::new(), |mut shown, c| {
        if c.is_control() {
            let _ = write!(shown, "\\u{:04x}", u32::from(c));
        } else {
            shown.push(c);
        }
        shown
    })
}
