//! A list of all clients of a kind, to iterate over them for pings and to disconnect them when the node drains.
//!
//! The lock is held for a limited number of clients at a time, and other tasks run in between.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task;
use tokio::time;
use tokio::time::Instant;

/// Clients visited under one lock, and written to between two yields.
const STRIDE: usize = 256;

/// The shortest pause between two groups of clients that are disconnected.
const DRAIN_STEP: Duration = Duration::from_millis(20);

/// A list of clients.
pub(crate) struct Roster<E> {
    list: Mutex<List<E>>,
}

/// Invariant: `free` holds the indexes of empty entries, each once.
struct List<E> {
    entries: Vec<Option<E>>,
    free: Vec<usize>,
    is_draining: bool,
}

/// A wait for handoffs ends when no client has left for this long: a single handoff does not take longer.
const HANDOFF_QUIET: Duration = Duration::from_secs(5);

/// How often it is checked whether clients are left.
const HANDOFF_LOOK: Duration = Duration::from_millis(20);

/// Removes a client from the list when it is dropped.
pub(crate) struct RosterGuard<E> {
    roster: Arc<Roster<E>>,
    index: usize,
}

impl<E> Roster<E> {
    /// Creates an empty list.
    pub(crate) fn new() -> Arc<Self> {
        let list = Mutex::new(List {
            entries: Vec::new(),
            free: Vec::new(),
            is_draining: false,
        });
        Arc::new(Self { list })
    }

    /// Adds a client. After the [drain](Self::drain) has begun, `disconnect` is called for it at once.
    pub(crate) fn enter(self: &Arc<Self>, entry: E, disconnect: impl FnOnce(&E)) -> RosterGuard<E> {
        let mut list = self.list.lock();
        if list.is_draining {
            disconnect(&entry);
        }
        let index = match list.free.pop() {
            Some(index) => {
                list.entries[index] = Some(entry);
                index
            }
            None => {
                list.entries.push(Some(entry));
                list.entries.len() - 1
            }
        };
        RosterGuard {
            roster: Arc::clone(self),
            index,
        }
    }

    /// Visits every client: `inspect` decides under the lock what is due, and `act` does it outside.
    pub(crate) async fn visit<D>(
        &self,
        mut inspect: impl FnMut(&mut E) -> Option<D>,
        mut act: impl FnMut(D),
    ) {
        let mut begin = 0;
        while let Some(due) = self.stride(begin, &mut inspect) {
            due.into_iter().for_each(&mut act);
            begin += STRIDE;
            task::yield_now().await;
        }
    }

    /// Collects what `of` returns for all clients, under one lock.
    pub(crate) fn collect<T>(&self, of: impl FnMut(&E) -> Option<T>) -> Vec<T> {
        let list = self.list.lock();
        list.entries.iter().flatten().filter_map(of).collect()
    }

    /// Disconnects all clients, evenly over `spread`, so that they do not all reconnect at once: `of` returns what
    /// `disconnect` needs of a client.
    pub(crate) async fn drain<T>(
        &self,
        spread: Duration,
        of: impl FnMut(&E) -> T,
        disconnect: impl Fn(&T),
    ) {
        let all: Vec<T> = {
            let mut list = self.list.lock();
            list.is_draining = true;
            list.entries.iter().flatten().map(of).collect()
        };
        evenly(all, spread, disconnect).await;
    }

    /// Waits for clients to be handed off: until none is left that `can_leave`, or none has left for [`HANDOFF_QUIET`], and for
    /// `max` at most.
    ///
    /// # Cancel safety
    ///
    /// Nothing changes by waiting.
    pub(crate) async fn wait_while_clients_leave(
        &self,
        can_leave: impl Fn(&E) -> bool,
        max: Duration,
    ) {
        let left = || self.collect(|entry| can_leave(entry).then_some(())).len();
        wait_while_fewer(left, max).await;
    }

    /// What is due for the clients of one stride; `None` after the last.
    fn stride<D>(&self, begin: usize, inspect: impl FnMut(&mut E) -> Option<D>) -> Option<Vec<D>> {
        let mut list = self.list.lock();
        let end = list.entries.len().min(begin + STRIDE);
        let stride = list.entries.get_mut(begin..end);
        let stride = stride.filter(|stride| !stride.is_empty())?;
        Some(stride.iter_mut().flatten().filter_map(inspect).collect())
    }
}

/// Waits for clients to be handed off: until `left`, how many there are, is 0 or has not fallen for [`HANDOFF_QUIET`], and for
/// `max` at most.
///
/// # Cancel safety
///
/// Nothing changes by waiting.
pub(crate) async fn wait_while_fewer(left: impl Fn() -> usize, max: Duration) {
    let end = Instant::now() + max;
    let (mut fewest, mut quiet) = (usize::MAX, end);
    loop {
        let now = Instant::now();
        let left = left();
        if left < fewest {
            (fewest, quiet) = (left, now + HANDOFF_QUIET);
        }
        if left == 0 || end <= now || quiet <= now {
            return;
        }
        time::sleep(HANDOFF_LOOK).await;
    }
}

