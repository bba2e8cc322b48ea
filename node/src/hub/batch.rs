//! The batch of one channel until its next flush, encoded once for each format.

use std::str;

use bytes::Bytes;
use bytes::BytesMut;

use crate::hub::format::Slot;
use crate::protocol;
use crate::protocol::Codec;
use crate::protocol::Event;
use crate::protocol::Push;
use crate::protocol::Reply;
use crate::protocol::frame::sockjs;
use crate::protocol::frame::websocket;
use crate::protocol::frame::websocket::MessageKind;

/// Publications or pushes in order, encoded.
///
/// A message is encoded only in the formats that a member of the channel reads. A member that is the first of its format
/// joined after the messages that are not encoded in it.
#[derive(Debug, Default)]
pub(super) struct Batch {
    plain: Frames,
    framed: Frames,
    /// A buffer for each message, so that a session that queues a small message does not keep the whole batch.
    queued: Vec<Bytes>,
    /// Messages in Protobuf, a buffer for each.
    delimited: Vec<Bytes>,
    /// Of `queued` and `delimited`.
    queued_bytes: usize,
    messages: usize,
    /// Messages that cannot be sent to SockJS clients.
    not_utf8: usize,
    /// Messages that cannot be sent to clients that use JSON.
    not_json: usize,
    /// When each push was published, in UNIX milliseconds, if known.
    published: Vec<i64>,
}

/// WebSocket messages one after the other.
#[derive(Debug, Default)]
struct Frames {
    bytes: BytesMut,
    /// Where the last message begins.
    newest: usize,
}

/// The slots that have members.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Slots {
    pub(super) plain: bool,
    pub(super) framed: bool,
    pub(super) queued: bool,
    pub(super) delimited: bool,
}

impl Slots {
    pub(super) fn any(self) -> bool {
        self.plain || self.framed || self.queued || self.delimited
    }
}

/// A batch that is complete.
#[derive(Debug, Default)]
pub(super) struct Closed {
    pub(super) plain: ClosedFrames,
    pub(super) framed: ClosedFrames,
    pub(super) queued: Vec<Bytes>,
    pub(super) delimited: Vec<Bytes>,
    pub(super) messages: usize,
    pub(super) not_utf8: usize,
    pub(super) not_json: usize,
    pub(super) published: Vec<i64>,
}

/// All WebSocket messages of a batch in one format.
#[derive(Debug, Default)]
pub(super) struct ClosedFrames {
    pub(super) bytes: Bytes,
    newest: usize,
}

impl Batch {
    /// Appends a publication of a relay in the formats that are read.
    pub(super) fn append(&mut self, data: &[u8], slots: Slots) {
        self.messages += 1;
        let text = str::from_utf8(data).ok();
        if slots.plain {
            let kind = if text.is_some() {
                MessageKind::Text
            } else {
                MessageKind::Binary
            };
            self.plain.append(kind, data);
        }
        if !slots.framed && !slots.queued {
            return;
        }
        let Some(text) = text else {
            self.not_utf8 += 1;
            return;
        };
        let mut quoted = BytesMut::new();
        sockjs::append_quoted(&mut quoted, text);
        if slots.framed {
            websocket::append_sockjs_message(self.framed.begin(), &quoted);
        }
        if slots.queued {
            self.queue(quoted.freeze());
        }
    }

    /// Appends a push in the formats that are read.
    pub(super) fn append_push(&mut self, push: &Push, slots: Slots) {
        self.messages += 1;
        if let Some(Event::Publication(publication)) = &push.event
            && 0 < publication.time
        {
            self.published.push(publication.time);
        }
        let reply = Reply::push(push.clone());
        if slots.framed || slots.delimited {
            let mut body = BytesMut::new();
            protocol::protobuf::append_reply(&mut body, &reply);
            if slots.framed {
                self.framed.append(MessageKind::Binary, &body);
            }
            if slots.delimited {
                self.queued_bytes += body.len();
                self.delimited.push(body.freeze());
            }
        }
        if !slots.plain && !slots.queued {
            return;
        }
        let mut body = BytesMut::new();
        if Codec::Json.append_reply(&mut body, &reply).is_err() {
            self.not_json += 1;
            return;
        }
        if slots.plain {
            self.plain.append(MessageKind::Text, &body);
        }
        if slots.queued {
            self.queue(body.freeze());
        }
    }

    /// The position of a member that joins now.
    pub(super) fn position(&self, slot: Slot) -> usize {
        match slot {
            Slot::Plain => self.plain.bytes.len(),
            Slot::Framed => self.framed.bytes.len(),
            Slot::Queued => self.queued.len(),
            Slot::Delimited => self.delimited.len(),
        }
    }

    /// The memory that it takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.plain.bytes.len() + self.framed.bytes.len() + self.queued_bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages == 0
    }

    pub(super) fn close(self) -> Closed {
        Closed {
            plain: self.plain.close(),
            framed: self.framed.close(),
            queued: self.queued,
            delimited: self.delimited,
            messages: self.messages,
            not_utf8: self.not_utf8,
            not_json: self.not_json,
            published: self.published,
        }
    }

    fn queue(&mut self, message: Bytes) {
        self.queued_bytes += message.len();
        self.queued.push(message);
    }
}

impl Frames {
    /// Returns the buffer, after noting where the next message begins.
    fn begin(&mut self) -> &mut BytesMut {
        self.newest = self.bytes.len();
        &mut self.bytes
    }

    fn append(&mut self, kind: MessageKind, data: &[u8]) {
        websocket::append_message(self.begin(), kind, data);
    }

    fn close(self) -> ClosedFrames {
        ClosedFrames {
            bytes: self.bytes.freeze(),
            newest: self.newest,
        }
    }
}

impl Closed {
    /// The position behind the last message.
    pub(super) fn end(&self, slot: Slot) -> usize {
        match slot {
            Slot::Plain => self.plain.bytes.len(),
            Slot::Framed => self.framed.bytes.len(),
            Slot::Queued => self.queued.len(),
            Slot::Delimited => self.delimited.len(),
        }
    }
}

impl ClosedFrames {
    /// The last message alone.
    pub(super) fn newest(&self) -> Bytes {
        self.bytes.slice(self.newest..)
    }
}
