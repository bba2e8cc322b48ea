//! Parses chunked bodies (RFC 9112, 7.1): finds their end, and ensures that no other parser could find another one.
//!
//! Buffers nothing. Requests are parsed strictly: whatever another server might parse differently (a line feed within an
//! extension, a size without digits, a malformed trailer) is an error. Responses may have whitespace after a chunk size, which
//! some servers write and other proxies accept.

use std::io;

/// The most bytes of extensions and trailers in one body.
const EXTRA_MAX: usize = 16 * 1024;

/// The most digits of a chunk size, leading zeros included: as many as a `u64` has.
const DIGITS_MAX: u8 = 16;

/// The largest chunk size: as much as every parser can represent.
const SIZE_MAX: u64 = i64::MAX as u64;

/// Why a chunked body is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChunkError {
    #[error("a chunk size is not a hexadecimal number")]
    Size,
    #[error("a control character in a chunk extension")]
    Extension,
    #[error("a chunk or its size does not end with CR LF")]
    LineEnd,
    #[error("a trailer field is malformed")]
    Trailer,
    #[error("chunk extensions and trailers are larger than 16 KiB")]
    TooMuch,
}

impl From<ChunkError> for io::Error {
    fn from(error: ChunkError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// A part of a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    Content(&'a [u8]),
    /// One byte of the trailer section, line ends included.
    Trailer(u8),
    /// Whitespace after a chunk size, at this index of the parsed bytes.
    Padding(usize),
}

/// The state of parsing a chunked body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chunks {
    state: State,
    /// Whether whitespace is allowed after a chunk size.
    lenient: bool,
    /// The size of the current chunk as far as it was read; then the bytes of it that are still to come.
    size: u64,
    digits: u8,
    extra: usize,
    content: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Size,
    /// Whitespace after a size; in a strict parser only an extension may follow.
    BeforeExtension,
    Extension,
    SizeEnd,
    Data,
    DataReturn,
    DataEnd,
    /// The start of a trailer field, or of the empty line that ends the body.
    Trailer,
    TrailerName,
    TrailerValue,
    TrailerEnd,
    LastEnd,
    Over,
}

impl Chunks {
    /// A parser for responses, which allows whitespace after a chunk size.
    pub(crate) fn lenient() -> Self {
        Self {
            lenient: true,
            ..Self::default()
        }
    }

    /// Whether the body is over.
    pub(crate) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// The bytes of content so far.
    pub(crate) fn content(&self) -> u64 {
        self.content
    }

    /// Parses the next `bytes`, and returns how many of them belong to the body.
    ///
    /// # Errors
    ///
    /// As [`Chunks::parse_parts`].
    pub(crate) fn parse(&mut self, bytes: &[u8]) -> Result<usize, ChunkError> {
        self.parse_parts(bytes, |_| {})
    }

