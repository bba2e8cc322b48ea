//! What a session does next: a plain state machine, time passed in.
//!
//! Owns no socket, no queue and no clock. It knows whether messages are queued because it is told.
//!
//! Invariant: at most one receiver is attached, and a session without one ends when
//! `disconnect_delay` is over.

use std::time::Duration;
use std::time::Instant;

use crate::protocol::disconnect::Disconnect;

/// The delays of a session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Delays {
    /// How long a receiver hears nothing before it gets a heartbeat.
    pub(crate) heartbeat: Duration,
    /// How long a session lives without a receiver.
    pub(crate) disconnect: Duration,
}

/// Where a session stands.
#[derive(Debug)]
pub(crate) struct State {
    delays: Delays,
    /// Whether the open frame has gone out. A session that closes before says `o` first all the same.
    opened: bool,
    /// Whether the close frame has gone out.
    told: bool,
    phase: Phase,
    receiver: Receiver,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Open,
    /// Each receiver gets what is queued and then this.
    Closing(Disconnect),
    /// A receiver was cut off, and with it perhaps messages: the client must not go on.
    Interrupted,
}

#[derive(Debug, Clone, Copy)]
enum Receiver {
    Attached { quiet_since: Instant },
    Absent { since: Instant },
}

/// The answer to a client that wants to receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attach {
    /// It receives the session's frames from now on.
    Attached,
    /// Another one does, and goes on.
    Busy,
}

/// What the receiver is to send now.
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
    /// The server ended the answer in order: the client comes again.
    Answered,
    /// The client or the network went away in the middle.
    Aborted,
}

/// What becomes of messages that a client sends to the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inbound {
    /// They are taken.
    Taken,
    /// They are dropped, and the client is told nothing: a close frame waits for it.
    Dropped,
    /// The session is gone for whoever sends.
    Unknown,
}

/// What a look at the clock says.
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
    /// A session whose first receiver is attached.
    pub(crate) fn new(delays: Delays, now: Instant) -> Self {
        Self {
            delays,
            opened: false,
            told: false,
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

    /// Takes the receiver off. An abort ends a session that was not closing already.
    pub(crate) fn detach(&mut self, how: Detach, now: Instant) {
        debug_assert!(self.is_attached(), "only the attached receiver detaches");
        self.receiver = Receiver::Absent { since: now };
        if how == Detach::Aborted && !matches!(self.phase, Phase::Closing(_)) {
            self.phase = Phase::Interrupted;
        }
    }

    /// Decides what the attached receiver sends, and counts it as sent.
    pub(crate) fn next(&mut self, messages_queued: bool, now: Instant) -> Next {
        let Receiver::Attached { quiet_since } = self.receiver else {
            debug_assert!(false, "only an attached receiver asks");
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
                self.told = true;
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

    /// Says what becomes of messages that arrive now.
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

    /// Whether the session closes and no receiver has been told so.
    pub(crate) fn owes_close(&self) -> bool {
        matches!(self.phase, Phase::Closing(_)) && !self.told
    }

    /// Whether the session ended by an abort: its client is gone.
    pub(crate) fn is_interrupted(&self) -> bool {
        matches!(self.phase, Phase::Interrupted)
    }
}

#[cfg(test)]
mod tests;
