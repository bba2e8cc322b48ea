//! WebSocket frames as a server writes them, and where those that it reads end.
//!
//! Owns no state but [`Scan`]'s. A server's frame is not masked, so it is the same for every client:
//! made here once, written to many. What clients send is parsed by tungstenite.
//!
//! Invariant: everything appended here is whole frames, each one whole message or control frame.

use bytes::BufMut;
use bytes::Bytes;
use bytes::BytesMut;

use crate::protocol::frame::sockjs;

mod scan;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) use scan::Scan;

/// A ping without payload.
pub(crate) const PING: Bytes = Bytes::from_static(&[FIN | Opcode::Ping as u8, 0]);

const FIN: u8 = 0x80;

/// The longest payload of a control frame, and what RFC 6455 leaves of it for a close reason.
const CONTROL_PAYLOAD_MAX: usize = 125;
const REASON_BYTES_MAX: usize = CONTROL_PAYLOAD_MAX - 2;

/// How protocol messages are framed in the WebSocket messages of one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SocketFormat {
    /// One message each, as it is.
    Raw,
    /// SockJS frames: `a["..."]`.
    Sockjs,
    /// Replies and pushes of the channel protocol in JSON, in text messages.
    Json,
    /// Replies and pushes of the channel protocol in Protobuf, in binary messages.
    Protobuf,
}

/// What a message is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MessageKind {
    /// UTF-8.
    Text,
    /// Any bytes.
    Binary,
}

#[derive(Debug, Clone, Copy)]
enum Opcode {
    Text = 0x1,
    Binary = 0x2,
    Close = 0x8,
    Ping = 0x9,
}

/// Appends `data` as one message.
pub(crate) fn append_message(out: &mut BytesMut, kind: MessageKind, data: &[u8]) {
    let opcode = match kind {
        MessageKind::Text => Opcode::Text,
        MessageKind::Binary => Opcode::Binary,
    };
    append_header(out, opcode, data.len());
    out.put_slice(data);
}

/// Appends a text message that is the SockJS frame `a[...]` of one message, quoted already.
pub(crate) fn append_sockjs_message(out: &mut BytesMut, quoted: &[u8]) {
    append_header(out, Opcode::Text, quoted.len() + "a[]".len());
    sockjs::append_array(out, [quoted]);
}

/// Appends all that ends a connection: the close frame, and before it SockJS's own where the client
/// expects one.
pub(crate) fn append_close(out: &mut BytesMut, format: SocketFormat, code: u16, reason: &str) {
    if format == SocketFormat::Sockjs {
        let mut close = BytesMut::new();
        sockjs::append_close(&mut close, code, reason);
        append_message(out, MessageKind::Text, &close);
    }
    let reason = &reason[..reason.floor_char_boundary(REASON_BYTES_MAX)];
    append_header(out, Opcode::Close, 2 + reason.len());
    out.put_u16(code);
    out.put_slice(reason.as_bytes());
}

/// Whether `frames`, whole frames of a server, begin with a close frame.
pub(crate) fn is_close(frames: &[u8]) -> bool {
    frames
        .first()
        .is_some_and(|first| first & 0x0f == Opcode::Close as u8)
}

/// The first place at or after `at` where one of the server's `frames` ends.
///
/// `frames` are whole ones, as made here or by tungstenite.
pub(crate) fn boundary(frames: &[u8], at: usize) -> usize {
    let mut end = 0;
    while end < at {
        end += frame_len(&frames[end..]);
    }
    end
}

fn append_header(out: &mut BytesMut, opcode: Opcode, payload: usize) {
    out.reserve(payload + 10);
    out.put_u8(FIN | opcode as u8);
    if payload <= CONTROL_PAYLOAD_MAX {
        out.put_u8(payload as u8);
    } else if let Ok(payload) = u16::try_from(payload) {
        out.put_u8(126);
        out.put_u16(payload);
    } else {
        out.put_u8(127);
        out.put_u64(payload as u64);
    }
}

/// How long the server's frame is that `frames` begins with.
fn frame_len(frames: &[u8]) -> usize {
    match frames[1] {
        126 => 4 + usize::from(u16::from_be_bytes([frames[2], frames[3]])),
        127 => {
            let payload = frames[2..10]
                .iter()
                .fold(0, |sum, &byte| sum << 8 | usize::from(byte));
            10 + payload
        }
        payload => 2 + usize::from(payload),
    }
}

#[cfg(test)]
mod tests;
