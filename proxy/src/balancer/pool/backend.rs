//! One backend of a pool at run time: its state and its load.
//!
//! What a choice reads (rank, load) is in atomics; the state machine behind them has a lock that only probes, failed dials,
//! reloads and the admin listener take.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::balancer::idle::IdleConnections;
use crate::balancer::pool::load::{Load, RequestKind};
use crate::balancer::pool::machine::{Machine, MachineConfig};
use crate::balancer::pool::outlier::{Outlier, ResponseOutcome};
use crate::balancer::pool::pace::Pace;
use crate::balancer::pool::rank::{Priority, Rank, Tier};
use crate::balancer::pool::slots::RequestSlots;
use crate::balancer::pool::state::{
    Change, DialFailure, Evidence, HealthStatus, Override, ProbeResult, State,
};
use crate::config::BackendConfig;
use crate::config::backend::{Address, BackendId};
use crate::metrics::BackendMetrics;
use crate::net::resolver::Allowed;
use crate::tunnel::TunnelGroup;

/// A server and its run-time state.
///
/// Invariant: `rank` is [`Rank::of`] `machine`, and `health_status` has its state, outside of [`Backend::update`].
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) id: BackendId,
    pub(crate) address: Address,
    weight: AtomicU32,
    /// The weight in the configuration; an operator may have set another one.
    configured_weight: AtomicU32,
    /// For `/backends`; a choice reads `tier`.
    zone: Mutex<Option<Box<str>>>,
    /// Which addresses its name may have.
    allowed: Mutex<Allowed>,
    tier: AtomicU8,
    /// The deploy that it belongs to by the configuration or the registry; 0 if they do not say.
    configured_generation: AtomicU64,
    /// The deploy that it belongs to by itself; 0 if it does not say.
    announced_generation: AtomicU64,
    pub(crate) metrics: BackendMetrics,
    /// Idle connections to it.
    pub(crate) idle: IdleConnections,
    /// Its tunnels, in the registry.
    pub(crate) tunnels: Arc<TunnelGroup>,
    rank: AtomicU8,
    /// UNIX seconds of the last drain: cookies bound until then are no longer valid. 0 before the first.
    released_at: AtomicU64,
    /// In milliseconds.
    slow_start: AtomicU64,
    /// When it came up again, in milliseconds since the pool was created, plus one; 0 if it was never down or draining.
    back_at: AtomicU64,
    pub(super) load: Load,
    pub(super) pace: Pace,
    /// Used if `limits.requests_per_backend` is set.
    pub(crate) request_slots: RequestSlots,
    /// How many [`TunnelSlot`]s there are.
    tunnel_slots: AtomicUsize,
    outlier: Outlier,
    machine: Mutex<Machine>,
    health_status: watch::Sender<HealthStatus>,
    probe_wanted: Notify,
    /// Whether it has announced that it drains, and nobody has asked since then.
    drain_announced: AtomicBool,
    /// Since when it has had no load, and its count of responses then.
    unused: Mutex<Option<(Instant, u64)>>,
}

/// A point in time, by each of the clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) now: Instant,
    /// Since the pool was created.
    pub(super) age: Duration,
    /// UNIX time in seconds, by a monotonic clock.
    pub(super) unix: u64,
}

/// The settings of a backend.
pub(super) struct BackendSettings<'a> {
    pub(super) config: &'a BackendConfig,
    pub(super) tier: Tier,
    pub(super) machine: MachineConfig,
    pub(super) slow_start: Duration,
    pub(super) weights: Weights,
}

/// Which weight a backend has that an operator has given another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weights {
    /// That of the configuration, as after a reload.
    OfConfiguration,
    /// That of the operator.
    OfOperator,
}

/// A backend as `/backends` shows it.
#[derive(Debug)]
pub(crate) struct Status {
    pub(crate) state: State,
    /// What an operator has set.
    pub(crate) operator: Option<Override>,
    /// For how long it has been in that state.
    pub(crate) lasts: Duration,
    pub(crate) why: String,
    pub(crate) tunnels: usize,
    pub(crate) requests: usize,
    pub(crate) waiting: usize,
}

