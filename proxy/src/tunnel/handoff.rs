//! Handoff: a tunnel continues over a connection to another backend, and the client notices nothing.
//!
//! The two nodes and the edge agree on it in control frames with the opcode 0xB, which RFC 6455 section 5.2 reserves, on the
//! connection to the backend; the crate `causeway-node` documents them (`protocol::handoff`). They are exchanged only on tunnels
//! whose backend has accepted it in its 101, and never forwarded to the client.
//!
//! The edge stops reading from the client at a message boundary, sends the order to the backend, and forwards what the backend
//! still sends. After `done` it continues over the other connection. What the client sends meanwhile stays in the kernel.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use crate::tunnel::flow::Reading;
use crate::tunnel::notices::{FIRST_BYTE, FRAME_MAX, Notices};

/// How long the backend may take after the order. Nodes give up after 4 s at most; a client that waits longer has to connect again.
const ORDER_WAIT: Duration = Duration::from_secs(6);

/// The longest target, so that an order fits a control frame.
const TARGET_MAX: usize = 100;

/// A connection over which the tunnel may continue, and where it leads to.
pub(crate) struct Successor<B, P> {
    pub(crate) socket: B,
    /// Bytes that were read behind the 101.
    pub(crate) early: Vec<u8>,
    /// The instance and the token, as the other node has named them.
    pub(crate) target: String,
    pub(crate) place: P,
}

/// Dials the connection over which the tunnel may continue; `None` if there is no other backend.
pub(crate) type Dialing<B, P> = Pin<Box<dyn Future<Output = Option<Successor<B, P>>> + Send>>;

/// A handoff under way: a connection is dialled, the client's current message is forwarded to its end, the backend has the order.
pub(super) struct Handoff<B, P> {
    dialing: Option<Dialing<B, P>>,
    pub(super) successor: Option<Successor<B, P>>,
    /// Until when the backend has to respond to the order.
    due: Option<Pin<Box<Sleep>>>,
    /// What was read from the client behind the message boundary.
    pub(super) unsent: Vec<u8>,
    pub(super) notices: Notices,
}

impl<B, P> Handoff<B, P> {
    pub(super) fn new(dialing: Dialing<B, P>, notices: Notices) -> Self {
        Self {
            dialing: Some(dialing),
            successor: None,
            due: None,
            unsent: Vec::new(),
            notices,
        }
    }

    /// Whether the backend has the order: nothing is read from the client until it has responded.
    pub(super) fn is_ordered(&self) -> bool {
        self.due.is_some()
    }

    pub(super) fn start_order(&mut self) {
        let due = tokio::time::sleep_until(Instant::now() + ORDER_WAIT);
        self.due = Some(Box::pin(due));
    }

    /// How far the client is read.
    pub(super) fn reading_from_client<'a>(&'a mut self, is_forged: &'a mut bool) -> Reading<'a> {
        if self.is_ordered() {
            return Reading::Off;
        }
        let unsent = self.successor.is_some().then_some(&mut self.unsent);
        Reading::Client { unsent, is_forged }
    }

    /// Ready when there is a successor, or none can be had.
    pub(super) fn poll_dial(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(dialing) = &mut self.dialing {
            self.successor = ready!(dialing.as_mut().poll(cx));
            self.dialing = None;
        }
        Poll::Ready(())
    }

    /// Ready when the backend has not responded to the order in time.
    pub(super) fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.due {
            Some(due) => due.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

/// The order to the backend to hand its client off to `target`: a frame of a client, masked with a key of zeros.
pub(super) fn order(target: &str) -> Vec<u8> {
    let payload = format!("handoff {target}");
    let mut frame = vec![FIRST_BYTE, 0x80 | payload.len() as u8, 0, 0, 0, 0];
    frame.extend_from_slice(payload.as_bytes());
    frame
}

/// The target in the first frame of a node that continues clients, and the length of that frame; `None` if it is incomplete.
///
/// # Errors
///
/// It is another frame, as text.
pub(crate) fn target(read: &[u8]) -> Result<Option<(String, usize)>, String> {
    let wrong = || "its first frame names no target".to_owned();
    let (first, length) = match read {
        [] => return Ok(None),
        [first] => (*first, 0),
        [first, length, ..] => (*first, usize::from(*length)),
    };
    if first != FIRST_BYTE || FRAME_MAX < 2 + length {
        return Err(wrong());
    }
    let payload = match read.get(2..2 + length) {
        Some(payload) if 2 <= read.len() => payload,
        _ => return Ok(None),
    };
    let is_hex = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let target = str::from_utf8(payload)
        .ok()
        .and_then(|text| text.strip_prefix("ready "));
    let target = target.filter(|target| {
        let words = target.split_once(' ');
        target.len() <= TARGET_MAX
            && words.is_some_and(|(instance, token)| is_hex(instance) && is_hex(token))
    });
    let target = target.ok_or_else(wrong)?;
    Ok(Some((target.to_owned(), 2 + length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_read_when_its_frame_is_complete() {
        let frame = b"\x8b\x0bready ab cd\x81\x01x";
        for length in 0..13 {
            assert_eq!(target(&frame[..length]), Ok(None), "{length}");
        }
        assert_eq!(target(frame), Ok(Some(("ab cd".to_owned(), 13))));
        let long = [b"\x8b\x7e", &b"ready ab cd"[..]].concat();
        for wrong in [
            &b"\x81\x0bready ab cd"[..],
            b"\x8b\x09ready ab ",
            b"\x8b\x0cready ab\r\ncd",
            b"\x8b\x04done",
            b"\x8b\x00",
            &long,
        ] {
            assert!(target(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(order("ab cd"), b"\x8b\x8d\0\0\0\0handoff ab cd");
    }
}
