//! The registry of open tunnels: counts and lists them, finds idle ones, and requests them to close.
//!
//! A tunnel has no timer of its own. One sweeper advances a coarse clock, and compares it with the time of each tunnel's last
//! byte and of its opening. What a list shows is in the one allocation that a tunnel and the registry share.
//!
//! Invariant: a tunnel is in the registry from before its task is spawned, so that a close request made in between reaches it.

use std::collections::{BinaryHeap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::tunnel::info::{TunnelGroup, TunnelInfo};

/// Locks of the registry; a power of two.
const SHARDS: usize = 16;

/// The ticks of the sweeper's clock per timeout: an expired timeout is detected at most a tenth late.
const TICKS: u32 = 10;

/// The idle timeout of a half-closed tunnel, if `timeouts.tunnel_idle` is longer.
///
/// The side that has closed waits only for the rest of the other side's data.
const HALF_CLOSED_IDLE: Duration = Duration::from_secs(60);

/// It has never been requested to be parked.
const PARK_NONE: u8 = 0;
const PARK_REQUESTED: u8 = 1;
/// It has seen the request. The wake-up for it may come later, and takes the waker.
const PARK_ANSWERED: u8 = 2;

/// A request to a tunnel to close, with its reason. A tunnel follows the first one that it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum CloseRequest {
    /// No bytes passed for too long.
    Idle = 1,
    /// Its maximum lifetime is over.
    Lifetime,
    /// Its backend has more tunnels than its share.
    Rebalance,
    /// Its backend drains.
    BackendDrain,
    /// An operator ends it, and its client may stay away.
    OperatorGoingAway,
    /// An operator ends it, and its client is to reconnect.
    OperatorRestart,
    /// The edge is shutting down.
    Drain,
}

impl CloseRequest {
    const ALL: [Self; 7] = [
        Self::Idle,
        Self::Lifetime,
        Self::Rebalance,
        Self::BackendDrain,
        Self::OperatorGoingAway,
        Self::OperatorRestart,
        Self::Drain,
    ];

    /// The request with this number; 0 is none.
    fn of(number: u8) -> Option<Self> {
        let index = usize::from(number).checked_sub(1)?;
        Self::ALL.get(index).copied()
    }
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
struct Control {
    /// The number of a [`CloseRequest`]; 0 is none.
    close_request: AtomicU8,
    /// Whether it is to be parked, for another process to continue it: one of the `PARK_*` below.
    park: AtomicU8,
    half_closed: AtomicBool,
    last_active: AtomicU32,
    opened: u32,
    /// The low half of the number that it was given when it came to its backend: its own, or that of its last handoff.
    placed: u32,
    bytes_from_client: AtomicU64,
    bytes_from_backend: AtomicU64,
    waker: AtomicWaker,
    info: TunnelInfo,
}

impl Control {
    fn request_close(&self, request: CloseRequest) {
        let number = request as u8;
        if self.close_request.fetch_max(number, Ordering::AcqRel) < number {
            self.waker.wake();
        }
    }

    fn close_request(&self) -> Option<CloseRequest> {
        CloseRequest::of(self.close_request.load(Ordering::Acquire))
    }
}

/// A tunnel's entry in the registry, removed on drop.
pub(crate) struct Entry {
    tunnels: Arc<Tunnels>,
    key: u64,
    control: Arc<Control>,
}

/// A tunnel, from outside of its task. It may have ended meanwhile.
#[derive(Clone)]
pub(crate) struct TunnelHandle {
    key: u64,
    control: Arc<Control>,
}

impl TunnelHandle {
    /// Its number, which grows with each tunnel that is opened.
    pub(crate) fn key(&self) -> u64 {
        self.key
    }

    /// Requests it to close.
    pub(crate) fn request_close(&self, request: CloseRequest) {
        self.control.request_close(request);
    }

    /// Requests it to be parked, if it can be ([`Event::ParkRequested`](crate::tunnel::Event::ParkRequested)).
    pub(crate) fn request_park(&self) {
        self.control.park.store(PARK_REQUESTED, Ordering::Release);
        self.control.waker.wake();
    }

    /// Whether it has been requested to be parked, and neither responded nor ended yet.
    pub(crate) fn is_park_pending(&self) -> bool {
        // An open tunnel and the registry hold it too.
        let is_open = 1 < Arc::strong_count(&self.control);
        is_open && self.control.park.load(Ordering::Acquire) == PARK_REQUESTED
    }

