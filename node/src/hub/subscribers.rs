//! The members of one channel, owned by the flush loop.

use std::collections::HashMap;
use std::collections::HashSet;
use std::ops::Range;
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
    departures: Vec<Departure>,
    flushed: Vec<oneshot::Sender<()>>,
}

/// A member that joins with a flush.
struct Arrival {
    id: SubscriberId,
    member: Member,
    /// The position in the batch from which on it receives.
    position: usize,
}

/// A member that gets a part of this batch as its last.
struct Departure {
    slot: Slot,
    member: Member,
    /// The positions of that part.
    range: Range<usize>,
    left: oneshot::Sender<()>,
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
        let mut ending = HashMap::new();
        let mut pending = Pending::default();
        for change in changes.into_iter().rev() {
            match change {
                Change::Leave { id } => {
                    left.insert(id);
                }
                Change::LeaveAt {
                    id,
                    position,
                    left: done,
                } => {
                    // It may have left behind this position already: then that has freed its index.
                    ending.insert(id, (position, done));
                }
                Change::Join {
                    id,
                    member,
                    position,
                } => {
                    let has_left = left.remove(&id);
                    if let Some((end, left)) = ending.remove(&id) {
                        let range = position..end;
                        pending.departures.push(Departure {
                            slot: id.slot,
                            member,
                            range,
                            left,
                        });
                    } else if !has_left {
                        pending.arrivals.push(Arrival {
                            id,
                            member,
                            position,
                        });
                    }
                }
                Change::Flush(done) => pending.flushed.push(done),
            }
        }
        for (id, (end, left)) in ending {
            if let Some(member) = self.remove(id) {
                pending.departures.push(Departure {
                    slot: id.slot,
                    member,
                    range: 0..end,
                    left,
                });
            }
        }
        for id in left {
            self.remove(id);
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
        for departure in pending.departures {
            // Nothing else can remove it, and its index may be another member's by now.
            send_part(
                &departure.member,
                departure.slot,
                departure.range,
                batch,
                || true,
            );
            let _ = departure.left.send(()); // The caller may have stopped waiting.
        }
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

    fn remove(&mut self, id: SubscriberId) -> Option<Member> {
        match id.slot {
            Slot::Plain => self.plain.remove(id.index).map(Member::Socket),
            Slot::Framed => self.framed.remove(id.index).map(Member::Socket),
            Slot::Queued => self.queued.remove(id.index).map(Member::Queue),
            Slot::Delimited => self.delimited.remove(id.index).map(Member::Queue),
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
    let slot = arrival.id.slot;
    let range = arrival.position..batch.end(slot);
    send_part(&arrival.member, slot, range, batch, || {
        departures.is_member(arrival.id)
    });
}

/// Sends the part of the batch in `range` to one member.
fn send_part(
    member: &Member,
    slot: Slot,
    range: Range<usize>,
    batch: &Closed,
    is_meant: impl FnOnce() -> bool,
) {
    if range.is_empty() {
        return;
    }
    match (member, slot) {
        (Member::Queue(outbox), Slot::Delimited) => {
            outbox.push_all_if(&batch.delimited[range], is_meant);
        }
        (Member::Queue(outbox), _) => outbox.push_all_if(&batch.queued[range], is_meant),
        (Member::Socket(outbox), Slot::Framed) => {
            outbox.send_if(&batch.framed.bytes.slice(range), is_meant);
        }
        (Member::Socket(outbox), _) => {
            outbox.send_if(&batch.plain.bytes.slice(range), is_meant);
        }
    }
}
