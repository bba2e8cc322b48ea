//! One direction of a tunnel.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::tunnel::Protocol;
use crate::tunnel::SERVICE_RESTART;
use crate::tunnel::frames;
use crate::tunnel::frames::{Frames, FramesState};
use crate::tunnel::notices;
use crate::tunnel::notices::Notices;

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

/// One direction as plain data.
pub(crate) struct FlowState {
    /// Read, but not written yet.
    pub(crate) pending: Vec<u8>,
    pub(crate) frames: Option<FramesState>,
    /// How many bytes were read.
    pub(crate) bytes: u64,
    pub(crate) phase: FlowPhase,
}

/// How far a direction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlowPhase {
    Open,
    /// The reader has ended: the pending bytes are to be sent, then the end.
    Finishing(FlowEnd),
    Done,
}

/// How far a direction is read, and what is done with control frames.
pub(super) enum Reading<'a> {
    /// On and on.
    On,
    /// From a client that must not send frames of a handoff: such a frame stops it and sets `is_forged`. With `unsent`, to the
    /// end of the current message; what was read behind it is put there.
    Client {
        unsent: Option<&'a mut Vec<u8>>,
        is_forged: &'a mut bool,
    },
    /// Not at all.
    Off,
    /// On and on, from a backend that sends a Close frame before it ends: with the notices of a handoff taken out. If it ends without a
    /// Close frame and `close_at_end` is set, the client gets one.
    Backend {
        notices: &'a mut Notices,
        close_at_end: bool,
    },
}