    pub(crate) fn info(&self) -> &TunnelInfo {
        &self.control.info
    }
}

/// How long a tunnel has been open, and what has passed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TunnelAge {
    /// Within the precision of the sweeper's clock.
    pub(crate) open: Duration,
    /// For how long no bytes have passed; the same.
    pub(crate) idle: Duration,
    pub(crate) half_closed: bool,
    pub(crate) bytes_from_client: u64,
    pub(crate) bytes_from_backend: u64,
}

/// Which tunnels a list shows.
#[derive(Clone, Debug, Default)]
pub(crate) struct TunnelFilter {
    pub(crate) pool: Option<String>,
    pub(crate) backend: Option<String>,
    pub(crate) client: Option<IpAddr>,
    /// Only tunnels with a larger number.
    pub(crate) after: Option<u64>,
}

impl TunnelFilter {
    fn matches(&self, info: &TunnelInfo) -> bool {
        let is = |wanted: &Option<String>, value: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted == value)
        };
        is(&self.pool, &info.group.pool)
            && is(&self.backend, info.group.backend.as_str())
            && self.client.is_none_or(|client| client == info.client)
    }
}

/// A part of the list of tunnels.
pub(crate) struct TunnelPage {
    /// Those with the smallest numbers, in that order.
    pub(crate) tunnels: Vec<ListedTunnel>,
    /// How many match the filter, with those that are not on this page.
    pub(crate) matching: usize,
}

/// One tunnel of a list.
pub(crate) struct ListedTunnel {
    pub(crate) handle: TunnelHandle,
    /// For how long no bytes have passed, within the precision of the sweeper's clock.
    pub(crate) idle: Duration,
    pub(crate) bytes_from_client: u64,
    pub(crate) bytes_from_backend: u64,
    pub(crate) is_closing: bool,
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

    /// Registers a tunnel that is about to be opened for a request that arrived at `request_arrived`.
    pub(crate) fn register(self: &Arc<Self>, info: TunnelInfo, request_arrived: Instant) -> Entry {
        self.register_with(info, request_arrived, &TunnelAge::default())
    }

