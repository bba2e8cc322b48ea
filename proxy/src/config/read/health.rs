//! How backends are probed: for all pools, and what a pool has of its own.

use std::borrow::Cow;

use causeway_conf::Span;

use super::{HOUR, MS, SECOND};
use crate::backend::is_host_name;
use crate::config::HealthConfig;
use crate::config::check::Check;
use crate::config::raw;

/// The settings under `key`; what is left out is as in `default`.
pub(super) fn health(
    check: &mut Check,
    key: &str,
    raw: &raw::Health,
    default: &HealthConfig,
) -> HealthConfig {
    let at = |name: &str| format!("{key}.{name}");
    if let Some(path) = &raw.path {
        let plain = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
        check.require(
            plain,
            &at("path"),
            "expected a path that starts with \"/\", without spaces",
        );
    }
    if let Some(host) = &raw.host {
        let (name, port) = host.rsplit_once(':').unwrap_or((host, "80"));
        check.require(
            is_host_name(name) && port.parse::<u16>().is_ok(),
            &at("host"),
            "expected a host name, such as \"example.com\"",
        );
    }
    let expect = raw.expect.as_ref().map(|statuses| {
        check.require(
            !statuses.is_empty(),
            &at("expect"),
            "expected at least one status",
        );
        let status = |(index, status): (usize, &u64)| {
            check.status(&at(&format!("expect[{index}]")), *status, 200..=599)
        };
        statuses.iter().enumerate().filter_map(status).collect()
    });
    let interval = Span(100 * MS)..=Span(HOUR);
    let mut span = |name: &str, value, default, range| check.span(&at(name), value, default, range);
    HealthConfig {
        kind: raw.kind.unwrap_or(default.kind),
        path: raw.path.clone().map_or(default.path.clone(), Cow::Owned),
        host: raw.host.clone().map_or(default.host.clone(), Cow::Owned),
        expect: expect.map_or(default.expect.clone(), Cow::Owned),
        interval: span("interval", raw.interval, default.interval, interval.clone()),
        fast_interval: span(
            "fast_interval",
            raw.fast_interval,
            default.fast_interval,
            interval.clone(),
        ),
        down_interval: span(
            "down_interval",
            raw.down_interval,
            default.down_interval,
            interval,
        ),
        timeout: span(
            "timeout",
            raw.timeout,
            default.timeout,
            Span(10 * MS)..=Span(60 * SECOND),
        ),
        rise: check.number(&at("rise"), raw.rise, default.rise, 1..=100),
        fall: check.number(&at("fall"), raw.fall, default.fall, 1..=100),
        ignore_below: check.number(
            &at("ignore_below"),
            raw.ignore_below,
            default.ignore_below,
            0..=100,
        ),
    }
}
