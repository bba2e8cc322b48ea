//! The section `health`, of all pools and of each: its fields and defaults, how it is read from the file, and how it is shown.
//!
//! In one file, so that a new kind of health check has one place in the configuration.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use causeway_conf::{Effective, Positions, Secret, Span};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, StatusCode};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer};

use super::backend::is_host_name;
use super::check::{Check, header_value, is_token};
use super::routes::HeaderNameText;

/// How backends of a pool are probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HealthConfig {
    pub(crate) kind: ProbeKind,
    /// The method of an HTTP probe.
    pub(crate) method: Method,
    /// The path of an HTTP or WebSocket probe.
    pub(crate) path: Cow<'static, str>,
    /// The `Host` header of such a probe.
    pub(crate) host: Cow<'static, str>,
    /// Other headers of such a probe.
    pub(crate) headers: Vec<(HeaderNameText, HeaderValue)>,
    /// The statuses with which an HTTP probe passes.
    pub(crate) expect: Statuses,
    /// The port to probe, if not the one of the backend's address.
    pub(crate) port: Option<u16>,
    /// Between two probes of a backend that is up or draining.
    pub(crate) interval: Duration,
    /// Between two probes of a suspect or unknown backend.
    pub(crate) fast_interval: Duration,
    /// Between two probes of a backend that is down.
    pub(crate) down_interval: Duration,
    /// How long one probe may take, from the dial to the end of the response.
    pub(crate) timeout: Duration,
    /// Consecutive good probes that bring a backend up again.
    pub(crate) rise: u32,
    /// Consecutive failed probes that take a backend down.
    pub(crate) fall: u32,
    /// How long it takes until a backend that came up again gets its full share of new clients.
    pub(crate) slow_start: Duration,
    /// The percentage of backends that have to be healthy: below it, health is ignored.
    pub(crate) ignore_below: u32,
}

impl HealthConfig {
    pub(super) const DEFAULT: Self = Self {
        kind: ProbeKind::Node,
        method: ProbeKind::Node.method(),
        path: Cow::Borrowed(ProbeKind::Node.path()),
        host: Cow::Borrowed("localhost"),
        headers: Vec::new(),
        expect: ProbeKind::Node.expect(),
        port: None,
        interval: Duration::from_secs(2),
        fast_interval: Duration::from_millis(500),
        down_interval: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        rise: 2,
        fall: 3,
        slow_start: Duration::from_secs(10),
        ignore_below: 0,
    };
}

/// The kind of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ProbeKind {
    /// An HTTP request with the defaults for Causeway nodes.
    Node,
    /// An HTTP request with the defaults for other apps.
    Http,
    /// An accepted connection.
    Tcp,
    /// A WebSocket handshake.
    Websocket,
}

/// What is sent on the connection of a probe. Which settings a kind has follows from it.
#[derive(Debug, Clone, Copy)]
enum Sends {
    /// A request that is set by `method`, `path`, `host` and `headers`, and a status that is one of `expect`.
    Request,
    /// A WebSocket handshake that is set by `path`, `host` and `headers`.
    Handshake,
    Nothing,
}

impl ProbeKind {
    const fn sends(self) -> Sends {
        match self {
            Self::Node | Self::Http => Sends::Request,
            Self::Websocket => Sends::Handshake,
            Self::Tcp => Sends::Nothing,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Http => "http",
            Self::Tcp => "tcp",
            Self::Websocket => "websocket",
        }
    }

    const fn method(self) -> Method {
        match self {
            Self::Http => Method::HEAD,
            Self::Node | Self::Tcp | Self::Websocket => Method::GET,
        }
    }

    const fn path(self) -> &'static str {
        match self {
            Self::Node => "/ready",
            Self::Http | Self::Tcp | Self::Websocket => "/",
        }
    }

    const fn expect(self) -> Statuses {
        match self {
            Self::Node => Statuses(Cow::Borrowed(&[(200, 200)])),
            Self::Http => Statuses(Cow::Borrowed(&[(200, 399)])),
            Self::Websocket => Statuses(Cow::Borrowed(&[(101, 101)])),
            Self::Tcp => Statuses(Cow::Borrowed(&[])),
        }
    }
}

/// Ranges of statuses, first and last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Statuses(Cow<'static, [(u16, u16)]>);

impl Statuses {
    pub(crate) fn contains(&self, status: StatusCode) -> bool {
        let holds = |(first, last): &(u16, u16)| (*first..=*last).contains(&status.as_u16());
        self.0.iter().any(holds)
    }
}

/// The section as it is written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHealth {
    kind: Option<ProbeKind>,
    method: Option<ProbeMethod>,
    path: Option<String>,
    host: Option<String>,
    headers: Option<BTreeMap<String, Secret>>,
    expect: Option<Vec<RawStatuses>>,
    port: Option<u64>,
    interval: Option<Span>,
    fast_interval: Option<Span>,
    down_interval: Option<Span>,
    timeout: Option<Span>,
    rise: Option<u64>,
    fall: Option<u64>,
    slow_start: Option<Span>,
    ignore_below: Option<u64>,
}

