//! What is counted for each backend.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::metrics::{CLASSES, class_of};

/// The backend's id, and one more label with one of few values.
type Labels = [(&'static str, Arc<str>); 2];
type BackendLabel = [(&'static str, Arc<str>); 1];

/// Upper bounds in seconds: a page view, a game, a working day.
const TUNNEL_SECONDS: [f64; 8] = [0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 14400.0, 86400.0];

/// The families, from which each backend takes its members.
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
    /// The series of each backend that came up as things happened, by the second label and its value.
    made: Mutex<HashMap<Arc<str>, Made>>,
}

type Made = Arc<Mutex<HashSet<(&'static str, &'static str)>>>;

impl BackendFamilies {
    pub(super) fn register(registry: &mut Registry) -> Self {
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
            made: Mutex::default(),
        };
        macro_rules! register {
            ($field:ident, $help:literal) => {
                registry.register(stringify!($field), $help, families.$field.clone());
            };
        }
        register!(requests, "Answers of a backend, by class of status");
        register!(
            requests_in_flight,
            "Requests that a backend has not answered to the end"
        );
        register!(
            requests_waiting,
            "Requests that wait for a backend to come back"
        );
        register!(waits, "Requests that have waited for a backend, by outcome");
        register!(connect_errors, "Dials of a backend that failed, by kind");
        register!(probes, "Health checks, by result");
        register!(state, "1 for the state that a backend is in");
        register!(
            state_since_seconds,
            "When a backend came into its state, in UNIX seconds"
        );
        register!(transitions, "Changes of state, by the state that it led to");
        register!(tunnels_open, "Tunnels that are open");
        register!(tunnels_opened, "Tunnels that were opened");
        register!(tunnels_closed, "Tunnels that ended, by reason");
        register!(tunnel_bytes, "Bytes through tunnels, by direction");
        register!(tunnel_seconds, "How long tunnels lived, in seconds");
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
            made: Arc::clone(self.made.lock().entry(Arc::clone(&id)).or_default()),
            id,
        }
    }

    /// Takes all series of the backend called `id` out of the page.
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
        ] {
            gauge.remove(&only);
        }
        self.tunnels_opened.remove(&only);
        self.tunnel_seconds.remove(&only);
        let made = self.made.lock().remove(&id);
        for (name, value) in made.iter().flat_map(|made| made.lock().clone()) {
            let labels = with(name, value);
            self.state.remove(&labels);
            for counter in [
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
    made: Made,
}

impl BackendMetrics {
    /// Counts an answer that the backend gave.
    pub(crate) fn answered(&self, status: StatusCode) {
        if let Some(counter) = self.requests.get(class_of(status.as_u16())) {
            counter.inc();
        }
    }

    /// Counts a request that has waited; `outcome` is `returned`, `moved` or `left`, or `full` for one that could not wait.
    pub(crate) fn waited(&self, outcome: &'static str) {
        self.waits
            .get_or_create(&self.with("outcome", outcome))
            .inc();
    }

    /// How many answers were counted.
    pub(crate) fn answered_in_all(&self) -> u64 {
        self.requests.iter().map(Counter::get).sum()
    }

    /// Counts a dial that failed.
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

    /// Notes that the backend is in the state called `current` of all `states`, since `unix` seconds.
    pub(crate) fn state(&self, current: &'static str, states: &[&'static str], unix: u64) {
        self.state_since_seconds
            .set(i64::try_from(unix).unwrap_or(i64::MAX));
        for state in states {
            let gauge = self.state.get_or_create_owned(&self.with("state", state));
            gauge.set(i64::from(*state == current));
        }
    }

    /// Counts a change to the state called `to`.
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

    /// Counts down what [`tunnel_opened`](Self::tunnel_opened) counted up.
    pub(crate) fn tunnel_gone(&self) {
        self.tunnels_open.dec();
    }

    /// Counts what a tunnel carried (up is from the client to the backend) and why it ended.
    ///
    /// `reason` is one of few constants: each becomes a time series.
    pub(crate) fn tunnel_closed(&self, reason: &'static str, lived: Duration, up: u64, down: u64) {
        self.tunnels_closed
            .get_or_create(&self.with("reason", reason))
            .inc();
        self.tunnel_seconds.observe(lived.as_secs_f64());
        self.bytes_up.inc_by(up);
        self.bytes_down.inc_by(down);
    }

    fn with(&self, name: &'static str, value: &'static str) -> Labels {
        let mut made = self.made.lock();
        if !made.contains(&(name, value)) {
            made.insert((name, value));
        }
        [("backend", Arc::clone(&self.id)), (name, Arc::from(value))]
    }
}

impl std::fmt::Debug for BackendMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BackendMetrics({})", self.id)
    }
}
