//! So many of something at a time, in all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus_client::metrics::gauge::Gauge;

/// At most so many at a time. Clones share one count.
#[derive(Debug, Clone)]
pub(super) struct Total(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Invariant: the number of [`Permit`]s that exist, and of calls that are about to find that they are too many.
    held: AtomicUsize,
    most: AtomicUsize,
    /// Shows operators how many permits there are.
    open: Option<Gauge>,
}

/// The right to be one of them, given back on drop.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Shared>);

impl Total {
    /// At most `most`; `open` follows how many there are.
    pub(super) fn new(most: usize, open: Option<Gauge>) -> Self {
        Self(Arc::new(Shared {
            held: AtomicUsize::new(0),
            most: AtomicUsize::new(most),
            open,
        }))
    }

    /// At most `most` from now on. Those that are more than that stay.
    pub(super) fn change(&self, most: usize) {
        self.0.most.store(most, Ordering::Relaxed);
    }

    /// A permit, or `None` while as many as may be are held.
    pub(super) fn try_acquire(&self) -> Option<Permit> {
        let most = self.0.most.load(Ordering::Relaxed);
        if most <= self.0.held.fetch_add(1, Ordering::Relaxed) {
            self.0.held.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        if let Some(open) = &self.0.open {
            open.inc();
        }
        Some(Permit(Arc::clone(&self.0)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let before = self.0.held.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(0 < before, "a permit is given back once");
        if let Some(open) = &self.0.open {
            open.dec();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_more_than_the_limit_is_refused_until_another_ends() {
        let open = Gauge::default();
        let total = Total::new(2, Some(open.clone()));
        let first = total.try_acquire().unwrap();
        let _second = total.clone().try_acquire().unwrap();
        assert!(total.try_acquire().is_none());
        drop(first);
        assert_eq!(open.get(), 1);
        let _third = total.try_acquire().unwrap();
        assert!(total.try_acquire().is_none());
        assert_eq!(open.get(), 2);
    }

    #[test]
    fn a_new_limit_counts_those_that_are_there() {
        let total = Total::new(3, None);
        let _held = [total.try_acquire().unwrap(), total.try_acquire().unwrap()];
        total.change(2);
        assert!(total.try_acquire().is_none());
        total.change(3);
        assert!(total.try_acquire().is_some());
        total.change(0);
        assert!(total.try_acquire().is_none());
    }
}