/// How a direction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlowEnd {
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
        let mut frames = (protocol != Protocol::Opaque).then(Frames::default);
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

    /// The direction as data; it can be continued by [`Flow::from_state`].
    pub(super) fn into_state(mut self) -> FlowState {
        self.pending.drain(..self.pending_sent);
        FlowState {
            pending: self.pending,
            frames: self.frames.as_ref().map(Frames::state),
            bytes: self.bytes,
            phase: match self.state {
                State::Open | State::Muted => FlowPhase::Open,
                State::Finishing(end) => FlowPhase::Finishing(end),
                State::Done => FlowPhase::Done,
            },
        }
    }

    /// Continues a direction; `None` if the state cannot be that of one.
    pub(super) fn from_state(state: FlowState) -> Option<Self> {
        let frames = match &state.frames {
            Some(frames) => Some(Frames::from_state(frames)?),
            None => None,
        };
        Some(Self {
            pending: state.pending,
            pending_sent: 0,
            frames,
            bytes: state.bytes,
            state: match state.phase {
                FlowPhase::Open => State::Open,
                FlowPhase::Finishing(end) => State::Finishing(end),
                FlowPhase::Done => State::Done,
            },
        })
    }

    /// Whether the edge has inserted a Close frame.
    pub(super) fn is_muted(&self) -> bool {
        self.state == State::Muted
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

    /// Whether everything up to a message boundary is sent, and the direction is open.
    pub(super) fn rests_at_message(&self) -> bool {
        let at_boundary = |frames: &Frames| frames.at_message_boundary() && !frames.close_seen();
        self.state == State::Open
            && self.pending.is_empty()
            && self.frames.as_ref().is_some_and(at_boundary)
    }

    /// Whether nothing has ended this direction yet.
    pub(super) fn is_open(&self) -> bool {
        self.state == State::Open && !self.frames.as_ref().is_some_and(Frames::close_seen)
    }

    /// Sends `bytes` of a handoff next: they are no part of what is forwarded.
    pub(super) fn put_order(&mut self, bytes: Vec<u8>) {
        self.pending = bytes;
        self.pending_sent = 0;
    }

    /// Sends `bytes` behind what is pending; they were read before.
    pub(super) fn put_read(&mut self, bytes: &[u8]) {
        if let Some(frames) = &mut self.frames {
            frames.pass(bytes);
        }
        self.pending.extend_from_slice(bytes);
    }

    /// Continues with another reader, from which `early` was read already.
    pub(super) fn continue_with(&mut self, early: &[u8], notices: &mut Notices) {
        let mut frames = Frames::default();
        self.bytes += early.len() as u64;
        let at = frames.find(early, notices::FIRST_BYTE);
        let (before, behind) = early.split_at(at.unwrap_or(early.len()));
        frames.pass(before);
        self.frames = Some(frames);
        self.pending.extend_from_slice(before);
        self.take_notices(behind, notices, false);
    }

    /// Whether the last frame that was read is complete, and no Close frame.
    pub(super) fn lacks_close(&self) -> bool {
        let lacks = |frames: &Frames| frames.at_boundary() && !frames.close_seen();
        self.frames.as_ref().is_some_and(lacks)
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
        mut reading: Reading<'_>,
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
            match &reading {
                Reading::Off => return Poll::Pending,
                Reading::Client {
                    is_forged: true, ..
                } => return Poll::Pending,
                Reading::Client {
                    unsent: Some(_), ..
                } if self.rests_at_message() => return Poll::Pending,
                Reading::Backend { notices, .. } if notices.is_done() => return Poll::Pending,
                _ => {}
            }
            match ready!(self.poll_forward(cx, reader, writer, close.is_some(), &mut reading)) {
                Ok(()) => {}
                Err(end) => {
                    if let Reading::Backend {
                        close_at_end: true, ..
                    } = reading
                    {
                        self.put_close_to_client(SERVICE_RESTART);
                    }
                    self.state = State::Finishing(end);
                }
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
        reading: &mut Reading<'_>,
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
            let (data, behind) = self.split(data, reading);
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
            if let Reading::Backend { notices, .. } = reading {
                self.take_notices(behind, notices, to_boundary);
            }
            Poll::Ready(Ok(()))
        })
    }

    /// Splits what was read into what is forwarded and what is not: the rest behind the client's message, or what begins with
    /// a notice of the backend.
    fn split<'data>(
        &self,
        data: &'data [u8],
        reading: &mut Reading<'_>,
    ) -> (&'data [u8], &'data [u8]) {
        let Some(frames) = &self.frames else {
            return (data, &[]);
        };
        match reading {
            Reading::Client { unsent, is_forged } => {
                let forged = frames.find(data, notices::FIRST_BYTE);
                **is_forged |= forged.is_some();
                let data = &data[..forged.unwrap_or(data.len())];
                let Some(unsent) = unsent else {
                    return (data, &[]);
                };
                let message = frames.clone().pass_to_message_boundary(data);
                unsent.extend_from_slice(&data[message..]);
                (&data[..message], &[])
            }
            Reading::Backend { notices, .. } if notices.is_within() => (&[], data),
            Reading::Backend { .. } => {
                let at = frames.find(data, notices::FIRST_BYTE);
                data.split_at(at.unwrap_or(data.len()))
            }
            Reading::On | Reading::Off => (data, &[]),
        }
    }

    /// Takes the notices at the beginning of `data`, and appends what is behind them to the pending bytes.
    fn take_notices(&mut self, mut data: &[u8], notices: &mut Notices, to_boundary: bool) {
        while !data.is_empty() {
            data = notices.put(data);
            let Some(frames) = &self.frames else {
                return;
            };
            let at = frames.find(data, notices::FIRST_BYTE);
            let (before, next) = data.split_at(at.unwrap_or(data.len()));
            let before = self.forwardable(before, to_boundary);
            self.pending.extend_from_slice(before);
            data = next;
        }
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
        if self.state == State::Open && self.lacks_close() {
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
        if self.state == State::Open && self.pending.is_empty() && self.lacks_close() {
            let _ = Pin::new(&mut *backend).poll_write(cx, &frames::close_to_backend(code));
            let _ = Pin::new(backend).poll_flush(cx);
        }
    }
}
