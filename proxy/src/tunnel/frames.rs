//! Tracks WebSocket frame boundaries in one direction of a tunnel.
//!
//! Parses frame headers only: no payload is copied, unmasked or checked, except the status code of a Close frame. The state
//! fits in 32 bytes, because every idle tunnel holds two.

/// The first byte of a Close frame: FIN and opcode 8.
const CLOSE: u8 = 0x88;
const OPCODE_CLOSE: u8 = 8;
const FIN: u8 = 0x80;
/// The bit of an opcode that makes the frame a control frame.
const CONTROL: u8 = 0x08;
const HEADER_MAX: usize = 14;

/// The parser of one direction.
///
/// Invariant: `header[..have]` is the part of the current frame header seen so far, and `left` is zero while it is incomplete.
#[derive(Clone, Debug, Default)]
pub(crate) struct Frames {
    header: [u8; HEADER_MAX],
    have: u8,
    /// Whether the last data frame was not the last of its message.
    fragmented: bool,
    close: CloseSeen,
    left: u64,
}

/// How much of a Close frame has passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum CloseSeen {
    #[default]
    No,
    /// Its header, and so far no byte of the code.
    Header,
    /// The first byte of the code.
    Half(u8),
    /// The code; 1005 stands for a frame without one, as in RFC 6455 7.4.1.
    Code(u16),
}

/// The length of [`FramesState`].
pub(crate) const FRAMES_STATE: usize = HEADER_MAX + 13;

/// A parser as bytes: the header, how much of it was read, whether a message is fragmented, the Close frame as a kind and a number of
/// two bytes, and what is left of the payload.
pub(crate) type FramesState = [u8; FRAMES_STATE];

impl Frames {
    /// The parser as bytes, for another process.
    pub(super) fn state(&self) -> FramesState {
        let (kind, number) = match self.close {
            CloseSeen::No => (0, 0),
            CloseSeen::Header => (1, 0),
            CloseSeen::Half(first) => (2, first.into()),
            CloseSeen::Code(code) => (3, code),
        };
        let [high, low] = u16::to_be_bytes(number);
        let mut state = [0; FRAMES_STATE];
        let (header, rest) = state.split_at_mut(HEADER_MAX);
        header.copy_from_slice(&self.header);
        rest[..5].copy_from_slice(&[self.have, self.fragmented.into(), kind, high, low]);
        rest[5..].copy_from_slice(&self.left.to_be_bytes());
        state
    }

    /// The parser with this state; `None` if it breaks the invariant.
    pub(super) fn from_state(state: &FramesState) -> Option<Self> {
        let (header, rest) = state.split_first_chunk::<HEADER_MAX>()?;
        let (&[have, fragmented, kind, high, low], left) = rest.split_first_chunk()?;
        let frames = Self {
            header: *header,
            have,
            fragmented: fragmented != 0,
            close: match kind {
                0 => CloseSeen::No,
                1 => CloseSeen::Header,
                2 => CloseSeen::Half(low),
                3 => CloseSeen::Code(u16::from_be_bytes([high, low])),
                _ => return None,
            },
            left: u64::from_be_bytes(left.try_into().ok()?),
        };
        if HEADER_MAX < usize::from(have) {
            return None;
        }
        let is_possible = match frames.payload() {
            Some(payload) => 0 < frames.left && frames.left <= payload,
            None => frames.left == 0,
        };
        is_possible.then_some(frames)
    }

    /// Whether the next byte would begin a frame.
    pub(crate) fn at_boundary(&self) -> bool {
        self.have == 0 && self.left == 0
    }

    /// Whether the next byte would begin a message or a control frame.
    pub(crate) fn at_message_boundary(&self) -> bool {
        self.at_boundary() && !self.fragmented
    }

    /// Where in the next bytes a frame begins whose first byte is `first_byte`.
    pub(crate) fn find(&self, data: &[u8], first_byte: u8) -> Option<usize> {
        if !data.contains(&first_byte) {
            return None;
        }
        let mut frames = self.clone();
        let mut at = 0;
        while at < data.len() {
            if frames.at_boundary() && data[at] == first_byte {
                return Some(at);
            }
            at += frames.step(&data[at..]);
        }
        None
    }

    /// Whether a Close frame has begun: nothing may follow it in this direction.
    pub(crate) fn close_seen(&self) -> bool {
        self.close != CloseSeen::No
    }

    /// The code of the Close frame, if one has passed.
    pub(crate) fn close_code(&self) -> Option<u16> {
        match self.close {
            CloseSeen::Code(code) => Some(code),
            CloseSeen::No | CloseSeen::Header | CloseSeen::Half(_) => None,
        }
    }

