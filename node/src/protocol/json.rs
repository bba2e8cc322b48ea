//! The JSON codec: messages one after the other, each on a line of its own.

use bytes::BufMut;
use bytes::BytesMut;

use crate::protocol::Command;
use crate::protocol::NotJson;
use crate::protocol::Reply;

/// A ping: an empty reply.
pub(crate) const PING: &[u8] = b"{}";

/// Reads commands, told apart by line ends, spaces or nothing.
///
/// # Errors
///
/// What serde_json found instead of a command.
pub(crate) fn decode_commands(data: &[u8]) -> Result<Vec<Command>, serde_json::Error> {
    serde_json::Deserializer::from_slice(data)
        .into_iter()
        .collect()
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
