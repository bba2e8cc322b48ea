//! Holds a lease in one Redis, writes the desired state under it, and sweeps the entries of nodes whose leases
//! have lapsed.
//!
//! Three loops, one for each, so that none delays another. A new lease is taken when the last one has lapsed, and
//! also with every new connection: it may lead to a server with less data than the last one, or with outdated
//! data. Entries under the previous lease are swept like a dead node's, so only entries that are written again
//! stay listed.

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
use super::condition::Problem;
use super::desired::DesiredState;
use super::desired::Event;
use super::desired::Write;
use super::shard::Shard;
use super::store::Queries;
use super::store::Store;
use crate::config;
use crate::metrics::Metrics;
use crate::protocol::instance::Instance;
use crate::redis::Backoff;
use crate::redis::CommandError;

/// How often to look for leases whose sweeper did not finish.
const CLAIM_INTERVAL: Duration = Duration::from_secs(30);

/// The shortest pause before leases that should have ended are checked again.
const CHECK_PAUSE: Duration = Duration::from_millis(250);

/// The tasks that work on the registry in one Redis.
pub(super) struct LeaseTask {
    pub(super) shard: Arc<Shard>,
    pub(super) store: Store,
    pub(super) config: config::Registry,
    pub(super) backoff_max: Duration,
    /// The description of this node.
    pub(super) about: Node,
    /// Cancelled when the node begins to stop, which is then added to its description.
    pub(super) draining: CancellationToken,
    pub(super) metrics: Arc<Metrics>,
    /// The conditions of all servers, with this server's index and its address for logs.
    pub(super) conditions: Arc<Conditions>,
    pub(super) server: usize,
    pub(super) address: String,
    /// What the node uses Redis for.
    pub(super) needs: Needs,
    /// Notified when Redis has evicted keys: entries of this node may be missing.
    pub(super) keys_evicted: Notify,
    /// Whether Redis may evict entries of any node at any time.
    pub(super) evicts_any: AtomicBool,
    clock: Mutex<Clock>,
    /// The current lease, under which entries are written.
    pub(super) lease: watch::Sender<Option<Lease>>,
    pub(super) instance: Instance,
    /// Notified when a lease has lapsed and has to be swept.
    lapsed: Notify,
}

/// The lease that is being renewed.
#[derive(Debug, Clone, Copy)]
struct Held {
    lease: Lease,
    /// The connection over which it was taken.
    connection: u64,
    /// When the first of all leases ends, by Redis's clock, as last read.
    check_at: u64,
}

/// What a [`LeaseTask`] is built from.
pub(super) struct Components {
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

impl LeaseTask {
    pub(super) fn new(components: Components) -> Self {
        Self {
            shard: components.shard,
            store: components.store,
            config: components.config,
            backoff_max: components.backoff_max,
            instance: components.about.instance,
            about: components.about,
            draining: components.draining,
            conditions: components.conditions,
            server: components.server,
            address: components.address,
            needs: components.needs,
            keys_evicted: Notify::new(),
            evicts_any: AtomicBool::new(false),
            metrics: components.metrics,
            clock: Mutex::default(),
            lease: watch::Sender::new(None),
            lapsed: Notify::new(),
        }
    }

    /// A receiver of this node's lease and its successors.
    pub(super) fn lease(&self) -> watch::Receiver<Option<Lease>> {
        self.lease.subscribe()
    }

    /// The estimate of Redis's time.
    pub(super) fn now(&self) -> Option<u64> {
        self.clock.lock().read(Instant::now().into_std())
    }

