//! Tunnels: upgraded connections, with bytes copied between two sockets.
//!
//! A tunnel is one small future with its own task. It reads into a buffer of the thread and writes at once; bytes that the
//! receiver does not accept wait in a `Vec` that is freed when they are sent, and nothing more is read meanwhile. The end of
//! one direction is forwarded, and the other direction stays open. When asked to close, it inserts a Close frame after a complete
//! WebSocket frame of the backend, never inside one.
//!
//! Invariant: an idle tunnel owns no buffer and no timer.

mod flow;
mod frames;
mod info;
mod paced;
mod readiness;
mod registry;
mod socket;
#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};

use crate::tunnel::flow::Flow;
use crate::tunnel::flow::FlowEnd;
#[cfg(any(fuzzing, test))]
pub(crate) use crate::tunnel::frames::Frames;
pub(crate) use crate::tunnel::info::{TunnelGroup, TunnelInfo};
pub(crate) use crate::tunnel::paced::PacedClose;
use crate::tunnel::readiness::ReadReadiness;
use crate::tunnel::readiness::ReadinessTracked;
use crate::tunnel::readiness::task_of;
pub(crate) use crate::tunnel::registry::{
    CloseRequest, Entry, ListedTunnel, TunnelFilter, TunnelHandle, TunnelLimits, Tunnels,
};
pub(crate) use crate::tunnel::socket::Socket;

/// How long client and backend have for the closing handshake after a close request.
///
/// Enough for any client that is still connected, and short compared to a drain.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// The protocol of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Frame boundaries are tracked, and a Close frame can be inserted.
    WebSocket,
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
    /// The client sent a Close frame or the end of its stream.
    ClientClosed,
    /// The backend sent a Close frame or the end of its stream.
    BackendClosed,
    /// The connection to the client failed.
    ClientLost,
    /// The connection to the backend failed.
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
    /// The code of the first Close frame, whichever side sent it.
    pub(crate) close_code: Option<u16>,
    /// The code of the client's Close frame.
    pub(crate) client_code: Option<u16>,
    /// The code of the backend's Close frame.
    pub(crate) backend_code: Option<u16>,
    pub(crate) bytes_from_client: u64,
    pub(crate) bytes_from_backend: u64,
}

/// An open tunnel; as a future it is ready when both directions have ended.
///
/// # Cancel safety
///
/// Dropping it closes both sockets at once, without a Close frame.
pub(crate) struct Tunnel<C, B> {
    client: ReadinessTracked<C>,
    backend: ReadinessTracked<B>,
    /// From the client to the backend.
    up: Flow,
    /// From the backend to the client.
    down: Flow,
    entry: Entry,
    /// The task that `entry` wakes.
    close_request_task: usize,
    end_reason: Option<EndReason>,
    close_code: Option<u16>,
    closing: Option<Closing>,
}

/// A close by the edge.
struct Closing {
    code: u16,
    deadline: Pin<Box<Sleep>>,
}

impl<C, B> Tunnel<C, B>
where
    C: AsyncRead + AsyncWrite + ReadReadiness + Unpin,
    B: AsyncRead + AsyncWrite + ReadReadiness + Unpin,
{
    pub(crate) fn new(parts: TunnelParts<C, B>) -> Self {
        Self {
            client: ReadinessTracked::new(parts.client),
            backend: ReadinessTracked::new(parts.backend),
            up: Flow::new(parts.client_early, parts.protocol),
            down: Flow::new(parts.backend_early, parts.protocol),
            entry: parts.entry,
            close_request_task: 0,
            end_reason: None,
            close_code: None,
            closing: None,
        }
    }

    /// The code with which the backend ended the tunnel; `None` also for a Close frame that responds to one of the client.
    pub(crate) fn closed_by_backend(&self) -> Option<u16> {
        let is_first = self.end_reason == Some(EndReason::BackendClosed);
        self.down.close_code().filter(|_| is_first)
    }

    /// The request that became this tunnel.
    pub(crate) fn info(&self) -> &TunnelInfo {
        self.entry.info()
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

    /// Begins to close if the registry has requested it.
    fn follow_close_request(&mut self, cx: &Context<'_>) {
        // A close request takes the registered waker when it wakes the task: register it again after each.
        if self.close_request_task != task_of(cx) || self.entry.close_request().is_some() {
            self.entry.register_waker(cx.waker());
            self.close_request_task = task_of(cx);
        }
        let Some(close_request) = self.entry.close_request() else {
            return;
        };
        if self.closing.is_some() {
            return;
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
        if self.end_reason.is_none() {
            self.end_reason = Some(reason);
            self.close_code = Some(code);
        }
        let deadline = Box::pin(tokio::time::sleep_until(Instant::now() + CLOSE_WAIT));
        self.closing = Some(Closing { code, deadline });
    }

    /// Whether the closing handshake has timed out, or is not possible.
    fn closing_is_over(&mut self, cx: &mut Context<'_>) -> bool {
        match &mut self.closing {
            None => false,
            Some(_) if !self.down.tracks_frames() => true,
            Some(closing) => closing.deadline.as_mut().poll(cx).is_ready(),
        }
    }

    /// Ends both directions without waiting. The backend gets a Close frame if the client's last frame is complete.
    fn finish_now(&mut self, cx: &mut Context<'_>) {
        if let Some(closing) = &self.closing {
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

impl<C, B> Future for Tunnel<C, B>
where
    C: AsyncRead + AsyncWrite + ReadReadiness + Unpin,
    B: AsyncRead + AsyncWrite + ReadReadiness + Unpin,
{
    type Output = TunnelEnd;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TunnelEnd> {
        let this = self.get_mut();
        this.follow_close_request(cx);
        let close = this.closing.as_ref().map(|closing| closing.code);
        let bytes_before = this.up.bytes() + this.down.bytes();
        if let Poll::Ready(end) = this.up.pump(cx, &mut this.client, &mut this.backend, None) {
            this.up_ended(end);
        }
        if let Poll::Ready(end) = this
            .down
            .pump(cx, &mut this.backend, &mut this.client, close)
        {
            this.down_ended(end);
        }
        if bytes_before < this.up.bytes() + this.down.bytes() {
            this.entry.touch(this.up.bytes(), this.down.bytes());
            this.note_close_frame();
        }
        if this.up.is_done() && this.down.is_done() {
            return Poll::Ready(this.result());
        }
        if this.closing_is_over(cx) {
            this.finish_now(cx);
            return Poll::Ready(this.result());
        }
        Poll::Pending
    }
}
