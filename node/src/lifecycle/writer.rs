//! Writes this node's steps into the log, and ends the entries of killed nodes.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::watch;
use tokio::time;
use tokio::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tracing::info;
use tracing::warn;

use super::journal::Full;
use super::journal::Journal;
use super::journal::Key;
use super::journal::Step;
use super::journal::Subject;
use super::memory::MemoryLog;
use super::store::Entered;
use super::store::Holding;
use super::store::RedisLog;
use crate::cluster::registry::Lease;
use crate::logging::Throttle;
use crate::metrics::Metrics;
use crate::protocol::instance::Instance;
use crate::redis::Backoff;
use crate::redis::CommandError;

/// The most steps in one call of the script: about a millisecond of Redis's time.
const BATCH_STEPS: usize = 100;

/// How often a node renews its holder and checks for holders without a lease.
const INSPECTION_INTERVAL: Duration = Duration::from_secs(1);

/// How often to check for ends that are due.
const TEND_INTERVAL: Duration = Duration::from_millis(250);

/// How long a lease has to be missing before its holder is fenced: a node that takes another lease registers it within this time.
const GONE_FOR: Duration = Duration::from_secs(2);

/// The longest pause before a retry.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// How long Redis may accept no steps before clients that connect no longer wait for their event. A node that was suspended, or
/// whose Redis was replaced, writes again within a lease.
const FAILING_FOR: Duration = Duration::from_secs(10);

/// How long a stopping node may take to write its last steps.
const FINISH_WITHIN: Duration = Duration::from_secs(2);

/// The queue of steps, for the rest of the node.
pub(super) enum Writer {
    Memory(Arc<MemoryLog>),
    Redis(Arc<Shared>),
}

/// The queue, shared with the task.
pub(super) struct Shared {
    journal: Mutex<Journal>,
    /// There are new steps.
    changed: Notify,
    /// How many steps are in the log.
    entered: watch::Sender<u64>,
    /// While Redis takes no steps: until when clients that connect wait for their event.
    waits_until: Mutex<Option<Instant>>,
    metrics: Arc<Metrics>,
    drops: Throttle,
}

/// What a writer for Redis is built from.
pub(super) struct Parts {
    pub(super) log: Arc<RedisLog>,
    /// This node's.
    pub(super) lease: watch::Receiver<Option<Lease>>,
    pub(super) instance: Instance,
    pub(super) metrics: Arc<Metrics>,
}

/// The task of a writer for Redis.
pub(super) struct Work {
    shared: Arc<Shared>,
    parts: Parts,
    holding: Option<Holding>,
    /// The last holder, which was fenced.
    previous: Option<String>,
    /// Counts this node's holders.
    number: u32,
    /// Holders without a lease, and since when.
    suspects: HashMap<Holding, Instant>,
    failures: Throttle,
}

impl Writer {
    pub(super) fn in_redis(parts: Parts) -> (Self, Work) {
        let shared = Arc::new(Shared {
            journal: Mutex::default(),
            changed: Notify::new(),
            entered: watch::Sender::new(0),
            waits_until: Mutex::default(),
            metrics: Arc::clone(&parts.metrics),
            drops: Throttle::default(),
        });
        let work = Work {
            shared: Arc::clone(&shared),
            parts,
            holding: None,
            previous: None,
            number: 1,
            suspects: HashMap::new(),
            failures: Throttle::default(),
        };
        (Self::Redis(shared), work)
    }

    /// Adds a begin. Returns the position after this step, for [`entered`](Self::entered).
    pub(super) fn begin(&self, key: Key, subject: Subject) -> u64 {
        match self {
            Self::Memory(log) => {
                let begins = Some(subject);
                log.enter(Step { key, begins });
                0
            }
            Self::Redis(shared) => {
                let begun = shared.journal.lock().begin(key, subject);
                shared.changed.notify_one();
                begun.unwrap_or_else(|Full| shared.dropped())
            }
        }
    }

    pub(super) fn end(&self, key: &Key) {
        match self {
            Self::Memory(log) => {
                let key = key.clone();
                log.enter(Step { key, begins: None });
            }
            Self::Redis(shared) => {
                shared.journal.lock().end(key);
                shared.changed.notify_one();
            }
        }
    }

