//! One direction of a tunnel.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::tunnel::Protocol;
use crate::tunnel::frames;
use crate::tunnel::frames::Frames;

/// The most bytes that are read at once, and so the most that wait for a slow receiver.
const SCRATCH: usize = 64 * 1024;

thread_local! {
    /// The read buffer that all tunnels of this thread share: an idle tunnel owns no buffer.
    static SCRATCH_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
}

/// One direction: bytes from a reader to a writer.
///
/// Invariant: nothing is read while `pending` holds bytes, and it is freed when they are sent.
pub(super) struct Flow {
    pending: Vec<u8>,
    pending_sent: usize,
    frames: Option<Frames>,
    bytes: u64,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The edge has inserted a Close frame: further bytes are dropped.
    Muted,
    /// The reader has ended, with or without an error; the pending bytes are sent, then the end.
    Finishing(FlowEnd),
    Done,
}

/// How a direction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlowEnd {
    /// The reader has ended, and the end was forwarded.
    Finished,
    /// Reading failed.
    ReadFailed,
    /// Writing failed.
    WriteFailed,
}

impl Flow {
    /// A flow that first forwards `early`.
    pub(super) fn new(early: Vec<u8>, protocol: Protocol) -> Self {
        let mut frames = (protocol == Protocol::WebSocket).then(Frames::default);
        if let Some(frames) = &mut frames {
            frames.pass(&early);
        }
        Self {
            bytes: early.len() as u64,
            pending: early,
            pending_sent: 0,
            frames,
            state: State::Open,
        }
    }

    /// How many bytes were read.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    pub(super) fn tracks_frames(&self) -> bool {
        self.frames.is_some()
    }

    /// The code of the Close frame, if one was read.
    pub(super) fn close_code(&self) -> Option<u16> {
        self.frames.as_ref().and_then(Frames::close_code)
    }

    /// Ends this direction at once: one of its sockets has failed.
    pub(super) fn abandon(&mut self) {
        self.pending = Vec::new();
        self.state = State::Done;
    }

    /// Forwards as many bytes as possible. Ready once, when the direction has ended.
    ///
    /// With `close`, inserts a Close frame with that code at the next boundary, and drops all further bytes.
    pub(super) fn pump<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        close: Option<u16>,
    ) -> Poll<FlowEnd>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.state == State::Done {
            return Poll::Pending;
        }
        loop {
            if let Some(code) = close {
                self.put_close_to_client(code);
            }
            if ready!(self.poll_send(cx, writer)).is_err() {
                self.abandon();
                return Poll::Ready(FlowEnd::WriteFailed);
            }
            if let State::Finishing(end) = self.state {
                // An error here means that the other side has failed too, which the other direction detects.
                let _ = ready!(Pin::new(&mut *writer).poll_shutdown(cx));
                self.state = State::Done;
                return Poll::Ready(end);
            }
            match ready!(self.poll_forward(cx, reader, writer, close.is_some())) {
                Ok(()) => {}
                Err(end) => self.state = State::Finishing(end),
            }
        }
    }

    /// Sends the pending bytes.
    fn poll_send<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
    ) -> Poll<io::Result<()>> {
        while self.pending_sent < self.pending.len() {
            match ready!(Pin::new(&mut *writer).poll_write(cx, &self.pending[self.pending_sent..]))?
            {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.pending_sent += sent,
            }
        }
        self.pending_sent = 0;
        if self.pending.capacity() > 0 {
            self.pending = Vec::new();
        }
        // A layered stream may buffer bytes itself: reading before they are flushed would let that buffer grow.
        Pin::new(writer).poll_flush(cx)
    }

    /// Reads once and forwards the bytes. An error says how the direction is going to end.
    fn poll_forward<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        to_boundary: bool,
    ) -> Poll<Result<(), FlowEnd>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        SCRATCH_BUFFER.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            if ready!(Pin::new(reader).poll_read(cx, &mut buffer)).is_err() {
                return Poll::Ready(Err(FlowEnd::ReadFailed));
            }
            let data = buffer.filled();
            if data.is_empty() {
                return Poll::Ready(Err(FlowEnd::Finished));
            }
            self.bytes += data.len() as u64;
            let mut rest = self.forwardable(data, to_boundary);
            while !rest.is_empty() {
                match Pin::new(&mut *writer).poll_write(cx, rest) {
                    Poll::Ready(Ok(sent)) if sent > 0 => rest = &rest[sent..],
                    // A failed write fails again when the rest is sent.
                    Poll::Ready(_) | Poll::Pending => {
                        self.pending = rest.to_vec();
                        break;
                    }
                }
            }
            Poll::Ready(Ok(()))
        })
    }

    /// The part of `data` that may be forwarded.
    fn forwardable<'data>(&mut self, data: &'data [u8], to_boundary: bool) -> &'data [u8] {
        if self.state == State::Muted {
            return &[];
        }
        match &mut self.frames {
            None => data,
            Some(frames) if to_boundary && !frames.close_seen() => {
                &data[..frames.pass_to_boundary(data)]
            }
            Some(frames) => {
                frames.pass(data);
                data
            }
        }
    }

    /// Appends a Close frame if it is valid here: at a boundary, and not after another Close.
    fn put_close_to_client(&mut self, code: u16) {
        let Some(frames) = &self.frames else {
            return;
        };
        if self.state == State::Open && frames.at_boundary() && !frames.close_seen() {
            self.pending
                .extend_from_slice(&frames::close_to_client(code));
            self.state = State::Muted;
        }
    }

    /// Writes a Close frame to the backend, if it is valid here and the socket accepts it now.
    pub(super) fn put_close_to_backend<W: AsyncWrite + Unpin>(
        &self,
        cx: &mut Context<'_>,
        backend: &mut W,
        code: u16,
    ) {
        let Some(frames) = &self.frames else {
            return;
        };
        if self.state == State::Open
            && self.pending.is_empty()
            && frames.at_boundary()
            && !frames.close_seen()
        {
            let _ = Pin::new(&mut *backend).poll_write(cx, &frames::close_to_backend(code));
            let _ = Pin::new(backend).poll_flush(cx);
        }
    }
}
