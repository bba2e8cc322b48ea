//! Keeps a lease in one Redis, writes under it what the ledger wants, and sweeps up after nodes whose
//! leases have lapsed.
//!
//! Three loops, one for each, so that none holds up another. A lease is taken anew when it has lapsed, and
//! also with every new connection: behind it may be a server that knows less than the last one, or still
//! knows what is long gone. What stood under the lease before is swept like a dead node's, so nobody stays
//! listed who is not written again.

use std::convert::Infallible;
use std::future;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

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

use super::Lease;
use super::Needs;
use super::Node;
use super::clock::Clock;
use super::condition::Conditions;
use super::condition::Part;
use super::condition::Trouble;
use super::ledger::Event;
use super::ledger::Ledger;
use super::ledger::Write;
use super::shard::Shard;
use super::store::Questions;
use super::store::Store;
use crate::config;
use crate::metrics::Metrics;
use crate::protocol::instance::Instance;
use crate::redis::Backoff;
use crate::redis::CommandError;

/// How often somebody looks for leases that another sweeper gave up on.
const CLAIM_INTERVAL: Duration = Duration::from_secs(30);

/// How soon a lease that should have ended is looked at again.
const LOOK_PAUSE: Duration = Duration::from_millis(250);

/// What holds a lease in one Redis.
pub(super) struct Keeper {
    pub(super) shard: Arc<Shard>,
    pub(super) store: Store,
    pub(super) config: config::Registry,
    pub(super) backoff_max: Duration,
    /// What the node says of itself.
    pub(super) about: Node,
    /// Cancelled when the node begins to stop, which others are then told.
    pub(super) draining: CancellationToken,
    pub(super) metrics: Arc<Metrics>,
    /// Whether all of it can be relied on: this server's place in there, and what it is called by people.
    pub(super) conditions: Arc<Conditions>,
    pub(super) server: usize,
    pub(super) address: String,
    /// What the node needs of Redis.
    pub(super) needs: Needs,
    /// Keys were evicted: entries of this node may be lost.
    pub(super) doubted: Notify,
    /// Whether Redis may evict entries of any node at any time.
    pub(super) evicts_any: AtomicBool,
    clock: Mutex<Clock>,
    /// What is written is written under this one.
    pub(super) lease: watch::Sender<Option<Lease>>,
    pub(super) instance: Instance,
    /// A lease has lapsed: somebody has to sweep.
    lapsed: Notify,
}

/// The lease that is renewed.
#[derive(Debug, Clone, Copy)]
struct Held {
    lease: Lease,
    /// Over which it was taken.
    connection: u64,
    /// When the first of all leases ends, by Redis's clock, as far as is known.
    look_at: u64,
}

/// What a [`Keeper`] is made of.
pub(super) struct Parts {
    pub(super) shard: Arc<Shard>,
    pub(super) store: Store,
    pub(super) config: config::Registry,
    pub(super) backoff_max: Duration,
    pub(super) about: Node,
    pub(super) needs: Needs,
    pub(super) draining: CancellationToken,
    pub(super) conditions: Arc<Conditions>,
    pub(super) server: usize,
    pub(super) address: String,
    pub(super) metrics: Arc<Metrics>,
}

