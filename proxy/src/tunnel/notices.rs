//! The control frames of a handoff in what a backend sends: taken out, never forwarded.

/// The first byte of such a frame: FIN and opcode 0xB.
pub(super) const FIRST_BYTE: u8 = 0x8b;

/// The longest payload of a control frame, and a header of two bytes.
pub(super) const FRAME_MAX: usize = 2 + 125;

/// What a backend tells the edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// It drains: this client should be handed off.
    Leaving,
    /// The client stays.
    Kept,
    /// The client is at the other node now.
    Done,
}

/// The control frames of a backend, taken out of what it sends.
#[derive(Default)]
pub(super) struct Notices {
    /// The beginning of an incomplete one.
    held: Vec<u8>,
    found: Vec<Notice>,
}

impl Notices {
    /// Whether bytes of an incomplete frame are held.
    pub(super) fn is_within(&self) -> bool {
        !self.held.is_empty()
    }

    /// Whether the backend has sent its last frame.
    pub(super) fn is_done(&self) -> bool {
        self.found.contains(&Notice::Done)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty() && self.found.is_empty()
    }

    pub(super) fn take(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.found)
    }

    /// Takes bytes from the beginning of such a frame on. Returns those behind it, which are none of it.
    pub(super) fn put<'a>(&mut self, data: &'a [u8]) -> &'a [u8] {
        let before = self.held.len();
        let taken = data.len().min(FRAME_MAX - before);
        self.held.extend_from_slice(&data[..taken]);
        let Some(length) = self.held.get(1).map(|length| usize::from(length & 0x7f)) else {
            return &data[taken..];
        };
        let end = (2 + length).min(FRAME_MAX);
        if self.held.len() < end {
            return &data[taken..];
        }
        let frame = std::mem::take(&mut self.held);
        self.found.extend(notice(&frame[2..end]));
        &data[end - before..]
    }
}

/// One of a later version is ignored.
fn notice(payload: &[u8]) -> Option<Notice> {
    match payload {
        b"leaving" => Some(Notice::Leaving),
        b"done" => Some(Notice::Done),
        _ if payload.starts_with(b"kept") => Some(Notice::Kept),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_is_read_at_once_or_byte_by_byte_and_what_is_behind_it_is_left() {
        let frames = b"\x8b\x07leaving\x81\x01x";
        let mut notices = Notices::default();
        assert_eq!(notices.put(frames), b"\x81\x01x");
        assert_eq!(notices.take(), [Notice::Leaving]);
        for byte in &frames[..9] {
            assert_eq!(notices.put(&[*byte]), b"");
        }
        assert!(!notices.is_within());
        assert_eq!(notices.take(), [Notice::Leaving]);
        assert_eq!(
            notices.put(b"\x8b\x04done\x8b\x0bkept reason"),
            b"\x8b\x0bkept reason"
        );
        assert!(notices.is_done());
        assert_eq!(notices.put(b"\x8b\x0bkept reason"), b"");
        assert_eq!(notices.put(b"\x8b\x05later"), b"");
        assert_eq!(notices.put(b"\x8b\x00"), b"");
        assert_eq!(notices.take(), [Notice::Done, Notice::Kept]);
    }

    #[test]
    fn a_frame_that_is_too_long_takes_no_more_memory() {
        let mut notices = Notices::default();
        let mut rest = &[0xff; 1 << 16][..];
        let mut frame = vec![FIRST_BYTE, 0x7f];
        frame.extend_from_slice(rest);
        rest = notices.put(&frame);
        assert!(!notices.is_within());
        assert_eq!(rest.len(), frame.len() - FRAME_MAX);
    }
}
