//! When a channel client is pinged, and when it is given up: a plain type, time passed in.
//!
//! Unlike a WebSocket's ping, this one comes at every interval, whatever is said meanwhile: clients count
//! on it, and reconnect when it does not come.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Ping;

/// What was last known of one client.
#[derive(Debug)]
pub(super) struct Beat {
    /// When it was last pinged, or came.
    pinged_at: Instant,
    /// The first ping since which nothing was heard.
    unanswered_since: Option<Instant>,
}

/// What to do about a client now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Fine,
    /// Ping it.
    Ping,
    /// It did not answer in time.
    GiveUp,
}

/// Whether a client answers pings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// It does.
    TwoWay,
    /// It cannot.
    OneWay,
}

impl Beat {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            pinged_at: now,
            unanswered_since: None,
        }
    }

    /// How long ago a client came that was not pinged yet.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.pinged_at)
    }

    /// Looks at a client of which something was `heard` since the last look, or nothing.
    pub(super) fn check(
        &mut self,
        ping: &Ping,
        direction: Direction,
        heard: bool,
        now: Instant,
    ) -> Verdict {
        if heard {
            self.unanswered_since = None;
        }
        let since = |then: Instant| now.saturating_duration_since(then);
        let is_silent = |asked: Instant| ping.timeout <= since(asked);
        if direction == Direction::TwoWay && self.unanswered_since.is_some_and(is_silent) {
            return Verdict::GiveUp;
        }
        if since(self.pinged_at) < ping.interval {
            return Verdict::Fine;
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

    /// What happens to a client that is looked at after so many seconds, having been heard or not.
    fn verdicts(ping: Ping, direction: Direction, looks: &[(u64, bool)]) -> Vec<Verdict> {
        let start = Instant::now();
        let mut beat = Beat::new(start);
        let look = |&(after, heard): &(u64, bool)| {
            let now = start + Duration::from_secs(after);
            beat.check(&ping, direction, heard, now)
        };
        looks.iter().map(look).collect()
    }

    #[test]
    fn a_client_is_pinged_at_every_interval_however_much_it_says() {
        let looks = [(24, true), (25, true), (26, true), (49, true), (50, true)];
        assert_eq!(
            verdicts(PING, Direction::TwoWay, &looks),
            [
                Verdict::Fine,
                Verdict::Ping,
                Verdict::Fine,
                Verdict::Fine,
                Verdict::Ping
            ]
        );
    }

    #[test]
    fn one_that_does_not_answer_is_given_up() {
        let looks = [(25, false), (34, false), (35, false)];
        assert_eq!(
            verdicts(PING, Direction::TwoWay, &looks),
            [Verdict::Ping, Verdict::Fine, Verdict::GiveUp]
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
            [Verdict::Ping, Verdict::Ping, Verdict::Fine, Verdict::GiveUp]
        );
    }

    #[test]
    fn one_that_cannot_answer_is_pinged_for_ever() {
        let looks = [(25, false), (50, false), (75, false)];
        assert_eq!(
            verdicts(PING, Direction::OneWay, &looks),
            [Verdict::Ping; 3]
        );
    }
}
