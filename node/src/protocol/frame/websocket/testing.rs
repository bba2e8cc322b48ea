//! Frames for tests: as a client sends them, and taken apart as a client reads them.

use bytes::Bytes;

/// A frame as a client sends it: `first` is FIN, RSV and opcode.
pub(crate) fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x11, 0x22, 0x33, 0x44];
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..126 => frame.push(0x80 | len as u8),
        len @ 126..65536 => {
            frame.push(0x80 | 126);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(0x80 | 127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(
        payload
            .iter()
            .zip(MASK.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    frame
}

/// A text message as a client sends it.
pub(crate) fn masked_text(text: &str) -> Vec<u8> {
    masked(0x81, text.as_bytes())
}

/// A close frame as a client sends it.
pub(crate) fn masked_close(code: u16) -> Vec<u8> {
    masked(0x88, &code.to_be_bytes())
}

/// Takes a server's frames apart: first byte and payload of each. Panics if the last one is cut.
pub(crate) fn split(mut frames: Bytes) -> Vec<(u8, Bytes)> {
    let mut found = Vec::new();
    while !frames.is_empty() {
        let mut frame = frames.split_to(super::frame_len(&frames));
        let header = match frame[1] {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        let first = frame[0];
        found.push((first, frame.split_off(header)));
    }
    found
}
