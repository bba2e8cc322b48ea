//! The future of one client's task: serves its connection, and then ends it.
//!
//! A hand-written future, to save memory: an async function stores its arguments twice, and made the task of an idle client
//! 896 bytes instead of 256.

use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use tracing::debug;

use crate::logging;
use crate::protocol::disconnect::Disconnect;
use crate::transport::websocket::connection::Connection;
use crate::transport::websocket::connection::End;
use crate::transport::websocket::ending;

/// Serves one client until its TCP connection is shut down, and holds `H` until then.
///
/// # Cancel safety
///
/// Dropping it drops the client and its connection without a close frame.
pub(crate) struct Serving<H> {
    stage: Stage,
    _held: H,
}

enum Stage {
    Open(Connection),
    /// Boxed so that an open connection reserves no memory for it.
    Ending(Pin<Box<dyn Future<Output = ()> + Send>>),
    Over,
}

impl<H> Serving<H> {
    pub(super) fn new(connection: Connection, held: H) -> Self {
        Self {
            stage: Stage::Open(connection),
            _held: held,
        }
    }
}

impl<H: Unpin> Future for Serving<H> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let stage = &mut self.stage;
        if let Stage::Open(connection) = stage {
            let end = ready!(connection.poll(cx));
            if let Stage::Open(connection) = std::mem::replace(stage, Stage::Over) {
                *stage = Stage::Ending(Box::pin(finish(connection, end)));
            }
        }
        if let Stage::Ending(ending) = stage {
            ready!(ending.as_mut().poll(cx));
            *stage = Stage::Over;
        }
        Poll::Ready(())
    }
}

async fn finish(connection: Connection, end: End) {
    let metrics = connection.metrics();
    let endpoint = connection.endpoint();
    if let Some(bytes_queued) = connection.outbox.slow_bytes() {
        connection.log_slow(bytes_queued);
    }
    let outbox = ending::finish(connection, end).await;
    if let Some(disconnect) = outbox.disconnect() {
        debug!(reason = disconnect.name, format = ?outbox.format(), "client disconnected");
        metrics.disconnected(disconnect);
        if disconnect == Disconnect::TOO_LARGE {
            let bytes_max = endpoint.received_bytes_max();
            logging::too_large(&endpoint.path, endpoint.received_setting(), bytes_max);
        }
    }
}
