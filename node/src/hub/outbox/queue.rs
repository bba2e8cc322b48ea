//! Messages queued for the next receiver of a client over HTTP.

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

/// The encoding of the messages in a queue.
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
/// Invariant: `bytes_queued` is the summed cost of `messages` and, with what is held back, at most `bytes_max` plus one
/// push; outside `State::Open` nothing is added. In `State::Slow` it is the cost of what was dropped.
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
    /// Why the client was disconnected, if a push tells it.
    disconnect: Option<Disconnect>,
    /// What was sent since [`QueueOutbox::hold`], never empty; it counts as queued. Boxed because rarely present.
    held: Option<Box<Held>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Messages are accepted.
    Open,
    /// The queue was over its limit; its messages are dropped.
    Slow,
    /// The client is disconnected; queued messages may still be taken.
    Closed,
}

/// What a closed outbox holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closed {
    /// Every message that was not taken.
    Whole,
    /// Nothing: the client was too slow.
    Slow,
}

impl Queue {
    /// What is queued and held back, in bytes.
    fn bytes(&self) -> usize {
        if self.state == State::Slow {
            return 0;
        }
        let held = self.held.as_ref();
        self.bytes_queued + held.map_or(0, |held| held.bytes())
    }

    fn become_slow(&mut self) {
        self.bytes_queued = self.bytes(); // The cost of what is dropped, for the log.
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
    /// Creates an empty outbox that accepts messages while at most `bytes_max` are queued.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self::with_format(QueueFormat::Quoted, bytes_max)
    }

    /// The same for messages in `format`.
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
    /// If more than the limit is queued already, the outbox becomes slow and stays so. These messages do not count: a
    /// large burst must not disconnect a client that reads. Messages for a closed or slow outbox are dropped.
    pub(crate) fn push_all(&self, messages: &[Bytes]) {
        self.push_all_if(messages, || true);
    }

    /// The same if `is_meant` returns true, which is called under the lock.
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

    /// Returns whether the receiver has to be woken.
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

    /// Puts messages that another node has queued in front of those that are queued here. They count against the limit.
    pub(crate) fn prepend(&self, messages: Vec<Bytes>) {
        let mut queue = self.queue.lock();
        if queue.state != State::Open {
            return;
        }
        queue.bytes_queued += messages.iter().map(cost).sum::<usize>();
        for message in messages.into_iter().rev() {
            queue.messages.push_front(Waiting::new(message));
        }
        drop(queue);
        self.changed.notify_one();
    }

    /// Appends one quoted message, see [`push_all`](Self::push_all).
    pub(crate) fn push(&self, message: Bytes) {
        self.push_all(slice::from_ref(&message));
    }

    /// If `is_meant` returns true, replaces the queued message of `channel` by the last of `messages`, or appends all of
    /// them if nothing is queued.
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

    /// Keeps what is queued of `channel`: newer publications do not replace it.
    pub(crate) fn keep_latest(&self, channel: u64) {
        let mut queue = self.queue.lock();
        let waiting = queue.messages.iter_mut();
        for kept in waiting.filter(|waiting| waiting.latest_of == channel) {
            kept.latest_of = 0;
        }
    }

    /// Reserves the place of a reply and holds back what is sent after it, until it is [released](Self::release).
    pub(crate) fn hold(&self) -> Hold {
        self.queue.lock().held.get_or_insert_default().hold()
    }

    /// Appends `reply` in its place, nothing if it is empty, and what was held back after it.
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

    /// The encoding of its messages.
    pub(crate) fn format(&self) -> QueueFormat {
        self.format
    }

    /// What is queued and held back, in bytes.
    pub(crate) fn bytes_queued(&self) -> usize {
        self.queue.lock().bytes()
    }

    /// Calls `visit` with everything that is queued or held back.
    pub(crate) fn each_queued(&self, visit: &mut dyn FnMut(&Bytes)) {
        let queue = self.queue.lock();
        queue.messages.iter().for_each(|one| visit(&one.bytes));
        let held = queue.held.iter().flat_map(|held| held.messages());
        held.for_each(visit);
    }

    /// Drops all that is queued, as if it were over the limit: the outbox becomes slow and stays so.
    pub(crate) fn drop_as_slow(&self) {
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

    /// Takes the oldest messages, as many as fit into `bytes_max`, but at least one if there is one.
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
            queue.messages = VecDeque::new(); // An idle client has no buffer.
        }
        taken
    }

    /// Whether nothing is queued.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.lock().messages.is_empty()
    }

    /// Whether the limit was exceeded: the client has to be disconnected as slow.
    pub(crate) fn is_slow(&self) -> bool {
        self.queue.lock().state == State::Slow
    }

    /// Why the client was disconnected, if it was.
    pub(crate) fn disconnect(&self) -> Option<Disconnect> {
        let queue = self.queue.lock();
        match queue.state {
            State::Slow => Some(Disconnect::SLOW),
            State::Open | State::Closed => queue.disconnect,
        }
    }

    /// Appends `last`, which tells the client of `disconnect`, before what was held back, and closes the outbox. The
    /// first reason stays.
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

    /// Closes the outbox; returns whether messages were lost.
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

    /// Waits until messages are queued or the outbox is no longer open.
    ///
    /// For one caller at a time, as a session has one receiver.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: messages stay queued for the next call.
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
    fn it_becomes_slow_when_one_byte_over_its_limit_is_queued() {
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
    fn a_burst_over_the_limit_does_not_disconnect_a_client_that_reads() {
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
    fn a_single_message_over_the_limit_does_not_disconnect_a_client_that_reads() {
        let outbox = outbox(1);
        outbox.push(Bytes::from_static(b"large"));
        assert_eq!(outbox.take(usize::MAX), ["large"]);
        assert!(!outbox.is_slow());
    }

    #[test]
    fn a_slow_outbox_holds_nothing_and_accepts_nothing() {
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
    fn held_back_messages_follow_the_reply() {
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
    fn held_back_messages_count() {
        let outbox = outbox(HANDLE);
        let _hold = outbox.hold();
        for _ in 0..3 {
            outbox.push(Bytes::from_static(b"held"));
        }
        assert!(outbox.is_slow());
    }

    #[test]
    fn the_first_disconnect_reason_stays() {
        let outbox = outbox(1024);
        assert_eq!(outbox.disconnect(), None);
        outbox.close_with(Disconnect::STALE, Bytes::from_static(b"stale"));
        outbox.close_with(Disconnect::SHUTDOWN, Bytes::from_static(b"shutdown"));
        assert_eq!(outbox.take(usize::MAX), ["stale"]);
        assert_eq!(outbox.disconnect(), Some(Disconnect::STALE));
    }

    #[test]
    fn the_newest_of_a_channel_replaces_the_queued_one() {
        let outbox = outbox(1 << 10);
        let one = |text: &'static str| Bytes::from_static(text.as_bytes());
        outbox.push_latest(7, &[one("a1"), one("a2")], || true);
        outbox.push(one("other"));
        for text in ["a3", "a4"] {
            outbox.push_latest(7, &[one("skipped"), one(text)], || true);
            outbox.push_latest(8, &[one("b")], || true);
        }
        // The queue was empty at first, so both of the first call were queued.
        let taken = outbox.take(usize::MAX);
        assert_eq!(taken, ["a1", "a2", "other", "a4", "b"]);
        assert_eq!(outbox.bytes_queued(), 0);
    }

    #[test]
    fn messages_not_meant_for_it_do_not_change_it() {
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
    fn the_newest_follows_what_was_kept() {
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
    async fn a_wait_ends_with_a_message_and_with_the_close() {
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
