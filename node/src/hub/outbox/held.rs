//! Messages held back after a reply that is not ready yet: a plain type.

use std::collections::VecDeque;
use std::mem;

use bytes::Bytes;

use crate::hub::outbox::cost;

/// The reserved place of a reply that is not ready yet.
#[derive(Debug)]
#[must_use = "nothing after it is sent until it is released"]
pub(crate) struct Hold(u32);

/// Messages in order, with the reserved places of replies among them.
///
/// Invariant: it is empty, or begins with a reserved place; `bytes` is the summed cost of its messages.
#[derive(Debug, Default)]
pub(super) struct Held {
    entries: VecDeque<Entry>,
    bytes: usize,
    holds: u32,
}

#[derive(Debug)]
enum Entry {
    Place(u32),
    Message(Bytes),
}

impl Held {
    /// The cost of its messages.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Reserves the place of a reply after all that is here.
    pub(super) fn hold(&mut self) -> Hold {
        self.holds = self.holds.wrapping_add(1);
        self.entries.push_back(Entry::Place(self.holds));
        Hold(self.holds)
    }

    /// Adds a message. Must not be called if no place is reserved: the message can then be sent directly.
    pub(super) fn push(&mut self, message: &Bytes) {
        debug_assert!(!self.is_empty(), "no place is reserved");
        self.bytes += cost(message);
        self.entries.push_back(Entry::Message(message.clone()));
    }

    /// Puts a reply in its place, or removes the place if the reply is empty. Returns what can be sent now.
    pub(super) fn release(&mut self, hold: &Hold, reply: &Bytes) -> Vec<Bytes> {
        let mut places = self.entries.iter();
        let found = places.position(|entry| matches!(entry, Entry::Place(kept) if *kept == hold.0));
        if let Some(at) = found {
            self.bytes += cost(reply);
            self.entries[at] = Entry::Message(reply.clone());
        }
        let mut ready = Vec::new();
        while let Some(Entry::Message(_)) = self.entries.front()
            && let Some(Entry::Message(message)) = self.entries.pop_front()
        {
            self.bytes -= cost(&message);
            if !message.is_empty() {
                ready.push(message);
            }
        }
        ready
    }

    /// All messages, in order.
    pub(super) fn messages(&self) -> impl Iterator<Item = &Bytes> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Place(_) => None,
            Entry::Message(message) => Some(message),
        })
    }

    /// Takes all messages, without waiting for replies before them.
    pub(super) fn take_all(&mut self) -> Vec<Bytes> {
        self.bytes = 0;
        let entries = mem::take(&mut self.entries).into_iter();
        let messages = entries.filter_map(|entry| match entry {
            Entry::Place(_) => None,
            Entry::Message(message) => Some(message).filter(|message| !message.is_empty()),
        });
        messages.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn replies_are_sent_in_the_order_of_their_places_whichever_is_ready_first() {
        let mut held = Held::default();
        let first = held.hold();
        held.push(&message("behind the first"));
        let second = held.hold();
        held.push(&message("behind both"));
        assert!(held.release(&second, &message("second")).is_empty());
        assert_eq!(
            held.release(&first, &message("first")),
            ["first", "behind the first", "second", "behind both"]
        );
        assert!(held.is_empty());
        assert_eq!(held.bytes(), 0);
    }

    #[test]
    fn an_empty_reply_removes_its_place() {
        let mut held = Held::default();
        let (first, second) = (held.hold(), held.hold());
        held.push(&message("behind"));
        assert!(held.release(&first, &Bytes::new()).is_empty());
        assert_eq!(held.release(&second, &Bytes::new()), ["behind"]);
        assert_eq!(held.bytes(), 0);
    }

    #[test]
    fn a_reply_is_ignored_after_everything_was_taken() {
        let mut held = Held::default();
        let hold = held.hold();
        held.push(&message("behind"));
        assert_eq!(held.take_all(), ["behind"]);
        assert!(held.release(&hold, &message("late")).is_empty());
        assert_eq!(held.bytes(), 0);
    }
}
