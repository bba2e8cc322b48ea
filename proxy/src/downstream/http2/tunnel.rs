//! An HTTP/2 stream as the client side of a tunnel (RFC 8441, 5): DATA frames carry its bytes, END_STREAM ends it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h2::{RecvStream, SendStream};
use pingora::protocols::Ssl;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::downstream::http2::{OpenStream, poll_capacity};
use crate::net::pingora_stream::pingora_stream;

/// The most bytes of one write.
const PIECE: usize = 16 * 1024;

/// Both directions of a stream, for a tunnel.
pub(super) struct Http2Tunnel {
    receive: RecvStream,
    send: SendStream<Bytes>,
    /// Received, but not read yet.
    received: Bytes,
    has_ended: bool,
    _open: OpenStream,
}

impl Http2Tunnel {
    pub(super) fn new(receive: RecvStream, send: SendStream<Bytes>, open: OpenStream) -> Self {
        Self {
            receive,
            send,
            received: Bytes::new(),
            has_ended: false,
            _open: open,
        }
    }
}

impl std::fmt::Debug for Http2Tunnel {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Http2Tunnel")
            .finish_non_exhaustive()
    }
}

impl AsyncRead for Http2Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.received.is_empty() {
            match ready!(this.receive.poll_data(cx)) {
                Some(data) => this.received = data.map_err(io::Error::other)?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = this.received.len().min(buffer.remaining());
        buffer.put_slice(&this.received[..count]);
        this.received.advance(count);
        // Only reading opens the flow-control window again.
        let released = this.receive.flow_control().release_capacity(count);
        Poll::Ready(released.map_err(io::Error::other))
    }
}

impl AsyncWrite for Http2Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let wanted = data.len().min(PIECE);
        let count = ready!(poll_capacity(&mut self.send, cx, wanted))?;
        let piece = Bytes::copy_from_slice(&data[..count]);
        let sent = self.send.send_data(piece, false);
        Poll::Ready(sent.map(|()| count).map_err(io::Error::other))
    }

    /// Nothing to do: the connection's task sends queued data.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::replace(&mut self.has_ended, true) {
            return Poll::Ready(Ok(()));
        }
        let sent = self.send.send_data(Bytes::new(), true);
        Poll::Ready(sent.map_err(io::Error::other))
    }
}

impl Ssl for Http2Tunnel {}

pingora_stream!([] Http2Tunnel, called |_| -1);
