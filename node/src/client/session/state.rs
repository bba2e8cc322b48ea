//! The state machine of a session: a plain type, time passed in.
//!
//! Owns no socket, no queue and no clock: the caller tells it whether messages are queued.
//!
//! Invariant: at most one receiver is attached, and a session without one ends when
//! `disconnect_delay` is over.

use std::time::Duration;
use std::time::Instant;

use crate::protocol::disconnect::Disconnect;

/// The delays of a session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Delays {
    /// How long a receiver gets no frame before it gets a heartbeat.
    pub(crate) heartbeat: Duration,
    /// How long a session lives without a receiver.
    pub(crate) disconnect: Duration,
}

/// The state of a session.
#[derive(Debug)]
pub(crate) struct State {
    delays: Delays,
    /// Whether the open frame is sent. A session that closes before still sends `o` first.
    opened: bool,
    /// Whether the close frame is sent.
    close_sent: bool,
    phase: Phase,
    receiver: Receiver,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Open,
    /// Each receiver gets what is queued and then this.
    Closing(Disconnect),
    /// A receiver was aborted, perhaps with unread messages: the session must not continue.
    Interrupted,
}

#[derive(Debug, Clone, Copy)]
enum Receiver {
    Attached { quiet_since: Instant },
    Absent { since: Instant },
}

/// The result of attaching a receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attach {
    /// It receives the session's frames from now on.
    Attached,
    /// Another one is attached, and stays.
    Busy,
}

/// What the receiver has to send now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// The open frame.
    Open,
    /// All queued messages, in one frame.
    Messages,
    /// A heartbeat.
    Heartbeat,
    /// The close frame: the last of this receiver.
    Close(Disconnect),
    /// Nothing: wait until something changes.
    Wait,
}

/// How a receiver ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detach {
    /// The server ended the response in order: the client will send another request.
    Finished,
    /// The client or the network ended the response.
    Aborted,
}

/// How messages that a client sends to the session are handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inbound {
    /// They are accepted.
    Taken,
    /// They are dropped without an error: the next receiver gets a close frame.
    Dropped,
    /// The session does not exist any more for senders.
    Unknown,
}

/// What is due by the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tick {
    /// Nothing to do.
    Keep,
    /// The receiver has something to send.
    Wake,
    /// The session is over.
    Expired,
}

impl State {
    /// Creates a session whose first receiver is attached.
    pub(crate) fn new(delays: Delays, now: Instant) -> Self {
        Self {
            delays,
            opened: false,
            close_sent: false,
            phase: Phase::Open,
            receiver: Receiver::Attached { quiet_since: now },
        }
    }

    /// Attaches a receiver unless there is one.
    pub(crate) fn attach(&mut self, now: Instant) -> Attach {
        match self.receiver {
            Receiver::Attached { .. } => Attach::Busy,
            Receiver::Absent { .. } => {
                self.receiver = Receiver::Attached { quiet_since: now };
                Attach::Attached
            }
        }
    }

    /// Detaches the receiver. An abort ends a session that was not closing already.
    pub(crate) fn detach(&mut self, how: Detach, now: Instant) {
        debug_assert!(self.is_attached(), "only the attached receiver detaches");
        self.receiver = Receiver::Absent { since: now };
        if how == Detach::Aborted && !matches!(self.phase, Phase::Closing(_)) {
            self.phase = Phase::Interrupted;
        }
    }

    /// Decides what the attached receiver sends next, and treats it as sent.
    pub(crate) fn next(&mut self, messages_queued: bool, now: Instant) -> Next {
        let Receiver::Attached { quiet_since } = self.receiver else {
            debug_assert!(false, "no receiver is attached");
            return Next::Wait;
        };
        let next = match self.phase {
            Phase::Interrupted => Next::Close(Disconnect::INTERRUPTED),
            _ if !self.opened => {
                self.opened = true;
                Next::Open
            }
            Phase::Open | Phase::Closing(_) if messages_queued => Next::Messages,
            Phase::Closing(disconnect) => {
                self.close_sent = true;
                Next::Close(disconnect)
            }
            Phase::Open if quiet_since + self.delays.heartbeat <= now => Next::Heartbeat,
            Phase::Open => return Next::Wait,
        };
        self.receiver = Receiver::Attached { quiet_since: now };
        next
    }

    /// Closes the session; the first reason stays.
    pub(crate) fn close(&mut self, disconnect: Disconnect) {
        if let Phase::Open = self.phase {
            self.phase = Phase::Closing(disconnect);
        }
    }

    /// How messages that arrive now are handled.
    pub(crate) fn inbound(&self) -> Inbound {
        match self.phase {
            Phase::Open => Inbound::Taken,
            Phase::Closing(_) => Inbound::Dropped,
            Phase::Interrupted => Inbound::Unknown,
        }
    }

    /// Compares the delays with the clock.
    pub(crate) fn tick(&self, now: Instant) -> Tick {
        match self.receiver {
            Receiver::Absent { since } if since + self.delays.disconnect <= now => Tick::Expired,
            Receiver::Attached { quiet_since } if quiet_since + self.delays.heartbeat <= now => {
                Tick::Wake
            }
            _ => Tick::Keep,
        }
    }

    /// Whether a receiver is attached.
    pub(crate) fn is_attached(&self) -> bool {
        matches!(self.receiver, Receiver::Attached { .. })
    }

    /// Whether the session is closing and no receiver has sent the close frame yet.
    pub(crate) fn has_unsent_close(&self) -> bool {
        matches!(self.phase, Phase::Closing(_)) && !self.close_sent
    }

    /// Whether the session ended by an abort: its client is gone.
    pub(crate) fn is_interrupted(&self) -> bool {
        matches!(self.phase, Phase::Interrupted)
    }
}

#[cfg(test)]
mod tests;
