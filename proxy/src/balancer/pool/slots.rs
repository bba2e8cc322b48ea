//! Limits the requests in flight at one backend, and queues those beyond the limit.
//!
//! A client that is bound to a backend is not bound elsewhere because the backend is busy for a moment: its request waits in a queue
//! that is bounded in length and in time. [`Queue`] is a plain type that decides and never waits. [`RequestSlots`] is the interface
//! for requests, and a [`QueuedRequest`] is a position in the queue.
//!
//! A request that need not wait (its client is not bound, and another backend has a free slot) is not queued: the caller chooses
//! another backend.
//!
//! Invariants: there are never more [`RequestSlot`]s than `requests_max`, except after that was reduced. While there are fewer, the
//! queue is empty. Requests get slots in the order of arrival.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use crate::limits::BackendLimit;

/// The result of [`RequestSlots::acquire`].
#[derive(Debug)]
pub(crate) enum AcquireOutcome {
    /// The request can be sent.
    Slot(RequestSlot),
    /// The request is queued.
    Queued(QueuedRequest),
    /// The queue is full.
    Full,
}

/// Why a queued request gets no slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoSlot {
    /// It has waited for `limits.queue_time`.
    #[error("no slot within {0:?}")]
    Timeout(Duration),
    /// The queue was cleared, because the backend went down.
    #[error("the backend takes no more requests")]
    Unavailable,
}

/// The slots of one backend. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct RequestSlots(Arc<Mutex<Queue<oneshot::Sender<RequestSlot>>>>);

/// The permit for one request at the backend. On drop it goes to the next queued request, or is released.
#[derive(Debug)]
pub(crate) struct RequestSlot {
    /// `None` if it was handed to another request.
    slots: Option<RequestSlots>,
}

/// A position in the queue, left on drop.
#[derive(Debug)]
pub(crate) struct QueuedRequest {
    slots: RequestSlots,
    number: u64,
    granted: oneshot::Receiver<RequestSlot>,
    wait: Duration,
    until: Instant,
}

/// Counts the slots, and queues a `W` for each waiting request.
#[derive(Debug)]
struct Queue<W> {
    config: BackendLimit,
    in_use: usize,
    /// By number, which is the order of arrival.
    waiting: BTreeMap<u64, W>,
    next_number: u64,
}

/// The result of [`Queue::acquire`].
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Slot,
    Queued(u64),
    Full,
}

impl<W> Queue<W> {
    fn new(config: BackendLimit) -> Self {
        Self {
            config,
            in_use: 0,
            waiting: BTreeMap::new(),
            next_number: 0,
        }
    }

    fn has_room(&self) -> bool {
        self.in_use < self.config.requests_max as usize
    }

    /// A slot for a new request, or a position in the queue with the `W` that `waiter` creates.
    fn acquire(&mut self, waiter: impl FnOnce() -> W) -> Decision {
        if self.has_room() {
            debug_assert!(
                self.waiting.is_empty(),
                "no request waits while a slot is free"
            );
            self.in_use += 1;
            return Decision::Slot;
        }
        if self.config.queue_max as usize <= self.waiting.len() {
            return Decision::Full;
        }
        let number = self.next_number;
        self.next_number += 1;
        self.waiting.insert(number, waiter());
        Decision::Queued(number)
    }

    /// Releases a slot. Returns the waiting request that gets it, if there is one and the limit allows it.
    fn release(&mut self) -> Option<W> {
        debug_assert!(0 < self.in_use, "a slot is released once");
        self.in_use -= 1;
        self.grant()
    }

    /// Takes a free slot for the request that waits longest, and returns that request.
    fn grant(&mut self) -> Option<W> {
        if !self.has_room() {
            return None;
        }
        let (_, waiter) = self.waiting.pop_first()?;
        self.in_use += 1;
        Some(waiter)
    }

    /// Removes a waiting request.
    fn remove(&mut self, number: u64) {
        self.waiting.remove(&number);
    }

    /// Removes all waiting requests.
    fn clear(&mut self) -> BTreeMap<u64, W> {
        std::mem::take(&mut self.waiting)
    }
}

impl Default for RequestSlots {
    /// Without a limit.
    fn default() -> Self {
        Self::new(BackendLimit {
            requests_max: u32::MAX,
            queue_max: 0,
            wait_max: Duration::ZERO,
        })
    }
}

impl RequestSlots {
    fn new(config: BackendLimit) -> Self {
        Self(Arc::new(Mutex::new(Queue::new(config))))
    }

    /// Applies `config`. Slots beyond a smaller limit are not handed on when they are released; requests beyond a smaller queue stay.
    fn change(&self, config: BackendLimit) {
        if std::mem::replace(&mut self.0.lock().config, config) == config {
            return;
        }
        loop {
            // The lock is not held while a slot is handed over: its receiver may be gone, and then the slot is released again.
            let waiter = self.0.lock().grant();
            match waiter {
                Some(waiter) => self.hand_over(waiter),
                None => return,
            }
        }
    }

