//! Log lines about what happens often.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Lets something that happens often be said once a second at most, with how often it was.
#[derive(Debug)]
pub(crate) struct Seldom {
    started: Instant,
    /// Times that were not said yet.
    times: AtomicU64,
    /// The second in which it was said last, counted from 1. 0 before the first.
    said: AtomicU64,
}

impl Seldom {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            started: now,
            times: AtomicU64::new(0),
            said: AtomicU64::new(0),
        }
    }

    /// Notes one more. If it is to be said now: how many there were since it was said last, this one included.
    pub(crate) fn note(&self, now: Instant) -> Option<u64> {
        self.times.fetch_add(1, Ordering::Relaxed);
        let second = now.saturating_duration_since(self.started).as_secs() + 1;
        let first = self.said.fetch_max(second, Ordering::Relaxed) < second;
        first.then(|| self.times.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_often_is_said_once_a_second_with_how_often_it_was() {
        let start = Instant::now();
        let seldom = Seldom::new(start);
        let at = |ms| start + std::time::Duration::from_millis(ms);
        assert_eq!(seldom.note(at(0)), Some(1));
        assert_eq!(seldom.note(at(999)), None);
        assert_eq!(seldom.note(at(999)), None);
        assert_eq!(seldom.note(at(1000)), Some(3));
        assert_eq!(seldom.note(at(1001)), None);
        assert_eq!(seldom.note(at(9000)), Some(2));
    }
}
