//! What gathers for one channel until its next round, once for each format.

use std::str;

use bytes::Bytes;
use bytes::BytesMut;

use crate::frame::sockjs;
use crate::frame::websocket;
use crate::frame::websocket::MessageKind;
use crate::hub::Format;

/// Publications in order, encoded.
///
/// A message is encoded only in the formats that somebody in the channel reads; a format that nobody
/// read before has a member who joined after what it lacks.
#[derive(Debug, Default)]
pub(super) struct Batch {
    raw: BytesMut,
    sockjs: BytesMut,
    /// A buffer each, so that a session that keeps a small message does not keep its batch.
    quoted: Vec<Bytes>,
    quoted_bytes: usize,
    messages: usize,
    /// Those that no SockJS client can be given.
    not_utf8: usize,
}

/// Which formats are read.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Formats {
    pub(super) raw: bool,
    pub(super) sockjs: bool,
    pub(super) quoted: bool,
}

/// A batch that is complete.
#[derive(Debug, Default)]
pub(super) struct Closed {
    pub(super) raw: Bytes,
    pub(super) sockjs: Bytes,
    pub(super) quoted: Vec<Bytes>,
    pub(super) messages: usize,
    pub(super) not_utf8: usize,
}

impl Batch {
    /// Appends a publication in the formats that are read.
    pub(super) fn append(&mut self, data: &[u8], formats: Formats) {
        self.messages += 1;
        let text = str::from_utf8(data).ok();
        if formats.raw {
            let kind = if text.is_some() {
                MessageKind::Text
            } else {
                MessageKind::Binary
            };
            websocket::append_message(&mut self.raw, kind, data);
        }
        if !formats.sockjs && !formats.quoted {
            return;
        }
        let Some(text) = text else {
            self.not_utf8 += 1;
            return;
        };
        let mut quoted = BytesMut::new();
        sockjs::append_quoted(&mut quoted, text);
        if formats.sockjs {
            websocket::append_sockjs_message(&mut self.sockjs, &quoted);
        }
        if formats.quoted {
            self.quoted_bytes += quoted.len();
            self.quoted.push(quoted.freeze());
        }
    }

    /// Where a member of `format` comes in that joins now.
    pub(super) fn position(&self, format: Format) -> usize {
        match format {
            Format::Raw => self.raw.len(),
            Format::Sockjs => self.sockjs.len(),
            Format::Quoted => self.quoted.len(),
        }
    }

    /// The memory that it takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.raw.len() + self.sockjs.len() + self.quoted_bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages == 0
    }

    pub(super) fn close(self) -> Closed {
        Closed {
            raw: self.raw.freeze(),
            sockjs: self.sockjs.freeze(),
            quoted: self.quoted,
            messages: self.messages,
            not_utf8: self.not_utf8,
        }
    }
}