    /// Applies `config`, and returns a slot for a request that arrives at `now`, or a position in the queue.
    pub(crate) fn acquire(&self, config: BackendLimit, now: Instant) -> AcquireOutcome {
        self.change(config);
        let (waiter, granted) = oneshot::channel();
        let mut queue = self.0.lock();
        let wait = queue.config.wait_max;
        match queue.acquire(|| waiter) {
            Decision::Slot => AcquireOutcome::Slot(self.slot()),
            Decision::Full => AcquireOutcome::Full,
            Decision::Queued(number) => AcquireOutcome::Queued(QueuedRequest {
                slots: self.clone(),
                number,
                granted,
                wait,
                until: now + wait,
            }),
        }
    }

    /// Clears the queue: all waiting requests get [`NoSlot::Unavailable`] at once. For a backend that has gone down.
    pub(crate) fn clear_queue(&self) {
        // Dropped outside of the lock.
        let _waiting = self.0.lock().clear();
    }

    /// How many slots are in use.
    #[cfg(test)]
    pub(crate) fn in_use(&self) -> usize {
        self.0.lock().in_use
    }

    /// How many requests are queued.
    #[cfg(test)]
    pub(crate) fn queued(&self) -> usize {
        self.0.lock().waiting.len()
    }

    fn slot(&self) -> RequestSlot {
        RequestSlot {
            slots: Some(self.clone()),
        }
    }

    /// Hands a slot, which is counted already, to `waiter`, or to the next one if that was dropped meanwhile.
    fn hand_over(&self, waiter: oneshot::Sender<RequestSlot>) {
        let mut next = Some(waiter);
        while let Some(waiter) = next {
            next = match waiter.send(self.slot()) {
                Ok(()) => None,
                Err(mut undelivered) => {
                    // Released here and not by its drop, which would recurse.
                    undelivered.slots = None;
                    self.0.lock().release()
                }
            };
        }
    }
}

impl Drop for RequestSlot {
    fn drop(&mut self) {
        let Some(slots) = self.slots.take() else {
            return;
        };
        let waiter = slots.0.lock().release();
        if let Some(waiter) = waiter {
            slots.hand_over(waiter);
        }
    }
}

impl QueuedRequest {
    /// When the request stops waiting.
    #[cfg(test)]
    fn until(&self) -> Instant {
        self.until
    }

    /// Waits for the slot.
    ///
    /// # Errors
    ///
    /// [`NoSlot`]: another backend is to be tried, or the request is rejected.
    ///
    /// # Cancel safety
    ///
    /// The position is kept until `self` is dropped: it can be waited for again. Then a slot that was granted meanwhile goes to
    /// the next request.
    pub(crate) async fn slot(&mut self) -> Result<RequestSlot, NoSlot> {
        match timeout_at(self.until.into(), &mut self.granted).await {
            Ok(Ok(slot)) => Ok(slot),
            Ok(Err(_)) => Err(NoSlot::Unavailable),
            Err(_) => Err(NoSlot::Timeout(self.wait)),
        }
    }
}

impl Drop for QueuedRequest {
    fn drop(&mut self) {
        self.slots.0.lock().remove(self.number);
        // A slot that was granted is in the channel, and is handed on when that is dropped.
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, poll};
    use tokio::task::JoinSet;
    use tokio::time;

    use super::*;

    const WAIT: Duration = Duration::from_secs(5);

    fn slots(slots_max: u32, queue_max: u32) -> RequestSlots {
        RequestSlots::new(config(Some(slots_max), queue_max))
    }

    fn config(requests_max: Option<u32>, queue_max: u32) -> BackendLimit {
        BackendLimit {
            requests_max: requests_max.unwrap_or(u32::MAX),
            queue_max,
            wait_max: WAIT,
        }
    }

    impl RequestSlots {
        /// With the current settings.
        fn acquire_now(&self) -> AcquireOutcome {
            let config = self.0.lock().config;
            self.acquire(config, now())
        }
    }

    fn now() -> Instant {
        time::Instant::now().into_std()
    }

    fn slot(slots: &RequestSlots) -> RequestSlot {
        match slots.acquire_now() {
            AcquireOutcome::Slot(slot) => slot,
            other => panic!("{other:?}"),
        }
    }

    fn queued(slots: &RequestSlots) -> QueuedRequest {
        match slots.acquire_now() {
            AcquireOutcome::Queued(queued) => queued,
            other => panic!("{other:?}"),
        }
    }

    fn counts(slots: &RequestSlots) -> (usize, usize) {
        (slots.in_use(), slots.queued())
    }

