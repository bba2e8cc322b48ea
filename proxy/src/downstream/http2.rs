//! Client connections of HTTP/2 (RFC 9113): one task for each, and one for each stream.
//!
//! Every state has a deadline: the preface has `timeouts.http2_preface`, a connection without a stream has `timeouts.keepalive`,
//! and the request of a stream has those of any request. What a connection may hold is bounded by the number of its streams
//! (`limits.http2_streams`) and what each may have unsent (`limits.http2_send_buffer`).

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

/// What one connection may send before it is read: enough for a few streams whose backends are slow.
const CONNECTION_WINDOW: u32 = 256 * 1024;

/// How long a connection that is told to go has for what is under way in its buffers.
const GOODBYE: Duration = Duration::from_secs(1);

/// What a connection may take, in time and in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Http2Limits {
    /// From the end of the TLS handshake to the end of the preface.
    pub(crate) preface: Duration,
    /// Without a stream.
    pub(crate) idle: Duration,
    /// At a time.
    pub(crate) streams: u32,
    /// Bytes that one stream may have given to the connection and not sent.
    pub(crate) send_buffer: usize,
    /// Of the headers of a request, in bytes, as RFC 9113, 6.5.2 counts them.
    pub(crate) head_size: usize,
    /// Whether WebSockets are served (RFC 8441).
    pub(crate) websockets: bool,
}

/// Serves connections of HTTP/2.
pub(crate) struct Http2 {
    pub(crate) limits: Http2Limits,
    pub(crate) connections: Arc<Connections>,
}

/// A request of one stream, before anything is known of it.
pub(crate) struct Accepted {
    pub(crate) request: http::request::Parts,
    pub(crate) stream: Http2Stream,
}

/// The streams of one connection that are open, tunnels among them.
#[derive(Default)]
struct Open {
    count: AtomicUsize,
    /// Told when the last one ends.
    none: Notify,
}

/// One open stream.
pub(crate) struct OpenStream(Arc<Open>);

impl OpenStream {
    fn new(open: &Arc<Open>) -> Self {
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

impl Open {
    async fn none(&self) {
        while self.count.load(Ordering::Relaxed) != 0 {
            self.none.notified().await;
        }
    }
}

impl Http2 {
    /// Serves one connection, each of its streams by `serve`, until its end.
    ///
    /// # Cancel safety
    ///
    /// Dropping it closes the connection and aborts its requests; tunnels see a client that has left.
    pub(crate) async fn serve<F>(&self, io: Stream, serve: impl Fn(Accepted) -> F)
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
        let open = Arc::new(Open::default());
        let mut streams = JoinSet::new();
        self.accept(&mut connection, origin, &open, &mut streams, serve)
            .await;
        drop(connection);
        // Their streams are gone, and each request sees that by itself.
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
        open: &Arc<Open>,
        streams: &mut JoinSet<()>,
        serve: impl Fn(Accepted) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let draining = self.connections.draining();
        let mut goes = false;
        loop {
            tokio::select! {
                biased;
                () = draining.cancelled(), if !goes => {
                    goes = true;
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
                    streams.spawn(serve(Accepted { request, stream }));
                }
                Some(ended) = streams.join_next() => log_panic(ended),
                () = idle(open, self.limits.idle) => break,
                () = refused(open, &self.connections) => break,
            }
        }
        if !goes {
            connection.graceful_shutdown();
        }
        // Whoever opens a stream now has not seen that yet, and tries again elsewhere.
        let closing = async { while let Some(Ok(_)) = connection.accept().await {} };
        let _ = timeout(GOODBYE, closing).await;
    }
}

/// Ready when no stream has been open for `limit`.
async fn idle(open: &Open, limit: Duration) {
    open.none().await;
    sleep(limit).await;
}

/// Ready when the edge ends at once and no stream is open.
async fn refused(open: &Open, connections: &Connections) {
    connections.refused().await;
    open.none().await;
}

/// How many of `wanted` bytes, one at least, the client and the connection have room for.
///
/// What is reserved is missed by other streams until it is sent: nothing is asked for in advance.
fn poll_capacity(
    send: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
    wanted: usize,
) -> Poll<io::Result<usize>> {
    send.reserve_capacity(wanted);
    loop {
        // It is told once of what it has got.
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
