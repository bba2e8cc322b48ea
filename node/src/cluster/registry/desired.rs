//! The entries that this node wants in the registry, and what is known to be stored there.
//!
//! No I/O: users and members are entered and leave, and the writer takes batches of writes and reports their
//! replies, until both sides agree. A desired value may change while a write for it is in flight; the next
//! write is made only after the reply. Changes that others are to be told of (joined, left) are returned as
//! events, each once.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::mem;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::protocol::channel::ChannelName;
use crate::protocol::instance::ClientId;

/// The key of an entry in the registry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Slot {
    /// This node has clients of the user.
    User(Arc<str>),
    /// A client of this node is a member of the channel.
    Member(ChannelName, ClientId),
}

/// The value of an entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Value {
    /// The member's client info, for readers.
    pub(crate) info: Bytes,
    /// Whether join and leave events are published.
    pub(crate) announce: Announce,
}

/// Whether join and leave events of a member are published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Announce {
    /// It is only listed.
    #[default]
    No,
    /// The channel's subscribers are told.
    Yes,
}

/// Whether other nodes may have removed entries because the lease lapsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Swept {
    /// They have not, or all of Redis's data is gone: no leave event was published.
    No,
    /// For entries that are missing now, leave events were published.
    Yes,
}

/// One write to the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) slot: Slot,
    /// The value to store; `None` removes the entry.
    pub(super) put: Option<Value>,
    /// Whether another node may have taken the entry over: it is removed only if it still names this node's lease.
    pub(super) is_release: bool,
    seq: u64,
    generation: u64,
}

/// An entry that is believed to be stored in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredEntry {
    pub(super) slot: Slot,
    pub(super) value: Value,
    generation: u64,
}

/// A change that others may have to be told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    Joined(Slot, Value),
    Left(Slot, Value),
}

/// All slots of this node.
///
/// Invariants: a slot is in `unsettled`, under its entry's `seq`, if and only if its desired value is not
/// stored, no write for it is in flight and no other node may take it over; `in_flight` holds the sequence numbers of writes that are; a slot
/// in which nothing is stored, desired or in flight has no entry.
#[derive(Debug, Default)]
pub(super) struct DesiredState {
    entries: BTreeMap<Slot, Entry>,
    /// In the order in which they were changed.
    unsettled: BTreeMap<u64, Slot>,
    in_flight: BTreeSet<u64>,
    next_seq: u64,
    /// Counts the times at which everything had to be written again.
    generation: u64,
}

#[derive(Debug)]
struct Entry {
    /// The desired value, or the last one.
    value: Value,
    /// How many registrations hold it: a client may return before its last leave was processed.
    holders: u32,
    stored: Stored,
    seq: Option<u64>,
    is_in_flight: bool,
    /// A join event was published and no leave event since.
    is_announced: bool,
    /// If the next write finds nothing, a leave event was published by the sweeper.
    may_be_swept: bool,
    /// A write without a reply may have removed it, without an event.
    may_be_removed: bool,
    /// A write without a reply may have put it back after it was swept, without an event.
    may_be_put: bool,
    /// Another node has taken it over: its removal here is told to nobody.
    is_released: bool,
    /// Another node may take it over at this moment: it is not written.
    is_offered: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stored {
    Nothing,
    Value(Value),
    /// A write got no reply.
    Unknown,
}

impl Entry {
    fn new() -> Self {
        Self {
            value: Value::default(),
            holders: 0,
            stored: Stored::Nothing,
            seq: None,
            is_in_flight: false,
            is_announced: false,
            may_be_swept: false,
            may_be_removed: false,
            may_be_put: false,
            is_released: false,
            is_offered: false,
        }
    }

    fn is_wanted(&self) -> bool {
        0 < self.holders
    }
}

impl Slot {
    /// The entry of a client that this node has taken over from another one, by which it is found: its id names the node
    /// to which it has connected.
    pub(crate) fn moved(client: ClientId) -> Self {
        Self::User(moved_name(client).into())
    }
}

/// The name under which a node is found that has taken `client` over. No user has such a name: it begins with a NUL.
pub(super) fn moved_name(client: ClientId) -> String {
    format!("\u{0}{client}")
}

impl DesiredState {
    /// Wants `value` in `slot`, until as many have [left](Self::leave) as have entered. Returns the sequence number
    /// after this change, for [`is_settled`](Self::is_settled).
    pub(super) fn enter(&mut self, slot: Slot, value: Value) -> u64 {
        let entry = self.entries.entry(slot.clone()).or_insert_with(Entry::new);
        entry.value = value;
        entry.holders += 1;
        entry.is_released = false;
        self.settle(&slot);
        self.end()
    }

