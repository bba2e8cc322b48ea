//! Throttles log lines about frequent events.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Allows one log line per second about a frequent event, with the number of events.
#[derive(Debug)]
pub(crate) struct ThrottledLog {
    started: Instant,
    /// Events that have not been logged yet.
    times: AtomicU64,
    /// The second of the last log line, counted from 1; 0 before the first.
    logged: AtomicU64,
}

impl ThrottledLog {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            started: now,
            times: AtomicU64::new(0),
            logged: AtomicU64::new(0),
        }
    }

    /// Counts an event. Returns the number of events since the last log line, this one included, if one is due.
    pub(crate) fn note(&self, now: Instant) -> Option<u64> {
        self.times.fetch_add(1, Ordering::Relaxed);
        let second = now.saturating_duration_since(self.started).as_secs() + 1;
        let first = self.logged.fetch_max(second, Ordering::Relaxed) < second;
        first.then(|| self.times.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frequent_event_is_logged_once_a_second_with_its_count() {
        let start = Instant::now();
        let log = ThrottledLog::new(start);
        let at = |ms| start + std::time::Duration::from_millis(ms);
        assert_eq!(log.note(at(0)), Some(1));
        assert_eq!(log.note(at(999)), None);
        assert_eq!(log.note(at(999)), None);
        assert_eq!(log.note(at(1000)), Some(3));
        assert_eq!(log.note(at(1001)), None);
        assert_eq!(log.note(at(9000)), Some(2));
    }
}
