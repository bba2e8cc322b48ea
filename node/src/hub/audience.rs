//! The members of one channel, owned by the hub's task.

use std::sync::Arc;

use bytes::Bytes;

use crate::hub::Format;
use crate::hub::Member;
use crate::hub::batch::Closed;
use crate::hub::channel::Change;
use crate::hub::channel::Seat;
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
    raw: Rows<SocketOutbox>,
    sockjs: Rows<SocketOutbox>,
    quoted: Rows<QueueOutbox>,
}

struct Rows<T> {
    seats: Vec<Option<Arc<T>>>,
    taken: usize,
}

impl Audience {
    pub(super) fn new(window: Window) -> Self {
        Self {
            window,
            is_waiting: false,
            raw: Rows::new(),
            sockjs: Rows::new(),
            quoted: Rows::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.raw.taken == 0 && self.sockjs.taken == 0 && self.quoted.taken == 0
    }

    /// How many deliveries a batch comes to.
    pub(super) fn deliveries(&self, batch: &Closed) -> usize {
        let text = batch.messages - batch.not_utf8;
        self.raw.taken * batch.messages + (self.sockjs.taken + self.quoted.taken) * text
    }

    /// How many steps a round has at most, see [`deliver`](Self::deliver).
    pub(super) fn len(&self) -> usize {
        self.raw.seats.len() + self.sockjs.seats.len() + self.quoted.seats.len()
    }

    /// Gives the batch to the member of one step.
    pub(super) fn deliver(&self, step: usize, batch: &Closed) {
        let sockjs_step = step.wrapping_sub(self.raw.seats.len());
        let quoted_step = sockjs_step.wrapping_sub(self.sockjs.seats.len());
        if let Some(seat) = self.raw.seats.get(step) {
            send(seat.as_deref(), &batch.raw);
        } else if let Some(seat) = self.sockjs.seats.get(sockjs_step) {
            send(seat.as_deref(), &batch.sockjs);
        } else if let Some(Some(outbox)) = self.quoted.seats.get(quoted_step) {
            outbox.push_all(&batch.quoted);
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
                    catch_up(&member, seat.format, position, batch);
                    self.sit(seat, member);
                }
                Change::Leave { seat } => self.leave(seat),
            }
        }
    }

    fn sit(&mut self, seat: Seat, member: Member) {
        match (member, seat.format) {
            (Member::Queue(outbox), _) => self.quoted.sit(seat.index, outbox),
            (Member::Socket(outbox), Format::Sockjs) => self.sockjs.sit(seat.index, outbox),
            (Member::Socket(outbox), _) => self.raw.sit(seat.index, outbox),
        }
    }

    fn leave(&mut self, seat: Seat) {
        match seat.format {
            Format::Raw => self.raw.leave(seat.index),
            Format::Sockjs => self.sockjs.leave(seat.index),
            Format::Quoted => self.quoted.leave(seat.index),
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

fn catch_up(member: &Member, format: Format, position: usize, batch: &Closed) {
    match (member, format) {
        (Member::Queue(outbox), _) => outbox.push_all(&batch.quoted[position..]),
        (Member::Socket(outbox), Format::Sockjs) => {
            send(Some(outbox), &batch.sockjs.slice(position..));
        }
        (Member::Socket(outbox), _) => send(Some(outbox), &batch.raw.slice(position..)),
    }
}

fn send(outbox: Option<&SocketOutbox>, frames: &Bytes) {
    if let Some(outbox) = outbox
        && !frames.is_empty()
    {
        outbox.send(frames);
    }
}
