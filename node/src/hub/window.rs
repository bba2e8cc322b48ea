//! How long a channel's batch gathers: a plain type, time passed in.
//!
//! A write costs the same whatever it carries, so a loud channel is cheaper in larger batches, while a
//! quiet one should not wait. After a round that took t, the next begins no earlier than `factor` * t
//! after it began, and at most the cap: the hub then uses 1/`factor` of a core for a channel until the
//! cap is reached, and beyond it the batches grow.

use std::time::Duration;

use tokio::time::Instant;

/// When a channel's next round may begin.
#[derive(Debug)]
pub(super) struct Window {
    cap: Duration,
    factor: f64,
    not_before: Option<Instant>,
}

impl Window {
    /// A window that is over.
    pub(super) fn new(cap: Duration, factor: f64) -> Self {
        Self {
            cap,
            factor,
            not_before: None,
        }
    }

    /// Notes a round that began at `began` and used `busy` of CPU.
    pub(super) fn end_round(&mut self, began: Instant, busy: Duration) {
        let wanted = Duration::try_from_secs_f64(busy.as_secs_f64() * self.factor);
        self.not_before = Some(began + wanted.map_or(self.cap, |wanted| wanted.min(self.cap)));
    }

    /// When the next round may begin, if that is after `now`.
    pub(super) fn end(&self, now: Instant) -> Option<Instant> {
        self.not_before.filter(|&not_before| now < not_before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_first_publication_after_quiet_goes_out_at_once() {
        let now = Instant::now();
        let mut window = Window::new(20 * MS, 3.0);
        assert_eq!(window.end(now), None);
        window.end_round(now, MS);
        assert_eq!(window.end(now + 3 * MS), None);
    }

    #[test]
    fn it_lasts_a_multiple_of_the_last_round_from_its_beginning() {
        let now = Instant::now();
        let mut window = Window::new(20 * MS, 3.0);
        window.end_round(now, 2 * MS);
        assert_eq!(window.end(now + 2 * MS), Some(now + 6 * MS));
    }

    #[test]
    fn it_never_lasts_longer_than_the_cap() {
        let now = Instant::now();
        let mut window = Window::new(20 * MS, 3.0);
        for busy in [7 * MS, Duration::MAX] {
            window.end_round(now, busy);
            assert_eq!(window.end(now), Some(now + 20 * MS));
        }
    }

    #[test]
    fn a_cap_of_zero_switches_it_off() {
        let now = Instant::now();
        let mut window = Window::new(Duration::ZERO, 3.0);
        window.end_round(now, MS);
        assert_eq!(window.end(now), None);
    }
}
