//! Closes many tunnels evenly over a time, so that their clients do not come back all at once.
//!
//! The one way in which tunnels are closed on purpose: by the drain of the edge, the drain of a backend, and a rebalance. Plain
//! types, with the elapsed time passed in.

use std::ops::Range;
use std::time::Duration;
use std::vec;

use crate::tunnel::registry::{CloseRequest, TunnelHandle};

/// The number of steps in which the tunnels are closed, with a pause after each.
const STEPS: u32 = 256;

/// The shortest pause between two steps.
const PAUSE_MIN: Duration = Duration::from_millis(5);

/// Which of a number of things are due, spread evenly over a time.
#[derive(Debug)]
struct Pacer {
    spread: Duration,
    total: usize,
    done: usize,
}

impl Pacer {
    fn new(total: usize, spread: Duration) -> Self {
        Self {
            spread,
            total,
            done: 0,
        }
    }

    /// Those that are due after `elapsed` and were not returned before. The first is due at once, and all before `spread` is over.
    fn due(&mut self, elapsed: Duration) -> Range<usize> {
        let steps = match self.spread.as_micros() {
            0 => u128::from(STEPS),
            spread => {
                let share = elapsed.as_micros().saturating_mul(u128::from(STEPS)) / spread;
                share.saturating_add(1).min(u128::from(STEPS))
            }
        };
        let due = (self.total as u128 * steps).div_ceil(u128::from(STEPS));
        let from = self.done;
        self.done = usize::try_from(due).unwrap_or(self.total).max(from);
        from..self.done
    }

    /// The time between two steps.
    fn pause(&self) -> Duration {
        (self.spread / STEPS).max(PAUSE_MIN)
    }
}

/// Tunnels that are being closed.
pub(crate) struct PacedClose {
    /// Those that have not been asked to close.
    tunnels: vec::IntoIter<TunnelHandle>,
    request: CloseRequest,
    pacer: Pacer,
}

impl PacedClose {
    /// Closes `tunnels`, in this order, over `spread`.
    pub(crate) fn new(tunnels: Vec<TunnelHandle>, request: CloseRequest, spread: Duration) -> Self {
        Self {
            pacer: Pacer::new(tunnels.len(), spread),
            tunnels: tunnels.into_iter(),
            request,
        }
    }

    /// Asks the tunnels to close that are due `elapsed` after the begin.
    pub(crate) fn close_due(&mut self, elapsed: Duration) {
        let due = self.pacer.due(elapsed).len();
        for tunnel in self.tunnels.by_ref().take(due) {
            tunnel.request_close(self.request);
        }
    }

    /// How many tunnels have not been asked to close.
    pub(crate) fn left(&self) -> usize {
        self.tunnels.len()
    }

    /// The time until the next call of [`PacedClose::close_due`].
    pub(crate) fn pause(&self) -> Duration {
        self.pacer.pause()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tunnel_is_due_exactly_once_and_evenly_spread() {
        for total in [1, 3, 255, 256, 1000, 100_000] {
            let mut pacer = Pacer::new(total, Duration::from_secs(5));
            let mut next = 0;
            for tick in 0..=100_u32 {
                let due = pacer.due(Duration::from_millis(50) * tick);
                assert_eq!(due.start, next, "of {total} at tick {tick}");
                let at_once = due.end - due.start;
                assert!(at_once <= total / 64 + 1, "{due:?} of {total}");
                next = due.end;
            }
            assert_eq!(next, total);
        }
    }

    #[test]
    fn without_a_spread_all_are_due_at_once() {
        let mut pacer = Pacer::new(1000, Duration::ZERO);
        assert_eq!(pacer.due(Duration::ZERO), 0..1000);
        assert_eq!(pacer.due(Duration::from_secs(1)), 1000..1000);
        assert_eq!(Pacer::new(0, Duration::ZERO).due(Duration::ZERO), 0..0);
    }

    #[test]
    fn the_first_is_due_at_once_and_the_others_are_not() {
        let mut pacer = Pacer::new(3, Duration::from_secs(3600));
        assert_eq!(pacer.due(Duration::ZERO), 0..1);
        assert_eq!(pacer.due(Duration::from_secs(10)), 1..1);
        assert_eq!(pacer.due(Duration::from_secs(3600)), 1..3);
    }
}
