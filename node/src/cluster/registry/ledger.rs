//! What this node wants to stand in the registry, and what does.
//!
//! Plain: users and members come and go, the writer takes batches of writes out and puts answers in, and
//! the two sides approach each other for ever. A wish may change while a write for it is under way; the
//! next one goes out only once that is answered. What an answer says of others (who came, who left) comes
//! back as news, each once.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::mem;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::protocol::channel::ChannelName;
use crate::protocol::instance::ClientId;

/// A place in the registry that this node may fill.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Slot {
    /// This node holds clients of the user.
    User(Arc<str>),
    /// A client of this node is in the channel.
    Member(ChannelName, ClientId),
}

/// What stands in a slot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Value {
    /// Who it is, for readers.
    pub(crate) info: Bytes,
    /// Whether others are told of coming and leaving.
    pub(crate) announce: Announce,
}

/// Whether a member's coming and leaving is told to others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Announce {
    /// It is in the list, and that is all.
    #[default]
    No,
    /// Everybody in the channel hears of it.
    Yes,
}

/// Whether others may have taken entries out because the lease lapsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Swept {
    /// They were left in peace, or all of Redis's data is gone: nobody was told that anyone left.
    No,
    /// What is missing now, others were told has left.
    Yes,
}

/// One write for the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) slot: Slot,
    /// What is to stand there; `None`: nothing.
    pub(super) put: Option<Value>,
    place: u64,
    era: u64,
}

/// What is believed to stand in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) slot: Slot,
    pub(super) value: Value,
    era: u64,
}

/// Something that others may want to hear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    Came(Slot, Value),
    Left(Slot, Value),
}

/// All slots of this node.
///
/// Invariants: a slot is in `unsettled`, under its entry's `place`, if and only if its wish is not
/// fulfilled and no write for it is under way; `under_way` holds the places of writes that are; a slot in
/// which nothing stands, is wanted or is under way has no entry.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    entries: BTreeMap<Slot, Entry>,
    /// In the order of their wishes.
    unsettled: BTreeMap<u64, Slot>,
    under_way: BTreeSet<u64>,
    next_place: u64,
    /// Counts the times at which everything had to be written anew.
    era: u64,
}

#[derive(Debug)]
struct Entry {
    /// What is wanted, or was last.
    value: Value,
    /// How many want it there: who comes again may do so before its last going is noticed.
    holders: u32,
    standing: Standing,
    place: Option<u64>,
    is_under_way: bool,
    /// Others know that it is here.
    is_told: bool,
    /// If the next write finds nothing, others believe that it left.
    may_be_swept: bool,
    /// A write that was not answered may have taken it out, and nobody was told.
    may_be_removed: bool,
    /// A write that was not answered may have put it back after it was swept, and nobody was told.
    may_be_put: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    Nothing,
    Value(Value),
    /// A write was not answered.
    Unknown,
}

impl Entry {
    fn is_wanted(&self) -> bool {
        0 < self.holders
    }
}

impl Ledger {
    /// Wants `value` in `slot`, until as many have [left](Self::leave) as have entered. Returns the place after
    /// the wish, for [`is_settled`](Self::is_settled).
    pub(super) fn enter(&mut self, slot: Slot, value: Value) -> u64 {
        let entry = self.entries.entry(slot.clone()).or_insert_with(|| Entry {
            value: Value::default(),
            holders: 0,
            standing: Standing::Nothing,
            place: None,
            is_under_way: false,
            is_told: false,
            may_be_swept: false,
            may_be_removed: false,
            may_be_put: false,
        });
        entry.value = value;
        entry.holders += 1;
        self.settle(&slot);
        self.end()
    }

    /// Wants `value` where somebody has entered and not left. Returns the place after the wish.
    pub(super) fn change(&mut self, slot: &Slot, value: Value) -> u64 {
        if let Some(entry) = self.entries.get_mut(slot) {
            entry.value = value;
            self.settle(slot);
        }
        self.end()
    }

    /// One of those who have entered wants nothing in `slot` any more.
    pub(super) fn leave(&mut self, slot: &Slot) {
        if let Some(entry) = self.entries.get_mut(slot) {
            entry.holders = entry.holders.saturating_sub(1);
            self.settle(slot);
        }
    }

    /// The place of the next wish: all that there are come before it.
    pub(super) fn end(&self) -> u64 {
        self.next_place
    }

    /// Whether all wishes before `place` are fulfilled.
    pub(super) fn is_settled(&self, place: u64) -> bool {
        let unsettled = self.unsettled.first_key_value().map(|(place, _)| *place);
        let under_way = self.under_way.first().copied();
        unsettled
            .into_iter()
            .chain(under_way)
            .all(|open| place <= open)
    }

    /// Whether nothing is left to do.
    pub(super) fn is_idle(&self) -> bool {
        self.unsettled.is_empty() && self.under_way.is_empty()
    }

    /// The next writes, the oldest wishes first, once those before are all answered.
    pub(super) fn next_batch(&mut self, writes_max: usize) -> Vec<Write> {
        let mut batch = Vec::new();
        while self.under_way.is_empty() && batch.len() < writes_max {
            let Some((place, slot)) = self.unsettled.pop_first() else {
                break;
            };
            let Some(entry) = self.entries.get_mut(&slot) else {
                continue;
            };
            entry.place = None;
            entry.is_under_way = true;
            batch.push(Write {
                put: entry.is_wanted().then(|| entry.value.clone()),
                slot,
                place,
                era: self.era,
            });
        }
        self.under_way.extend(batch.iter().map(|write| write.place));
        batch
    }

