//! The Protobuf codec: messages one after the other, each after its length as a varint.

use bytes::Bytes;
use bytes::BytesMut;
use prost::DecodeError;
use prost::Message as _;

use crate::protocol::Command;
use crate::protocol::Reply;

/// A ping: an empty reply.
pub(crate) const PING: &[u8] = &[0];

/// Reads commands.
///
/// # Errors
///
/// What prost found instead of a command.
pub(crate) fn decode_commands(data: &[u8]) -> Result<Vec<Command>, DecodeError> {
    let mut data = Bytes::copy_from_slice(data);
    let mut commands = Vec::new();
    while !data.is_empty() {
        commands.push(Command::decode_length_delimited(&mut data)?);
    }
    Ok(commands)
}

/// Appends `reply`.
pub(crate) fn append_reply(out: &mut BytesMut, reply: &Reply) {
    out.reserve(10 + reply.encoded_len());
    reply
        .encode_length_delimited(out)
        .expect("a BytesMut has room for everything");
}
