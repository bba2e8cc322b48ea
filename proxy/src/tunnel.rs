//! Tunnels: connections after a 101 (or an RFC 8441 CONNECT), with bytes copied between the sockets of client and backend.
//!
//! A [`Tunnel`] owns both sockets and spawns no task: its caller polls it, which is [`forward`](crate::request::forward) behind an
//! upgrade, or the process that took the sockets over. It reads into a buffer that all tunnels of the thread share, and writes at
//! once. Bytes that the receiver does not accept wait in a `Vec` that is freed when they are sent, and nothing more is read in that
//! direction meanwhile. The end of one direction is forwarded and leaves the other one open; a failure ends both. A backend that supports
//! the handoff ends with a Close frame unless it has died: then the client gets one, with 1012, if the last frame is complete.
//!
//! Unless client or backend ends it, a tunnel ends in one of four ways:
//! - it is *closed*, because of a drain, the idle timeout, its maximum lifetime or an operator: each side gets a WebSocket Close
//!   frame after the last complete frame, never inside one, and has 5 s to send its own. The sockets of another protocol are closed;
//! - it is *handed off*: its client continues on another backend, over the same connection, if both backends support the handoff
//!   (`handoff`; `notices` parses the frames with which a backend asks the edge for it). A [`Dialing`] of the caller opens the
//!   connection to that backend, the [`Successor`];
//! - it is *parked*: its sockets and what is left to send become a [`TunnelState`], for another process that takes the sockets of
//!   the edge over;
//! - it is dropped, which closes both sockets without a Close frame.
//!
//! [`Tunnels`] is the registry: it lists all tunnels of this process with their ages, and asks them to close or to hand their client
//! off; [`PacedClose`] spreads that over time. The drains, the admin listener and the takeover use it. Over TLS a tunnel holds the
//! keys of the connection and no connection object of rustls, if the record layer of this crate has the cipher suite; otherwise it
//! keeps that object ([`Socket`]).
//!
//! A tunnel opens no connection, chooses no backend and parses no HTTP.
//!
//! Invariant: a tunnel with nothing to send and nothing under way owns no buffer and no timer. The registry looks for those that have
//! reached a timeout.

mod flow;
mod frames;
mod handoff;
mod info;
mod notices;
mod paced;
mod readiness;
mod registry;
mod socket;
mod state;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};

use crate::tunnel::flow::Flow;
use crate::tunnel::flow::Reading;
pub(crate) use crate::tunnel::flow::{FlowEnd, FlowPhase, FlowState};
#[cfg(any(fuzzing, test))]
pub(crate) use crate::tunnel::frames::Frames;
pub(crate) use crate::tunnel::handoff::Dialing;
use crate::tunnel::handoff::Handoff;
pub(crate) use crate::tunnel::handoff::Successor;
pub(crate) use crate::tunnel::handoff::target;
pub(crate) use crate::tunnel::info::{TunnelGroup, TunnelInfo};
use crate::tunnel::notices::Notice;
use crate::tunnel::notices::Notices;
pub(crate) use crate::tunnel::paced::PacedClose;
use crate::tunnel::readiness::ReadReadiness;
use crate::tunnel::readiness::ReadinessTracked;
use crate::tunnel::readiness::task_of;
pub(crate) use crate::tunnel::registry::{
    CloseRequest, Entry, ListedTunnel, TunnelAge, TunnelFilter, TunnelHandle, TunnelLimits, Tunnels,
};
pub(crate) use crate::tunnel::socket::Socket;
pub(crate) use crate::tunnel::state::{BareSocket, ParkedTunnel, TunnelState};

/// The close code for a client that sends frames of a handoff, which are between the edge and its backends (RFC 6455, 7.4.1).
const PROTOCOL_ERROR: u16 = 1002;

/// The close code of a service that restarts (IANA, WebSocket close codes): clients connect again at once.
const SERVICE_RESTART: u16 = 1012;