impl Backend {
    pub(super) fn new(
        pool: &str,
        settings: &BackendSettings<'_>,
        metrics: BackendMetrics,
        at: Moment,
    ) -> Self {
        let config = settings.config;
        let state = if config.maintenance {
            State::Maintenance
        } else {
            State::Unknown
        };
        metrics.state(state.name(), &State::NAMES, at.unix);
        let machine = Machine::new(state, settings.machine, at.now);
        Self {
            id: config.id.clone(),
            address: config.address.clone(),
            weight: AtomicU32::new(config.weight),
            configured_weight: AtomicU32::new(config.weight),
            zone: Mutex::new(config.zone.clone()),
            allowed: Mutex::new(config.allowed.clone()),
            tier: AtomicU8::new(settings.tier as u8),
            configured_generation: AtomicU64::new(config.generation.unwrap_or(0)),
            announced_generation: AtomicU64::new(0),
            metrics,
            idle: IdleConnections::default(),
            tunnels: TunnelGroup::new(pool, config.id.clone()),
            rank: AtomicU8::new(Rank::of(&machine) as u8),
            released_at: AtomicU64::new(0),
            slow_start: AtomicU64::new(millis(settings.slow_start)),
            back_at: AtomicU64::new(0),
            load: Load::default(),
            pace: Pace::default(),
            request_slots: RequestSlots::default(),
            tunnel_slots: AtomicUsize::new(0),
            outlier: Outlier::default(),
            machine: Mutex::new(machine),
            health_status: watch::Sender::new(HealthStatus {
                state,
                responses: 0,
            }),
            probe_wanted: Notify::new(),
            drain_announced: AtomicBool::new(false),
            unused: Mutex::new(None),
        }
    }

    pub(super) fn rank(&self) -> Rank {
        Rank::ALL[usize::from(self.rank.load(Ordering::Relaxed))]
    }