    /// As [`Tunnels::register`], for a tunnel that has been open before, in another process.
    pub(crate) fn register_with(
        self: &Arc<Self>,
        info: TunnelInfo,
        request_arrived: Instant,
        age: &TunnelAge,
    ) -> Entry {
        let key = self.next.fetch_add(1, Ordering::SeqCst);
        let now = self.clock.load(Ordering::Relaxed);
        let control = Arc::new(Control {
            close_request: AtomicU8::new(0),
            park: AtomicU8::new(PARK_NONE),
            half_closed: AtomicBool::new(age.half_closed),
            last_active: AtomicU32::new(now.wrapping_sub(ticks_of(age.idle, self.tick()))),
            opened: now.wrapping_sub(ticks_of(age.open, self.tick())),
            placed: low_half(key),
            bytes_from_client: AtomicU64::new(age.bytes_from_client),
            bytes_from_backend: AtomicU64::new(age.bytes_from_backend),
            waker: AtomicWaker::new(),
            info,
        });
        self.shard(key).lock().insert(key, Arc::clone(&control));
        // Read after the insertion: a drain either finds the tunnel in the map, or is seen here.
        if self.draining.load(Ordering::SeqCst) {
            control.request_close(CloseRequest::Drain);
        } else if control.info.group.is_drained_since(request_arrived) {
            control.request_close(CloseRequest::BackendDrain);
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

    /// All tunnels, in the order in which they were opened.
    pub(crate) fn all(&self) -> Vec<TunnelHandle> {
        self.select(|_, _| true)
    }

    /// Begins a drain of `group`, and returns the tunnels that it has to close, in the order in which they were opened.
    ///
    /// A tunnel that is being opened for an earlier request is closed as soon as it is open. Tunnels of later requests stay: their
    /// clients would be moved twice.
    pub(crate) fn begin_drain(&self, group: &TunnelGroup, now: Instant) -> Vec<TunnelHandle> {
        group.set_drained(Some(now));
        self.of(group)
    }

    /// Calls the drain of `group` off, for tunnels that are being opened.
    pub(crate) fn end_drain(&self, group: &TunnelGroup) {
        group.set_drained(None);
    }

    /// The tunnels of `group`, in the order in which they were opened.
    pub(crate) fn of(&self, group: &TunnelGroup) -> Vec<TunnelHandle> {
        self.select(|_, control| std::ptr::eq(&*control.info.group, group))
    }

    /// The tunnels of `group` that are not being closed and came to its backend before the number `below` was given, those without bytes
    /// for the longest time first.
    pub(crate) fn idlest_of(&self, group: &TunnelGroup, below: u64) -> Vec<TunnelHandle> {
        let next = self.next_key();
        let placed = |control: &Control| {
            // One of more than 2^32 numbers ago seems to have come later, and stays.
            next - u64::from(low_half(next).wrapping_sub(control.placed))
        };
        let mut tunnels = self.select(|_, control| {
            placed(control) < below
                && std::ptr::eq(&*control.info.group, group)
                && control.close_request().is_none()
        });
        let now = self.clock.load(Ordering::Relaxed);
        let idle = |tunnel: &TunnelHandle| {
            now.wrapping_sub(tunnel.control.last_active.load(Ordering::Relaxed))
        };
        tunnels.sort_by_cached_key(|tunnel| std::cmp::Reverse(idle(tunnel)));
        tunnels
    }

    /// The number that the next tunnel gets: all that are open have smaller ones.
    pub(crate) fn next_key(&self) -> u64 {
        self.next.load(Ordering::SeqCst)
    }

    /// The tunnel with this number, if it is open.
    pub(crate) fn find(&self, key: u64) -> Option<TunnelHandle> {
        let control = Arc::clone(self.shard(key).lock().get(&key)?);
        Some(TunnelHandle { key, control })
    }

    /// The first `limit` tunnels that match `filter`, by number. Holds no more than that many at a time.
    pub(crate) fn page(&self, filter: &TunnelFilter, limit: usize) -> TunnelPage {
        let mut matching = 0;
        let mut smallest: BinaryHeap<u64> = BinaryHeap::new();
        for shard in &self.shards {
            for (key, control) in &*shard.lock() {
                if !filter.matches(&control.info) {
                    continue;
                }
                matching += 1;
                if filter.after.is_some_and(|after| *key <= after) {
                    continue;
                }
                smallest.push(*key);
                if limit < smallest.len() {
                    smallest.pop();
                }
            }
        }
        let keys = smallest.into_sorted_vec();
        // One that has ended since then is left out.
        let tunnels = keys.into_iter().filter_map(|key| self.find(key));
        TunnelPage {
            tunnels: tunnels.map(|handle| self.listed(handle)).collect(),
            matching,
        }
    }

    fn listed(&self, handle: TunnelHandle) -> ListedTunnel {
        let control = &handle.control;
        let clock = self.clock.load(Ordering::Relaxed);
        let ticks = clock.wrapping_sub(control.last_active.load(Ordering::Relaxed));
        ListedTunnel {
            idle: self.tick() * ticks,
            bytes_from_client: control.bytes_from_client.load(Ordering::Relaxed),
            bytes_from_backend: control.bytes_from_backend.load(Ordering::Relaxed),
            is_closing: control.close_request().is_some(),
            handle,
        }
    }

    /// Requests all tunnels to close, including those that are opened from here on.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.tasks.close();
        self.request_close_where(CloseRequest::Drain, |_, _| true);
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
        self.request_close_where(CloseRequest::Idle, |_, control| {
            let limit = if control.half_closed.load(Ordering::Relaxed) {
                half_closed
            } else {
                idle
            };
            limit < now.wrapping_sub(control.last_active.load(Ordering::Relaxed))
        });
        if let Some(lifetime) = self.limits.lifetime {
            let lifetime = ticks(lifetime);
            self.request_close_where(CloseRequest::Lifetime, |key, control| {
                // Up to a tenth earlier, so that clients that connected at the same time do not reconnect at the same time.
                let early = lifetime / 10 * (key % 16) as u32 / 16;
                lifetime - early < now.wrapping_sub(control.opened)
            });
        }
    }

    fn request_close_where(&self, request: CloseRequest, chosen: impl Fn(u64, &Control) -> bool) {
        for shard in &self.shards {
            for (key, control) in &*shard.lock() {
                if chosen(*key, control) {
                    control.request_close(request);
                }
            }
        }
    }

    fn select(&self, chosen: impl Fn(u64, &Control) -> bool) -> Vec<TunnelHandle> {
        let mut found = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let chosen = shard.iter().filter(|(key, control)| chosen(**key, control));
            found.extend(chosen.map(|(key, control)| TunnelHandle {
                key: *key,
                control: Arc::clone(control),
            }));
        }
        found.sort_unstable_by_key(TunnelHandle::key);
        found
    }

    fn shard(&self, key: u64) -> &Mutex<HashMap<u64, Arc<Control>>> {
        &self.shards[usize::try_from(key % SHARDS as u64).unwrap_or_default()]
    }
}

fn low_half(number: u64) -> u32 {
    number as u32
}

/// The number of whole ticks in `time`.
fn ticks_of(time: Duration, tick: Duration) -> u32 {
    u32::try_from(time.as_millis() / tick.as_millis().max(1)).unwrap_or(u32::MAX)
}

