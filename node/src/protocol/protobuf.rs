//! The Protobuf codec: messages one after the other, each after its length as a varint.

use bytes::Bytes;
use bytes::BytesMut;
use prost::DecodeError;
use prost::Message as _;

use crate::protocol::Command;
use crate::protocol::Reply;

/// A ping: an empty reply.
pub(crate) const PING: &[u8] = &[0];

/// Takes the next command off `data`; what it carries is a slice of that.
///
/// # Errors
///
/// What prost found instead of a command.
pub(crate) fn take_command(data: &mut Bytes) -> Result<Option<Command>, DecodeError> {
    if data.is_empty() {
        return Ok(None);
    }
    Command::decode_length_delimited(data).map(Some)
}

/// Appends `reply`.
pub(crate) fn append_reply(out: &mut BytesMut, reply: &Reply) {
    out.reserve(10 + reply.encoded_len());
    reply
        .encode_length_delimited(out)
        .expect("a BytesMut has room for everything");
}
