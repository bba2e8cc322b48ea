//! One backend of a pool at run time: its state and what it carries.
//!
//! What choosing reads (rank, load) is in atomics; the state machine behind them has a lock that only
//! probes, failed dials and operators take.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::backend::{Address, BackendId};
use crate::config::BackendConfig;
use crate::metrics::BackendMetrics;
use crate::pool::machine::{Machine, MachineConfig};
use crate::pool::outlier::{Answer, Outlier};
use crate::pool::state::{Change, Evidence, FailedDial, ProbeResult, State, Verdict};

/// A server, with all that is known about it.
///
/// Invariant: `rank` is what [`rank_of`] says of `machine`, and `verdict` has its state, outside of [`Backend::update`].
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) id: BackendId,
    pub(crate) address: Address,
    pub(crate) weight: u32,
    pub(crate) metrics: BackendMetrics,
    rank: AtomicU8,
    /// UNIX seconds of the last drain: cookies bound until then do not hold any more. 0 before the first.
    released_at: AtomicU64,
    tunnels: AtomicUsize,
    requests: AtomicUsize,
    waiting: AtomicUsize,
    bindings: RecentBindings,
    outlier: Outlier,
    machine: Mutex<Machine>,
    verdict: watch::Sender<Verdict>,
    probe_wanted: Notify,
}

/// How gladly a backend is chosen: the first that occurs in a pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Rank {
    Up,
    Unknown,
    Suspect,
    /// Down, but it answers.
    Answering,
    Down,
    Draining,
    Maintenance,
}

impl Rank {
    pub(super) const ALL: [Self; 7] = [
        Self::Up,
        Self::Unknown,
        Self::Suspect,
        Self::Answering,
        Self::Down,
        Self::Draining,
        Self::Maintenance,
    ];

    /// Whether known clients stay.
    pub(super) fn keeps_clients(self) -> bool {
        self <= Self::Suspect
    }

    /// Whether new clients may come, if there is nothing better.
    pub(super) fn takes_clients(self) -> bool {
        self <= Self::Down
    }

    fn state(self) -> State {
        match self {
            Self::Up => State::Up,
            Self::Unknown => State::Unknown,
            Self::Suspect => State::Suspect,
            Self::Answering | Self::Down => State::Down,
            Self::Draining => State::Draining,
            Self::Maintenance => State::Maintenance,
        }
    }
}

fn rank_of(machine: &Machine) -> Rank {
    match machine.state() {
        State::Up => Rank::Up,
        State::Unknown => Rank::Unknown,
        State::Suspect => Rank::Suspect,
        State::Down if machine.answers() => Rank::Answering,
        State::Down => Rank::Down,
        State::Draining => Rank::Draining,
        State::Maintenance => Rank::Maintenance,
    }
}

/// A backend as `/backends` shows it.
#[derive(Debug)]
pub(crate) struct Status {
    pub(crate) state: State,
    /// For how long it has been in that state.
    pub(crate) since: Duration,
    pub(crate) why: String,
    pub(crate) tunnels: usize,
    pub(crate) requests: usize,
    pub(crate) waiting: usize,
}

impl Backend {
    pub(super) fn new(
        config: &BackendConfig,
        machine: MachineConfig,
        metrics: BackendMetrics,
        now: Instant,
    ) -> Self {
        let state = match config.maintenance {
            true => State::Maintenance,
            false => State::Unknown,
        };
        metrics.state(state.name(), &State::NAMES);
        let machine = Machine::new(state, machine, now);
        Self {
            id: config.id.clone(),
            address: config.address.clone(),
            weight: config.weight,
            metrics,
            rank: AtomicU8::new(rank_of(&machine) as u8),
            released_at: AtomicU64::new(0),
            tunnels: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            bindings: RecentBindings::default(),
            outlier: Outlier::default(),
            machine: Mutex::new(machine),
            verdict: watch::Sender::new(Verdict { state, answers: 0 }),
            probe_wanted: Notify::new(),
        }
    }

