//! The rate limit for a client's commands: `command_rate` of its endpoint, a token bucket.
//!
//! A command over the rate is rejected with error 111, which SDKs treat as temporary: they retry later. A client that
//! continues nevertheless is disconnected. Publications are not counted here, since they have `publish_rate`, and neither
//! is `connect`, which is sent once.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::client::rate;
use crate::config::PublishRate;
use crate::protocol::Command;
use crate::protocol::Request;

/// Rejected commands may have this many times the rate and the burst of accepted ones before the client is disconnected.
/// An SDK that retries each rejected command with a growing delay stays far below.
const REJECTIONS: u32 = 10;

/// The least burst of rejected commands.
const REJECTIONS_AT_ONCE_MIN: u32 = 1000;

/// The state of one client.
#[derive(Debug, Default)]
pub(super) struct CommandRate {
    taken: AtomicU64,
    rejected: AtomicU64,
}

/// The decision about a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is executed.
    Within,
    /// It is rejected; the client may retry later.
    TooFast,
    /// The client is disconnected: it has sent far too many.
    Flood,
}

impl CommandRate {
    /// How long accepted and rejected commands need to be at their full burst again, in nanoseconds.
    pub(super) fn ahead(&self, now: Duration) -> [u64; 2] {
        [&self.taken, &self.rejected].map(|state| rate::ahead(state, now))
    }

    /// The state that needs so long.
    pub(super) fn continued(ahead: [u64; 2], now: Duration) -> Self {
        let [taken, rejected] = ahead.map(|ahead| rate::continued(ahead, now));
        Self { taken, rejected }
    }

    /// Decides about a command with this `cost` at `now`, counted from any fixed moment.
    pub(super) fn admit(&self, rate: PublishRate, cost: u32, now: Duration) -> Admission {
        if cost == 0 || rate::admit(&self.taken, rate, cost, now) {
            return Admission::Within;
        }
        let burst = rate.burst.saturating_mul(REJECTIONS);
        let rejections = PublishRate {
            per_second: rate.per_second.saturating_mul(REJECTIONS),
            burst: burst.max(REJECTIONS_AT_ONCE_MIN),
        };
        if rate::admit(&self.rejected, rejections, 1, now) {
            Admission::TooFast
        } else {
            Admission::Flood
        }
    }
}

/// How many tokens a command takes.
pub(super) fn cost(command: &Command) -> u32 {
    match &command.request {
        Some(Request::Connect(_) | Request::Publish(_)) => 0,
        // They read lists, usually from Redis.
        Some(Request::History(_) | Request::Presence(_)) => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: PublishRate = PublishRate {
        per_second: 10,
        burst: 5,
    };

    fn admitted(state: &CommandRate, cost: u32, count: usize, now: Duration) -> Vec<Admission> {
        (0..count).map(|_| state.admit(RATE, cost, now)).collect()
    }

    #[test]
    fn a_burst_is_executed_and_the_rest_is_rejected_until_tokens_are_back() {
        use Admission::TooFast;
        use Admission::Within;
        let state = CommandRate::default();
        let first = admitted(&state, 1, 6, Duration::ZERO);
        assert_eq!(first, [Within, Within, Within, Within, Within, TooFast]);
        let next = admitted(&state, 1, 2, Duration::from_millis(100));
        assert_eq!(next, [Within, TooFast]);
    }

    #[test]
    fn expensive_commands_take_more_tokens_and_pass_even_if_the_burst_is_smaller() {
        use Admission::TooFast;
        use Admission::Within;
        let state = CommandRate::default();
        let first = admitted(&state, 2, 3, Duration::ZERO);
        assert_eq!(first, [Within, Within, TooFast]);
        let state = CommandRate::default();
        let least = PublishRate {
            per_second: 1,
            burst: 1,
        };
        assert_eq!(state.admit(least, 2, Duration::ZERO), Within);
        let soon = Duration::from_millis(999);
        assert_eq!(state.admit(least, 2, soon), TooFast);
    }

    #[test]
    fn a_client_that_keeps_sending_is_a_flood_and_one_that_waits_is_not() {
        let state = CommandRate::default();
        let limit = REJECTIONS_AT_ONCE_MIN as usize;
        let all = admitted(&state, 1, 5 + limit + 1, Duration::ZERO);
        assert_eq!(all[5 + limit - 1], Admission::TooFast);
        assert_eq!(all[5 + limit], Admission::Flood);
        let state = CommandRate::default();
        for second in 0..100 {
            let tried = admitted(&state, 1, 100, Duration::from_secs(second));
            assert!(!tried.contains(&Admission::Flood), "{second}");
        }
    }
}
