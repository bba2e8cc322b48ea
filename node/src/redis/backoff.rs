//! How long to wait before the next attempt to connect.

use std::time::Duration;

/// The longest first pause.
const FIRST: Duration = Duration::from_millis(50);

/// Doubling pauses with jitter, so that nodes do not reconnect all at once.
///
/// Invariant: a pause is between half of the current step and the whole, and a step is at most `max`.
#[derive(Debug)]
pub(crate) struct Backoff {
    max: Duration,
    step: Duration,
}

impl Backoff {
    pub(crate) fn new(max: Duration) -> Self {
        let step = FIRST.min(max);
        Self { max, step }
    }

    /// The pause before the next attempt. `jitter` is random, from 0 to 1.
    pub(crate) fn next(&mut self, jitter: f64) -> Duration {
        let pause = self.step.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
        self.step = (self.step * 2).min(self.max);
        pause
    }

    /// Starts over with short pauses: an attempt succeeded.
    pub(crate) fn reset(&mut self) {
        self.step = FIRST.min(self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_maximum() {
        let mut backoff = Backoff::new(Duration::from_millis(300));
        let pauses: Vec<u128> = (0..5).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 300, 300]);
        backoff.reset();
        assert_eq!(backoff.next(1.0).as_millis(), 50);
    }

    #[test]
    fn jitter_takes_away_up_to_half() {
        let mut backoff = Backoff::new(Duration::from_millis(10));
        assert_eq!(backoff.next(0.0), Duration::from_millis(5));
        assert_eq!(backoff.next(0.5), Duration::from_micros(7500));
        assert_eq!(backoff.next(1.0), Duration::from_millis(10));
    }
}
