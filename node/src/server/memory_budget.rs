//! The memory budget of the node. The accounting does no I/O: resident memory is passed in.
//!
//! New clients are rejected before the limit is reached, because connected clients may need more later: a part
//! is reserved for them. If that is not enough, the clients with the most queued data are disconnected.
//!
//! Released memory does not leave the process at once: the allocator returns it some time later, and reuses it
//! until then. So it counts as free from its release, and no more clients are disconnected for it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// What a new client may use before the next check: its sockets, its state, and its first queued data.
const NEWCOMER_BYTES: u64 = 16 << 10;

/// The part of the limit that is reserved for connected clients, and the part of that below which clients are
/// disconnected.
const KEPT: u64 = 8;
const TIGHT: u64 = 16;

/// How often resident memory is checked.
const LOOK: Duration = Duration::from_millis(100);

/// The shortest time between two log lines about disconnected clients.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// How long the allocator may take to return memory; jemalloc's own time is 10 s.
const SETTLED_AFTER: Duration = Duration::from_secs(20);

/// Memory that was released and may still be resident.
#[derive(Debug, Clone, Copy)]
struct GivenUp {
    bytes: u64,
    /// Resident memory at that time.
    resident: u64,
    at: Instant,
}

/// The result of releasing memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Relieved {
    /// Clients that were disconnected.
    pub(crate) clients: usize,
    /// Bytes that only they held.
    pub(crate) bytes: u64,
}

/// The limit, and the usage at the last check.
pub(crate) struct Budget {
    /// `u64::MAX`: no limit.
    bytes_max: u64,
    resident: AtomicU64,
    newcomers: AtomicU64,
    given_up: Mutex<Option<GivenUp>>,
}

impl Budget {
    /// At most `bytes_max`; `None`: no limit.
    pub(crate) fn new(bytes_max: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            bytes_max: bytes_max.map_or(u64::MAX, |bytes| bytes as u64),
            resident: AtomicU64::new(0),
            newcomers: AtomicU64::new(0),
            given_up: Mutex::default(),
        })
    }

    /// Counts a new client, if there is room for one.
    pub(crate) fn admit(&self) -> bool {
        if self.bytes_max == u64::MAX {
            return true;
        }
        let newcomers = self.newcomers.fetch_add(1, Ordering::Relaxed) + 1;
        let expected = self.resident.load(Ordering::Relaxed) + newcomers * NEWCOMER_BYTES;
        expected <= self.bytes_max - self.bytes_max / KEPT
    }

    /// Records resident memory at `now`, new clients included. Returns how much has to be released.
    fn look(&self, resident: u64, now: Instant) -> u64 {
        self.resident.store(resident, Ordering::Relaxed);
        self.newcomers.store(0, Ordering::Relaxed);
        let excess = match self.bytes_max {
            u64::MAX => 0,
            bytes_max => resident.saturating_sub(bytes_max - bytes_max / TIGHT),
        };
        let mut given_up = self.given_up.lock();
        given_up.take_if(|given_up| excess == 0 || SETTLED_AFTER <= now - given_up.at);
        excess.saturating_sub(given_up.map_or(0, |given_up| given_up.still_resident(resident)))
    }

    /// Records that `bytes` were released at `now`, when `resident` was in use.
    fn give_up(&self, bytes: u64, resident: u64, now: Instant) {
        let mut given_up = self.given_up.lock();
        let before = given_up.map_or(0, |before| before.still_resident(resident));
        *given_up = Some(GivenUp {
            bytes: before + bytes,
            resident,
            at: now,
        });
    }

    /// Checks at intervals until `shutdown`, and calls `relieve` to release that many bytes of queued data when
    /// necessary.
    pub(crate) async fn run(
        self: Arc<Self>,
        relieve: impl Fn(u64) -> Relieved,
        shutdown: CancellationToken,
    ) {
        if self.bytes_max == u64::MAX {
            return;
        }
        // Kept open, because there may be no free descriptor when it is needed most.
        let statm = match File::open("/proc/self/statm") {
            Ok(statm) => statm,
            Err(error) => {
                warn!(%error, "cannot read resident memory, limits.memory is not enforced");
                return;
            }
        };
        let mut is_failing = false;
        let (mut shed, mut logged) = (Relieved::default(), None::<Instant>);
        let mut looks = time::interval(LOOK);
        looks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                _ = looks.tick() => {}
            }
            let resident = match resident_bytes(&statm) {
                Ok(resident) => resident,
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        warn!(%error, "cannot read resident memory, limits.memory is not enforced until it can be read");
                    }
                    continue;
                }
            };
            is_failing = false;
            let now = Instant::now();
            let excess = self.look(resident, now);
            if 0 < excess {
                let Relieved { clients, bytes } = relieve(excess);
                if 0 < clients {
                    self.give_up(bytes, resident, now);
                    shed.clients += clients;
                    shed.bytes += bytes;
                }
            }
            let is_due = logged.is_none_or(|logged| LOG_INTERVAL <= logged.elapsed());
            if 0 < shed.clients && is_due {
                let Relieved { clients, bytes } = std::mem::take(&mut shed);
                warn!(
                    resident,
                    clients,
                    bytes,
                    "limits.memory is almost reached, the slowest clients were disconnected"
                );
                logged = Some(now);
            }
        }
    }
}

