//! Outlier detection: notices a backend with too many bad responses.
//!
//! A single 503 is no evidence; half of the responses within a window are. An outlier is probed, and no more: clients could provoke
//! bad responses, and must not be able to take a backend out of service.
//!
//! Without a lock: the window's number and both counts are one atomic word.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The window in which responses are counted.
const WINDOW: Duration = Duration::from_secs(10);

/// How many bad responses a window needs at least.
const BAD_MIN: u16 = 10;

/// Whether a response is evidence against its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResponseOutcome {
    Good,
    Bad,
}

/// The responses of the current window: its number in the upper half, then all responses, then the bad ones.
#[derive(Debug, Default)]
pub(super) struct Outlier(AtomicU64);

impl Outlier {
    /// Counts a response, `age` after the pool was created. Whether the backend is an outlier now.
    ///
    /// It is if at least half of the responses in a window, and at least [`BAD_MIN`], are bad. The count then restarts.
    pub(super) fn count(&self, outcome: ResponseOutcome, age: Duration) -> bool {
        let number = (age.as_secs() / WINDOW.as_secs()) & u64::from(u32::MAX);
        let mut outlier = false;
        let count = |word: u64| {
            let same = word >> 32 == number;
            let all = if same { (word >> 16) as u16 } else { 0 }.saturating_add(1);
            let bad = if same { word as u16 } else { 0 };
            let bad = bad.saturating_add(u16::from(outcome == ResponseOutcome::Bad));
            outlier =
                outcome == ResponseOutcome::Bad && BAD_MIN <= bad && all <= bad.saturating_mul(2);
            let (all, bad) = match () {
                () if outlier => (0, 0),
                () if all == u16::MAX => (all / 2, bad / 2), // Keeps the rate.
                () => (all, bad),
            };
            Some(number << 32 | u64::from(all) << 16 | u64::from(bad))
        };
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, count)
            .ok();
        outlier
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ResponseOutcome::{Bad, Good};

    const NOW: Duration = Duration::from_secs(25);

    #[test]
    fn few_bad_responses_are_no_outlier() {
        let outlier = Outlier::default();
        assert!((0..9).all(|_| !outlier.count(Bad, NOW)));
        assert!(outlier.count(Bad, NOW));
    }

    #[test]
    fn an_outlier_needs_half_of_all_responses_to_be_bad() {
        let outlier = Outlier::default();
        assert!((0..20).all(|_| !outlier.count(Good, NOW)));
        assert!((0..19).all(|_| !outlier.count(Bad, NOW)));
        assert!(outlier.count(Bad, NOW));
    }

    #[test]
    fn a_new_window_starts_from_nothing() {
        let outlier = Outlier::default();
        assert!((0..9).all(|_| !outlier.count(Bad, NOW)));
        assert!((0..9).all(|_| !outlier.count(Bad, NOW + WINDOW)));
        assert!(outlier.count(Bad, NOW + WINDOW));
    }

    #[test]
    fn the_count_restarts_after_an_outlier_was_found() {
        let outlier = Outlier::default();
        assert!((0..10).any(|_| outlier.count(Bad, NOW)));
        assert!(!outlier.count(Bad, NOW));
    }

    #[test]
    fn many_responses_do_not_overflow() {
        let outlier = Outlier::default();
        assert!((0..200_000).all(|_| !outlier.count(Good, NOW)));
        assert!((0..10).all(|_| !outlier.count(Bad, NOW)));
    }
}
