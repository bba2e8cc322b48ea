//! What a reload replaces: one snapshot, which each request loads when it arrives.

use std::sync::Arc;

use crate::balancer::pool::Pools;
use crate::config::Config;
use crate::config::NoRoute;
use crate::config::Routes;
use crate::http::forwarded::Forwarder;
use crate::metrics::Metrics;
use crate::metrics::RouteMetrics;

/// The configuration of request handling. Requests in flight keep what they have loaded.
///
/// Invariant: the pools of `routes` are in `pools`.
pub(crate) struct Rules {
    pub(super) routes: Routes,
    /// One for each route, in the same order.
    pub(super) route_metrics: Vec<RouteMetrics>,
    pub(super) no_route: NoRoute,
    pub(super) pools: Arc<Pools>,
    pub(super) forwarder: Forwarder,
    pub(super) retries_max: usize,
}

impl Rules {
    /// The rules of `config`, whose pools are `pools`.
    pub(crate) fn new(config: &Config, pools: Arc<Pools>, metrics: &Metrics) -> Self {
        let routes = config.routes.iter();
        Self {
            route_metrics: routes.map(|route| metrics.route(&route.name())).collect(),
            routes: config.routes.clone(),
            no_route: config.no_route.clone(),
            pools,
            forwarder: Forwarder::new(config.trusted_proxies.clone()),
            retries_max: config.limits.retries,
        }
    }
}
