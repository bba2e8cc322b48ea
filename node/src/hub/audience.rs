//! The members of one channel, owned by the hub's task.

use std::sync::Arc;

use bytes::Bytes;

use crate::config::SlowReader;
use crate::hub::Member;
use crate::hub::batch::Closed;
use crate::hub::batch::ClosedFrames;
use crate::hub::channel::Change;
use crate::hub::channel::Channel;
use crate::hub::channel::Seat;
use crate::hub::channel::Stay;
use crate::hub::format::Slot;
use crate::hub::window::Window;
use crate::outbox::QueueOutbox;
use crate::outbox::SocketOutbox;

/// Who hears a channel, by format, each in the seat that the channel gave it.
///
/// Rounds go by index in steps, and nobody else can move a member meanwhile.
pub(super) struct Audience {
    pub(super) window: Window,
    /// Whether the channel is among those whose window the task waits for.
    pub(super) is_waiting: bool,
    /// What replaces what of this channel waits for a slow member; `None`: nothing does.
    latest: Option<u64>,
    plain: Rows<SocketOutbox>,
    framed: Rows<SocketOutbox>,
    queued: Rows<QueueOutbox>,
    delimited: Rows<QueueOutbox>,
}

struct Rows<T> {
    seats: Vec<Option<Arc<T>>>,
    taken: usize,
}

impl Audience {
    pub(super) fn new(channel: &Channel, window: Window) -> Self {
        Self {
            window,
            is_waiting: false,
            latest: (channel.stay == Stay::Fed(SlowReader::Latest)).then_some(channel.id),
            plain: Rows::new(),
            framed: Rows::new(),
            queued: Rows::new(),
            delimited: Rows::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.plain.taken + self.framed.taken + self.queued.taken + self.delimited.taken == 0
    }

    /// How many deliveries a batch comes to.
    pub(super) fn deliveries(&self, batch: &Closed) -> usize {
        let plain = batch.messages - batch.not_json;
        let framed = batch.messages - batch.not_utf8;
        let queued = batch.messages - batch.not_json - batch.not_utf8;
        self.plain.taken * plain
            + (self.framed.taken + self.delimited.taken) * framed
            + self.queued.taken * queued
    }

    /// How many steps a round has at most, see [`deliver`](Self::deliver).
    pub(super) fn len(&self) -> usize {
        self.plain.seats.len()
            + self.framed.seats.len()
            + self.queued.seats.len()
            + self.delimited.seats.len()
    }

    /// Gives the batch to the member of one step.
    pub(super) fn deliver(&self, step: usize, batch: &Closed) {
        let framed_step = step.wrapping_sub(self.plain.seats.len());
        let queued_step = framed_step.wrapping_sub(self.framed.seats.len());
        let delimited_step = queued_step.wrapping_sub(self.queued.seats.len());
        if let Some(seat) = self.plain.seats.get(step) {
            self.send(seat.as_deref(), &batch.plain);
        } else if let Some(seat) = self.framed.seats.get(framed_step) {
            self.send(seat.as_deref(), &batch.framed);
        } else if let Some(seat) = self.queued.seats.get(queued_step) {
            self.push(seat.as_deref(), &batch.queued);
        } else if let Some(seat) = self.delimited.seats.get(delimited_step) {
            self.push(seat.as_deref(), &batch.delimited);
        }
    }

    fn push(&self, outbox: Option<&QueueOutbox>, messages: &[Bytes]) {
        match (outbox, self.latest) {
            (None, _) => {}
            (Some(outbox), Some(channel)) => outbox.push_latest(channel, messages),
            (Some(outbox), None) => outbox.push_all(messages),
        }
    }

    fn send(&self, outbox: Option<&SocketOutbox>, frames: &ClosedFrames) {
        let Some(outbox) = outbox.filter(|_| !frames.bytes.is_empty()) else {
            return;
        };
        match self.latest {
            Some(channel) => outbox.send_latest(channel, &frames.bytes, frames.newest()),
            None => outbox.send(&frames.bytes),
        }
    }

    /// Lets members come and go; who comes gets what was published after he joined.
    pub(super) fn apply(&mut self, changes: Vec<Change>, batch: &Closed) {
        for change in changes {
            match change {
                Change::Join {
                    seat,
                    member,
                    position,
                } => {
                    catch_up(&member, seat.slot, position, batch);
                    self.sit(seat, member);
                }
                Change::Leave { seat } => self.leave(seat),
            }
        }
    }

    fn sit(&mut self, seat: Seat, member: Member) {
        match (member, seat.slot) {
            (Member::Queue(outbox), Slot::Delimited) => self.delimited.sit(seat.index, outbox),
            (Member::Queue(outbox), _) => self.queued.sit(seat.index, outbox),
            (Member::Socket(outbox), Slot::Framed) => self.framed.sit(seat.index, outbox),
            (Member::Socket(outbox), _) => self.plain.sit(seat.index, outbox),
        }
    }

    fn leave(&mut self, seat: Seat) {
        match seat.slot {
            Slot::Plain => self.plain.leave(seat.index),
            Slot::Framed => self.framed.leave(seat.index),
            Slot::Queued => self.queued.leave(seat.index),
            Slot::Delimited => self.delimited.leave(seat.index),
        }
    }
}

impl<T> Rows<T> {
    fn new() -> Self {
        Self {
            seats: Vec::new(),
            taken: 0,
        }
    }

    fn sit(&mut self, index: u32, outbox: Arc<T>) {
        let index = index as usize;
        if self.seats.len() <= index {
            self.seats.resize_with(index + 1, || None);
        }
        debug_assert!(
            self.seats[index].is_none(),
            "a seat is free before somebody sits down"
        );
        self.seats[index] = Some(outbox);
        self.taken += 1;
    }

    fn leave(&mut self, index: u32) {
        if self.seats[index as usize].take().is_some() {
            self.taken -= 1;
        }
    }
}

fn catch_up(member: &Member, slot: Slot, position: usize, batch: &Closed) {
    let frames = match (member, slot) {
        (Member::Queue(outbox), Slot::Delimited) => {
            return outbox.push_all(&batch.delimited[position..]);
        }
        (Member::Queue(outbox), _) => return outbox.push_all(&batch.queued[position..]),
        (Member::Socket(_), Slot::Framed) => &batch.framed,
        (Member::Socket(_), _) => &batch.plain,
    };
    if let Member::Socket(outbox) = member
        && position < frames.bytes.len()
    {
        outbox.send(&frames.bytes.slice(position..));
    }
}
