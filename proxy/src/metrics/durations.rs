//! A histogram of durations without a lock.
//!
//! That of prometheus-client has a lock around all of its buckets, which every request would take.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Upper bounds in seconds: from a static file to a long poll, which takes 25 s.
const BOUNDS: [f64; 11] = [
    0.001, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0, 60.0,
];

/// Counts durations by the first bound that they do not exceed. Clones share one count.
#[derive(Clone, Debug, Default)]
pub(super) struct Durations(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// The last one is for durations above all bounds.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Durations {
    pub(super) fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound);
        let bucket = bucket.unwrap_or(BOUNDS.len());
        self.0.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.0.micros.fetch_add(micros, Ordering::Relaxed);
    }
}

impl TypedMetric for Durations {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Durations {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> std::fmt::Result {
        let counts = self.0.buckets.each_ref();
        let counts = counts.map(|bucket| bucket.load(Ordering::Relaxed));
        let bounds = BOUNDS.into_iter().chain([f64::MAX]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let seconds = self.0.micros.load(Ordering::Relaxed) as f64 / 1e6;
        encoder.encode_histogram::<NoLabelSet>(seconds, counts.iter().sum(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn a_duration_is_counted_in_its_bucket_and_all_larger_ones() {
        let durations = Durations::default();
        for ms in [0, 1, 2, 25_000, 90_000] {
            durations.observe(Duration::from_millis(ms));
        }
        let mut registry = Registry::default();
        registry.register("seconds", "Time", durations);
        let mut page = String::new();
        text::encode(&mut page, &registry).unwrap();
        expect_test::expect![[r#"
            # HELP seconds Time.
            # TYPE seconds histogram
            seconds_sum 115.003
            seconds_count 5
            seconds_bucket{le="0.001"} 2
            seconds_bucket{le="0.005"} 3
            seconds_bucket{le="0.01"} 3
            seconds_bucket{le="0.025"} 3
            seconds_bucket{le="0.1"} 3
            seconds_bucket{le="0.25"} 3
            seconds_bucket{le="1.0"} 3
            seconds_bucket{le="2.5"} 3
            seconds_bucket{le="10.0"} 3
            seconds_bucket{le="30.0"} 4
            seconds_bucket{le="60.0"} 4
            seconds_bucket{le="+Inf"} 5
            # EOF
        "#]]
        .assert_eq(&page);
    }
}
