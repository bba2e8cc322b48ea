//! Follows a body in chunks (RFC 9112, 7.1): where it ends, and that no other parser could see another end.
//!
//! Keeps nothing. A request is read strictly: whatever another server might read otherwise (a line feed within an extension, a
//! size without a digit, a trailer that is none) is an error. A response may have blanks behind a chunk size, as some servers
//! write them and other proxies accept.

use std::io;

/// The most that extensions and trailers of one body may come to, which nobody here reads.
const EXTRA_MAX: usize = 16 * 1024;

/// The digits that a size may have, zeros before it included: as many as a `u64` has.
const DIGITS_MAX: u8 = 16;

/// The largest size of a chunk: as much as every parser can count.
const SIZE_MAX: u64 = i64::MAX as u64;

/// What is not a body in chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChunkError {
    #[error("the size of a chunk is not a number in base 16")]
    Size,
    #[error("a control character in the extension of a chunk")]
    Extension,
    #[error("a chunk or its size does not end with CR LF")]
    LineEnd,
    #[error("a trailer is not a header")]
    Trailer,
    #[error("the extensions and trailers are more than 16 KiB")]
    TooMuch,
}

impl From<ChunkError> for io::Error {
    fn from(error: ChunkError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// A part of a body in chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    Content(&'a [u8]),
    /// A byte of the trailer section, line ends included.
    Trailer(u8),
    /// A blank behind a chunk size, at this index of the bytes that are followed.
    Padding(usize),
}

/// How far a body has been followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chunks {
    place: Place,
    /// Whether blanks may stand behind a chunk size.
    lenient: bool,
    /// Of the chunk whose size is being read, or how much of it is still to come.
    size: u64,
    digits: u8,
    extra: usize,
    content: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Size,
    /// Spaces behind a size, which only an extension may follow.
    BeforeExtension,
    Extension,
    SizeEnd,
    Data,
    DataReturn,
    DataEnd,
    /// Where a trailer begins, or the empty line behind the last one.
    Trailer,
    TrailerName,
    TrailerValue,
    TrailerEnd,
    LastEnd,
    Over,
}

impl Chunks {
    /// For a response: with blanks behind a chunk size.
    pub(crate) fn lenient() -> Self {
        Self {
            lenient: true,
            ..Self::default()
        }
    }

    /// Whether the body is over.
    pub(crate) fn is_over(&self) -> bool {
        self.place == Place::Over
    }

    /// How many bytes of content have come.
    pub(crate) fn content(&self) -> u64 {
        self.content
    }

    /// Follows `bytes`, which come next, and says how many of them belong to the body.
    ///
    /// # Errors
    ///
    /// As [`Chunks::follow_to`].
    pub(crate) fn follow(&mut self, bytes: &[u8]) -> Result<usize, ChunkError> {
        self.follow_to(bytes, |_| {})
    }

    /// Follows `bytes`, which come next, and gives what is in them to `take`: how many of them belong to the body. Fewer than all
    /// only if it is over.
    ///
    /// # Errors
    ///
    /// [`ChunkError`] as soon as it cannot be a body in chunks; it may not be followed any further.
    pub(crate) fn follow_to(
        &mut self,
        bytes: &[u8],
        mut take: impl FnMut(Part<'_>),
    ) -> Result<usize, ChunkError> {
        let mut at = 0;
        while at < bytes.len() && !self.is_over() {
            if self.place == Place::Data {
                let left = usize::try_from(self.size).unwrap_or(usize::MAX);
                let part = left.min(bytes.len() - at);
                take(Part::Content(&bytes[at..at + part]));
                at += part;
                self.size -= part as u64;
                self.content += part as u64;
                if self.size == 0 {
                    self.place = Place::DataReturn;
                }
                continue;
            }
            let was_in_trailers = self.place == Place::TrailerEnd;
            self.place = self.step(bytes[at])?;
            match self.place {
                Place::TrailerName | Place::TrailerValue | Place::TrailerEnd => {
                    take(Part::Trailer(bytes[at]));
                }
                Place::Trailer if was_in_trailers => take(Part::Trailer(bytes[at])),
                Place::BeforeExtension => take(Part::Padding(at)),
                _ => {}
            }
            at += 1;
        }
        Ok(at)
    }

    /// What comes behind `byte`, which is not in a chunk.
    fn step(&mut self, byte: u8) -> Result<Place, ChunkError> {
        let place = match (self.place, byte) {
            (Place::Size, digit) if digit.is_ascii_hexdigit() => self.digit(digit)?,
            (Place::Size, b'\r') if self.digits > 0 => Place::SizeEnd,
            (Place::Size, b' ' | b'\t') if self.digits > 0 => self.extra(Place::BeforeExtension)?,
            (Place::Size, b';') if self.digits > 0 => self.extra(Place::Extension)?,
            (Place::Size, _) => return Err(ChunkError::Size),
            (Place::BeforeExtension, b' ' | b'\t') => self.extra(Place::BeforeExtension)?,
            (Place::BeforeExtension, b';') => self.extra(Place::Extension)?,
            (Place::BeforeExtension, b'\r') if self.lenient => Place::SizeEnd,
            (Place::BeforeExtension, _) => return Err(ChunkError::Size),
            (Place::Extension, b'\r') => Place::SizeEnd,
            (Place::Extension, byte) if is_text(byte) => self.extra(Place::Extension)?,
            (Place::Extension, _) => return Err(ChunkError::Extension),
            (Place::SizeEnd, b'\n') => {
                self.digits = 0;
                match self.size {
                    0 => Place::Trailer,
                    _ => Place::Data,
                }
            }
            (Place::DataReturn, b'\r') => Place::DataEnd,
            (Place::DataEnd, b'\n') => Place::Size,
            (Place::SizeEnd | Place::DataReturn | Place::DataEnd, _) => {
                return Err(ChunkError::LineEnd);
            }
            (Place::Trailer, b'\r') => Place::LastEnd,
            (Place::Trailer | Place::TrailerName, byte) if is_token(byte) => {
                self.extra(Place::TrailerName)?
            }
            (Place::TrailerName, b':') => self.extra(Place::TrailerValue)?,
            (Place::TrailerValue, b'\r') => Place::TrailerEnd,
            (Place::TrailerValue, byte) if is_text(byte) => self.extra(Place::TrailerValue)?,
            (Place::TrailerEnd, b'\n') => Place::Trailer,
            (Place::LastEnd, b'\n') => Place::Over,
            (Place::TrailerEnd | Place::LastEnd, _) => return Err(ChunkError::LineEnd),
            (Place::Trailer | Place::TrailerName | Place::TrailerValue, _) => {
                return Err(ChunkError::Trailer);
            }
            (place @ (Place::Data | Place::Over), _) => place,
        };
        Ok(place)
    }

    fn digit(&mut self, digit: u8) -> Result<Place, ChunkError> {
        if self.digits == DIGITS_MAX {
            return Err(ChunkError::Size);
        }
        let value = char::from(digit).to_digit(16).ok_or(ChunkError::Size)?;
        // Fewer than 16 digits stand before it, or it would not have come to this.
        self.size = self.size << 4 | u64::from(value);
        self.digits += 1;
        match self.size <= SIZE_MAX {
            true => Ok(Place::Size),
            false => Err(ChunkError::Size),
        }
    }

    /// Counts a byte that nobody reads.
    fn extra(&mut self, place: Place) -> Result<Place, ChunkError> {
        self.extra += 1;
        match self.extra <= EXTRA_MAX {
            true => Ok(place),
            false => Err(ChunkError::TooMuch),
        }
    }
}

/// What may stand in the value of a header (RFC 9110, 5.5).
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (b' '..=b'~').contains(&byte) || 0x80 <= byte
}