impl Entry {
    /// The pending close request.
    pub(crate) fn close_request(&self) -> Option<CloseRequest> {
        self.control.close_request()
    }

    /// Whether there is a request to close it, or there has been one to park it: the waker may have been taken.
    pub(crate) fn has_request(&self) -> bool {
        self.close_request().is_some() || self.control.park.load(Ordering::Acquire) != PARK_NONE
    }

    /// Whether it is to be parked. Lifts the request.
    pub(crate) fn take_park_request(&self) -> bool {
        let park = &self.control.park;
        park.load(Ordering::Acquire) == PARK_REQUESTED
            && park.swap(PARK_ANSWERED, Ordering::AcqRel) == PARK_REQUESTED
    }

    /// How old it is, for another process.
    pub(crate) fn age(&self) -> TunnelAge {
        let (control, tick) = (&self.control, self.tunnels.tick());
        let now = self.tunnels.clock.load(Ordering::Relaxed);
        let ticks = |since: u32| tick * now.wrapping_sub(since);
        TunnelAge {
            open: ticks(control.opened),
            idle: ticks(control.last_active.load(Ordering::Relaxed)),
            half_closed: control.half_closed.load(Ordering::Relaxed),
            bytes_from_client: control.bytes_from_client.load(Ordering::Relaxed),
            bytes_from_backend: control.bytes_from_backend.load(Ordering::Relaxed),
        }
    }

    /// The tunnel belongs to the backend of `group` from now on. A close request of its old one no longer counts; the caller
    /// registers its waker again.
    pub(crate) fn move_to(&mut self, group: &Arc<TunnelGroup>) {
        let old = &self.control;
        let control = Arc::new(Control {
            close_request: AtomicU8::new(0),
            park: AtomicU8::new(old.park.load(Ordering::Relaxed)),
            half_closed: AtomicBool::new(old.half_closed.load(Ordering::Relaxed)),
            last_active: AtomicU32::new(old.last_active.load(Ordering::Relaxed)),
            opened: old.opened,
            placed: low_half(self.tunnels.next.fetch_add(1, Ordering::SeqCst)),
            bytes_from_client: AtomicU64::new(old.bytes_from_client.load(Ordering::Relaxed)),
            bytes_from_backend: AtomicU64::new(old.bytes_from_backend.load(Ordering::Relaxed)),
            waker: AtomicWaker::new(),
            info: TunnelInfo {
                group: Arc::clone(group),
                ..old.info.clone()
            },
        });
        let mut shard = self.tunnels.shard(self.key).lock();
        shard.insert(self.key, Arc::clone(&control));
        drop(shard);
        // Read after the insertion, as for a new tunnel.
        if self.tunnels.draining.load(Ordering::SeqCst) {
            control.request_close(CloseRequest::Drain);
        }
        self.control = control;
    }

    /// Registers the waker for close requests.
    pub(crate) fn register_waker(&self, waker: &Waker) {
        self.control.waker.register(waker);
    }

    /// Records that bytes have passed: how many in all, each way.
    pub(crate) fn touch(&self, from_client: u64, from_backend: u64) {
        let control = &self.control;
        let now = self.tunnels.clock.load(Ordering::Relaxed);
        control.last_active.store(now, Ordering::Relaxed);
        control
            .bytes_from_client
            .store(from_client, Ordering::Relaxed);
        control
            .bytes_from_backend
            .store(from_backend, Ordering::Relaxed);
    }

    /// Records that one direction has ended.
    pub(crate) fn half_closed(&self) {
        self.control.half_closed.store(true, Ordering::Relaxed);
    }

