//! WebSocket frames as bytes, for both ends of the bench: the load generator and its backend.
//!
//! A codec of its own, because what measures must cost less than what is measured: nothing is
//! allocated or copied here, and a client's frames carry a mask of zeros, so that their payload
//! is sent as it stands.

/// Opcode of a text frame.
pub(crate) const TEXT: u8 = 0x1;
/// Opcode of a binary frame.
pub(crate) const BINARY: u8 = 0x2;
/// Opcode of a close frame.
pub(crate) const CLOSE: u8 = 0x8;
/// Opcode of a ping.
pub(crate) const PING: u8 = 0x9;
/// Opcode of a pong.
pub(crate) const PONG: u8 = 0xA;

/// What stands at the beginning of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// A whole WebSocket frame.
    Frame(FrameHead),
    /// The beginning of one.
    Incomplete,
    /// A fragment of a message: nothing in the bench sends these.
    Fragment,
}

/// Where the parts of a WebSocket frame are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FrameHead {
    /// What kind of frame it is.
    pub(crate) opcode: u8,
    /// The mask of its payload, if it has one.
    pub(crate) mask: Option<[u8; 4]>,
    /// Where its payload begins.
    pub(crate) payload_start: usize,
    /// Where its payload, and so the frame, ends.
    pub(crate) end: usize,
}

/// Reads the head of the WebSocket frame at the beginning of `bytes`.
pub(crate) fn parse(bytes: &[u8]) -> Parsed {
    let [first, second, rest @ ..] = bytes else {
        return Parsed::Incomplete;
    };
    if first & 0x80 == 0 || first & 0x0F == 0 {
        return Parsed::Fragment;
    }
    let (payload_length, length_bytes) = match second & 0x7F {
        126 => match rest.first_chunk::<2>() {
            Some(bytes) => (usize::from(u16::from_be_bytes(*bytes)), 2),
            None => return Parsed::Incomplete,
        },
        127 => match rest.first_chunk::<8>() {
            // A length that no buffer holds stays incomplete until the reader's limit ends it.
            Some(bytes) => (
                u64::from_be_bytes(*bytes).min(u64::from(u32::MAX)) as usize,
                8,
            ),
            None => return Parsed::Incomplete,
        },
        short => (usize::from(short), 0),
    };
    let rest = &rest[length_bytes..];
    let masked = second & 0x80 != 0;
    let mask = match (masked, rest.first_chunk::<4>()) {
        (false, _) => None,
        (true, Some(mask)) => Some(*mask),
        (true, None) => return Parsed::Incomplete,
    };
    let payload_start = 2 + length_bytes + if masked { 4 } else { 0 };
    let end = payload_start + payload_length;
    if bytes.len() < end {
        return Parsed::Incomplete;
    }
    Parsed::Frame(FrameHead {
        opcode: first & 0x0F,
        mask,
        payload_start,
        end,
    })
}

/// Appends a WebSocket frame as a server sends it.
pub(crate) fn append(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    append_head(out, opcode, 0, payload.len());
    out.extend_from_slice(payload);
}

/// Appends a WebSocket frame as a client sends it, masked with zeros.
pub(crate) fn append_masked(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    append_head(out, opcode, 0x80, payload.len());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload);
}

fn append_head(out: &mut Vec<u8>, opcode: u8, mask_bit: u8, payload_length: usize) {
    out.push(0x80 | opcode);
    if payload_length < 126 {
        out.push(mask_bit | payload_length as u8);
    } else if let Ok(length) = u16::try_from(payload_length) {
        out.push(mask_bit | 126);
        out.extend_from_slice(&length.to_be_bytes());
    } else {
        out.push(mask_bit | 127);
        out.extend_from_slice(&(payload_length as u64).to_be_bytes());
    }
}

/// Undoes the mask of a payload.
pub(crate) fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    if mask != [0; 4] {
        for (byte, key) in payload.iter_mut().zip(mask.iter().cycle()) {
            *byte ^= key;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_appended_is_parsed_again_at_every_size_of_the_length() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let payload = vec![b'x'; length];
            let mut bytes = Vec::new();
            append_masked(&mut bytes, TEXT, &payload);
            let Parsed::Frame(head) = parse(&bytes) else {
                panic!("{length} is not a frame")
            };
            assert_eq!((head.opcode, head.mask), (TEXT, Some([0; 4])));
            assert_eq!(bytes[head.payload_start..head.end], payload);
            assert_eq!(head.end, bytes.len());
            assert_eq!(parse(&bytes[..bytes.len() - 1]), Parsed::Incomplete);
        }
    }

    #[test]
    fn the_beginning_of_a_head_is_incomplete() {
        let mut bytes = Vec::new();
        append_masked(&mut bytes, BINARY, &[0; 70_000]);
        for length in 0..14 {
            assert_eq!(parse(&bytes[..length]), Parsed::Incomplete);
        }
    }

    #[test]
    fn a_fragment_is_told_from_a_frame() {
        assert_eq!(parse(&[0x01, 0x00]), Parsed::Fragment);
        assert_eq!(parse(&[0x80, 0x00]), Parsed::Fragment);
    }
}
