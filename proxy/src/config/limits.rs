//! The section `limits`: its fields and defaults, how it is read from the file, and how it is shown.
//!
//! In one file, so that a new limit has one place in the configuration.

use std::ops::RangeInclusive;
use std::time::Duration;

use causeway_conf::{ByteSize, Effective, Span};
use serde::Deserialize;

use super::check::Check;

/// Limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Client connections; `None` is what the open-file limit allows.
    pub(crate) connections: Option<usize>,
    /// Client connections for each client address.
    pub(crate) connections_per_address: Option<u32>,
    /// New client connections for each client address.
    pub(crate) connection_rate_per_address: Option<Rate>,
    /// The largest request head in bytes, 431 above it.
    pub(crate) head_size: usize,
    /// The largest response head in bytes, 502 above it.
    pub(crate) response_head_size: usize,
    /// The most header lines in the head of a request (431 above it) or of a response (502), at most [`Limits::HEADERS_MAX`].
    pub(crate) headers: usize,
    /// The most streams that one HTTP/2 connection of a client may have open.
    pub(crate) http2_streams: u32,
    /// How many bytes are buffered for one HTTP/2 stream whose client does not read.
    pub(crate) http2_send_buffer: usize,
    /// How many more backends are tried for one request after the first.
    pub(crate) retries: usize,
    /// Requests that may be sent again, for each 100 requests of a pool.
    pub(crate) retry_budget: u32,
    /// How many requests are parked at a time until their backend is reachable.
    pub(crate) waiting: usize,
    /// Concurrent TLS handshakes for each client address.
    pub(crate) handshakes_per_address: u32,
    /// New TLS handshakes for each client address.
    pub(crate) handshake_rate_per_address: Option<Rate>,
    /// The largest request body in bytes, 413 above it.
    pub(crate) body_size: Option<u64>,
    /// Requests in flight; `None` is what the open-file limit allows.
    pub(crate) requests: Option<usize>,
    /// Requests in flight for each client.
    pub(crate) requests_per_address: Option<u32>,
    pub(crate) tunnels: Option<usize>,
    /// Tunnels for each client.
    pub(crate) tunnels_per_address: Option<u32>,
    /// Tunnels to each backend.
    pub(crate) tunnels_per_backend: Option<u32>,
    /// Requests in flight at each backend.
    pub(crate) requests_per_backend: Option<u32>,
    /// Requests that are queued for a backend which has reached that limit.
    pub(crate) queue_per_backend: u32,
    /// How long each is queued at most.
    pub(crate) queue_time: Duration,
}

/// A rate per second, with a burst after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    /// 1 to [`Rate::MAX`].
    pub(crate) per_second: u32,
    /// 1 to [`Rate::MAX`].
    pub(crate) burst: u32,
}

impl Rate {
    const MAX: u32 = 1_000_000;
}

impl Limits {
    /// The most that `limits.retries` may be.
    pub(crate) const RETRIES_MAX: usize = 10;
    /// The most that `limits.headers` may be.
    pub(crate) const HEADERS_MAX: usize = 1024;
    const DEFAULT: Self = Self {
        connections: None,
        connections_per_address: None,
        connection_rate_per_address: None,
        head_size: 16 << 10,
        response_head_size: 64 << 10,
        headers: 256,
        http2_streams: 100,
        http2_send_buffer: 64 << 10,
        retries: 2,
        retry_budget: 20,
        waiting: 4096,
        handshakes_per_address: 256,
        handshake_rate_per_address: None,
        body_size: None,
        requests: None,
        requests_per_address: None,
        tunnels: None,
        tunnels_per_address: None,
        tunnels_per_backend: None,
        requests_per_backend: None,
        queue_per_backend: 100,
        queue_time: Duration::from_secs(5),
    };
}

