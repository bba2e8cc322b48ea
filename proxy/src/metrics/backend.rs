//! The metrics of each backend.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use causeway_conf::MetricRegistry;
use http::StatusCode;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::metrics::{CLASSES, class_of};

/// The backend's id, and one more label with one of few values.
type Labels = [(&'static str, Arc<str>); 2];
type BackendLabel = [(&'static str, Arc<str>); 1];

/// Upper bounds in seconds: from a page view to a day.
const TUNNEL_SECONDS: [f64; 8] = [0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 14400.0, 86400.0];

/// The families; each backend has its own series in them.
pub(super) struct BackendFamilies {
    requests: Family<Labels, Counter>,
    requests_in_flight: Family<BackendLabel, Gauge>,
    requests_waiting: Family<BackendLabel, Gauge>,
    waits: Family<Labels, Counter>,
    connect_errors: Family<Labels, Counter>,
    probes: Family<Labels, Counter>,
    state: Family<Labels, Gauge>,
    state_since_seconds: Family<BackendLabel, Gauge>,
    transitions: Family<Labels, Counter>,
    tunnels_open: Family<BackendLabel, Gauge>,
    tunnels_opened: Family<BackendLabel, Counter>,
    tunnels_closed: Family<Labels, Counter>,
    tunnel_bytes: Family<Labels, Counter>,
    tunnel_seconds: Family<BackendLabel, Histogram, fn() -> Histogram>,
    overrides: Family<Labels, Gauge>,
    drains: Family<Labels, Counter>,
    drain_tunnels_left: Family<BackendLabel, Gauge>,
    /// The series of each backend that were created on demand, by the second label and its value.
    created: Mutex<HashMap<Arc<str>, CreatedSeries>>,
}

type CreatedSeries = Arc<Mutex<HashSet<(&'static str, &'static str)>>>;

impl BackendFamilies {
    pub(super) fn register(registry: &mut MetricRegistry) -> Self {
        let families = Self {
            requests: Family::default(),
            requests_in_flight: Family::default(),
            requests_waiting: Family::default(),
            waits: Family::default(),
            connect_errors: Family::default(),
            probes: Family::default(),
            state: Family::default(),
            state_since_seconds: Family::default(),
            transitions: Family::default(),
            tunnels_open: Family::default(),
            tunnels_opened: Family::default(),
            tunnels_closed: Family::default(),
            tunnel_bytes: Family::default(),
            tunnel_seconds: Family::new_with_constructor(|| Histogram::new(TUNNEL_SECONDS)),
            overrides: Family::default(),
            drains: Family::default(),
            drain_tunnels_left: Family::default(),
            created: Mutex::default(),
        };
        macro_rules! register {
            ($field:ident, $help:literal) => {
                registry.register(stringify!($field), $help, families.$field.clone());
            };
        }
        register!(requests, "Responses of a backend, by status class");
        register!(requests_in_flight, "Requests in flight to a backend");
        register!(
            requests_waiting,
            "Parked requests, which wait for a backend to become available again"
        );
        register!(waits, "Requests that were parked for a backend, by outcome");
        register!(
            connect_errors,
            "Failed connection attempts to a backend, by kind"
        );
        register!(probes, "Health checks, by result");
        register!(
            state,
            "1 for the current state of a backend, 0 for the others"
        );
        register!(
            state_since_seconds,
            "When a backend entered its state, in UNIX seconds"
        );
        register!(transitions, "State changes, by new state");
        register!(tunnels_open, "Open tunnels");
        register!(tunnels_opened, "Opened tunnels");
        register!(tunnels_closed, "Closed tunnels, by reason");
        register!(tunnel_bytes, "Bytes through tunnels, by direction");
        register!(tunnel_seconds, "How long tunnels were open, in seconds");
        register!(
            overrides,
            "Whether an operator has set this for a backend: drain, maintenance, weight"
        );
        register!(
            drains,
            "Drains and rebalances that close tunnels of a backend, by cause"
        );
        register!(
            drain_tunnels_left,
            "Tunnels that a drain or a rebalance of a backend has yet to close"
        );
        families
    }

    pub(super) fn of(&self, id: &str) -> BackendMetrics {
        let id: Arc<str> = Arc::from(id);
        let only = [("backend", Arc::clone(&id))];
        let with = |name, value: &str| [("backend", Arc::clone(&id)), (name, Arc::from(value))];
        let direction = |value| {
            self.tunnel_bytes
                .get_or_create_owned(&with("direction", value))
        };
        BackendMetrics {
            requests: CLASSES.map(|class| self.requests.get_or_create_owned(&with("class", class))),
            requests_in_flight: self.requests_in_flight.get_or_create_owned(&only),
            requests_waiting: self.requests_waiting.get_or_create_owned(&only),
            tunnels_open: self.tunnels_open.get_or_create_owned(&only),
            tunnels_opened: self.tunnels_opened.get_or_create_owned(&only),
            bytes_up: direction("up"),
            bytes_down: direction("down"),
            tunnel_seconds: self.tunnel_seconds.get_or_create_owned(&only),
            waits: self.waits.clone(),
            connect_errors: self.connect_errors.clone(),
            probes: self.probes.clone(),
            state: self.state.clone(),
            state_since_seconds: self.state_since_seconds.get_or_create_owned(&only),
            transitions: self.transitions.clone(),
            tunnels_closed: self.tunnels_closed.clone(),
            overrides: self.overrides.clone(),
            drains: self.drains.clone(),
            drain_tunnels_left: self.drain_tunnels_left.get_or_create_owned(&only),
            created: Arc::clone(self.created.lock().entry(Arc::clone(&id)).or_default()),
            id,
        }
    }

    /// Removes all series of the backend called `id`.
    pub(super) fn forget(&self, id: &str) {
        let id: Arc<str> = Arc::from(id);
        let only = [("backend", Arc::clone(&id))];
        let with = |name, value: &str| [("backend", Arc::clone(&id)), (name, Arc::from(value))];
        for class in CLASSES {
            self.requests.remove(&with("class", class));
        }
        for direction in ["up", "down"] {
            self.tunnel_bytes.remove(&with("direction", direction));
        }
        for gauge in [
            &self.requests_in_flight,
            &self.requests_waiting,
            &self.state_since_seconds,
            &self.tunnels_open,
            &self.drain_tunnels_left,
        ] {
            gauge.remove(&only);
        }
        self.tunnels_opened.remove(&only);
        self.tunnel_seconds.remove(&only);
        let created = self.created.lock().remove(&id);
        for (name, value) in created.iter().flat_map(|created| created.lock().clone()) {
            let labels = with(name, value);
            self.state.remove(&labels);
            self.overrides.remove(&labels);
            for counter in [
                &self.drains,
                &self.waits,
                &self.connect_errors,
                &self.probes,
                &self.transitions,
                &self.tunnels_closed,
            ] {
                counter.remove(&labels);
            }
        }
    }
}

/// The counters of one backend. Cheap to clone.
#[derive(Clone)]
pub(crate) struct BackendMetrics {
    id: Arc<str>,
    requests: [Counter; CLASSES.len()],
    requests_in_flight: Gauge,
    requests_waiting: Gauge,
    tunnels_open: Gauge,
    tunnels_opened: Counter,
    bytes_up: Counter,
    bytes_down: Counter,
    tunnel_seconds: Histogram,
    waits: Family<Labels, Counter>,
    connect_errors: Family<Labels, Counter>,
    probes: Family<Labels, Counter>,
    state: Family<Labels, Gauge>,
    state_since_seconds: Gauge,
    transitions: Family<Labels, Counter>,
    tunnels_closed: Family<Labels, Counter>,
    overrides: Family<Labels, Gauge>,
    drains: Family<Labels, Counter>,
    drain_tunnels_left: Gauge,
    created: CreatedSeries,
}

impl BackendMetrics {
    /// Counts a response of the backend.
    pub(crate) fn responded(&self, status: StatusCode) {
        if let Some(counter) = self.requests.get(class_of(status.as_u16())) {
            counter.inc();
        }
    }

    /// Counts a request that was parked; `outcome` is `returned`, `moved` or `left`, or `full` for one that could not be parked.
    pub(crate) fn waited(&self, outcome: &'static str) {
        self.waits
            .get_or_create(&self.with("outcome", outcome))
            .inc();
    }

    /// How many responses were counted.
    pub(crate) fn responses_total(&self) -> u64 {
        self.requests.iter().map(Counter::get).sum()
    }

    /// Counts a failed connection attempt.
    pub(crate) fn connect_failed(&self, kind: &'static str) {
        self.connect_errors
            .get_or_create(&self.with("kind", kind))
            .inc();
    }

    /// Counts a health check.
    pub(crate) fn probed(&self, result: &'static str) {
        self.probes
            .get_or_create(&self.with("result", result))
            .inc();
    }

    /// Sets the state to `current`, one of `states`, since `unix` seconds.
    pub(crate) fn state(&self, current: &'static str, states: &[&'static str], unix: u64) {
        self.state_since_seconds
            .set(i64::try_from(unix).unwrap_or(i64::MAX));
        for state in states {
            let gauge = self.state.get_or_create_owned(&self.with("state", state));
            gauge.set(i64::from(*state == current));
        }
    }

    /// Counts a change to the state `to`.
    pub(crate) fn state_changed(&self, to: &'static str) {
        self.transitions.get_or_create(&self.with("to", to)).inc();
    }

    pub(crate) fn request_started(&self) {
        self.requests_in_flight.inc();
    }

    pub(crate) fn request_ended(&self) {
        self.requests_in_flight.dec();
    }

    pub(crate) fn wait_started(&self) {
        self.requests_waiting.inc();
    }

    pub(crate) fn wait_ended(&self) {
        self.requests_waiting.dec();
    }

    pub(crate) fn tunnel_opened(&self) {
        self.tunnels_open.inc();
        self.tunnels_opened.inc();
    }

    /// Reverses the gauge of [`tunnel_opened`](Self::tunnel_opened).
    pub(crate) fn tunnel_gone(&self) {
        self.tunnels_open.dec();
    }

    /// Counts the bytes of a closed tunnel (up is from the client to the backend), and the reason of its end.
    ///
    /// `reason` is one of few constants: each becomes a time series.
    pub(crate) fn tunnel_closed(
        &self,
        reason: &'static str,
        duration: Duration,
        up: u64,
        down: u64,
    ) {
        self.tunnels_closed
            .get_or_create(&self.with("reason", reason))
            .inc();
        self.tunnel_seconds.observe(duration.as_secs_f64());
        self.bytes_up.inc_by(up);
        self.bytes_down.inc_by(down);
    }

    /// Sets whether an operator has set `name`, one of few constants, for the backend.
    pub(crate) fn overridden(&self, name: &'static str, is_set: bool) {
        if !is_set && !self.created.lock().contains(&("override", name)) {
            return; // It never was: no series is needed.
        }
        self.overrides
            .get_or_create(&self.with("override", name))
            .set(i64::from(is_set));
    }

    /// Counts a drain or a rebalance that closes tunnels of the backend; `cause` is one of few constants.
    pub(crate) fn drain_started(&self, cause: &'static str) {
        self.drains.get_or_create(&self.with("cause", cause)).inc();
    }

    /// Sets how many tunnels a drain or a rebalance has yet to close.
    pub(crate) fn drain_left(&self, tunnels: usize) {
        self.drain_tunnels_left
            .set(i64::try_from(tunnels).unwrap_or(i64::MAX));
    }

    fn with(&self, name: &'static str, value: &'static str) -> Labels {
        let mut created = self.created.lock();
        if !created.contains(&(name, value)) {
            created.insert((name, value));
        }
        [("backend", Arc::clone(&self.id)), (name, Arc::from(value))]
    }
}

impl std::fmt::Debug for BackendMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BackendMetrics({})", self.id)
    }
}
