//! How much is let in: connections at a time, handshakes for each address, retries for each request, lines in the log.
//!
//! Plain types: nothing here waits. Whoever is refused answers at once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;

/// At most so many client connections at a time. Clones share one count.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionLimit(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Invariant: the number of [`Permit`]s that exist, at most `most`.
    held: AtomicUsize,
    most: usize,
    /// Shows `held` to operators.
    open: Gauge,
}

/// The right to be a connection, given back on drop.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Shared>);

impl ConnectionLimit {
    /// At most `most`; `open` follows how many there are.
    pub(crate) fn new(most: usize, open: Gauge) -> Self {
        Self(Arc::new(Shared {
            held: AtomicUsize::new(0),
            most,
            open,
        }))
    }

    /// A permit, or `None` while `most` are held.
    pub(crate) fn try_acquire(&self) -> Option<Permit> {
        let more = |held: usize| (held < self.0.most).then_some(held + 1);
        self.0
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .ok()?;
        self.0.open.inc();
        Some(Permit(Arc::clone(&self.0)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let before = self.0.held.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(0 < before, "a permit is given back once");
        self.0.open.dec();
    }
}

/// At most so many of something at a time for each client address.
///
/// An exact table: an address is in it only while it holds something, so that it is as large as what goes on now.
#[derive(Debug, Clone)]
pub(crate) struct PerAddress {
    most: u32,
    held: Arc<Mutex<HashMap<IpAddr, u32>>>,
}

/// One of an address's places, given back on drop.
#[derive(Debug)]
pub(crate) struct Place {
    held: Arc<Mutex<HashMap<IpAddr, u32>>>,
    address: IpAddr,
}

impl PerAddress {
    /// At most `most` for each address.
    pub(crate) fn new(most: u32) -> Self {
        Self {
            most,
            held: Arc::default(),
        }
    }

    /// A place for `address`, or `None` while it has `most`.
    pub(crate) fn enter(&self, address: IpAddr) -> Option<Place> {
        let address = address.to_canonical();
        let mut held = self.held.lock();
        let count = held.entry(address).or_insert(0);
        if self.most <= *count {
            return None;
        }
        *count += 1;
        Some(Place {
            held: Arc::clone(&self.held),
            address,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.held.lock();
        if let Entry::Occupied(mut count) = held.entry(self.address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

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
    fn a_connection_above_the_limit_is_refused_until_another_ends() {
        let open = Gauge::default();
        let limit = ConnectionLimit::new(2, open.clone());
        let first = limit.try_acquire().unwrap();
        let _second = limit.clone().try_acquire().unwrap();
        assert!(limit.try_acquire().is_none());
        drop(first);
        assert_eq!(open.get(), 1);
        let _third = limit.try_acquire().unwrap();
        assert!(limit.try_acquire().is_none());
        assert_eq!(open.get(), 2);
    }

    #[test]
    fn an_address_has_so_many_places_and_takes_none_of_another() {
        let places = PerAddress::new(2);
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let first = places.enter(one).unwrap();
        let _second = places.enter("::ffff:192.0.2.1".parse().unwrap()).unwrap();
        assert!(places.enter(one).is_none());
        let _third = places.enter(other).unwrap();
        drop(first);
        assert!(places.enter(one).is_some());
        assert_eq!(places.held.lock().len(), 2);
        drop((_second, _third));
        assert!(places.held.lock().is_empty());
    }

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
