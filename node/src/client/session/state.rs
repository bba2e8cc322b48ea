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

/// How long a receiver waits for a frame before it ends, on a node that drains: its client's next request goes to another node.
const QUIET_MAX: Duration = Duration::from_secs(1);

/// How long it is known that a session was handed off, for requests that come here nevertheless.
const MOVED_KEPT: Duration = Duration::from_secs(60);

/// How long a receiver that comes here after the handoff is asked to ask again. One that still comes later is sent here because
/// the node that continues the session has gone: its client has to connect again.
const MOVED_LEAVES: Duration = Duration::from_secs(5);

/// The state of a session.
#[derive(Debug)]
pub(crate) struct State {
    delays: Delays,
    /// Whether receivers end after a frame, or soon, so that the session can be handed off.
    is_sent_away: bool,
    /// Whether the receiver has sent a frame.
    has_sent: bool,
    /// Whether the receiver gets what is queued, and ends.
    receiver_ends: bool,
    handoff: Handoff,
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
    /// Another node continues the session.
    Moved {
        since: Instant,
    },
}

/// How far a handoff is, of a session that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Handoff {
    None,
    /// The receiver gets what is queued, and ends.
    Begun,
    /// No receiver gets anything any more.
    Cut,
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
    /// A heartbeat, as the last frame of this receiver: the client sends another request, which may go to another node, or come by
    /// another edge.
    Leave,
    /// Nothing: wait until something changes.
    Wait,
}

/// Why a session cannot be handed off now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotNow {
    #[error("the session is closed, or not open yet")]
    NotOpen,
    #[error("another handoff of the session is under way")]
    Busy,
    #[error("the session has a receiver that does not end")]
    Attached,
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
    /// Another node continues the session; they were under way to this one.
    Late,
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
            is_sent_away: false,
            has_sent: false,
            receiver_ends: false,
            handoff: Handoff::None,
            opened: false,
            close_sent: false,
            phase: Phase::Open,
            receiver: Receiver::Attached { quiet_since: now },
        }
    }

    /// Continues a session of another node. Its receiver has ended there.
    pub(crate) fn continued(delays: Delays, now: Instant) -> Self {
        Self {
            opened: true,
            receiver: Receiver::Absent { since: now },
            ..Self::new(delays, now)
        }
    }

    /// Attaches a receiver unless there is one.
    pub(crate) fn attach(&mut self, now: Instant) -> Attach {
        match self.receiver {
            Receiver::Attached { .. } => Attach::Busy,
            Receiver::Absent { .. } => {
                self.receiver = Receiver::Attached { quiet_since: now };
                (self.has_sent, self.receiver_ends) = (false, false);
                Attach::Attached
            }
        }
    }

    /// Detaches the receiver. An abort ends a session that was not closing already.
    pub(crate) fn detach(&mut self, how: Detach, now: Instant) {
        debug_assert!(self.is_attached(), "only the attached receiver detaches");
        self.receiver = Receiver::Absent { since: now };
        if how == Detach::Aborted && matches!(self.phase, Phase::Open) {
            self.phase = Phase::Interrupted;
        }
    }

    /// Has receivers end after a frame, or soon, also those to come: for a node that drains.
    pub(crate) fn send_away(&mut self) {
        self.is_sent_away = true;
    }

    /// Has the attached receiver end behind what is queued; the next one is like any other.
    pub(crate) fn end_receiver(&mut self) {
        self.receiver_ends = self.is_attached();
    }

    /// Begins a handoff: the receiver gets what is queued, and ends.
    ///
    /// # Errors
    ///
    /// [`NotNow`]; nothing has changed.
    pub(crate) fn begin_handoff(&mut self) -> Result<(), NotNow> {
        match (self.phase, self.handoff) {
            (Phase::Open, Handoff::None) if self.opened => {
                self.handoff = Handoff::Begun;
                Ok(())
            }
            (Phase::Open, Handoff::Begun | Handoff::Cut) => Err(NotNow::Busy),
            _ => Err(NotNow::NotOpen),
        }
    }

    /// Keeps what is queued from receivers from now on: the other node has it.
    ///
    /// # Errors
    ///
    /// [`NotNow`]; nothing has changed.
    pub(crate) fn cut(&mut self) -> Result<(), NotNow> {
        match (self.phase, self.handoff) {
            (Phase::Open, Handoff::Begun) if self.is_attached() => Err(NotNow::Attached),
            (Phase::Open, Handoff::Begun) => {
                self.handoff = Handoff::Cut;
                Ok(())
            }
            (Phase::Open, Handoff::Cut) => Err(NotNow::Busy),
            _ => Err(NotNow::NotOpen),
        }
    }

    /// Continues as before, because the handoff has failed.
    pub(crate) fn stay(&mut self) {
        self.handoff = Handoff::None;
    }

    /// Ends the handoff: another node continues the session. `false` if the session has ended meanwhile.
    pub(crate) fn moved(&mut self, now: Instant) -> bool {
        let is_cut = matches!((self.phase, self.handoff), (Phase::Open, Handoff::Cut));
        if is_cut {
            self.phase = Phase::Moved { since: now };
        }
        is_cut
    }

    /// Decides what the attached receiver sends next, and treats it as sent.
    pub(crate) fn next(&mut self, messages_queued: bool, now: Instant) -> Next {
        let Receiver::Attached { quiet_since } = self.receiver else {
            debug_assert!(false, "no receiver is attached");
            return Next::Wait;
        };
        let next = match self.phase {
            Phase::Interrupted => Next::Close(Disconnect::INTERRUPTED),
            Phase::Moved { since } if since + MOVED_LEAVES <= now => {
                Next::Close(Disconnect::RESTART)
            }
            Phase::Moved { .. } => Next::Leave,
            _ if !self.opened => {
                self.opened = true;
                Next::Open
            }
            Phase::Open if self.handoff == Handoff::Cut => Next::Leave,
            Phase::Open | Phase::Closing(_) if messages_queued => Next::Messages,
            Phase::Closing(disconnect) => {
                self.close_sent = true;
                Next::Close(disconnect)
            }
            Phase::Open if self.handoff == Handoff::Begun || self.receiver_ends => Next::Leave,
            Phase::Open
                if self.is_sent_away && (self.has_sent || quiet_since + QUIET_MAX <= now) =>
            {
                Next::Leave
            }
            Phase::Open if quiet_since + self.delays.heartbeat <= now => Next::Heartbeat,
            Phase::Open => return Next::Wait,
        };
        self.receiver = Receiver::Attached { quiet_since: now };
        self.has_sent = true;
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
            Phase::Moved { .. } => Inbound::Late,
        }
    }

    /// Compares the delays with the clock.
    pub(crate) fn tick(&self, now: Instant) -> Tick {
        let expires_at = |since: Instant| match self.phase {
            Phase::Moved { since } => since + MOVED_KEPT,
            _ => since + self.delays.disconnect,
        };
        match self.receiver {
            Receiver::Absent { since } if expires_at(since) <= now => Tick::Expired,
            Receiver::Attached { quiet_since } if quiet_since + self.quiet_max() <= now => {
                Tick::Wake
            }
            _ => Tick::Keep,
        }
    }

    /// How long a receiver may get no frame.
    fn quiet_max(&self) -> Duration {
        match self.is_sent_away {
            true => self.delays.heartbeat.min(QUIET_MAX),
            false => self.delays.heartbeat,
        }
    }

    /// Whether the session is open: neither closed nor handed off.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
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
