//! Centrifugo's client protocol in JSON: replies and pushes, several to a WebSocket message with newlines
//! between them.

use std::{iter, mem};

use memchr::{memchr, memchr_iter, memmem};

use crate::bench::dialect::Joining;

const SUBSCRIPTION: &str = "2";
const DATA: &[u8] = b"\"data\":\"";

/// The commands that connect a client and subscribe it to `channel`.
pub(super) fn subscribe(channel: &str) -> String {
    format!(
        "{{\"id\":1,\"connect\":{{}}}}\n{{\"id\":{SUBSCRIPTION},\"subscribe\":{{\"channel\":\"{channel}\"}}}}"
    )
}

/// A client has joined with the reply to its subscription.
pub(super) fn joining(message: &[u8]) -> Result<Joining, String> {
    let text = String::from_utf8_lossy(message);
    if text.contains("\"error\":") {
        return Err(text.into_owned());
    }
    let reply = format!("\"id\":{SUBSCRIPTION},");
    Ok(match text.contains(&reply) {
        true => Joining::Joined,
        false => Joining::Waits,
    })
}

/// An empty reply is a ping, and an empty command the response.
pub(super) fn heartbeat(message: &[u8]) -> Option<&'static [u8]> {
    (message.trim_ascii() == b"{}").then_some(b"{}")
}

/// What the publications in a message carry.
pub(super) fn payloads(message: &[u8]) -> impl Iterator<Item = &[u8]> {
    lines(message)
        .filter(|line| line.starts_with(b"{\"push\""))
        .filter_map(|line| {
            let start = memmem::find(line, DATA)? + DATA.len();
            let length = memchr(b'"', &line[start..])?;
            line.get(start..start + length)
        })
}

/// Byte by byte, lines of 16 KB would cost the load more than their delivery costs a server.
fn lines(message: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut from = 0;
    let ends = memchr_iter(b'\n', message).chain(iter::once(message.len()));
    ends.map(move |end| &message[mem::replace(&mut from, end + 1)..end])
}

/// The body of a request to publish.
pub(super) fn publication(channel: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("{{\"channel\":\"{channel}\",\"data\":\"");
    [head.as_bytes(), payload, b"\"}"].concat()
}
