//! The affinity cookie: rules of browsers.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use causeway_conf::Span;

use super::{DAY, SECOND};
use crate::config::backend::is_host_name;
use crate::config::check::{Check, is_token};
use crate::config::raw;
use crate::config::{AffinityConfig, SameSite, Secure};

/// 365.25 days. Browsers limit lifetimes to about this.
const YEAR: Duration = Duration::from_secs(31_557_600);

/// How long unsigned cookies can be accepted besides signed ones.
const UNSIGNED_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// A key shorter than this can be guessed.
const KEY_BYTES_MIN: usize = 16;

pub(super) fn affinity(check: &mut Check, raw: raw::Affinity) -> AffinityConfig {
    let default = AffinityConfig::DEFAULT;
    let path = path(check, &raw);
    if let Some(domain) = &raw.domain {
        let is_valid = is_host_name(domain.strip_prefix('.').unwrap_or(domain));
        check.require(
            is_valid,
            "affinity.domain",
            "expected a domain, such as \"example.com\"",
        );
    }
    let same_site = raw.same_site.unwrap_or(default.same_site);
    let secure = raw.secure.unwrap_or(default.secure);
    check.require(
        same_site != SameSite::None || secure != Secure::Never,
        "affinity.secure",
        "browsers reject a cookie with \"same_site: none\" that is not secure: expected auto or always",
    );
    let cookie = raw.cookie.as_deref().unwrap_or(AffinityConfig::COOKIE);
    let prefixed = cookie.starts_with("__Host-") || cookie.starts_with("__Secure-");
    check.require(
        !prefixed || secure == Secure::Always,
        "affinity.secure",
        "browsers reject a cookie with this name that is not secure: expected always",
    );
    host_cookie(
        check,
        "affinity.cookie",
        cookie,
        raw.domain.as_deref(),
        &path,
    );
    let partitioned = raw.partitioned.unwrap_or(default.partitioned);
    check.require(
        !partitioned || same_site == SameSite::None,
        "affinity.partitioned",
        "expected \"same_site: none\" with it: other cookies are not sent to a page that another site embeds",
    );
    for (index, secret) in raw.keys.iter().enumerate() {
        check.require(
            KEY_BYTES_MIN <= secret.expose().len(),
            &format!("affinity.keys[{index}]"),
            "expected a key of at least 16 bytes, such as one line from: openssl rand -base64 32",
        );
    }
    let accept_unsigned_until = raw.accept_unsigned_until.map(|until| {
        let latest = SystemTime::now() + UNSIGNED_MAX;
        check.require(
            until.0 <= latest,
            "affinity.accept_unsigned_until",
            "expected at most a year from now: it is for the time after keys are introduced",
        );
        check.require(
            !raw.keys.is_empty(),
            "affinity.accept_unsigned_until",
            "expected \"keys\" with it: without keys, no cookie is signed",
        );
        until.0
    });
    if let Some(name) = &raw.query_parameter {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        check.require(
            (1..=64).contains(&name.len()) && name.bytes().all(plain),
            "affinity.query_parameter",
            "expected 1 to 64 ASCII letters, digits, \"-\", \".\", \"_\" or \"~\", such as \"sid\"",
        );
    }
    let hold = Span(Duration::ZERO)..=Span(AffinityConfig::HOLD_MAX);
    AffinityConfig {
        domain: raw.domain,
        same_site,
        partitioned,
        secure,
        http_only: raw.http_only.unwrap_or(default.http_only),
        max_age: raw.max_age.map(|age| {
            let range = Span(SECOND)..=Span(YEAR);
            check.span("affinity.max_age", Some(age), DAY, range)
        }),
        keys: raw.keys,
        accept_unsigned_until,
        sockjs_path: raw.sockjs_path.unwrap_or(default.sockjs_path),
        query_parameter: raw.query_parameter,
        sockjs_sessions: check.number(
            "affinity.sockjs_sessions",
            raw.sockjs_sessions,
            default.sockjs_sessions,
            1024..=16_777_216,
        ),
        hold: check.span("affinity.hold", raw.hold, default.hold, hold.clone()),
        hold_timeout: check.span(
            "affinity.hold_timeout",
            raw.hold_timeout,
            default.hold_timeout,
            hold,
        ),
    }
}

/// The default path of the cookies of all pools.
pub(super) fn path(check: &mut Check, raw: &raw::Affinity) -> Cow<'static, str> {
    let Some(path) = &raw.path else {
        return Cow::Borrowed(AffinityConfig::PATH);
    };
    check.path("affinity.path", path);
    Cow::Owned(path.clone())
}

pub(super) fn host_cookie(
    check: &mut Check,
    key: &str,
    name: &str,
    domain: Option<&str>,
    path: &str,
) {
    check.require(
        !name.starts_with("__Host-") || (domain.is_none() && path == "/"),
        key,
        "browsers reject a __Host- cookie with a domain, or with a path other than \"/\"",
    );
}

pub(super) fn cookie_name(check: &mut Check, key: &str, name: &str) {
    check.require(
        is_token(name) && name.len() <= 64,
        key,
        "expected 1 to 64 characters of a cookie name: letters, digits, \"_\" and \"-\" among them",
    );
}
