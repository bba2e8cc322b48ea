//! An HTTP/1 client connection: one request at a time, one send for each response.
//!
//! Bytes read past the end of a request are kept for the next one. Writes are buffered until a flush, so that head and body of a
//! response are sent together. An HTTP/1.1 client gets a body as the backend sent it, chunk by chunk; an HTTP/1.0 client gets
//! the content without chunks, ended by its length or the end of the connection.
//!
//! Invariant: an idle connection owns no buffer.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Version};
use pingora::http::ResponseHeader;
use pingora::protocols::Stream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;

use crate::downstream::{BodyError, BodyEvent, ClientEnd, Downstream, PassError};
use crate::http::fields::Fields;
use crate::http::hop_by_hop::HopByHop;
use crate::http::http1::{
    BodyLength, ChunkError, Chunks, Part, ResponseBody, ResponseHead, SCRATCH as RESPONSE_SCRATCH,
    parse_trailers, write_own,
};
use crate::http::scheme::Scheme;
use crate::net::accepted::Accepted;
use crate::tunnel::Socket;

/// The buffer size from which on it is sent before more is added.
const BUFFER_FULL: usize = 4096;

/// The most bytes of a request that are read at once.
const READ: usize = 16 * 1024;

/// For how long, and for how many bytes, a client may go on sending after the last response before its connection is closed.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 256 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into());
}

/// How much of the current request's body has not been read.
#[derive(Debug)]
enum Unread {
    Bytes(u64),
    /// With the trailer section as far as it was read.
    Chunks(Chunks, Vec<u8>),
}

/// An HTTP/1 client connection.
#[derive(Debug)]
pub(crate) struct Connection {
    io: Stream,
    unread: Unread,
    /// Of the current request.
    version: Version,
    /// Whether the client has ended its side.
    half_closed: bool,
    /// Read, but not consumed yet: a partial head, body bytes, or a pipelined request.
    pub(crate) ahead: BytesMut,
    outgoing: Vec<u8>,
    outgoing_sent: usize,
}

impl Connection {
    pub(crate) fn new(io: Stream) -> Self {
        Self {
            io,
            unread: Unread::Bytes(0),
            version: Version::HTTP_11,
            half_closed: false,
            ahead: BytesMut::new(),
            outgoing: Vec::new(),
            outgoing_sent: 0,
        }
    }

    /// Begins the request whose head is the first `head` bytes of `ahead`, and returns these bytes.
    pub(crate) fn begin_request(
        &mut self,
        head: usize,
        body: BodyLength,
        version: Version,
    ) -> BytesMut {
        self.unread = match body {
            BodyLength::Bytes(length) => Unread::Bytes(length),
            BodyLength::Chunked => Unread::Chunks(Chunks::default(), Vec::new()),
        };
        self.version = version;
        if head == self.ahead.len() {
            return std::mem::take(&mut self.ahead);
        }
        self.ahead.split_to(head)
    }

