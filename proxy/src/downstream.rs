//! A client's connection, from accept to the requests on it.
//!
//! [`acceptor`] takes a connection through the PROXY header ([`proxy_protocol`]), the limits for its address and the TLS handshake.
//! [`Connection`] is then a connection of HTTP/1, which carries one request after the other; [`Http2Stream`] is one stream of a
//! connection of HTTP/2, which [`Http2`] serves. Both show the same [`Downstream`] to the engine that forwards requests.
//! [`open_connections`] counts what is open, for the shutdown.
//!
//! Decides nothing about a request, and knows no backend.

pub(crate) mod acceptor;
mod connection;
mod http2;
pub(crate) mod open_connections;
pub(crate) mod proxy_protocol;

use std::io;
use std::net::IpAddr;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Method};
use pingora::http::ResponseHeader;

pub(crate) use crate::downstream::connection::{BodyLength, Connection};
pub(crate) use crate::downstream::http2::{Accepted, Http2, Http2Limits, Http2Stream};
use crate::http::http1::{ChunkError, ResponseBody, ResponseHead};
use crate::http::scheme::Scheme;
use crate::tunnel::Socket;

/// What became of reading a piece of a request's body.
#[derive(Debug)]
pub(crate) enum BodyEvent {
    /// Content has come.
    Content,
    /// The body is over; with its trailers, if it has any.
    End(Option<HeaderMap>),
}

/// Why a request's body cannot be read any further.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the client left in the middle of its request")]
    ClientLeft,
    #[error(transparent)]
    Chunk(#[from] ChunkError),
}

/// What is seen of a client that has sent all of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientEnd {
    /// It sends no more. It may have left, or wait for its response.
    HalfClosed,
    /// It has left.
    Gone,
}

/// Why a piece of a response cannot be passed on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PassError {
    #[error("the client left before the end of the response")]
    Client(#[source] io::Error),
    #[error("the backend sent a wrong chunk")]
    Chunk(#[from] ChunkError),
}

/// A client that has made a request.
pub(crate) trait Downstream: Sized + Send {
    /// Whether the connection may carry another request behind this one, if all of this one is read.
    const CARRIES_ANOTHER: bool;

    /// The address of the client, and the scheme of its connection.
    fn origin(&self) -> (IpAddr, Scheme);

    /// Reads a piece of the request's body, and gives its content to `content`, once or several times.
    ///
    /// # Errors
    ///
    /// [`BodyError`]; nothing more may be read then.
    fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        content: impl FnMut(&[u8]),
    ) -> Poll<Result<BodyEvent, BodyError>>;

    /// Whether all of the request's body has been read.
    fn body_is_over(&self) -> bool;

    /// Ready when the client sends nothing more, as far as that shows behind its request. Not to be called again after
    /// [`ClientEnd::Gone`]; after [`ClientEnd::HalfClosed`] it is ready only when it is seen to have left.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<ClientEnd>;

    /// Ready when the client ends its side of the connection, or leaves, while its body stays unread. What is read meanwhile is kept,
    /// within bounds.
    fn poll_end_unread(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Has an interim response (1xx) go out with the next flush, if the client's protocol has them.
    fn interim(&mut self, head: &ResponseHead);

    /// The same, of a 100 of our own.
    fn interim_continue(&mut self);

    /// Has a response of the edge itself to a request with `method` go out with the next flush. `last` is whether the connection
    /// ends with it.
    fn own_response(&mut self, head: &ResponseHeader, body: Bytes, method: &Method, last: bool);

    /// Begins the response of a backend: its head goes out with the next flush. `last` is whether the connection is to end behind
    /// it; returns whether it does.
    fn begin_response(&mut self, head: &mut ResponseHead, body: &ResponseBody, last: bool) -> bool;

    /// How many bytes of the response may be passed on now. Pending while the client does not take what it was sent.
    ///
    /// # Errors
    ///
    /// What writing fails with.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>>;

    /// Passes on bytes that have come of `body`, no more than there is room for. None at all, of a body that ends with its
    /// connection, is its end. Returns whether some are no part of the body.
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

    /// All of the response has been passed on.
    ///
    /// # Errors
    ///
    /// What writing fails with.
    fn end_response(&mut self, body: &mut ResponseBody) -> io::Result<()>;

    /// Sends what is to go out. Pending while the client does not take it.
    ///
    /// # Errors
    ///
    /// What writing fails with.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ends the response where it is, so that the client sees that it is cut off. Nothing is called behind it.
    fn cut_off(&mut self);

    /// Closes the connection such that what was written arrives.
    fn close(self) -> impl Future<Output = ()> + Send;

    /// Tells the client that its upgrade has succeeded, with the next flush.
    ///
    /// # Errors
    ///
    /// What writing fails with.
    fn accept_upgrade(&mut self, head: &mut ResponseHead, protocol: &str) -> io::Result<()>;

    /// The connection of an upgrade that was accepted and flushed, and what was read from it and not used.
    fn into_tunnel(self) -> (Socket, Vec<u8>);
}
