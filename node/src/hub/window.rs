//! How long a channel's batch is collected: a plain type, time passed in.
//!
//! A write costs nearly the same whatever its size, so a busy channel is cheaper with larger batches, while a quiet one
//! should not wait. After a flush that took CPU time t, the next one begins `factor` * t after it began, but at most the
//! cap: so the hub uses 1/`factor` of a core for a channel until the cap is reached, and beyond it the batches grow.

use std::time::Duration;

use tokio::time::Instant;

/// When a channel's next flush may begin.
#[derive(Debug)]
pub(super) struct Window {
    cap: Duration,
    factor: f64,
    not_before: Option<Instant>,
}

impl Window {
    /// Creates a window that has ended.
    pub(super) fn new(cap: Duration, factor: f64) -> Self {
        Self {
            cap,
            factor,
            not_before: None,
        }
    }

    /// Starts the window of a flush that began at `began` and used `busy` of CPU time.
    pub(super) fn end_flush(&mut self, began: Instant, busy: Duration) {
        let wanted = Duration::try_from_secs_f64(busy.as_secs_f64() * self.factor);
        self.not_before = Some(began + wanted.map_or(self.cap, |wanted| wanted.min(self.cap)));
    }

    /// When the next flush may begin, if that is after `now`.
    pub(super) fn end(&self, now: Instant) -> Option<Instant> {
        self.not_before.filter(|&not_before| now < not_before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_first_publication_after_a_pause_is_flushed_at_once() {
        let now = Instant::now();
        let mut window = Window::new(20 * MS, 3.0);
        assert_eq!(window.end(now), None);
        window.end_flush(now, MS);
        assert_eq!(window.end(now + 3 * MS), None);
    }

    #[test]
    fn it_lasts_a_multiple_of_the_last_flush_from_its_beginning() {
        let now = Instant::now();
        let mut window = Window::new(20 * MS, 3.0);
        window.end_flush(now, 2 * MS);
        assert_eq!(window.end(now + 2 * MS), Some(now + 6 * MS));
    }

    #[test]
    fn it_never_lasts_longer_than_the_cap() {
        let now = Instant::now();
        let mut window = Window::new(20 * MS, 3.0);
        for busy in [7 * MS, Duration::MAX] {
            window.end_flush(now, busy);
            assert_eq!(window.end(now), Some(now + 20 * MS));
        }
    }

    #[test]
    fn a_cap_of_zero_disables_it() {
        let now = Instant::now();
        let mut window = Window::new(Duration::ZERO, 3.0);
        window.end_flush(now, MS);
        assert_eq!(window.end(now), None);
    }
}
