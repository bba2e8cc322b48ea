//! Follows the frame headers of what a client sends.
//!
//! tungstenite does not say whether its buffer is empty. Without this, its context could not be dropped
//! between two messages without the fear of losing bytes.

/// The longest header: two bytes, eight of length, four of mask.
const HEADER_BYTES_MAX: usize = 14;

const FIN: u8 = 0x80;
const CONTROL: u8 = 0x08;
const MASKED: u8 = 0x80;

/// Where in the stream of a client's frames the bytes read so far end.
///
/// It judges nothing: bytes that are no valid frames leave it somewhere, and tungstenite refuses them.
///
/// Invariant: `header_len` bytes of `header` are read, fewer than the header in them asks for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scan {
    header: [u8; HEADER_BYTES_MAX],
    header_len: u8,
    fragmented: bool,
    payload_left: u64,
}

impl Scan {
    /// Takes the next bytes of the stream.
    pub(crate) fn advance(&mut self, mut bytes: &[u8]) {
        while let Some((&first, rest)) = bytes.split_first() {
            if 0 < self.payload_left {
                let skipped = self.payload_left.min(bytes.len() as u64);
                self.payload_left -= skipped;
                bytes = &bytes[skipped as usize..];
            } else {
                self.header[usize::from(self.header_len)] = first;
                self.header_len += 1;
                bytes = rest;
                self.end_header();
            }
        }
    }

    /// Where in the next bytes of the stream a frame begins whose first byte is `first_byte`.
    pub(crate) fn find(&self, bytes: &[u8], first_byte: u8) -> Option<usize> {
        let mut scan = self.clone();
        let mut at = 0;
        while at < bytes.len() {
            let is_frame_begin = scan.header_len == 0 && scan.payload_left == 0;
            if is_frame_begin && bytes[at] == first_byte {
                return Some(at);
            }
            // Within a payload to its end, within a header byte by byte.
            let step = usize::try_from(scan.payload_left).unwrap_or(usize::MAX);
            let step = step.clamp(1, bytes.len() - at);
            scan.advance(&bytes[at..at + step]);
            at += step;
        }
        None
    }

    /// Whether no frame and no fragmented message is unfinished.
    pub(crate) fn is_between_messages(&self) -> bool {
        self.header_len == 0 && self.payload_left == 0 && !self.fragmented
    }

    fn end_header(&mut self) {
        if self.header_len < 2 {
            return;
        }
        let [first, second, length @ ..] = &self.header;
        let length_len = match second & !MASKED {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask_len = if second & MASKED == 0 { 0 } else { 4 };
        if usize::from(self.header_len) < 2 + length_len + mask_len {
            return;
        }
        self.payload_left = match length_len {
            0 => u64::from(second & !MASKED),
            _ => length[..length_len]
                .iter()
                .fold(0, |sum, &byte| sum << 8 | u64::from(byte)),
        };
        // Control frames may stand between the fragments of a message.
        if first & CONTROL == 0 {
            self.fragmented = first & FIN == 0;
        }
        self.header_len = 0;
    }
}
