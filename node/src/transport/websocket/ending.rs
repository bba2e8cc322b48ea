//! The end of a connection: the close handshake, as far as the client goes along, then TCP's.

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

/// Takes the client out of the hub and shuts its socket down, after the close handshake or when
/// [`CLOSE_TIMEOUT`] is over. The server ends TCP first, as RFC 6455 section 7.1.1 asks.
///
/// Commands of a channel client that has ended by itself are carried out to the last one, and it is in its channels until
/// then: what it published before it closed counts. Of one that is sent away nothing more is begun.
pub(super) async fn finish(connection: Connection, end: End) -> Arc<SocketOutbox> {
    let Connection {
        outbox,
        reader,
        peer,
        work,
        ..
    } = connection;
    let rest = async {
        let Some(Work::Commands(mut commands)) = work.map(|work| *work) else {
            return drop(peer); // The client, and with it its memberships.
        };
        let peer = match end {
            End::Closed | End::Lost => Some(peer),
            End::Closing | End::Failed => {
                drop(peer);
                commands.close();
                None
            }
        };
        poll_fn(|cx| commands.poll(cx)).await;
        drop(peer);
    };
    let farewell = async {
        match end {
            End::Lost => {}
            End::Closed => flush(&outbox).await,
            End::Closing => await_close(&outbox, reader).await,
            End::Failed => {
                flush(&outbox).await;
                outbox.shut_down_write();
                discard(&outbox).await;
            }
        }
    };
    let ended = async {
        // One that takes longer is cut: it was given its time.
        let _ = time::timeout(CLOSE_TIMEOUT, farewell).await;
        outbox.shut_down();
    };
    tokio::join!(rest, ended);
    outbox
}

async fn flush(outbox: &SocketOutbox) {
    poll_fn(|cx| outbox.poll_flush(cx)).await;
}

/// Waits until our close frame is out and the client's is in.
async fn await_close(outbox: &SocketOutbox, mut reader: Reader) {
    let ignore = |_, _| ControlFlow::Continue(());
    // It may have stopped between two messages of one read.
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

/// Reads until the client ends. Closing a socket with unread bytes in it would reset the connection, and
/// a reset can overtake the close frame.
async fn discard(outbox: &SocketOutbox) {
    let ended = |cx: &mut Context<'_>| {
        while ready!(scratch::poll_read(outbox.stream(), cx, <[u8]>::len)).unwrap_or(0) != 0 {}
        Poll::Ready(())
    };
    poll_fn(ended).await;
}
