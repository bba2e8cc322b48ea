//! What the node counts, and its text form for Prometheus.
//!
//! One [`Metrics`] for each process, shared by reference. Layers above call the methods here and never
//! see the registry; names and labels stand in this file alone. Counting is lock-free but for the first
//! use of a label.

use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use causeway_conf::MetricRegistry;
use causeway_conf::RenamedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Unit;

use crate::protocol::disconnect::Disconnect;

mod label;
mod process;

pub(crate) use label::{
    DropReason, Hook, HookOutcome, Recovered, RefuseReason, Reload, Side, Transport,
};

/// The media type of [`Metrics::render`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics that have another name since 0.1.0.
const RENAMED: &[RenamedMetric] = &[
    RenamedMetric {
        old: "feeds",
        new: "channel_streams",
    },
    RenamedMetric {
        old: "lane_bytes",
        new: "publish_queue_bytes",
    },
    RenamedMetric {
        old: "lane_publications",
        new: "publish_queue_publications",
    },
];

type Label = [(&'static str, &'static str); 1];

/// Log lines that were lost. There is one log in a process, and it is there before any [`Metrics`].
pub(crate) static LOG_LINES_DROPPED: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Every counter of this process.
pub(crate) struct Metrics {
    registry: MetricRegistry,
    connections: Gauge,
    /// TCP connections accepted.
    pub(crate) connections_accepted: Counter,
    connections_refused: Family<Label, Counter>,
    clients: Family<Label, Gauge>,
    sessions: Gauge,
    /// Messages that clients sent, of all endpoints.
    pub(crate) messages_received: Counter,
    pub(crate) commands_refused: Counter,
    /// Publications that the broker accepted.
    pub(crate) publications_published: Counter,
    /// Publications received from the broker.
    pub(crate) publications_received: Counter,
    /// Messages handed to clients' sockets or outboxes.
    pub(crate) deliveries: Counter,
    dropped: Family<Label, Counter>,
    disconnects: Family<[(&'static str, String); 2], Counter>,
    /// 1 while the broker is ready, else 0.
    pub(crate) broker_ready: Gauge,
    broker_connects: Family<Label, Counter>,
    broker_losses: Family<Label, Counter>,
    /// Times after which publications of other nodes may have been missed.
    pub(crate) broker_gaps: Counter,
    broker_primary: Family<[(&'static str, String); 1], Gauge>,
    /// Times that another Redis became the primary.
    pub(crate) broker_primary_changes: Counter,
    /// Channels that this node wants to be subscribed to.
    pub(crate) subscriptions_wanted: Gauge,
    broker_slots_moved: Family<[(&'static str, String); 1], Counter>,
    /// Slots of a Redis Cluster that no server has.
    pub(crate) broker_slots_uncovered: Gauge,
    broker_shard_ready: Family<[(&'static str, String); 1], Gauge>,
    broker_shard_losses: Family<[(&'static str, String); 1], Counter>,
    broker_shard_gaps: Family<[(&'static str, String); 1], Counter>,
    /// Channels that this node is subscribed to and the broker has confirmed.
    pub(crate) subscriptions: Gauge,
    /// Channels of channel clients that this node follows.
    pub(crate) channel_streams: Gauge,
    /// Times that something of a channel's stream was missing.
    pub(crate) gaps_noticed: Counter,
    /// Times that what was missing was read and delivered.
    pub(crate) gaps_filled: Counter,
    /// Times that members were told that it cannot be had.
    pub(crate) gaps_announced: Counter,
    recoveries: Family<Label, Counter>,
    /// Leases that this node took; the first is its start.
    pub(crate) registry_leases: Counter,
    /// Leases that had lapsed when this node came to renew them.
    pub(crate) registry_lapses: Counter,
    /// Members that this node took off the lists because theirs was gone.
    pub(crate) registry_swept: Counter,
    /// 1 while the registry is reliable, else 0.
    pub(crate) registry_ready: Gauge,
    /// Other nodes that have this node's id.
    pub(crate) registry_same_id: Gauge,
    /// Entries of this node that were missing and written again.
    pub(crate) registry_repaired: Counter,
    /// 1 while a Redis rejects writes because it is full, else 0.
    pub(crate) redis_full: Gauge,
    /// Lifecycle events that the application has taken from this node.
    pub(crate) lifecycle_delivered: Counter,
    /// Those that were dropped before the application took them.
    pub(crate) lifecycle_lost: Counter,
    /// Clients and channels without events, because too much waited for Redis.
    pub(crate) lifecycle_dropped: Counter,
    /// What begins and ends on this node and waits for Redis.
    pub(crate) lifecycle_waiting: Gauge,
    /// Bytes in the publish queues.
    pub(crate) publish_queue_bytes: Gauge,
    /// Publications in the publish queues.
    pub(crate) publish_queue_publications: Gauge,
    probe_seconds: Histogram,
    /// How old the oldest of the newest probes is.
    pub(crate) probe_age_seconds: Gauge<f64, AtomicU64>,
    /// Probes that did not come back in time.
    pub(crate) probes_missed: Counter,
    lag_seconds: Histogram,
    /// Bytes that wait for channel clients.
    pub(crate) outbox_bytes: Gauge,
    hooks: Family<[(&'static str, &'static str); 2], Counter>,
    reloads: Family<Label, Counter>,
    /// Clients that are handed off between nodes.
    pub(crate) handoffs: Handoffs,
}

/// Handoffs of clients, by what became of them.
#[derive(Default)]
pub(crate) struct Handoffs {
    /// Clients that continue on another node.
    pub(crate) sent: Counter,
    /// Clients of other nodes that continue here.
    pub(crate) received: Counter,
    /// Clients that stayed here because the other node or Redis did not take part.
    pub(crate) kept: Counter,
    /// Clients that were disconnected because the handoff failed half-way.
    pub(crate) lost: Counter,
}

impl Metrics {
    /// All counters at zero.
    pub(crate) fn new() -> Arc<Self> {
        let mut metrics = Self {
            connections: Gauge::default(),
            connections_accepted: Counter::default(),
            connections_refused: Family::default(),
            clients: Family::default(),
            sessions: Gauge::default(),
            messages_received: Counter::default(),
            commands_refused: Counter::default(),
            publications_published: Counter::default(),
            publications_received: Counter::default(),
            deliveries: Counter::default(),
            dropped: Family::default(),
            disconnects: Family::default(),
            broker_ready: Gauge::default(),
            broker_connects: Family::default(),
            broker_losses: Family::default(),
            broker_gaps: Counter::default(),
            broker_primary: Family::default(),
            broker_primary_changes: Counter::default(),
            broker_slots_moved: Family::default(),
            broker_slots_uncovered: Gauge::default(),
            broker_shard_ready: Family::default(),
            broker_shard_losses: Family::default(),
            broker_shard_gaps: Family::default(),
            subscriptions_wanted: Gauge::default(),
            subscriptions: Gauge::default(),
            channel_streams: Gauge::default(),
            gaps_noticed: Counter::default(),
            gaps_filled: Counter::default(),
            gaps_announced: Counter::default(),
            recoveries: Family::default(),
            registry_leases: Counter::default(),
            registry_lapses: Counter::default(),
            registry_swept: Counter::default(),
            registry_ready: Gauge::default(),
            registry_same_id: Gauge::default(),
            registry_repaired: Counter::default(),
            redis_full: Gauge::default(),
            lifecycle_delivered: Counter::default(),
            lifecycle_lost: Counter::default(),
            lifecycle_dropped: Counter::default(),
            lifecycle_waiting: Gauge::default(),
            publish_queue_bytes: Gauge::default(),
            publish_queue_publications: Gauge::default(),
            probe_age_seconds: Gauge::default(),
            probe_seconds: Histogram::new(exponential_buckets(0.0001, 4.0, 8)),
            probes_missed: Counter::default(),
            outbox_bytes: Gauge::default(),
            lag_seconds: Histogram::new(exponential_buckets(0.001, 4.0, 8)),
            hooks: Family::default(),
            reloads: Family::default(),
            handoffs: Handoffs::default(),
            registry: MetricRegistry::new("causeway_node", RENAMED),
        };
        metrics.register();
        Arc::new(metrics)
    }

    #[rustfmt::skip] // One metric a line: name, help, field.
    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("connections", "Open TCP connections", self.connections.clone());
        registry.register("connections_accepted", "TCP connections accepted", self.connections_accepted.clone());
        registry.register("connections_refused", "TCP connections and requests refused, by reason", self.connections_refused.clone());
        registry.register("clients", "Connected clients, by transport", self.clients.clone());
        registry.register("sessions", "SockJS sessions over HTTP, with or without a receiver", self.sessions.clone());
        registry.register("messages_received", "Messages that clients sent", self.messages_received.clone());
        registry.register("commands_refused", "Commands over the command_rate of their client", self.commands_refused.clone());
        registry.register("publications_published", "Publications that the broker took", self.publications_published.clone());
        registry.register("publications_received", "Publications that the broker brought", self.publications_received.clone());
        registry.register("deliveries", "Messages handed to clients", self.deliveries.clone());
        registry.register("dropped", "Messages dropped, by reason", self.dropped.clone());
        registry.register("disconnects", "Disconnected clients, by code and reason", self.disconnects.clone());
        registry.register("log_lines_dropped", "Log lines lost because they could not be written, or not fast enough", LOG_LINES_DROPPED.clone());
        registry.register("broker_ready", "1 while the broker is ready, else 0", self.broker_ready.clone());
        registry.register("broker_connects", "Connections made to the broker, by side", self.broker_connects.clone());
        registry.register("broker_losses", "Connections to the broker lost, by side", self.broker_losses.clone());
        registry.register("broker_primary", "1 for each primary that Sentinels or a cluster name, 0 for previous ones", self.broker_primary.clone());
        registry.register("broker_primary_changes", "Times that Sentinels or a cluster named another primary", self.broker_primary_changes.clone());
        registry.register("broker_slots_moved", "Slots of a Redis Cluster that have moved to this primary", self.broker_slots_moved.clone());
        registry.register("broker_slots_uncovered", "Slots of a Redis Cluster that no server has", self.broker_slots_uncovered.clone());
        registry.register("broker_shard_ready", "1 while this primary of a Redis Cluster delivers, else 0", self.broker_shard_ready.clone());
        registry.register("broker_shard_losses", "Subscriber connections lost to this primary of a Redis Cluster", self.broker_shard_losses.clone());
        registry.register("broker_shard_gaps", "Times after which publications over this primary of a Redis Cluster may have been missed", self.broker_shard_gaps.clone());
        registry.register("broker_gaps", "Times after which publications may have been missed", self.broker_gaps.clone());
        registry.register("subscriptions_wanted", "Channels that this node wants to subscribe to", self.subscriptions_wanted.clone());
        registry.register("subscriptions", "Channels whose subscription the broker has confirmed", self.subscriptions.clone());
        registry.register("channel_streams", "Channels with subscribers of mode: channels", self.channel_streams.clone());
        registry.register("gaps_noticed", "Times that something of a channel's stream was missing", self.gaps_noticed.clone());
        registry.register("gaps_filled", "Times that what was missing was read from the stream and delivered", self.gaps_filled.clone());
        registry.register("gaps_announced", "Times that subscribers were told that something is missing", self.gaps_announced.clone());
        registry.register("recoveries", "Subscriptions with a position to recover from, by result", self.recoveries.clone());
        registry.register("registry_leases", "Leases that this node took", self.registry_leases.clone());
        registry.register("registry_lapses", "Leases that lapsed before this node renewed them", self.registry_lapses.clone());
        registry.register("registry_swept", "Members taken off the lists because their node was gone", self.registry_swept.clone());
        registry.register("registry_ready", "1 while the registry takes this node's lease and entries, else 0", self.registry_ready.clone());
        registry.register("registry_same_id", "Other nodes that have this node's id", self.registry_same_id.clone());
        registry.register("registry_repaired", "Entries that were missing in the registry and written again", self.registry_repaired.clone());
        registry.register("redis_full", "1 while a Redis rejects writes because it is full (maxmemory), else 0", self.redis_full.clone());
        registry.register("lifecycle_delivered", "Lifecycle events that the application has taken from this node", self.lifecycle_delivered.clone());
        registry.register("lifecycle_lost", "Lifecycle events that were dropped before the application took them", self.lifecycle_lost.clone());
        registry.register("lifecycle_dropped", "Clients and channels without lifecycle events, because too much waited for Redis", self.lifecycle_dropped.clone());
        registry.register("lifecycle_waiting", "Clients and channels that began or ended and wait for Redis to take the event", self.lifecycle_waiting.clone());
        registry.register("publish_queue_bytes", "Bytes in the publish queues", self.publish_queue_bytes.clone());
        registry.register("publish_queue_publications", "Publications in the publish queues", self.publish_queue_publications.clone());
        registry.register_with_unit("probe", "Time from publishing a probe to seeing it", Unit::Seconds, self.probe_seconds.clone());
        registry.register_with_unit("probe_age", "Time since the last probe came back, the longest of all publish queues", Unit::Seconds, self.probe_age_seconds.clone());
        registry.register("probes_missed", "Probes that did not come back in time", self.probes_missed.clone());
        registry.register("outbox_bytes", "Bytes that wait for channel clients", self.outbox_bytes.clone());
        registry.register_with_unit("lag", "Time from publishing in a channel, by the publisher's clock, to the last socket here", Unit::Seconds, self.lag_seconds.clone());
        registry.register("hooks", "Hook requests to the application's backend, by hook and outcome", self.hooks.clone());
        registry.register("reloads", "Reloads of the configuration, by result", self.reloads.clone());
        registry.register("handoffs_sent", "Clients handed off to another node", self.handoffs.sent.clone());
        registry.register("handoffs_received", "Clients of other nodes that continue on this node", self.handoffs.received.clone());
        registry.register("handoffs_kept", "Clients that stayed on this node because a handoff was refused", self.handoffs.kept.clone());
        registry.register("handoffs_lost", "Clients disconnected because a handoff failed half-way", self.handoffs.lost.clone());
        registry.register_collector(process::Process);
    }

    /// Counts a TCP connection as open until the guard is dropped.
    pub(crate) fn connection(&self) -> Counted {
        self.connections_accepted.inc();
        Counted::new(self.connections.clone())
    }

    /// Counts a connection or request that a limit or a rule refused.
    pub(crate) fn refused(&self, reason: RefuseReason) {
        self.connections_refused
            .get_or_create(&[("reason", reason.as_str())])
            .inc();
    }

    /// Counts a client as connected over `transport` until the guard is dropped.
    pub(crate) fn client(&self, transport: Transport) -> Counted {
        Counted::new(self.clients_over(transport))
    }

    /// Counts a client as connected over `transport` until [`client_gone`](Self::client_gone).
    pub(crate) fn client_connected(&self, transport: Transport) {
        self.clients_over(transport).inc();
    }

    /// Ends what [`client_connected`](Self::client_connected) began.
    pub(crate) fn client_gone(&self, transport: Transport) {
        self.clients_over(transport).dec();
    }

    fn clients_over(&self, transport: Transport) -> Gauge {
        let label = [("transport", transport.as_str())];
        self.clients.get_or_create_owned(&label)
    }

    /// Counts a SockJS session over HTTP until the guard is dropped.
    pub(crate) fn session(&self) -> Counted {
        Counted::new(self.sessions.clone())
    }

    /// Counts messages that will not arrive.
    pub(crate) fn dropped(&self, reason: DropReason, count: u64) {
        self.dropped
            .get_or_create(&[("reason", reason.as_str())])
            .inc_by(count);
    }

    /// Counts a client that was sent away.
    pub(crate) fn disconnected(&self, disconnect: Disconnect) {
        let code = ("code", disconnect.code.to_string());
        let reason = ("reason", disconnect.name.to_owned());
        self.disconnects.get_or_create(&[code, reason]).inc();
    }

    /// Counts a connection made to the broker.
    pub(crate) fn broker_connected(&self, side: Side) {
        self.broker_connects
            .get_or_create(&[("side", side.as_str())])
            .inc();
    }

    /// Counts a connection to the broker that was lost.
    pub(crate) fn broker_lost(&self, side: Side) {
        self.broker_losses
            .get_or_create(&[("side", side.as_str())])
            .inc();
    }

    /// Notes whether the Redis at `address` is the primary.
    pub(crate) fn broker_primary(&self, address: &str, is_primary: bool) {
        self.broker_primary
            .get_or_create(&[("address", address.to_owned())])
            .set(i64::from(is_primary));
    }

    /// Counts slots that have moved to the Redis at `address`.
    pub(crate) fn broker_slots_moved(&self, address: &str, slots: u64) {
        self.broker_slots_moved
            .get_or_create(&[("address", address.to_owned())])
            .inc_by(slots);
    }

    /// Notes whether the Redis at `address`, of a cluster, delivers; `None`: it has no slots any more.
    pub(crate) fn broker_shard_ready(&self, address: &str, is_ready: Option<bool>) {
        let label = [("address", address.to_owned())];
        match is_ready {
            Some(is_ready) => {
                let gauge = self.broker_shard_ready.get_or_create(&label);
                gauge.set(i64::from(is_ready));
            }
            None => {
                self.broker_shard_ready.remove(&label);
            }
        }
    }

    /// Counts a subscriber connection that was lost to the Redis at `address`, of a cluster.
    pub(crate) fn broker_shard_lost(&self, address: &str) {
        self.broker_shard_losses
            .get_or_create(&[("address", address.to_owned())])
            .inc();
    }

    /// Counts a time after which publications over the Redis at `address`, of a cluster, may have been missed.
    pub(crate) fn broker_shard_gap(&self, address: &str) {
        self.broker_shard_gaps
            .get_or_create(&[("address", address.to_owned())])
            .inc();
    }

    /// Counts a client that came back with a position, and got everything since or was told that it cannot.
    pub(crate) fn recovered(&self, recovered: Recovered) {
        let result = match recovered {
            Recovered::Hit => "hit",
            Recovered::OverLimit => "over_limit",
            Recovered::Miss => "miss",
        };
        self.recoveries.get_or_create(&[("result", result)]).inc();
    }

    /// Notes how long a probe took to come back.
    pub(crate) fn probe_seen(&self, round_trip: std::time::Duration) {
        self.probe_seconds.observe(round_trip.as_secs_f64());
    }

    /// Notes that publications have just been written to everyone here; `published` is when they were
    /// made, in UNIX milliseconds.
    pub(crate) fn delivered(&self, published: &[i64]) {
        let Some(now) = unix_milliseconds().filter(|_| !published.is_empty()) else {
            return;
        };
        for published in published {
            // The clocks of two nodes may differ, and time may not run backwards for that.
            let lag = now.saturating_sub(*published).max(0);
            self.lag_seconds.observe(lag as f64 / 1000.0);
        }
    }

    /// Counts a question to the application's backend.
    pub(crate) fn hook(&self, hook: Hook, outcome: HookOutcome) {
        self.hooks
            .get_or_create(&[("hook", hook.as_str()), ("outcome", outcome.as_str())])
            .inc();
    }

    /// Counts a reload of the configuration.
    pub(crate) fn reloaded(&self, result: Reload) {
        self.reloads
            .get_or_create(&[("result", result.as_str())])
            .inc();
    }

    /// Everything in the OpenMetrics text format ([`CONTENT_TYPE`]).
    pub(crate) fn render(&self) -> String {
        self.registry.encode()
    }
}

/// This machine's clock; `None` before 1970.
fn unix_milliseconds() -> Option<i64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since.as_millis()).ok()
}

/// Something open that a gauge counts; dropping it takes it off again.
#[derive(Debug)]
pub(crate) struct Counted(Gauge);

impl Counted {
    fn new(gauge: Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests;
