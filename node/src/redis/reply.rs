//! Replies of a RESP2 connection that subscribes, parsed in place.
//!
//! Written for hostile input: lengths, lines and nesting are bounded, and anything but the few forms of Pub/Sub
//! replies is a [`ProtocolError`]. A publication over the size limit is skipped, not fatal: any client may
//! publish one, and closing the connection would lose those after it.
//!
//! Cost: an incomplete reply is parsed again from its start when more bytes have been read; that
//! is three short lines, never the data.

use std::ops::Range;
use std::str;

use bytes::Buf;
use bytes::Bytes;
use bytes::BytesMut;

/// The longest line: a length, or an error text.
const LINE_BYTES_MAX: usize = 1024;

/// The most elements that a Pub/Sub reply has.
const ELEMENTS_MAX: i64 = 3;

/// One reply of Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// A publication. Both are slices of what was read.
    Message { channel: Bytes, data: Bytes },
    /// A publication over the limit; its data is skipped.
    Oversized { channel: Bytes, bytes: u64 },
    /// A subscription is confirmed.
    Subscribed { channel: Bytes },
    /// The end of a subscription is confirmed.
    Unsubscribed { channel: Bytes },
    /// `+OK` and the like.
    Status,
    /// `-ERR ...`, Redis's text.
    Error(String),
}

/// The input is not a reply that a subscriber can get.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("protocol error, not a Pub/Sub reply: {0}")]
pub(crate) struct ProtocolError(pub(super) &'static str);

/// Why no reply could be parsed.
enum Stop {
    Incomplete,
    ProtocolError(ProtocolError),
}

impl From<ProtocolError> for Stop {
    fn from(protocol_error: ProtocolError) -> Self {
        Self::ProtocolError(protocol_error)
    }
}

/// Parses replies from the bytes that were read.
#[derive(Debug)]
pub(crate) struct Parser {
    message_bytes_max: u64,
    /// The rest to skip of a publication over the limit.
    skip: u64,
}

/// An element of an array.
enum Element {
    Bulk(Range<usize>),
    /// Data over the limit, of this length; the range would start here.
    Oversized(u64),
    Integer,
}

impl Parser {
    pub(crate) fn new(message_bytes_max: usize) -> Self {
        Self {
            message_bytes_max: message_bytes_max as u64,
            skip: 0,
        }
    }

    /// The next complete reply, split off the front of `input`; `None` when more bytes are needed.
    ///
    /// # Errors
    ///
    /// [`ProtocolError`]: the connection can no longer be used.
    pub(crate) fn next(&mut self, input: &mut BytesMut) -> Result<Option<Reply>, ProtocolError> {
        if !self.pass_over(input) {
            return Ok(None);
        }
        let mut cursor = Cursor {
            input,
            at: 0,
            bulk_bytes_max: self.message_bytes_max,
        };
        match cursor.reply() {
            Ok(Shape::Line(reply)) => {
                let used = cursor.at;
                input.advance(used);
                Ok(Some(reply))
            }
            Ok(Shape::Push(kind, channel, element)) => {
                let used = cursor.at;
                let bytes = input.split_to(used).freeze();
                self.push(&bytes, &kind, channel, element).map(Some)
            }
            Err(Stop::Incomplete) => Ok(None),
            Err(Stop::ProtocolError(protocol_error)) => Err(protocol_error),
        }
    }

    /// Skips the rest of a publication over the limit. Whether all of it was skipped.
    fn pass_over(&mut self, input: &mut BytesMut) -> bool {
        let now = self.skip.min(input.len() as u64);
        input.advance(usize::try_from(now).expect("at most the length of a buffer"));
        self.skip -= now;
        self.skip == 0
    }

    fn push(
        &mut self,
        bytes: &Bytes,
        kind: &Range<usize>,
        channel: Range<usize>,
        element: Element,
    ) -> Result<Reply, ProtocolError> {
        let channel = bytes.slice(channel);
        match (&bytes[kind.clone()], element) {
            (b"message" | b"smessage", Element::Bulk(data)) => Ok(Reply::Message {
                channel,
                data: bytes.slice(data),
            }),
            (b"message" | b"smessage", Element::Oversized(length)) => {
                self.skip = length + 2; // Including the line ending.
                Ok(Reply::Oversized {
                    channel,
                    bytes: length,
                })
            }
            (b"subscribe" | b"ssubscribe", Element::Integer) => Ok(Reply::Subscribed { channel }),
            (b"unsubscribe" | b"sunsubscribe", Element::Integer) => {
                Ok(Reply::Unsubscribed { channel })
            }
            _ => Err(ProtocolError("unexpected kind of message")),
        }
    }
}

enum Shape {
    Line(Reply),
    Push(Range<usize>, Range<usize>, Element),
}

/// Reads the input without consuming it.
struct Cursor<'a> {
    input: &'a [u8],
    at: usize,
    bulk_bytes_max: u64,
}

