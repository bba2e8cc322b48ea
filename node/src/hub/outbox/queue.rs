//! Messages that wait for the next receiver of a client over HTTP.

use std::collections::VecDeque;
use std::slice;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::hub::outbox::Hold;
use crate::hub::outbox::Waiting;
use crate::hub::outbox::cost;
use crate::hub::outbox::held::Held;
use crate::protocol::disconnect::Disconnect;

/// How messages stand in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueueFormat {
    /// Each as a JSON string, for SockJS.
    Quoted,
    /// Each as a line of JSON, for the channel protocol.
    JsonLine,
    /// Each in Protobuf after its length, for the channel protocol.
    Delimited,
}

/// A client's messages, in order.
///
/// Invariant: `bytes_queued` is the summed cost of `messages` and, with what is held back, at most `bytes_max` and
/// one push more; outside `State::Open` nothing is added. In `State::Slow` it is what was dropped.
pub(crate) struct QueueOutbox {
    format: QueueFormat,
    bytes_max: usize,
    queue: Mutex<Queue>,
    changed: Notify,
}

#[derive(Debug)]
struct Queue {
    messages: VecDeque<Waiting>,
    bytes_queued: usize,
    state: State,
    /// Why the client was sent away, if it was told.
    disconnect: Option<Disconnect>,
    /// What came since [`QueueOutbox::hold`], never empty; it counts as queued. In a box, because mostly there
    /// is none.
    held: Option<Box<Held>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Messages are taken.
    Open,
    /// Too much waited when one came; what waited is gone.
    Slow,
    /// The session is over; what waits may still be taken.
    Closed,
}

/// What an outbox holds that takes no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closed {
    /// Every message that was not taken.
    Whole,
    /// Nothing: too much waited.
    Slow,
}

impl Queue {
    /// What waits and what is held back, in bytes.
    fn bytes(&self) -> usize {
        if self.state == State::Slow {
            return 0;
        }
        let held = self.held.as_ref();
        self.bytes_queued + held.map_or(0, |held| held.bytes())
    }

    fn become_slow(&mut self) {
        self.bytes_queued = self.bytes(); // What is dropped now, for the log.
        self.messages = VecDeque::new();
        self.held = None;
        self.state = State::Slow;
    }

    fn append(&mut self, messages: &[Bytes]) {
        self.bytes_queued += messages.iter().map(cost).sum::<usize>();
        let waiting = messages.iter().cloned().map(Waiting::new);
        self.messages.extend(waiting);
    }
}

