//! The registry of a program's metrics, which exports renamed metrics under their old names as well.

use std::fmt::Debug;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Metric, Registry, Unit};

/// A metric that has another name now. Both are without the prefix of the program and without `_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RenamedMetric {
    /// The name that it had.
    pub old: &'static str,
    /// Its name now.
    pub new: &'static str,
}

/// The metrics of a program.
///
/// A metric in the table of renamed ones has its series under both names; the old one's help text says that it is deprecated, and
/// by what to replace it.
#[derive(Debug)]
pub struct MetricRegistry {
    registry: Registry,
    prefix: &'static str,
    renamed: &'static [RenamedMetric],
}

impl MetricRegistry {
    /// Without metrics. All names begin with `prefix` and an underscore.
    #[must_use]
    pub fn new(prefix: &'static str, renamed: &'static [RenamedMetric]) -> Self {
        Self {
            registry: Registry::with_prefix(prefix),
            prefix,
            renamed,
        }
    }

    /// Adds a metric. The text gets its full stop here.
    pub fn register(&mut self, name: &'static str, help: &str, metric: impl Metric + Clone) {
        let renamed = self.renamed.iter().filter(|metric| metric.new == name);
        for RenamedMetric { old, .. } in renamed {
            let suffix = match metric.metric_type() {
                MetricType::Counter => "_total",
                _ => "",
            };
            let prefix = self.prefix;
            let deprecated = format!("Deprecated, use {prefix}_{name}{suffix}. {help}");
            self.registry.register(*old, deprecated, metric.clone());
        }
        self.registry.register(name, help, metric);
    }

    /// Adds a metric whose name gets its unit behind it.
    pub fn register_with_unit(
        &mut self,
        name: &'static str,
        help: &str,
        unit: Unit,
        metric: impl Metric,
    ) {
        self.registry.register_with_unit(name, help, unit, metric);
    }

    /// Adds metrics that are read when they are asked for.
    pub fn register_collector(&mut self, collector: impl Collector) {
        self.registry.register_collector(Box::new(collector));
    }

    /// All metrics in the text format of OpenMetrics.
    ///
    /// # Panics
    ///
    /// Never: writing to a string does not fail.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut page = String::new();
        text::encode(&mut page, &self.registry).expect("writing to a string does not fail");
        page
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;

    use super::*;

    #[test]
    fn a_renamed_metric_has_the_same_values_under_its_old_name_which_is_deprecated() {
        let renamed = &[
            RenamedMetric {
                old: "lanes",
                new: "queues",
            },
            RenamedMetric {
                old: "lost",
                new: "dropped",
            },
        ];
        let mut registry = MetricRegistry::new("app", renamed);
        let (queues, dropped) = (Gauge::<i64>::default(), Counter::<u64>::default());
        registry.register("queues", "Queues", queues.clone());
        registry.register("dropped", "Messages dropped", dropped.clone());
        registry.register("other", "Something else", Gauge::<i64>::default());
        queues.set(3);
        dropped.inc_by(2);
        expect![[r#"
            # HELP app_lanes Deprecated, use app_queues. Queues.
            # TYPE app_lanes gauge
            app_lanes 3
            # HELP app_queues Queues.
            # TYPE app_queues gauge
            app_queues 3
            # HELP app_lost Deprecated, use app_dropped_total. Messages dropped.
            # TYPE app_lost counter
            app_lost_total 2
            # HELP app_dropped Messages dropped.
            # TYPE app_dropped counter
            app_dropped_total 2
            # HELP app_other Something else.
            # TYPE app_other gauge
            app_other 0
            # EOF
        "#]]
        .assert_eq(&registry.encode());
    }
}