    #[tokio::test(start_paused = true)]
    async fn requests_beyond_the_limit_wait_in_order_of_arrival() {
        let slots = slots(1, 2);
        let held = slot(&slots);
        let (mut first, mut second) = (queued(&slots), queued(&slots));
        assert!(matches!(slots.acquire_now(), AcquireOutcome::Full));
        assert_eq!(counts(&slots), (1, 2));
        assert!(poll!(std::pin::pin!(second.slot())).is_pending());
        drop(held);
        let held = first.slot().await.unwrap();
        assert_eq!(counts(&slots), (1, 1));
        assert!(second.slot().now_or_never().is_none());
        drop(held);
        let held = second.slot().await.unwrap();
        drop(held);
        assert_eq!(counts(&slots), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_request_does_not_overtake_queued_ones() {
        let slots = slots(1, 10);
        let held = slot(&slots);
        let mut first = queued(&slots);
        drop(held);
        // The slot is granted to the first one, although it was not polled yet.
        let _second = queued(&slots);
        first.slot().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_queued_request_times_out_at_its_deadline_and_leaves_the_queue() {
        let slots = slots(1, 1);
        let _held = slot(&slots);
        let mut waiting = queued(&slots);
        assert_eq!(waiting.until(), now() + WAIT);
        let almost = time::timeout(WAIT - Duration::from_millis(1), waiting.slot());
        assert!(almost.await.is_err(), "it still waits");
        assert_eq!(waiting.slot().await.unwrap_err(), NoSlot::Timeout(WAIT));
        assert!(
            matches!(slots.acquire_now(), AcquireOutcome::Full),
            "until it is dropped"
        );
        drop(waiting);
        assert_eq!(counts(&slots), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slot_of_a_dropped_request_goes_to_the_next() {
        let slots = slots(1, 9);
        let held = slot(&slots);
        let (gone, late, mut next) = (queued(&slots), queued(&slots), queued(&slots));
        drop(gone);
        assert_eq!(slots.queued(), 2);
        drop(held);
        // The slot was granted without a poll.
        assert_eq!(counts(&slots), (1, 1));
        drop(late);
        next.slot().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn dropping_many_queued_requests_does_not_recurse() {
        let slots = slots(1, 100_000);
        let held = slot(&slots);
        let waiting: Vec<QueuedRequest> = (0..100_000).map(|_| queued(&slots)).collect();
        drop(held);
        drop(waiting);
        assert_eq!(counts(&slots), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn queued_requests_fail_at_once_when_the_queue_is_cleared() {
        let slots = slots(1, 9);
        let held = slot(&slots);
        let mut waiting = queued(&slots);
        slots.clear_queue();
        assert_eq!(waiting.slot().await.unwrap_err(), NoSlot::Unavailable);
        assert_eq!(counts(&slots), (1, 0));
        drop(held);
        drop(slot(&slots));
    }

    #[tokio::test(start_paused = true)]
    async fn new_limits_count_existing_requests() {
        let slots = slots(2, 9);
        let held = [slot(&slots), slot(&slots)];
        let (mut first, mut second, mut third) = (queued(&slots), queued(&slots), queued(&slots));
        slots.change(config(Some(1), 0));
        let [one, two] = held;
        drop(one);
        assert!(
            first.slot().now_or_never().is_none(),
            "there was one too many"
        );
        drop(two);
        let held = first.slot().await.unwrap();
        assert!(matches!(slots.acquire_now(), AcquireOutcome::Full));
        slots.change(config(Some(2), 9));
        let other = second.slot().await.unwrap();
        assert_eq!(counts(&slots), (2, 1));
        slots.change(config(None, 0));
        third.slot().await.unwrap();
        drop((held, other));
        assert_eq!(counts(&slots), (0, 0));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn the_limit_holds_and_all_requests_get_a_slot() {
        use std::sync::atomic::{AtomicUsize, Ordering};

        let slots = slots(3, 1000);
        let at_a_time = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for number in 0..500 {
            let (slots, at_a_time) = (slots.clone(), Arc::clone(&at_a_time));
            tasks.spawn(async move {
                let slot = match slots.acquire_now() {
                    AcquireOutcome::Slot(slot) => slot,
                    // Some requests are dropped while they wait.
                    AcquireOutcome::Queued(_) if number % 7 == 0 => return false,
                    AcquireOutcome::Queued(mut queued) => queued.slot().await.unwrap(),
                    AcquireOutcome::Full => panic!("the queue has room for all"),
                };
                assert!(at_a_time.fetch_add(1, Ordering::SeqCst) < 3);
                tokio::task::yield_now().await;
                at_a_time.fetch_sub(1, Ordering::SeqCst);
                drop(slot);
                true
            });
        }
        let ended = time::timeout(Duration::from_secs(60), tasks.join_all()).await;
        assert!(400 < ended.unwrap().into_iter().filter(|served| *served).count());
        assert_eq!(counts(&slots), (0, 0));
    }
}