    /// Parses the next `bytes`, and passes their parts to `take`. Returns how many of them belong to the body: fewer than all
    /// only if the body is over.
    ///
    /// # Errors
    ///
    /// [`ChunkError`] as soon as the body is invalid; the parser may not be used any further.
    pub(crate) fn parse_parts(
        &mut self,
        bytes: &[u8],
        mut take: impl FnMut(Part<'_>),
    ) -> Result<usize, ChunkError> {
        let mut at = 0;
        while at < bytes.len() && !self.is_over() {
            if self.state == State::Data {
                let left = usize::try_from(self.size).unwrap_or(usize::MAX);
                let part = left.min(bytes.len() - at);
                take(Part::Content(&bytes[at..at + part]));
                at += part;
                self.size -= part as u64;
                self.content += part as u64;
                if self.size == 0 {
                    self.state = State::DataReturn;
                }
                continue;
            }
            let was_in_trailers = self.state == State::TrailerEnd;
            self.state = self.step(bytes[at])?;
            match self.state {
                State::TrailerName | State::TrailerValue | State::TrailerEnd => {
                    take(Part::Trailer(bytes[at]));
                }
                State::Trailer if was_in_trailers => take(Part::Trailer(bytes[at])),
                State::BeforeExtension => take(Part::Padding(at)),
                _ => {}
            }
            at += 1;
        }
        Ok(at)
    }

    /// The state after `byte`, which is not chunk data.
    fn step(&mut self, byte: u8) -> Result<State, ChunkError> {
        let state = match (self.state, byte) {
            (State::Size, digit) if digit.is_ascii_hexdigit() => self.digit(digit)?,
            (State::Size, b'\r') if self.digits > 0 => State::SizeEnd,
            (State::Size, b' ' | b'\t') if self.digits > 0 => self.extra(State::BeforeExtension)?,
            (State::Size, b';') if self.digits > 0 => self.extra(State::Extension)?,
            (State::Size, _) => return Err(ChunkError::Size),
            (State::BeforeExtension, b' ' | b'\t') => self.extra(State::BeforeExtension)?,
            (State::BeforeExtension, b';') => self.extra(State::Extension)?,
            (State::BeforeExtension, b'\r') if self.lenient => State::SizeEnd,
            (State::BeforeExtension, _) => return Err(ChunkError::Size),
            (State::Extension, b'\r') => State::SizeEnd,
            (State::Extension, byte) if is_text(byte) => self.extra(State::Extension)?,
            (State::Extension, _) => return Err(ChunkError::Extension),
            (State::SizeEnd, b'\n') => {
                self.digits = 0;
                match self.size {
                    0 => State::Trailer,
                    _ => State::Data,
                }
            }
            (State::DataReturn, b'\r') => State::DataEnd,
            (State::DataEnd, b'\n') => State::Size,
            (State::SizeEnd | State::DataReturn | State::DataEnd, _) => {
                return Err(ChunkError::LineEnd);
            }
            (State::Trailer, b'\r') => State::LastEnd,
            (State::Trailer | State::TrailerName, byte) if is_token(byte) => {
                self.extra(State::TrailerName)?
            }
            (State::TrailerName, b':') => self.extra(State::TrailerValue)?,
            (State::TrailerValue, b'\r') => State::TrailerEnd,
            (State::TrailerValue, byte) if is_text(byte) => self.extra(State::TrailerValue)?,
            (State::TrailerEnd, b'\n') => State::Trailer,
            (State::LastEnd, b'\n') => State::Over,
            (State::TrailerEnd | State::LastEnd, _) => return Err(ChunkError::LineEnd),
            (State::Trailer | State::TrailerName | State::TrailerValue, _) => {
                return Err(ChunkError::Trailer);
            }
            (state @ (State::Data | State::Over), _) => state,
        };
        Ok(state)
    }

    fn digit(&mut self, digit: u8) -> Result<State, ChunkError> {
        if self.digits == DIGITS_MAX {
            return Err(ChunkError::Size);
        }
        let value = char::from(digit).to_digit(16).ok_or(ChunkError::Size)?;
        // Fewer than 16 digits precede it, so nothing is shifted out.
        self.size = self.size << 4 | u64::from(value);
        self.digits += 1;
        match self.size <= SIZE_MAX {
            true => Ok(State::Size),
            false => Err(ChunkError::Size),
        }
    }

    /// Counts a byte of an extension or trailer.
    fn extra(&mut self, state: State) -> Result<State, ChunkError> {
        self.extra += 1;
        match self.extra <= EXTRA_MAX {
            true => Ok(state),
            false => Err(ChunkError::TooMuch),
        }
    }
}

/// Whether `byte` is valid in a header value (RFC 9110, 5.5).
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (b' '..=b'~').contains(&byte) || 0x80 <= byte
}

