//! Health checks: the settings for all pools, and those of each pool.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use causeway_conf::{Secret, Span};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method};

use super::{HOUR, MS, SECOND, header_value, is_token};
use crate::config::backend::is_host_name;
use crate::config::check::Check;
use crate::config::raw;
use crate::config::raw::ProbeMethod;
use crate::config::routes::HeaderNameText;
use crate::config::{HealthConfig, ProbeKind, Statuses};

/// The settings under `key`; omitted ones are taken from `common`.
///
/// A pool with another kind of probe has the defaults of that kind for method, path and expected statuses.
pub(super) fn health(
    check: &mut Check,
    key: &str,
    raw: &raw::Health,
    common: &HealthConfig,
) -> HealthConfig {
    let at = |name: &str| format!("{key}.{name}");
    let kind = raw.kind.unwrap_or(common.kind);
    reject_unused(check, key, raw, kind);
    if let Some(path) = &raw.path {
        let plain = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
        check.require(
            plain && !path.contains('#') && path.parse::<PathAndQuery>().is_ok(),
            &at("path"),
            "expected a path that starts with \"/\", without spaces or a fragment",
        );
    }
    let (headers, host_header) = match &raw.headers {
        Some(headers) => headers_of(check, &at("headers"), headers),
        None => (common.headers.clone(), None),
    };
    check.require(
        raw.host.is_none() || host_header.is_none(),
        &at("host"),
        "expected it here or in \"headers\", found both",
    );
    let host = raw.host.clone().or(host_header);
    if let Some(host) = &host {
        let (name, port) = host.rsplit_once(':').unwrap_or((host, "80"));
        check.require(
            is_host_name(name) && port.parse::<u16>().is_ok(),
            &at("host"),
            "expected a host name, such as \"example.com\"",
        );
    }
    let own_kind = kind != common.kind;
    let method = raw.method.map(|method| match method {
        ProbeMethod::Get => Method::GET,
        ProbeMethod::Head => Method::HEAD,
        ProbeMethod::Options => Method::OPTIONS,
    });
    let expect = statuses(check, &at("expect"), raw.expect.as_deref());
    let port = raw
        .port
        .map(|port| check.number(&at("port"), Some(port), 1, 1..=u16::MAX));
    let interval = Span(100 * MS)..=Span(HOUR);
    let mut span = |name: &str, value, default, range| check.span(&at(name), value, default, range);
    HealthConfig {
        kind,
        method: method.unwrap_or_else(|| {
            if own_kind {
                kind.method()
            } else {
                common.method.clone()
            }
        }),
        path: match &raw.path {
            Some(path) => Cow::Owned(path.clone()),
            None if own_kind => Cow::Borrowed(kind.path()),
            None => common.path.clone(),
        },
        host: host.map_or(common.host.clone(), Cow::Owned),
        headers,
        expect: expect.unwrap_or_else(|| {
            if own_kind {
                kind.expect()
            } else {
                common.expect.clone()
            }
        }),
        port: port.or(common.port),
        interval: span("interval", raw.interval, common.interval, interval.clone()),
        fast_interval: span(
            "fast_interval",
            raw.fast_interval,
            common.fast_interval,
            interval.clone(),
        ),
        down_interval: span(
            "down_interval",
            raw.down_interval,
            common.down_interval,
            interval,
        ),
        timeout: span(
            "timeout",
            raw.timeout,
            common.timeout,
            Span(10 * MS)..=Span(60 * SECOND),
        ),
        slow_start: span(
            "slow_start",
            raw.slow_start,
            common.slow_start,
            Span(Duration::ZERO)..=Span(HOUR),
        ),
        rise: check.number(&at("rise"), raw.rise, common.rise, 1..=100),
        fall: check.number(&at("fall"), raw.fall, common.fall, 1..=100),
        ignore_below: check.number(
            &at("ignore_below"),
            raw.ignore_below,
            common.ignore_below,
            0..=100,
        ),
    }
}

/// Rejects settings that a probe of `kind` does not use.
fn reject_unused(check: &mut Check, key: &str, raw: &raw::Health, kind: ProbeKind) {
    let http_only = [
        ("method", raw.method.is_some()),
        ("expect", raw.expect.is_some()),
    ];
    let head_only = [
        ("path", raw.path.is_some()),
        ("host", raw.host.is_some()),
        ("headers", raw.headers.is_some()),
    ];
    let unused: Vec<(&str, bool)> = match kind {
        ProbeKind::Node | ProbeKind::Http => return,
        ProbeKind::Websocket => http_only.to_vec(),
        ProbeKind::Tcp => [&http_only[..], &head_only].concat(),
    };
    let (kind, property) = match kind {
        ProbeKind::Tcp => ("tcp", "sends no request"),
        _ => ("websocket", "is always a GET that expects status 101"),
    };
    for (name, _) in unused.into_iter().filter(|(_, is_set)| *is_set) {
        check.error(
            &format!("{key}.{name}"),
            format!("expected no {name} here: a probe of kind {kind} {property}"),
        );
    }
}

/// Headers that the probe sets itself.
const RESERVED: [&str; 9] = [
    "connection",
    "content-length",
    "expect",
    "sec-websocket-extensions",
    "sec-websocket-key",
    "sec-websocket-version",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// The headers of a probe, with the value of `Host` apart.
fn headers_of(
    check: &mut Check,
    key: &str,
    raw: &BTreeMap<String, Secret>,
) -> (Vec<(HeaderNameText, HeaderValue)>, Option<String>) {
    let (mut headers, mut host) = (Vec::with_capacity(raw.len()), None);
    for (name, text) in raw {
        let (shown, lower) = (name.escape_debug(), name.to_ascii_lowercase());
        let Some(value) = header_value(text) else {
            check.error(
                key,
                format!("\"{shown}\": expected a value of visible ASCII and spaces within it"),
            );
            continue;
        };
        if !is_token(name) || 128 < name.len() || RESERVED.contains(&&*lower) {
            check.error(
                key,
                format!(
                    "\"{shown}\": expected the name of a header that the probe does not set itself"
                ),
            );
        } else if lower == "host" {
            host = Some(text.expose().to_owned());
        } else {
            headers.push((HeaderNameText::new(name), value));
        }
    }
    (headers, host)
}

fn statuses(check: &mut Check, key: &str, raw: Option<&[raw::Statuses]>) -> Option<Statuses> {
    let raw = raw?;
    check.require(!raw.is_empty(), key, "expected at least one status");
    let mut ranges = Vec::with_capacity(raw.len());
    for (index, raw::Statuses(text)) in raw.iter().enumerate() {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.trim().parse().ok().filter(|n| (200..=599).contains(n));
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => ranges.push((first, last)),
            _ => check.error(
                &format!("{key}[{index}]"),
                format!(
                    "\"{}\": expected a status from 200 to 599, or a range of them such as \"200-399\"",
                    text.escape_debug()
                ),
            ),
        }
    }
    Some(Statuses(Cow::Owned(ranges)))
}
