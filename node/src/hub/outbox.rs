//! What waits for one client: bounded in bytes, filled by the hub, emptied by the client's own task.
//!
//! A [`SocketOutbox`] is a WebSocket's whole way out: the hub writes to the socket itself and only what
//! the socket does not take waits here. A [`QueueOutbox`] holds messages for a client over HTTP, whose
//! receivers come and go.
//!
//! Of a channel whose slow readers get only the newest publication, at most one waits: a newer one takes
//! its place. Either outbox can keep a place for a reply that is not ready yet, and holds back what comes behind it.
//!
//! Nothing here ever waits. Whoever fills an outbox past its limit ends that client and no other.
//!
//! What the hub sends is meant for the members of a channel. Whether the client is one still is asked under the
//! outbox's lock: what others send it after it has left stands behind all that it got.

use std::mem;

use bytes::Bytes;

mod held;
mod queue;
mod shedding;
mod socket;

pub(crate) use held::Hold;
pub(crate) use queue::Closed;
pub(crate) use queue::QueueFormat;
pub(crate) use queue::QueueOutbox;
pub(crate) use shedding::Queued;
pub(crate) use shedding::shed;
pub(crate) use socket::SocketOutbox;
pub(crate) use socket::SocketState;

/// Something that waits, and of which channel it is the newest; 0: of none.
#[derive(Debug, Clone)]
struct Waiting {
    bytes: Bytes,
    latest_of: u64,
}

impl Waiting {
    fn new(bytes: Bytes) -> Self {
        Self {
            bytes,
            latest_of: 0,
        }
    }

    /// What it counts for against its outbox's limit.
    fn cost(&self) -> usize {
        cost(&self.bytes)
    }
}

/// What `bytes` count for against an outbox's limit: themselves and the handle that holds them, so that
/// many tiny messages are bounded too.
fn cost(bytes: &Bytes) -> usize {
    bytes.len() + mem::size_of::<Bytes>()
}
