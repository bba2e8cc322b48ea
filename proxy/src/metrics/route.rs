//! The metrics of each route.

use std::sync::Arc;
use std::time::Duration;

use causeway_conf::MetricRegistry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use crate::metrics::durations::Durations;
use crate::metrics::{CLASSES, class_of};

/// The route, and one more label with one of few values.
type Labels = [(&'static str, Arc<str>); 2];
type RouteLabel = [(&'static str, Arc<str>); 1];

/// The families; each route has its own series in them.
pub(super) struct RouteFamilies {
    requests: Family<Labels, Counter>,
    bytes: Family<Labels, Counter>,
    seconds: Family<RouteLabel, Durations>,
}

impl RouteFamilies {
    pub(super) fn register(registry: &mut MetricRegistry) -> Self {
        let families = Self {
            requests: Family::default(),
            bytes: Family::default(),
            seconds: Family::default(),
        };
        registry.register(
            "route_requests",
            "Requests that have ended, by route and status class",
            families.requests.clone(),
        );
        registry.register(
            "route_body_bytes",
            "Bytes of request bodies (up) and response bodies (down), by route",
            families.bytes.clone(),
        );
        registry.register(
            "request_seconds",
            "How long requests took from their head to the end of the response, by route",
            families.seconds.clone(),
        );
        families
    }

    pub(super) fn of(&self, name: &str) -> RouteMetrics {
        let route: Arc<str> = Arc::from(name);
        let with = |name, value: &str| [("route", Arc::clone(&route)), (name, Arc::from(value))];
        let direction = |value| self.bytes.get_or_create_owned(&with("direction", value));
        RouteMetrics(Arc::new(Counts {
            requests: CLASSES.map(|class| self.requests.get_or_create_owned(&with("class", class))),
            bytes_up: direction("up"),
            bytes_down: direction("down"),
            seconds: self.seconds.get_or_create_owned(&[("route", route)]),
        }))
    }
}

/// The counters of one route. Cheap to clone.
#[derive(Clone)]
pub(crate) struct RouteMetrics(Arc<Counts>);

struct Counts {
    requests: [Counter; CLASSES.len()],
    bytes_up: Counter,
    bytes_down: Counter,
    seconds: Durations,
}

impl RouteMetrics {
    /// Counts a request that has ended, with the bytes of its body and of the response body.
    pub(crate) fn ended(&self, status: u16, took: Duration, up: u64, down: u64) {
        if let Some(counter) = self.0.requests.get(class_of(status)) {
            counter.inc();
        }
        self.0.seconds.observe(took);
        self.0.bytes_up.inc_by(up);
        self.0.bytes_down.inc_by(down);
    }
}
