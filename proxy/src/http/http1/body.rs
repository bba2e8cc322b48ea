//! Forwards a response body to the client.
//!
//! An HTTP/1.1 client gets the body as the backend sent it, chunk by chunk: some clients treat each chunk as a message. Only a
//! body that ends with its connection is converted to chunks, so that the client's connection can stay open. Other clients
//! (HTTP/1.0, HTTP/2) get the content without chunks.

use std::borrow::Cow;
use std::io::Write;

use http::HeaderMap;

use crate::http::http1::chunks::Part;
use crate::http::http1::trailers::parse_trailers;
use crate::http::http1::{ChunkError, Framing};

/// The state of a response body.
#[derive(Debug)]
pub(crate) struct ResponseBody {
    framing: Framing,
    /// For a body that ends with its connection: whether that has ended.
    is_closed: bool,
    /// The bytes of content so far, if the body is not chunked.
    content: u64,
    /// The trailer section, if only the content is forwarded.
    trailers: Vec<u8>,
}

/// What to send to the client for some bytes of the backend.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece<'a> {
    pub(crate) bytes: Cow<'a, [u8]>,
    /// Whether there were bytes after the end of the body.
    pub(crate) has_surplus: bool,
}

impl ResponseBody {
    pub(crate) fn new(framing: Framing) -> Self {
        Self {
            framing,
            is_closed: false,
            content: 0,
            trailers: Vec::new(),
        }
    }

    /// Whether only the end of its connection ends it.
    pub(crate) fn ends_with_connection(&self) -> bool {
        self.framing == Framing::UntilClose
    }

    /// Whether its length is known in advance.
    pub(crate) fn has_length(&self) -> bool {
        matches!(self.framing, Framing::Bytes(_))
    }

    /// Whether it is complete.
    pub(crate) fn is_over(&self) -> bool {
        match &self.framing {
            Framing::Bytes(left) => *left == 0,
            Framing::Chunks(chunks) => chunks.is_over(),
            Framing::UntilClose => self.is_closed,
        }
    }

    /// The bytes of content so far.
    pub(crate) fn content(&self) -> u64 {
        match &self.framing {
            Framing::Chunks(chunks) => chunks.content(),
            Framing::Bytes(_) | Framing::UntilClose => self.content,
        }
    }

    /// The trailers of a complete body, if only its content was taken.
    pub(crate) fn take_trailers(&mut self) -> Option<HeaderMap> {
        let lines = std::mem::take(&mut self.trailers);
        let fields = parse_trailers(&lines);
        (!fields.is_empty()).then_some(fields)
    }

    /// What an HTTP/1.1 client gets for the next `bytes`. For a body that ends with its connection, an empty slice is the end.
    ///
    /// # Errors
    ///
    /// [`ChunkError`] if a chunked body is invalid.
    pub(crate) fn take<'a>(&mut self, bytes: &'a [u8]) -> Result<Piece<'a>, ChunkError> {
        match &mut self.framing {
            Framing::Bytes(_) => Ok(self.take_length(bytes)),
            Framing::Chunks(chunks) => {
                let mut padding = Vec::new();
                let length = chunks.parse_parts(bytes, |part| {
                    if let Part::Padding(at) = part {
                        padding.push(at);
                    }
                })?;
                Ok(Piece {
                    bytes: without(&bytes[..length], &padding),
                    has_surplus: length < bytes.len(),
                })
            }
            Framing::UntilClose => {
                self.is_closed = bytes.is_empty();
                self.content += bytes.len() as u64;
                Ok(Piece {
                    bytes: in_chunk(bytes).into(),
                    has_surplus: false,
                })
            }
        }
    }

    /// The content in the next `bytes`. For a body that ends with its connection, an empty slice is the end.
    ///
    /// # Errors
    ///
    /// [`ChunkError`] if a chunked body is invalid.
    pub(crate) fn take_content<'a>(&mut self, bytes: &'a [u8]) -> Result<Piece<'a>, ChunkError> {
        match &mut self.framing {
            Framing::Bytes(_) => Ok(self.take_length(bytes)),
            Framing::Chunks(chunks) => {
                let (mut content, trailers) = (Vec::with_capacity(bytes.len()), &mut self.trailers);
                let length = chunks.parse_parts(bytes, |part| match part {
                    Part::Content(part) => content.extend_from_slice(part),
                    Part::Trailer(byte) => trailers.push(byte),
                    Part::Padding(_) => {}
                })?;
                Ok(Piece {
                    bytes: content.into(),
                    has_surplus: length < bytes.len(),
                })
            }
            Framing::UntilClose => {
                self.is_closed = bytes.is_empty();
                self.content += bytes.len() as u64;
                Ok(Piece {
                    bytes: bytes.into(),
                    has_surplus: false,
                })
            }
        }
    }

    fn take_length<'a>(&mut self, bytes: &'a [u8]) -> Piece<'a> {
        let Framing::Bytes(left) = &mut self.framing else {
            unreachable!("called only for a body of known length");
        };
        let most = usize::try_from(*left).unwrap_or(usize::MAX);
        let length = bytes.len().min(most);
        *left -= length as u64;
        self.content += length as u64;
        Piece {
            bytes: bytes[..length].into(),
            has_surplus: length < bytes.len(),
        }
    }
}

