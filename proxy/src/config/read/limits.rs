//! Limits.

use std::ops::RangeInclusive;
use std::time::Duration;

use causeway_conf::{ByteSize, Span};

use super::super::check::Check;
use super::super::{Limits, Rate, raw};

/// More than any machine supports.
const COUNT_MAX: u32 = 100_000_000;

pub(super) fn limits(check: &mut Check, raw: &raw::Limits) -> Limits {
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

fn rate(check: &mut Check, key: &str, raw: Option<raw::Rate>) -> Option<Rate> {
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
