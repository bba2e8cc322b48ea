//! The client's connection as Pingora is shown it: one request at a time, one send for each answer.
//!
//! What is read past the end of a request is kept for the next one and not shown: Pingora would take it for a fault of the
//! request under way. Writes are gathered until they are flushed, so that head and body of an answer leave together, in the
//! chunks that the backend made.
//!
//! Invariant: an idle connection owns no buffer.

mod seams;

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v1::server::HttpSession;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{ALPN, Ssl, Stream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;

use crate::carrier::seams::Seams;
use crate::carrier::seams::Step;
use crate::http1::{ChunkError, Chunks};
use crate::layered::pingora_stream;
use crate::scheme::Scheme;

/// Writes up to this size are gathered; larger ones go straight through.
const GATHER: usize = 4096;

/// The most that is read at once while a request head is awaited, or past the end of a request.
const READ: usize = 16 * 1024;

/// How long, and for how many bytes, a client may go on sending after the last answer before its connection is closed.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 256 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into());
}

/// What a head says about the body behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unread {
    /// Exactly this much.
    Bytes(u64),
    /// Only its own framing tells, which is chunked.
    Unknown,
}

/// How much of the request under way has not been read from the connection yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    Bytes(u64),
    Chunks(Chunks),
}

/// A client connection.
#[derive(Debug)]
pub(crate) struct Carrier {
    io: Stream,
    rest: Rest,
    /// Read, and not part of the request under way.
    pub(crate) ahead: BytesMut,
    outgoing: Vec<u8>,
    outgoing_sent: usize,
    seams: Seams,
}

impl Carrier {
    pub(crate) fn new(io: Stream) -> Self {
        Self {
            io,
            rest: Rest::Bytes(0),
            ahead: BytesMut::new(),
            outgoing: Vec::new(),
            outgoing_sent: 0,
            seams: Seams::default(),
        }
    }

    /// The carrier that Pingora gives back.
    pub(crate) fn from_pingora(stream: Stream) -> Option<Self> {
        stream
            .into_any()
            .downcast::<Self>()
            .ok()
            .map(|carrier| *carrier)
    }

    /// Begins the request whose head is the first `head` bytes of `ahead`. Takes them out, with what has come of its body.
    ///
    /// # Errors
    ///
    /// [`ChunkError`] if what has come of a body in chunks is none.
    pub(crate) fn begin_request(
        &mut self,
        head: usize,
        body: Unread,
    ) -> Result<BytesMut, ChunkError> {
        let come = &self.ahead[head..];
        let part = match body {
            Unread::Bytes(length) => {
                let part =
                    usize::try_from(length).map_or(come.len(), |length| length.min(come.len()));
                self.rest = Rest::Bytes(length - part as u64);
                part
            }
            Unread::Unknown => {
                let mut chunks = Chunks::default();
                let part = chunks.follow(come)?;
                self.rest = Rest::Chunks(chunks);
                part
            }
        };
        self.seams.reset();
        let all = head + part;
        if all == self.ahead.len() {
            return Ok(std::mem::take(&mut self.ahead));
        }
        Ok(self.ahead.split_to(all))
    }

    /// Has `data` go out with the next flush, before anything that [`Carrier::pass`] is given.
    pub(crate) fn gather(&mut self, mut data: Vec<u8>) {
        if self.outgoing.is_empty() {
            self.outgoing = data;
        } else {
            self.outgoing.append(&mut data);
        }
    }