/// `bytes` without those at the indices `left_out`, which are sorted.
fn without<'a>(bytes: &'a [u8], left_out: &[usize]) -> Cow<'a, [u8]> {
    if left_out.is_empty() {
        return bytes.into();
    }
    let mut rest = Vec::with_capacity(bytes.len());
    let mut from = 0;
    for &at in left_out {
        rest.extend_from_slice(&bytes[from..at]);
        from = at + 1;
    }
    rest.extend_from_slice(&bytes[from..]);
    rest.into()
}

/// `content` as a chunk; the last one if it is empty.
fn in_chunk(content: &[u8]) -> Vec<u8> {
    let mut chunk = Vec::with_capacity(content.len() + 12);
    write_chunk(content, &mut chunk);
    chunk
}

/// Writes `content` as a chunk; the last one if it is empty.
pub(crate) fn write_chunk(content: &[u8], out: &mut Vec<u8>) {
    // Writing to a vector does not fail.
    let _ = write!(out, "{:X}\r\n", content.len());
    out.extend_from_slice(content);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::http1::Chunks;

    fn piece(bytes: &[u8]) -> Piece<'_> {
        Piece {
            bytes: bytes.into(),
            has_surplus: false,
        }
    }

    fn before_surplus(bytes: &[u8]) -> Piece<'_> {
        Piece {
            bytes: bytes.into(),
            has_surplus: true,
        }
    }

    fn chunked() -> ResponseBody {
        ResponseBody::new(Framing::Chunks(Chunks::lenient()))
    }

    #[test]
    fn a_body_of_known_length_ends_there() {
        let mut body = ResponseBody::new(Framing::Bytes(5));
        assert_eq!(body.take(b"abc"), Ok(piece(b"abc")));
        assert!(!body.is_over());
        assert_eq!(body.take_content(b"defg"), Ok(before_surplus(b"de")));
        assert!(body.is_over());
        assert_eq!(body.content(), 5);
    }

    #[test]
    fn chunks_are_forwarded_unchanged_without_whitespace_after_their_sizes() {
        let mut body = chunked();
        assert_eq!(body.take(b"2\r\nab\r"), Ok(piece(b"2\r\nab\r")));
        assert_eq!(body.take(b"\n1 \t\r\nc\r\n"), Ok(piece(b"\n1\r\nc\r\n")));
        assert_eq!(body.take(b"0 \r\n\r\nx"), Ok(before_surplus(b"0\r\n\r\n")));
        assert!(body.is_over());
        assert_eq!(body.content(), 3);
        assert_eq!(chunked().take(b"x"), Err(ChunkError::Size));
    }

    #[test]
    fn content_and_trailers_are_extracted_from_chunks() {
        let mut body = chunked();
        assert_eq!(body.take_content(b"2;x\r\nab\r\n1\r\n"), Ok(piece(b"ab")));
        assert_eq!(
            body.take_content(b"c\r\n0\r\nX: y\r\n\r\nz"),
            Ok(before_surplus(b"c"))
        );
        assert!(body.is_over());
        assert_eq!(body.take_trailers().unwrap()["x"], "y");
        assert_eq!(body.take_trailers(), None);
    }

    #[test]
    fn a_body_that_ends_with_its_connection_is_converted_to_chunks() {
        let mut body = ResponseBody::new(Framing::UntilClose);
        let chunk = b"11\r\nxxxxxxxxxxxxxxxxx\r\n";
        assert_eq!(body.take(&[b'x'; 17]), Ok(piece(chunk)));
        assert!(body.ends_with_connection() && !body.is_over());
        assert_eq!(body.take_content(b"abc"), Ok(piece(b"abc")));
        assert_eq!(body.take(b""), Ok(piece(b"0\r\n\r\n")));
        assert!(body.is_over());
        assert_eq!(body.content(), 20);
    }
}
