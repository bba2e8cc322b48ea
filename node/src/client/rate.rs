//! A rate limit for one client: a token bucket in eight bytes, time passed in.
//!
//! The state is the moment at which the bucket is full again (the generic cell rate algorithm): a message advances it by
//! the time that a token takes, and may not advance it further than a burst into the future.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::config::PublishRate;

const SECOND: u64 = 1_000_000_000;

/// Whether a message at `now`, counted from any fixed moment, that takes `cost` tokens is within `rate`. A message over the
/// rate takes no tokens. The cost is at most a burst.
///
/// `full_at` is the client's state in nanoseconds, initially 0.
pub(crate) fn admit(full_at: &AtomicU64, rate: PublishRate, cost: u32, now: Duration) -> bool {
    let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    let token = SECOND / u64::from(rate.per_second.max(1));
    let ahead_max = token.saturating_mul(u64::from(rate.burst));
    let cost = token.saturating_mul(u64::from(cost)).min(ahead_max);
    full_at
        .try_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            let next = full_at.max(now).saturating_add(cost);
            (next.saturating_sub(now) <= ahead_max).then_some(next)
        })
        .is_ok()
}

/// How long the bucket needs to be full again, in nanoseconds.
pub(crate) fn ahead(full_at: &AtomicU64, now: Duration) -> u64 {
    let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    full_at.load(Ordering::Relaxed).saturating_sub(now)
}

/// The state of a bucket that needs so long to be full again, in nanoseconds.
pub(crate) fn continued(ahead: u64, now: Duration) -> AtomicU64 {
    let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    AtomicU64::new(now.saturating_add(ahead))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: PublishRate = PublishRate {
        per_second: 10,
        burst: 3,
    };

    fn admitted(state: &AtomicU64, count: usize, now: Duration) -> usize {
        (0..count).filter(|_| admit(state, RATE, 1, now)).count()
    }

    #[test]
    fn a_burst_passes_at_once_and_no_more() {
        let state = AtomicU64::new(0);
        assert_eq!(admitted(&state, 5, Duration::ZERO), 3);
        assert_eq!(admitted(&state, 5, Duration::from_millis(99)), 0);
    }

    #[test]
    fn a_token_comes_back_after_its_time() {
        let state = AtomicU64::new(0);
        admitted(&state, 3, Duration::ZERO);
        assert_eq!(admitted(&state, 5, Duration::from_millis(100)), 1);
        assert_eq!(admitted(&state, 5, Duration::from_millis(300)), 2);
    }

    #[test]
    fn a_long_pause_saves_no_more_than_a_burst() {
        let state = AtomicU64::new(0);
        admitted(&state, 3, Duration::ZERO);
        assert_eq!(admitted(&state, 9, Duration::from_secs(3600)), 3);
    }

    #[test]
    fn a_bucket_continues_by_another_clock() {
        let (state, now) = (AtomicU64::new(0), Duration::from_secs(7));
        admitted(&state, 2, now);
        let elsewhere = Duration::from_secs(1);
        let continued = continued(ahead(&state, now), elsewhere);
        assert_eq!(admitted(&continued, 5, elsewhere), 1);
        assert_eq!(ahead(&AtomicU64::new(0), now), 0);
    }

    #[test]
    fn a_rejected_message_takes_no_tokens() {
        let state = AtomicU64::new(0);
        admitted(&state, 1000, Duration::ZERO);
        assert_eq!(admitted(&state, 5, Duration::from_millis(300)), 3);
    }
}