    /// The same for an entry that another node has registered and will [release](Self::release): it is overwritten. A join
    /// is reported only if it was missing, so that its leave was reported.
    pub(super) fn take_over(&mut self, slot: Slot, value: Value) -> u64 {
        let entry = self.entries.entry(slot.clone()).or_insert_with(Entry::new);
        entry.value = value;
        entry.holders += 1;
        entry.is_released = false;
        entry.is_announced = true;
        entry.may_be_swept = true;
        entry.stored = Stored::Unknown;
        self.settle(&slot);
        self.end()
    }

    /// Replaces the desired value of an entered slot. Returns the sequence number after this change.
    pub(super) fn change(&mut self, slot: &Slot, value: Value) -> u64 {
        if let Some(entry) = self.entries.get_mut(slot) {
            entry.value = value;
            self.settle(slot);
        }
        self.end()
    }

    /// Another node may take the entry over from now on, or no longer. Meanwhile a new lease does not write it again: that would
    /// overwrite the other node's entry, which this node would then remove.
    pub(super) fn set_offered(&mut self, slot: &Slot, is_offered: bool) {
        if let Some(entry) = self.entries.get_mut(slot) {
            entry.is_offered = is_offered;
            self.settle(slot);
        }
    }

    /// One of the registrations of `slot` has ended.
    pub(super) fn leave(&mut self, slot: &Slot) {
        if let Some(entry) = self.entries.get_mut(slot) {
            entry.holders = entry.holders.saturating_sub(1);
            self.settle(slot);
        }
    }

    /// One of the registrations of `slot` has ended, because another node has taken the entry over.
    pub(super) fn release(&mut self, slot: &Slot) {
        if let Some(entry) = self.entries.get_mut(slot) {
            entry.holders = entry.holders.saturating_sub(1);
            entry.is_released = !entry.is_wanted();
            self.settle(slot);
        }
    }

    /// The sequence number of the next change: all existing ones are before it.
    pub(super) fn end(&self) -> u64 {
        self.next_seq
    }

    /// Whether all changes before `seq` are stored.
    pub(super) fn is_settled(&self, seq: u64) -> bool {
        let unsettled = self.unsettled.first_key_value().map(|(seq, _)| *seq);
        let in_flight = self.in_flight.first().copied();
        unsettled
            .into_iter()
            .chain(in_flight)
            .all(|open| seq <= open)
    }

    /// Whether nothing is left to do.
    pub(super) fn is_idle(&self) -> bool {
        self.unsettled.is_empty() && self.in_flight.is_empty()
    }

    /// The next writes, the oldest changes first, once all previous writes have their replies.
    pub(super) fn next_batch(&mut self, writes_max: usize) -> Vec<Write> {
        let mut batch = Vec::new();
        while self.in_flight.is_empty() && batch.len() < writes_max {
            let Some((seq, slot)) = self.unsettled.pop_first() else {
                break;
            };
            let Some(entry) = self.entries.get_mut(&slot) else {
                continue;
            };
            entry.seq = None;
            entry.is_in_flight = true;
            batch.push(Write {
                put: entry.is_wanted().then(|| entry.value.clone()),
                is_release: entry.is_released && !entry.is_wanted(),
                slot,
                seq,
                generation: self.generation,
            });
        }
        self.in_flight.extend(batch.iter().map(|write| write.seq));
        batch
    }

    /// Processes the reply to `write`: whether it changed the set of entries. Returns the event that others are to
    /// be told.
    pub(super) fn answered(&mut self, write: Write, is_change: bool) -> Option<Event> {
        let is_current = write.generation == self.generation;
        let entry = self.finish(&write)?;
        if write.is_release {
            // It may have been taken over again meanwhile: then it is written once more.
            entry.stored = Stored::Nothing;
            entry.is_announced &= entry.is_wanted();
            self.settle(&write.slot);
            return None;
        }
        let was_unknown = mem::replace(&mut entry.stored, Stored::Unknown) == Stored::Unknown;
        let may_be_put = mem::take(&mut entry.may_be_put);
        let may_be_removed = mem::take(&mut entry.may_be_removed);
        let may_be_swept = mem::take(&mut entry.may_be_swept);
        let was_announced = mem::replace(&mut entry.is_announced, write.put.is_some());
        // Where the order of a write and a sweep is unknown, an event is published twice rather than never.
        let event = match &write.put {
            Some(value) => {
                let was_swept = may_be_swept && (is_change || may_be_put);
                let is_change_for_others = !was_announced || was_swept;
                is_change_for_others.then(|| Event::Joined(write.slot.clone(), value.clone()))
            }
            None => {
                let was_swept = may_be_swept && !may_be_removed;
                let is_gone = is_change || (was_unknown && !was_swept);
                let is_change_for_others = was_announced && is_gone;
                is_change_for_others.then(|| Event::Left(write.slot.clone(), entry.value.clone()))
            }
        };
        if is_current {
            entry.stored = write.put.map_or(Stored::Nothing, Stored::Value);
        }
        self.settle(&write.slot);
        event
    }