    pub(super) fn rank(&self) -> Rank {
        Rank::ALL[usize::from(self.rank.load(Ordering::Relaxed))]
    }

    /// Takes no lock.
    pub(crate) fn state(&self) -> State {
        self.rank().state()
    }

    /// Follows what is known about it: woken at each change of state and at each probe that is answered, if not more often.
    pub(crate) fn verdict(&self) -> watch::Receiver<Verdict> {
        self.verdict.subscribe()
    }

    pub(super) fn released_at(&self) -> u64 {
        self.released_at.load(Ordering::Relaxed)
    }

    /// What it carries, `age` after the pool was made: tunnels, requests in flight, recent bindings.
    pub(super) fn load(&self, age: Duration) -> u64 {
        let carried = self.tunnels.load(Ordering::Relaxed) + self.requests.load(Ordering::Relaxed);
        carried as u64 + self.bindings.count(age)
    }

    /// Notes that a new client was sent here.
    pub(super) fn bind(&self, age: Duration) {
        self.bindings.add(age);
    }

    /// Counts a tunnel for as long as the guard lives.
    pub(crate) fn open_tunnel(self: &Arc<Self>) -> TunnelCount {
        self.tunnels.fetch_add(1, Ordering::Relaxed);
        self.metrics.tunnel_opened();
        TunnelCount(Arc::clone(self))
    }

    /// Counts a request in flight for as long as the guard lives.
    pub(crate) fn start_request(self: &Arc<Self>) -> RequestCount {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.metrics.request_started();
        RequestCount(Arc::clone(self))
    }

    /// Counts a request that waits for the backend to come back, for as long as the guard lives.
    pub(crate) fn start_waiting(self: &Arc<Self>) -> WaitCount {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.metrics.wait_started();
        WaitCount(Arc::clone(self))
    }

    /// Returns when requests have found something that a probe is to look into now.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing: the next call returns at once if it happened in between.
    pub(crate) async fn probe_wanted(&self) {
        self.probe_wanted.notified().await;
    }

    /// When [`Pool::tick`](crate::pool::Pool::tick) is due for it; `None` if no grace runs.
    pub(crate) fn grace_end(&self) -> Option<Instant> {
        self.machine.lock().grace_end()
    }

    /// Whether it is known to serve, well or not, and not known to be gone.
    pub(super) fn is_there(&self) -> bool {
        match self.rank() {
            Rank::Up | Rank::Answering => true,
            Rank::Suspect => self.machine.lock().has_passed(),
            _ => false,
        }
    }

    /// Takes in what a probe found; `unix` is the time for cookies.
    pub(super) fn probed(&self, result: ProbeResult, now: Instant, unix: u64) -> Option<Change> {
        self.metrics.probed(match result {
            ProbeResult::Good => "good",
            ProbeResult::Draining => "draining",
            ProbeResult::BadAnswer(_) => "bad_answer",
            ProbeResult::Unreachable(_) => "unreachable",
            ProbeResult::NoAnswer(_) => "no_answer",
        });
        let answers = u64::from(result.is_answer());
        let change = self.update(|machine| machine.probe(result, now), answers)?;
        if change.to == State::Draining {
            self.released_at.store(unix, Ordering::Relaxed);
        }
        Some(change)
    }

    /// Ends its grace, if that is over.
    pub(super) fn tick(&self, now: Instant) -> Option<Change> {
        self.update(|machine| machine.tick(now), 0)
    }