/// What may stand in its name (RFC 9110, 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Follows `text` in pieces of `cut` bytes: how much of it is the body, or that it is not over.
    fn follow(text: &[u8], cut: usize) -> Result<Option<usize>, ChunkError> {
        let mut chunks = Chunks::default();
        let mut length = 0;
        for piece in text.chunks(cut) {
            length += chunks.follow(piece)?;
            if chunks.is_over() {
                return Ok(Some(length));
            }
        }
        Ok(None)
    }

    #[test]
    fn the_end_is_found_wherever_it_is_cut() {
        let bodies = [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "A\r\n0\r\n\r\n01234\r\n00a;b=\"c\\r\"\r\n\r\n\r\n\r\n\r\n\r\n\r\n0 ;x\r\nX-Y: z\r\nZ:\r\n\r\n",
        ];
        for body in bodies {
            let text = [body, "GET / HTTP/1.1\r\n"].concat();
            for cut in 1..text.len() {
                assert_eq!(
                    follow(text.as_bytes(), cut),
                    Ok(Some(body.len())),
                    "{body:?} {cut}"
                );
            }
            for length in 0..body.len() {
                assert_eq!(
                    follow(&body.as_bytes()[..length], 3),
                    Ok(None),
                    "{body:?} {length}"
                );
            }
        }
    }

    #[test]
    fn what_another_reader_might_read_otherwise_is_refused() {
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
            assert_eq!(follow(text.as_bytes(), text.len()), Err(error), "{text:?}");
        }
    }

    #[test]
    fn a_response_may_have_blanks_behind_a_chunk_size() {
        let text = b"2 \t\r\nab\r\n0  \r\nX: y\r\n\r\n";
        assert_eq!(Chunks::default().follow(text), Err(ChunkError::Size));
        let (mut content, mut trailers, mut padding) = (Vec::new(), Vec::new(), Vec::new());
        let followed = Chunks::lenient().follow_to(text, |part| match part {
            Part::Content(part) => content.extend_from_slice(part),
            Part::Trailer(byte) => trailers.push(byte),
            Part::Padding(at) => padding.push(at),
        });
        assert_eq!(followed, Ok(text.len()));
        assert_eq!(
            (&content[..], &trailers[..]),
            (&b"ab"[..], &b"X: y\r\n"[..])
        );
        assert_eq!(padding, [1, 2, 10, 11]);
    }

    #[test]
    fn what_nobody_reads_is_limited_over_all_chunks() {
        let chunk = format!("1;{}\r\nh\r\n", "a".repeat(1023));
        let bodies = [EXTRA_MAX / 1024, EXTRA_MAX / 1024 + 1].map(|count| chunk.repeat(count));
        assert_eq!(follow(bodies[0].as_bytes(), 7), Ok(None));
        assert_eq!(follow(bodies[1].as_bytes(), 7), Err(ChunkError::TooMuch));
    }

    #[test]
    fn the_largest_size_there_is_does_not_overflow() {
        let mut chunks = Chunks::default();
        assert_eq!(chunks.follow(b"7FFFFFFFFFFFFFFF\r\nhello"), Ok(23));
        assert_eq!(chunks.size, SIZE_MAX - 5);
        let larger = Chunks::default().follow(b"8000000000000000");
        assert_eq!(larger, Err(ChunkError::Size));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_cuts_make_no_difference(
            text in prop::collection::vec(prop::sample::select(b"01aF;x: \t\r\n\0\xe4".to_vec()), 0..60),
            cut in 1..9_usize,
        ) {
            prop_assert_eq!(follow(&text, cut), follow(&text, 60));
        }
    }
}