    /// Whether a step of this subject is not in the log yet.
    pub(super) fn is_waiting(&self, key: &Key) -> bool {
        match self {
            Self::Memory(_) => false,
            Self::Redis(shared) => shared.journal.lock().is_waiting(key),
        }
    }

    /// The position after all steps so far.
    pub(super) fn position(&self) -> u64 {
        match self {
            Self::Memory(_) => 0,
            Self::Redis(shared) => {
                let journal = shared.journal.lock();
                journal.entered() + journal.len() as u64
            }
        }
    }

    /// Waits until all steps before `position` are in the log, unless Redis rejects steps, or has taken none for [`FAILING_FOR`].
    pub(super) async fn entered(&self, position: u64) {
        if let Self::Redis(shared) = self {
            let mut entered = shared.entered.subscribe();
            let is_over = |entered: &u64| position <= *entered || shared.waits_no_longer();
            // The sender is our own.
            let _ = entered.wait_for(is_over).await;
        }
    }
}

impl Shared {
    /// Notes that Redis does not take steps now.
    fn failed(&self) {
        let mut waits_until = self.waits_until.lock();
        waits_until.get_or_insert_with(|| Instant::now() + FAILING_FOR);
    }

    /// Notes that Redis rejects steps, which may last: nothing waits for it.
    fn rejected(&self) {
        *self.waits_until.lock() = Some(Instant::now());
        self.entered.send_modify(|_| {}); // Waiting clients check again.
    }

    /// Whether clients that connect wait for their event no longer: Redis rejects steps, or has failed for [`FAILING_FOR`].
    fn waits_no_longer(&self) -> bool {
        let waits_until = *self.waits_until.lock();
        waits_until.is_some_and(|until| until <= Instant::now())
    }

    fn dropped(&self) -> u64 {
        self.metrics.lifecycle_dropped.inc();
        if let Some(held_back) = self.drops.admit(std::time::Instant::now()) {
            warn!(
                held_back,
                "too many lifecycle events are waiting for redis: no events for a client or channel"
            );
        }
        0
    }
}