    /// Takes in what a request found out, `age` after the pool was made.
    ///
    /// Only a failed dial moves the state. Bad answers, if there are too many, ask for a probe: a client could choose what it
    /// asks for so that they are bad.
    pub(super) fn evidence(
        &self,
        evidence: Evidence,
        age: Duration,
        now: Instant,
    ) -> Option<Change> {
        let bad = match evidence {
            Evidence::ConnectRefused => {
                self.metrics.connect_failed("refused");
                return self.dial_failed(FailedDial::Refused, now);
            }
            Evidence::ConnectTimeout => {
                self.metrics.connect_failed("timeout");
                return self.dial_failed(FailedDial::TimedOut, now);
            }
            Evidence::Answered(status) => {
                self.metrics.answered(status);
                matches!(status.as_u16(), 502..=504)
            }
            Evidence::UpgradeRefused(status) => {
                self.metrics.answered(status);
                status.is_server_error()
            }
            Evidence::Died | Evidence::TimedOut => true,
        };
        let answer = match bad {
            true => Answer::Bad,
            false => Answer::Good,
        };
        if self.outlier.count(answer, age) {
            self.probe_wanted.notify_one();
        }
        None
    }

    fn dial_failed(&self, dial: FailedDial, now: Instant) -> Option<Change> {
        let change = self.update(|machine| machine.dial_failed(dial, now), 0)?;
        self.probe_wanted.notify_one();
        Some(change)
    }

    fn update(
        &self,
        step: impl FnOnce(&mut Machine) -> Option<Change>,
        answers: u64,
    ) -> Option<Change> {
        let mut machine = self.machine.lock();
        let grace_end = machine.grace_end();
        let change = step(&mut machine);
        self.rank.store(rank_of(&machine) as u8, Ordering::Relaxed);
        if let Some(change) = &change {
            self.metrics.state(change.to.name(), &State::NAMES);
        }
        if change.is_some() || 0 < answers || machine.grace_end() != grace_end {
            self.verdict.send_modify(|verdict| {
                verdict.state = machine.state();
                verdict.answers += answers;
            });
        }
        change
    }

    pub(crate) fn status(&self, now: Instant) -> Status {
        let machine = self.machine.lock();
        Status {
            state: machine.state(),
            since: now.saturating_duration_since(machine.since()),
            why: machine.why().to_owned(),
            tunnels: self.tunnels.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            waiting: self.waiting.load(Ordering::Relaxed),
        }
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
        self.0.tunnels.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.tunnel_gone();
    }
}

/// One request that a backend has not answered to the end.
#[derive(Debug)]
pub(crate) struct RequestCount(Arc<Backend>);

impl Drop for RequestCount {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.request_ended();
    }
}

/// One request that waits for a backend to come back.
#[derive(Debug)]
pub(crate) struct WaitCount(Arc<Backend>);

impl WaitCount {
    pub(crate) fn backend(&self) -> &Arc<Backend> {
        &self.0
    }
}

impl Drop for WaitCount {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.wait_ended();
    }
}

/// How many clients were bound lately: a burst spreads before the first of its tunnels is open.
///
/// The number of the current window in the upper half, then its bindings, then those of the one before.
#[derive(Debug, Default)]
struct RecentBindings(AtomicU64);

impl RecentBindings {
    const WINDOW: Duration = Duration::from_secs(5);

    fn add(&self, age: Duration) {
        let number = Self::number(age);
        let add = |word: u64| {
            let (current, before) = Self::at(word, number);
            Some(number << 32 | u64::from(current.saturating_add(1)) << 16 | u64::from(before))
        };
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
            .ok();
    }

    fn count(&self, age: Duration) -> u64 {
        let (current, before) = Self::at(self.0.load(Ordering::Relaxed), Self::number(age));
        u64::from(current) + u64::from(before)
    }

    /// The bindings of window `number` and of the one before it.
    fn at(word: u64, number: u64) -> (u16, u16) {
        match number.wrapping_sub(word >> 32) {
            0 => ((word >> 16) as u16, word as u16),
            1 => (0, (word >> 16) as u16),
            _ => (0, 0),
        }
    }

    fn number(age: Duration) -> u64 {
        (age.as_secs() / Self::WINDOW.as_secs()) & u64::from(u32::MAX)
    }
}
