//! The shared part of one channel: its open batch, and the members that join or leave with the next flush.
//!
//! The members themselves belong to the flush loop (`subscribers`). Changes are queued here, in order and with their
//! position in the batch, until the loop takes both together: members do not move during a flush.
//!
//! Leaving is the exception: a member that has left gets nothing more, not even of a flush that is under way. The flush
//! checks this ([`Departures`]) while it holds the lock of the member's outbox, so everything that the member is sent
//! after leaving follows all that it was sent of the channel.

use std::collections::HashSet;
use std::mem;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::config::SlowReader;
use crate::hub::Member;
use crate::hub::batch::Batch;
use crate::hub::batch::Slots;
use crate::hub::format::Slot;
use crate::hub::indexes::Indexes;
use crate::protocol::channel::ChannelName;

/// How many full batches a channel may collect while the flush loop is busy. The limit is reached only if the node has no
/// CPU left; a higher one would take memory and deliver nothing sooner.
const BATCHES_MAX: usize = 16;

/// A channel with members, or a pinned one.
pub(super) struct Channel {
    /// Never used twice, unlike the name.
    pub(super) id: u64,
    pub(super) name: ChannelName,
    pub(super) kind: ChannelKind,
    open: Mutex<Open>,
    /// How many members have left so far. Changed under the lock of `open`.
    departures: AtomicU64,
    /// Whether the channel has ended and its last push is written.
    is_over: AtomicBool,
}

/// What a channel's publications come from, and how long it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChannelKind {
    /// Publications of a relay, while it has members.
    Relay,
    /// Publications of a relay, as long as the hub exists.
    PinnedRelay,
    /// A channel stream, which subscribes in the broker itself, while it has members.
    Stream(SlowReader),
}

/// Invariant: `listed` if and only if the hub's list holds the channel or the flush loop is about to take it, which is
/// the case whenever `batch` or `changes` is not empty.
#[derive(Default)]
struct Open {
    batch: Batch,
    changes: Vec<Change>,
    listed: bool,
    full: bool,
    dropped: u64,
    ending: Ending,
    plain: Indexes,
    framed: Indexes,
    queued: Indexes,
    delimited: Indexes,
}

/// Whether the channel accepts more messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Ending {
    /// It does.
    #[default]
    Open,
    /// It does not; the open batch is the last that is written.
    AfterBatch,
    /// It does not, and the open batch is dropped.
    AtOnce,
}

/// A change that the flush loop applies.
pub(super) enum Change {
    /// Adds `member`, which receives the batch from `position` on.
    Join {
        id: SubscriberId,
        member: Member,
        position: usize,
    },
    Leave {
        id: SubscriberId,
    },
    /// Removes the member once it has the batch up to `position`. Its index is free after its `Leave`.
    LeaveAt {
        id: SubscriberId,
        position: usize,
        left: oneshot::Sender<()>,
    },
    /// Notifies a caller that waits until the batch is written.
    Flush(oneshot::Sender<()>),
}

/// The identifier of a member within its channel, reused after it has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SubscriberId {
    pub(super) slot: Slot,
    pub(super) index: u32,
}

/// How a channel ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// After the open batch is written.
    AfterBatch,
    /// At once: the open batch is dropped.
    AtOnce,
}

/// The result of a join.
pub(super) struct Joined {
    pub(super) id: SubscriberId,
    /// Whether the channel has to be listed now.
    pub(super) list: bool,
}

/// The result of appending to the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Appended {
    /// It is in the batch, or the channel has no members.
    Batched,
    /// It is in the batch, and the channel has to be listed now.
    List,
    /// It is dropped: the batch is too large.
    Dropped,
}

/// The batch and the changes for one flush.
pub(super) struct Taken {
    pub(super) batch: Batch,
    pub(super) changes: Vec<Change>,
    /// Publications that were dropped because the batch was too large.
    pub(super) dropped: u64,
    /// Whether the channel has ended: nothing follows.
    pub(super) is_last: bool,
}

/// The members that have left since the flush loop took a batch.
pub(super) struct Departures<'a> {
    channel: &'a Channel,
    /// The value of `Channel::departures` at the last update.
    known: u64,
    /// How many changes were processed since the batch was taken.
    changes_seen: usize,
    left: HashSet<SubscriberId>,
    have_all_left: bool,
}

impl Channel {
    pub(super) fn new(id: u64, name: ChannelName, kind: ChannelKind) -> Self {
        Self {
            id,
            name,
            kind,
            open: Mutex::default(),
            departures: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        }
    }

