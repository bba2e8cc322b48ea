//! Checks besides the lease: that Redis permits the commands that the node needs, that entries are still there, and that no
//! other node has the same id.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time;
use tracing::debug;
use tracing::error;
use tracing::info;
use tracing::warn;

use super::Lease;
use super::condition::Part;
use super::condition::Problem;
use super::duplicate_ids::DuplicateIds;
use super::lease_task::LeaseTask;
use super::memory::MemoryInfo;
use super::memory::Policy;
use crate::redis::CommandError;

/// From one inspection to the next, in renewals.
const INSPECT_EVERY: u32 = 2;

/// From one check of permissions and of all leases to the next, in inspections.
const RARELY: u32 = 8;

/// Entries that are compared with Redis at a time.
const SLICE: usize = 256;

/// From one comparison to the next when entries may be lost.
const URGENT_PAUSE: Duration = Duration::from_millis(20);

/// Results of the checks so far.
#[derive(Default)]
struct Found {
    /// The lease at the last check of permissions.
    checked: Option<Lease>,
    is_refused: bool,
    duplicate_ids: DuplicateIds,
    /// How many other nodes have this node's id.
    same_id: usize,
    memory: Option<MemoryInfo>,
}

/// Whether a test wants this task to panic: `CAUSEWAY_SABOTAGE=panic:registry`, in debug builds only.
#[cfg(debug_assertions)]
fn is_sabotaged() -> bool {
    std::env::var("CAUSEWAY_SABOTAGE").is_ok_and(|deed| deed == "panic:registry")
}

impl LeaseTask {
    /// Inspects Redis at intervals, without end.
    pub(super) async fn inspect(&self) -> Infallible {
        #[cfg(debug_assertions)]
        assert!(!is_sabotaged(), "a test wants it");
        let mut found = Found::default();
        let mut round = 0_u32;
        loop {
            let lease = *self.lease.borrow();
            let is_rare = round.is_multiple_of(RARELY);
            let inspected = async {
                // A new lease may be on another server.
                if is_rare || found.is_refused || found.checked != lease {
                    self.check_permissions(&mut found).await?;
                    found.checked = lease;
                }
                self.check_memory(&mut found).await?;
                if is_rare || 0 < found.same_id {
                    self.check_leases(&mut found).await?;
                }
                Ok::<_, CommandError>(())
            };
            if let Err(error) = inspected.await {
                debug!(%error, "cannot inspect redis");
            }
            round = round.wrapping_add(1);
            time::sleep(self.config.renew * INSPECT_EVERY).await;
        }
    }

    /// Runs the commands that this node needs.
    async fn check_permissions(&self, found: &mut Found) -> Result<(), CommandError> {
        if self.needs.registry {
            let problem = self
                .store
                .check_permissions(self.instance, self.needs)
                .await?;
            found.is_refused = problem.is_some();
            self.note(Part::Permissions, problem);
        }
        Ok(())
    }

    /// Has all entries compared if keys were evicted, and warns about a policy that may evict the registry.
    async fn check_memory(&self, found: &mut Found) -> Result<(), CommandError> {
        let Some(memory) = self.store.memory().await? else {
            return Ok(()); // `INFO` is not permitted.
        };
        let redis = &self.address;
        let before = found.memory.replace(memory.clone());
        if before.as_ref().map(|before| &before.policy) != Some(&memory.policy) {
            match &memory.policy {
                Policy::Keeps => {}
                Policy::EvictsWithLifetime(policy) => info!(
                    redis,
                    policy, "at maxmemory redis evicts histories and session values"
                ),
                Policy::EvictsAny(policy) => warn!(
                    redis,
                    policy,
                    "at maxmemory redis may evict any key, channel members and users included, which are then \
                    missing until they are written again: set maxmemory-policy to noeviction"
                ),
            }
        }
        let evicts_any = matches!(memory.policy, Policy::EvictsAny(_));
        self.evicts_any.store(evicts_any, Ordering::Relaxed);
        if before.is_some_and(|before| before.evicted != memory.evicted) {
            self.keys_evicted.notify_one();
        }
        Ok(())
    }

    /// Logs if another node has this node's id.
    async fn check_leases(&self, found: &mut Found) -> Result<(), CommandError> {
        let leases = self.store.all_leases().await?;
        let others = found
            .duplicate_ids
            .duplicates(self.instance, &self.about.id, &leases);
        let count = others.len();
        self.metrics
            .registry_same_id
            .set(i64::try_from(count).unwrap_or(i64::MAX));
        if found.same_id != count {
            let id = &self.about.id;
            match others.first() {
                Some(other) => error!(
                    id,
                    count,
                    instance = %other.instance,
                    address = other.address,
                    "another node has this node's id: edges send clients to only one of them, and log lines cannot be told \
                    apart. Give each its own `node.id`"
                ),
                None => info!(id, "no other node has this node's id any more"),
            }
            found.same_id = count;
        }
        Ok(())
    }

    /// Compares this node's entries with Redis, all of them within `registry.verify`, or at once if keys were evicted. Missing
    /// entries are written again.
    pub(super) async fn verify(&self) -> Infallible {
        let mut cursor = None;
        let mut is_urgent = false;
        let mut missing = 0;
        loop {
            let (stored_entries, total) = self.shard.with(|desired| {
                let stored_entries = desired.stored_after(cursor.as_ref(), SLICE);
                (stored_entries, desired.len())
            });
            let lease = *self.lease.borrow();
            if let Some(lease) = lease {
                let compared = self.store.compare(lease, &stored_entries).await;
                match compared {
                    Ok(stands) => {
                        let gone = stored_entries
                            .iter()
                            .zip(stands)
                            .filter(|(_, stands)| !stands);
                        missing += self.shard.lost(gone.map(|(stored_entry, _)| stored_entry));
                    }
                    Err(error) => debug!(%error, "cannot compare with the registry"),
                }
            }
            let is_end = stored_entries.len() < SLICE;
            let share = (stored_entries.len().max(1) as f64
                / total.max(stored_entries.len()).max(1) as f64)
                .min(1.0);
            cursor = stored_entries
                .into_iter()
                .next_back()
                .map(|stored_entry| stored_entry.slot);
            if is_end {
                cursor = None;
                is_urgent = false;
                if let Some(lease) = lease {
                    self.describe_if_missing(lease).await;
                }
                self.count_missing(std::mem::take(&mut missing));
            }
            let pause = match is_urgent {
                true => URGENT_PAUSE,
                false => self.config.verify.mul_f64(share).max(URGENT_PAUSE),
            };
            tokio::select! {
                () = self.keys_evicted.notified() => {
                    cursor = None;
                    is_urgent = true;
                    time::sleep(URGENT_PAUSE).await;
                }
                () = time::sleep(pause) => {}
            }
        }
    }

    async fn describe_if_missing(&self, lease: Lease) {
        match self.store.is_described(lease).await {
            Ok(true) => {}
            Ok(false) => {
                if let Err(error) = self.store.describe(lease, &self.about()).await {
                    debug!(%error, "cannot describe this node in the registry");
                }
            }
            Err(error) => debug!(%error, "cannot compare with the registry"),
        }
    }

    fn count_missing(&self, entries: usize) {
        if entries == 0 {
            return;
        }
        self.metrics.registry_repaired.inc_by(entries as u64);
        warn!(
            redis = self.address,
            entries,
            "entries of this node were missing in the registry and are written again: redis evicted keys, or they were deleted"
        );
    }

    /// Records the state of `part`.
    pub(super) fn note(&self, part: Part, problem: Option<Problem>) {
        self.conditions.note(self.server, part, problem);
    }
}