    /// Runs until `shutdown`, then writes what is left and releases the lease.
    pub(super) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            never = self.hold_lease() => match never {},
            never = self.write() => match never {},
            never = self.sweep() => match never {},
            never = self.announce_leaving() => match never {},
            never = self.inspect() => match never {},
            never = self.verify() => match never {},
        }
        let wait_max = self.config.lease.min(Duration::from_secs(2));
        if time::timeout(wait_max, self.finish()).await.is_err() {
            warn!(
                "cannot remove this node from the registry in time: other nodes detect it when its lease lapses"
            );
        }
    }

    /// The current description of the node, as JSON.
    pub(super) fn about(&self) -> String {
        let about = Node {
            leaving: self.draining.is_cancelled(),
            ..self.about.clone()
        };
        about.print()
    }

    /// Once the node has begun to stop, marks it as leaving: edges that read the registry send it no new clients from
    /// then on. A lease that is taken after that is marked from its beginning.
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
                Err(error) => debug!(%error, "cannot mark this node as stopping in the registry"),
            }
            time::sleep(backoff.next(fastrand::f64())).await;
        }
    }

    /// Takes the lease and renews it, without end.
    async fn hold_lease(&self) -> Infallible {
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
                    self.note(Part::Lease, Some(Problem::of(&error)));
                    backoff.next(fastrand::f64())
                }
            };
            time::sleep(pause).await;
        }
    }

    /// Takes a new lease after `before` and has all entries written under it.
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
            check_at: taken.now,
        })
    }

    async fn renew(&self, held: Held) -> Result<Held, CommandError> {
        let at = Instant::now().into_std();
        let (now, is_stale) = {
            let clock = self.clock.lock();
            (clock.read(at).unwrap_or_default(), clock.is_stale(at))
        };
        let queries = Queries {
            time: is_stale,
            first_end: held.check_at <= now,
        };
        let end = now + milliseconds(self.config.lease);
        let renewed = self.store.renew(held.lease, end, queries).await?;
        if let Some(now) = renewed.now {
            self.clock.lock().set(now, Instant::now().into_std());
        }
        if !renewed.is_held || renewed.connection != held.connection {
            if !renewed.is_held {
                warn!(lease = %held.lease, "this node's lease has lapsed, all its entries are registered again");
                self.metrics.registry_lapses.inc();
            }
            let taken = self.take(Some(held)).await?;
            self.retire_once_written(held.lease).await;
            return Ok(taken);
        }
        let mut held = held;
        if let Some(first_end) = renewed.first_end {
            held.check_at = first_end.max(now + milliseconds(CHECK_PAUSE));
            if first_end <= now {
                self.lapsed.notify_one();
            }
        }
        Ok(held)
    }

    /// Releases `lease` once all desired entries are written under its successor; what is left under it (of late
    /// writes, of a server with less data) is swept.
    async fn retire_once_written(&self, lease: Lease) {
        let seq = self.shard.with(DesiredState::end);
        self.shard.settled(seq, self.config.renew).await;
        // If it fails, the lease lapses by itself.
        if let Err(error) = self.store.retire(lease).await {
            debug!(%lease, %error, "cannot retire a lease");
        }
    }

    /// The time until the next renewal, or until the first of all leases may have ended.
    fn pause(&self, held: &Held) -> Duration {
        let now = self.now().unwrap_or_default();
        let look = Duration::from_millis(held.check_at.saturating_sub(now));
        self.config.renew.min(look.max(CHECK_PAUSE))
    }

    /// Writes the desired state, without end.
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
            if self.shard.with(DesiredState::is_idle) {
                self.shard.wait_for_change().await;
            }
        }
    }

    async fn write_batch(&self, lease: Lease) -> bool {
        let batch = InFlight {
            shard: &self.shard,
            writes: self.shard.next_batch(),
        };
        if batch.writes.is_empty() {
            return true;
        }
        match self.store.write(lease, &batch.writes).await {
            Ok(replies) => {
                batch.answered(replies);
                self.note(Part::Writes, None);
                true
            }
            Err(error) => {
                self.note(Part::Writes, Some(Problem::of(&error)));
                false
            }
        }
    }

    /// Sweeps entries of dead leases, without end.
    async fn sweep(&self) -> Infallible {
        loop {
            // If Redis is unavailable, this is retried after the pause.
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
                    self.shard.notify(Event::Left(slot, value));
                }
            }
            self.store.swept(lease).await?;
            self.metrics.registry_swept.inc_by(members as u64);
            info!(%lease, members, "a lease has ended, its entries were removed");
        }
        Ok(())
    }

    /// Writes what is left and releases the lease.
    async fn finish(&self) {
        let Some(lease) = *self.lease.borrow() else {
            return;
        };
        while !self.shard.with(DesiredState::is_idle) {
            if !self.write_batch(lease).await {
                time::sleep(CHECK_PAUSE).await;
            }
        }
        if let Err(error) = self.store.retire(lease).await {
            debug!(%lease, %error, "cannot retire a lease");
        }
    }
}

/// Writes in flight. Dropped without a reply, their outcome is unknown.
struct InFlight<'a> {
    shard: &'a Shard,
    writes: Vec<Write>,
}

impl InFlight<'_> {
    fn answered(mut self, replies: Vec<bool>) {
        let writes = mem::take(&mut self.writes);
        self.shard.finish(writes, Some(replies));
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if !self.writes.is_empty() {
            self.shard.finish(mem::take(&mut self.writes), None);
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 4)
}