/// The methods of probes: only safe ones.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum ProbeMethod {
    Get,
    Head,
    Options,
}

/// A status such as `200`, or a range such as `200-399`, as text.
#[derive(Debug, Clone)]
struct RawStatuses(String);

impl<'de> Deserialize<'de> for RawStatuses {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = RawStatuses;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a status such as 200, or a range such as \"200-399\"")
            }

            fn visit_u64<E>(self, status: u64) -> Result<RawStatuses, E> {
                Ok(RawStatuses(status.to_string()))
            }

            fn visit_str<E>(self, range: &str) -> Result<RawStatuses, E> {
                Ok(RawStatuses(range.to_owned()))
            }
        }
        from.deserialize_any(Text)
    }
}

/// The settings under `key`; omitted ones are taken from `common`.
///
/// A pool with another kind of probe has the defaults of that kind for method, path and expected statuses.
pub(super) fn read(
    check: &mut Check,
    key: &str,
    raw: &RawHealth,
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
fn reject_unused(check: &mut Check, key: &str, raw: &RawHealth, kind: ProbeKind) {
    let http_only = [
        ("method", raw.method.is_some()),
        ("expect", raw.expect.is_some()),
    ];
    let head_only = [
        ("path", raw.path.is_some()),
        ("host", raw.host.is_some()),
        ("headers", raw.headers.is_some()),
    ];
    let (unused, why) = match kind.sends() {
        Sends::Request => return,
        Sends::Handshake => (
            http_only.to_vec(),
            "is always a GET that expects status 101",
        ),
        Sends::Nothing => ([&http_only[..], &head_only].concat(), "sends no request"),
    };
    let kind = kind.name();
    for (name, _) in unused.into_iter().filter(|(_, is_set)| *is_set) {
        check.error(
            &format!("{key}.{name}"),
            format!("expected no {name} here: a probe of kind {kind} {why}"),
        );
    }
}

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

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

fn statuses(check: &mut Check, key: &str, raw: Option<&[RawStatuses]>) -> Option<Statuses> {
    let raw = raw?;
    check.require(!raw.is_empty(), key, "expected at least one status");
    let mut ranges = Vec::with_capacity(raw.len());
    for (index, RawStatuses(text)) in raw.iter().enumerate() {
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

impl HealthConfig {
    /// What applies to the pool at `index`, in the form of the file, whose keys are at `positions`.
    pub(super) fn effective(&self, index: usize, positions: &Positions) -> Effective {
        let Self {
            kind,
            method,
            path,
            host,
            headers: _, // As they are written, without their values.
            expect,
            port,
            interval,
            fast_interval,
            down_interval,
            timeout,
            rise,
            fall,
            slow_start,
            ignore_below,
        } = self;
        let own = format!("pools[{index}].health.headers");
        let written = if positions.is_given(&own) {
            positions.names(&own)
        } else {
            positions.names("health.headers")
        };
        // The host is shown as what it is, wherever it is set.
        let is_other = |name: &&str| !name.eq_ignore_ascii_case("host");
        let headers = written.into_iter().filter(is_other);
        let headers = headers
            .map(|name| (name.to_owned(), Effective::Secret))
            .collect();
        let request = [
            ("method", Effective::text(method.as_str())),
            ("expect", shown_statuses(expect)),
        ];
        let head = [
            ("path", Effective::text(path)),
            ("host", Effective::text(host)),
            ("headers", Effective::Map(headers)),
        ];
        let mut settings = vec![("kind", Effective::text(kind.name()))];
        match kind.sends() {
            Sends::Request => settings.extend(request.into_iter().chain(head)),
            Sends::Handshake => settings.extend(head),
            Sends::Nothing => {}
        }
        settings.extend([
            ("port", Effective::option(*port, Effective::plain)),
            ("interval", Effective::span(*interval)),
            ("fast_interval", Effective::span(*fast_interval)),
            ("down_interval", Effective::span(*down_interval)),
            ("timeout", Effective::span(*timeout)),
            ("rise", Effective::plain(rise)),
            ("fall", Effective::plain(fall)),
            ("slow_start", Effective::span(*slow_start)),
            ("ignore_below", Effective::plain(ignore_below)),
        ]);
        // What the pool does not say itself holds for all pools.
        let shown = settings
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.or_from(&format!("health.{name}"))));
        Effective::Map(shown.collect())
    }
}

fn shown_statuses(Statuses(ranges): &Statuses) -> Effective {
    Effective::list(ranges.iter(), |(first, last)| {
        if first == last {
            Effective::plain(first)
        } else {
            Effective::text(format!("{first}-{last}"))
        }
    })
}
