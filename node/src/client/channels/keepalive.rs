//! When a channel client is pinged, and when it is disconnected for not responding: a plain type, time passed in.
//!
//! Unlike a WebSocket ping, this one is sent at every interval, even if the client is active: clients rely on it, and
//! reconnect when it is missing.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Ping;

/// The keepalive state of one client.
#[derive(Debug)]
pub(super) struct Keepalive {
    /// When it was last pinged, or connected.
    pinged_at: Instant,
    /// When the first ping was sent after which nothing was received.
    unanswered_since: Option<Instant>,
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

/// Whether a client can send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// It can, and responds to pings.
    TwoWay,
    /// It only receives.
    OneWay,
}

impl Keepalive {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            pinged_at: now,
            unanswered_since: None,
        }
    }

    /// The state of a client that another node pinged so long ago, and that has not responded to it. It gets its whole time
    /// again to respond: what it has sent may be on its way.
    pub(super) fn continued(pinged: Duration, is_unanswered: bool, now: Instant) -> Self {
        Self {
            pinged_at: now.checked_sub(pinged).unwrap_or(now),
            unanswered_since: is_unanswered.then_some(now),
        }
    }

    /// Whether nothing was received since it was pinged.
    pub(super) fn is_unanswered(&self) -> bool {
        self.unanswered_since.is_some()
    }

    /// How long ago it was pinged, or connected.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.pinged_at)
    }

    /// Checks a client. `received`: whether something was received from it since the last check.
    pub(super) fn check(
        &mut self,
        ping: &Ping,
        direction: Direction,
        received: bool,
        now: Instant,
    ) -> Verdict {
        if received {
            self.unanswered_since = None;
        }
        let since = |then: Instant| now.saturating_duration_since(then);
        let is_silent = |asked: Instant| ping.timeout <= since(asked);
        if direction == Direction::TwoWay && self.unanswered_since.is_some_and(is_silent) {
            return Verdict::Disconnect;
        }
        if since(self.pinged_at) < ping.interval {
            return Verdict::Keep;
        }
        self.pinged_at = now;
        self.unanswered_since.get_or_insert(now);
        Verdict::Ping
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: Ping = Ping {
        interval: Duration::from_secs(25),
        timeout: Duration::from_secs(10),
    };

    /// The verdicts for a client that is checked after so many seconds, having sent something or not.
    fn verdicts(ping: Ping, direction: Direction, looks: &[(u64, bool)]) -> Vec<Verdict> {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(start);
        let look = |&(after, received): &(u64, bool)| {
            let now = start + Duration::from_secs(after);
            keepalive.check(&ping, direction, received, now)
        };
        looks.iter().map(look).collect()
    }

    #[test]
    fn a_client_is_pinged_at_every_interval_even_if_it_is_active() {
        let looks = [(24, true), (25, true), (26, true), (49, true), (50, true)];
        assert_eq!(
            verdicts(PING, Direction::TwoWay, &looks),
            [
                Verdict::Keep,
                Verdict::Ping,
                Verdict::Keep,
                Verdict::Keep,
                Verdict::Ping
            ]
        );
    }

    #[test]
    fn a_client_that_does_not_respond_is_disconnected() {
        let looks = [(25, false), (34, false), (35, false)];
        assert_eq!(
            verdicts(PING, Direction::TwoWay, &looks),
            [Verdict::Ping, Verdict::Keep, Verdict::Disconnect]
        );
    }

    #[test]
    fn a_timeout_longer_than_the_interval_counts_from_the_first_unanswered_ping() {
        let ping = Ping {
            timeout: Duration::from_secs(40),
            ..PING
        };
        let looks = [(25, false), (50, false), (64, false), (65, false)];
        assert_eq!(
            verdicts(ping, Direction::TwoWay, &looks),
            [
                Verdict::Ping,
                Verdict::Ping,
                Verdict::Keep,
                Verdict::Disconnect
            ]
        );
    }

    #[test]
    fn a_client_that_cannot_respond_is_pinged_for_ever() {
        let looks = [(25, false), (50, false), (75, false)];
        assert_eq!(
            verdicts(PING, Direction::OneWay, &looks),
            [Verdict::Ping; 3]
        );
    }
}
