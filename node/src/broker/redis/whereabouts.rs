//! Whether the subscriber is where publications are made, and whether that is still the same server: plain,
//! time passed in.
//!
//! A primary that is demoted keeps its connections. It brings what its new primary takes, but not what
//! that one takes while the two are not connected, and no later publication shows that in a quiet channel.
//! So whoever publishes a probe is told by Redis how many have heard it from that very server, and what the
//! server calls its data. If nobody has, the subscriber is elsewhere. If the name is another one behind the same
//! connection, the server has followed another one meanwhile, and may have brought only a part.

use std::time::Duration;
use std::time::Instant;

/// From one finding to the next; doubled each time, until all is well for twice as long. What stands between the
/// node and Redis may count otherwise, or lead each connection elsewhere: then the subscriber would do nothing
/// but connect.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// What Redis answers to a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// How many have heard it from the server that was asked.
    pub(super) heard_by: u64,
    /// What that server calls its data, if it has told.
    pub(super) server: Option<String>,
}

/// What follows from an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finding {
    /// The subscriber is connected to another server than the one that publishes.
    Elsewhere,
    /// It is the same connection, and the server has been another one's replica meanwhile.
    Changed,
}

/// What is known of the server behind the subscriber's connection.
#[derive(Debug, Default)]
pub(super) struct Whereabouts {
    server: Option<String>,
    /// No more is to be found before the subscriber has another connection.
    is_elsewhere: bool,
    /// When something was found last, and how long after that nothing more is.
    found: Option<(Instant, Duration)>,
}

impl Whereabouts {
    /// The subscriber has another connection, or none.
    pub(super) fn reset(&mut self) {
        self.server = None;
        self.is_elsewhere = false;
    }

    /// Takes the answer to a probe that was sent over whatever lane since the subscriber is connected.
    pub(super) fn answered(&mut self, answer: Answer, now: Instant) -> Option<Finding> {
        if self.is_elsewhere {
            return None;
        }
        let is_other = |known: &str| {
            answer
                .server
                .as_deref()
                .is_some_and(|server| server != known)
        };
        let finding = if answer.heard_by == 0 {
            Finding::Elsewhere
        } else if self.server.as_deref().is_some_and(is_other) {
            Finding::Changed
        } else {
            self.server = self.server.take().or(answer.server);
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
            Finding::Changed => self.server = answer.server,
        }
        Some(finding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(heard_by: u64, server: &str) -> Answer {
        Answer {
            heard_by,
            server: Some(server.to_owned()),
        }
    }

    #[test]
    fn a_probe_that_nobody_heard_where_it_was_published_shows_once_that_the_subscriber_is_elsewhere()
     {
        let (mut whereabouts, now) = (Whereabouts::default(), Instant::now());
        assert_eq!(whereabouts.answered(answer(1, "a"), now), None);
        let elsewhere = Some(Finding::Elsewhere);
        assert_eq!(whereabouts.answered(answer(0, "b"), now), elsewhere);
        assert_eq!(whereabouts.answered(answer(0, "b"), now), None);
        whereabouts.reset();
        assert_eq!(whereabouts.answered(answer(1, "b"), now), None);
        let later = now + PAUSE;
        assert_eq!(whereabouts.answered(answer(0, "c"), later), elsewhere);
    }

    #[test]
    fn another_name_behind_the_same_connection_shows_once_that_the_server_has_changed() {
        let (mut whereabouts, now) = (Whereabouts::default(), Instant::now());
        assert_eq!(whereabouts.answered(answer(1, "a"), now), None);
        let unnamed = Answer {
            heard_by: 1,
            server: None,
        };
        assert_eq!(whereabouts.answered(unnamed, now), None);
        let changed = Some(Finding::Changed);
        assert_eq!(whereabouts.answered(answer(1, "b"), now), changed);
        assert_eq!(whereabouts.answered(answer(1, "b"), now), None);
        whereabouts.reset();
        assert_eq!(whereabouts.answered(answer(1, "c"), now), None);
    }

    #[test]
    fn what_would_be_found_all_the_time_is_found_less_and_less_often() {
        let (mut whereabouts, start) = (Whereabouts::default(), Instant::now());
        let mut found = Vec::new();
        for second in 0..=183 {
            let now = start + Duration::from_secs(second);
            // One lane leads to where the subscriber is, the other one does not.
            assert_eq!(whereabouts.answered(answer(1, "a"), now), None);
            if whereabouts.answered(answer(0, "b"), now).is_some() {
                found.push(second);
            }
            whereabouts.reset();
        }
        assert_eq!(found, [0, 1, 3, 7, 15, 31, 63, 123, 183]);
    }

    #[test]
    fn what_is_well_for_a_while_was_no_mistake_and_is_left_at_once_the_next_time() {
        let (mut whereabouts, start) = (Whereabouts::default(), Instant::now());
        for round in 0..20 {
            let now = start + Duration::from_secs(2 * round);
            let found = whereabouts.answered(answer(0, "a"), now);
            assert_eq!(found, Some(Finding::Elsewhere), "{round}");
            whereabouts.reset();
            let well_at = now + 2 * PAUSE;
            assert_eq!(whereabouts.answered(answer(1, "b"), well_at), None);
        }
    }
}
