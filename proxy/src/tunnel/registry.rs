//! The open tunnels: how they are counted, found idle, and told to close.
//!
//! A tunnel has no timer of its own. One sweeper moves a coarse clock and looks at when each tunnel last moved a byte, and when
//! it was opened.
//!
//! Invariant: a tunnel is in the registry from before its task is spawned, so that an order given in between reaches it.

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

/// How many ticks of the sweeper's clock a timeout is cut into: that it is over is found within a tenth more than it.
const TICKS: u32 = 10;

/// The longest a tunnel with one ended direction may be silent.
///
/// An end that has said goodbye is owed an answer, not an hour of waiting.
const HALF_CLOSED_IDLE: Duration = Duration::from_secs(60);

const ORDER_NONE: u8 = 0;
const ORDER_IDLE: u8 = 1;
const ORDER_LIFETIME: u8 = 2;
const ORDER_DRAIN: u8 = 3;

/// Why a tunnel is told to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Nothing passed for too long.
    Idle,
    /// It has been open for as long as it may.
    Lifetime,
    /// The edge is being stopped.
    Drain,
}

/// How long tunnels may last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TunnelLimits {
    /// Without a byte, either way.
    pub(crate) idle: Duration,
    /// In all; `None` is for ever.
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

/// What the registry and a tunnel share.
#[derive(Default)]
struct Control {
    order: AtomicU8,
    half_closed: AtomicBool,
    last_active: AtomicU32,
    opened: u32,
    waker: AtomicWaker,
}

/// A tunnel's place in the registry, given up when dropped.
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

    /// Makes a place for a tunnel that is about to be opened.
    pub(crate) fn register(self: &Arc<Self>) -> Entry {
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        let now = self.clock.load(Ordering::Relaxed);
        let control = Arc::new(Control {
            last_active: AtomicU32::new(now),
            opened: now,
            ..Control::default()
        });
        self.shard(key).lock().insert(key, Arc::clone(&control));
        // Looked at behind the insertion: a drain that does not find the tunnel is found by it.
        if self.draining.load(Ordering::SeqCst) {
            control.order.store(ORDER_DRAIN, Ordering::Release);
        }
        Entry {
            tunnels: Arc::clone(self),
            key,
            control,
        }
    }

    /// Where the tasks of tunnels are spawned and waited for.
    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// How many tasks of tunnels there are.
    pub(crate) fn open(&self) -> usize {
        self.tasks.len()
    }

    /// Tells the tunnels whose number falls into `range` of each `parts` to close.
    pub(crate) fn drain_part(&self, range: Range<u64>, parts: u64) {
        self.order_where(ORDER_DRAIN, |key, _| range.contains(&(key % parts.max(1))));
    }

    /// Tells all tunnels to close, and those that are opened from here on.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.tasks.close();
        self.order_where(ORDER_DRAIN, |_, _| true);
    }

    /// Ready when the drain of all has begun and none is left.
    pub(crate) async fn gone(&self) {
        self.tasks.wait().await;
    }

    /// Moves the clock and ends tunnels whose time is over until `shutdown`.
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
        self.order_where(ORDER_IDLE, |_, control| {
            let limit = if control.half_closed.load(Ordering::Relaxed) {
                half_closed
            } else {
                idle
            };
            limit < now.wrapping_sub(control.last_active.load(Ordering::Relaxed))
        });
        if let Some(lifetime) = self.limits.lifetime {
            let lifetime = ticks(lifetime);
            self.order_where(ORDER_LIFETIME, |key, control| {
                // Up to a tenth earlier, or all that were opened at once would come back at once.
                let early = lifetime / 10 * (key % 16) as u32 / 16;
                lifetime - early < now.wrapping_sub(control.opened)
            });
        }
    }

    fn order_where(&self, order: u8, chosen: impl Fn(u64, &Control) -> bool) {
        for shard in &self.shards {
            for (key, control) in &*shard.lock() {
                if chosen(*key, control) && control.order.fetch_max(order, Ordering::AcqRel) < order
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

/// How many whole ticks `time` is.
fn ticks_of(time: Duration, tick: Duration) -> u32 {
    u32::try_from(time.as_millis() / tick.as_millis().max(1)).unwrap_or(u32::MAX)
}

impl Entry {
    /// What the tunnel has been told.
    pub(crate) fn order(&self) -> Option<Order> {
        match self.control.order.load(Ordering::Acquire) {
            ORDER_NONE => None,
            ORDER_IDLE => Some(Order::Idle),
            ORDER_LIFETIME => Some(Order::Lifetime),
            _ => Some(Order::Drain),
        }
    }

    /// Whom to wake when the tunnel is told something.
    pub(crate) fn wake_by(&self, waker: &Waker) {
        self.control.waker.register(waker);
    }

    /// A byte has passed.
    pub(crate) fn touch(&self) {
        self.control.last_active.store(
            self.tunnels.clock.load(Ordering::Relaxed),
            Ordering::Relaxed,
        );
    }

    /// One direction has ended.
    pub(crate) fn half_closed(&self) {
        self.control.half_closed.store(true, Ordering::Relaxed);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut shard = self.tunnels.shard(self.key).lock();
        shard.remove(&self.key);
        // A burst of tunnels must not leave its table behind.
        if shard.len() * 4 < shard.capacity() {
            let room = shard.len() * 2;
            shard.shrink_to(room);
        }
    }
}
