//! The body of an answer on its way to the client.
//!
//! It goes out as it came, chunk by chunk: to a client that reads a stream so, each chunk is a message. Only a body that ends with
//! its connection is put into chunks, so that the client's connection need not end too.

use std::io::Write;

use crate::carrier::ChunkError;
use crate::http1::Framing;

/// How far a body has come.
#[derive(Debug)]
pub(super) struct Body {
    framing: Framing,
    /// Of a body that ends with its connection: whether it has.
    is_closed: bool,
    /// Bytes of content that have come, of a body that is not in chunks.
    content: u64,
}

/// What goes to the client of what has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// This, which is less than what has come where that is more than the body.
    AsItIs(&'a [u8]),
    /// A chunk of it.
    Wrapped(Vec<u8>),
}

impl Piece<'_> {
    /// Whether more than the body has come.
    pub(super) fn is_part_of(&self, come: &[u8]) -> bool {
        matches!(self, Self::AsItIs(part) if part.len() < come.len())
    }
}

impl AsRef<[u8]> for Piece<'_> {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::AsItIs(part) => part,
            Self::Wrapped(chunk) => chunk,
        }
    }
}

impl Body {
    pub(super) fn new(framing: Framing) -> Self {
        Self {
            framing,
            is_closed: false,
            content: 0,
        }
    }

    /// Whether it is put into chunks here, since its connection ends with it.
    pub(super) fn is_wrapped(&self) -> bool {
        self.framing == Framing::UntilClose
    }

    /// Whether all of it has come.
    pub(super) fn is_over(&self) -> bool {
        match &self.framing {
            Framing::Bytes(left) => *left == 0,
            Framing::Chunks(chunks) => chunks.is_over(),
            Framing::UntilClose => self.is_closed,
        }
    }

    /// How many bytes of content have come.
    pub(super) fn content(&self) -> u64 {
        match &self.framing {
            Framing::Chunks(chunks) => chunks.content(),
            Framing::Bytes(_) | Framing::UntilClose => self.content,
        }
    }

    /// What becomes of the bytes that have come. None at all, of a body that ends with its connection, is its end.
    ///
    /// # Errors
    ///
    /// [`ChunkError`] if they are not the chunks that they were to be.
    pub(super) fn take<'a>(&mut self, come: &'a [u8]) -> Result<Piece<'a>, ChunkError> {
        let part = match &mut self.framing {
            Framing::Bytes(left) => {
                let most = usize::try_from(*left).unwrap_or(usize::MAX);
                let part = come.len().min(most);
                *left -= part as u64;
                part
            }
            Framing::Chunks(chunks) => chunks.follow(come)?,
            Framing::UntilClose => {
                self.is_closed = come.is_empty();
                self.content += come.len() as u64;
                return Ok(Piece::Wrapped(wrapped(come)));
            }
        };
        self.content += part as u64;
        Ok(Piece::AsItIs(&come[..part]))
    }
}

/// `content` as a chunk; the last one if it is empty.
fn wrapped(content: &[u8]) -> Vec<u8> {
    let mut chunk = Vec::with_capacity(content.len() + 12);
    // Writing to a vector does not fail.
    let _ = write!(chunk, "{:X}\r\n", content.len());
    chunk.extend_from_slice(content);
    chunk.extend_from_slice(b"\r\n");
    chunk
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::carrier::Chunks;

    #[test]
    fn a_body_of_a_length_ends_with_it() {
        let mut body = Body::new(Framing::Bytes(5));
        assert_eq!(body.take(b"abc"), Ok(Piece::AsItIs(b"abc")));
        assert!(!body.is_over());
        assert_eq!(body.take(b"defg"), Ok(Piece::AsItIs(b"de")));
        assert!(body.is_over());
        assert_eq!(body.content(), 5);
    }

    #[test]
    fn chunks_go_out_as_they_came() {
        let mut body = Body::new(Framing::Chunks(Chunks::default()));
        assert_eq!(body.take(b"2\r\nab\r"), Ok(Piece::AsItIs(b"2\r\nab\r")));
        assert_eq!(
            body.take(b"\n0\r\n\r\nx"),
            Ok(Piece::AsItIs(b"\n0\r\n\r\n"))
        );
        assert!(body.is_over());
        assert_eq!(body.content(), 2);
        let mut wrong = Body::new(Framing::Chunks(Chunks::default()));
        assert_eq!(wrong.take(b"x"), Err(ChunkError::Size));
    }

    #[test]
    fn a_body_that_ends_with_its_connection_is_put_into_chunks() {
        let mut body = Body::new(Framing::UntilClose);
        assert_eq!(
            body.take(&[b'x'; 17]),
            Ok(Piece::Wrapped(b"11\r\nxxxxxxxxxxxxxxxxx\r\n".to_vec()))
        );
        assert!(body.is_wrapped() && !body.is_over());
        assert_eq!(body.take(b""), Ok(Piece::Wrapped(b"0\r\n\r\n".to_vec())));
        assert!(body.is_over());
        assert_eq!(body.content(), 17);
    }
}
