//! Limits on concurrent use in total.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus_client::metrics::gauge::Gauge;

/// A limit on the permits held at a time. Clones share one count.
#[derive(Debug, Clone)]
pub(super) struct Total(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Invariant: the number of [`Permit`]s that exist, plus that of calls about to fail.
    held: AtomicUsize,
    most: AtomicUsize,
    /// The metric of held permits.
    open: Option<Gauge>,
}

/// One permit, released on drop.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Shared>);

impl Total {
    /// At most `most` permits; `open` shows how many are held.
    pub(super) fn new(most: usize, open: Option<Gauge>) -> Self {
        Self(Arc::new(Shared {
            held: AtomicUsize::new(0),
            most: AtomicUsize::new(most),
            open,
        }))
    }

    /// Changes the limit. Permits beyond a lower one stay valid.
    pub(super) fn change(&self, most: usize) {
        self.0.most.store(most, Ordering::Relaxed);
    }

    /// A permit beyond any limit.
    pub(super) fn acquire(&self) -> Permit {
        self.0.held.fetch_add(1, Ordering::Relaxed);
        if let Some(open) = &self.0.open {
            open.inc();
        }
        Permit(Arc::clone(&self.0))
    }

    /// A permit, or `None` while the limit is reached.
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
        debug_assert!(0 < before, "a permit is released once");
        if let Some(open) = &self.0.open {
            open.dec();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_permit_beyond_the_limit_until_another_is_released() {
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
    fn a_new_limit_counts_the_permits_that_are_held() {
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