/// Whether `byte` is valid in a header name (RFC 9110, 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Parses `text` in pieces of `cut` bytes. Returns the length of the body, or `None` if it is incomplete.
    fn parse_in_pieces(text: &[u8], cut: usize) -> Result<Option<usize>, ChunkError> {
        let mut chunks = Chunks::default();
        let mut length = 0;
        for piece in text.chunks(cut) {
            length += chunks.parse(piece)?;
            if chunks.is_over() {
                return Ok(Some(length));
            }
        }
        Ok(None)
    }

    #[test]
    fn the_end_of_a_body_is_found_however_it_is_split() {
        let bodies = [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "A\r\n0\r\n\r\n01234\r\n00a;b=\"c\\r\"\r\n\r\n\r\n\r\n\r\n\r\n\r\n0 ;x\r\nX-Y: z\r\nZ:\r\n\r\n",
        ];
        for body in bodies {
            let text = [body, "GET / HTTP/1.1\r\n"].concat();
            for cut in 1..text.len() {
                assert_eq!(
                    parse_in_pieces(text.as_bytes(), cut),
                    Ok(Some(body.len())),
                    "{body:?} {cut}"
                );
            }
            for length in 0..body.len() {
                assert_eq!(
                    parse_in_pieces(&body.as_bytes()[..length], 3),
                    Ok(None),
                    "{body:?} {length}"
                );
            }
        }
    }

    #[test]
    fn a_body_that_another_parser_might_read_differently_is_rejected() {
        let cases = [
            ("\r\n", ChunkError::Size),
            ("x\r\n", ChunkError::Size),
            ("-1\r\n", ChunkError::Size),
            ("+1\r\n", ChunkError::Size),
            ("0x1\r\n", ChunkError::Size),
            (" 1\r\n", ChunkError::Size),
            ("1 \r\n", ChunkError::Size),
            ("1 2\r\n", ChunkError::Size),
            (";a\r\n", ChunkError::Size),
            ("1\nh", ChunkError::Size),
            ("00000000000000001", ChunkError::Size),
            ("10000000000000000", ChunkError::Size),
            ("1;a\nb", ChunkError::Extension),
            ("1;a\0", ChunkError::Extension),
            ("1;a\rb", ChunkError::LineEnd),
            ("1\rh", ChunkError::LineEnd),
            ("1\r\nhe", ChunkError::LineEnd),
            ("1\r\nh\n", ChunkError::LineEnd),
            ("1\r\nh\rx", ChunkError::LineEnd),
            ("0\r\n\n", ChunkError::Trailer),
            ("0\r\n\rx", ChunkError::LineEnd),
            ("0\r\n: y", ChunkError::Trailer),
            ("0\r\nx y", ChunkError::Trailer),
            ("0\r\nx\r", ChunkError::Trailer),
            ("0\r\n x: y", ChunkError::Trailer),
            ("0\r\nx: y\n", ChunkError::Trailer),
            ("0\r\nx: y\rz", ChunkError::LineEnd),
        ];
        for (text, error) in cases {
            assert_eq!(
                parse_in_pieces(text.as_bytes(), text.len()),
                Err(error),
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_response_may_have_whitespace_after_a_chunk_size() {
        let text = b"2 \t\r\nab\r\n0  \r\nX: y\r\n\r\n";
        assert_eq!(Chunks::default().parse(text), Err(ChunkError::Size));
        let (mut content, mut trailers, mut padding) = (Vec::new(), Vec::new(), Vec::new());
        let length = Chunks::lenient().parse_parts(text, |part| match part {
            Part::Content(part) => content.extend_from_slice(part),
            Part::Trailer(byte) => trailers.push(byte),
            Part::Padding(at) => padding.push(at),
        });
        assert_eq!(length, Ok(text.len()));
        assert_eq!(
            (&content[..], &trailers[..]),
            (&b"ab"[..], &b"X: y\r\n"[..])
        );
        assert_eq!(padding, [1, 2, 10, 11]);
    }

    #[test]
    fn extensions_and_trailers_are_bounded_over_all_chunks() {
        let chunk = format!("1;{}\r\nh\r\n", "a".repeat(1023));
        let bodies = [EXTRA_MAX / 1024, EXTRA_MAX / 1024 + 1].map(|count| chunk.repeat(count));
        assert_eq!(parse_in_pieces(bodies[0].as_bytes(), 7), Ok(None));
        assert_eq!(
            parse_in_pieces(bodies[1].as_bytes(), 7),
            Err(ChunkError::TooMuch)
        );
    }

    #[test]
    fn the_largest_chunk_size_does_not_overflow() {
        let mut chunks = Chunks::default();
        assert_eq!(chunks.parse(b"7FFFFFFFFFFFFFFF\r\nhello"), Ok(23));
        assert_eq!(chunks.size, SIZE_MAX - 5);
        let larger = Chunks::default().parse(b"8000000000000000");
        assert_eq!(larger, Err(ChunkError::Size));
    }

    proptest! {
        #[test]
        fn no_bytes_cause_a_panic_and_splits_make_no_difference(
            text in prop::collection::vec(prop::sample::select(b"01aF;x: \t\r\n\0\xe4".to_vec()), 0..60),
            cut in 1..9_usize,
        ) {
            prop_assert_eq!(parse_in_pieces(&text, cut), parse_in_pieces(&text, 60));
        }
    }
}
