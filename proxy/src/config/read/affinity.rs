//! The affinity cookie: what browsers would take.

use std::borrow::Cow;
use std::time::Duration;

use causeway_conf::Span;

use super::{DAY, SECOND, is_token};
use crate::backend::is_host_name;
use crate::config::check::Check;
use crate::config::raw;
use crate::config::{AffinityConfig, SameSite, Secure};

/// 365.25 days. Browsers cut longer lifetimes to about this.
const YEAR: Duration = Duration::from_secs(31_557_600);

/// A key shorter than this can be guessed.
const KEY_BYTES_MIN: usize = 16;

pub(super) fn affinity(check: &mut Check, raw: raw::Affinity) -> AffinityConfig {
    let default = AffinityConfig::DEFAULT;
    let path = raw.path.map_or(default.path, Cow::Owned);
    check.path("affinity.path", &path);
    if let Some(domain) = &raw.domain {
        let right = is_host_name(domain.strip_prefix('.').unwrap_or(domain));
        check.require(
            right,
            "affinity.domain",
            "expected a domain, such as \"example.com\"",
        );
    }
    let same_site = raw.same_site.unwrap_or(default.same_site);
    let secure = raw.secure.unwrap_or(default.secure);
    check.require(
        same_site != SameSite::None || secure != Secure::Never,
        "affinity.secure",
        "browsers drop a cookie with \"same_site: none\" that is not secure: expected auto or always",
    );
    let cookie = raw.cookie.as_deref().unwrap_or(AffinityConfig::COOKIE);
    let prefixed = cookie.starts_with("__Host-") || cookie.starts_with("__Secure-");
    check.require(
        !prefixed || secure == Secure::Always,
        "affinity.secure",
        "browsers drop a cookie with this name that is not secure: expected always",
    );
    check.require(
        !cookie.starts_with("__Host-") || (raw.domain.is_none() && path == "/"),
        "affinity.cookie",
        "browsers drop a __Host- cookie with a domain, or with a path other than \"/\"",
    );
    for (index, secret) in raw.keys.iter().enumerate() {
        check.require(
            KEY_BYTES_MIN <= secret.expose().len(),
            &format!("affinity.keys[{index}]"),
            "expected a key of at least 16 bytes, such as one line from: openssl rand -base64 32",
        );
    }
    let hold = Span(Duration::ZERO)..=Span(AffinityConfig::HOLD_MAX);
    AffinityConfig {
        path,
        domain: raw.domain,
        same_site,
        secure,
        http_only: raw.http_only.unwrap_or(default.http_only),
        max_age: raw.max_age.map(|age| {
            let range = Span(SECOND)..=Span(YEAR);
            check.span("affinity.max_age", Some(age), DAY, range)
        }),
        keys: raw.keys,
        sockjs_path: raw.sockjs_path.unwrap_or(default.sockjs_path),
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

pub(super) fn cookie_name(check: &mut Check, key: &str, name: &str) {
    check.require(
        is_token(name) && name.len() <= 64,
        key,
        "expected 1 to 64 characters of a cookie name: letters, digits, \"_\" and \"-\" among them",
    );
}
