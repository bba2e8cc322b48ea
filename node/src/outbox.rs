//! What waits for one client: bounded in bytes, filled by the hub, emptied by the client's own task.
//!
//! A [`SocketOutbox`] is a WebSocket's whole way out: the hub writes to the socket itself and only what
//! the socket does not take waits here. A [`QueueOutbox`] holds messages for a SockJS session, whose
//! receivers come and go.
//!
//! Nothing here ever waits. Whoever fills an outbox past its limit ends that client and no other.

use std::mem;

use bytes::Bytes;

mod queue;
mod socket;

pub(crate) use queue::Closed;
pub(crate) use queue::QueueOutbox;
pub(crate) use socket::SocketOutbox;
pub(crate) use socket::SocketState;

/// What `bytes` count for against an outbox's limit: themselves and the handle that holds them, so that
/// many tiny messages are bounded too.
fn cost(bytes: &Bytes) -> usize {
    bytes.len() + mem::size_of::<Bytes>()
}
