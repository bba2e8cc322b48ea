//! One HTTP/2 stream as a [`Downstream`].

use std::io;
use std::net::IpAddr;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Method, Response, StatusCode};
use pingora::http::ResponseHeader;

use crate::downstream::http2::tunnel::Http2Tunnel;
use crate::downstream::http2::{OpenStream, poll_capacity};
use crate::downstream::{BodyError, BodyEvent, ClientEnd, Downstream, PassError};
use crate::http::fields::{Fields, Response as _};
use crate::http::http1::{ResponseBody, ResponseHead, keep_allowed};
use crate::http::scheme::Scheme;
use crate::tunnel::Socket;

/// The most response bytes that are read from a backend before flow control allows to send them.
const PIECE: usize = 16 * 1024;

/// A stream whose request head has been received.
pub(crate) struct Http2Stream {
    origin: (IpAddr, Scheme),
    body: RecvStream,
    body_is_over: bool,
    respond: SendResponse<Bytes>,
    /// Set once the response has begun.
    send: Option<SendStream<Bytes>>,
    /// Response bytes that flow control does not allow to send yet.
    unsent: BytesMut,
    end: End,
    open: OpenStream,
}

/// Whether the end of the response has been sent.
enum End {
    NotYet,
    /// To be sent after the unsent bytes.
    Due(Option<HeaderMap>),
    Sent,
}

impl Http2Stream {
    pub(super) fn new(
        origin: (IpAddr, Scheme),
        body: RecvStream,
        respond: SendResponse<Bytes>,
        open: OpenStream,
    ) -> Self {
        Self {
            origin,
            body_is_over: body.is_end_stream(),
            body,
            respond,
            send: None,
            unsent: BytesMut::new(),
            end: End::NotYet,
            open,
        }
    }

    /// Sends as much as flow control allows, and the end after all of it.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(send) = &mut self.send else {
            return Poll::Ready(Ok(()));
        };
        while !self.unsent.is_empty() {
            let room = ready!(poll_capacity(send, cx, self.unsent.len()))?;
            let piece = self.unsent.split_to(room).freeze();
            send.send_data(piece, false).map_err(io::Error::other)?;
        }
        if let End::Due(trailers) = &mut self.end {
            let sent = match trailers.take() {
                Some(trailers) => send.send_trailers(trailers),
                None => send.send_data(Bytes::new(), true),
            };
            self.end = End::Sent;
            sent.map_err(io::Error::other)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Begins the response with `head`; with `is_over` that is the whole response.
    fn begin(&mut self, head: Option<Response<()>>, is_over: bool) {
        let sent = head.map(|head| self.respond.send_response(head, is_over));
        // If the head cannot be sent, the stream is dropped without a response: the client sees a reset.
        if let Some(Ok(send)) = sent {
            self.send = Some(send);
            if is_over {
                self.end = End::Sent;
            }
        }
    }
}

impl Downstream for Http2Stream {
    const REUSABLE: bool = false;

    fn origin(&self) -> (IpAddr, Scheme) {
        self.origin
    }

    fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        mut content: impl FnMut(&[u8]),
    ) -> Poll<Result<BodyEvent, BodyError>> {
        loop {
            match ready!(self.body.poll_data(cx)) {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    // Counts as consumed: the buffer it is copied to is bounded.
                    let _ = self.body.flow_control().release_capacity(data.len());
                    content(&data);
                    return Poll::Ready(Ok(BodyEvent::Content));
                }
                Some(Err(_)) => return Poll::Ready(Err(BodyError::ClientLeft)),
                None => break,
            }
        }
        let trailers = match ready!(self.body.poll_trailers(cx)) {
            Ok(trailers) => trailers,
            Err(_) => return Poll::Ready(Err(BodyError::ClientLeft)),
        };
        self.body_is_over = true;
        let trailers = trailers.map(|mut trailers| {
            keep_allowed(&mut trailers);
            trailers
        });
        Poll::Ready(Ok(BodyEvent::End(
            trailers.filter(|trailers| !trailers.is_empty()),
        )))
    }

    fn body_is_over(&self) -> bool {
        self.body_is_over
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<ClientEnd> {
        let reset = match &mut self.send {
            Some(send) => send.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        };
        reset.map(|_| ClientEnd::Gone)
    }

    fn poll_end_unread(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_end(cx).map(drop)
    }

    fn interim(&mut self, head: &ResponseHead) {
        if let Some(response) = head.to_http2(head.status()) {
            // A reset by the client is detected elsewhere.
            let _ = self.respond.send_informational(response);
        }
    }

    fn interim_continue(&mut self) {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::CONTINUE;
        let _ = self.respond.send_informational(response);
    }

    fn own_response(&mut self, head: &ResponseHeader, body: Bytes, method: &Method, _last: bool) {
        let mut response = Response::new(());
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers.clone();
        let is_over = body.is_empty() || *method == Method::HEAD;
        self.begin(Some(response), is_over);
        if !is_over {
            self.unsent.extend_from_slice(&body);
            self.end = End::Due(None);
        }
    }

    fn begin_response(&mut self, head: &mut ResponseHead, body: &ResponseBody, last: bool) -> bool {
        head.remove("transfer-encoding");
        let response = head.to_http2(head.status());
        self.begin(response, body.is_over());
        last
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.send.is_none() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(self.poll_send(cx))?;
        Poll::Ready(Ok(PIECE))
    }

    fn pass(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut ResponseBody,
        bytes: &[u8],
    ) -> Result<bool, PassError> {
        let piece = body.take_content(bytes)?;
        self.unsent.extend_from_slice(&piece.bytes);
        match self.poll_send(cx) {
            Poll::Ready(Err(error)) => Err(PassError::Client(error)),
            _ => Ok(piece.has_surplus),
        }
    }

    fn end_response(&mut self, body: &mut ResponseBody) -> io::Result<()> {
        if matches!(self.end, End::NotYet) {
            self.end = End::Due(body.take_trailers());
        }
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(cx)
    }

    fn cut_off(&mut self) {
        match &mut self.send {
            Some(send) => send.send_reset(Reason::INTERNAL_ERROR),
            None => self.respond.send_reset(Reason::INTERNAL_ERROR),
        }
    }

    /// Dropping `self` resets the stream if the request was not read completely (RFC 9113, 8.1).
    async fn close(self) {}

    fn accept_upgrade(&mut self, head: &mut ResponseHead, _protocol: &str) -> io::Result<()> {
        // RFC 8441, 5: 200 instead of 101.
        head.remove("sec-websocket-accept");
        self.begin(head.to_http2(StatusCode::OK), false);
        match self.send {
            Some(_) => Ok(()),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn into_tunnel(self) -> (Socket, Vec<u8>) {
        let send = self.send.expect("the upgrade was accepted");
        let tunnel = Http2Tunnel::new(self.body, send, self.open);
        (Socket::Wrapped(Box::new(tunnel)), Vec::new())
    }
}