    /// Sends as much of `data` as goes out at once, and keeps the rest for the next flush. Nothing is to be given while there is
    /// a rest: that is what bounds it.
    pub(crate) fn pass(&mut self, cx: &mut Context<'_>, mut data: &[u8]) -> io::Result<()> {
        while self.outgoing.is_empty() && !data.is_empty() {
            match Pin::new(&mut self.io).poll_write(cx, data)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(sent) => data = &data[sent..],
                Poll::Pending => break,
            }
        }
        self.outgoing.extend_from_slice(data);
        Ok(())
    }

    /// Ready when the client has left, as far as that shows behind its request.
    pub(crate) fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_ended(cx).map(drop)
    }

    /// The address of the client, and the scheme of the connection.
    pub(crate) fn origin(&self) -> (IpAddr, Scheme) {
        let digest = self.io.get_socket_digest();
        let address = digest.and_then(|digest| digest.peer_addr()?.as_inet().map(SocketAddr::ip));
        let scheme = match self.io.get_ssl_digest() {
            Some(_) => Scheme::Https,
            None => Scheme::Http,
        };
        // A connection without an address is one of this machine.
        (address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), scheme)
    }

    /// Notes that a piece of an answer in chunks comes next, so that it leaves as a chunk of its own.
    ///
    /// Does nothing if the client's connection is not carried here.
    pub(crate) fn note_piece(downstream: &ServerSession, length: usize) {
        let stream = downstream.as_http1().map(HttpSession::stream);
        let carrier = stream.and_then(|stream| (**stream).as_any().downcast_ref::<Self>());
        if let Some(carrier) = carrier {
            carrier.seams.note(length);
        }
    }

    /// Takes the connection apart, with everything sent: the stream, and what was read from it and not used.
    pub(crate) fn into_parts(self) -> (Stream, BytesMut) {
        debug_assert!(self.outgoing.is_empty(), "what was written is flushed");
        (self.io, self.ahead)
    }

    /// Closes the connection so that what was written arrives: ends the writing side, and reads on for a while.
    ///
    /// Closing it with bytes unread would reset it, and the client might never see its answer.
    pub(crate) async fn linger(mut self) {
        let _ = timeout(LINGER, async {
            AsyncWriteExt::shutdown(&mut self).await?;
            let mut rest = (&mut self.io).take(LINGER_BYTES);
            tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
        })
        .await;
    }

    /// Reads once into `ahead`. Zero is the end of the stream.
    pub(crate) fn poll_read_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
            self.ahead.extend_from_slice(buffer.filled());
            Poll::Ready(Ok(buffer.filled().len()))
        })
    }

    /// Behind the end of a request: keeps what comes for the next, within bounds, and reports only the end of the stream.
    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.ahead.len() < READ {
            if ready!(self.poll_read_ahead(cx))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        // Nobody is woken any more until this request is answered; that the client left is then noticed when writing.
        Poll::Pending
    }

    /// Writes, or gathers what is small.
    fn poll_gather(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if GATHER < self.outgoing.len() + data.len() {
            ready!(self.poll_send(cx))?;
            if GATHER < data.len() {
                return Pin::new(&mut self.io).poll_write(cx, data);
            }
        }
        self.outgoing.extend_from_slice(data);
        Poll::Ready(Ok(data.len()))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.outgoing_sent < self.outgoing.len() {
            match ready!(
                Pin::new(&mut self.io).poll_write(cx, &self.outgoing[self.outgoing_sent..])
            )? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.outgoing_sent += sent,
            }
        }
        self.outgoing = Vec::new();
        self.outgoing_sent = 0;
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Carrier {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.rest {
            Rest::Bytes(0) => self.poll_ended(cx),
            Rest::Bytes(left) => {
                let most = usize::try_from(left)
                    .map_or(buffer.remaining(), |left| left.min(buffer.remaining()));
                let mut part = ReadBuf::new(buffer.initialize_unfilled_to(most));
                ready!(Pin::new(&mut self.io).poll_read(cx, &mut part))?;
                let count = part.filled().len();
                buffer.advance(count);
                self.rest = Rest::Bytes(left - count as u64);
                Poll::Ready(Ok(()))
            }
            Rest::Chunks(chunks) if chunks.is_over() => self.poll_ended(cx),
            Rest::Chunks(mut chunks) => {
                let before = buffer.filled().len();
                ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
                let come = &buffer.filled()[before..];
                let part = chunks.follow(come)?;
                self.ahead.extend_from_slice(&come[part..]);
                self.rest = Rest::Chunks(chunks);
                buffer.set_filled(before + part);
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Carrier {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        match this.seams.step(data, &mut this.outgoing) {
            Step::Pass => this.poll_gather(cx, data),
            Step::Drop(count) => Poll::Ready(Ok(count)),
            Step::Piece(length) => {
                let count = ready!(this.poll_gather(cx, &data[..length]))?;
                this.seams.written(count, &mut this.outgoing);
                Poll::Ready(Ok(count))
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl Ssl for Carrier {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.io.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.io.selected_alpn_proto()
    }
}

pingora_stream!([] Carrier, over io);

/// The address that the connection comes from.
pub(crate) fn peer_of(downstream: &ServerSession) -> IpAddr {
    let address = downstream
        .client_addr()
        .and_then(|address| address.as_inet());
    // A connection without an address is one of this machine.
    address.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip())
}

/// The scheme that the connection is made with.
pub(crate) fn scheme_of(downstream: &ServerSession) -> Scheme {
    let encrypted = downstream
        .digest()
        .is_some_and(|digest| digest.ssl_digest.is_some());
    if encrypted {
        Scheme::Https
    } else {
        Scheme::Http
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, duplex};

    #[tokio::test]
    async fn writes_are_gathered_until_they_are_flushed() {
        let (inner, mut outer) = duplex(64 * 1024);
        let mut carrier = Carrier::new(Box::new(inner));
        carrier.write_all(b"head ").await.unwrap();
        carrier.write_all(b"body").await.unwrap();
        assert!(
            tokio::time::timeout(std::time::Duration::from_millis(1), outer.read_u8())
                .await
                .is_err()
        );
        carrier.flush().await.unwrap();
        let mut received = [0; 9];
        outer.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"head body");
        assert_eq!(carrier.outgoing.capacity(), 0);
    }

    #[tokio::test]
    async fn a_large_write_goes_out_behind_what_was_gathered() {
        let (inner, mut outer) = duplex(64 * 1024);
        let mut carrier = Carrier::new(Box::new(inner));
        carrier.write_all(b"head ").await.unwrap();
        carrier.write_all(&[7; 2 * GATHER]).await.unwrap();
        let mut received = vec![0; 5 + 2 * GATHER];
        outer.read_exact(&mut received).await.unwrap();
        assert!(received.starts_with(b"head \x07"));
    }

    #[tokio::test]
    async fn reads_end_where_the_request_ends_and_the_rest_is_kept() {
        let (inner, mut outer) = duplex(64 * 1024);
        let mut carrier = Carrier::new(Box::new(inner));
        carrier.begin_request(0, Unread::Bytes(4)).unwrap();
        outer.write_all(b"bodyGET / HTTP/1.1\r\n").await.unwrap();
        let mut body = [0; 10];
        assert_eq!(carrier.read(&mut body).await.unwrap(), 4);
        let behind =
            tokio::time::timeout(std::time::Duration::from_millis(1), carrier.read(&mut body))
                .await;
        assert!(behind.is_err(), "the next request is not shown");
        drop(outer);
        assert_eq!(
            carrier.read(&mut body).await.unwrap(),
            0,
            "the end of the stream is shown"
        );
        assert_eq!(&carrier.ahead[..], b"GET / HTTP/1.1\r\n");
    }

    #[tokio::test]
    async fn chunks_end_where_they_end_and_wrong_ones_are_not_shown() {
        let (inner, mut outer) = duplex(64 * 1024);
        let mut carrier = Carrier::new(Box::new(inner));
        carrier.ahead.extend_from_slice(b"head5\r\nhe");
        let begun = carrier.begin_request(4, Unread::Unknown).unwrap();
        assert_eq!(&begun[..], b"head5\r\nhe");
        outer.write_all(b"llo\r\n0\r\n\r\nGET /").await.unwrap();
        let mut body = [0; 40];
        assert_eq!(carrier.read(&mut body).await.unwrap(), 10);
        assert_eq!(&carrier.ahead[..], b"GET /");

        carrier.ahead.clear();
        carrier.begin_request(0, Unread::Unknown).unwrap();
        outer.write_all(b"1;\nx").await.unwrap();
        let error = carrier.read(&mut body).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        carrier.ahead.extend_from_slice(b"headx");
        assert_eq!(
            carrier.begin_request(4, Unread::Unknown),
            Err(ChunkError::Size)
        );
    }

    #[tokio::test]
    async fn what_is_kept_for_later_is_bounded() {
        let (inner, mut outer) = duplex(256 * 1024);
        let mut carrier = Carrier::new(Box::new(inner));
        outer.write_all(&[0; 200 * 1024]).await.unwrap();
        let reading =
            tokio::time::timeout(std::time::Duration::from_millis(1), carrier.read_u8()).await;
        assert!(reading.is_err());
        assert!(carrier.ahead.len() < 2 * READ);
    }
}
