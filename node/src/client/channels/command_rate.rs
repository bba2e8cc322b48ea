//! How fast a client may send commands: `command_rate` of its endpoint, a token bucket.
//!
//! A command over the rate is refused with error 111, which SDKs take for temporary: they try again later. A client that goes
//! on and on all the same is disconnected. Publications are not counted here, since `publish_rate` is for them, and neither
//! is `connect`, of which there is one.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::client::rate;
use crate::config::PublishRate;
use crate::protocol::Command;
use crate::protocol::Request;

/// Refused commands may be so many times as fast, and so many times as many at once, as commands that are not refused,
/// before the client is disconnected. An SDK that tries each refused command again, later and later, stays far below.
const REFUSALS: u32 = 10;

/// Refused commands that may come at once, however small the burst is.
const REFUSALS_AT_ONCE_MIN: u32 = 1000;

/// The state of one client.
#[derive(Debug, Default)]
pub(super) struct CommandRate {
    taken: AtomicU64,
    refused: AtomicU64,
}

/// What becomes of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is carried out.
    Within,
    /// It is refused, and the client may try again later.
    TooFast,
    /// The client is disconnected: it has sent far too many.
    Flood,
}

impl CommandRate {
    /// Decides on a command with this `cost` at `now`, counted from any fixed moment.
    pub(super) fn admit(&self, rate: PublishRate, cost: u32, now: Duration) -> Admission {
        if cost == 0 || rate::admit(&self.taken, rate, cost, now) {
            return Admission::Within;
        }
        let burst = rate.burst.saturating_mul(REFUSALS);
        let refusals = PublishRate {
            per_second: rate.per_second.saturating_mul(REFUSALS),
            burst: burst.max(REFUSALS_AT_ONCE_MIN),
        };
        if rate::admit(&self.refused, refusals, 1, now) {
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
        // They read lists, mostly from Redis.
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
    fn a_burst_is_carried_out_and_the_rest_refused_until_its_time() {
        use Admission::TooFast;
        use Admission::Within;
        let state = CommandRate::default();
        let first = admitted(&state, 1, 6, Duration::ZERO);
        assert_eq!(first, [Within, Within, Within, Within, Within, TooFast]);
        let next = admitted(&state, 1, 2, Duration::from_millis(100));
        assert_eq!(next, [Within, TooFast]);
    }

    #[test]
    fn dear_commands_take_more_of_a_burst_and_pass_all_the_same() {
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
    fn a_client_that_goes_on_is_a_flood_and_one_that_waits_is_not() {
        let state = CommandRate::default();
        let limit = REFUSALS_AT_ONCE_MIN as usize;
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
