//! How long the SDKs wait before they connect again, by their default settings.

use std::time::Duration;

/// centrifuge-js: `minReconnectDelay` and `maxReconnectDelay`, with full jitter.
const CENTRIFUGE_MILLIS: (u64, u64) = (500, 20_000);

/// socket.io-client: `reconnectionDelay` and `reconnectionDelayMax`.
const SOCKET_IO_MILLIS: (u64, u64) = (1_000, 5_000);

/// socket.io-client: `randomizationFactor`.
const SOCKET_IO_RANDOMIZATION: f64 = 0.5;

/// Of centrifuge-js, which speaks to Causeway too, after so many attempts that failed.
pub(super) fn centrifuge(failed: u32) -> Duration {
    let (min, max) = CENTRIFUGE_MILLIS;
    let bound = min.saturating_mul(1 << failed.min(31)).min(max);
    Duration::from_millis((min + fastrand::u64(..=bound)).min(max))
}

/// Of socket.io-client, after so many attempts that failed.
pub(super) fn socket_io(failed: u32) -> Duration {
    let (min, max) = SOCKET_IO_MILLIS;
    let delay = min.saturating_mul(1 << failed.min(31)).min(max) as f64;
    let deviation = delay * SOCKET_IO_RANDOMIZATION * (fastrand::f64() * 2.0 - 1.0);
    Duration::from_secs_f64((delay + deviation).min(max as f64) / 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_within_their_bounds_and_grow() {
        let within =
            |delay: fn(u32) -> Duration, failed, millis: std::ops::RangeInclusive<u128>| {
                for _ in 0..1_000 {
                    let delay = delay(failed).as_millis();
                    assert!(
                        millis.contains(&delay),
                        "{delay} ms after {failed} attempts"
                    );
                }
            };
        within(centrifuge, 0, 500..=1_000);
        within(centrifuge, 3, 500..=4_500);
        within(centrifuge, 40, 500..=20_000);
        within(socket_io, 0, 500..=1_500);
        within(socket_io, 1, 1_000..=3_000);
        within(socket_io, 40, 2_500..=5_000);
    }
}
