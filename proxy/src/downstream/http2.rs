//! HTTP/2 client connections (RFC 9113): one task for each, and one for each stream.
//!
//! Every state has a deadline: `timeouts.http2_preface` for the preface, `timeouts.keepalive` for a connection without streams,
//! and the deadlines of any request for a stream. The memory of a connection is bounded by the number of its streams
//! (`limits.http2_streams`) and the unsent bytes of each (`limits.http2_send_buffer`).

mod stream;
mod tunnel;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use h2::server::{Builder, Connection};
use pingora::protocols::Stream;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::downstream::Downstream;
pub(crate) use crate::downstream::http2::stream::Http2Stream;
use crate::downstream::open_connections::Connections;
use crate::http::scheme::Scheme;

/// The receive window of a connection: enough for a few streams whose backends are slow.
const CONNECTION_WINDOW: u32 = 256 * 1024;

/// How long a connection has after its last GOAWAY to send what is buffered.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// The limits of a connection, in time and in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Http2Limits {
    /// From the end of the TLS handshake to the end of the preface.
    pub(crate) preface: Duration,
    /// How long a connection may have no stream.
    pub(crate) idle: Duration,
    /// The most streams at a time.
    pub(crate) streams: u32,
    /// The most unsent bytes of one stream.
    pub(crate) send_buffer: usize,
    /// The size of a request's headers in bytes, as RFC 9113, 6.5.2 counts them.
    pub(crate) head_size: usize,
    /// Whether WebSockets are served (RFC 8441).
    pub(crate) websockets: bool,
}

/// Serves HTTP/2 connections.
pub(crate) struct Http2 {
    pub(crate) limits: Http2Limits,
    pub(crate) connections: Arc<Connections>,
}

/// The request of a new stream, not validated yet.
pub(crate) struct Http2Request {
    pub(crate) request: http::request::Parts,
    pub(crate) stream: Http2Stream,
}

/// The open streams of one connection, including tunnels.
#[derive(Default)]
struct OpenStreams {
    count: AtomicUsize,
    /// Notified when the last one ends.
    none: Notify,
}

/// One open stream.
pub(crate) struct OpenStream(Arc<OpenStreams>);

impl OpenStream {
    fn new(open: &Arc<OpenStreams>) -> Self {
        open.count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(open))
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.none.notify_one();
        }
    }
}

impl OpenStreams {
    async fn none(&self) {
        while self.count.load(Ordering::Relaxed) != 0 {
            self.none.notified().await;
        }
    }
}

impl Http2 {
    /// Serves one connection until its end, each of its streams with `serve`.
    ///
    /// # Cancel safety
    ///
    /// Dropping it closes the connection and aborts its requests; its tunnels see a disconnected client.
    pub(crate) async fn serve<F>(&self, io: Stream, serve: impl Fn(Http2Request) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let origin = crate::downstream::Connection::new(io);
        let (origin, io) = (origin.origin(), origin.into_io());
        let handshake = self.builder().handshake::<_, Bytes>(io);
        let mut connection = match timeout(self.limits.preface, handshake).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return tracing::debug!(%error, "HTTP/2 preface"),
            Err(_) => return tracing::debug!("HTTP/2 preface not complete in time"),
        };
        let open = Arc::new(OpenStreams::default());
        let mut streams = JoinSet::new();
        self.accept(&mut connection, origin, &open, &mut streams, serve)
            .await;
        drop(connection);
        // The streams are reset; each request detects that and ends.
        while let Some(ended) = streams.join_next().await {
            log_panic(ended);
        }
    }

    fn builder(&self) -> Builder {
        let limits = &self.limits;
        let mut builder = h2::server::Builder::new();
        builder
            .max_concurrent_streams(limits.streams)
            .max_send_buffer_size(limits.send_buffer)
            .max_header_list_size(u32::try_from(limits.head_size).unwrap_or(u32::MAX))
            .initial_connection_window_size(CONNECTION_WINDOW);
        if limits.websockets {
            builder.enable_connect_protocol();
        }
        builder
    }

    /// Accepts streams until the connection is over.
    async fn accept<F>(
        &self,
        connection: &mut Connection<Stream, Bytes>,
        origin: (IpAddr, Scheme),
        open: &Arc<OpenStreams>,
        streams: &mut JoinSet<()>,
        serve: impl Fn(Http2Request) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let draining = self.connections.draining();
        let mut is_closing = false;
        loop {
            tokio::select! {
                biased;
                () = draining.cancelled(), if !is_closing => {
                    is_closing = true;
                    connection.graceful_shutdown();
                }
                accepted = connection.accept() => {
                    let (request, respond) = match accepted {
                        Some(Ok(accepted)) => accepted,
                        Some(Err(error)) => return tracing::debug!(%error, "HTTP/2 connection"),
                        None => return,
                    };
                    let (request, body) = request.into_parts();
                    let stream = Http2Stream::new(origin, body, respond, OpenStream::new(open));
                    streams.spawn(serve(Http2Request { request, stream }));
                }
                Some(ended) = streams.join_next() => log_panic(ended),
                () = idle(open, self.limits.idle) => break,
                () = closed_when_idle(open, &self.connections) => break,
            }
        }
        if !is_closing {
            connection.graceful_shutdown();
        }
        // A client that opens a stream before it has seen the GOAWAY retries it on another connection.
        let closing = async { while let Some(Ok(_)) = connection.accept().await {} };
        let _ = timeout(CLOSE_GRACE, closing).await;
    }
}

/// Ready when no stream has been open for `limit`.
async fn idle(open: &OpenStreams, limit: Duration) {
    open.none().await;
    sleep(limit).await;
}

/// Ready when idle connections are to be closed and no stream is open.
async fn closed_when_idle(open: &OpenStreams, connections: &Connections) {
    connections.closing_idle().await;
    open.none().await;
}

/// How many of `wanted` bytes, at least one, flow control allows to send.
///
/// Reserved capacity is not available to other streams until it is used, so none is reserved in advance.
fn poll_capacity(
    send: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
    wanted: usize,
) -> Poll<io::Result<usize>> {
    send.reserve_capacity(wanted);
    loop {
        // `poll_capacity` reports new capacity only once.
        let room = send.capacity();
        if room > 0 {
            return Poll::Ready(Ok(room.min(wanted)));
        }
        match ready!(send.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a request panicked");
    }
}

#[cfg(test)]
mod tests;
