//! When a WebSocket is pinged, and when it is closed for not responding: a plain type, time passed in.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Ping;

/// The keepalive state of one client.
#[derive(Debug)]
pub(super) struct Keepalive {
    /// When something was last received from it, or a ping sent to it.
    since: Instant,
    asked: bool,
}

/// What to do about a client now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Keep,
    /// Ping it.
    Ping,
    /// Disconnect it: it did not respond in time.
    Disconnect,
}

impl Keepalive {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            asked: false,
        }
    }

    /// Checks a client. `received`: whether something was received from it since the last check; any bytes count, not only a
    /// pong.
    pub(super) fn check(&mut self, ping: &Ping, received: bool, now: Instant) -> Verdict {
        let silent = now.saturating_duration_since(self.since);
        if received {
            *self = Self::new(now);
            Verdict::Keep
        } else if self.asked && ping.timeout <= silent {
            Verdict::Disconnect
        } else if !self.asked && ping.interval <= silent {
            *self = Self {
                since: now,
                asked: true,
            };
            Verdict::Ping
        } else {
            Verdict::Keep
        }
    }
}

/// The sweep interval: an eighth of the shortest ping interval or timeout, so that they are accurate to about that.
pub(super) fn sweep_interval(pings: impl Iterator<Item = Ping>) -> Duration {
    let shortest = pings.map(|ping| ping.interval.min(ping.timeout)).min();
    let eighth = shortest.unwrap_or(Duration::MAX) / 8;
    eighth.clamp(Duration::from_millis(10), Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: Ping = Ping {
        interval: Duration::from_secs(25),
        timeout: Duration::from_secs(10),
    };

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_silent_client_is_pinged_once_and_then_disconnected() {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(start);
        assert_eq!(keepalive.check(&PING, false, at(start, 24)), Verdict::Keep);
        assert_eq!(keepalive.check(&PING, false, at(start, 25)), Verdict::Ping);
        assert_eq!(keepalive.check(&PING, false, at(start, 34)), Verdict::Keep);
        assert_eq!(
            keepalive.check(&PING, false, at(start, 35)),
            Verdict::Disconnect
        );
    }

    #[test]
    fn anything_received_restarts_the_interval() {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(start);
        assert_eq!(keepalive.check(&PING, false, at(start, 25)), Verdict::Ping);
        assert_eq!(keepalive.check(&PING, true, at(start, 40)), Verdict::Keep);
        assert_eq!(keepalive.check(&PING, false, at(start, 64)), Verdict::Keep);
        assert_eq!(keepalive.check(&PING, false, at(start, 65)), Verdict::Ping);
    }

    #[test]
    fn clients_are_checked_eight_times_in_the_shortest_interval() {
        let milliseconds = |timeout| Ping {
            timeout: Duration::from_millis(timeout),
            ..PING
        };
        assert_eq!(sweep_interval([].into_iter()), Duration::from_secs(1));
        assert_eq!(sweep_interval([PING].into_iter()), Duration::from_secs(1));
        let pings = [PING, milliseconds(800)];
        assert_eq!(
            sweep_interval(pings.into_iter()),
            Duration::from_millis(100)
        );
        assert_eq!(
            sweep_interval([milliseconds(1)].into_iter()),
            Duration::from_millis(10)
        );
    }
}
