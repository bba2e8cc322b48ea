//! How many requests one backend has at a time, and the queue of those that wait for their turn.
//!
//! A client that belongs to a backend is not bound elsewhere because the backend is busy for a moment: its request waits in a queue
//! that is bounded in number and in time. [`Queue`] decides: plain, without waiting. [`RequestSlots`] is what requests ask, and a
//! [`QueuedRequest`] is a place in the queue.
//!
//! Who has no reason to wait (a client that belongs nowhere, while another backend has room) does not enter: it is the caller that
//! passes the backend over.
//!
//! Invariants: there are never more [`RequestSlot`]s than `slots_max`, but for those that a smaller `slots_max` has met. While there
//! are fewer, nobody waits. Requests get slots in the order in which they came.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use crate::limits::BackendLimit;

/// What becomes of a request.
#[derive(Debug)]
pub(crate) enum AcquireOutcome {
    /// It can be sent.
    Slot(RequestSlot),
    /// It waits.
    Queued(QueuedRequest),
    /// As many wait already as may.
    Full,
}

/// Why a request that has waited gets no slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoSlot {
    /// It has waited for as long as it may.
    #[error("no slot within {0:?}")]
    Timeout(Duration),
    /// The queue was dissolved: the backend takes no more requests.
    #[error("the backend takes no more requests")]
    Unavailable,
}

/// The slots of one backend. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct RequestSlots(Arc<Mutex<Queue<oneshot::Sender<RequestSlot>>>>);

/// The right to have a request at the backend, given on or back on drop.
#[derive(Debug)]
pub(crate) struct RequestSlot {
    /// `None` once it is somebody else's.
    slots: Option<RequestSlots>,
}

/// A place in the queue, given up on drop.
#[derive(Debug)]
pub(crate) struct QueuedRequest {
    slots: RequestSlots,
    number: u64,
    granted: oneshot::Receiver<RequestSlot>,
    wait: Duration,
    until: Instant,
}

/// Who has a slot and who waits for one, each represented by a `W`.
#[derive(Debug)]
struct Queue<W> {
    config: BackendLimit,
    held: usize,
    /// In the order in which they came.
    waiting: BTreeMap<u64, W>,
    next_number: u64,
}