/// The section as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLimits {
    pub(super) connections: Option<u64>,
    pub(super) connections_per_address: Option<u64>,
    pub(super) connection_rate_per_address: Option<RawRate>,
    pub(super) head_size: Option<ByteSize>,
    pub(super) response_head_size: Option<ByteSize>,
    pub(super) headers: Option<u64>,
    pub(super) http2_streams: Option<u64>,
    pub(super) http2_send_buffer: Option<ByteSize>,
    pub(super) retries: Option<u64>,
    pub(super) retry_budget: Option<u64>,
    pub(super) waiting: Option<u64>,
    pub(super) handshakes_per_address: Option<u64>,
    pub(super) handshake_rate_per_address: Option<RawRate>,
    pub(super) body_size: Option<ByteSize>,
    pub(super) requests: Option<u64>,
    pub(super) requests_per_address: Option<u64>,
    pub(super) tunnels: Option<u64>,
    pub(super) tunnels_per_address: Option<u64>,
    pub(super) tunnels_per_backend: Option<u64>,
    pub(super) requests_per_backend: Option<u64>,
    pub(super) queue_per_backend: Option<u64>,
    pub(super) queue_time: Option<Span>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRate {
    pub(super) per_second: u64,
    pub(super) burst: u64,
}

/// More than any machine supports.
const COUNT_MAX: u32 = 100_000_000;

pub(super) fn read(check: &mut Check, raw: &RawLimits) -> Limits {
    let default = Limits::DEFAULT;
    macro_rules! number {
        ($name:ident, $range:expr) => {{
            let key = concat!("limits.", stringify!($name));
            check.number(key, raw.$name, default.$name, $range)
        }};
    }
    macro_rules! count {
        ($name:ident) => {{
            let key = concat!("limits.", stringify!($name));
            raw.$name
                .map(|count| check.number(key, Some(count), 1, 1..=COUNT_MAX))
        }};
    }
    macro_rules! size {
        ($name:ident, $value:expr, $default:expr, $range:expr) => {
            check.size(
                concat!("limits.", stringify!($name)),
                $value,
                $default,
                $range,
            )
        };
    }
    let all = |count: Option<u32>| count.map(|count| count as usize);
    Limits {
        connections: all(count!(connections)),
        connections_per_address: count!(connections_per_address),
        connection_rate_per_address: rate(
            check,
            "limits.connection_rate_per_address",
            raw.connection_rate_per_address,
        ),
        head_size: size!(
            head_size,
            raw.head_size,
            default.head_size,
            ByteSize(1 << 10)..=ByteSize(256 << 10)
        ),
        response_head_size: size!(
            response_head_size,
            raw.response_head_size,
            default.response_head_size,
            ByteSize(1 << 10)..=ByteSize(1 << 20)
        ),
        headers: number!(headers, 16..=Limits::HEADERS_MAX),
        http2_streams: number!(http2_streams, 1..=10_000),
        http2_send_buffer: size!(
            http2_send_buffer,
            raw.http2_send_buffer,
            default.http2_send_buffer,
            ByteSize(4 << 10)..=ByteSize(16 << 20)
        ),
        retries: number!(retries, 0..=Limits::RETRIES_MAX),
        retry_budget: number!(retry_budget, 0..=100),
        waiting: number!(waiting, 0..=1_000_000),
        handshakes_per_address: number!(handshakes_per_address, 1..=100_000),
        handshake_rate_per_address: rate(
            check,
            "limits.handshake_rate_per_address",
            raw.handshake_rate_per_address,
        ),
        body_size: raw.body_size.map(|size| {
            let any = ByteSize(0)..=ByteSize(1 << 40);
            size!(body_size, Some(size), 0, any) as u64
        }),
        requests: all(count!(requests)),
        requests_per_address: count!(requests_per_address),
        tunnels: all(count!(tunnels)),
        tunnels_per_address: count!(tunnels_per_address),
        tunnels_per_backend: count!(tunnels_per_backend),
        requests_per_backend: count!(requests_per_backend),
        queue_per_backend: number!(queue_per_backend, 0..=1_000_000),
        queue_time: check.span(
            "limits.queue_time",
            raw.queue_time,
            default.queue_time,
            Span(Duration::from_millis(1))..=Span(Duration::from_secs(600)),
        ),
    }
}