    /// Parses all of `data`.
    pub(crate) fn pass(&mut self, data: &[u8]) {
        let mut at = 0;
        while at < data.len() {
            let rest = &data[at..];
            at += match self.at_boundary().then(|| whole_frame(rest)).flatten() {
                Some(length) => {
                    self.note_fragment(rest[0]);
                    length
                }
                None => self.step(rest),
            };
        }
    }

    /// Parses `data` up to the first boundary in it, and returns how many bytes that is.
    pub(crate) fn pass_to_boundary(&mut self, data: &[u8]) -> usize {
        let mut at = 0;
        while at < data.len() && (at == 0 || !self.at_boundary()) {
            at += self.step(&data[at..]);
        }
        at
    }

    /// Parses `data` up to the first message boundary in it, and returns how many bytes that is.
    pub(crate) fn pass_to_message_boundary(&mut self, data: &[u8]) -> usize {
        let mut at = 0;
        while at < data.len() && !self.at_message_boundary() {
            at += self.step(&data[at..]);
        }
        at
    }

    fn note_fragment(&mut self, first: u8) {
        // Control frames may stand between the fragments of a message.
        if first & CONTROL == 0 {
            self.fragmented = first & FIN == 0;
        }
    }

    /// Consumes payload, or one byte of a header. `data` is not empty.
    fn step(&mut self, data: &[u8]) -> usize {
        if self.left > 0 {
            let taken = usize::try_from(self.left).map_or(data.len(), |left| left.min(data.len()));
            self.note_close_code(&data[..taken]);
            self.left -= taken as u64;
            if self.left == 0 {
                self.have = 0;
            }
            return taken;
        }
        self.header[usize::from(self.have)] = data[0];
        self.have += 1;
        if let Some(payload) = self.payload() {
            self.left = payload;
            self.note_fragment(self.header[0]);
            if self.header[0] & 0x0f == OPCODE_CLOSE {
                self.close = if payload < 2 {
                    CloseSeen::Code(1005)
                } else {
                    CloseSeen::Header
                };
            }
            if payload == 0 {
                self.have = 0;
            }
        }
        1
    }

    /// The length of the payload, once the header is complete.
    fn payload(&self) -> Option<u64> {
        let have = usize::from(self.have);
        if have < 2 {
            return None;
        }
        let extended = self.extended();
        if have < 2 + extended + self.mask() {
            return None;
        }
        Some(match extended {
            0 => u64::from(self.header[1] & 0x7f),
            _ => self.header[2..2 + extended]
                .iter()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        })
    }

    fn extended(&self) -> usize {
        match self.header[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        }
    }

    fn mask(&self) -> usize {
        if self.header[1] & 0x80 == 0 { 0 } else { 4 }
    }

    /// Reads the code from the first two payload bytes of a Close frame, which may arrive separately.
    fn note_close_code(&mut self, payload: &[u8]) {
        let key_at = 2 + self.extended();
        let key = |index: usize| {
            if self.mask() == 0 {
                0
            } else {
                self.header[key_at + index]
            }
        };
        self.close = match (self.close, payload) {
            (CloseSeen::Header, [first, second, ..]) => {
                CloseSeen::Code(u16::from_be_bytes([first ^ key(0), second ^ key(1)]))
            }
            (CloseSeen::Header, [first]) => CloseSeen::Half(first ^ key(0)),
            (CloseSeen::Half(first), [second, ..]) => {
                CloseSeen::Code(u16::from_be_bytes([first, second ^ key(1)]))
            }
            (seen, _) => seen,
        };
    }
}

/// The length of the frame at the start of `data`, if it is complete, not a Close frame, and has a short header. A fast path:
/// this is true of most data, and needs no state.
fn whole_frame(data: &[u8]) -> Option<usize> {
    let &[first, second, ..] = data else {
        return None;
    };
    let payload = usize::from(second & 0x7f);
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    let length = 2 + mask + payload;
    let is_short = payload < 126 && first & 0x0f != OPCODE_CLOSE;
    (is_short && length <= data.len()).then_some(length)
}

/// A Close frame as a server sends it.
pub(crate) fn close_to_client(code: u16) -> [u8; 4] {
    let [high, low] = code.to_be_bytes();
    [CLOSE, 2, high, low]
}

