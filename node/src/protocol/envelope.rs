//! The encoding of channel events between nodes: an event and its position in the channel's stream.
//!
//! ```text
//! p 1729 : 8f0c32ab1d5e7794 : 1700000000000 : protobuf of the publication
//! │ │      │                  └ when it was published, in UNIX milliseconds
//! │ │      └ epoch, empty if the event is not stored
//! │ └ offset, 0 if the event is not stored
//! └ what it is: p(ublication), j(oin), l(eave), r(estarted)
//! ```
//! (without the spaces). In a Redis Cluster there are marks of handoffs too: `m` and what [`mark`] was given. The head is text, so that Redis can write it: only the script that stores a
//! publication knows its offset. From the time on it is the entry's [`body()`], which is what a stream
//! keeps.
//!
//! Written for hostile input: any client of Redis can publish anything. Data is a slice of what was
//! read.

use std::str;
use std::time::SystemTime;

use bytes::Buf;
use bytes::BufMut;
use bytes::Bytes;
use bytes::BytesMut;
use prost::Message;

use crate::protocol::ClientInfo;
use crate::protocol::Position;
use crate::protocol::Publication;

/// The longest number of a head: that of the largest `u64`.
const DIGITS_MAX: usize = 20;

/// The longest epoch.
const EPOCH_BYTES_MAX: usize = 32;

/// An event as another node (or this one) has sent it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Envelope {
    /// Missing if the event is not stored.
    pub(crate) position: Option<Position>,
    /// In UNIX milliseconds, by the publisher's clock; 0 if nothing was published.
    pub(crate) published_at: u64,
    pub(crate) event: ChannelEvent,
}

/// What can happen in a channel.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ChannelEvent {
    Publication(Publication),
    Join(ClientInfo),
    Leave(ClientInfo),
    /// The stream has a new epoch, although nothing was published.
    Restarted,
}

/// Bytes that no node can have sent.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an event of a channel: {0}")]
pub(crate) struct BadEnvelope(&'static str);

/// The body of a stream entry, which follows the position on the wire.
pub(crate) fn body(publication: &Publication, published_at: SystemTime) -> Bytes {
    let mut body = BytesMut::new();
    append_body(&mut body, publication, published_at);
    body.freeze()
}

/// An envelope of an event that is not stored.
pub(crate) fn unstored(event: &ChannelEvent, published_at: SystemTime) -> Bytes {
    let mut bytes = BytesMut::new();
    match event {
        ChannelEvent::Publication(publication) => {
            bytes.put_slice(b"p0::");
            append_body(&mut bytes, publication, published_at);
        }
        ChannelEvent::Join(info) => {
            bytes.put_slice(b"j0::");
            append_body(&mut bytes, info, published_at);
        }
        ChannelEvent::Leave(info) => {
            bytes.put_slice(b"l0::");
            append_body(&mut bytes, info, published_at);
        }
        // A script of Redis does the same.
        ChannelEvent::Restarted => bytes.put_slice(b"r0::"),
    }
    bytes.freeze()
}

/// An envelope of a publication that is not stored.
pub(crate) fn unstored_body(body: &[u8]) -> Bytes {
    [b"p0::", body].concat().into()
}

/// An envelope of a stored publication. Redis's script does the same.
pub(crate) fn stored(position: &Position, body: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_slice(format!("p{}:{}:", position.offset, position.epoch).as_bytes());
    bytes.put_slice(body);
    bytes.freeze()
}

/// A mark of a handoff, behind the events of a channel.
pub(crate) fn mark(data: &[u8]) -> Bytes {
    [b"m", data].concat().into()
}

/// What [`mark`] was given, if `bytes` is one.
pub(crate) fn in_mark(bytes: &Bytes) -> Option<Bytes> {
    bytes.starts_with(b"m").then(|| bytes.slice(1..))
}

fn append_body(bytes: &mut BytesMut, message: &impl Message, published_at: SystemTime) {
    let since_epoch = published_at.duration_since(SystemTime::UNIX_EPOCH);
    let milliseconds = since_epoch.map_or(0, |elapsed| elapsed.as_millis());
    bytes.put_slice(format!("{milliseconds}:").as_bytes());
    message
        .encode(bytes)
        .expect("a growing buffer has room for it");
}

/// Reads what a node has sent.
///
/// # Errors
///
/// [`BadEnvelope`]: no node sends that.
pub(crate) fn decode(mut bytes: Bytes) -> Result<Envelope, BadEnvelope> {
    let kind = bytes.split_to(bytes.len().min(1));
    let offset = number(&mut bytes)?;
    let epoch = field(&mut bytes, EPOCH_BYTES_MAX)?;
    let epoch = str::from_utf8(&epoch).map_err(|_| BadEnvelope("an epoch that is no text"))?;
    let position = match (offset, epoch) {
        (0, "") => None,
        (0, _) | (_, "") => return Err(BadEnvelope("half a position")),
        (offset, epoch) => Some(Position {
            epoch: epoch.into(),
            offset,
        }),
    };
    let (published_at, event) = match (&kind[..], &position) {
        (b"p", _) => {
            let (published_at, publication) = split_body(bytes)?;
            let publication = placed(publication, offset, published_at);
            (published_at, ChannelEvent::Publication(publication))
        }
        (b"j", None) => {
            let (published_at, info) = split_body(bytes)?;
            (published_at, ChannelEvent::Join(info))
        }
        (b"l", None) => {
            let (published_at, info) = split_body(bytes)?;
            (published_at, ChannelEvent::Leave(info))
        }
        (b"r", None) if bytes.is_empty() => (0, ChannelEvent::Restarted),
        _ => return Err(BadEnvelope("unknown kind")),
    };
    Ok(Envelope {
        position,
        published_at,
        event,
    })
}

/// Reads what a stream keeps of the publication with this offset.
///
/// # Errors
///
/// [`BadEnvelope`]: no node stores that.
pub(crate) fn decode_body(offset: u64, body: Bytes) -> Result<Publication, BadEnvelope> {
    let (published_at, publication) = split_body(body)?;
    Ok(placed(publication, offset, published_at))
}

/// `publication` with what its body alone does not say.
fn placed(publication: Publication, offset: u64, published_at: u64) -> Publication {
    Publication {
        offset,
        time: i64::try_from(published_at).unwrap_or(i64::MAX),
        ..publication
    }
}

fn split_body<M: Message + Default>(mut body: Bytes) -> Result<(u64, M), BadEnvelope> {
    let published_at = number(&mut body)?;
    let message = M::decode(body).map_err(|_| BadEnvelope("no message where one must be"))?;
    Ok((published_at, message))
}

fn number(bytes: &mut Bytes) -> Result<u64, BadEnvelope> {
    const NO_NUMBER: BadEnvelope = BadEnvelope("no number where one must be");
    let digits = field(bytes, DIGITS_MAX)?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return Err(NO_NUMBER); // A sign would do for `parse`.
    }
    let digits = str::from_utf8(&digits).map_err(|_| NO_NUMBER)?;
    digits.parse().map_err(|_| NO_NUMBER)
}

/// Splits off the text before the next colon.
fn field(bytes: &mut Bytes, length_max: usize) -> Result<Bytes, BadEnvelope> {
    let window = &bytes[..bytes.len().min(length_max + 1)];
    let length = window.iter().position(|&byte| byte == b':');
    let length = length.ok_or(BadEnvelope("a head without an end"))?;
    let field = bytes.split_to(length);
    bytes.advance(1);
    Ok(field)
}

#[cfg(test)]
mod tests;
