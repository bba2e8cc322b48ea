//! The members of one channel, owned by the flush loop.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::config::SlowReader;
use crate::hub::Member;
use crate::hub::batch::Closed;
use crate::hub::batch::ClosedFrames;
use crate::hub::channel::Change;
use crate::hub::channel::Channel;
use crate::hub::channel::ChannelKind;
use crate::hub::channel::Departures;
use crate::hub::channel::SubscriberId;
use crate::hub::format::Slot;
use crate::hub::outbox::QueueOutbox;
use crate::hub::outbox::SocketOutbox;
use crate::hub::table::Table;
use crate::hub::window::Window;

/// The members of a channel by format, each at the index that the channel assigned.
///
/// A flush goes chunk by chunk; members do not move meanwhile.
pub(super) struct Subscribers {
    pub(super) window: Window,
    /// Whether the channel is in the flush loop's `waiting`.
    pub(super) is_waiting: bool,
    /// The channel's id, if only its newest publication is queued for a slow member.
    latest: Option<u64>,
    plain: Table<SocketOutbox>,
    framed: Table<SocketOutbox>,
    queued: Table<QueueOutbox>,
    delimited: Table<QueueOutbox>,
}

/// Changes that are applied after a batch is written.
#[derive(Default)]
pub(super) struct Pending {
    arrivals: Vec<Arrival>,
    flushed: Vec<oneshot::Sender<()>>,
}

/// A member that joins with a flush.
struct Arrival {
    id: SubscriberId,
    member: Member,
    /// The position in the batch from which on it receives.
    position: usize,
}