/// A Close frame as a client sends it: masked with a random key (RFC 6455 5.3).
pub(crate) fn close_to_backend(code: u16) -> [u8; 8] {
    let [high, low] = code.to_be_bytes();
    let key: [u8; 4] = fastrand::u32(..).to_ne_bytes();
    [
        CLOSE,
        0x80 | 2,
        key[0],
        key[1],
        key[2],
        key[3],
        high ^ key[0],
        low ^ key[1],
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(opcode: u8, payload: &[u8], key: Option<[u8; 4]>) -> Vec<u8> {
        let mut bytes = vec![0x80 | opcode];
        let masked = if key.is_some() { 0x80 } else { 0 };
        match payload.len() {
            short @ 0..126 => bytes.push(masked | u8::try_from(short).unwrap()),
            long @ 126..65536 => {
                bytes.push(masked | 126);
                bytes.extend_from_slice(&u16::try_from(long).unwrap().to_be_bytes());
            }
            huge => {
                bytes.push(masked | 127);
                bytes.extend_from_slice(&(huge as u64).to_be_bytes());
            }
        }
        bytes.extend_from_slice(key.as_ref().map_or(&[], |key| key.as_slice()));
        bytes.extend(
            payload
                .iter()
                .enumerate()
                .map(|(at, byte)| byte ^ key.map_or(0, |key| key[at % 4])),
        );
        bytes
    }

    #[test]
    fn there_is_a_boundary_after_each_frame_and_nowhere_else() {
        for (length, key) in [
            (0, None),
            (1, Some([1, 2, 3, 4])),
            (125, None),
            (126, Some([9; 4])),
            (65535, None),
            (65536, Some([7; 4])),
        ] {
            let bytes = frame(2, &vec![0x81; length], key);
            let mut frames = Frames::default();
            for (at, byte) in bytes.iter().enumerate() {
                assert_eq!(frames.at_boundary(), at == 0, "length {length}, byte {at}");
                frames.pass(&[*byte]);
            }
            assert!(frames.at_boundary());
            assert!(!frames.close_seen());
        }
    }

    #[test]
    fn passing_to_a_boundary_stops_at_the_end_of_the_current_frame() {
        let (first, second) = (frame(1, b"hello", None), frame(1, b"world", None));
        let both = [first.clone(), second].concat();
        let mut frames = Frames::default();
        frames.pass(&both[..3]);
        assert_eq!(frames.pass_to_boundary(&both[3..]), first.len() - 3);
        assert!(frames.at_boundary());
    }

    #[test]
    fn the_close_code_is_read_masked_or_not_at_once_or_byte_by_byte() {
        for (bytes, code) in [
            (close_to_client(1012).to_vec(), 1012),
            (close_to_backend(1001).to_vec(), 1001),
            (frame(8, b"", None), 1005),
            (frame(8, b"\x0f\xa0bye", Some([1, 2, 3, 4])), 4000),
        ] {
            let (mut whole, mut bytewise) = (Frames::default(), Frames::default());
            whole.pass(&bytes);
            bytes.chunks(1).for_each(|byte| bytewise.pass(byte));
            assert_eq!(whole.close_code(), Some(code));
            assert_eq!(bytewise.close_code(), Some(code));
            assert!(whole.at_boundary() && bytewise.at_boundary());
        }
    }

    #[test]
    fn the_largest_payload_length_does_not_overflow() {
        let mut frames = Frames::default();
        frames.pass(&[
            0x82, 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3,
        ]);
        assert!(!frames.at_boundary());
    }

    proptest! {
        #[test]
        fn a_parser_continues_from_its_state_and_from_no_impossible_one(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0..200_usize, other in any::<[u8; FRAMES_STATE]>()) {
            let mut whole = Frames::default();
            whole.pass(&bytes);
            let (before, behind) = bytes.split_at(cut.min(bytes.len()));
            let mut first = Frames::default();
            first.pass(before);
            let mut second = Frames::from_state(&first.state()).unwrap();
            second.pass(behind);
            // Of the header only what belongs to a frame that is not complete.
            let rest = |frames: &Frames| frames.state()[HEADER_MAX..].to_vec();
            prop_assert_eq!(rest(&whole), rest(&second));
            let have = usize::from(whole.have);
            prop_assert_eq!(&whole.header[..have], &second.header[..have]);
            if let Some(mut other) = Frames::from_state(&other) {
                other.pass(&bytes);
            }
        }

        #[test]
        fn any_split_of_any_bytes_leads_to_the_same_state(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0..200_usize) {
            let (mut whole, mut split, mut bytewise) = (Frames::default(), Frames::default(), Frames::default());
            whole.pass(&bytes);
            let cut = cut.min(bytes.len());
            split.pass(&bytes[..cut]);
            split.pass(&bytes[cut..]);
            // Never a whole frame at once.
            bytes.chunks(1).for_each(|byte| bytewise.pass(byte));
            for other in [split, bytewise] {
                prop_assert_eq!(whole.at_boundary(), other.at_boundary());
                prop_assert_eq!(whole.close_code(), other.close_code());
                prop_assert_eq!(whole.left, other.left);
            }
        }
    }
}