    /// The request that became this tunnel.
    pub(crate) fn info(&self) -> &TunnelInfo {
        &self.control.info
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

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: TunnelLimits = TunnelLimits {
        idle: Duration::from_secs(3600),
        lifetime: None,
    };

    fn group(id: &str) -> Arc<TunnelGroup> {
        TunnelGroup::new("p", id.parse().unwrap())
    }

    fn keys(tunnels: &[TunnelHandle]) -> Vec<u64> {
        tunnels.iter().map(TunnelHandle::key).collect()
    }

    /// An idle tunnel with its line of the access log took 64 and 256 bytes of the allocator, and one more for the backend's id.
    #[test]
    fn what_a_tunnel_and_the_registry_share_is_small() {
        let allocated = size_of::<Control>() + 2 * size_of::<usize>();
        assert!(allocated <= 256, "{allocated}");
    }

    #[test]
    fn a_drain_finds_the_tunnels_of_its_group_and_no_other() {
        let tunnels = Tunnels::new(LIMITS);
        let (one, other) = (group("n1"), group("n1"));
        let now = Instant::now();
        let open: Vec<Entry> = [&one, &other, &one]
            .map(|group| tunnels.register(TunnelInfo::of(group), now))
            .into();
        assert_eq!(keys(&tunnels.begin_drain(&one, now)), [0, 2]);
        assert!(open.iter().all(|entry| entry.close_request().is_none()));
    }

    #[test]
    fn of_tunnels_that_are_opened_during_a_drain_only_those_of_earlier_requests_are_closed() {
        let tunnels = Tunnels::new(LIMITS);
        let drained = group("n1");
        let before = Instant::now();
        let begin = before + Duration::from_secs(1);
        assert!(tunnels.begin_drain(&drained, begin).is_empty());
        let open = |arrived| tunnels.register(TunnelInfo::of(&drained), arrived);
        let earlier = open(before).close_request();
        assert_eq!(earlier, Some(CloseRequest::BackendDrain));
        let later = open(begin + Duration::from_secs(1));
        assert_eq!(later.close_request(), None);
        tunnels.end_drain(&drained);
        assert_eq!(open(before).close_request(), None);
    }

    #[test]
    fn a_page_has_the_tunnels_with_the_smallest_numbers_that_match() {
        let tunnels = Tunnels::new(LIMITS);
        let (one, other) = (group("n1"), group("n2"));
        let now = Instant::now();
        let open: Vec<Entry> = (0..40)
            .map(|number| if number % 2 == 0 { &one } else { &other })
            .map(|group| tunnels.register(TunnelInfo::of(group), now))
            .collect();
        let page = |filter: TunnelFilter, limit| {
            let page = tunnels.page(&filter, limit);
            let numbers = page.tunnels.iter().map(|tunnel| tunnel.handle.key());
            (numbers.collect::<Vec<_>>(), page.matching)
        };
        let of_other = TunnelFilter {
            backend: Some("n2".to_owned()),
            ..TunnelFilter::default()
        };
        assert_eq!(page(of_other.clone(), 3), (vec![1, 3, 5], 20));
        let next = TunnelFilter {
            after: Some(5),
            ..of_other
        };
        assert_eq!(page(next.clone(), 2), (vec![7, 9], 20));
        assert_eq!(page(next, 100).0.len(), 17);
        let nobody = TunnelFilter {
            client: Some(IpAddr::from([10, 0, 0, 1])),
            ..TunnelFilter::default()
        };
        assert_eq!(page(nobody, 3), (Vec::new(), 0));
        drop(open);
        assert_eq!(page(TunnelFilter::default(), 3), (Vec::new(), 0));
    }

    #[test]
    fn the_idlest_come_first_and_those_that_are_closing_not_at_all() {
        let tunnels = Tunnels::new(LIMITS);
        let group = group("n1");
        let now = Instant::now();
        let open: Vec<Entry> = (0..4)
            .map(|_| tunnels.register(TunnelInfo::of(&group), now))
            .collect();
        tunnels.sweep_once();
        open[0].touch(1, 1);
        tunnels.sweep_once();
        open[2].touch(1, 1);
        tunnels.find(1).unwrap().request_close(CloseRequest::Idle);
        assert_eq!(keys(&tunnels.idlest_of(&group, 10)), [3, 0, 2]);
        assert_eq!(keys(&tunnels.idlest_of(&group, 3)), [0, 2]);
    }

    #[test]
    fn a_tunnel_that_was_handed_off_counts_as_one_that_was_opened_then() {
        for first in [0, u64::from(u32::MAX) - 1] {
            let tunnels = Tunnels::new(LIMITS);
            tunnels.next.store(first, Ordering::SeqCst);
            let (one, other) = (group("n1"), group("n2"));
            let now = Instant::now();
            let mut open: Vec<Entry> = (0..3)
                .map(|_| tunnels.register(TunnelInfo::of(&one), now))
                .collect();
            let rebalanced = tunnels.next_key();
            open[1].move_to(&other);
            let numbers = |group, below| keys(&tunnels.idlest_of(group, below));
            assert_eq!(numbers(&one, rebalanced), [first, first + 2]);
            assert!(numbers(&other, rebalanced).is_empty());
            assert_eq!(numbers(&other, tunnels.next_key()), [first + 1]);
            assert_eq!(numbers(&other, u64::MAX), [first + 1]);
        }
    }

    #[test]
    fn each_close_request_has_a_number_of_its_own() {
        for request in CloseRequest::ALL {
            assert_eq!(CloseRequest::of(request as u8), Some(request));
        }
        assert_eq!(CloseRequest::of(0), None);
    }
}
