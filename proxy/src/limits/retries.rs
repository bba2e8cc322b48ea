//! The retry budget.

use std::sync::atomic::{AtomicI64, Ordering};

/// Keeps retries from multiplying the load on failing backends.
///
/// A retry is a request that is sent to a backend after it was sent to another. Every request deposits `percent` hundredths of a
/// retry, every retry withdraws one. The balance starts full and is bounded, so that a long quiet time does not allow a storm.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    /// In hundredths of a retry.
    balance: AtomicI64,
    percent: AtomicI64,
}

impl RetryBudget {
    /// The full balance: enough for the clients of one backend that has just failed.
    const RETRIES_MAX: i64 = 1000;

    /// A budget of `percent` retries for each 100 requests; 0 allows none.
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

    /// Changes the budget to `percent` retries for each 100 requests. The balance stays, except that 0 clears it.
    pub(crate) fn change(&self, percent: u32) {
        self.percent.store(i64::from(percent), Ordering::Relaxed);
        if percent == 0 {
            self.balance.store(0, Ordering::Relaxed);
        }
    }

    /// Deposits for one request.
    pub(crate) fn deposit(&self) {
        let full = Self::RETRIES_MAX * 100;
        let percent = self.percent.load(Ordering::Relaxed);
        let more = |balance: i64| (balance < full).then(|| (balance + percent).min(full));
        // A full balance stays as it is.
        self.balance
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .ok();
    }

    /// Whether one more retry is allowed; if so, it is withdrawn.
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
    fn retries_end_when_the_budget_is_spent_and_requests_refill_it() {
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
    fn the_balance_is_bounded() {
        let budget = RetryBudget::new(100);
        (0..10_000).for_each(|_| budget.deposit());
        let spent = std::iter::repeat_with(|| budget.try_withdraw());
        assert_eq!(spent.take_while(|paid| *paid).count(), 1000);
    }

    #[test]
    fn a_budget_can_be_changed() {
        let budget = RetryBudget::new(0);
        budget.change(100);
        assert!(!budget.try_withdraw(), "the balance is still empty");
        budget.deposit();
        budget.deposit();
        assert!(budget.try_withdraw());
        budget.change(0);
        assert!(!budget.try_withdraw());
    }

    #[test]
    fn a_budget_of_zero_allows_no_retries() {
        let budget = RetryBudget::new(0);
        budget.deposit();
        assert!(!budget.try_withdraw());
    }
}
