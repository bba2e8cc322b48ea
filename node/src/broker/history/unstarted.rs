//! The position in a stream that does not exist yet.
//!
//! Nothing is written for a channel before its first publication, so what a subscriber gets instead of an epoch contains all
//! that is needed later to decide whether it has missed publications: the server on which the stream did not exist, how many
//! keys that server had evicted, the time, and until when a stream that began at that time would be kept. A stream stores the
//! same at its first publication. If server and evictions are equal, and the stream began before that end, then it is the first
//! one since: an earlier one would still exist.

use std::fmt;

use crate::protocol::Epoch;
use crate::protocol::Position;

/// The prefix of the text; no epoch of a stream has it.
const PREFIX: &str = "u";

/// A moment at which a stream did not exist, or at which it began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unstarted {
    /// The id of the server, different after each restart and failover.
    pub(crate) server: String,
    pub(crate) evicted: u64,
    /// In milliseconds, by the clock of the server.
    pub(crate) at: u64,
    /// Until when a stream that began at this moment is kept at least.
    pub(crate) until: u64,
}

impl Unstarted {
    /// Parses what [`Display`](fmt::Display) writes; `None` for anything else, such as the epoch of a stream.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix(PREFIX)?.split('.');
        let unstarted = Self {
            server: parts.next()?.to_owned(),
            evicted: parts.next()?.parse().ok()?,
            at: parts.next()?.parse().ok()?,
            until: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(unstarted)
    }

    /// The moment that an epoch encodes, if it is not the epoch of a stream.
    pub(crate) fn of(epoch: &Epoch) -> Option<Self> {
        Self::parse(epoch.as_str())
    }

    /// Whether nothing can have been published between this moment and `other`, at which the stream began or did not
    /// exist either.
    pub(crate) fn leads_to(&self, other: &Self) -> bool {
        let is_same_server = self.server == other.server && self.evicted == other.evicted;
        is_same_server && other.at < self.until && self.at < other.until
    }

    /// The position of a client that subscribes at this moment.
    pub(crate) fn position(&self) -> Position {
        Position {
            epoch: Epoch::from(self.to_string().as_str()),
            offset: 0,
        }
    }
}

/// Whether `since` is a position in the stream that is at `position` and began at `origin`. A client that subscribed before the
/// beginning counts publications under the epoch of that moment.
pub(crate) fn is_same_stream(
    since: &Position,
    position: &Position,
    origin: Option<&Unstarted>,
) -> bool {
    let before = Unstarted::of(&since.epoch);
    let is_first_since = before
        .zip(origin)
        .is_some_and(|(one, other)| one.leads_to(other));
    since.epoch == position.epoch || is_first_since
}

impl fmt::Display for Unstarted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            server,
            evicted,
            at,
            until,
        } = self;
        write!(f, "{PREFIX}{server}.{evicted}.{at}.{until}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unstarted(server: &str, evicted: u64, at: u64) -> Unstarted {
        Unstarted {
            server: server.to_owned(),
            evicted,
            at,
            until: at + 100,
        }
    }

    #[test]
    fn a_moment_round_trips_and_is_no_epoch() {
        let moment = unstarted("3f0a", 7, 1_800_000_000_000);
        assert_eq!(moment.to_string(), "u3f0a.7.1800000000000.1800000000100");
        assert_eq!(Unstarted::parse(&moment.to_string()), Some(moment.clone()));
        assert_eq!(Unstarted::of(&moment.position().epoch), Some(moment));
        let epoch = Epoch::random();
        for text in ["", "u", "ua.b.1.2", "ua.1.2", "ua.1.2.3.4", epoch.as_str()] {
            assert_eq!(Unstarted::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_stream_that_begins_before_an_earlier_one_can_have_expired_is_the_first() {
        let before = unstarted("a", 7, 1000);
        for (at, is_first) in [(1000, true), (1099, true), (1100, false)] {
            assert_eq!(before.leads_to(&unstarted("a", 7, at)), is_first, "{at}");
        }
        // The clock of a server may be set back a little.
        assert!(before.leads_to(&unstarted("a", 7, 950)));
    }

    #[test]
    fn another_server_and_evictions_prove_nothing() {
        let before = unstarted("a", 7, 1000);
        assert!(!before.leads_to(&unstarted("b", 7, 1001)));
        assert!(!before.leads_to(&unstarted("a", 8, 1001)));
    }
}
