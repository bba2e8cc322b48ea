//! One channel as everyone may touch it: its open batch, and who joins or leaves with the next round.
//!
//! The members themselves are the hub task's own (`audience`). Changes wait here, in order and with
//! their place in the batch, until the task takes both together: so a round never sees its members move.
//!
//! Only one thing does not wait: who has left gets nothing more, not even of a round that is under way. The
//! round asks for it ([`Departures`]) while it has the lock of a member's outbox, so whatever the member is
//! told after it has left stands behind all that it was sent of the channel.

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

/// How many full batches a channel may gather while the hub's task is busy elsewhere. It comes to that
/// only if the node has no CPU left; more would not arrive sooner, only take memory.
const BATCHES_MAX: usize = 16;

/// A channel with members, or a pinned one.
pub(super) struct Channel {
    /// Never used twice, unlike the name.
    pub(super) id: u64,
    pub(super) name: ChannelName,
    pub(super) stay: Stay,
    open: Mutex<Open>,
    /// How often somebody has left. Changed under the lock of `open`.
    departures: AtomicU64,
    /// Whether the last that its members get is written.
    is_over: AtomicBool,
}

/// How long a channel stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stay {
    /// As long as somebody hears it.
    WhileHeard,
    /// As long as the hub.
    Pinned,
    /// As long as somebody hears it; a feed sees to the broker.
    Fed(SlowReader),
}

/// Invariant: `listed` if and only if the hub's list holds the channel or its task is about to take it,
/// which is so whenever `batch` or `changes` is not empty.
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

/// Whether more can come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Ending {
    /// It can.
    #[default]
    Open,
    /// What is in the batch is the last.
    AfterBatch,
    /// Not even that goes out.
    AtOnce,
}

/// What the task does with its members after a round.
pub(super) enum Change {
    /// `member` sits down, and gets the batch from `position` on.
    Join {
        seat: Seat,
        member: Member,
        position: usize,
    },
    Leave {
        seat: Seat,
    },
    /// Somebody waits until the batch is written.
    Flush(oneshot::Sender<()>),
}

/// A member's place in the audience.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Seat {
    pub(super) slot: Slot,
    pub(super) index: u32,
}

/// How a channel ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// What has gathered is the last that goes out.
    AfterBatch,
    /// Nothing goes out any more.
    AtOnce,
}

/// What a join comes to.
pub(super) struct Joined {
    pub(super) seat: Seat,
    /// Whether the channel has to be listed now.
    pub(super) list: bool,
}

/// What has become of something that was to go into the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Appended {
    /// It waits for the round, or nobody listens.
    Gathering,
    /// It does, and the channel has to be listed now.
    List,
    /// Too much waits already.
    Dropped,
}

/// All that waited for a round.
pub(super) struct Taken {
    pub(super) batch: Batch,
    pub(super) changes: Vec<Change>,
    /// Publications that found too much waiting.
    pub(super) dropped: u64,
    /// Whether nothing comes after it.
    pub(super) is_last: bool,
}

/// Who has left since the hub's task took a batch.
pub(super) struct Departures<'a> {
    channel: &'a Channel,
    /// How many departures are known.
    known: u64,
    /// How many changes have been looked at since the batch was taken.
    changes_seen: usize,
    left: HashSet<Seat>,
    have_all_left: bool,
}

impl Channel {
    pub(super) fn new(id: u64, name: ChannelName, stay: Stay) -> Self {
        Self {
            id,
            name,
            stay,
            open: Mutex::default(),
            departures: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        }
    }

    /// Whether its members get nothing more, and have got all that was for them.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Notes that they have.
    pub(super) fn set_over(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    pub(super) fn join(&self, member: Member) -> Joined {
        let mut open = self.open.lock();
        let slot = member.format().slot();
        let index = open.indexes(slot).take();
        let seat = Seat { slot, index };
        let position = open.batch.position(slot);
        open.changes.push(Change::Join {
            seat,
            member,
            position,
        });
        Joined {
            seat,
            list: !mem::replace(&mut open.listed, true),
        }
    }

    /// Nothing of the channel is written for the member behind this call. Whether the channel has to be listed
    /// now.
    pub(super) fn leave(&self, seat: Seat) -> bool {
        let mut open = self.open.lock();
        // Whoever takes the index next does so after this change, which stands before that one.
        open.indexes(seat.slot).give_back(seat.index);
        open.changes.push(Change::Leave { seat });
        self.departures.fetch_add(1, Ordering::Release);
        !mem::replace(&mut open.listed, true)
    }

    /// What is answered once all that was appended before this call is written, and whether the channel has to
    /// be listed now.
    pub(super) fn flush(&self) -> (oneshot::Receiver<()>, bool) {
        let (done, flushed) = oneshot::channel();
        let mut open = self.open.lock();
        open.changes.push(Change::Flush(done));
        (flushed, !mem::replace(&mut open.listed, true))
    }

    /// Lets nothing be appended any more. What is in the batch goes out, or does not; whether the channel has
    /// to be listed now.
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

    /// Lets `append` put something into the batch, if anybody listens.
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
            return Appended::Gathering;
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
            Appended::Gathering
        }
    }

    /// Whether the task should come by before the window is over, if at all.
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

    /// Takes what waits, and what tells who leaves from now on.
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
        self.stay != Stay::Pinned
            && !open.listed
            && ![&open.plain, &open.framed, &open.queued, &open.delimited]
                .into_iter()
                .any(Indexes::any_taken)
    }
}

impl Departures<'_> {
    /// Whether the member may still be sent something. To be asked under the lock of its outbox.
    pub(super) fn is_member(&mut self, seat: Seat) -> bool {
        if self.channel.departures.load(Ordering::Acquire) != self.known {
            self.look();
        }
        !self.have_all_left && (self.left.is_empty() || !self.left.contains(&seat))
    }

    fn look(&mut self) {
        let open = self.channel.open.lock();
        self.known = self.channel.departures.load(Ordering::Relaxed);
        self.have_all_left = open.ending == Ending::AtOnce;
        let changes = open.changes.iter().skip(self.changes_seen);
        self.left.extend(changes.filter_map(|change| match change {
            Change::Leave { seat } => Some(*seat),
            Change::Join { .. } | Change::Flush(_) => None,
        }));
        self.changes_seen = open.changes.len();
    }
}

/// When a channel wants its next round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// There is nothing for it.
    None,
    /// At once: members come or go, or the batch is large enough.
    Now,
    /// When its window is over.
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
