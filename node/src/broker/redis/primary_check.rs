//! Checks that the subscriber is connected to the server that publications are sent to, and that this server
//! was not demoted in between. No I/O, time is passed in.
//!
//! A primary that is demoted keeps its connections. It delivers what its new primary publishes, but not while
//! the two are not connected, and in a quiet channel no later publication reveals that. So the reply to a probe
//! contains how many subscribers of that very server received it, and the server's replication id. If none did,
//! the subscriber is connected to another server. If the id changes behind the same connection, the server was
//! a replica in between, and may not have delivered everything.

use std::time::Duration;
use std::time::Instant;

/// The pause after a finding; doubled each time, until there is none for twice as long. A proxy between the node
/// and Redis may count subscribers differently, or lead each connection to another server: without the pause, the
/// subscriber would reconnect all the time.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// The reply of Redis to a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProbeReply {
    /// How many subscribers of that server received it.
    pub(super) receivers: u64,
    /// The server's replication id, if known.
    pub(super) server: Option<String>,
}

/// What follows from a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finding {
    /// The subscriber is connected to another server than the one that publishes.
    Elsewhere,
    /// It is the same connection, and the server was a replica of another one in between.
    Changed,
}

/// The state of the check for the subscriber's connection.
#[derive(Debug, Default)]
pub(super) struct PrimaryCheck {
    server: Option<String>,
    /// `Elsewhere` was found; nothing more is checked before the subscriber reconnects.
    is_elsewhere: bool,
    /// When the last finding was, and the pause after it.
    found: Option<(Instant, Duration)>,
}

impl PrimaryCheck {
    /// The subscriber has reconnected or lost its connection.
    pub(super) fn reset(&mut self) {
        self.server = None;
        self.is_elsewhere = false;
    }

    /// Processes the reply to a probe of any publish queue that was sent since the subscriber connected.
    pub(super) fn answered(&mut self, reply: ProbeReply, now: Instant) -> Option<Finding> {
        if self.is_elsewhere {
            return None;
        }
        let is_other = |known: &str| {
            reply
                .server
                .as_deref()
                .is_some_and(|server| server != known)
        };
        let finding = if reply.receivers == 0 {
            Finding::Elsewhere
        } else if self.server.as_deref().is_some_and(is_other) {
            Finding::Changed
        } else {
            self.server = self.server.take().or(reply.server);
            self.found
                .take_if(|(at, pause)| 2 * *pause <= now.saturating_duration_since(*at));
            return None;
        };
        let pause = match self.found {
            None => PAUSE,
            Some((at, pause)) if now.saturating_duration_since(at) < pause => return None,
            Some((_, pause)) => PAUSE_MAX.min(2 * pause),
        };
        self.found = Some((now, pause));
        match finding {
            Finding::Elsewhere => self.is_elsewhere = true,
            Finding::Changed => self.server = reply.server,
        }
        Some(finding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(receivers: u64, server: &str) -> ProbeReply {
        ProbeReply {
            receivers,
            server: Some(server.to_owned()),
        }
    }

    #[test]
    fn a_probe_without_receivers_shows_once_that_the_subscriber_is_elsewhere() {
        let (mut primary_check, now) = (PrimaryCheck::default(), Instant::now());
        assert_eq!(primary_check.answered(reply(1, "a"), now), None);
        let elsewhere = Some(Finding::Elsewhere);
        assert_eq!(primary_check.answered(reply(0, "b"), now), elsewhere);
        assert_eq!(primary_check.answered(reply(0, "b"), now), None);
        primary_check.reset();
        assert_eq!(primary_check.answered(reply(1, "b"), now), None);
        let later = now + PAUSE;
        assert_eq!(primary_check.answered(reply(0, "c"), later), elsewhere);
    }

    #[test]
    fn another_id_behind_the_same_connection_shows_once_that_the_server_has_changed() {
        let (mut primary_check, now) = (PrimaryCheck::default(), Instant::now());
        assert_eq!(primary_check.answered(reply(1, "a"), now), None);
        let unnamed = ProbeReply {
            receivers: 1,
            server: None,
        };
        assert_eq!(primary_check.answered(unnamed, now), None);
        let changed = Some(Finding::Changed);
        assert_eq!(primary_check.answered(reply(1, "b"), now), changed);
        assert_eq!(primary_check.answered(reply(1, "b"), now), None);
        primary_check.reset();
        assert_eq!(primary_check.answered(reply(1, "c"), now), None);
    }

    #[test]
    fn the_pause_after_repeated_findings_doubles() {
        let (mut primary_check, start) = (PrimaryCheck::default(), Instant::now());
        let mut found = Vec::new();
        for second in 0..=183 {
            let now = start + Duration::from_secs(second);
            // One publish queue leads to the subscriber's server, the other one does not.
            assert_eq!(primary_check.answered(reply(1, "a"), now), None);
            if primary_check.answered(reply(0, "b"), now).is_some() {
                found.push(second);
            }
            primary_check.reset();
        }
        assert_eq!(found, [0, 1, 3, 7, 15, 31, 63, 123, 183]);
    }

    #[test]
    fn the_pause_is_reset_after_a_time_without_findings() {
        let (mut primary_check, start) = (PrimaryCheck::default(), Instant::now());
        for round in 0..20 {
            let now = start + Duration::from_secs(2 * round);
            let found = primary_check.answered(reply(0, "a"), now);
            assert_eq!(found, Some(Finding::Elsewhere), "{round}");
            primary_check.reset();
            let well_at = now + 2 * PAUSE;
            assert_eq!(primary_check.answered(reply(1, "b"), well_at), None);
        }
    }
}
