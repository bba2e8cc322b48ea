//! One log line a second for what clients can cause as often as they like.

use std::time::Duration;
use std::time::Instant;

use parking_lot::Mutex;

/// From one line to the next.
const INTERVAL: Duration = Duration::from_secs(1);

/// Lets a line through now and then, and counts those that it holds back.
#[derive(Debug)]
pub(crate) struct Pace(Mutex<Held>);

#[derive(Debug)]
struct Held {
    logged_at: Option<Instant>,
    count: u64,
}

impl Pace {
    /// Nothing was logged yet.
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Held {
            logged_at: None,
            count: 0,
        }))
    }

    /// Whether something is to be logged now: then how often it was not since the last line.
    pub(crate) fn admit(&self, now: Instant) -> Option<u64> {
        let mut held = self.0.lock();
        let is_early = held
            .logged_at
            .is_some_and(|at| now.saturating_duration_since(at) < INTERVAL);
        if is_early {
            held.count += 1;
            return None;
        }
        held.logged_at = Some(now);
        Some(std::mem::take(&mut held.count))
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_makes_one_line_a_second_which_says_how_large_it_was() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let pace = Pace::default();
        assert_eq!(pace.admit(at(0)), Some(0));
        for milliseconds in [0, 500, 999] {
            assert_eq!(pace.admit(at(milliseconds)), None);
        }
        assert_eq!(pace.admit(at(1000)), Some(3));
        assert_eq!(pace.admit(at(1001)), None);
        assert_eq!(pace.admit(at(9000)), Some(1));
    }
}