/// How long client and backend have for the closing handshake after a close request.
///
/// Enough for any client that is still connected, and short compared to a drain.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// The protocol of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Frame boundaries are tracked, and a Close frame can be inserted.
    WebSocket,
    /// The same, and the backend can hand its client off to another one.
    WebSocketWithHandoff,
    /// Bytes of another protocol that a route allows.
    Opaque,
}

/// The parts of a new tunnel.
pub(crate) struct TunnelParts<C, B> {
    pub(crate) client: C,
    pub(crate) backend: B,
    /// Bytes that were read after the client's request.
    pub(crate) client_early: Vec<u8>,
    /// Bytes that were read after the backend's 101.
    pub(crate) backend_early: Vec<u8>,
    pub(crate) protocol: Protocol,
    pub(crate) entry: Entry,
}

/// Why a tunnel ended: the first of these events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndReason {
    /// The client sent a Close frame or the end of its stream, or broke the protocol.
    ClientClosed,
    /// The backend sent a Close frame or the end of its stream.
    BackendClosed,
    /// The connection to the client failed.
    ClientLost,
    /// The connection to the backend failed, or a handoff did after the backend had given the client up.
    BackendLost,
    /// No bytes passed for `timeouts.tunnel_idle`.
    Idle,
    /// It was open for `timeouts.tunnel_lifetime`.
    Lifetime,
    /// The edge is shutting down.
    Drained,
    /// The backend drains, and the edge closes its tunnels.
    BackendDrained,
    /// The backend had more tunnels than its share.
    Rebalanced,
    /// An operator ended it.
    Operator,
}

impl EndReason {
    const ALL: [Self; 10] = [
        Self::ClientClosed,
        Self::BackendClosed,
        Self::ClientLost,
        Self::BackendLost,
        Self::Idle,
        Self::Lifetime,
        Self::Drained,
        Self::BackendDrained,
        Self::Rebalanced,
        Self::Operator,
    ];

    /// The reason with this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }

    /// The name in logs and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::ClientClosed => "client_closed",
            Self::BackendClosed => "backend_closed",
            Self::ClientLost => "client_lost",
            Self::BackendLost => "backend_lost",
            Self::Idle => "idle",
            Self::Lifetime => "lifetime",
            Self::Drained => "drained",
            Self::BackendDrained => "backend_drained",
            Self::Rebalanced => "rebalanced",
            Self::Operator => "operator",
        }
    }
}

/// The result of a tunnel.
#[derive(Debug)]
pub(crate) struct TunnelEnd {
    pub(crate) reason: EndReason,
    /// The code of the first Close frame, of either side or of the edge itself.
    pub(crate) close_code: Option<u16>,
    /// The code of the client's Close frame.
    pub(crate) client_code: Option<u16>,
    /// The code of the backend's Close frame.
    pub(crate) backend_code: Option<u16>,
    pub(crate) bytes_from_client: u64,
    pub(crate) bytes_from_backend: u64,
}

/// What happens to a tunnel.
#[derive(Debug)]
pub(crate) enum Event<P> {
    /// The backend has announced that it drains: the caller dials another one and calls [`Tunnel::hand_off`].
    Leaving,
    /// The edge itself wants the backend's tunnels elsewhere, for a drain or a rebalance: as for [`Event::Leaving`].
    MoveRequested,
    /// It continues over its successor, which leads to this place.
    Moved(P),
    /// It was not handed off, and continues as before.
    Stayed,
    /// Another process takes over: the caller calls [`Tunnel::park`], or polls again and the tunnel goes on here.
    ParkRequested,
    /// Both directions have ended.
    Ended(TunnelEnd),
}

/// An open tunnel; to be polled by [`poll_event`](Tunnel::poll_event) until both directions have ended. `P` is the caller's own
/// description of the backend that a handoff leads to.
///
/// # Cancel safety
///
/// Dropping it closes both sockets at once, without a Close frame.
pub(crate) struct Tunnel<C, B, P> {
    client: ReadinessTracked<C>,
    backend: ReadinessTracked<B>,
    /// From the client to the backend.
    up: Flow,
    /// From the backend to the client.
    down: Flow,
    entry: Entry,
    /// The task that `entry` wakes.
    close_request_task: usize,
    can_hand_off: bool,
    /// Whether a handoff was tried for the pending close request.
    has_tried_to_move: bool,
    end_reason: Option<EndReason>,
    close_code: Option<u16>,
    phase: Phase<B, P>,
}