impl Subscribers {
    pub(super) fn new(channel: &Channel, window: Window) -> Self {
        Self {
            window,
            is_waiting: false,
            latest: (channel.kind == ChannelKind::Stream(SlowReader::Latest)).then_some(channel.id),
            plain: Table::new(),
            framed: Table::new(),
            queued: Table::new(),
            delimited: Table::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.plain.len() + self.framed.len() + self.queued.len() + self.delimited.len() == 0
    }

    /// How many deliveries a batch causes.
    pub(super) fn deliveries(&self, batch: &Closed) -> usize {
        let plain = batch.messages - batch.not_json;
        let framed = batch.messages - batch.not_utf8;
        let queued = batch.messages - batch.not_json - batch.not_utf8;
        self.plain.len() * plain
            + (self.framed.len() + self.delimited.len()) * framed
            + self.queued.len() * queued
    }

    /// How many chunks of members there are, see [`deliver`](Self::deliver).
    pub(super) fn chunks(&self) -> usize {
        self.plain.chunks() + self.framed.chunks() + self.queued.chunks() + self.delimited.chunks()
    }

    /// Writes the batch to the members of one chunk that have not left. Returns how many are in the chunk.
    pub(super) fn deliver(
        &self,
        chunk: usize,
        batch: &Closed,
        departures: &mut Departures<'_>,
    ) -> usize {
        let framed_chunk = chunk.wrapping_sub(self.plain.chunks());
        let queued_chunk = framed_chunk.wrapping_sub(self.framed.chunks());
        let delimited_chunk = queued_chunk.wrapping_sub(self.queued.chunks());
        if chunk < self.plain.chunks() {
            let members = with_ids(&self.plain, Slot::Plain, chunk);
            self.send_all(members, &batch.plain, departures)
        } else if framed_chunk < self.framed.chunks() {
            let members = with_ids(&self.framed, Slot::Framed, framed_chunk);
            self.send_all(members, &batch.framed, departures)
        } else if queued_chunk < self.queued.chunks() {
            let members = with_ids(&self.queued, Slot::Queued, queued_chunk);
            self.push_all(members, &batch.queued, departures)
        } else {
            let members = with_ids(&self.delimited, Slot::Delimited, delimited_chunk);
            self.push_all(members, &batch.delimited, departures)
        }
    }

    fn send_all<'a>(
        &self,
        members: impl Iterator<Item = (SubscriberId, &'a Arc<SocketOutbox>)>,
        frames: &ClosedFrames,
        departures: &mut Departures<'_>,
    ) -> usize {
        if frames.bytes.is_empty() {
            return 0;
        }
        let mut count = 0;
        for (id, outbox) in members {
            let is_member = || departures.is_member(id);
            match self.latest {
                Some(channel) => {
                    outbox.send_latest(channel, &frames.bytes, frames.newest(), is_member);
                }
                None => outbox.send_if(&frames.bytes, is_member),
            }
            count += 1;
        }
        count
    }

    fn push_all<'a>(
        &self,
        members: impl Iterator<Item = (SubscriberId, &'a Arc<QueueOutbox>)>,
        messages: &[Bytes],
        departures: &mut Departures<'_>,
    ) -> usize {
        let mut count = 0;
        for (id, outbox) in members {
            let is_member = || departures.is_member(id);
            match self.latest {
                Some(channel) => outbox.push_latest(channel, messages, is_member),
                None => outbox.push_all_if(messages, is_member),
            }
            count += 1;
        }
        count
    }

    /// Removes members that have left, before the batch is written. Returns the changes for [`join`](Self::join).
    pub(super) fn leave(&mut self, changes: Vec<Change>) -> Pending {
        // From the end: a leave belongs to the last join before it with the same id, or to a present member.
        let mut left = HashSet::new();
        let mut pending = Pending::default();
        for change in changes.into_iter().rev() {
            match change {
                Change::Leave { id } => {
                    left.insert(id);
                }
                Change::Join { id, .. } if left.remove(&id) => {}
                Change::Join {
                    id,
                    member,
                    position,
                } => pending.arrivals.push(Arrival {
                    id,
                    member,
                    position,
                }),
                Change::Flush(done) => pending.flushed.push(done),
            }
        }
        for SubscriberId { slot, index } in left {
            match slot {
                Slot::Plain => self.plain.remove(index),
                Slot::Framed => self.framed.remove(index),
                Slot::Queued => self.queued.remove(index),
                Slot::Delimited => self.delimited.remove(index),
            }
        }
        pending.arrivals.reverse();
        pending
    }

    /// Adds members, after the batch is written: they get what was published after they joined. Notifies callers that
    /// wait for the flush.
    pub(super) fn join(
        &mut self,
        pending: Pending,
        batch: &Closed,
        departures: &mut Departures<'_>,
    ) {
        for arrival in pending.arrivals {
            catch_up(&arrival, batch, departures);
            let SubscriberId { slot, index } = arrival.id;
            match (arrival.member, slot) {
                (Member::Queue(outbox), Slot::Delimited) => self.delimited.insert(index, outbox),
                (Member::Queue(outbox), _) => self.queued.insert(index, outbox),
                (Member::Socket(outbox), Slot::Framed) => self.framed.insert(index, outbox),
                (Member::Socket(outbox), _) => self.plain.insert(index, outbox),
            }
        }
        for done in pending.flushed {
            let _ = done.send(()); // The caller may have stopped waiting.
        }
    }

    /// Removes all members.
    pub(super) fn clear(&mut self) {
        self.plain.clear();
        self.framed.clear();
        self.queued.clear();
        self.delimited.clear();
    }
}

fn with_ids<T>(
    table: &Table<T>,
    slot: Slot,
    chunk: usize,
) -> impl Iterator<Item = (SubscriberId, &Arc<T>)> {
    let members = table.chunk(chunk);
    members.map(move |(index, outbox)| (SubscriberId { slot, index }, outbox))
}

fn catch_up(arrival: &Arrival, batch: &Closed, departures: &mut Departures<'_>) {
    let (slot, position) = (arrival.id.slot, arrival.position);
    let is_member = || departures.is_member(arrival.id);
    match &arrival.member {
        Member::Queue(outbox) if slot == Slot::Delimited => {
            outbox.push_all_if(&batch.delimited[position..], is_member);
        }
        Member::Queue(outbox) => outbox.push_all_if(&batch.queued[position..], is_member),
        Member::Socket(outbox) => {
            let frames = match slot {
                Slot::Framed => &batch.framed.bytes,
                _ => &batch.plain.bytes,
            };
            if position < frames.len() {
                outbox.send_if(&frames.slice(position..), is_member);
            }
        }
    }
}
