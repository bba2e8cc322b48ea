//! What an edge and a node say to each other to hand a client off to another node.
//!
//! Both speak in WebSocket control frames with the opcode 0xB, which RFC 6455 section 5.2 reserves, on the connection of
//! that client. They are exchanged only where both sides named [`HEADER`] in the handshake, so no client meets one. A
//! payload is ASCII text of at most 125 bytes.
//!
//! | from | payload | meaning |
//! |---|---|---|
//! | node | `ready INSTANCE TOKEN` | the first frame on a connection to [`PATH`]: the client can be handed off to here |
//! | node | `leaving` | the node drains: this client should be handed off |
//! | edge | `handoff INSTANCE TOKEN` | the last frame from the edge: hand the client off to this node |
//! | node | `kept REASON` | the client stays here; frames from the edge are expected again |
//! | node | `done` | the last frame from the node: the client is at the other node now |
//!
//! A SockJS session over HTTP is handed off by a request to [`PATH`] instead, see [`SESSION`].

use std::cmp::Ordering;
use std::fmt;

use bytes::BufMut;
use bytes::Bytes;
use bytes::BytesMut;

use crate::protocol::instance::Instance;
use crate::protocol::instance::Unnamed;
use crate::protocol::instance::from_hex;
use crate::protocol::instance::random;
use crate::protocol::instance::write_hex;

/// The header by which an edge offers handoff in a handshake (`1`), and a node accepts it.
pub(crate) const HEADER: http::HeaderName = http::HeaderName::from_static("causeway-handoff");

/// The path at which an edge opens the connection over which a client continues. Served to trusted proxies alone.
pub(crate) const PATH: &str = "/.causeway/handoff";

/// The header with which an edge has a node hand a SockJS session over HTTP off, with `POST` to [`PATH`]: the id of the session.
/// [`HEADER`] names the target, `INSTANCE TOKEN`.
///
/// | status | meaning |
/// |---|---|
/// | 200 | the session is at the target now |
/// | 307 | it was handed off before, to the instance in [`HEADER`] |
/// | 404 | there is no such session |
/// | 409 | it stays, or has ended; the body says why |
///
/// Without [`HEADER`] the session stays here, and its receiver ends behind what is queued (200): an edge that is about to exit has the
/// client send its next request to another one. Without a receiver nothing changes.
pub(crate) const SESSION: http::HeaderName = http::HeaderName::from_static("causeway-session");

/// The first byte of such a frame: FIN and the opcode.
pub(crate) const FIRST_BYTE: u8 = 0x8b;

const PAYLOAD_BYTES_MAX: usize = 125;
const MASKED: u8 = 0x80;

/// The name of one handoff, known to the edge and the two nodes. It cannot be guessed: the node that the client is handed
/// off to accepts a client only with the token that it has made itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Token([u8; 16]);

/// Where a client is handed off to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) instance: Instance,
    pub(crate) token: Token,
}

/// What a node tells the edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notice<'a> {
    Ready(Target),
    Leaving,
    Kept(&'a str),
    Done,
}

/// The bytes are no frame of the edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a masked frame with the opcode 0xB and the payload `handoff INSTANCE TOKEN`, and nothing behind it"
)]
pub(crate) struct BadFrame;

impl Token {
    pub(crate) fn random() -> Self {
        Self(random())
    }

    /// Reads what [`Display`](fmt::Display) writes.
    ///
    /// # Errors
    ///
    /// [`Unnamed`] for anything else.
    pub(crate) fn parse(text: &str) -> Result<Self, Unnamed> {
        from_hex(text).map(Self)
    }

    pub(crate) fn bytes(self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }

    /// Reads what [`bytes`](Self::bytes) returns.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.instance, self.token)
    }
}

impl Notice<'_> {
    /// The frame; a longer reason is cut.
    pub(crate) fn frame(&self) -> Bytes {
        let text = match self {
            Self::Ready(target) => format!("ready {target}"),
            Self::Leaving => "leaving".to_owned(),
            Self::Kept(reason) => format!("kept {reason}"),
            Self::Done => "done".to_owned(),
        };
        let text = &text[..text.floor_char_boundary(PAYLOAD_BYTES_MAX)];
        let mut frame = BytesMut::with_capacity(2 + text.len());
        frame.put_u8(FIRST_BYTE);
        frame.put_u8(text.len() as u8);
        frame.put_slice(text.as_bytes());
        frame.freeze()
    }
}

