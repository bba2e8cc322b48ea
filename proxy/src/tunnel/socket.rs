//! The socket of either end of a tunnel.
//!
//! Pingora's stream is replaced by its bare socket where possible, which saves a tunnel about a kilobyte, and rustls' connection by
//! its keys, which saves about four.

use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use pingora::protocols::{Ssl, Stream, l4};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::net::accepted::Accepted;
use crate::net::pingora_stream::pingora_stream;
use crate::tls::record::RecordStream;
use crate::tls::{ClientStream, ServerStream};
use crate::tunnel::readiness::ReadReadiness;

/// The most bytes that are taken out of a stream's buffer: more than any listener buffers. If a client sends faster than these
/// are read, the stream stays wrapped.
const BUFFERED_MAX: usize = 1024 * 1024;

/// A connected socket.
#[derive(Debug)]
pub(crate) enum Socket {
    /// A bare TCP socket.
    Tcp(TcpStream),
    /// A bare unix socket.
    Unix(UnixStream),
    /// A TLS connection without rustls. Boxed, because a tunnel without TLS would be larger otherwise.
    Tls(Box<RecordStream<Socket>>),
    /// Any other stream.
    Wrapped(Stream),
}

impl Socket {
    /// Takes the socket out of Pingora's stream where that is possible; bytes that the stream has already read are appended to
    /// `early`. Everything written to it must have been flushed.
    ///
    /// A TLS connection of the edge goes on without rustls. One of another server, into which the edge is mounted, stays wrapped.
    pub(crate) fn from_pingora(mut stream: Stream, early: &mut Vec<u8>) -> Self {
        if (*stream).as_any().is::<ServerStream>() {
            let tls = stream.into_any().downcast::<ServerStream>();
            return match tls.expect("its type was checked").into_records() {
                Ok(records) => {
                    let bare = |accepted: Accepted| Self::Tcp(accepted.into_socket());
                    Self::Tls(Box::new(records.map_transport(bare)))
                }
                Err(tls) => Self::kept(tls),
            };
        }
        if (*stream).as_any().is::<RecordStream<Accepted>>() {
            let records = stream.into_any().downcast::<RecordStream<Accepted>>();
            let bare = |accepted: Accepted| Self::Tcp(accepted.into_socket());
            let records = records.expect("its type was checked").map_transport(bare);
            return Self::Tls(Box::new(records));
        }
        if (*stream).as_any().is::<Accepted>() {
            let accepted = stream.into_any().downcast::<Accepted>();
            return Self::Tcp(accepted.expect("its type was checked").into_socket());
        }
        let is_plain = (*stream).as_any().is::<l4::stream::Stream>();
        if !is_plain || !take_buffered(&mut stream, early) {
            return Self::Wrapped(stream);
        }
        let Some(plain) = (*stream).as_any().downcast_ref::<l4::stream::Stream>() else {
            return Self::Wrapped(stream);
        };
        match duplicate(plain.as_raw_fd()) {
            Ok(socket) => Self::Tcp(socket),
            Err(error) => {
                tracing::debug!(%error, "cannot duplicate the socket, keeping the listener's stream");
                Self::Wrapped(stream)
            }
        }
    }

    /// The socket to a backend for a tunnel: a TLS connection goes on without rustls where that is possible.
    pub(crate) fn without_rustls(self) -> Self {
        let stream = match self {
            Self::Wrapped(stream) if (*stream).as_any().is::<ClientStream<Self>>() => stream,
            other => return other,
        };
        let tls = stream.into_any().downcast::<ClientStream<Self>>();
        match tls.expect("its type was checked").into_records() {
            Ok(records) => Self::Tls(Box::new(records)),
            Err(tls) => Self::kept(tls),
        }
    }

    fn kept(stream: Stream) -> Self {
        tracing::debug!("a TLS connection stays with rustls: it is within a message");
        Self::Wrapped(stream)
    }
}

/// Reads what is available without waiting: once a read is pending, the listener's buffer is empty.
///
/// Returns whether the buffer is empty.
fn take_buffered(stream: &mut Stream, held: &mut Vec<u8>) -> bool {
    let before = held.len();
    let mut piece = [0; 4096];
    while held.len() - before < BUFFERED_MAX {
        let mut buffer = ReadBuf::new(&mut piece);
        // The next reader registers its own waker.
        let mut cx = Context::from_waker(Waker::noop());
        match Pin::new(&mut *stream).poll_read(&mut cx, &mut buffer) {
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                held.extend_from_slice(buffer.filled());
            }
            // The next reader gets the end or the error again.
            Poll::Ready(_) | Poll::Pending => return true,
        }
    }
    false
}

/// A second descriptor of the same TCP connection, registered with the runtime.
#[expect(unsafe_code, reason = "Pingora shows its socket only as a number")]
fn duplicate(descriptor: std::os::fd::RawFd) -> io::Result<TcpStream> {
    if descriptor < 0 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    // SAFETY: the caller holds the stream that owns `descriptor` across this call, and the borrow ends with it.
    let owned = unsafe { std::os::fd::BorrowedFd::borrow_raw(descriptor) }.try_clone_to_owned()?;
    TcpStream::from_std(std::net::TcpStream::from(owned))
}

#[cfg(test)]
impl Socket {
    /// A TCP connection, and its other end.
    pub(crate) async fn pair() -> (Self, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await;
        let (theirs, _) = listener.accept().await.unwrap();
        (Self::Tcp(ours.unwrap()), theirs)
    }
}

impl ReadReadiness for Socket {
    fn may_be_readable(&self) -> bool {
        match self {
            Self::Tcp(socket) => socket.try_io(Interest::READABLE, || Ok(())).is_ok(),
            Self::Unix(socket) => socket.try_io(Interest::READABLE, || Ok(())).is_ok(),
            Self::Tls(tls) => tls.is_read_ready() || tls.transport().may_be_readable(),
            Self::Wrapped(_) => true,
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_read(cx, buffer),
            Self::Unix(socket) => Pin::new(socket).poll_read(cx, buffer),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buffer),
            Self::Wrapped(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write(cx, data),
            Self::Unix(socket) => Pin::new(socket).poll_write(cx, data),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, data),
            Self::Wrapped(stream) => Pin::new(stream).poll_write(cx, data),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_flush(cx),
            Self::Unix(socket) => Pin::new(socket).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
            Self::Wrapped(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
            Self::Wrapped(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

// A backend's socket is used as a Pingora stream during the handshake.
pingora_stream!([] Socket, called |socket| match socket {
    Socket::Tcp(socket) => socket.as_raw_fd(),
    Socket::Unix(socket) => socket.as_raw_fd(),
    Socket::Tls(tls) => tls.transport().id(),
    Socket::Wrapped(stream) => stream.id(),
});

impl Ssl for Socket {}