fn rate(check: &mut Check, key: &str, raw: Option<RawRate>) -> Option<Rate> {
    let raw = raw?;
    let range: RangeInclusive<u32> = 1..=Rate::MAX;
    Some(Rate {
        per_second: check.number(
            &format!("{key}.per_second"),
            Some(raw.per_second),
            1,
            range.clone(),
        ),
        burst: check.number(&format!("{key}.burst"), Some(raw.burst), 1, range),
    })
}

impl Limits {
    /// The limits that apply from the next start on, each with whether it differs from the one of `started`.
    pub(crate) fn fixed(&self, started: &Self) -> [(bool, &'static str); 6] {
        // Each limit is named, so that a new one does not compile until it is known whether a reload applies it.
        let Self {
            connections,
            connections_per_address: _,
            connection_rate_per_address: _,
            head_size,
            response_head_size,
            headers,
            http2_streams,
            http2_send_buffer,
            retries: _,
            retry_budget: _,
            waiting: _,
            handshakes_per_address: _,
            handshake_rate_per_address: _,
            body_size: _,
            requests: _,
            requests_per_address: _,
            tunnels: _,
            tunnels_per_address: _,
            tunnels_per_backend: _,
            requests_per_backend: _,
            queue_per_backend: _,
            queue_time: _,
        } = self;
        [
            (*connections != started.connections, "limits.connections"),
            (*head_size != started.head_size, "limits.head_size"),
            (
                *response_head_size != started.response_head_size,
                "limits.response_head_size",
            ),
            (*headers != started.headers, "limits.headers"),
            (
                *http2_streams != started.http2_streams,
                "limits.http2_streams",
            ),
            (
                *http2_send_buffer != started.http2_send_buffer,
                "limits.http2_send_buffer",
            ),
        ]
    }

    /// What applies, in the form of the file.
    pub(super) fn effective(&self) -> Effective {
        let Self {
            connections,
            connections_per_address,
            connection_rate_per_address,
            head_size,
            response_head_size,
            headers,
            http2_streams,
            http2_send_buffer,
            retries,
            retry_budget,
            waiting,
            handshakes_per_address,
            handshake_rate_per_address,
            body_size,
            requests,
            requests_per_address,
            tunnels,
            tunnels_per_address,
            tunnels_per_backend,
            requests_per_backend,
            queue_per_backend,
            queue_time,
        } = self;
        let all = |count: &Option<usize>| Effective::option(*count, Effective::plain);
        let each = |count: &Option<u32>| Effective::option(*count, Effective::plain);
        Effective::map([
            ("connections", all(connections)),
            ("connections_per_address", each(connections_per_address)),
            (
                "connection_rate_per_address",
                Effective::option(*connection_rate_per_address, shown_rate),
            ),
            ("head_size", Effective::size(*head_size as u64)),
            (
                "response_head_size",
                Effective::size(*response_head_size as u64),
            ),
            ("headers", Effective::plain(headers)),
            ("http2_streams", Effective::plain(http2_streams)),
            (
                "http2_send_buffer",
                Effective::size(*http2_send_buffer as u64),
            ),
            ("retries", Effective::plain(retries)),
            ("retry_budget", Effective::plain(retry_budget)),
            ("waiting", Effective::plain(waiting)),
            (
                "handshakes_per_address",
                Effective::plain(handshakes_per_address),
            ),
            (
                "handshake_rate_per_address",
                Effective::option(*handshake_rate_per_address, shown_rate),
            ),
            (
                "body_size",
                Effective::option(*body_size, |bytes| Effective::plain(ByteSize(bytes))),
            ),
            ("requests", all(requests)),
            ("requests_per_address", each(requests_per_address)),
            ("tunnels", all(tunnels)),
            ("tunnels_per_address", each(tunnels_per_address)),
            ("tunnels_per_backend", each(tunnels_per_backend)),
            ("requests_per_backend", each(requests_per_backend)),
            ("queue_per_backend", Effective::plain(queue_per_backend)),
            ("queue_time", Effective::span(*queue_time)),
        ])
    }
}

fn shown_rate(rate: Rate) -> Effective {
    let Rate { per_second, burst } = rate;
    Effective::map([
        ("per_second", Effective::plain(per_second)),
        ("burst", Effective::plain(burst)),
    ])
}
