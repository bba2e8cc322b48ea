//! Whether a client is still there: a plain type, time passed in.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Ping;

/// What was last known of one client.
#[derive(Debug)]
pub(super) struct Pulse {
    /// When it was last heard, or asked.
    since: Instant,
    asked: bool,
}

/// What to do about a client now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Fine,
    /// Ping it.
    Ask,
    /// It did not answer in time.
    GiveUp,
}

impl Pulse {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            asked: false,
        }
    }

    /// Looks at a client of which something was `heard` since the last look, or nothing.
    ///
    /// Whatever it sent counts: it need not be the pong.
    pub(super) fn check(&mut self, ping: &Ping, heard: bool, now: Instant) -> Verdict {
        let silent = now.saturating_duration_since(self.since);
        if heard {
            *self = Self::new(now);
            Verdict::Fine
        } else if self.asked && ping.timeout <= silent {
            Verdict::GiveUp
        } else if !self.asked && ping.interval <= silent {
            *self = Self {
                since: now,
                asked: true,
            };
            Verdict::Ask
        } else {
            Verdict::Fine
        }
    }
}

/// How often to look, so that the shortest of all intervals is kept to about an eighth.
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
    fn a_silent_client_is_asked_once_and_then_given_up() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        assert_eq!(pulse.check(&PING, false, at(start, 24)), Verdict::Fine);
        assert_eq!(pulse.check(&PING, false, at(start, 25)), Verdict::Ask);
        assert_eq!(pulse.check(&PING, false, at(start, 34)), Verdict::Fine);
        assert_eq!(pulse.check(&PING, false, at(start, 35)), Verdict::GiveUp);
    }

    #[test]
    fn anything_heard_starts_the_interval_anew() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        assert_eq!(pulse.check(&PING, false, at(start, 25)), Verdict::Ask);
        assert_eq!(pulse.check(&PING, true, at(start, 40)), Verdict::Fine);
        assert_eq!(pulse.check(&PING, false, at(start, 64)), Verdict::Fine);
        assert_eq!(pulse.check(&PING, false, at(start, 65)), Verdict::Ask);
    }

    #[test]
    fn it_looks_eight_times_in_the_shortest_interval() {
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
