//! Notices a backend whose answers are bad too often.
//!
//! A single 503 says nothing; half of the answers within a window may. What is decided here asks for a probe and does no more:
//! clients choose what they ask for, and must not be able to take a backend out of service.
//!
//! Without a lock: the window's number and both counts are one atomic word.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Over how long answers are counted.
const WINDOW: Duration = Duration::from_secs(10);

/// How many bad answers a window has at least before they count.
const BAD_MIN: u16 = 10;

/// Whether an answer speaks against its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResponseOutcome {
    Good,
    Bad,
}

/// The answers of the current window: its number in the upper half, then all answers, then the bad ones.
#[derive(Debug, Default)]
pub(super) struct Outlier(AtomicU64);

impl Outlier {
    /// Counts an answer, `age` after the process started; whether the backend is an outlier now.
    ///
    /// It is when at least half of a window's answers, and at least [`BAD_MIN`], are bad. The count then
    /// starts again.
    pub(super) fn count(&self, answer: ResponseOutcome, age: Duration) -> bool {
        let number = (age.as_secs() / WINDOW.as_secs()) & u64::from(u32::MAX);
        let mut outlier = false;
        let count = |word: u64| {
            let same = word >> 32 == number;
            let all = if same { (word >> 16) as u16 } else { 0 }.saturating_add(1);
            let bad = if same { word as u16 } else { 0 };
            let bad = bad.saturating_add(u16::from(answer == ResponseOutcome::Bad));
            outlier =
                answer == ResponseOutcome::Bad && BAD_MIN <= bad && all <= bad.saturating_mul(2);
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
    fn few_bad_answers_say_nothing() {
        let outlier = Outlier::default();
        assert!((0..9).all(|_| !outlier.count(Bad, NOW)));
        assert!(outlier.count(Bad, NOW));
    }

    #[test]
    fn bad_answers_count_from_half_of_all() {
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
    fn what_was_found_once_is_not_found_again_by_the_next_answer() {
        let outlier = Outlier::default();
        assert!((0..10).any(|_| outlier.count(Bad, NOW)));
        assert!(!outlier.count(Bad, NOW));
    }

    #[test]
    fn many_answers_do_not_overflow() {
        let outlier = Outlier::default();
        assert!((0..200_000).all(|_| !outlier.count(Good, NOW)));
        assert!((0..10).all(|_| !outlier.count(Bad, NOW)));
    }
}
