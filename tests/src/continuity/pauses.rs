//! Pauses: how much later than it was sent a message came, at most, for each client and event.

use std::time::Duration;

/// The upper ends of the bars of a histogram; a last bar has what is longer.
pub const BOUNDS: [Duration; 12] = [
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// A number of pauses.
#[derive(Clone, Debug, Default)]
pub struct Pauses(Vec<Duration>);

impl Pauses {
    /// These, in any order.
    #[must_use]
    pub fn new(mut all: Vec<Duration>) -> Self {
        all.sort_unstable();
        Self(all)
    }

    /// Adds those of `other`.
    pub fn add(&mut self, other: &Self) {
        self.0.extend_from_slice(&other.0);
        self.0.sort_unstable();
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// What so many in a thousand are at most; zero if there are none.
    #[must_use]
    pub fn quantile(&self, in_thousand: usize) -> Duration {
        let rank = (self.0.len() * in_thousand).div_ceil(1_000).max(1);
        self.0.get(rank - 1).copied().unwrap_or_default()
    }

    /// The longest.
    #[must_use]
    pub fn most(&self) -> Duration {
        self.0.last().copied().unwrap_or_default()
    }

    /// How many are within each of [`BOUNDS`] and not within the one before, and how many are longer.
    #[must_use]
    pub fn histogram(&self) -> [usize; BOUNDS.len() + 1] {
        let mut before = 0;
        let mut bars = [0; BOUNDS.len() + 1];
        for (bar, bound) in bars.iter_mut().zip(BOUNDS) {
            let within = self.0.partition_point(|pause| *pause <= bound);
            *bar = within - before;
            before = within;
        }
        bars[BOUNDS.len()] = self.0.len() - before;
        bars
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_at_their_rank_and_each_pause_is_in_one_bar() {
        let pauses = Pauses::new((1..=1_000).rev().map(Duration::from_millis).collect());
        assert_eq!(pauses.quantile(500), Duration::from_millis(500));
        assert_eq!(pauses.quantile(990), Duration::from_millis(990));
        assert_eq!(pauses.most(), Duration::from_secs(1));
        let bars = pauses.histogram();
        assert_eq!(bars, [1, 1, 3, 5, 10, 30, 50, 150, 250, 500, 0, 0, 0]);
        let few = Pauses::new(vec![Duration::from_secs(9), Duration::ZERO]);
        assert_eq!(few.histogram()[BOUNDS.len()], 1);
        assert_eq!(few.quantile(990), Duration::from_secs(9));
        assert_eq!(Pauses::default().quantile(990), Duration::ZERO);
    }
}
