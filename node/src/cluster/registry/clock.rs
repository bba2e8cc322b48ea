//! What time Redis has, without asking each time.
//!
//! Leases end by Redis's clock, which all nodes share. Each node knows how far its own steady clock is
//! from it, and asks again now and then. Whatever ends a lease for good asks Redis itself.

use std::time::Duration;
use std::time::Instant;

/// How long an answer is good enough: clocks drift apart by less than a millisecond meanwhile, and a clock
/// that is set costs at most one lease that is taken anew.
const GOOD_FOR: Duration = Duration::from_secs(10);

/// An estimate of Redis's clock.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// Redis's time, in UNIX milliseconds, and when the answer came.
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

    /// Whether Redis should be asked again.
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        self.known
            .is_none_or(|(_, at)| GOOD_FOR <= now.saturating_duration_since(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_by_itself_and_is_set_now_and_then() {
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
