//! Retries, paid for by requests.

use std::sync::atomic::{AtomicI64, Ordering};

/// Keeps retries from multiplying the load on backends that are failing.
///
/// A retry is a request sent to a backend after another has seen it. Every request pays in `percent` of one, every retry takes one out. The account starts full, and
/// fullness is bounded, so that a quiet hour does not pay for a storm.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    /// In hundredths of a retry.
    balance: AtomicI64,
    percent: AtomicI64,
}

impl RetryBudget {
    /// What a full account holds: enough for the clients of one backend that just went away.
    const RETRIES_MAX: i64 = 1000;

    /// A budget of `percent` retries for each 100 requests. None at all are allowed with 0.
    pub(crate) fn new(percent: u32) -> Self {
        let full = if percent == 0 {
            0
        } else {
            Self::RETRIES_MAX * 100
        };
        Self {
            balance: AtomicI64::new(full),
            percent: AtomicI64::new(i64::from(percent)),
        }
    }

    /// Allows `percent` retries for each 100 requests from now on. What is in the account stays, unless none are allowed.
    pub(crate) fn change(&self, percent: u32) {
        self.percent.store(i64::from(percent), Ordering::Relaxed);
        if percent == 0 {
            self.balance.store(0, Ordering::Relaxed);
        }
    }

    /// Notes a request.
    pub(crate) fn deposit(&self) {
        let full = Self::RETRIES_MAX * 100;
        let percent = self.percent.load(Ordering::Relaxed);
        let more = |balance: i64| (balance < full).then(|| (balance + percent).min(full));
        // An account that is full stays as it is.
        self.balance
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .ok();
    }

    /// Whether one more retry may be made; if so, it is paid for.
    pub(crate) fn try_withdraw(&self) -> bool {
        let less = |balance: i64| (100 <= balance).then(|| balance - 100);
        self.balance
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_end_when_the_budget_is_spent_and_come_back_with_requests() {
        let budget = RetryBudget::new(20);
        for _ in 0..RetryBudget::RETRIES_MAX {
            assert!(budget.try_withdraw());
        }
        assert!(!budget.try_withdraw());
        (0..4).for_each(|_| budget.deposit());
        assert!(!budget.try_withdraw());
        budget.deposit();
        assert!(budget.try_withdraw());
        assert!(!budget.try_withdraw());
    }

    #[test]
    fn a_quiet_hour_saves_nothing_up() {
        let budget = RetryBudget::new(100);
        (0..10_000).for_each(|_| budget.deposit());
        let spent = std::iter::repeat_with(|| budget.try_withdraw());
        assert_eq!(spent.take_while(|paid| *paid).count(), 1000);
    }

    #[test]
    fn a_budget_changes_from_one_request_to_the_next() {
        let budget = RetryBudget::new(0);
        budget.change(100);
        assert!(!budget.try_withdraw(), "there is nothing in it yet");
        budget.deposit();
        budget.deposit();
        assert!(budget.try_withdraw());
        budget.change(0);
        assert!(!budget.try_withdraw());
    }

    #[test]
    fn a_budget_of_nothing_allows_nothing() {
        let budget = RetryBudget::new(0);
        budget.deposit();
        assert!(!budget.try_withdraw());
    }
}