impl QueueOutbox {
    /// An empty outbox that takes messages while at most `bytes_max` wait.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self::with_format(QueueFormat::Quoted, bytes_max)
    }

    /// The same, with messages that stand in it as `format` says.
    pub(crate) fn with_format(format: QueueFormat, bytes_max: usize) -> Self {
        let queue = Queue {
            messages: VecDeque::new(),
            bytes_queued: 0,
            state: State::Open,
            disconnect: None,
            held: None,
        };
        Self {
            format,
            bytes_max,
            queue: Mutex::new(queue),
            changed: Notify::new(),
        }
    }

    /// Appends quoted messages, all of them.
    ///
    /// If more than the limit waits already, the outbox is slow for good. These messages do not count:
    /// what comes at once, however much, must not end a good reader. Messages for a closed or slow
    /// outbox are dropped.
    pub(crate) fn push_all(&self, messages: &[Bytes]) {
        self.push_all_if(messages, || true);
    }

    /// The same if `is_meant` says so, which is asked under the lock.
    pub(crate) fn push_all_if(&self, messages: &[Bytes], is_meant: impl FnOnce() -> bool) {
        let mut queue = self.queue.lock();
        if queue.state != State::Open || messages.is_empty() || !is_meant() {
            return;
        }
        let wake = self.append(&mut queue, messages);
        drop(queue);
        if wake {
            self.changed.notify_one();
        }
    }

    /// Whether the receiver has to be woken.
    fn append(&self, queue: &mut Queue, messages: &[Bytes]) -> bool {
        if self.bytes_max < queue.bytes() {
            queue.become_slow();
            return true;
        }
        let was_empty = queue.messages.is_empty();
        if let Some(held) = &mut queue.held {
            messages.iter().for_each(|message| held.push(message));
            return false;
        }
        queue.append(messages);
        was_empty
    }

    /// Appends one quoted message, see [`push_all`](Self::push_all).
    pub(crate) fn push(&self, message: Bytes) {
        self.push_all(slice::from_ref(&message));
    }

    /// If `is_meant` says so, appends the last of `messages` in the place of the one of `channel` that waits
    /// already, or all of them if nothing waits.
    pub(crate) fn push_latest(
        &self,
        channel: u64,
        messages: &[Bytes],
        is_meant: impl FnOnce() -> bool,
    ) {
        let Some(newest) = messages.last() else {
            return;
        };
        let mut queue = self.queue.lock();
        if queue.messages.is_empty() || queue.held.is_some() {
            drop(queue);
            return self.push_all_if(messages, is_meant);
        }
        if queue.state != State::Open || !is_meant() {
            return;
        }
        let cost_new = cost(newest);
        let mut waiting = queue.messages.iter_mut();
        let cost_old = match waiting.find(|waiting| waiting.latest_of == channel) {
            Some(waiting) => {
                let cost_old = waiting.cost();
                waiting.bytes = newest.clone();
                cost_old
            }
            None => {
                queue.messages.push_back(Waiting {
                    bytes: newest.clone(),
                    latest_of: channel,
                });
                0
            }
        };
        queue.bytes_queued = queue.bytes_queued + cost_new - cost_old;
    }

    /// Keeps what waits of `channel` as it is, whatever newer comes.
    pub(crate) fn keep_latest(&self, channel: u64) {
        let mut queue = self.queue.lock();
        let waiting = queue.messages.iter_mut();
        for kept in waiting.filter(|waiting| waiting.latest_of == channel) {
            kept.latest_of = 0;
        }
    }

    /// Keeps a place for a reply and holds back what comes behind it, until it is [released](Self::release).
    pub(crate) fn hold(&self) -> Hold {
        self.queue.lock().held.get_or_insert_default().hold()
    }

    /// Appends `reply` in its place, nothing if it is empty, and what was held back behind it.
    pub(crate) fn release(&self, hold: Hold, reply: &Bytes) {
        let mut queue = self.queue.lock();
        let Some(held) = &mut queue.held else {
            return;
        };
        let ready = held.release(&hold, reply);
        queue.held.take_if(|held| held.is_empty());
        if queue.state == State::Open {
            let was_empty = queue.messages.is_empty();
            queue.append(&ready);
            drop(queue);
            if was_empty {
                self.changed.notify_one();
            }
        }
    }

    /// How messages stand in it.
    pub(crate) fn format(&self) -> QueueFormat {
        self.format
    }

    /// What waits, in bytes.
    pub(crate) fn bytes_queued(&self) -> usize {
        self.queue.lock().bytes()
    }

    /// Looks at all that waits and at what is held back.
    pub(crate) fn each_queued(&self, look: &mut dyn FnMut(&Bytes)) {
        let queue = self.queue.lock();
        queue.messages.iter().for_each(|one| look(&one.bytes));
        let held = queue.held.iter().flat_map(|held| held.messages());
        held.for_each(look);
    }

    /// Drops all that waits, as if it had been too much: the outbox is slow for good.
    pub(crate) fn give_up(&self) {
        let mut queue = self.queue.lock();
        if queue.state == State::Open {
            queue.become_slow();
            drop(queue);
            self.changed.notify_one();
        }
    }

    /// What was queued, in bytes, when the client was disconnected because it reads too slowly; `None` if it was not.
    pub(crate) fn slow_bytes(&self) -> Option<usize> {
        let queue = self.queue.lock();
        let is_slow = queue.state == State::Slow || queue.disconnect == Some(Disconnect::SLOW);
        is_slow.then_some(queue.bytes_queued)
    }

    /// Takes the oldest messages, as many as fit into `bytes_max`, and one at least if there is one.
    pub(crate) fn take(&self, bytes_max: usize) -> Vec<Bytes> {
        let mut queue = self.queue.lock();
        let mut bytes = 0;
        let count = queue
            .messages
            .iter()
            .take_while(|message| {
                bytes += message.bytes.len();
                bytes <= bytes_max
            })
            .count();
        let count = count.max(1).min(queue.messages.len());
        let taken = queue.messages.drain(..count).map(|waiting| waiting.bytes);
        let taken: Vec<Bytes> = taken.collect();
        queue.bytes_queued -= taken.iter().map(cost).sum::<usize>();
        if queue.messages.is_empty() {
            queue.messages = VecDeque::new(); // An idle client owns no buffer.
        }
        taken
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.lock().messages.is_empty()
    }

    /// Whether too much waited when a message came: the session is to be closed as slow.
    pub(crate) fn is_slow(&self) -> bool {
        self.queue.lock().state == State::Slow
    }

    /// Why the client was sent away, if it was.
    pub(crate) fn disconnect(&self) -> Option<Disconnect> {
        let queue = self.queue.lock();
        match queue.state {
            State::Slow => Some(Disconnect::SLOW),
            State::Open | State::Closed => queue.disconnect,
        }
    }

    /// Appends `last`, which tells the client of `disconnect`, before what was held back, and takes no more
    /// messages. The first reason stays.
    pub(crate) fn close_with(&self, disconnect: Disconnect, last: Bytes) {
        {
            let mut queue = self.queue.lock();
            if queue.state == State::Open {
                queue.disconnect = Some(disconnect);
            }
            if let Some(mut held) = queue.held.take() {
                let mut messages = vec![last];
                messages.append(&mut held.take_all());
                queue.append(&messages);
            } else {
                drop(queue);
                self.push(last);
            }
        }
        self.close();
    }

    /// Takes no more messages; says whether any were lost.
    pub(crate) fn close(&self) -> Closed {
        let mut queue = self.queue.lock();
        if queue.state == State::Open {
            queue.state = State::Closed;
        }
        let closed = match queue.state {
            State::Slow => Closed::Slow,
            State::Open | State::Closed => Closed::Whole,
        };
        drop(queue);
        self.changed.notify_one();
        closed
    }

    /// Waits until messages wait or the outbox is no longer open.
    ///
    /// For one waiter at a time, as a session has one receiver.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: what waits goes on waiting, for the next call too.
    pub(crate) async fn wait(&self) {
        loop {
            let changed = self.changed.notified();
            {
                let queue = self.queue.lock();
                if !queue.messages.is_empty() || queue.state != State::Open {
                    return;
                }
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::mem;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const HANDLE: usize = mem::size_of::<Bytes>();

    fn outbox(bytes_max: usize) -> QueueOutbox {
        QueueOutbox::new(bytes_max)
    }

    #[test]
    fn messages_come_out_in_order_within_the_limit_asked_for() {
        let outbox = outbox(1024);
        for message in ["one", "two", "three"] {
            outbox.push(Bytes::from_static(message.as_bytes()));
        }
        assert_eq!(outbox.take(6), ["one", "two"]);
        assert_eq!(outbox.take(1), ["three"], "one at least");
        assert!(outbox.take(1).is_empty());
    }

    #[test]
    fn it_takes_no_more_when_one_byte_past_its_limit_waits() {
        for (limit, slow) in [(2 * HANDLE + 8, false), (2 * HANDLE + 7, true)] {
            let outbox = outbox(limit);
            outbox.push(Bytes::from_static(b"four"));
            outbox.push(Bytes::from_static(b"four"));
            assert!(!outbox.is_slow(), "limit {limit}");
            outbox.push(Bytes::from_static(b"more"));
            assert_eq!(outbox.is_slow(), slow, "limit {limit}");
        }
    }

    #[test]
    fn a_burst_over_the_limit_does_not_end_a_client_that_reads() {
        let outbox = outbox(256 << 10);
        let burst = vec![Bytes::from(vec![b'x'; 60 << 10]); 5];
        for _ in 0..2 {
            outbox.push_all(&burst);
            assert!(!outbox.is_slow());
            assert_eq!(outbox.take(usize::MAX).len(), burst.len());
        }
        outbox.push_all(&burst);
        outbox.push_all(&burst);
        assert!(outbox.is_slow(), "it did not read in between");
    }

    #[test]
    fn a_single_message_over_the_limit_does_not_end_a_client_that_reads() {
        let outbox = outbox(1);
        outbox.push(Bytes::from_static(b"large"));
        assert_eq!(outbox.take(usize::MAX), ["large"]);
        assert!(!outbox.is_slow());
    }

    #[test]
    fn a_slow_one_holds_nothing_and_takes_nothing() {
        let outbox = outbox(1);
        outbox.push(Bytes::from_static(b"a"));
        outbox.push(Bytes::from_static(b"b"));
        outbox.push(Bytes::from_static(b"c"));
        assert_eq!(outbox.close(), Closed::Slow);
        assert_eq!(outbox.disconnect(), Some(Disconnect::SLOW));
        assert!(outbox.is_slow());
        assert!(outbox.is_empty());
    }

    #[test]
    fn what_is_held_back_comes_behind_what_was_waited_for() {
        let outbox = outbox(1024);
        outbox.push(Bytes::from_static(b"before"));
        let hold = outbox.hold();
        outbox.push(Bytes::from_static(b"held"));
        assert_eq!(outbox.take(usize::MAX), ["before"]);
        assert!(outbox.is_empty());
        outbox.release(hold, &Bytes::from_static(b"first"));
        outbox.push(Bytes::from_static(b"after"));
        assert_eq!(outbox.take(usize::MAX), ["first", "held", "after"]);
        assert_eq!(outbox.bytes_queued(), 0);
    }

    #[test]
    fn what_is_held_back_counts() {
        let outbox = outbox(HANDLE);
        let _hold = outbox.hold();
        for _ in 0..3 {
            outbox.push(Bytes::from_static(b"held"));
        }
        assert!(outbox.is_slow());
    }

    #[test]
    fn the_first_reason_to_send_a_client_away_stays() {
        let outbox = outbox(1024);
        assert_eq!(outbox.disconnect(), None);
        outbox.close_with(Disconnect::STALE, Bytes::from_static(b"stale"));
        outbox.close_with(Disconnect::SHUTDOWN, Bytes::from_static(b"shutdown"));
        assert_eq!(outbox.take(usize::MAX), ["stale"]);
        assert_eq!(outbox.disconnect(), Some(Disconnect::STALE));
    }

    #[test]
    fn the_newest_of_a_channel_takes_the_place_of_the_one_that_waits() {
        let outbox = outbox(1 << 10);
        let one = |text: &'static str| Bytes::from_static(text.as_bytes());
        outbox.push_latest(7, &[one("a1"), one("a2")], || true);
        outbox.push(one("other"));
        for text in ["a3", "a4"] {
            outbox.push_latest(7, &[one("skipped"), one(text)], || true);
            outbox.push_latest(8, &[one("b")], || true);
        }
        // Nobody waited at first, so that all of that went its way.
        let taken = outbox.take(usize::MAX);
        assert_eq!(taken, ["a1", "a2", "other", "a4", "b"]);
        assert_eq!(outbox.bytes_queued(), 0);
    }

    #[test]
    fn what_is_not_meant_for_it_any_more_leaves_it_as_it_was() {
        let outbox = outbox(1 << 10);
        let one = |text: &'static str| [Bytes::from_static(text.as_bytes())];
        outbox.push_all_if(&one("a"), || false);
        outbox.push_latest(7, &one("a"), || false);
        assert!(outbox.is_empty());
        outbox.push_latest(7, &one("a1"), || true);
        outbox.push_latest(7, &one("a2"), || true);
        outbox.push_latest(7, &one("a3"), || false);
        assert_eq!(outbox.take(usize::MAX), ["a1", "a2"]);
    }

    #[test]
    fn the_newest_stands_behind_what_was_kept() {
        let outbox = outbox(1 << 10);
        let one = |text: &'static str| [Bytes::from_static(text.as_bytes())];
        outbox.push(one("other")[0].clone());
        outbox.push_latest(7, &one("old"), || true);
        outbox.keep_latest(7);
        outbox.push(one("reply")[0].clone());
        outbox.push_latest(7, &one("skipped"), || true);
        outbox.push_latest(7, &one("new"), || true);
        assert_eq!(outbox.take(usize::MAX), ["other", "old", "reply", "new"]);
        assert_eq!(outbox.bytes_queued(), 0);
    }

    #[tokio::test]
    async fn a_wait_ends_with_a_message_and_with_the_end() {
        let outbox = outbox(1024);
        let long = Duration::from_secs(5);
        assert!(
            timeout(Duration::from_millis(10), outbox.wait())
                .await
                .is_err()
        );
        tokio::join!(outbox.wait(), async {
            outbox.push(Bytes::from_static(b"a"))
        });
        timeout(long, outbox.wait()).await.unwrap();
        outbox.take(usize::MAX);
        tokio::join!(outbox.wait(), async { outbox.close() });
        timeout(long, outbox.wait()).await.unwrap();
    }
}
