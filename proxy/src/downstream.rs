//! Client connections, from accept to the requests on them.
//!
//! [`acceptor`] reads the PROXY header ([`proxy_protocol`]) of a new connection, applies the limits for its address and does the
//! TLS handshake. [`Connection`] is then an HTTP/1 connection with one request after the other; [`Http2Stream`] is one stream of
//! an HTTP/2 connection, which [`Http2`] serves. Both implement [`Downstream`], which the engine that forwards requests uses.
//! [`open_connections`] counts open connections for the shutdown.
//!
//! Decides nothing about a request, and has no knowledge of backends.

pub(crate) mod acceptor;
mod connection;
mod http2;
mod idle;
pub(crate) mod open_connections;
pub(crate) mod proxy_protocol;

use std::io;
use std::net::IpAddr;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Method};
use pingora::http::ResponseHeader;

pub(crate) use crate::downstream::connection::Connection;
pub(crate) use crate::downstream::http2::{Http2, Http2Limits, Http2Request, Http2Stream};
pub(crate) use crate::downstream::idle::{IdleConnection, IdleState, ParkedIdle};
use crate::http::http1::{ChunkError, ResponseBody, ResponseHead};
use crate::http::scheme::Scheme;
use crate::tunnel::Socket;

/// The result of reading from a request body.
#[derive(Debug)]
pub(crate) enum BodyEvent {
    /// Content was read.
    Content,
    /// The end of the body, with its trailers if there are any.
    End(Option<HeaderMap>),
}

/// Why a request body cannot be read any further.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the client disconnected within its request")]
    ClientLeft,
    #[error(transparent)]
    Chunk(#[from] ChunkError),
}

/// How a client has ended its side after sending its whole request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientEnd {
    /// It has half-closed the connection: it may have disconnected, or still wait for its response.
    HalfClosed,
    /// It has disconnected.
    Gone,
}

/// Why a piece of a response body cannot be forwarded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PassError {
    #[error("the client disconnected before the end of the response")]
    Client(#[source] io::Error),
    #[error("the backend sent an invalid chunk")]
    Chunk(#[from] ChunkError),
}

/// The client side of one request.
pub(crate) trait Downstream: Sized + Send {
    /// Whether the connection can be reused for another request, once this one has been read completely.
    const REUSABLE: bool;

    /// The address of the peer, and the scheme of its connection.
    fn origin(&self) -> (IpAddr, Scheme);

    /// Reads from the request body, and passes its content to `content`, in one or several pieces.
    ///
    /// # Errors
    ///
    /// [`BodyError`]; nothing more may be read then.
    fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        content: impl FnMut(&[u8]),
    ) -> Poll<Result<BodyEvent, BodyError>>;

    /// Whether the whole request body has been read.
    fn body_is_over(&self) -> bool;

    /// Ready when the client has ended its side, as far as that can be detected while its response is pending. Not to be called
    /// again after [`ClientEnd::Gone`]; after [`ClientEnd::HalfClosed`] it is ready only if the client is found to be gone.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<ClientEnd>;

    /// Ready when the client half-closes or closes the connection while its body is not being read. What arrives meanwhile is
    /// buffered, within bounds.
    fn poll_end_unread(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Queues an interim response (1xx) for the next flush, if the client's protocol supports them.
    fn interim(&mut self, head: &ResponseHead);

    /// Queues a 100 response of the edge itself.
    fn interim_continue(&mut self);

    /// Queues a response of the edge itself, to a request with `method`, for the next flush. `last` says whether the connection
    /// closes after it.
    fn own_response(&mut self, head: &ResponseHeader, body: Bytes, method: &Method, last: bool);

    /// Begins the response of a backend: queues its head for the next flush. `last` requests that the connection closes after
    /// it; returns whether it does.
    fn begin_response(&mut self, head: &mut ResponseHead, body: &ResponseBody, last: bool) -> bool;

    /// How many bytes of the response may be forwarded now. Pending while the client does not read what was sent.
    ///
    /// # Errors
    ///
    /// The error of the write.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>>;

    /// Forwards `bytes` that the backend sent, no more than [`Downstream::poll_room`] allows. For a body that ends with its
    /// connection, an empty slice is the end. Returns whether there were bytes after the end of `body`.
    ///
    /// # Errors
    ///
    /// [`PassError`]; the response cannot be completed then.
    fn pass(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut ResponseBody,
        bytes: &[u8],
    ) -> Result<bool, PassError>;

    /// Ends a response whose body has been forwarded completely.
    ///
    /// # Errors
    ///
    /// The error of the write.
    fn end_response(&mut self, body: &mut ResponseBody) -> io::Result<()>;

    /// Sends what is queued. Pending while the client does not read.
    ///
    /// # Errors
    ///
    /// The error of the write.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Aborts the response such that the client sees it as truncated. No other method may be called after it.
    fn cut_off(&mut self);

    /// Closes the connection in a way that what was written still arrives.
    fn close(self) -> impl Future<Output = ()> + Send;

    /// Queues the response to a successful upgrade for the next flush.
    ///
    /// # Errors
    ///
    /// The error of the write.
    fn accept_upgrade(&mut self, head: &mut ResponseHead, protocol: &str) -> io::Result<()>;

    /// The connection of an upgrade that was accepted and flushed, and the bytes already read from it.
    fn into_tunnel(self) -> (Socket, Vec<u8>);
}
