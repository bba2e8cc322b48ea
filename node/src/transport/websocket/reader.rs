//! Decodes bytes into messages, with a tungstenite context that is created for each read.
//!
//! A client between two messages has no tungstenite context and no buffer; the context exists during one read, and longer
//! only while a frame or a fragmented message is incomplete, or reading is paused. What tungstenite writes (pongs, the reply
//! to a close frame) goes through the outbox, which always accepts all of it: so tungstenite's own write buffer is always
//! empty, and its frames cannot interleave with those of the hub.

use std::io;
use std::io::Read;
use std::io::Write;
use std::mem;
use std::ops::ControlFlow;

use bytes::Bytes;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::protocol::WebSocketContext;

use crate::hub::outbox::SocketOutbox;
use crate::protocol::disconnect::Disconnect;
use crate::protocol::frame::websocket;
use crate::protocol::frame::websocket::MessageKind;
use crate::protocol::frame::websocket::Scan;
use crate::protocol::handoff;
use crate::protocol::handoff::BadFrame;
use crate::protocol::handoff::Target;

/// The read buffer of a context: small enough for small messages, large enough to read a large one in few steps.
const READ_BUFFER_BYTES: std::ops::RangeInclusive<usize> = 64..=4096;

/// The decoder of one client's frames.
///
/// Invariant: `unfinished` is present while `scan` is within a message, and while bytes are unread or those of a handoff are
/// not taken.
pub(super) struct Reader {
    message_bytes_max: usize,
    scan: Scan,
    unfinished: Option<Box<Unfinished>>,
}

/// What is stored from one read to the next.
struct Unfinished {
    context: WebSocketContext,
    /// The bytes after the last message that was taken.
    unread: Box<[u8]>,
    /// The edge's last frame, as far as it was received, and what follows it.
    handoff: Vec<u8>,
}

/// Why no message will follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadEnd {
    /// The client's close frame is received and the reply is queued.
    Closed,
    /// The client has violated the protocol: its bytes cannot be parsed any more.
    Failed(Disconnect),
}

impl Reader {
    /// Reads messages of at most `message_bytes_max`.
    pub(super) fn new(message_bytes_max: usize) -> Self {
        Self {
            message_bytes_max,
            scan: Scan::default(),
            unfinished: None,
        }
    }

    /// Stores `input`, which was read with the request, for [`resume`](Self::resume).
    pub(super) fn keep(&mut self, input: &[u8]) {
        self.scan.advance(input);
        self.unfinished = Some(Box::new(Unfinished {
            context: self.new_context(input.len()),
            unread: input.into(),
            handoff: Vec::new(),
        }));
    }

    /// Passes the messages that `input` completes to `take`, until that breaks. Then the rest is stored, and
    /// [`resume`](Self::resume) must be called before the next read.
    pub(super) fn read(
        &mut self,
        outbox: &SocketOutbox,
        input: &[u8],
        take: impl FnMut(MessageKind, Bytes) -> ControlFlow<()>,
    ) -> Result<(), ReadEnd> {
        if self.has_handoff() {
            let rest = self.unfinished.iter_mut();
            rest.for_each(|unfinished| unfinished.handoff.extend_from_slice(input));
            return Ok(());
        }
        let (input, handoff) = self.split_handoff(outbox, input);
        let unfinished = match self.unfinished.take() {
            Some(unfinished) => unfinished,
            None => Box::new(self.new_unfinished(input.len())),
        };
        debug_assert!(
            unfinished.unread.is_empty(),
            "a reader that was stopped is resumed first"
        );
        self.scan.advance(input);
        self.pump(outbox, unfinished, input, take)?;
        if !handoff.is_empty() {
            if !self.scan.is_between_messages() {
                return Err(ReadEnd::Failed(Disconnect::PROTOCOL));
            }
            let unfinished = self.unfinished.take();
            let unfinished = unfinished.unwrap_or_else(|| Box::new(self.new_unfinished(0)));
            self.unfinished.insert(unfinished).handoff = handoff.into();
        }
        Ok(())
    }

    /// Whether the edge's last frame has begun.
    pub(super) fn has_handoff(&self) -> bool {
        let unfinished = self.unfinished.as_deref();
        unfinished.is_some_and(|unfinished| !unfinished.handoff.is_empty())
    }