    /// Takes note of the answer to `write`: whether it changed who is in the registry. What others have to
    /// hear of it.
    pub(super) fn answered(&mut self, write: Write, is_change: bool) -> Option<Event> {
        let is_current = write.era == self.era;
        let entry = self.finish(&write)?;
        let was_unknown = mem::replace(&mut entry.standing, Standing::Unknown) == Standing::Unknown;
        let may_be_put = mem::take(&mut entry.may_be_put);
        let may_be_removed = mem::take(&mut entry.may_be_removed);
        let may_be_swept = mem::take(&mut entry.may_be_swept);
        let was_told = mem::replace(&mut entry.is_told, write.put.is_some());
        // Rather twice than never: that is all that can go wrong where it is not known who was first.
        let event = match &write.put {
            Some(value) => {
                let was_swept = may_be_swept && (is_change || may_be_put);
                let is_news = !was_told || was_swept;
                is_news.then(|| Event::Came(write.slot.clone(), value.clone()))
            }
            None => {
                let was_swept = may_be_swept && !may_be_removed;
                let is_gone = is_change || (was_unknown && !was_swept);
                let is_news = was_told && is_gone;
                is_news.then(|| Event::Left(write.slot.clone(), entry.value.clone()))
            }
        };
        if is_current {
            entry.standing = write.put.map_or(Standing::Nothing, Standing::Value);
        }
        self.settle(&write.slot);
        event
    }

    /// Takes note that nobody knows what became of `write`: it is tried again in its place.
    pub(super) fn unanswered(&mut self, write: Write) {
        let Some(entry) = self.finish(&write) else {
            return;
        };
        entry.standing = Standing::Unknown;
        entry.may_be_removed |= write.put.is_none();
        entry.may_be_put |= write.put.is_some();
        entry.place = Some(write.place);
        self.unsettled.insert(write.place, write.slot.clone());
        self.settle(&write.slot);
    }

    /// How many slots are filled, or are to be.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Up to `max` slots behind `cursor`, in their order, in which something is believed to stand that is wanted there.
    pub(super) fn standing_behind(&self, cursor: Option<&Slot>, max: usize) -> Vec<Claim> {
        let behind = match cursor {
            Some(cursor) => (Bound::Excluded(cursor), Bound::Unbounded),
            None => (Bound::Unbounded, Bound::Unbounded),
        };
        let standing = self.entries.range::<Slot, _>(behind);
        let claims = standing.filter_map(|(slot, entry)| match &entry.standing {
            Standing::Value(value) if entry.is_wanted() && !entry.is_under_way => Some(Claim {
                slot: slot.clone(),
                value: value.clone(),
                era: self.era,
            }),
            _ => None,
        });
        claims.take(max).collect()
    }

    /// Takes note that what is claimed does not stand there: it is written again. Whether that is news: by now it may
    /// have been changed or taken out on purpose.
    pub(super) fn lost(&mut self, claim: &Claim) -> bool {
        let era = self.era;
        let Some(entry) = self.entries.get_mut(&claim.slot) else {
            return false;
        };
        let is_same = matches!(&entry.standing, Standing::Value(value) if *value == claim.value);
        if era != claim.era || entry.is_under_way || !is_same {
            return false;
        }
        entry.standing = Standing::Unknown;
        self.settle(&claim.slot);
        true
    }

    /// A new lease: everything that is wanted is written anew, under its name.
    pub(super) fn renew_all(&mut self, swept: Swept) {
        self.era += 1;
        // What stands under a lapsed lease for a user is the sweeper's; a member's slot is overwritten.
        self.entries.retain(|slot, entry| {
            let keep = entry.is_wanted() || entry.is_under_way || matches!(slot, Slot::Member(..));
            if !keep && let Some(place) = entry.place {
                self.unsettled.remove(&place);
            }
            keep
        });
        let slots: Vec<Slot> = self.entries.keys().cloned().collect();
        for slot in slots {
            if let Some(entry) = self.entries.get_mut(&slot) {
                entry.may_be_swept |= swept == Swept::Yes && entry.is_told;
                entry.standing = Standing::Unknown;
                self.settle(&slot);
            }
        }
    }

    /// Who of this node is wanted in `channel`.
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

    /// Whether this node holds clients of `user`.
    pub(super) fn holds(&self, user: &str) -> bool {
        let entry = self.entries.get(&Slot::User(user.into()));
        entry.is_some_and(Entry::is_wanted)
    }

    fn finish(&mut self, write: &Write) -> Option<&mut Entry> {
        self.under_way.remove(&write.place);
        let entry = self.entries.get_mut(&write.slot)?;
        entry.is_under_way = false;
        Some(entry)
    }

    /// Puts `slot` where it belongs after a change.
    fn settle(&mut self, slot: &Slot) {
        let Some(entry) = self.entries.get_mut(slot) else {
            return;
        };
        let is_fulfilled = match &entry.standing {
            Standing::Nothing => !entry.is_wanted(),
            Standing::Value(value) => entry.is_wanted() && *value == entry.value,
            Standing::Unknown => false,
        };
        let is_unsettled = !is_fulfilled && !entry.is_under_way;
        match entry.place {
            None if is_unsettled => {
                entry.place = Some(self.next_place);
                self.unsettled.insert(self.next_place, slot.clone());
                self.next_place += 1;
            }
            Some(place) if !is_unsettled => {
                entry.place = None;
                self.unsettled.remove(&place);
            }
            _ => {}
        }
        if !entry.is_wanted() && is_fulfilled && !entry.is_under_way {
            self.entries.remove(slot);
        }
    }
}

#[cfg(test)]
mod tests;