    /// Its share of new clients.
    pub(crate) fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed)
    }

    /// Its zone.
    pub(crate) fn zone(&self) -> Option<Box<str>> {
        self.zone.lock().clone()
    }

    /// Which addresses its name may have, if its address is a name.
    pub(crate) fn allowed(&self) -> Allowed {
        self.allowed.lock().clone()
    }

    /// Its tier for this edge.
    pub(crate) fn tier(&self) -> Tier {
        Tier::ALL[usize::from(self.tier.load(Ordering::Relaxed))]
    }

    /// The deploy that it belongs to: by the configuration, else by what it says itself.
    pub(crate) fn generation(&self) -> Option<u64> {
        Some(self.generation_or_0()).filter(|generation| *generation != 0)
    }

    /// The same, as a choice compares it: 0 is older than any.
    pub(super) fn generation_or_0(&self) -> u64 {
        match self.configured_generation.load(Ordering::Relaxed) {
            0 => self.announced_generation.load(Ordering::Relaxed),
            generation => generation,
        }
    }

    /// What its response to a probe says about its deploy: a process that has restarted may belong to another one.
    pub(crate) fn announce_generation(&self, generation: Option<u64>) {
        let generation = generation.unwrap_or(0);
        self.announced_generation
            .store(generation, Ordering::Relaxed);
    }

    /// Whether it was removed from the configuration.
    pub(crate) fn is_removed(&self) -> bool {
        self.rank() == Rank::Removed
    }

    /// Whether it has had no load and no responses for `time`, as observed by calls of this function.
    pub(super) fn is_unused_for(&self, time: Duration, now: Instant) -> bool {
        let load = self.load.count();
        let responses = self.metrics.responses_total();
        let mut unused = self.unused.lock();
        match &*unused {
            Some((since, before)) if load == 0 && *before == responses => {
                time <= now.saturating_duration_since(*since)
            }
            _ => {
                *unused = (load == 0).then_some((now, responses));
                false
            }
        }
    }

    /// Applies new settings. Its address is the same: at another address it is another backend.
    pub(super) fn configure(&self, settings: &BackendSettings<'_>, at: Moment) -> Option<Change> {
        let config = settings.config;
        debug_assert!(config.id == self.id && config.address == self.address);
        if settings.weights == Weights::OfConfiguration || !self.has_operator_weight() {
            self.weight.store(config.weight, Ordering::Relaxed);
        }
        self.configured_weight
            .store(config.weight, Ordering::Relaxed);
        self.show_overrides();
        self.tier.store(settings.tier as u8, Ordering::Relaxed);
        self.configured_generation
            .store(config.generation.unwrap_or(0), Ordering::Relaxed);
        self.zone.lock().clone_from(&config.zone);
        self.allowed.lock().clone_from(&config.allowed);
        let slow_start = millis(settings.slow_start);
        self.slow_start.store(slow_start, Ordering::Relaxed);
        self.update(at, 0, |state| {
            state.configure(settings.machine, config.maintenance, at.now)
        })
    }

    /// Sets what an operator wants, or lifts it. A drain invalidates the cookies of its clients.
    pub(super) fn set_override(&self, operator: Option<Override>, at: Moment) -> Option<Change> {
        let change = self.update(at, 0, |machine| machine.set_override(operator, at.now));
        if operator == Some(Override::Drain) {
            self.released_at.store(at.unix, Ordering::Relaxed);
        }
        if let Some(change) = &change
            && (change.from, change.to) == (State::Draining, State::Up)
        {
            self.begin_slow_start(at);
        }
        self.show_overrides();
        self.probe_wanted.notify_one();
        change
    }

    /// Sets the weight that an operator wants, until the next reload.
    pub(super) fn set_weight(&self, weight: u32) {
        self.weight.store(weight, Ordering::Relaxed);
        self.show_overrides();
    }

    /// The weight in the configuration.
    pub(crate) fn configured_weight(&self) -> u32 {
        self.configured_weight.load(Ordering::Relaxed)
    }

    fn has_operator_weight(&self) -> bool {
        self.weight() != self.configured_weight()
    }

    /// Shows in the metrics what an operator has set.
    fn show_overrides(&self) {
        let operator = self.machine.lock().operator();
        for each in Override::ALL {
            self.metrics.overridden(each.name(), operator == Some(each));
        }
        self.metrics
            .overridden("weight", self.has_operator_weight());
    }

    /// Whether its clients stay with it, and others may go to it.
    pub(crate) fn keeps_clients(&self) -> bool {
        self.rank().keeps_clients()
    }

    /// Whether it is probed: not if the configuration takes it out of service.
    pub(crate) fn is_probed(&self) -> bool {
        self.machine.lock().is_probed()
    }

    /// Whether it has announced that it drains since the last call.
    pub(crate) fn take_drain_announcement(&self) -> bool {
        self.drain_announced.swap(false, Ordering::AcqRel)
    }

    /// Invalidates the cookies that its clients have by now, because some of them are moved to other backends.
    pub(super) fn release_clients(&self, at: Moment) {
        self.released_at.store(at.unix, Ordering::Relaxed);
    }

    /// Drains it for good: it gets no requests any more, except for its known sessions.
    pub(super) fn remove(&self, at: Moment) -> Option<Change> {
        self.update(at, 0, |machine| machine.remove(at.now))
    }

    /// Its state. Takes no lock.
    pub(crate) fn state(&self) -> State {
        self.rank().state()
    }

    /// Its health status, which is updated at least at each change of state and each response to a probe.
    pub(crate) fn health_status(&self) -> watch::Receiver<HealthStatus> {
        self.health_status.subscribe()
    }

    /// Whether it is down, and has not responded to its last probe.
    pub(crate) fn is_unresponsive(&self) -> bool {
        matches!(self.rank(), Rank::Down | Rank::Lost)
    }

    /// Returns when the backend becomes unresponsive: then pending responses are unlikely. Never returns if it already was.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: it only reads the state.
    pub(crate) async fn unresponsive(&self) {
        let mut health_status = self.health_status();
        if self.is_unresponsive() {
            // It was chosen because no better one was left.
            return std::future::pending().await;
        }
        // The sender lives as long as `self`.
        while !self.is_unresponsive() && health_status.changed().await.is_ok() {}
    }

    pub(super) fn released_at(&self) -> u64 {
        self.released_at.load(Ordering::Relaxed)
    }

    /// Its priority for new clients; `None` if it gets none.
    pub(super) fn priority(&self) -> Option<Priority> {
        Priority::of(self.rank(), self.tier())
    }

    /// Its weight in thousandths, `age` after the pool was created: a tenth when it comes up again, all of it after
    /// `health.slow_start`.
    pub(super) fn weight_at(&self, age: Duration) -> u64 {
        let full = u64::from(self.weight()) * 1000;
        let Some(back_at) = self.back_at.load(Ordering::Relaxed).checked_sub(1) else {
            return full;
        };
        let (back_for, all) = (
            millis(age).saturating_sub(back_at),
            self.slow_start.load(Ordering::Relaxed),
        );
        if all <= back_for {
            return full;
        }
        u64::from(self.weight()) * (100 + 900 * back_for / all)
    }

    /// Reserves a slot for a tunnel, if fewer than `tunnels_max` are taken.
    pub(crate) fn reserve_tunnel(self: &Arc<Self>, tunnels_max: u32) -> Option<TunnelSlot> {
        // Created before the check: its drop releases it again.
        let slot = TunnelSlot(Arc::clone(self));
        let before = self.tunnel_slots.fetch_add(1, Ordering::Relaxed);
        usize::try_from(tunnels_max)
            .is_ok_and(|tunnels_max| before < tunnels_max)
            .then_some(slot)
    }

    /// Counts a tunnel for as long as the guard lives.
    pub(crate) fn open_tunnel(self: &Arc<Self>) -> TunnelCount {
        self.load.tunnels.fetch_add(1, Ordering::Relaxed);
        self.metrics.tunnel_opened();
        TunnelCount(Arc::clone(self))
    }

    /// Counts a request in flight for as long as the guard lives.
    pub(crate) fn start_request(self: &Arc<Self>, kind: RequestKind) -> RequestCount {
        self.load.in_flight(kind).fetch_add(1, Ordering::Relaxed);
        self.metrics.request_started();
        RequestCount(Arc::clone(self), kind)
    }

    /// Counts a request that is parked until the backend is reachable, for as long as the guard lives.
    pub(crate) fn start_waiting(self: &Arc<Self>) -> WaitCount {
        self.load.waiting.fetch_add(1, Ordering::Relaxed);
        self.metrics.wait_started();
        WaitCount(Arc::clone(self))
    }

    /// Returns when the evidence of requests asks for a probe at once.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: the next call returns at once if a probe was requested meanwhile.
    pub(crate) async fn probe_wanted(&self) {
        self.probe_wanted.notified().await;
    }

    /// When [`Pool::tick`](crate::balancer::pool::Pool::tick) is due for it; `None` without a grace period.
    pub(crate) fn grace_end(&self) -> Option<Instant> {
        self.machine.lock().grace_end()
    }

    /// Whether it has responded to probes, well or not, and is not known to be unreachable.
    pub(super) fn is_present(&self) -> bool {
        match self.rank() {
            Rank::Up | Rank::Responding => true,
            Rank::Suspect => self.machine.lock().has_passed(),
            _ => false,
        }
    }

    /// Evaluates the result of a probe.
    pub(super) fn probed(&self, result: ProbeResult, at: Moment) -> Option<Change> {
        self.metrics.probed(match result {
            ProbeResult::Good => "good",
            ProbeResult::Draining => "draining",
            ProbeResult::UnexpectedResponse(_) => "bad_response",
            ProbeResult::Unreachable(_) => "unreachable",
            ProbeResult::NoResponse(_) => "no_response",
        });
        let responses = u64::from(result.is_response());
        let change = self.update(at, responses, |machine| machine.probe(result, at.now))?;
        self.release_if_draining(&change, at);
        if let (State::Down | State::Draining, State::Up) = (change.from, change.to) {
            self.begin_slow_start(at);
        }
        Some(change)
    }

    /// Begins a slow start: it has lost its clients, and its caches may be cold.
    fn begin_slow_start(&self, at: Moment) {
        let back_at = millis(at.age).saturating_add(1);
        self.back_at.store(back_at, Ordering::Relaxed);
    }

    /// Ends its grace period, if that has expired.
    pub(super) fn tick(&self, at: Moment) -> Option<Change> {
        self.update(at, 0, |machine| machine.tick(at.now))
    }

    /// Evaluates the evidence of a request.
    ///
    /// Only a failed dial changes the state. Too many bad responses request a probe and do no more: a client could provoke them.
    pub(super) fn evidence(&self, evidence: Evidence, at: Moment) -> Option<Change> {
        let bad = match evidence {
            Evidence::ConnectRefused => {
                self.metrics.connect_failed("refused");
                return self.dial_failed(DialFailure::Refused, at);
            }
            Evidence::ConnectTimeout => {
                self.metrics.connect_failed("timeout");
                return self.dial_failed(DialFailure::TimedOut, at);
            }
            Evidence::TlsFailed => {
                self.metrics.connect_failed("tls");
                return self.dial_failed(DialFailure::TlsFailed, at);
            }
            Evidence::Responded(status) => {
                self.metrics.responded(status);
                matches!(status.as_u16(), 502..=504)
            }
            Evidence::UpgradeRejected(status) => {
                self.metrics.responded(status);
                status.is_server_error()
            }
            Evidence::ConnectionLost | Evidence::TimedOut => true,
            Evidence::Stopping => return self.announced_stop(at),
        };
        let response = if bad {
            ResponseOutcome::Bad
        } else {
            ResponseOutcome::Good
        };
        if self.outlier.count(response, at.age) {
            self.probe_wanted.notify_one();
        }
        None
    }

    fn dial_failed(&self, dial: DialFailure, at: Moment) -> Option<Change> {
        let change = self.update(at, 0, |machine| machine.dial_failed(dial, at.now))?;
        self.release_if_draining(&change, at);
        self.probe_wanted.notify_one();
        Some(change)
    }

    /// Handles an announcement that it is stopping: requests a probe. If it is unreachable already, it drains at once.
    fn announced_stop(&self, at: Moment) -> Option<Change> {
        let change = self.update(at, 0, |machine| machine.announced_stop(at.now));
        match &change {
            Some(change) => self.release_if_draining(change, at),
            None if self.state() == State::Draining => {}
            None => self.probe_wanted.notify_one(),
        }
        change
    }

    /// Invalidates the cookies of its clients once it has announced that it drains.
    fn release_if_draining(&self, change: &Change, at: Moment) {
        if change.to == State::Draining {
            self.released_at.store(at.unix, Ordering::Relaxed);
            self.drain_announced.store(true, Ordering::Release);
        }
    }

    fn update(
        &self,
        at: Moment,
        responses: u64,
        step: impl FnOnce(&mut Machine) -> Option<Change>,
    ) -> Option<Change> {
        let mut machine = self.machine.lock();
        let grace_end = machine.grace_end();
        let change = step(&mut machine);
        let rank = Rank::of(&machine) as u8;
        let rank_changed = self.rank.swap(rank, Ordering::Relaxed) != rank;
        if let Some(change) = &change {
            self.metrics.state(change.to.name(), &State::NAMES, at.unix);
            self.metrics.state_changed(change.to.name());
        }
        if change.is_some() || rank_changed || 0 < responses || machine.grace_end() != grace_end {
            self.health_status.send_modify(|health_status| {
                health_status.state = machine.state();
                health_status.responses += responses;
            });
        }
        change
    }

    pub(crate) fn status(&self, now: Instant) -> Status {
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        let machine = self.machine.lock();
        Status {
            state: machine.state(),
            operator: machine.operator(),
            lasts: now.saturating_duration_since(machine.since()),
            why: machine.why().to_owned(),
            tunnels: count(&self.load.tunnels),
            requests: count(&self.load.requests) + count(&self.load.upgrades),
            waiting: count(&self.load.waiting),
        }
    }

    /// How many tunnels are open to it.
    pub(crate) fn tunnels_open(&self) -> usize {
        self.load.tunnels.load(Ordering::Relaxed)
    }
}