impl Work {
    /// Runs until `shutdown`, then writes what is left.
    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        let log = Arc::clone(&self.parts.log);
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            () = self.write() => {}
            () = tend(&log) => {}
        }
        if time::timeout(FINISH_WITHIN, self.finish()).await.is_err() {
            warn!(
                "cannot write the last lifecycle events, another node will end this node's entries"
            );
        }
    }

    /// Writes the last steps and removes the holder, so that other nodes need not fence it.
    async fn finish(&self) {
        let Some(holding) = &self.holding else { return };
        loop {
            match self.enter_batch(holding).await {
                Ok(Entered::Fenced) => return,
                Ok(Entered::Yes) if self.shared.journal.lock().len() == 0 => break,
                Ok(Entered::Yes) => {}
                Err(_) => time::sleep(Duration::from_millis(50)).await,
            }
        }
        while self.parts.log.fence(holding).await.is_err() {
            time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Writes steps and keeps this node's holder registered, without end.
    async fn write(&mut self) {
        let mut backoff = Backoff::new(BACKOFF_MAX);
        let mut inspections = time::interval(INSPECTION_INTERVAL);
        inspections.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            match self.write_some().await {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    self.warn_of(&error);
                    time::sleep(backoff.next(fastrand::f64())).await;
                    continue;
                }
            }
            if self.holding.is_some() && 0 < self.shared.journal.lock().len() {
                continue;
            }
            tokio::select! {
                () = self.shared.changed.notified() => {}
                _ = self.parts.lease.changed() => {}
                _ = inspections.tick() => {
                    if let Err(error) = self.inspect().await {
                        self.warn_of(&error);
                    }
                }
            }
        }
    }

    async fn write_some(&mut self) -> Result<(), CommandError> {
        let lease = *self.parts.lease.borrow_and_update();
        let Some(lease) = lease else {
            self.shared.failed(); // There is no lease yet, or no longer.
            return Ok(());
        };
        self.hold(lease.to_string()).await?;
        if let Some(holding) = &self.holding
            && self.enter_batch(holding).await? == Entered::Fenced
        {
            self.begin_anew();
        }
        Ok(())
    }

    /// Sets `lease` as that of this node's holder.
    async fn hold(&mut self, lease: String) -> Result<(), CommandError> {
        match &self.holding {
            None => self.register(lease).await,
            Some(holding) if holding.lease == lease => Ok(()),
            Some(holding) => {
                let holder = holding.holder.clone();
                self.renew(Holding { holder, lease }).await
            }
        }
    }

    /// Registers a holder, once the one before it is ended.
    async fn register(&mut self, lease: String) -> Result<(), CommandError> {
        let holder = format!("{}.{}", self.parts.instance, self.number);
        let holding = Holding { holder, lease };
        let log = &self.parts.log;
        let known = self.shared.journal.lock().entered();
        let entered = loop {
            match log
                .register(&holding, self.previous.as_deref(), known)
                .await?
            {
                Some(entered) => break entered,
                None => drop(log.tend().await?),
            }
        };
        self.advance(entered);
        if self.previous.take().is_some() {
            self.shared.journal.lock().begin_anew();
        }
        self.holding = Some(holding);
        Ok(())
    }

    async fn renew(&mut self, holding: Holding) -> Result<(), CommandError> {
        let entered = self.shared.journal.lock().entered();
        match self.parts.log.renew(&holding, entered).await? {
            Entered::Yes => self.holding = Some(holding),
            Entered::Fenced => self.begin_anew(),
        }
        Ok(())
    }

    async fn enter_batch(&self, holding: &Holding) -> Result<Entered, CommandError> {
        let (position, batch) = self.shared.journal.lock().next_batch(BATCH_STEPS);
        if batch.is_empty() {
            return Ok(Entered::Yes);
        }
        let entered = self.parts.log.enter(&holding.holder, position, &batch);
        let entered = entered.await?;
        if entered == Entered::Yes {
            self.advance(position + batch.len() as u64);
        }
        Ok(entered)
    }

    fn advance(&self, position: u64) {
        let waiting = {
            let mut journal = self.shared.journal.lock();
            journal.advance(position);
            journal.len()
        };
        self.shared.metrics.lifecycle_waiting.set(waiting as i64);
        *self.shared.waits_until.lock() = None;
        self.shared.entered.send_replace(position);
    }

    /// This node's holder is fenced: its live subjects have to begin again, with the next holder.
    fn begin_anew(&mut self) {
        if let Some(holding) = self.holding.take() {
            warn!(
                holder = holding.holder,
                "another node ended this node's lifecycle entries as dead, or redis lost them: they are registered again"
            );
            self.previous = Some(holding.holder);
            self.number += 1;
        }
    }

    /// Checks that this node's holder is still registered, and fences holders of dead nodes.
    async fn inspect(&mut self) -> Result<(), CommandError> {
        let Some(holding) = self.holding.clone() else {
            return Ok(());
        };
        let lease = holding.lease.clone();
        self.renew(holding).await?;
        let now = Instant::now();
        let gone = self.parts.log.without_lease(&lease).await?;
        self.suspects.retain(|holding, _| gone.contains(holding));
        for holding in gone {
            let since = *self.suspects.entry(holding.clone()).or_insert(now);
            if GONE_FOR <= now - since {
                self.parts.log.fence(&holding).await?;
                info!(
                    holder = holding.holder,
                    "a node is dead, ending its clients and channels"
                );
                self.suspects.remove(&holding);
            }
        }
        Ok(())
    }

    fn warn_of(&self, error: &CommandError) {
        match error {
            CommandError::Full(_) | CommandError::Refused(_) => self.shared.rejected(),
            CommandError::Unreachable(_)
            | CommandError::Timeout(_)
            | CommandError::Uncovered(_) => self.shared.failed(),
        }
        let waiting = self.shared.journal.lock().len();
        self.shared.metrics.lifecycle_waiting.set(waiting as i64);
        if let Some(held_back) = self.failures.admit(std::time::Instant::now()) {
            warn!(%error, waiting, held_back, "cannot write lifecycle events, they stay queued");
        }
    }
}

/// Emits ends that are due and those of fenced holders, without end. All nodes do so: each end is claimed by one of them.
async fn tend(log: &RedisLog) {
    loop {
        match log.tend().await {
            Ok(true) => continue,
            Ok(false) => {}
            // The other loop logs that Redis is unavailable.
            Err(error) => debug!(%error, "cannot check for ends that are due"),
        }
        let jitter = 0.5 + fastrand::f64();
        time::sleep(TEND_INTERVAL.mul_f64(jitter)).await;
    }
}