impl Cursor<'_> {
    fn reply(&mut self) -> Result<Shape, Stop> {
        match self.byte()? {
            b'+' => {
                self.line()?;
                Ok(Shape::Line(Reply::Status))
            }
            b'-' => {
                let text = String::from_utf8_lossy(self.line()?).into_owned();
                Ok(Shape::Line(Reply::Error(text)))
            }
            b'*' => {
                if self.number()? != ELEMENTS_MAX {
                    return Err(ProtocolError("unexpected array length").into());
                }
                let kind = self.bulk()?;
                let channel = self.bulk()?;
                let element = self.element()?;
                Ok(Shape::Push(kind, channel, element))
            }
            _ => Err(ProtocolError("unknown type").into()),
        }
    }

    fn bulk(&mut self) -> Result<Range<usize>, Stop> {
        match self.element()? {
            Element::Bulk(range) => Ok(range),
            Element::Oversized(_) | Element::Integer => {
                Err(ProtocolError("expected a string").into())
            }
        }
    }

    fn element(&mut self) -> Result<Element, Stop> {
        match self.byte()? {
            b':' => {
                self.number()?;
                Ok(Element::Integer)
            }
            b'$' => {
                let length =
                    u64::try_from(self.number()?).map_err(|_| ProtocolError("negative length"))?;
                if self.bulk_bytes_max < length {
                    return Ok(Element::Oversized(length));
                }
                let length = usize::try_from(length).expect("no limit is set past 1 GiB");
                let (start, end) = (self.at, self.at + length);
                let ending = self.input.get(end..end + 2).ok_or(Stop::Incomplete)?;
                if ending != b"\r\n" {
                    return Err(ProtocolError("string longer than its length").into());
                }
                self.at = end + 2;
                Ok(Element::Bulk(start..end))
            }
            _ => Err(ProtocolError("unknown type in an array").into()),
        }
    }

    fn number(&mut self) -> Result<i64, Stop> {
        let line = self.line()?;
        let digits = line.strip_prefix(b"-").unwrap_or(line);
        if !digits.iter().all(u8::is_ascii_digit) {
            return Err(ProtocolError("expected a number").into());
        }
        let number = str::from_utf8(line).ok().and_then(|text| text.parse().ok());
        number.ok_or_else(|| ProtocolError("expected a number").into())
    }

    fn byte(&mut self) -> Result<u8, Stop> {
        let byte = *self.input.get(self.at).ok_or(Stop::Incomplete)?;
        self.at += 1;
        Ok(byte)
    }

    /// The rest of the line, without its ending.
    fn line(&mut self) -> Result<&[u8], Stop> {
        let rest = &self.input[self.at..];
        let window = &rest[..rest.len().min(LINE_BYTES_MAX + 2)];
        match window.windows(2).position(|pair| pair == b"\r\n") {
            Some(length) => {
                self.at += length + 2;
                Ok(&rest[..length])
            }
            None if LINE_BYTES_MAX + 2 <= rest.len() => Err(ProtocolError("line too long").into()),
            None => Err(Stop::Incomplete),
        }
    }
}

#[cfg(test)]
mod tests;