impl Keeper {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            shard: parts.shard,
            store: parts.store,
            config: parts.config,
            backoff_max: parts.backoff_max,
            instance: parts.about.instance,
            about: parts.about,
            draining: parts.draining,
            conditions: parts.conditions,
            server: parts.server,
            address: parts.address,
            needs: parts.needs,
            doubted: Notify::new(),
            evicts_any: AtomicBool::new(false),
            metrics: parts.metrics,
            clock: Mutex::default(),
            lease: watch::Sender::new(None),
            lapsed: Notify::new(),
        }
    }

    /// The lease of this node, and each that follows it.
    pub(super) fn lease(&self) -> watch::Receiver<Option<Lease>> {
        self.lease.subscribe()
    }

    /// Redis's time, as far as is known.
    pub(super) fn now(&self) -> Option<u64> {
        self.clock.lock().read(Instant::now().into_std())
    }

    /// Works until `shutdown`, then writes what is left and gives the lease up.
    pub(super) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            never = self.keep() => match never {},
            never = self.write() => match never {},
            never = self.sweep() => match never {},
            never = self.announce_leaving() => match never {},
            never = self.inspect() => match never {},
            never = self.verify() => match never {},
        }
        let patience = self.config.lease.min(Duration::from_secs(2));
        if time::timeout(patience, self.finish()).await.is_err() {
            warn!("the registry was not told that this node stops, others find out by its lease");
        }
    }

    /// What the node says of itself now, as JSON.
    pub(super) fn about(&self) -> String {
        let about = Node {
            leaving: self.draining.is_cancelled(),
            ..self.about.clone()
        };
        about.print()
    }

    /// Once the node has begun to stop, says so under its lease: edges that read the registry send nobody to it from
    /// then on. A lease that is taken after that says so from its beginning.
    async fn announce_leaving(&self) -> Infallible {
        self.draining.cancelled().await;
        let mut backoff = Backoff::new(self.backoff_max);
        let mut lease = self.lease.subscribe();
        loop {
            let Ok(Some(held)) = lease.wait_for(Option::is_some).await.map(|lease| *lease) else {
                return future::pending().await; // The sender is our own, so it is there.
            };
            match self.store.describe(held, &self.about()).await {
                Ok(()) => return future::pending().await,
                Err(error) => debug!(%error, "cannot tell the registry that this node is stopping"),
            }
            time::sleep(backoff.next(fastrand::f64())).await;
        }
    }

    /// Takes the lease and renews it, for ever.
    async fn keep(&self) -> Infallible {
        let mut held: Option<Held> = None;
        let mut backoff = Backoff::new(self.backoff_max.min(self.config.renew));
        loop {
            let round = match held {
                None => self.take(None).await,
                Some(last) => self.renew(last).await,
            };
            let pause = match round {
                Ok(now_held) => {
                    backoff.reset();
                    self.note(Part::Lease, None);
                    held = Some(now_held);
                    self.pause(&now_held)
                }
                Err(error) => {
                    self.note(Part::Lease, Some(Trouble::of(&error)));
                    backoff.next(fastrand::f64())
                }
            };
            time::sleep(pause).await;
        }
    }

    /// Takes a new lease after `before` and has everything written under it.
    async fn take(&self, before: Option<Held>) -> Result<Held, CommandError> {
        let before = before.map(|held| held.lease);
        let lease = before.map_or_else(|| Lease::first(self.instance), Lease::next);
        let milliseconds = milliseconds(self.config.lease);
        let info = self.about();
        let taking = self.store.take(lease, before, milliseconds, &info);
        let taken = taking.await?;
        self.clock.lock().set(taken.now, Instant::now().into_std());
        self.metrics.registry_leases.inc();
        debug!(%lease, "took a lease");
        self.lease.send_replace(Some(lease));
        self.shard.renew_all(taken.before);
        Ok(Held {
            lease,
            connection: taken.connection,
            look_at: taken.now,
        })
    }

    async fn renew(&self, held: Held) -> Result<Held, CommandError> {
        let at = Instant::now().into_std();
        let (now, is_stale) = {
            let clock = self.clock.lock();
            (clock.read(at).unwrap_or_default(), clock.is_stale(at))
        };
        let questions = Questions {
            time: is_stale,
            first_end: held.look_at <= now,
        };
        let end = now + milliseconds(self.config.lease);
        let renewed = self.store.renew(held.lease, end, questions).await?;
        if let Some(now) = renewed.now {
            self.clock.lock().set(now, Instant::now().into_std());
        }
        if !renewed.is_held || renewed.connection != held.connection {
            if !renewed.is_held {
                warn!(lease = %held.lease, "this node's lease had lapsed, everything is registered anew");
                self.metrics.registry_lapses.inc();
            }
            let taken = self.take(Some(held)).await?;
            self.retire_once_written(held.lease).await;
            return Ok(taken);
        }
        let mut held = held;
        if let Some(first_end) = renewed.first_end {
            held.look_at = first_end.max(now + milliseconds(LOOK_PAUSE));
            if first_end <= now {
                self.lapsed.notify_one();
            }
        }
        Ok(held)
    }

    /// Gives `lease` up as soon as nothing that is wanted stands under it any more; what is left there (of
    /// writes that were late, of a server that knows less) is swept.
    async fn retire_once_written(&self, lease: Lease) {
        let place = self.shard.look(Ledger::end);
        self.shard.settled(place, self.config.renew).await;
        // If it fails, the lease lapses by itself.
        if let Err(error) = self.store.retire(lease).await {
            debug!(%lease, %error, "cannot retire a lease");
        }
    }

    /// Until the next renewal, or until the first of all leases may have ended.
    fn pause(&self, held: &Held) -> Duration {
        let now = self.now().unwrap_or_default();
        let look = Duration::from_millis(held.look_at.saturating_sub(now));
        self.config.renew.min(look.max(LOOK_PAUSE))
    }

    /// Carries out what the ledger wants, for ever.
    async fn write(&self) -> Infallible {
        let mut lease = self.lease.subscribe();
        let mut backoff = Backoff::new(self.backoff_max);
        loop {
            let Ok(Some(lease)) = lease.wait_for(Option::is_some).await.map(|lease| *lease) else {
                return future::pending().await; // The sender is our own, so it is there.
            };
            if self.write_batch(lease).await {
                backoff.reset();
            } else {
                time::sleep(backoff.next(fastrand::f64())).await;
                continue;
            }
            if self.shard.look(Ledger::is_idle) {
                self.shard.wait_for_change().await;
            }
        }
    }

    async fn write_batch(&self, lease: Lease) -> bool {
        let batch = InHand {
            shard: &self.shard,
            writes: self.shard.next_batch(),
        };
        if batch.writes.is_empty() {
            return true;
        }
        match self.store.write(lease, &batch.writes).await {
            Ok(answers) => {
                batch.answered(answers);
                self.note(Part::Writes, None);
                true
            }
            Err(error) => {
                self.note(Part::Writes, Some(Trouble::of(&error)));
                false
            }
        }
    }

    /// Sweeps up after others, for ever.
    async fn sweep(&self) -> Infallible {
        loop {
            // Nobody answers for it if Redis is away: the look for lapsed leases comes again.
            if let Err(error) = self.sweep_all().await {
                debug!(%error, "cannot sweep the registry");
            }
            tokio::select! {
                () = self.lapsed.notified() => {}
                () = time::sleep(CLAIM_INTERVAL) => {}
            }
        }
    }

    async fn sweep_all(&self) -> Result<(), CommandError> {
        for lease in self.store.claim().await? {
            let mut members = 0;
            while let Some(found) = self.store.sweep(lease).await? {
                members += found.len();
                for (slot, value) in found {
                    self.shard.tell(Event::Left(slot, value));
                }
            }
            self.store.swept(lease).await?;
            self.metrics.registry_swept.inc_by(members as u64);
            info!(%lease, members, "a lease has ended, what stood under it is off the lists");
        }
        Ok(())
    }

    /// Writes what is left and gives the lease up.
    async fn finish(&self) {
        let Some(lease) = *self.lease.borrow() else {
            return;
        };
        while !self.shard.look(Ledger::is_idle) {
            if !self.write_batch(lease).await {
                time::sleep(LOOK_PAUSE).await;
            }
        }
        if let Err(error) = self.store.retire(lease).await {
            debug!(%lease, %error, "cannot retire a lease");
        }
    }
}

/// Writes under way; whoever drops them leaves it open what became of them.
struct InHand<'a> {
    shard: &'a Shard,
    writes: Vec<Write>,
}

impl InHand<'_> {
    fn answered(mut self, answers: Vec<bool>) {
        let writes = mem::take(&mut self.writes);
        self.shard.finish(writes, Some(answers));
    }
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        if !self.writes.is_empty() {
            self.shard.finish(mem::take(&mut self.writes), None);
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 4)
}
