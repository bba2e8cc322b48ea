//! The metrics of the edge, in the text format of OpenMetrics.
//!
//! Label values are backends, states, outcomes and the like, whose number is bounded by the configuration and the code; never a
//! client's address, a path or a host. The series of a forgotten backend are removed. Families are registered once; each backend
//! keeps handles to its own counters, so that counting takes no lookup and no lock.

mod backend;
mod durations;
mod route;

use std::sync::LazyLock;

use causeway_conf::{MetricRegistry, RenamedMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

pub(crate) use crate::metrics::backend::BackendMetrics;
pub(crate) use crate::metrics::route::RouteMetrics;

use crate::metrics::backend::BackendFamilies;
use crate::metrics::route::RouteFamilies;

/// The metrics that have another name since 0.1.0.
const RENAMED: &[RenamedMetric] = &[RenamedMetric {
    old: "nodes_passed_over",
    new: "nodes_skipped",
}];

/// One label and its value.
type Label = [(&'static str, &'static str); 1];

/// The status classes, in the order of [`class_of`].
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The index of a status in [`CLASSES`], out of range for one outside of 100 to 599.
fn class_of(status: u16) -> usize {
    usize::from(status / 100).wrapping_sub(1)
}

/// Lines of the program log that were lost. A static: there is one such log in a process, and it exists before any [`Metrics`].
pub(crate) static LOG_LINES_DROPPED: LazyLock<Counter> = LazyLock::new(Counter::default);

/// All counters of the process.
pub(crate) struct Metrics {
    registry: MetricRegistry,
    backends: BackendFamilies,
    routes: RouteFamilies,
    close_codes: Family<[(&'static str, &'static str); 2], Counter>,
    /// Open client connections.
    pub(crate) connections_open: Gauge,
    /// Access-log lines that were lost.
    pub(crate) access_lines_dropped: Counter,
    /// Attempts of requests after the first one.
    pub(crate) retries: Counter,
    /// Picks for clients that go to the backend that they are bound to.
    pub(crate) affinity_hit: Counter,
    /// Picks for clients that were not bound.
    pub(crate) affinity_miss: Counter,
    /// Picks for clients whose backend is not available, and that are bound to another one.
    pub(crate) affinity_bound_anew: Counter,
    /// Whether the configuration was valid when it was last read: 1 or 0.
    configuration_ok: Gauge,
    reloads: Family<Label, Counter>,
    affinity: Family<Label, Counter>,
    affinity_forged: Counter,
    limited: Family<Label, Counter>,
    refusals: Family<[(&'static str, String); 2], Counter>,
    admin_actions: Family<[(&'static str, &'static str); 2], Counter>,
    handshakes: Family<Label, Counter>,
    task_restarts: Family<Label, Counter>,
    certificates: Family<Label, Counter>,
    /// Tunnels and sessions over HTTP that were handed off to another backend.
    pub(crate) handoffs_moved: Counter,
    /// Those whose backend drains and that stayed there, because no other one takes part.
    pub(crate) handoffs_stayed: Counter,
    handoffs: Family<Label, Counter>,
    /// Tunnels that this process has taken over from another one.
    pub(crate) tunnels_taken_over: Counter,
    nodes_skipped: Family<[(&'static str, String); 1], Gauge>,
    certificate_states: Family<[(&'static str, String); 2], Gauge>,
    certificate_ends: Family<[(&'static str, String); 1], Gauge>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = MetricRegistry::new("causeway_proxy", RENAMED);
        let affinity = Family::<Label, Counter>::default();
        let outcome = |outcome| affinity.get_or_create_owned(&[("outcome", outcome)]);
        let handoffs = Family::<Label, Counter>::default();
        let handoff = |outcome| handoffs.get_or_create_owned(&[("outcome", outcome)]);
        let metrics = Self {
            handoffs_moved: handoff("moved"),
            handoffs_stayed: handoff("stayed"),
            handoffs,
            tunnels_taken_over: Counter::default(),
            affinity_hit: outcome("hit"),
            affinity_miss: outcome("miss"),
            affinity_bound_anew: outcome("bound_anew"),
            affinity,
            backends: BackendFamilies::register(&mut registry),
            routes: RouteFamilies::register(&mut registry),
            close_codes: Family::default(),
            connections_open: Gauge::default(),
            access_lines_dropped: Counter::default(),
            retries: Counter::default(),
            configuration_ok: Gauge::default(),
            reloads: Family::default(),
            affinity_forged: Counter::default(),
            limited: Family::default(),
            refusals: Family::default(),
            admin_actions: Family::default(),
            handshakes: Family::default(),
            task_restarts: Family::default(),
            certificates: Family::default(),
            nodes_skipped: Family::default(),
            certificate_states: Family::default(),
            certificate_ends: Family::default(),
            registry,
        };
        metrics.register()
    }

    fn register(mut self) -> Self {
        let registry = &mut self.registry;
        registry.register(
            "connections_open",
            "Client connections that are open",
            self.connections_open.clone(),
        );
        registry.register(
            "limited",
            "Connections, requests and tunnels rejected because of a limit, by its setting",
            self.limited.clone(),
        );
        registry.register(
            "access_lines_dropped",
            "Access-log lines lost because they could not be written, or not fast enough",
            self.access_lines_dropped.clone(),
        );
        registry.register(
            "log_lines_dropped",
            "Lines of the program log lost because they could not be written, or not fast enough",
            LOG_LINES_DROPPED.clone(),
        );
        registry.register(
            "retries",
            "Attempts of requests after the first one",
            self.retries.clone(),
        );
        registry.register(
            "configuration_ok",
            "Whether the configuration was valid when it was last read",
            self.configuration_ok.clone(),
        );
        registry.register(
            "reloads",
            "Configurations that were read while running, by outcome",
            self.reloads.clone(),
        );
        self.configuration_ok.set(1);
        registry.register(
            "affinity",
            "Picks of a backend, by affinity outcome",
            self.affinity.clone(),
        );
        registry.register(
            "affinity_forged",
            "Requests with an affinity cookie that does not verify",
            self.affinity_forged.clone(),
        );
        registry.register(
            "handoffs",
            "Tunnels and SockJS sessions over HTTP of draining backends, by whether they were handed off to another backend",
            self.handoffs.clone(),
        );
        registry.register(
            "tunnels_taken_over",
            "Tunnels that this process has taken over from its predecessor",
            self.tunnels_taken_over.clone(),
        );
        registry.register(
            "refusals",
            "Requests that got an error response of the edge itself, by reason and status",
            self.refusals.clone(),
        );
        registry.register(
            "admin_actions",
            "Actions that operators asked for on the admin listener, by outcome",
            self.admin_actions.clone(),
        );
        registry.register(
            "close_codes",
            "Close frames in tunnels, by sender and code",
            self.close_codes.clone(),
        );
        registry.register(
            "handshakes",
            "Connections to listeners with TLS or the PROXY protocol, by result of the handshake",
            self.handshakes.clone(),
        );
        registry.register(
            "task_restarts",
            "Background tasks that panicked or ended and were restarted",
            self.task_restarts.clone(),
        );
        registry.register(
            "certificate_exchanges",
            "Changed certificate files that were loaded (taken) or could not be used (refused)",
            self.certificates.clone(),
        );
        registry.register(
            "nodes_skipped",
            "Nodes in the registry of a pool that are skipped because their entry is not valid or not allowed",
            self.nodes_skipped.clone(),
        );
        registry.register(
            "certificates",
            "Certificates of a listener by state: good, previous, out_of_date, unusable",
            self.certificate_states.clone(),
        );
        registry.register(
            "certificate_ends_timestamp_seconds",
            "When the first served certificate of a listener expires, as UNIX time",
            self.certificate_ends.clone(),
        );
        self
    }

    /// The counters of the backend called `id`.
    pub(crate) fn backend(&self, id: &str) -> BackendMetrics {
        self.backends.of(id)
    }

    /// Removes all series of the backend called `id`.
    pub(crate) fn forget_backend(&self, id: &str) {
        self.backends.forget(id);
    }

    /// Sets how many nodes in the registry of `pool` are skipped; `None` if it has no registry any more.
    pub(crate) fn nodes_skipped(&self, pool: &str, number: Option<usize>) {
        let label = [("pool", pool.to_owned())];
        let Some(number) = number else {
            self.nodes_skipped.remove(&label);
            return;
        };
        let gauge = self.nodes_skipped.get_or_create(&label);
        gauge.set(i64::try_from(number).unwrap_or(i64::MAX));
    }

    /// The counters of the route called `name`.
    pub(crate) fn route(&self, name: &str) -> RouteMetrics {
        self.routes.of(name)
    }

    /// Counts the Close frame, if any, that `from` (`client` or `backend`) has sent into a tunnel.
    pub(crate) fn close_seen(&self, from: &'static str, code: Option<u16>) {
        if let Some(code) = code {
            let labels = [("from", from), ("code", name_of_code(code))];
            self.close_codes.get_or_create(&labels).inc();
        }
    }

    /// Counts a configuration that was read while running; `outcome` is `applied` or `refused`.
    pub(crate) fn reloaded(&self, outcome: &'static str) {
        self.reloads.get_or_create(&[("outcome", outcome)]).inc();
        self.configuration_ok.set(i64::from(outcome == "applied"));
    }

    /// Counts a request whose cookie does not verify.
    pub(crate) fn affinity_forged(&self) {
        self.affinity_forged.inc();
    }

    /// The counter of rejections because of `limit`.
    pub(crate) fn limited(&self, limit: &'static str) -> Counter {
        self.limited.get_or_create_owned(&[("limit", limit)])
    }

    /// Counts a request that got an error response of the edge itself. `reason` is one of few constants.
    pub(crate) fn refused(&self, reason: &'static str, status: http::StatusCode) {
        let label = [
            ("reason", reason.to_owned()),
            ("status", status.as_str().to_owned()),
        ];
        self.refusals.get_or_create(&label).inc();
    }

    /// Counts an action on the admin listener. Both are few constants.
    pub(crate) fn admin_action(&self, action: &'static str, outcome: &'static str) {
        let labels = [("action", action), ("outcome", outcome)];
        self.admin_actions.get_or_create(&labels).inc();
    }

    /// Counts a handshake: `full` and `resumed` are successful ones.
    pub(crate) fn handshake(&self, result: &'static str) {
        self.handshakes.get_or_create(&[("result", result)]).inc();
    }

    /// Counts the restart of a background task. `task` is one of few constants.
    pub(crate) fn task_restarted(&self, task: &'static str) {
        self.task_restarts.get_or_create(&[("task", task)]).inc();
    }

    /// Counts changed certificates that were loaded (`taken`) or could not be used (`refused`).
    pub(crate) fn certificates_exchanged(&self, result: &'static str, number: usize) {
        let counter = self.certificates.get_or_create(&[("result", result)]);
        counter.inc_by(number as u64);
    }

    /// Sets how many certificates of `listener` are in `state`.
    pub(crate) fn certificates(&self, listener: &str, state: &'static str, number: usize) {
        let labels = [
            ("listener", listener.to_owned()),
            ("state", state.to_owned()),
        ];
        let gauge = self.certificate_states.get_or_create(&labels);
        gauge.set(i64::try_from(number).unwrap_or(i64::MAX));
    }

    /// Sets when the first certificate of `listener` expires, in UNIX seconds.
    pub(crate) fn certificate_ends(&self, listener: &str, unix: u64) {
        let label = [("listener", listener.to_owned())];
        let gauge = self.certificate_ends.get_or_create(&label);
        gauge.set(i64::try_from(unix).unwrap_or(i64::MAX));
    }

    /// All metrics, as text.
    pub(crate) fn encode(&self) -> String {
        self.registry.encode()
    }
}

/// A close code of RFC 6455, 7.4 as a label. Other codes are grouped: peers must not be able to create any number of series.
fn name_of_code(code: u16) -> &'static str {
    const DEFINED: [&str; 16] = [
        "1000", "1001", "1002", "1003", "1004", "1005", "1006", "1007", "1008", "1009", "1010",
        "1011", "1012", "1013", "1014", "1015",
    ];
    match code {
        1000..=1015 => DEFINED[usize::from(code - 1000)],
        3000..=3999 => "3xxx",
        4000..=4999 => "4xxx",
        _ => "other",
    }
}

#[cfg(test)]
mod tests;