impl GivenUp {
    /// How much of it the allocator has not returned yet.
    fn still_resident(&self, resident: u64) -> u64 {
        let gone = self.resident.saturating_sub(resident);
        self.bytes.saturating_sub(gone)
    }
}

/// Resident memory of this process, by its open `statm`.
fn resident_bytes(statm: &File) -> io::Result<u64> {
    const PAGE_BYTES: u64 = 4096;
    let mut text = [0; 256];
    let length = statm.read_at(&mut text, 0)?;
    let text = String::from_utf8_lossy(&text[..length]);
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    let pages: u64 = pages.ok_or(io::ErrorKind::InvalidData)?;
    Ok(pages * PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn budget(bytes_max: u64) -> Arc<Budget> {
        Budget::new(Some(usize::try_from(bytes_max).unwrap()))
    }

    /// A look at the beginning.
    fn look(budget: &Budget, resident: u64) -> u64 {
        budget.look(resident, Instant::now())
    }

    fn admitted(budget: &Budget) -> usize {
        (0..10_000).take_while(|_| budget.admit()).count()
    }

    #[test]
    fn new_clients_are_rejected_before_the_limit_is_reached() {
        let budget = budget(80 * MIB);
        look(&budget, 60 * MIB);
        // Of what is left, 10 MiB are kept for connected clients.
        assert_eq!(admitted(&budget), 640);
        look(&budget, 70 * MIB - NEWCOMER_BYTES);
        assert_eq!(admitted(&budget), 1);
        look(&budget, 70 * MIB);
        assert_eq!(admitted(&budget), 0);
        look(&budget, 20 * MIB);
        assert_eq!(admitted(&budget), 3200);
    }

    #[test]
    fn clients_are_disconnected_when_half_of_the_reserve_is_used() {
        let budget = budget(80 * MIB);
        assert_eq!(look(&budget, 75 * MIB), 0);
        assert_eq!(look(&budget, 75 * MIB + 1), 1);
        assert_eq!(look(&budget, 90 * MIB), 15 * MIB);
    }

    #[test]
    fn released_memory_is_not_released_again_while_the_allocator_has_it() {
        let budget = budget(80 * MIB);
        let start = Instant::now();
        let second = Duration::from_secs(1);
        assert_eq!(budget.look(79 * MIB, start), 4 * MIB);
        budget.give_up(5 * MIB, 79 * MIB, start);
        assert_eq!(
            budget.look(79 * MIB, start + second),
            0,
            "it may be gone soon"
        );
        assert_eq!(budget.look(80 * MIB, start + second), 0, "there was more");
        assert_eq!(budget.look(81 * MIB, start + second), MIB, "it grows on");
        budget.give_up(MIB, 81 * MIB, start + second);
        assert_eq!(budget.look(81 * MIB, start + 2 * second), 0);
        // Half of it is back, and what was there all the time is too much.
        assert_eq!(budget.look(78 * MIB, start + 3 * second), 0);
        assert_eq!(budget.look(76 * MIB, start + 3 * second), 0);
        let late = start + second + SETTLED_AFTER;
        let almost = late - Duration::from_millis(1);
        assert_eq!(budget.look(81 * MIB, almost), 0);
        assert_eq!(
            budget.look(81 * MIB, late),
            6 * MIB,
            "it does not come back"
        );
    }

    #[test]
    fn returned_memory_is_no_longer_counted() {
        let budget = budget(80 * MIB);
        let start = Instant::now();
        budget.give_up(5 * MIB, 79 * MIB, start);
        assert_eq!(budget.look(74 * MIB, start), 0);
        assert_eq!(budget.look(79 * MIB, start), 4 * MIB);
    }

    #[test]
    fn without_a_limit_every_client_is_admitted() {
        let budget = Budget::new(None);
        assert_eq!(look(&budget, u64::MAX), 0);
        assert_eq!(admitted(&budget), 10_000);
    }

    #[test]
    fn resident_memory_of_this_process_is_read() {
        let statm = File::open("/proc/self/statm").unwrap();
        for _ in 0..2 {
            assert!((MIB..1024 * MIB).contains(&resident_bytes(&statm).unwrap()));
        }
    }
}
