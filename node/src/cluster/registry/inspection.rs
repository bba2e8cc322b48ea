//! What a node looks after beside its lease: that Redis allows what it needs, keeps what was written, and knows no other
//! node by the same name.

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
use super::condition::Trouble;
use super::keeper::Keeper;
use super::memory::MemoryInfo;
use super::memory::Policy;
use super::namesakes::Namesakes;
use crate::redis::CommandError;

/// From one inspection to the next, in renewals.
const INSPECT_EVERY: u32 = 2;

/// From one trial, and one look at all leases, to the next, in inspections.
const RARELY: u32 = 8;

/// Entries that are compared with Redis in one piece.
const SLICE: usize = 256;

/// From one piece to the next when something may be lost.
const HURRY: Duration = Duration::from_millis(20);

/// What was found so far.
#[derive(Default)]
struct Found {
    /// Under which lease the last trial was.
    tried: Option<Lease>,
    is_refused: bool,
    namesakes: Namesakes,
    /// How many other nodes have this node's id.
    same_id: usize,
    memory: Option<MemoryInfo>,
}

/// Whether a test wants this task to panic: `CAUSEWAY_SABOTAGE=panic:registry`, in debug builds only.
#[cfg(debug_assertions)]
fn is_sabotaged() -> bool {
    std::env::var("CAUSEWAY_SABOTAGE").is_ok_and(|deed| deed == "panic:registry")
}

impl Keeper {
    /// Inspects Redis again and again, for ever.
    pub(super) async fn inspect(&self) -> Infallible {
        #[cfg(debug_assertions)]
        assert!(!is_sabotaged(), "a test wants it");
        let mut found = Found::default();
        let mut round = 0_u32;
        loop {
            let lease = *self.lease.borrow();
            let is_rare = round.is_multiple_of(RARELY);
            let inspected = async {
                // A new lease may be with another server.
                if is_rare || found.is_refused || found.tried != lease {
                    self.try_out(&mut found).await?;
                    found.tried = lease;
                }
                self.look_at_memory(&mut found).await?;
                if is_rare || 0 < found.same_id {
                    self.look_at_leases(&mut found).await?;
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

    /// Tries what this node needs of Redis.
    async fn try_out(&self, found: &mut Found) -> Result<(), CommandError> {
        if self.needs.registry {
            let trouble = self.store.try_out(self.instance, self.needs).await?;
            found.is_refused = trouble.is_some();
            self.note(Part::Trial, trouble);
        }
        Ok(())
    }

    /// Has everything compared with Redis if keys were evicted, and warns of a policy that evicts what it must not.
    async fn look_at_memory(&self, found: &mut Found) -> Result<(), CommandError> {
        let Some(memory) = self.store.memory().await? else {
            return Ok(()); // This node may not ask.
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
                    "at maxmemory redis evicts whatever it likes, members of channels and users too, which are then \
                     missing until they are written again: set maxmemory-policy to noeviction"
                ),
            }
        }
        let evicts_any = matches!(memory.policy, Policy::EvictsAny(_));
        self.evicts_any.store(evicts_any, Ordering::Relaxed);
        if before.is_some_and(|before| before.evicted != memory.evicted) {
            self.doubted.notify_one();
        }
        Ok(())
    }

    /// Says so if another node has this node's id, and mends what this node says of itself.
    async fn look_at_leases(&self, found: &mut Found) -> Result<(), CommandError> {
        let leases = self.store.all_leases().await?;
        let others = found.namesakes.look(self.instance, &self.about.id, &leases);
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
                    "another node has this node's id: edges send clients to one of them only, and logs cannot tell them \
                     apart. Give each its own `node.id`"
                ),
                None => info!(id, "no other node has this node's id any more"),
            }
            found.same_id = count;
        }
        Ok(())
    }

    /// Compares what this node holds with what stands in Redis, all of it within `registry.verify`, or at once if keys were
    /// evicted. What is missing is written again.
    pub(super) async fn verify(&self) -> Infallible {
        let mut cursor = None;
        let mut is_urgent = false;
        let mut missing = 0;
        loop {
            let (claims, total) = self.shard.look(|ledger| {
                let claims = ledger.standing_behind(cursor.as_ref(), SLICE);
                (claims, ledger.len())
            });
            let lease = *self.lease.borrow();
            if let Some(lease) = lease {
                let compared = self.store.compare(lease, &claims).await;
                match compared {
                    Ok(stands) => {
                        let gone = claims.iter().zip(stands).filter(|(_, stands)| !stands);
                        missing += self.shard.lost(gone.map(|(claim, _)| claim));
                    }
                    Err(error) => debug!(%error, "cannot compare with the registry"),
                }
            }
            let is_end = claims.len() < SLICE;
            let share =
                (claims.len().max(1) as f64 / total.max(claims.len()).max(1) as f64).min(1.0);
            cursor = claims.into_iter().next_back().map(|claim| claim.slot);
            if is_end {
                cursor = None;
                is_urgent = false;
                if let Some(lease) = lease {
                    self.describe_if_missing(lease).await;
                }
                self.count_missing(std::mem::take(&mut missing));
            }
            let pause = match is_urgent {
                true => HURRY,
                false => self.config.verify.mul_f64(share).max(HURRY),
            };
            tokio::select! {
                () = self.doubted.notified() => {
                    cursor = None;
                    is_urgent = true;
                    time::sleep(HURRY).await;
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
            "entries of this node were missing in the registry and are written again: redis evicts keys, or somebody deletes them"
        );
    }

    /// Notes how `part` of the work fares.
    pub(super) fn note(&self, part: Part, trouble: Option<Trouble>) {
        self.conditions.note(self.server, part, trouble);
    }
}