impl Target {
    /// Reads the frame of the edge that `bytes` begins with; `None` if it is not complete.
    ///
    /// # Errors
    ///
    /// [`BadFrame`] if it is another one, or if something follows: it is the last frame.
    pub(crate) fn read(bytes: &[u8]) -> Result<Option<Self>, BadFrame> {
        let Some((&[first, second], rest)) = bytes.split_first_chunk() else {
            return Ok(None);
        };
        let length = usize::from(second & !MASKED);
        if first != FIRST_BYTE || second & MASKED == 0 || PAYLOAD_BYTES_MAX < length {
            return Err(BadFrame);
        }
        let Some((mask, payload)) = rest.split_first_chunk::<4>() else {
            return Ok(None);
        };
        match payload.len().cmp(&length) {
            Ordering::Less => return Ok(None),
            Ordering::Equal => {}
            Ordering::Greater => return Err(BadFrame),
        }
        let unmasked = payload.iter().zip(mask.iter().cycle());
        let unmasked: Vec<u8> = unmasked.map(|(byte, mask)| byte ^ mask).collect();
        let text = str::from_utf8(&unmasked).map_err(|_| BadFrame)?;
        let target = text.strip_prefix("handoff ").ok_or(BadFrame)?;
        let target = Self::parse(target).map_err(|Unnamed| BadFrame)?;
        Ok(Some(target))
    }

    /// Reads what [`Display`](fmt::Display) writes.
    ///
    /// # Errors
    ///
    /// [`Unnamed`] for anything else.
    pub(crate) fn parse(text: &str) -> Result<Self, Unnamed> {
        let (instance, token) = text.split_once(' ').ok_or(Unnamed)?;
        Ok(Self {
            instance: Instance::parse(instance)?,
            token: Token::parse(token)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(payload: &str, mask: [u8; 4]) -> Vec<u8> {
        let mut frame = vec![FIRST_BYTE, MASKED | payload.len() as u8];
        frame.extend(mask);
        let masked = payload.bytes().zip(mask.iter().cycle());
        frame.extend(masked.map(|(byte, mask)| byte ^ mask));
        frame
    }

    fn target() -> Target {
        Target {
            instance: Instance::random(),
            token: Token::random(),
        }
    }

    #[test]
    fn a_target_is_read_when_its_frame_is_complete() {
        let target = target();
        for mask in [[0; 4], [1, 2, 3, 255]] {
            let frame = frame(&format!("handoff {target}"), mask);
            for length in 0..frame.len() {
                assert_eq!(Target::read(&frame[..length]), Ok(None), "{length}");
            }
            assert_eq!(Target::read(&frame), Ok(Some(target)));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let target = target();
        let good = frame(&format!("handoff {target}"), [7; 4]);
        let behind = [&good[..], b"x"].concat();
        let mut text = good.clone();
        text[0] = 0x81;
        let mut fragment = good.clone();
        fragment[0] = 0x0b;
        let mut unmasked = good.clone();
        unmasked[1] &= !MASKED;
        for wrong in [
            behind,
            text,
            fragment,
            unmasked,
            frame("handoff", [0; 4]),
            frame(&format!("handoff {}", target.instance), [0; 4]),
            frame(&format!("handoff {target} "), [0; 4]),
            frame("leaving", [0; 4]),
            frame("", [0; 4]),
        ] {
            assert_eq!(Target::read(&wrong), Err(BadFrame), "{wrong:?}");
        }
    }

    #[test]
    fn a_notice_is_one_unmasked_control_frame() {
        assert_eq!(&Notice::Done.frame()[..], b"\x8b\x04done");
        assert_eq!(&Notice::Leaving.frame()[..], b"\x8b\x07leaving");
        let long = Notice::Kept(&"\u{e4}".repeat(100)).frame();
        assert!(long.len() <= 2 + PAYLOAD_BYTES_MAX, "{}", long.len());
        assert!(str::from_utf8(&long[2..]).is_ok());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Target::read(&bytes);
        }
    }
}