/// Calls `act` for all of `all` in order, evenly over `spread`: for the first at once, and for none later than its part
/// of the time.
pub(crate) async fn evenly<T>(all: Vec<T>, spread: Duration, act: impl Fn(&T)) {
    let began = Instant::now();
    let count = all.len();
    let mut done = 0;
    while done < count {
        let part = began.elapsed().div_duration_f64(spread).min(1.0); // A spread of zero: all of it.
        let due = ((count as f64 * part) as usize + 1).min(count);
        for stride in all[done..due].chunks(STRIDE) {
            stride.iter().for_each(&act);
            task::yield_now().await;
        }
        done = due;
        if done < count {
            let next = began + spread.mul_f64(done as f64 / count as f64);
            time::sleep_until(next.max(Instant::now() + DRAIN_STEP)).await;
        }
    }
}

impl<E> RosterGuard<E> {
    /// Reads the client's entry under the lock that visits take.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&E) -> T) -> Option<T> {
        let list = self.roster.list.lock();
        list.entries[self.index].as_ref().map(read)
    }
}

impl<E> Drop for RosterGuard<E> {
    fn drop(&mut self) {
        let mut list = self.roster.list.lock();
        let entry = list.entries[self.index].take();
        list.free.push(self.index);
        drop(list);
        drop(entry); // Perhaps the last handle of the client: dropped outside the lock.
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test]
    async fn every_client_is_visited_until_its_guard_is_dropped() {
        let roster = Roster::new();
        let not_draining = |_: &usize| panic!("the node does not drain");
        let places: Vec<_> = (0..3 * STRIDE)
            .map(|number| roster.enter(number, not_draining))
            .collect();
        let kept: Vec<_> = places.into_iter().step_by(2).collect();
        let late = roster.enter(usize::MAX, not_draining);
        let mut visited = Vec::new();
        roster
            .visit(|number| Some(*number), |number| visited.push(number))
            .await;
        visited.sort_unstable();
        let expected: Vec<_> = (0..3 * STRIDE).step_by(2).chain([usize::MAX]).collect();
        assert_eq!(visited, expected);
        assert_eq!(roster.collect(|number| Some(*number)).len(), expected.len());
        drop((kept, late));
        assert!(roster.collect(|number| Some(*number)).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn clients_are_disconnected_over_the_spread_and_new_ones_at_once() {
        let roster = Roster::new();
        let away = RefCell::new(Vec::new());
        let _places: Vec<_> = (0..1000)
            .map(|number| roster.enter(number, |_| panic!("too early")))
            .collect();
        let began = time::Instant::now();
        let spread = Duration::from_secs(2);
        roster
            .drain(
                spread,
                |number| *number,
                |number| away.borrow_mut().push(*number),
            )
            .await;
        assert_eq!(*away.borrow(), (0..1000).collect::<Vec<_>>());
        assert!(began.elapsed() <= spread && spread - began.elapsed() < 2 * DRAIN_STEP);
        let _late = roster.enter(1000, |number| away.borrow_mut().push(*number));
        assert_eq!(away.borrow().last(), Some(&1000));
    }

    #[tokio::test(start_paused = true)]
    async fn handoffs_are_waited_for_while_they_go_on() {
        const MAX: Duration = Duration::from_secs(60);
        let roster = Roster::new();
        let enter = |number: usize| roster.enter(number, |_| panic!("the node does not drain"));
        let can_leave = |number: &usize| *number < 100;
        let began = Instant::now();
        let _stays = enter(100);
        roster.wait_while_clients_leave(can_leave, MAX).await;
        assert_eq!(began.elapsed(), Duration::ZERO);

        // One each four seconds, and then none.
        let mut clients: Vec<_> = (0..5).map(enter).collect();
        let leaving = async {
            while 1 < clients.len() {
                time::sleep(Duration::from_secs(4)).await;
                clients.pop();
            }
        };
        tokio::join!(leaving, roster.wait_while_clients_leave(can_leave, MAX));
        let waited = began.elapsed().as_secs();
        assert_eq!(waited, 16 + 5);

        let began = Instant::now();
        let mut clients: Vec<_> = (0..100).map(enter).collect();
        let leaving = async {
            for _ in 0..20 {
                time::sleep(Duration::from_secs(4)).await;
                clients.pop();
            }
        };
        tokio::select! {
            () = leaving => panic!("it takes longer than it may"),
            () = roster.wait_while_clients_leave(can_leave, MAX) => {}
        }
        assert_eq!(began.elapsed().as_secs(), MAX.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn any_number_of_clients_is_spread_evenly() {
        for spread in [Duration::from_secs(1), Duration::from_secs(60)] {
            for count in [1, 2, 3, 49, 51, 99, 101, 149, 1000, 100_003] {
                let began = Instant::now();
                let times = RefCell::new(Vec::new());
                let act = |_: &usize| times.borrow_mut().push(began.elapsed());
                evenly((0..count).collect(), spread, act).await;
                assert_eq!(times.borrow().len(), count);
                for (number, at) in times.borrow().iter().enumerate() {
                    let due = spread.mul_f64(number as f64 / count as f64);
                    let late = at.saturating_sub(due);
                    let early = due.saturating_sub(*at);
                    let step = 2 * DRAIN_STEP; // The clock has milliseconds.
                    assert!(late < step && early < step, "{number} of {count} at {at:?}");
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_spread_all_are_disconnected_at_once() {
        let began = Instant::now();
        let left = RefCell::new(0);
        let act = |_: &usize| *left.borrow_mut() += 1;
        evenly((0..1000).collect(), Duration::ZERO, act).await;
        assert_eq!((left.into_inner(), began.elapsed()), (1000, Duration::ZERO));
    }
}