    /// Whether the channel has ended and its last push is written.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Notes that the last push is written.
    pub(super) fn set_over(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    pub(super) fn join(&self, member: Member) -> Joined {
        let mut open = self.open.lock();
        let slot = member.format().slot();
        let index = open.indexes(slot).take();
        let id = SubscriberId { slot, index };
        let position = open.batch.position(slot);
        open.changes.push(Change::Join {
            id,
            member,
            position,
        });
        Joined {
            id,
            list: !mem::replace(&mut open.listed, true),
        }
    }

    /// Removes a member: nothing of the channel is written to it after this call. Returns whether the channel has to be
    /// listed now.
    pub(super) fn leave(&self, id: SubscriberId) -> bool {
        let mut open = self.open.lock();
        // The next join with this index is queued after this change.
        open.indexes(id.slot).release(id.index);
        open.changes.push(Change::Leave { id });
        self.departures.fetch_add(1, Ordering::Release);
        !mem::replace(&mut open.listed, true)
    }

    /// Ends the deliveries to a member exactly here: it still gets all that was appended before this call, and nothing
    /// that is appended later. Returns a receiver that completes once that is written, and whether the channel has to be
    /// listed now. The member [leaves](Self::leave) later.
    pub(super) fn leave_here(&self, id: SubscriberId) -> (oneshot::Receiver<()>, bool) {
        let (left, has_left) = oneshot::channel();
        let mut open = self.open.lock();
        let position = open.batch.position(id.slot);
        open.changes.push(Change::LeaveAt { id, position, left });
        (has_left, !mem::replace(&mut open.listed, true))
    }

    /// Returns a receiver that completes once all that was appended before this call is written, and whether the channel
    /// has to be listed now.
    pub(super) fn flush(&self) -> (oneshot::Receiver<()>, bool) {
        let (done, flushed) = oneshot::channel();
        let mut open = self.open.lock();
        open.changes.push(Change::Flush(done));
        (flushed, !mem::replace(&mut open.listed, true))
    }

    /// Ends the channel: nothing is appended any more. Returns whether the channel has to be listed now.
    pub(super) fn end(&self, end: End) -> bool {
        let mut open = self.open.lock();
        match end {
            End::AfterBatch if open.ending == Ending::Open => open.ending = Ending::AfterBatch,
            End::AfterBatch => {}
            End::AtOnce => {
                open.ending = Ending::AtOnce;
                self.departures.fetch_add(1, Ordering::Release);
            }
        }
        !mem::replace(&mut open.listed, true)
    }

    /// Calls `append` with the batch, if the channel has members.
    pub(super) fn append(
        &self,
        batch_bytes_max: usize,
        append: impl FnOnce(&mut Batch, Slots),
    ) -> Appended {
        let mut open = self.open.lock();
        let slots = Slots {
            plain: open.plain.any_taken(),
            framed: open.framed.any_taken(),
            queued: open.queued.any_taken(),
            delimited: open.delimited.any_taken(),
        };
        if !slots.any() || open.ending != Ending::Open {
            return Appended::Batched;
        }
        if batch_bytes_max.saturating_mul(BATCHES_MAX) < open.batch.bytes() {
            open.dropped += 1;
            return Appended::Dropped;
        }
        append(&mut open.batch, slots);
        let full = batch_bytes_max <= open.batch.bytes();
        let newly_full = full && !mem::replace(&mut open.full, full);
        if !mem::replace(&mut open.listed, true) || newly_full {
            Appended::List
        } else {
            Appended::Batched
        }
    }

    /// How soon the channel has to be flushed.
    pub(super) fn urgency(&self) -> Urgency {
        let open = self.open.lock();
        if !open.listed {
            Urgency::None
        } else if open.full || open.batch.is_empty() {
            Urgency::Now
        } else {
            Urgency::AfterWindow
        }
    }

    /// Takes the batch and the changes for a flush, and a view of members that leave from now on.
    pub(super) fn take(&self) -> (Taken, Departures<'_>) {
        let mut open = self.open.lock();
        open.listed = false;
        open.full = false;
        let taken = Taken {
            batch: mem::take(&mut open.batch),
            changes: mem::take(&mut open.changes),
            dropped: mem::take(&mut open.dropped),
            is_last: open.ending != Ending::Open,
        };
        let departures = Departures {
            channel: self,
            known: self.departures.load(Ordering::Relaxed),
            changes_seen: 0,
            left: HashSet::new(),
            have_all_left: open.ending == Ending::AtOnce,
        };
        (taken, departures)
    }

    pub(super) fn is_unused(&self) -> bool {
        let open = self.open.lock();
        self.kind != ChannelKind::PinnedRelay
            && !open.listed
            && ![&open.plain, &open.framed, &open.queued, &open.delimited]
                .into_iter()
                .any(Indexes::any_taken)
    }
}

impl Departures<'_> {
    /// Whether the member may still be sent something. Must be called under the lock of its outbox.
    pub(super) fn is_member(&mut self, id: SubscriberId) -> bool {
        if self.channel.departures.load(Ordering::Acquire) != self.known {
            self.update();
        }
        !self.have_all_left && (self.left.is_empty() || !self.left.contains(&id))
    }

    fn update(&mut self) {
        let open = self.channel.open.lock();
        self.known = self.channel.departures.load(Ordering::Relaxed);
        self.have_all_left = open.ending == Ending::AtOnce;
        let changes = open.changes.iter().skip(self.changes_seen);
        self.left.extend(changes.filter_map(|change| match change {
            Change::Leave { id } => Some(*id),
            Change::Join { .. } | Change::LeaveAt { .. } | Change::Flush(_) => None,
        }));
        self.changes_seen = open.changes.len();
    }
}

/// How soon a channel has to be flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// Not at all: there is nothing to do.
    None,
    /// At once: members join or leave, or the batch is large enough.
    Now,
    /// When its window has ended.
    AfterWindow,
}

impl Open {
    fn indexes(&mut self, slot: Slot) -> &mut Indexes {
        match slot {
            Slot::Plain => &mut self.plain,
            Slot::Framed => &mut self.framed,
            Slot::Queued => &mut self.queued,
            Slot::Delimited => &mut self.delimited,
        }
    }
}