/// What [`Queue::acquire`] has decided.
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
            held: 0,
            waiting: BTreeMap::new(),
            next_number: 0,
        }
    }

    fn has_room(&self) -> bool {
        self.held < self.config.requests_max as usize
    }

    /// A slot for one that comes, or a place in the queue, where `waiter` stands for it.
    fn acquire(&mut self, waiter: impl FnOnce() -> W) -> Decision {
        if self.has_room() {
            debug_assert!(self.waiting.is_empty(), "nobody waits beside a free slot");
            self.held += 1;
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

    /// Gives a slot back. The one whose it is now, if somebody waits and there are not too many.
    fn release(&mut self) -> Option<W> {
        debug_assert!(0 < self.held, "a slot is given back once");
        self.held -= 1;
        self.grant()
    }

    /// A free slot for the one that waits longest.
    fn grant(&mut self) -> Option<W> {
        if !self.has_room() {
            return None;
        }
        let (_, waiter) = self.waiting.pop_first()?;
        self.held += 1;
        Some(waiter)
    }

    /// Takes one that waits out of the queue.
    fn leave(&mut self, number: u64) {
        self.waiting.remove(&number);
    }

    /// Takes all that wait out of the queue.
    fn clear_queue(&mut self) -> BTreeMap<u64, W> {
        std::mem::take(&mut self.waiting)
    }
}

impl Default for RequestSlots {
    /// Any number of slots.
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

    /// Goes by `config` from now on. Slots that there are too many of are not given on, and who waits beyond a new bound stays.
    fn change(&self, config: BackendLimit) {
        if std::mem::replace(&mut self.0.lock().config, config) == config {
            return;
        }
        loop {
            // The lock is not held while a slot is handed over: nobody may want it, and then it comes back.
            let waiter = self.0.lock().grant();
            match waiter {
                Some(waiter) => self.hand_over(waiter),
                None => return,
            }
        }
    }

    /// A slot for a request that comes at `now`, or a place in the queue, where `config` says how many there are.
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

    /// Has nobody wait any more: each is told at once. For a backend that has gone down, or leaves.
    pub(crate) fn clear_queue(&self) {
        // Dropped outside of the lock.
        let _waiting = self.0.lock().clear_queue();
    }

    /// How many requests the backend has.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.0.lock().held
    }

    /// How many wait.
    #[cfg(test)]
    pub(crate) fn queued(&self) -> usize {
        self.0.lock().waiting.len()
    }

    fn slot(&self) -> RequestSlot {
        RequestSlot {
            slots: Some(self.clone()),
        }
    }

    /// Gives a slot that is counted already to `waiter`, or to the next one if it has gone meanwhile.
    fn hand_over(&self, waiter: oneshot::Sender<RequestSlot>) {
        let mut next = Some(waiter);
        while let Some(waiter) = next {
            next = match waiter.send(self.slot()) {
                Ok(()) => None,
                Err(mut unwanted) => {
                    // Not by its drop, which would come back here.
                    unwanted.slots = None;
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
    /// When the request gives up.
    #[cfg(test)]
    fn until(&self) -> Instant {
        self.until
    }

    /// Waits for the slot.
    ///
    /// # Errors
    ///
    /// [`NoSlot`]: the request is to go elsewhere, or to be refused.
    ///
    /// # Cancel safety
    ///
    /// The place is kept as long as the ticket is: it can be waited for again. With the ticket, a slot that came meanwhile goes to
    /// the next one.
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
        self.slots.0.lock().leave(self.number);
        // A slot that has come is in the channel, and goes on with it.
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
        /// As it goes now.
        fn come(&self) -> AcquireOutcome {
            let config = self.0.lock().config;
            self.acquire(config, now())
        }
    }

    fn now() -> Instant {
        time::Instant::now().into_std()
    }

    fn slot(slots: &RequestSlots) -> RequestSlot {
        match slots.come() {
            AcquireOutcome::Slot(slot) => slot,
            other => panic!("{other:?}"),
        }
    }

    fn queued(slots: &RequestSlots) -> QueuedRequest {
        match slots.come() {
            AcquireOutcome::Queued(queued) => queued,
            other => panic!("{other:?}"),
        }
    }

    fn counts(slots: &RequestSlots) -> (usize, usize) {
        (slots.held(), slots.queued())
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_are_too_many_wait_in_the_order_in_which_they_came() {
        let slots = slots(1, 2);
        let held = slot(&slots);
        let (mut first, mut second) = (queued(&slots), queued(&slots));
        assert!(matches!(slots.come(), AcquireOutcome::Full));
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
    async fn one_that_comes_does_not_overtake_those_that_wait() {
        let slots = slots(1, 10);
        let held = slot(&slots);
        let mut first = queued(&slots);
        drop(held);
        // The slot is the first one's, although it has not looked yet.
        let _second = queued(&slots);
        first.slot().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_at_its_deadline_and_leaves_the_queue() {
        let slots = slots(1, 1);
        let _held = slot(&slots);
        let mut waiting = queued(&slots);
        assert_eq!(waiting.until(), now() + WAIT);
        let almost = time::timeout(WAIT - Duration::from_millis(1), waiting.slot());
        assert!(almost.await.is_err(), "it waits on");
        assert_eq!(waiting.slot().await.unwrap_err(), NoSlot::Timeout(WAIT));
        assert!(
            matches!(slots.come(), AcquireOutcome::Full),
            "until it is dropped"
        );
        drop(waiting);
        assert_eq!(counts(&slots), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slot_that_nobody_takes_any_more_goes_to_the_next() {
        let slots = slots(1, 9);
        let held = slot(&slots);
        let (gone, late, mut next) = (queued(&slots), queued(&slots), queued(&slots));
        drop(gone);
        assert_eq!(slots.queued(), 2);
        drop(held);
        // It has it without having looked.
        assert_eq!(counts(&slots), (1, 1));
        drop(late);
        next.slot().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn many_that_give_up_take_no_stack() {
        let slots = slots(1, 100_000);
        let held = slot(&slots);
        let waiting: Vec<QueuedRequest> = (0..100_000).map(|_| queued(&slots)).collect();
        drop(held);
        drop(waiting);
        assert_eq!(counts(&slots), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_told_when_the_queue_is_dissolved() {
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
    async fn new_bounds_count_those_that_are_there() {
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
        assert!(matches!(slots.come(), AcquireOutcome::Full));
        slots.change(config(Some(2), 9));
        let other = second.slot().await.unwrap();
        assert_eq!(counts(&slots), (2, 1));
        slots.change(config(None, 0));
        third.slot().await.unwrap();
        drop((held, other));
        assert_eq!(counts(&slots), (0, 0));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn there_are_never_too_many_and_all_get_their_turn() {
        use std::sync::atomic::{AtomicUsize, Ordering};

        let slots = slots(3, 1000);
        let at_a_time = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for number in 0..500 {
            let (slots, at_a_time) = (slots.clone(), Arc::clone(&at_a_time));
            tasks.spawn(async move {
                let slot = match slots.come() {
                    AcquireOutcome::Slot(slot) => slot,
                    // Some do not wait until the end.
                    AcquireOutcome::Queued(_) if number % 7 == 0 => return false,
                    AcquireOutcome::Queued(mut queued) => queued.slot().await.unwrap(),
                    AcquireOutcome::Full => panic!("there is room for all"),
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
