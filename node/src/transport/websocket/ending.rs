//! The end of a connection: the close handshake, as far as the client takes part in it, then the end of TCP.

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use tokio::time;

use crate::hub::outbox::SocketOutbox;
use crate::hub::outbox::SocketState;
use crate::transport::websocket::CLOSE_TIMEOUT;
use crate::transport::websocket::connection::Connection;
use crate::transport::websocket::connection::End;
use crate::transport::websocket::peer::Work;
use crate::transport::websocket::reader::Reader;
use crate::transport::websocket::scratch;

/// Removes the client from the hub and shuts its socket down, after the close handshake or after [`CLOSE_TIMEOUT`]. The
/// server ends TCP first, as RFC 6455 section 7.1.1 requires.
///
/// If a channel client has closed the connection, all its commands are executed, and it stays in its channels until then:
/// what it published before closing is not lost. If it is disconnected by the node, no further command is started.
pub(super) async fn finish(connection: Connection, end: End) -> Arc<SocketOutbox> {
    let Connection {
        outbox,
        reader,
        peer,
        work,
        ..
    } = connection;
    let rest = async {
        let commands = match work.map(|work| *work) {
            Some(Work::Commands(commands)) => Some(commands),
            Some(Work::Finishing(finishing)) => finishing.into_commands(),
            _ => None,
        };
        let Some(mut commands) = commands else {
            return drop(peer); // Drops the client and its memberships.
        };
        let peer = match end {
            End::Closed | End::Lost => Some(peer),
            End::Closing | End::Failed | End::HandedOff => {
                drop(peer);
                commands.close();
                None
            }
        };
        poll_fn(|cx| commands.poll(cx)).await;
        drop(peer);
    };
    let disconnect_message = async {
        match end {
            End::Lost => {}
            End::Closed => flush(&outbox).await,
            End::Closing => await_close(&outbox, reader).await,
            End::Failed | End::HandedOff => end_writing(&outbox).await,
        }
    };
    let ended = async {
        // A client that takes longer is disconnected without completing the handshake.
        let _ = time::timeout(CLOSE_TIMEOUT, disconnect_message).await;
        outbox.shut_down();
    };
    tokio::join!(rest, ended);
    outbox
}

/// Has a client connect again that this node was to continue and cannot. What the client has sent meanwhile is dropped.
pub(super) async fn turn_away(outbox: &SocketOutbox) {
    outbox.close_to_reconnect();
    let _ = time::timeout(CLOSE_TIMEOUT, end_writing(outbox)).await;
    outbox.shut_down();
}

/// Writes what is queued, ends the sending direction, and waits until the client has ended the other one.
async fn end_writing(outbox: &SocketOutbox) {
    flush(outbox).await;
    outbox.shut_down_write();
    discard(outbox).await;
}

async fn flush(outbox: &SocketOutbox) {
    poll_fn(|cx| outbox.poll_flush(cx)).await;
}

/// Waits until our close frame is written and the client's is received.
async fn await_close(outbox: &SocketOutbox, mut reader: Reader) {
    let ignore = |_, _| ControlFlow::Continue(());
    // Reading may have paused between two messages of one read.
    let mut ended = reader.resume(outbox, ignore).is_err();
    poll_fn(|cx| {
        loop {
            let flushed = outbox.poll_flush(cx);
            if outbox.state() == SocketState::Dead {
                return Poll::Ready(());
            }
            if ended {
                return flushed;
            }
            let read = scratch::poll_read(outbox.stream(), cx, |input| {
                input.is_empty() || reader.read(outbox, input, ignore).is_err()
            });
            ended = ready!(read).unwrap_or(true);
        }
    })
    .await;
}

/// Reads until the client ends the connection. Closing a socket with unread bytes resets the connection, and a reset can
/// overtake the close frame.
async fn discard(outbox: &SocketOutbox) {
    let ended = |cx: &mut Context<'_>| {
        while ready!(scratch::poll_read(outbox.stream(), cx, <[u8]>::len)).unwrap_or(0) != 0 {}
        Poll::Ready(())
    };
    poll_fn(ended).await;
}