/// What the edge itself does with the tunnel. Boxed because rarely present.
enum Phase<B, P> {
    /// Nothing: bytes are forwarded.
    Forwarding,
    /// Bytes are forwarded, and the backend has sent a notice.
    Noticed(Box<Notices>),
    /// It is handed off.
    HandingOff(Box<Handoff<B, P>>),
    /// It is closed.
    Closing(Box<Closing>),
}

/// A close by the edge.
struct Closing {
    code: u16,
    deadline: Pin<Box<Sleep>>,
}

impl<C, B, P> Tunnel<C, B, P>
where
    C: AsyncRead + AsyncWrite + ReadReadiness + Unpin,
    B: AsyncRead + AsyncWrite + ReadReadiness + Unpin,
{
    pub(crate) fn new(parts: TunnelParts<C, B>) -> Self {
        let can_hand_off = parts.protocol == Protocol::WebSocketWithHandoff;
        let mut notices = Notices::default();
        let down = if can_hand_off {
            let mut down = Flow::new(Vec::new(), parts.protocol);
            down.continue_with(&parts.backend_early, &mut notices);
            down
        } else {
            Flow::new(parts.backend_early, parts.protocol)
        };
        Self {
            client: ReadinessTracked::new(parts.client),
            backend: ReadinessTracked::new(parts.backend),
            can_hand_off,
            has_tried_to_move: false,
            up: Flow::new(parts.client_early, parts.protocol),
            down,
            entry: parts.entry,
            close_request_task: 0,
            end_reason: None,
            close_code: None,
            phase: if notices.is_empty() {
                Phase::Forwarding
            } else {
                Phase::Noticed(Box::new(notices))
            },
        }
    }

    /// The code with which the backend ended the tunnel; `None` also for a Close frame that responds to one of the client.
    pub(crate) fn closed_by_backend(&self) -> Option<u16> {
        let is_first = self.end_reason == Some(EndReason::BackendClosed);
        self.down.close_code().filter(|_| is_first)
    }

    /// Whether it is to be parked. Lifts the request.
    pub(crate) fn take_park_request(&self) -> bool {
        self.entry.take_park_request()
    }

    /// The request that became this tunnel.
    pub(crate) fn info(&self) -> &TunnelInfo {
        self.entry.info()
    }

    /// The tunnel belongs to the backend of `group` from now on.
    pub(crate) fn set_group(&mut self, group: &Arc<TunnelGroup>) {
        self.entry.move_to(group);
        self.close_request_task = 0;
        self.has_tried_to_move = false;
    }

    /// Records the end of the direction to the backend; a failed client connection ends the other direction too.
    fn up_ended(&mut self, end: FlowEnd) {
        match end {
            FlowEnd::Finished => self.ends_with(EndReason::ClientClosed),
            FlowEnd::ReadFailed => {
                self.ends_with(EndReason::ClientLost);
                self.down.abandon();
            }
            FlowEnd::WriteFailed => self.ends_with(EndReason::BackendLost),
        }
    }

    fn down_ended(&mut self, end: FlowEnd) {
        match end {
            FlowEnd::Finished => self.ends_with(EndReason::BackendClosed),
            FlowEnd::ReadFailed => {
                self.ends_with(EndReason::BackendLost);
                self.up.abandon();
            }
            FlowEnd::WriteFailed => self.ends_with(EndReason::ClientLost),
        }
    }

    fn ends_with(&mut self, reason: EndReason) {
        self.end_reason.get_or_insert(reason);
        self.entry.half_closed();
    }

    /// Records the first Close frame: it determines the end reason, whatever the sockets do after it.
    fn note_close_frame(&mut self) {
        if self.close_code.is_some() {
            return;
        }
        if let Some(code) = self.up.close_code() {
            self.close_code = Some(code);
            self.end_reason.get_or_insert(EndReason::ClientClosed);
        } else if let Some(code) = self.down.close_code() {
            self.close_code = Some(code);
            self.end_reason.get_or_insert(EndReason::BackendClosed);
        }
    }

    /// Follows a request of the registry: begins to close, or returns that the tunnel is to move first.
    fn follow_close_request(&mut self, cx: &Context<'_>) -> Option<Event<P>> {
        // A request takes the registered waker when it wakes the task: register it again after each.
        if self.close_request_task != task_of(cx) || self.entry.has_request() {
            self.entry.register_waker(cx.waker());
            self.close_request_task = task_of(cx);
        }
        let close_request = self.entry.close_request()?;
        if self.is_closing() {
            return None;
        }
        let may_move = matches!(
            close_request,
            CloseRequest::Rebalance | CloseRequest::BackendDrain
        );
        if may_move && matches!(self.phase, Phase::HandingOff(_)) {
            return None;
        }
        if may_move && self.can_hand_off && self.is_open() && !self.has_tried_to_move {
            self.has_tried_to_move = true;
            return Some(Event::MoveRequested);
        }
        let (code, reason) = match close_request {
            CloseRequest::Idle => (1001, EndReason::Idle),
            CloseRequest::Lifetime => (1001, EndReason::Lifetime),
            CloseRequest::Rebalance => (1012, EndReason::Rebalanced),
            CloseRequest::BackendDrain => (1012, EndReason::BackendDrained),
            CloseRequest::OperatorGoingAway => (1001, EndReason::Operator),
            CloseRequest::OperatorRestart => (1012, EndReason::Operator),
            CloseRequest::Drain => (1012, EndReason::Drained),
        };
        self.close(code, reason);
        None
    }

    fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing(_))
    }

    /// Begins to close. A handoff under way is given up.
    fn close(&mut self, code: u16, reason: EndReason) {
        if self.end_reason.is_none() {
            self.end_reason = Some(reason);
            self.close_code = Some(code);
        }
        let deadline = Box::pin(tokio::time::sleep_until(Instant::now() + CLOSE_WAIT));
        self.phase = Phase::Closing(Box::new(Closing { code, deadline }));
    }

    /// Continues over the connection that `dialing` makes, if the backend agrees: then there is an [`Event::Moved`].
    ///
    /// Nothing happens if the tunnel is about to end, or is handed off already.
    pub(crate) fn hand_off(&mut self, dialing: Dialing<B, P>) {
        let is_forwarding = matches!(self.phase, Phase::Forwarding | Phase::Noticed(_));
        if !is_forwarding || !self.can_hand_off || !self.is_open() {
            return;
        }
        let notices = match std::mem::replace(&mut self.phase, Phase::Forwarding) {
            Phase::Noticed(notices) => *notices,
            _ => Notices::default(),
        };
        self.phase = Phase::HandingOff(Box::new(Handoff::new(dialing, notices)));
    }

    /// Whether nothing has ended either direction yet.
    fn is_open(&self) -> bool {
        self.up.is_open() && self.down.is_open()
    }

    /// Forwards what can be forwarded now.
    fn pump(&mut self, cx: &mut Context<'_>) {
        let mut found = Notices::default();
        let close = match &self.phase {
            Phase::Closing(closing) => Some(closing.code),
            _ => None,
        };
        let mut is_forged = false;
        let reading = match &mut self.phase {
            _ if !self.can_hand_off => Reading::On,
            Phase::HandingOff(handoff) => handoff.reading_from_client(&mut is_forged),
            Phase::Closing(closing) if closing.code == PROTOCOL_ERROR => Reading::Off,
            Phase::Forwarding | Phase::Noticed(_) | Phase::Closing(_) => Reading::Client {
                unsent: None,
                is_forged: &mut is_forged,
            },
        };
        let (client, backend) = (&mut self.client, &mut self.backend);
        let up = self.up.pump(cx, client, backend, None, reading);
        let notices = match &mut self.phase {
            Phase::Noticed(notices) => notices,
            Phase::HandingOff(handoff) => &mut handoff.notices,
            Phase::Forwarding | Phase::Closing(_) => &mut found,
        };
        let close_at_end = self.can_hand_off && self.up.is_open();
        let reading = match self.can_hand_off {
            false => Reading::On,
            true => Reading::Backend {
                notices,
                close_at_end,
            },
        };
        let down = self.down.pump(cx, backend, client, close, reading);
        if matches!(self.phase, Phase::Forwarding) && !found.is_empty() {
            self.phase = Phase::Noticed(Box::new(found));
        }
        let has_ended = up.is_ready() || down.is_ready();
        if let Poll::Ready(end) = up {
            self.up_ended(end);
        }
        if let Poll::Ready(end) = down {
            if close_at_end && end != FlowEnd::WriteFailed && self.down.lacks_close() {
                self.close_code.get_or_insert(SERVICE_RESTART);
            }
            self.down_ended(end);
        }
        if has_ended {
            self.give_up_handoff();
        }
        if is_forged {
            self.close(PROTOCOL_ERROR, EndReason::ClientClosed);
        }
    }

    /// One direction has ended during a handoff. Before the backend was told to let the client go, the tunnel stays where it is;
    /// after that it is not known which backend has the client, and it is closed.
    fn give_up_handoff(&mut self) {
        let Phase::HandingOff(handoff) = &self.phase else {
            return;
        };
        if handoff.is_ordered() {
            self.close(SERVICE_RESTART, EndReason::BackendLost);
        } else {
            self.stay();
        }
    }

    /// Ends a handoff: the tunnel continues as before.
    fn stay(&mut self) {
        if let Phase::HandingOff(handoff) = std::mem::replace(&mut self.phase, Phase::Forwarding) {
            self.up.put_read(&handoff.unsent);
        }
    }

    /// Handles the notices of the backend. Breaks if there is more to forward, or with what has become of the tunnel.
    fn handle_notices(&mut self) -> ControlFlow<Option<Event<P>>> {
        let notices = match &mut self.phase {
            Phase::Noticed(notices) => notices.take(),
            Phase::HandingOff(handoff) => handoff.notices.take(),
            Phase::Forwarding | Phase::Closing(_) => return ControlFlow::Continue(()),
        };
        if let Phase::Noticed(rest) = &self.phase
            && rest.is_empty()
        {
            self.phase = Phase::Forwarding;
        }
        let mut flow = ControlFlow::Continue(());
        for notice in notices {
            let is_ordered =
                matches!(&self.phase, Phase::HandingOff(handoff) if handoff.is_ordered());
            match notice {
                Notice::Leaving
                    if !matches!(self.phase, Phase::HandingOff(_)) && self.is_open() =>
                {
                    flow = ControlFlow::Break(Some(Event::Leaving));
                }
                Notice::Kept if is_ordered => {
                    self.stay();
                    flow = ControlFlow::Break(Some(Event::Stayed));
                }
                Notice::Done if is_ordered => return ControlFlow::Break(self.switch()),
                // The backend has given the client up without being told to.
                Notice::Done => {
                    self.close(SERVICE_RESTART, EndReason::BackendLost);
                    return ControlFlow::Break(None);
                }
                Notice::Leaving | Notice::Kept => {}
            }
        }
        flow
    }

    /// Continues over the successor.
    fn switch(&mut self) -> Option<Event<P>> {
        let Phase::HandingOff(handoff) = std::mem::replace(&mut self.phase, Phase::Forwarding)
        else {
            return None;
        };
        let Handoff {
            successor, unsent, ..
        } = *handoff;
        let successor = successor?;
        self.backend = ReadinessTracked::new(successor.socket);
        let mut notices = Notices::default();
        self.down.continue_with(&successor.early, &mut notices);
        if !notices.is_empty() {
            self.phase = Phase::Noticed(Box::new(notices));
        }
        self.up.put_read(&unsent);
        Some(Event::Moved(successor.place))
    }

    /// Advances a handoff. Breaks if there is more to forward, or with what has become of it.
    fn advance_handoff(&mut self, cx: &mut Context<'_>) -> ControlFlow<Option<Event<P>>> {
        let Phase::HandingOff(handoff) = &mut self.phase else {
            return ControlFlow::Continue(());
        };
        if handoff.poll_dial(cx).is_pending() {
            return ControlFlow::Continue(());
        }
        let Some(successor) = &handoff.successor else {
            self.stay();
            return ControlFlow::Break(Some(Event::Stayed));
        };
        if !handoff.is_ordered() {
            if !self.up.rests_at_message() {
                return ControlFlow::Continue(());
            }
            self.up.put_order(handoff::order(&successor.target));
            handoff.start_order();
            return ControlFlow::Break(None);
        }
        if handoff.poll_due(cx).is_ready() {
            self.close(SERVICE_RESTART, EndReason::BackendLost);
            return ControlFlow::Break(None);
        }
        ControlFlow::Continue(())
    }

    /// Whether the closing handshake has timed out, or is not possible.
    fn closing_is_over(&mut self, cx: &mut Context<'_>) -> bool {
        match &mut self.phase {
            Phase::Closing(_) if !self.down.tracks_frames() => true,
            Phase::Closing(closing) => closing.deadline.as_mut().poll(cx).is_ready(),
            _ => false,
        }
    }

    /// Ends both directions without waiting. The backend gets a Close frame if the client's last frame is complete.
    fn finish_now(&mut self, cx: &mut Context<'_>) {
        if let Phase::Closing(closing) = &self.phase {
            self.up
                .put_close_to_backend(cx, &mut self.backend, closing.code);
        }
        // Best effort: both sockets are dropped, and so closed, right after this.
        let _ = Pin::new(&mut self.client).poll_shutdown(cx);
        let _ = Pin::new(&mut self.backend).poll_shutdown(cx);
    }

    fn result(&self) -> TunnelEnd {
        TunnelEnd {
            reason: self.end_reason.unwrap_or(EndReason::ClientClosed),
            close_code: self.close_code,
            client_code: self.up.close_code(),
            backend_code: self.down.close_code(),
            bytes_from_client: self.up.bytes(),
            bytes_from_backend: self.down.bytes(),
        }
    }
}

