//! Rate limits per client address.
//!
//! The generic cell rate algorithm: for an address only the time is stored at which its burst will be fully available again.
//! The table has a fixed size. If it is full, the address that has used the least is forgotten, and starts anew: with more
//! active addresses than the table holds, some get more than their rate, and none gets less. The slot of an address depends on a
//! secret hash key, so a client cannot evict chosen addresses.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::config::Rate;
use crate::limits::address::Source;

/// Locks of a table; a power of two.
const SHARDS: usize = 64;
/// Sets of slots under each lock, a power of two, and slots in each set: 65,536 addresses in total, in 1 MiB.
const SETS: usize = 128;
const WAYS: usize = 8;

/// The packed word for no limit.
const OFF: u64 = 0;

/// A rate limit per client address.
#[derive(Debug)]
pub(super) struct RateLimit {
    /// The interval in nanoseconds and the burst, packed; [`OFF`] for no limit.
    rate: AtomicU64,
    started: Instant,
    hasher: RandomState,
    /// Each is allocated when the first address hashes to it.
    shards: [Mutex<Vec<Slot>>; SHARDS],
}

/// The state of one address. A slot whose time has passed is equivalent to an empty one.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    source: u64,
    /// When the burst is fully available again, in nanoseconds since the start.
    whole_at: u64,
}

impl RateLimit {
    /// `rate` per address; `None` is no limit. Time is counted from `now` on.
    pub(super) fn new(rate: Option<Rate>, now: Instant) -> Self {
        Self {
            rate: AtomicU64::new(packed(rate)),
            started: now,
            hasher: RandomState::new(),
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }

    /// Changes the rate.
    pub(super) fn change(&self, rate: Option<Rate>) {
        self.rate.store(packed(rate), Ordering::Relaxed);
    }

    /// Whether one more is allowed for `address` at `now`; if so, it is counted.
    pub(super) fn allows(&self, address: IpAddr, now: Instant) -> bool {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == OFF {
            return true;
        }
        let (interval, burst) = (rate >> 32, rate & u64::from(u32::MAX));
        let since = now.saturating_duration_since(self.started).as_nanos();
        // Overflows after 584 years.
        let now = u64::try_from(since).unwrap_or(u64::MAX);
        let Source(source) = Source::of(address);
        let hash = self.hasher.hash_one(source);
        let part = |hash: u64, parts: usize| usize::try_from(hash % parts as u64).unwrap_or(0);
        let mut slots = self.shards[part(hash, SHARDS)].lock();
        if slots.is_empty() {
            slots.resize(SETS * WAYS, Slot::default());
        }
        let set = part(hash / SHARDS as u64, SETS) * WAYS;
        let set = &mut slots[set..set + WAYS];
        let known = set
            .iter()
            .position(|slot| slot.source == source && now < slot.whole_at);
        let at = known.unwrap_or_else(|| {
            let moments = set.iter().map(|slot| slot.whole_at).enumerate();
            moments
                .min_by_key(|(_, moment)| *moment)
                .map_or(0, |(at, _)| at)
        });
        let whole_at = known.map_or(now, |at| set[at].whole_at);
        if (burst - 1) * interval < whole_at - now {
            return false;
        }
        set[at] = Slot {
            source,
            whole_at: whole_at + interval,
        };
        true
    }
}

/// The rate as one word, so that it changes atomically.
fn packed(rate: Option<Rate>) -> u64 {
    let Some(rate) = rate else { return OFF };
    // The longest interval is a second, whose nanoseconds fit in 32 bits.
    let interval = 1_000_000_000 / u64::from(rate.per_second.max(1));
    interval.max(1) << 32 | u64::from(rate.burst.max(1))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn rate(per_second: u32, burst: u32) -> Option<Rate> {
        Some(Rate { per_second, burst })
    }

    fn client(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn a_burst_passes_at_once_and_then_one_at_each_interval() {
        let start = Instant::now();
        let limit = RateLimit::new(rate(10, 3), start);
        // Milliseconds, and whether one more is allowed then: the interval is 100 ms.
        for (at, passes) in [
            (0, true),
            (0, true),
            (0, true),
            (0, false),
            (99, false),
            (100, true),
            (100, false),
            (199, false),
            (200, true),
            // What accumulates is at most the burst.
            (60_000, true),
            (60_000, true),
            (60_000, true),
            (60_000, false),
        ] {
            let now = start + Duration::from_millis(at);
            assert_eq!(limit.allows(client(1), now), passes, "at {at} ms");
        }
        assert!(limit.allows(client(2), start), "another address");
    }

    #[test]
    fn a_burst_of_one_is_a_constant_rate() {
        let start = Instant::now();
        let limit = RateLimit::new(rate(1, 1), start);
        let at = |ms| start + Duration::from_millis(ms);
        assert!(limit.allows(client(1), at(0)));
        assert!(!limit.allows(client(1), at(999)));
        assert!(limit.allows(client(1), at(1000)));
    }

    #[test]
    fn without_a_rate_everything_is_allowed_and_a_new_rate_applies_from_then_on() {
        let now = Instant::now();
        let limit = RateLimit::new(None, now);
        assert!((0..1000).all(|_| limit.allows(client(1), now)));
        limit.change(rate(1, 2));
        let passed = (0..10).filter(|_| limit.allows(client(1), now)).count();
        assert_eq!(passed, 2);
        limit.change(None);
        assert!(limit.allows(client(1), now));
    }

    #[test]
    fn more_addresses_than_the_table_holds_take_no_more_memory_and_are_all_allowed() {
        let now = Instant::now();
        let limit = RateLimit::new(rate(1, 1), now);
        for number in 0..200_000_u32 {
            assert!(limit.allows(IpAddr::from(number.to_be_bytes()), now));
        }
        let slots = limit.shards.iter().map(|shard| shard.lock().capacity());
        assert_eq!(slots.sum::<usize>(), SHARDS * SETS * WAYS);
    }

    #[test]
    fn the_address_that_has_used_the_most_is_remembered_in_a_flood_of_others() {
        let now = Instant::now();
        let limit = RateLimit::new(rate(1, 50), now);
        assert!((0..50).all(|_| limit.allows(client(1), now)));
        for number in 0..200_000_u32 {
            limit.allows(IpAddr::from((number | 0x8000_0000).to_be_bytes()), now);
        }
        assert!(!limit.allows(client(1), now));
    }
}
