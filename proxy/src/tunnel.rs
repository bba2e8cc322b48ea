//! An upgraded connection: two sockets and the bytes between them.
//!
//! A tunnel is one small future and its own task. It reads into a buffer of the thread and writes at once; bytes that the
//! receiver does not take wait in a `Vec` that is given back when they are gone, and meanwhile nothing more is read. An end of
//! one direction is passed on as an end, and the other direction goes on. Asked to close, it puts a Close frame in where a frame
//! of the backend ends, never inside one.
//!
//! Invariant: an idle tunnel owns no buffer and no timer.

mod ear;
mod flow;
mod frames;
mod registry;
mod socket;
#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};

use crate::tunnel::ear::Ear;
use crate::tunnel::ear::Readiness;
use crate::tunnel::ear::task_of;
use crate::tunnel::flow::Flow;
use crate::tunnel::flow::FlowEnd;
#[cfg(any(fuzzing, test))]
pub(crate) use crate::tunnel::frames::Frames;
pub(crate) use crate::tunnel::registry::Entry;
pub(crate) use crate::tunnel::registry::Order;
pub(crate) use crate::tunnel::registry::TunnelLimits;
pub(crate) use crate::tunnel::registry::Tunnels;
pub(crate) use crate::tunnel::socket::Socket;

/// How long the ends have for the closing handshake once a tunnel has been told to close.
///
/// Five seconds are enough for any client that is still there, and short against a drain.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// What the two ends speak now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Frames are followed, and a Close frame can be put in.
    WebSocket,
    /// Bytes of another protocol that a route lets through.
    Opaque,
}

/// What a tunnel is made of.
pub(crate) struct TunnelParts<C, B> {
    pub(crate) client: C,
    pub(crate) backend: B,
    /// Bytes that came right behind the client's request.
    pub(crate) client_early: Vec<u8>,
    /// Bytes that came right behind the backend's 101.
    pub(crate) backend_early: Vec<u8>,
    pub(crate) protocol: Protocol,
    pub(crate) entry: Entry,
}

/// Why a tunnel ended: what came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndReason {
    /// The client sent a Close frame or the end of its stream.
    ClientClosed,
    /// The backend sent a Close frame or the end of its stream.
    BackendClosed,
    /// The connection to the client broke.
    ClientLost,
    /// The connection to the backend broke.
    BackendLost,
    /// Nothing passed for `timeouts.tunnel_idle`.
    Idle,
    /// It was open for `timeouts.tunnel_lifetime`.
    Lifetime,
    /// The edge is being stopped.
    Drained,
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
        }
    }
}

/// What is known of a tunnel when it is over.
#[derive(Debug)]
pub(crate) struct TunnelEnd {
    pub(crate) reason: EndReason,
    /// The code of the Close frame that named the end, whoever sent it first.
    pub(crate) close_code: Option<u16>,
    /// The codes of the Close frames that the ends sent.
    pub(crate) client_code: Option<u16>,
    pub(crate) backend_code: Option<u16>,
    pub(crate) bytes_from_client: u64,
    pub(crate) bytes_from_backend: u64,
}

/// A tunnel under way; as a future it is ready when both directions have ended.
///
/// # Cancel safety
///
/// Dropping it closes both sockets at once, without a Close frame.
pub(crate) struct Tunnel<C, B> {
    client: Ear<C>,
    backend: Ear<B>,
    /// From the client to the backend.
    up: Flow,
    /// From the backend to the client.
    down: Flow,
    entry: Entry,
    /// The task that `entry` wakes.
    listens: usize,
    end: Option<EndReason>,
    close_code: Option<u16>,
    closing: Option<Closing>,
}

/// A close that the edge has asked for.
struct Closing {
    code: u16,
    deadline: Pin<Box<Sleep>>,
}