impl<C, B, P> Tunnel<C, B, P>
where
    C: AsyncRead + AsyncWrite + ReadReadiness + Unpin,
    B: AsyncRead + AsyncWrite + ReadReadiness + Unpin,
{
    /// Forwards bytes until something else happens. Not to be polled after [`Event::Ended`]; after any other event it is to be
    /// polled again at once, unless it is parked.
    pub(crate) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event<P>> {
        loop {
            if let Some(event) = self.follow_close_request(cx) {
                return Poll::Ready(event);
            }
            if self.entry.take_park_request() {
                return Poll::Ready(Event::ParkRequested);
            }
            let bytes_before = self.up.bytes() + self.down.bytes();
            let was_closing = self.is_closing();
            self.pump(cx);
            if bytes_before < self.up.bytes() + self.down.bytes() {
                self.entry.touch(self.up.bytes(), self.down.bytes());
                self.note_close_frame();
            }
            if self.up.is_done() && self.down.is_done() {
                return Poll::Ready(Event::Ended(self.result()));
            }
            if self.closing_is_over(cx) {
                self.finish_now(cx);
                return Poll::Ready(Event::Ended(self.result()));
            }
            if !self.can_hand_off {
                return Poll::Pending;
            }
            if self.is_closing() && !was_closing {
                continue; // The Close frame is to be sent.
            }
            let flow = match self.handle_notices() {
                ControlFlow::Continue(()) => self.advance_handoff(cx),
                flow => flow,
            };
            match flow {
                ControlFlow::Continue(()) => return Poll::Pending,
                ControlFlow::Break(Some(event)) => return Poll::Ready(event),
                ControlFlow::Break(None) => {}
            }
        }
    }
}