    /// Records that `write` got no reply: it is retried under its sequence number.
    pub(super) fn unanswered(&mut self, write: Write) {
        let Some(entry) = self.finish(&write) else {
            return;
        };
        entry.stored = Stored::Unknown;
        entry.may_be_removed |= write.put.is_none() && !write.is_release;
        entry.may_be_put |= write.put.is_some();
        entry.seq = Some(write.seq);
        self.unsettled.insert(write.seq, write.slot.clone());
        self.settle(&write.slot);
    }

    /// How many slots have an entry.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Up to `max` slots behind `cursor`, in their command, in which something is believed to stand that is wanted there.
    pub(super) fn stored_after(&self, cursor: Option<&Slot>, max: usize) -> Vec<StoredEntry> {
        let behind = match cursor {
            Some(cursor) => (Bound::Excluded(cursor), Bound::Unbounded),
            None => (Bound::Unbounded, Bound::Unbounded),
        };
        let stored = self.entries.range::<Slot, _>(behind);
        let stored_entries = stored.filter_map(|(slot, entry)| match &entry.stored {
            Stored::Value(value) if entry.is_wanted() && !entry.is_in_flight => Some(StoredEntry {
                slot: slot.clone(),
                value: value.clone(),
                generation: self.generation,
            }),
            _ => None,
        });
        stored_entries.take(max).collect()
    }

    /// Records that the entry is not stored, so that it is written again. `false` if it has been changed or removed on
    /// purpose since.
    pub(super) fn lost(&mut self, stored_entry: &StoredEntry) -> bool {
        let generation = self.generation;
        let Some(entry) = self.entries.get_mut(&stored_entry.slot) else {
            return false;
        };
        let is_same = matches!(&entry.stored, Stored::Value(value) if *value == stored_entry.value);
        if generation != stored_entry.generation || entry.is_in_flight || !is_same {
            return false;
        }
        entry.stored = Stored::Unknown;
        self.settle(&stored_entry.slot);
        true
    }

    /// A new lease: everything that is desired is written again, under its name.
    pub(super) fn renew_all(&mut self, swept: Swept) {
        self.generation += 1;
        // A user's entry under a lapsed lease is left to the sweeper; a member's slot is overwritten.
        self.entries.retain(|slot, entry| {
            let keep = entry.is_wanted() || entry.is_in_flight || matches!(slot, Slot::Member(..));
            if !keep && let Some(seq) = entry.seq {
                self.unsettled.remove(&seq);
            }
            keep
        });
        let slots: Vec<Slot> = self.entries.keys().cloned().collect();
        for slot in slots {
            if let Some(entry) = self.entries.get_mut(&slot) {
                entry.may_be_swept |= swept == Swept::Yes && entry.is_announced;
                entry.stored = Stored::Unknown;
                self.settle(&slot);
            }
        }
    }

    /// The members of `channel` on this node.
    pub(super) fn members(&self, channel: &ChannelName) -> Vec<(ClientId, Bytes)> {
        let first = Slot::Member(channel.clone(), ClientId::FIRST);
        let mut members = Vec::new();
        for (slot, entry) in self.entries.range(first..) {
            match slot {
                Slot::Member(name, client) if name == channel => {
                    if entry.is_wanted() {
                        members.push((*client, entry.value.info.clone()));
                    }
                }
                _ => break,
            }
        }
        members
    }

    /// Whether this node has clients of `user`.
    pub(super) fn holds(&self, user: &str) -> bool {
        let entry = self.entries.get(&Slot::User(user.into()));
        entry.is_some_and(Entry::is_wanted)
    }

    fn finish(&mut self, write: &Write) -> Option<&mut Entry> {
        self.in_flight.remove(&write.seq);
        let entry = self.entries.get_mut(&write.slot)?;
        entry.is_in_flight = false;
        Some(entry)
    }

    /// Updates `unsettled` after a change of `slot`.
    fn settle(&mut self, slot: &Slot) {
        let Some(entry) = self.entries.get_mut(slot) else {
            return;
        };
        let is_fulfilled = match &entry.stored {
            Stored::Nothing => !entry.is_wanted(),
            Stored::Value(value) => entry.is_wanted() && *value == entry.value,
            Stored::Unknown => false,
        };
        let is_held = entry.is_offered && entry.is_wanted();
        let is_unsettled = !is_fulfilled && !entry.is_in_flight && !is_held;
        match entry.seq {
            None if is_unsettled => {
                entry.seq = Some(self.next_seq);
                self.unsettled.insert(self.next_seq, slot.clone());
                self.next_seq += 1;
            }
            Some(seq) if !is_unsettled => {
                entry.seq = None;
                self.unsettled.remove(&seq);
            }
            _ => {}
        }
        if !entry.is_wanted() && is_fulfilled && !entry.is_in_flight {
            self.entries.remove(slot);
        }
    }
}

#[cfg(test)]
mod tests;
