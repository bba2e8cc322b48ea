//! All clients of a kind in one list, for whoever has to look at each of them: for pings, and for sending
//! everyone away.
//!
//! Nobody waits for a look at all: the lock is held for some of them at a time, and other tasks run in between.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task;
use tokio::time;

/// Clients looked at under one lock, and written to between two yields.
const STRIDE: usize = 256;

/// The pause between two groups of clients that are sent away.
const DRAIN_STEP: Duration = Duration::from_millis(20);

/// A list of clients.
pub(crate) struct Roster<E> {
    list: Mutex<List<E>>,
}

/// Invariant: `free` names the empty places of `entries`, each once.
struct List<E> {
    entries: Vec<Option<E>>,
    free: Vec<usize>,
    is_draining: bool,
}

/// A place on the list, until it is dropped.
pub(crate) struct Place<E> {
    roster: Arc<Roster<E>>,
    index: usize,
}

impl<E> Roster<E> {
    /// Nobody yet.
    pub(crate) fn new() -> Arc<Self> {
        let list = Mutex::new(List {
            entries: Vec::new(),
            free: Vec::new(),
            is_draining: false,
        });
        Arc::new(Self { list })
    }

    /// Adds a client. Who comes after the [drain](Self::drain) has begun is sent away by `send_away`.
    pub(crate) fn enter(self: &Arc<Self>, entry: E, send_away: impl FnOnce(&E)) -> Place<E> {
        let mut list = self.list.lock();
        if list.is_draining {
            send_away(&entry);
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
        Place {
            roster: Arc::clone(self),
            index,
        }
    }

    /// Looks at every client: `look` says under the lock what is to be done, and `act` does it outside.
    pub(crate) async fn visit<D>(
        &self,
        mut look: impl FnMut(&mut E) -> Option<D>,
        mut act: impl FnMut(D),
    ) {
        let mut begin = 0;
        while let Some(due) = self.stride(begin, &mut look) {
            due.into_iter().for_each(&mut act);
            begin += STRIDE;
            task::yield_now().await;
        }
    }

    /// What `of` gives of all clients, under one lock.
    pub(crate) fn collect<T>(&self, of: impl FnMut(&E) -> Option<T>) -> Vec<T> {
        let list = self.list.lock();
        list.entries.iter().flatten().filter_map(of).collect()
    }

    /// Sends everyone away, evenly over `spread`, so that they do not all come back at once: `of` gives what
    /// `send_away` needs of a client.
    pub(crate) async fn drain<T>(
        &self,
        spread: Duration,
        of: impl FnMut(&E) -> T,
        send_away: impl Fn(&T),
    ) {
        let all: Vec<T> = {
            let mut list = self.list.lock();
            list.is_draining = true;
            list.entries.iter().flatten().map(of).collect()
        };
        let steps = spread.div_duration_f64(DRAIN_STEP).max(1.0);
        let group = (all.len() as f64 / steps).ceil().max(1.0) as usize;
        for group in all.chunks(group) {
            for part in group.chunks(STRIDE) {
                part.iter().for_each(&send_away);
                task::yield_now().await;
            }
            if !spread.is_zero() {
                time::sleep(DRAIN_STEP).await;
            }
        }
    }

    /// What is to be done about the clients of one stride; `None` behind the last.
    fn stride<D>(&self, begin: usize, look: impl FnMut(&mut E) -> Option<D>) -> Option<Vec<D>> {
        let mut list = self.list.lock();
        let end = list.entries.len().min(begin + STRIDE);
        let stride = list.entries.get_mut(begin..end);
        let stride = stride.filter(|stride| !stride.is_empty())?;
        Some(stride.iter_mut().flatten().filter_map(look).collect())
    }
}

impl<E> Drop for Place<E> {
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
    async fn everyone_is_visited_whose_place_is_kept() {
        let roster = Roster::new();
        let nobody = |_: &usize| panic!("nobody is sent away");
        let places: Vec<_> = (0..3 * STRIDE)
            .map(|number| roster.enter(number, nobody))
            .collect();
        let kept: Vec<_> = places.into_iter().step_by(2).collect();
        let late = roster.enter(usize::MAX, nobody);
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
    async fn everyone_is_sent_away_over_the_spread_and_newcomers_at_once() {
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
        assert_eq!(began.elapsed(), spread);
        let _late = roster.enter(1000, |number| away.borrow_mut().push(*number));
        assert_eq!(away.borrow().last(), Some(&1000));
    }
}
