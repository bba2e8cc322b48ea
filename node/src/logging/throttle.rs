//! Limits log lines that clients can cause to one a second.

use std::time::Duration;
use std::time::Instant;

use parking_lot::Mutex;

/// The shortest time between two lines.
const INTERVAL: Duration = Duration::from_secs(1);

/// Admits one line per interval, and counts those held back.
#[derive(Debug)]
pub(crate) struct Throttle(Mutex<Held>);

#[derive(Debug)]
struct Held {
    logged_at: Option<Instant>,
    count: u64,
}

impl Throttle {
    /// A throttle that admits the first line.
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Held {
            logged_at: None,
            count: 0,
        }))
    }

    /// Whether to log a line now: then the number of lines held back since the last one.
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

impl Default for Throttle {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_is_admitted_with_the_number_held_back() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let throttle = Throttle::default();
        assert_eq!(throttle.admit(at(0)), Some(0));
        for milliseconds in [0, 500, 999] {
            assert_eq!(throttle.admit(at(milliseconds)), None);
        }
        assert_eq!(throttle.admit(at(1000)), Some(3));
        assert_eq!(throttle.admit(at(1001)), None);
        assert_eq!(throttle.admit(at(9000)), Some(1));
    }
}
