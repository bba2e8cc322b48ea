//! SockJS frames: `o` at the start, then arrays of messages.

use crate::bench::dialect::Joining;

/// A client has joined with the `o`.
pub(super) fn joining(message: &[u8]) -> Result<Joining, String> {
    match message {
        b"o" => Ok(Joining::Joined),
        other => Err(String::from_utf8_lossy(other).into_owned()),
    }
}

/// The messages in a SockJS frame: those of an array, none in all others.
pub(super) fn payloads(frame: &[u8]) -> impl Iterator<Item = &[u8]> {
    frame
        .strip_prefix(b"a[")
        .and_then(|array| array.strip_suffix(b"]"))
        .into_iter()
        .flat_map(|array| array.split(|byte| *byte == b','))
        .map(|quoted| {
            quoted
                .strip_prefix(b"\"")
                .and_then(|rest| rest.strip_suffix(b"\""))
                .unwrap_or(quoted)
        })
}
