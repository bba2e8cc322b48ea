//! What is known of the streams: which message is at which place, and which of them were acknowledged.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

/// A place in a channel's stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Which stream of all that the channel has had.
    pub epoch: Arc<str>,
    /// The place in it.
    pub offset: u64,
}

impl Position {
    /// Whether it is one before the first publication of a channel: the stream that begins then has an epoch of its own.
    pub(super) fn is_unborn(&self) -> bool {
        self.epoch.starts_with('u')
    }
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.offset, self.epoch)
    }
}

/// The streams of one channel, one for each epoch.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    epochs: HashMap<Arc<str>, Epoch>,
    /// When messages were sent that have no place yet or may get another one.
    sent: HashMap<u64, Duration>,
    last_acked: Option<(Position, u64)>,
}

#[derive(Debug, Default)]
struct Epoch {
    ids: BTreeMap<u64, u64>,
    offsets: HashMap<u64, u64>,
    acked: BTreeMap<u64, Duration>,
}

impl Ledger {
    /// Notes that message `id` is about to be published.
    pub(super) fn sent(&mut self, id: u64, at: Duration) {
        self.sent.insert(id, at);
    }

    /// When message `id` was first sent; none if nobody has.
    pub(super) fn sent_at(&self, id: u64) -> Option<Duration> {
        self.sent.get(&id).copied()
    }

    /// Notes that message `id` is at `position`; what contradicts that.
    pub(super) fn at(&mut self, position: &Position, id: u64) -> Option<String> {
        if !self.sent.contains_key(&id) {
            return Some(format!("{position} is message {id}, which nobody has sent"));
        }
        let epoch = self.epochs.entry(Arc::clone(&position.epoch)).or_default();
        match epoch.ids.entry(position.offset) {
            Entry::Occupied(there) if *there.get() == id => return None,
            Entry::Occupied(there) => {
                let other = there.get();
                return Some(format!("{position} is message {id} and message {other}"));
            }
            Entry::Vacant(empty) => empty.insert(id),
        };
        let elsewhere = epoch.offsets.insert(id, position.offset)?;
        Some(format!("message {id} is at {position} and at {elsewhere}"))
    }

    /// Notes that message `id` was acknowledged at `position`; what contradicts that.
    pub(super) fn acked(&mut self, position: &Position, id: u64, at: Duration) -> Option<String> {
        let contradiction = self.at(position, id);
        let epoch = self.epochs.entry(Arc::clone(&position.epoch)).or_default();
        epoch.acked.insert(position.offset, at);
        let last = self.last_acked.replace((position.clone(), id));
        // A publisher sends the next one when it knows what became of the last.
        let overtaken = last.filter(|(last, earlier)| {
            last.epoch == position.epoch && *earlier < id && position.offset <= last.offset
        });
        contradiction.or_else(|| {
            overtaken.map(|(last, earlier)| {
                format!("message {id} is at {position}, and {earlier}, sent before it, at {last}")
            })
        })
    }

    /// The first acknowledged message behind `position` in its epoch: its offset, and when it was acknowledged.
    pub(super) fn next_acked(&self, position: &Position) -> Option<(u64, Duration)> {
        let epoch = self.epochs.get(&position.epoch)?;
        let mut behind = epoch.acked.range(position.offset + 1..);
        behind.next().map(|(offset, at)| (*offset, *at))
    }

    /// How many messages behind `position` were acknowledged in its epoch.
    pub(super) fn acked_behind(&self, position: &Position) -> usize {
        let epoch = self.epochs.get(&position.epoch);
        epoch.map_or(0, |epoch| epoch.acked.range(position.offset + 1..).count())
    }

    /// The same behind `offset`, in the epoch of the last message that was acknowledged.
    pub(super) fn acked_last_behind(&self, offset: u64) -> u64 {
        let last = self.last_acked.as_ref();
        last.map_or(0, |(last, _)| {
            let epoch = last.epoch.clone();
            self.acked_behind(&Position { epoch, offset }) as u64
        })
    }

    /// When the message at `position` was acknowledged.
    pub(super) fn acked_at(&self, position: &Position) -> Option<Duration> {
        let epoch = self.epochs.get(&position.epoch)?;
        epoch.acked.get(&position.offset).copied()
    }

    /// How many epochs there were.
    pub(super) fn epochs(&self) -> usize {
        self.epochs.len()
    }
}
