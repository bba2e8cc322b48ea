//! The JSON codec: messages one after the other, each on a line of its own.

use bytes::Buf;
use bytes::BufMut;
use bytes::Bytes;
use bytes::BytesMut;

use crate::protocol::Command;
use crate::protocol::NotJson;
use crate::protocol::Reply;

/// A ping: an empty reply.
pub(crate) const PING: &[u8] = b"{}";

/// Splits the next command off `data`. Commands are separated by line ends, spaces or nothing.
///
/// # Errors
///
/// What serde_json found instead of a command; `data` is as it was.
pub(crate) fn take_command(data: &mut Bytes) -> Result<Option<Command>, serde_json::Error> {
    let mut commands = serde_json::Deserializer::from_slice(data).into_iter();
    let next = commands.next().transpose()?;
    let end = commands.byte_offset();
    data.advance(end);
    if next.is_none() {
        data.clear(); // Line ends, at most.
    }
    Ok(next)
}

/// Appends `reply` as a line of its own; the last line has no end.
///
/// # Errors
///
/// [`NotJson`] if data in it is no JSON; `out` is as it was.
pub(crate) fn append_reply(out: &mut BytesMut, reply: &Reply) -> Result<(), NotJson> {
    let before = out.len();
    if 0 < before {
        out.put_u8(b'\n');
    }
    serde_json::to_writer(out.writer(), reply).map_err(|error| {
        out.truncate(before);
        NotJson(error)
    })
}
