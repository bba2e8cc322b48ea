//! The registry of open tunnels: counts them, finds idle ones, and requests them to close.
//!
//! A tunnel has no timer of its own. One sweeper advances a coarse clock, and compares it with the time of each tunnel's last
//! byte and of its opening.
//!
//! Invariant: a tunnel is in the registry from before its task is spawned, so that a close request made in between reaches it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Locks of the registry; a power of two.
const SHARDS: usize = 16;

/// The ticks of the sweeper's clock per timeout: an expired timeout is detected at most a tenth late.
const TICKS: u32 = 10;

/// The idle timeout of a half-closed tunnel, if `timeouts.tunnel_idle` is longer.
///
/// The side that has closed waits only for the rest of the other side's data.
const HALF_CLOSED_IDLE: Duration = Duration::from_secs(60);

const CLOSE_NONE: u8 = 0;
const CLOSE_IDLE: u8 = 1;
const CLOSE_LIFETIME: u8 = 2;
const CLOSE_DRAIN: u8 = 3;

/// A request to a tunnel to close, with its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseRequest {
    /// No bytes passed for too long.
    Idle,
    /// Its maximum lifetime is over.
    Lifetime,
    /// The edge is shutting down.
    Drain,
}

/// The timeouts of tunnels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TunnelLimits {
    /// How long no byte may pass in either direction.
    pub(crate) idle: Duration,
    /// How long a tunnel may be open; `None` is no limit.
    pub(crate) lifetime: Option<Duration>,
}

/// All open tunnels.
pub(crate) struct Tunnels {
    shards: [Mutex<HashMap<u64, Arc<Control>>>; SHARDS],
    next: AtomicU64,
    clock: AtomicU32,
    draining: AtomicBool,
    limits: TunnelLimits,
    tasks: TaskTracker,
}

/// The state that the registry and a tunnel share.
#[derive(Default)]
struct Control {
    close_request: AtomicU8,
    half_closed: AtomicBool,
    last_active: AtomicU32,
    opened: u32,
    waker: AtomicWaker,
}

/// A tunnel's entry in the registry, removed on drop.
pub(crate) struct Entry {
    tunnels: Arc<Tunnels>,
    key: u64,
    control: Arc<Control>,
}

impl Tunnels {
    /// An empty registry.
    pub(crate) fn new(limits: TunnelLimits) -> Arc<Self> {
        Arc::new(Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            next: AtomicU64::new(0),
            clock: AtomicU32::new(0),
            draining: AtomicBool::new(false),
            limits,
            tasks: TaskTracker::new(),
        })
    }

    /// Registers a tunnel that is about to be opened.
    pub(crate) fn register(self: &Arc<Self>) -> Entry {
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        let now = self.clock.load(Ordering::Relaxed);
        let control = Arc::new(Control {
            last_active: AtomicU32::new(now),
            opened: now,
            ..Control::default()
        });
        self.shard(key).lock().insert(key, Arc::clone(&control));
        // Read after the insertion: a drain either finds the tunnel in the map, or is seen here.
        if self.draining.load(Ordering::SeqCst) {
            control.close_request.store(CLOSE_DRAIN, Ordering::Release);
        }
        Entry {
            tunnels: Arc::clone(self),
            key,
            control,
        }
    }

    /// The tracker of the tunnels' tasks.
    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// The number of tunnel tasks.
    pub(crate) fn open(&self) -> usize {
        self.tasks.len()
    }

    /// Asks the tunnels whose key modulo `batches` is in `range` to close.
    pub(crate) fn drain_batches(&self, range: Range<u64>, batches: u64) {
        self.request_close_where(CLOSE_DRAIN, |key, _| {
            range.contains(&(key % batches.max(1)))
        });
    }

    /// Requests all tunnels to close, including those that are opened from here on.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.tasks.close();
        self.request_close_where(CLOSE_DRAIN, |_, _| true);
    }

    /// Ready when [`Tunnels::drain`] was called and no tunnel is open.
    pub(crate) async fn wait_closed(&self) {
        self.tasks.wait().await;
    }

    /// Advances the clock and closes tunnels whose timeouts are over, until `shutdown`.
    pub(crate) async fn sweep(self: Arc<Self>, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(self.tick());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => self.sweep_once(),
            }
        }
    }

    fn tick(&self) -> Duration {
        let shortest = self.limits.idle.min(HALF_CLOSED_IDLE);
        let shortest = self.limits.lifetime.unwrap_or(shortest).min(shortest);
        (shortest / TICKS).max(Duration::from_millis(1))
    }

    fn sweep_once(&self) {
        let now = self.clock.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let ticks = |time: Duration| ticks_of(time, self.tick());
        let idle = ticks(self.limits.idle);
        let half_closed = ticks(self.limits.idle.min(HALF_CLOSED_IDLE));
        self.request_close_where(CLOSE_IDLE, |_, control| {
            let limit = if control.half_closed.load(Ordering::Relaxed) {
                half_closed
            } else {
                idle
            };
            limit < now.wrapping_sub(control.last_active.load(Ordering::Relaxed))
        });
        if let Some(lifetime) = self.limits.lifetime {
            let lifetime = ticks(lifetime);
            self.request_close_where(CLOSE_LIFETIME, |key, control| {
                // Up to a tenth earlier, so that clients that connected at the same time do not reconnect at the same time.
                let early = lifetime / 10 * (key % 16) as u32 / 16;
                lifetime - early < now.wrapping_sub(control.opened)
            });
        }
    }

    fn request_close_where(&self, close_request: u8, chosen: impl Fn(u64, &Control) -> bool) {
        for shard in &self.shards {
            for (key, control) in &*shard.lock() {
                if chosen(*key, control)
                    && control
                        .close_request
                        .fetch_max(close_request, Ordering::AcqRel)
                        < close_request
                {
                    control.waker.wake();
                }
            }
        }
    }

    fn shard(&self, key: u64) -> &Mutex<HashMap<u64, Arc<Control>>> {
        &self.shards[usize::try_from(key % SHARDS as u64).unwrap_or_default()]
    }
}

/// The number of whole ticks in `time`.
fn ticks_of(time: Duration, tick: Duration) -> u32 {
    u32::try_from(time.as_millis() / tick.as_millis().max(1)).unwrap_or(u32::MAX)
}

impl Entry {
    /// The pending close request.
    pub(crate) fn close_request(&self) -> Option<CloseRequest> {
        match self.control.close_request.load(Ordering::Acquire) {
            CLOSE_NONE => None,
            CLOSE_IDLE => Some(CloseRequest::Idle),
            CLOSE_LIFETIME => Some(CloseRequest::Lifetime),
            _ => Some(CloseRequest::Drain),
        }
    }

    /// Registers the waker for close requests.
    pub(crate) fn register_waker(&self, waker: &Waker) {
        self.control.waker.register(waker);
    }

    /// Records that bytes have passed.
    pub(crate) fn touch(&self) {
        self.control.last_active.store(
            self.tunnels.clock.load(Ordering::Relaxed),
            Ordering::Relaxed,
        );
    }

    /// Records that one direction has ended.
    pub(crate) fn half_closed(&self) {
        self.control.half_closed.store(true, Ordering::Relaxed);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut shard = self.tunnels.shard(self.key).lock();
        shard.remove(&self.key);
        // Frees the memory of a burst of tunnels.
        if shard.len() * 4 < shard.capacity() {
            let room = shard.len() * 2;
            shard.shrink_to(room);
        }
    }
}