    /// Takes the edge's last frame if it is complete. All messages before it must be taken.
    ///
    /// # Errors
    ///
    /// [`BadFrame`]: it is no handoff, or not the last.
    pub(super) fn take_handoff(&mut self) -> Result<Option<Target>, BadFrame> {
        let Some(unfinished) = &self.unfinished else {
            return Ok(None);
        };
        debug_assert!(unfinished.unread.is_empty(), "messages before it are left");
        let target = Target::read(&unfinished.handoff)?;
        if target.is_some() {
            self.unfinished = None;
        }
        Ok(target)
    }

    /// Splits the input before the edge's last frame, if that is in it.
    fn split_handoff<'a>(&self, outbox: &SocketOutbox, input: &'a [u8]) -> (&'a [u8], &'a [u8]) {
        let may_have_it = outbox.can_hand_off() && input.contains(&handoff::FIRST_BYTE);
        let at = may_have_it.then(|| self.scan.find(input, handoff::FIRST_BYTE));
        input.split_at(at.flatten().unwrap_or(input.len()))
    }

    /// Continues where `take` broke.
    pub(super) fn resume(
        &mut self,
        outbox: &SocketOutbox,
        take: impl FnMut(MessageKind, Bytes) -> ControlFlow<()>,
    ) -> Result<(), ReadEnd> {
        let Some(mut unfinished) = self.unfinished.take() else {
            return Ok(());
        };
        let unread = mem::take(&mut unfinished.unread);
        self.pump(outbox, unfinished, &unread, take)
    }

    fn pump(
        &mut self,
        outbox: &SocketOutbox,
        mut unfinished: Box<Unfinished>,
        input: &[u8],
        mut take: impl FnMut(MessageKind, Bytes) -> ControlFlow<()>,
    ) -> Result<(), ReadEnd> {
        let mut wire = Wire { outbox, input };
        loop {
            // Each read first writes the reply to a ping or close frame of the previous one.
            let flow = match unfinished.context.read(&mut wire) {
                Ok(Message::Text(text)) => take(MessageKind::Text, text.into()),
                Ok(Message::Binary(data)) => take(MessageKind::Binary, data),
                Ok(_) => ControlFlow::Continue(()),
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(ReadEnd::from(&error)),
            };
            if flow.is_break() {
                unfinished.unread = wire.input.into();
                self.unfinished = Some(unfinished);
                return Ok(());
            }
        }
        if !self.scan.is_between_messages() {
            self.unfinished = Some(unfinished);
        }
        Ok(())
    }

    fn new_unfinished(&self, input: usize) -> Unfinished {
        Unfinished {
            context: self.new_context(input),
            unread: Box::default(),
            handoff: Vec::new(),
        }
    }

    fn new_context(&self, input: usize) -> WebSocketContext {
        let config = WebSocketConfig::default()
            .read_buffer_size(input.clamp(*READ_BUFFER_BYTES.start(), *READ_BUFFER_BYTES.end()))
            .write_buffer_size(0)
            .max_message_size(Some(self.message_bytes_max))
            .max_frame_size(Some(self.message_bytes_max.max(CONTROL_PAYLOAD_MAX)));
        WebSocketContext::new(Role::Server, Some(config))
    }
}

/// The payload limit of control frames, which may be larger than the message limit.
const CONTROL_PAYLOAD_MAX: usize = 125;

impl From<&Error> for ReadEnd {
    fn from(error: &Error) -> Self {
        match error {
            Error::ConnectionClosed | Error::AlreadyClosed => Self::Closed,
            Error::Capacity(_) => Self::Failed(Disconnect::TOO_LARGE),
            Error::Utf8(_) => Self::Failed(Disconnect::NOT_UTF8),
            _ => Self::Failed(Disconnect::PROTOCOL),
        }
    }
}

/// The stream that tungstenite reads from and writes to.
struct Wire<'a> {
    outbox: &'a SocketOutbox,
    input: &'a [u8],
}

impl Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.input.read(buffer)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, frame: &[u8]) -> io::Result<usize> {
        let frame = Bytes::copy_from_slice(frame);
        if websocket::is_close(&frame) {
            self.outbox.send_last(&frame);
        } else {
            self.outbox.send(&frame);
        }
        Ok(frame.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
