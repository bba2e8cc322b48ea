//! An estimate of Redis's clock, so that not every operation asks for the time.
//!
//! Leases end by Redis's clock, which all nodes share. Each node keeps the offset of its own monotonic clock
//! and refreshes it from time to time. Scripts that declare a lease dead use Redis's own time.

use std::time::Duration;
use std::time::Instant;

/// How long a reading is used: clocks drift by less than a millisecond in that time, and if Redis's clock is
/// set, at most one lease has to be taken again.
const GOOD_FOR: Duration = Duration::from_secs(10);

/// An estimate of Redis's clock.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// Redis's time, in UNIX milliseconds, and when it was received.
    known: Option<(u64, Instant)>,
}

impl Clock {
    /// Notes that Redis said `milliseconds` just before `now`.
    pub(super) fn set(&mut self, milliseconds: u64, now: Instant) {
        self.known = Some((milliseconds, now));
    }

    /// Redis's time in UNIX milliseconds; never ahead of it unless it is set back. `None`: never asked.
    pub(super) fn read(&self, now: Instant) -> Option<u64> {
        let (milliseconds, at) = self.known?;
        let since = now.saturating_duration_since(at).as_millis();
        Some(milliseconds + u64::try_from(since).unwrap_or(u64::MAX / 2))
    }

    /// Whether the time should be read from Redis again.
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        self.known
            .is_none_or(|(_, at)| GOOD_FOR <= now.saturating_duration_since(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_advances_with_the_local_clock_and_can_be_set() {
        let start = Instant::now();
        let mut clock = Clock::default();
        assert!(clock.is_stale(start));
        assert_eq!(clock.read(start), None);
        clock.set(5_000, start);
        assert_eq!(clock.read(start + Duration::from_millis(700)), Some(5_700));
        assert!(!clock.is_stale(start + GOOD_FOR - Duration::from_millis(1)));
        assert!(clock.is_stale(start + GOOD_FOR));
        clock.set(1_000, start + GOOD_FOR);
        assert_eq!(clock.read(start + GOOD_FOR), Some(1_000));
    }
}