    /// The addresses of the client and of this side.
    pub(super) fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        let digest = self.io.get_socket_digest()?;
        let client = *digest.peer_addr()?.as_inet()?;
        Some((client, *digest.local_addr()?.as_inet()?))
    }

    /// The underlying stream, from which nothing may have been read.
    pub(super) fn into_io(self) -> Stream {
        self.io
    }

    /// Closes the connection in a way that what was written arrives: shuts down the writing side, and reads on for a while.
    ///
    /// Closing with unread bytes would reset the connection, and the client might never see its response.
    pub(crate) async fn linger(mut self) {
        let _ = timeout(LINGER, async {
            std::future::poll_fn(|cx| self.poll_send(cx)).await?;
            AsyncWriteExt::shutdown(&mut self.io).await?;
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

    /// Consumes body bytes at the start of `ahead`; `None` if they hold no content.
    fn take_ahead(
        &mut self,
        mut content: impl FnMut(&[u8]),
    ) -> Result<Option<BodyEvent>, ChunkError> {
        let (length, has_content) = match &mut self.unread {
            Unread::Bytes(left) => {
                let most = usize::try_from(*left).unwrap_or(usize::MAX);
                let length = self.ahead.len().min(most);
                content(&self.ahead[..length]);
                *left -= length as u64;
                (length, length > 0)
            }
            Unread::Chunks(chunks, trailers) => {
                let mut has_content = false;
                let length = chunks.parse_parts(&self.ahead, |part| match part {
                    Part::Content(part) => {
                        has_content = true;
                        content(part);
                    }
                    Part::Trailer(byte) => trailers.push(byte),
                    Part::Padding(_) => {}
                })?;
                (length, has_content)
            }
        };
        if length == self.ahead.len() {
            // Frees the buffer.
            self.ahead = BytesMut::new();
        } else {
            let _ = self.ahead.split_to(length);
        }
        Ok(has_content.then_some(BodyEvent::Content))
    }

    /// Sends what is buffered.
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

    /// Sends as much of `data` as the socket takes now, and buffers the rest for the next flush.
    fn send_or_buffer(&mut self, cx: &mut Context<'_>, mut data: &[u8]) -> io::Result<()> {
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

    fn buffer(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if self.outgoing.is_empty() {
            self.outgoing.reserve(512);
        }
        write(&mut self.outgoing);
    }
}

impl Downstream for Connection {
    const REUSABLE: bool = true;

    fn origin(&self) -> (IpAddr, Scheme) {
        let digest = self.io.get_socket_digest();
        let address = digest.and_then(|digest| digest.peer_addr()?.as_inet().map(SocketAddr::ip));
        let scheme = match self.io.get_ssl_digest() {
            Some(_) => Scheme::Https,
            None => Scheme::Http,
        };
        // A connection without an address is local.
        (address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), scheme)
    }

    fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        mut content: impl FnMut(&[u8]),
    ) -> Poll<Result<BodyEvent, BodyError>> {
        loop {
            match &mut self.unread {
                Unread::Bytes(0) => return Poll::Ready(Ok(BodyEvent::End(None))),
                Unread::Chunks(chunks, trailers) if chunks.is_over() => {
                    let lines = std::mem::take(trailers);
                    self.unread = Unread::Bytes(0);
                    let fields = parse_trailers(&lines);
                    let fields = (!fields.is_empty()).then_some(fields);
                    return Poll::Ready(Ok(BodyEvent::End(fields)));
                }
                _ => {}
            }
            if !self.ahead.is_empty()
                && let Some(event) = self.take_ahead(&mut content)?
            {
                return Poll::Ready(Ok(event));
            }
            if self.ahead.is_empty() && !self.body_is_over() {
                match ready!(self.poll_read_ahead(cx)) {
                    Ok(0) | Err(_) => return Poll::Ready(Err(BodyError::ClientLeft)),
                    Ok(_) => {}
                }
            }
        }
    }

    fn body_is_over(&self) -> bool {
        match &self.unread {
            Unread::Bytes(left) => *left == 0,
            Unread::Chunks(chunks, _) => chunks.is_over(),
        }
    }

    /// Buffers what arrives for the next request, within bounds. While the body is unread, reading it detects the end instead.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<ClientEnd> {
        if !self.body_is_over() {
            return Poll::Pending;
        }
        while !self.half_closed && self.ahead.len() < READ {
            match ready!(self.poll_read_ahead(cx)) {
                Ok(0) => {
                    self.half_closed = true;
                    return Poll::Ready(ClientEnd::HalfClosed);
                }
                Ok(_) => {}
                Err(_) => return Poll::Ready(ClientEnd::Gone),
            }
        }
        // No waker is registered from here on: a disconnect is detected when the response is written.
        Poll::Pending
    }

    fn poll_end_unread(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.ahead.len() < READ {
            match ready!(self.poll_read_ahead(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
        Poll::Pending
    }

    fn interim(&mut self, head: &ResponseHead) {
        // RFC 9110, 15.2: never to an HTTP/1.0 client.
        if self.version != Version::HTTP_10 {
            self.buffer(|out| head.write(out));
        }
    }

    fn interim_continue(&mut self) {
        if self.version != Version::HTTP_10 {
            self.buffer(|out| out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n"));
        }
    }

    fn own_response(&mut self, head: &ResponseHeader, body: Bytes, method: &Method, last: bool) {
        let stays = !last && self.version == Version::HTTP_10;
        self.buffer(|out| write_own(head, &body, method, connection_header(last, stays), out));
    }

    fn begin_response(&mut self, head: &mut ResponseHead, body: &ResponseBody, last: bool) -> bool {
        let is_old = self.version == Version::HTTP_10;
        // For an HTTP/1.0 client the end of the connection is the end of the body (RFC 9112, 6.1).
        let last = last || (is_old && !body.has_length());
        if is_old {
            head.remove("transfer-encoding");
        } else if body.ends_with_connection() {
            head.append("Transfer-Encoding", HeaderValue::from_static("chunked"));
        }
        if let Some(value) = connection_header(last, !last && is_old) {
            head.append("Connection", HeaderValue::from_static(value));
        }
        self.buffer(|out| head.write(out));
        last
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if BUFFER_FULL <= self.outgoing.len() - self.outgoing_sent {
            ready!(self.poll_send(cx))?;
        }
        Poll::Ready(Ok(RESPONSE_SCRATCH))
    }

    fn pass(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut ResponseBody,
        bytes: &[u8],
    ) -> Result<bool, PassError> {
        let piece = match self.version {
            Version::HTTP_10 => body.take_content(bytes)?,
            _ => body.take(bytes)?,
        };
        let sent = self.send_or_buffer(cx, &piece.bytes);
        sent.map_err(PassError::Client)?;
        Ok(piece.has_surplus)
    }

    fn end_response(&mut self, _body: &mut ResponseBody) -> io::Result<()> {
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn cut_off(&mut self) {
        // Where the end of the connection ends the body, only a reset shows truncation; over TLS the missing close_notify does.
        if self.version == Version::HTTP_10
            && let Some(accepted) = (*self.io).as_any().downcast_ref::<Accepted>()
        {
            accepted.reset_on_close();
        }
    }

    async fn close(self) {
        self.linger().await;
    }

    fn accept_upgrade(&mut self, head: &mut ResponseHead, protocol: &str) -> io::Result<()> {
        let protocol = HeaderValue::from_str(protocol);
        head.set_upgrade(protocol.expect("it was a header value"));
        self.buffer(|out| head.write(out));
        Ok(())
    }

    fn into_tunnel(self) -> (Socket, Vec<u8>) {
        debug_assert!(self.outgoing.is_empty(), "the response was flushed");
        let mut early = self.ahead.to_vec();
        (Socket::from_pingora(self.io, &mut early), early)
    }
}

/// The value of a response's `Connection` header, if it needs one: the connection closes after it, or stays open although the
/// client's HTTP version closes it by default.
fn connection_header(last: bool, stays: bool) -> Option<&'static str> {
    match (last, stays) {
        (true, _) => Some("close"),
        (false, true) => Some("keep-alive"),
        (false, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{DuplexStream, duplex};

    use super::*;
    use crate::http::http1::Framing;

    fn connection() -> (Connection, DuplexStream) {
        let (inner, outer) = duplex(256 * 1024);
        (Connection::new(Box::new(inner)), outer)
    }

    /// Begins a request with this body, after a head of four bytes.
    fn begin(connection: &mut Connection, body: BodyLength) {
        connection.ahead = BytesMut::from(&[b"head", &connection.ahead[..]].concat()[..]);
        let head = connection.begin_request(4, body, Version::HTTP_11);
        assert_eq!(&head[..], b"head");
    }

    /// The whole body, and its trailers.
    async fn read_body(
        connection: &mut Connection,
    ) -> Result<(Vec<u8>, Option<http::HeaderMap>), BodyError> {
        let mut body = Vec::new();
        loop {
            let event = poll_fn(|cx| connection.poll_body(cx, |part| body.extend_from_slice(part)));
            if let BodyEvent::End(trailers) = event.await? {
                return Ok((body, trailers));
            }
        }
    }

    async fn flush(connection: &mut Connection) {
        poll_fn(|cx| connection.poll_flush(cx)).await.unwrap();
    }

    /// Begins a response with this framing to a client of this version.
    fn response(connection: &mut Connection, version: Version, framing: Framing) -> bool {
        connection.version = version;
        let mut head =
            ResponseHead::parse(BytesMut::from(&b"HTTP/1.1 200 OK\r\n\r\n"[..]), 9).unwrap();
        connection.begin_response(&mut head, &ResponseBody::new(framing), false)
    }

    #[tokio::test]
    async fn head_and_body_of_a_response_are_sent_together_and_their_buffer_is_freed() {
        let (mut connection, mut outer) = connection();
        assert!(!response(
            &mut connection,
            Version::HTTP_11,
            Framing::Bytes(4)
        ));
        let mut body = ResponseBody::new(Framing::Bytes(4));
        poll_fn(|cx| {
            assert!(matches!(
                connection.poll_room(cx),
                Poll::Ready(Ok(RESPONSE_SCRATCH))
            ));
            assert!(!connection.pass(cx, &mut body, b"body").unwrap());
            Poll::Ready(())
        })
        .await;
        assert!(!connection.outgoing.is_empty());
        flush(&mut connection).await;
        assert_eq!(connection.outgoing.capacity(), 0);
        let mut received = vec![0; 23];
        outer.read_exact(&mut received).await.unwrap();
        assert_eq!(received, b"HTTP/1.1 200 OK\r\n\r\nbody");
    }

    #[tokio::test]
    async fn a_response_to_http_1_0_says_whether_its_connection_stays_open() {
        let chunks = || Framing::Chunks(Chunks::lenient());
        for (framing, closes, header) in [
            (Framing::Bytes(0), false, "Connection: keep-alive\r\n"),
            (chunks(), true, "Connection: close\r\n"),
            (Framing::UntilClose, true, "Connection: close\r\n"),
        ] {
            let (mut connection, _outer) = connection();
            assert_eq!(response(&mut connection, Version::HTTP_10, framing), closes);
            let head = format!("HTTP/1.1 200 OK\r\n{header}\r\n");
            assert_eq!(String::from_utf8_lossy(&connection.outgoing), head);
        }
    }

    #[tokio::test]
    async fn a_body_ends_where_its_request_ends_and_the_rest_is_kept() {
        let (mut connection, mut outer) = connection();
        begin(&mut connection, BodyLength::Bytes(4));
        outer.write_all(b"bodyGET / HTTP/1.1\r\n").await.unwrap();
        assert_eq!(read_body(&mut connection).await.unwrap().0, b"body");
        assert_eq!(&connection.ahead[..], b"GET / HTTP/1.1\r\n");
        drop(outer);
        let end = poll_fn(|cx| connection.poll_end(cx)).await;
        assert_eq!(end, ClientEnd::HalfClosed);
        let again = poll_fn(|cx| Poll::Ready(connection.poll_end(cx).is_pending())).await;
        assert!(again, "it is reported once");
    }

    #[tokio::test]
    async fn a_chunked_body_gives_content_and_trailers_and_an_invalid_one_an_error() {
        let (mut connection, mut outer) = connection();
        connection.ahead.extend_from_slice(b"5\r\nhe");
        begin(&mut connection, BodyLength::Chunked);
        outer
            .write_all(b"llo\r\n0\r\nX: y\r\n\r\nGET /")
            .await
            .unwrap();
        let (body, trailers) = read_body(&mut connection).await.unwrap();
        assert_eq!(body, b"hello");
        assert_eq!(trailers.unwrap()["x"], "y");
        assert_eq!(&connection.ahead[..], b"GET /");

        connection.ahead.clear();
        begin(&mut connection, BodyLength::Chunked);
        outer.write_all(b"1;\nx").await.unwrap();
        let error = read_body(&mut connection).await.unwrap_err();
        assert!(
            matches!(error, BodyError::Chunk(ChunkError::Extension)),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_disconnect_within_a_body_is_detected() {
        let (mut connection, mut outer) = connection();
        begin(&mut connection, BodyLength::Bytes(4));
        outer.write_all(b"bod").await.unwrap();
        drop(outer);
        let error = read_body(&mut connection).await.unwrap_err();
        assert!(matches!(error, BodyError::ClientLeft), "{error}");
    }

    #[tokio::test]
    async fn bytes_kept_for_the_next_request_are_bounded() {
        let (mut connection, mut outer) = connection();
        outer.write_all(&[0; 200 * 1024]).await.unwrap();
        let is_pending = poll_fn(|cx| Poll::Ready(connection.poll_end(cx).is_pending())).await;
        assert!(is_pending);
        assert!(connection.ahead.len() < 2 * READ);
    }
}
