//! The body of an answer on its way to the client.
//!
//! It goes out as it came, chunk by chunk: to a client that reads a stream so, each chunk is a message. Only a body that ends with
//! its connection is put into chunks, so that the client's connection need not end too.

use std::future::poll_fn;
use std::io;
use std::io::Write;
use std::task::{Context, Poll};

use http::HeaderValue;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::carrier::Carrier;
use crate::config::Timeouts;
use crate::fields::Fields;
use crate::http1::{AnswerHead, ChunkError, Framing, poll_come};
use crate::tunnel::Socket;

/// How far a body has come.
#[derive(Debug)]
pub(crate) struct Body {
    framing: Framing,
    /// Of a body that ends with its connection: whether it has.
    is_closed: bool,
    /// Bytes of content that have come, of a body that is not in chunks.
    content: u64,
}

/// What goes to the client of what has come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// This, which is less than what has come where that is more than the body.
    AsItIs(&'a [u8]),
    /// A chunk of it.
    Wrapped(Vec<u8>),
}

impl Piece<'_> {
    /// Whether more than the body has come.
    pub(crate) fn is_part_of(&self, come: &[u8]) -> bool {
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
    pub(crate) fn new(framing: Framing) -> Self {
        Self {
            framing,
            is_closed: false,
            content: 0,
        }
    }

    /// Whether it is put into chunks here, since its connection ends with it.
    pub(crate) fn is_wrapped(&self) -> bool {
        self.framing == Framing::UntilClose
    }

    /// Says in the head of its answer how the client sees its end, and whether its connection ends too.
    pub(crate) fn announce(&self, answer: &mut AnswerHead, last: bool) {
        if self.is_wrapped() {
            answer.append("Transfer-Encoding", HeaderValue::from_static("chunked"));
        }
        if last {
            answer.append("Connection", HeaderValue::from_static("close"));
        }
    }

    /// Whether all of it has come.
    pub(crate) fn is_over(&self) -> bool {
        match &self.framing {
            Framing::Bytes(left) => *left == 0,
            Framing::Chunks(chunks) => chunks.is_over(),
            Framing::UntilClose => self.is_closed,
        }
    }

    /// How many bytes of content have come.
    pub(crate) fn content(&self) -> u64 {
        match &self.framing {
            Framing::Chunks(chunks) => chunks.content(),
            Framing::Bytes(_) | Framing::UntilClose => self.content,
        }
    }

    /// The content of the bytes that have come, for a client that is not shown chunks. None at all, of a body that ends with its
    /// connection, is its end.
    ///
    /// # Errors
    ///
    /// [`ChunkError`] if they are not the chunks that they were to be.
    pub(crate) fn take_content(&mut self, come: &[u8]) -> Result<Vec<u8>, ChunkError> {
        if let Framing::Chunks(chunks) = &mut self.framing {
            let mut content = Vec::with_capacity(come.len());
            chunks.follow_to(come, |part| content.extend_from_slice(part))?;
            return Ok(content);
        }
        let part = match self.take(come)? {
            Piece::AsItIs(part) => part,
            Piece::Wrapped(_) => come,
        };
        Ok(part.to_vec())
    }

    /// What becomes of the bytes that have come. None at all, of a body that ends with its connection, is its end.
    ///
    /// # Errors
    ///
    /// [`ChunkError`] if they are not the chunks that they were to be.
    pub(crate) fn take<'a>(&mut self, come: &'a [u8]) -> Result<Piece<'a>, ChunkError> {
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

/// Sends what was gathered for the client, within `timeouts.downstream_write`.
///
/// # Errors
///
/// What writing fails with; nothing more can be sent then.
pub(crate) async fn flush(carrier: &mut Carrier, timeouts: &Timeouts) -> io::Result<()> {
    let flushed = timeout(timeouts.downstream_write, carrier.flush()).await;
    flushed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Sends what was gathered, and behind it the body as it comes, of which `early` has come. Gives the connection back if it can
/// carry another answer.
///
/// # Errors
///
/// What went wrong, for the log: the client's connection has to end.
pub(crate) async fn pass_body(
    carrier: &mut Carrier,
    timeouts: &Timeouts,
    body: &mut Body,
    early: &[u8],
    mut socket: Socket,
) -> Result<Option<Socket>, &'static str> {
    const BACKEND_FAILED: &str = "the backend failed before the end of its answer";
    const CLIENT_LEFT: &str = "the client left before the end of the answer";
    const WRONG_CHUNK: &str = "the backend sent a wrong chunk";
    let mut surplus = false;
    if !early.is_empty() {
        let piece = body.take(early).map_err(|_| WRONG_CHUNK)?;
        surplus = piece.is_part_of(early);
        carrier.gather(piece.as_ref().to_vec());
    }
    loop {
        flush(carrier, timeouts).await.map_err(|_| CLIENT_LEFT)?;
        if body.is_over() {
            return Ok((!surplus && !body.is_wrapped()).then_some(socket));
        }
        let mut pass = |cx: &mut Context<'_>| {
            if carrier.poll_left(cx).is_ready() {
                return Poll::Ready(Err(CLIENT_LEFT));
            }
            let passed = poll_come(&mut socket, cx, |come, cx| {
                if come.is_empty() && !body.is_wrapped() {
                    return Err(BACKEND_FAILED);
                }
                let piece = body.take(come).map_err(|_| WRONG_CHUNK)?;
                surplus = piece.is_part_of(come);
                carrier.pass(cx, piece.as_ref()).map_err(|_| CLIENT_LEFT)
            });
            passed.map(|passed| passed.unwrap_or(Err(BACKEND_FAILED)))
        };
        match timeout(timeouts.upstream_read, poll_fn(&mut pass)).await {
            Ok(passed) => passed?,
            Err(_) => return Err("the backend did not go on with its answer in time"),
        }
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
    use crate::http1::Chunks;

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
    fn content_is_what_is_in_chunks() {
        let mut body = Body::new(Framing::Chunks(Chunks::default()));
        assert_eq!(body.take_content(b"2;x\r\nab\r\n1\r\n"), Ok(b"ab".to_vec()));
        assert_eq!(
            body.take_content(b"c\r\n0\r\nX: y\r\n\r\nz"),
            Ok(b"c".to_vec())
        );
        assert!(body.is_over());
        let mut plain = Body::new(Framing::Bytes(2));
        assert_eq!(plain.take_content(b"abc"), Ok(b"ab".to_vec()));
        let mut endless = Body::new(Framing::UntilClose);
        assert_eq!(endless.take_content(b"abc"), Ok(b"abc".to_vec()));
        assert_eq!(endless.take_content(b""), Ok(Vec::new()));
        assert!(endless.is_over());
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