/// A slot of a backend for one tunnel, open or requested.
#[derive(Debug)]
pub(crate) struct TunnelSlot(Arc<Backend>);

impl Drop for TunnelSlot {
    fn drop(&mut self) {
        self.0.tunnel_slots.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One open tunnel to a backend.
#[derive(Debug)]
pub(crate) struct TunnelCount(Arc<Backend>);

impl TunnelCount {
    pub(crate) fn backend(&self) -> &Arc<Backend> {
        &self.0
    }
}

impl Drop for TunnelCount {
    fn drop(&mut self) {
        self.0.load.tunnels.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.tunnel_gone();
    }
}

/// One request in flight at a backend.
#[derive(Debug)]
pub(crate) struct RequestCount(Arc<Backend>, RequestKind);

impl Drop for RequestCount {
    fn drop(&mut self) {
        let count = self.0.load.in_flight(self.1);
        count.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.request_ended();
    }
}

/// One request that is parked for a backend.
#[derive(Debug)]
pub(crate) struct WaitCount(Arc<Backend>);

impl WaitCount {
    pub(crate) fn backend(&self) -> &Arc<Backend> {
        &self.0
    }
}

impl Drop for WaitCount {
    fn drop(&mut self) {
        self.0.load.waiting.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.wait_ended();
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
