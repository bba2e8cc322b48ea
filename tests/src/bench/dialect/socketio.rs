//! Socket.IO over Engine.IO 4: `0` opens, `40` connects, `42["m","..."]` is an event, `2` wants a `3`.

use crate::bench::dialect::Joining;

/// A client asks for the default namespace when Engine.IO is open, and has joined when it has it.
pub(super) fn joining(message: &[u8]) -> Result<Joining, String> {
    match message {
        [b'0', ..] => Ok(Joining::Sends("40".to_owned())),
        [b'4', b'0', ..] => Ok(Joining::Joined),
        other => Err(String::from_utf8_lossy(other).into_owned()),
    }
}

/// The response to a ping.
pub(super) fn heartbeat(message: &[u8]) -> Option<&'static [u8]> {
    (message == b"2").then_some(b"3")
}

/// What an event carries.
pub(super) fn payload(message: &[u8]) -> Option<&[u8]> {
    message.strip_prefix(b"42[\"m\",\"")?.strip_suffix(b"\"]")
}
