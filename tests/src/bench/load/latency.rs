//! A histogram of latencies, exact to one part in 64.

use std::time::Duration;

const STEPS_PER_OCTAVE: usize = 64;
/// Octaves above the first: microseconds up to more than an hour.
const OCTAVES: usize = 32;

/// How long things took, counted in microseconds.
pub(crate) struct Latency {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            counts: vec![0; STEPS_PER_OCTAVE * OCTAVES],
            total: 0,
        }
    }
}

impl Latency {
    /// Counts one.
    pub(crate) fn record(&mut self, latency: Duration) {
        let index = index(latency.as_micros().try_into().unwrap_or(u64::MAX));
        self.counts[index.min(STEPS_PER_OCTAVE * OCTAVES - 1)] += 1;
        self.total += 1;
    }

    /// The latency in milliseconds that `share` of all stayed within, 0 if nothing was counted.
    pub(crate) fn quantile_ms(&self, share: f64) -> f64 {
        let rank = (self.total as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if 0 < *count && rank <= seen {
                return upper_bound(index) as f64 / 1_000.0;
            }
        }
        0.0
    }
}

/// The bucket of a value: one for each below 128, then 64 for each power of two.
fn index(value: u64) -> usize {
    let octave = (64 - value.leading_zeros()).saturating_sub(7);
    octave as usize * STEPS_PER_OCTAVE + (value >> octave) as usize
}

/// The largest value of a bucket.
fn upper_bound(index: usize) -> u64 {
    let octave = (index / STEPS_PER_OCTAVE).saturating_sub(1);
    let step = (index - octave * STEPS_PER_OCTAVE) as u64;
    ((step + 1) << octave) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_its_values_to_one_part_in_64() {
        for value in (0..200_000).chain((18..31).map(|power| (1 << power) + 12_345)) {
            let bound = upper_bound(index(value));
            assert!(value <= bound, "{value} {bound}");
            assert!(bound - value <= value / 64, "{value} {bound}");
        }
    }

    #[test]
    fn quantiles_are_the_values_at_their_rank() {
        let mut latency = Latency::default();
        for milliseconds in 1..=100 {
            latency.record(Duration::from_millis(milliseconds));
        }
        assert!((latency.quantile_ms(0.5) - 50.0).abs() < 1.0);
        assert!((latency.quantile_ms(0.99) - 99.0).abs() < 2.0);
        assert!(Latency::default().quantile_ms(0.5) == 0.0);
    }
}