impl<C, B> Tunnel<C, B>
where
    C: AsyncRead + AsyncWrite + Readiness + Unpin,
    B: AsyncRead + AsyncWrite + Readiness + Unpin,
{
    pub(crate) fn new(parts: TunnelParts<C, B>) -> Self {
        Self {
            client: Ear::new(parts.client),
            backend: Ear::new(parts.backend),
            up: Flow::new(parts.client_early, parts.protocol),
            down: Flow::new(parts.backend_early, parts.protocol),
            entry: parts.entry,
            listens: 0,
            end: None,
            close_code: None,
            closing: None,
        }
    }

    /// The code of a Close frame that the backend has sent.
    pub(crate) fn backend_code(&self) -> Option<u16> {
        self.down.close_code()
    }

    /// Takes note that one direction is over, and of what that means for the other.
    fn settle_up(&mut self, end: FlowEnd) {
        match end {
            FlowEnd::Finished => self.ends_with(EndReason::ClientClosed),
            FlowEnd::ReadFailed => {
                self.ends_with(EndReason::ClientLost);
                self.down.abandon();
            }
            FlowEnd::WriteFailed => self.ends_with(EndReason::BackendLost),
        }
    }

    fn settle_down(&mut self, end: FlowEnd) {
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
        self.end.get_or_insert(reason);
        self.entry.half_closed();
    }

    /// Takes note of the first Close frame that passes: it names the reason, whatever the sockets do after it.
    fn note_close_frame(&mut self) {
        if self.close_code.is_some() {
            return;
        }
        if let Some(code) = self.up.close_code() {
            self.close_code = Some(code);
            self.end.get_or_insert(EndReason::ClientClosed);
        } else if let Some(code) = self.down.close_code() {
            self.close_code = Some(code);
            self.end.get_or_insert(EndReason::BackendClosed);
        }
    }

    /// Begins to close when the registry has said so.
    fn heed_order(&mut self, cx: &Context<'_>) {
        // An order takes the waker that it wakes; without one it is there still.
        if self.listens != task_of(cx) || self.entry.order().is_some() {
            self.entry.wake_by(cx.waker());
            self.listens = task_of(cx);
        }
        let Some(order) = self.entry.order() else {
            return;
        };
        if self.closing.is_some() {
            return;
        }
        let (code, reason) = match order {
            Order::Idle => (1001, EndReason::Idle),
            Order::Lifetime => (1001, EndReason::Lifetime),
            Order::Drain => (1012, EndReason::Drained),
        };
        if self.end.is_none() {
            self.end = Some(reason);
            self.close_code = Some(code);
        }
        let deadline = Box::pin(tokio::time::sleep_until(Instant::now() + CLOSE_WAIT));
        self.closing = Some(Closing { code, deadline });
    }

    /// Whether the closing handshake has had its time, or cannot be had at all.
    fn closing_is_over(&mut self, cx: &mut Context<'_>) -> bool {
        match &mut self.closing {
            None => false,
            Some(_) if !self.down.follows_frames() => true,
            Some(closing) => closing.deadline.as_mut().poll(cx).is_ready(),
        }
    }

    /// Ends both directions without waiting; the backend still hears why if the client's last frame was complete.
    fn finish_now(&mut self, cx: &mut Context<'_>) {
        if let Some(closing) = &self.closing {
            self.up
                .put_close_to_backend(cx, &mut self.backend, closing.code);
        }
        // Both are closed right after this by being dropped: what cannot be said now is not said.
        let _ = Pin::new(&mut self.client).poll_shutdown(cx);
        let _ = Pin::new(&mut self.backend).poll_shutdown(cx);
    }

    fn ended(&self) -> TunnelEnd {
        TunnelEnd {
            reason: self.end.unwrap_or(EndReason::ClientClosed),
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
    C: AsyncRead + AsyncWrite + Readiness + Unpin,
    B: AsyncRead + AsyncWrite + Readiness + Unpin,
{
    type Output = TunnelEnd;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TunnelEnd> {
        let this = self.get_mut();
        this.heed_order(cx);
        let close = this.closing.as_ref().map(|closing| closing.code);
        let bytes_before = this.up.bytes() + this.down.bytes();
        if let Poll::Ready(end) = this.up.pump(cx, &mut this.client, &mut this.backend, None) {
            this.settle_up(end);
        }
        if let Poll::Ready(end) = this
            .down
            .pump(cx, &mut this.backend, &mut this.client, close)
        {
            this.settle_down(end);
        }
        if bytes_before < this.up.bytes() + this.down.bytes() {
            this.entry.touch();
            this.note_close_frame();
        }
        if this.up.is_done() && this.down.is_done() {
            return Poll::Ready(this.ended());
        }
        if this.closing_is_over(cx) {
            this.finish_now(cx);
            return Poll::Ready(this.ended());
        }
        Poll::Pending
    }
}
