//! One channel as everyone may touch it: its open batch, and who joins or leaves with the next round.
//!
//! The members themselves are the hub task's own (`audience`). Changes wait here, in order and with
//! their place in the batch, until the task takes both together: so a round never sees its members move.

use std::mem;

use parking_lot::Mutex;

use crate::channel::ChannelName;
use crate::config::SlowReader;
use crate::hub::Member;
use crate::hub::batch::Batch;
use crate::hub::batch::Slots;
use crate::hub::format::Slot;

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
    plain: Seats,
    framed: Seats,
    queued: Seats,
    delimited: Seats,
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
}

/// A member's place in the audience.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seat {
    pub(super) slot: Slot,
    pub(super) index: u32,
}

/// Seats of one slot: numbers below `made`, of which those in `free` are not taken.
#[derive(Default)]
struct Seats {
    free: Vec<u32>,
    made: u32,
    /// Whether somebody has left who hears the open batch all the same, and must not hear it with a hole.
    is_left: bool,
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
}

impl Channel {
    pub(super) fn new(id: u64, name: ChannelName, stay: Stay) -> Self {
        Self {
            id,
            name,
            stay,
            open: Mutex::default(),
        }
    }

    pub(super) fn join(&self, member: Member) -> Joined {
        let mut open = self.open.lock();
        let slot = member.format().slot();
        let index = open.seats(slot).take();
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

    /// Whether the channel has to be listed now.
    pub(super) fn leave(&self, seat: Seat) -> bool {
        let mut open = self.open.lock();
        // Who sits down next does so after this change, which stands before his.
        let seats = open.seats(seat.slot);
        seats.free.push(seat.index);
        seats.is_left = true;
        open.changes.push(Change::Leave { seat });
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
            plain: open.plain.is_read(),
            framed: open.framed.is_read(),
            queued: open.queued.is_read(),
            delimited: open.delimited.is_read(),
        };
        if !slots.any() {
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

    pub(super) fn take(&self) -> Taken {
        let mut open = self.open.lock();
        open.listed = false;
        open.full = false;
        for slot in Slot::ALL {
            open.seats(slot).is_left = false;
        }
        Taken {
            batch: mem::take(&mut open.batch),
            changes: mem::take(&mut open.changes),
            dropped: mem::take(&mut open.dropped),
        }
    }

    pub(super) fn is_unused(&self) -> bool {
        let open = self.open.lock();
        self.stay != Stay::Pinned
            && !open.listed
            && ![&open.plain, &open.framed, &open.queued, &open.delimited]
                .into_iter()
                .any(Seats::any_taken)
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
    fn seats(&mut self, slot: Slot) -> &mut Seats {
        match slot {
            Slot::Plain => &mut self.plain,
            Slot::Framed => &mut self.framed,
            Slot::Queued => &mut self.queued,
            Slot::Delimited => &mut self.delimited,
        }
    }
}

impl Seats {
    fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.made += 1;
            self.made - 1
        })
    }

    fn any_taken(&self) -> bool {
        self.free.len() < self.made as usize
    }

    /// Whether anybody gets what is appended to the open batch.
    fn is_read(&self) -> bool {
        self.is_left || self.any_taken()
    }
}
