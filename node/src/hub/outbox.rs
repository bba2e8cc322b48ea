//! The output of one client: a queue bounded in bytes, filled by the hub, drained by the client's own task.
//!
//! A [`SocketOutbox`] does all writes to a WebSocket: the hub writes to the socket directly, and only what the socket does
//! not accept is queued. A [`QueueOutbox`] holds messages for a client over HTTP, until a receiver takes them.
//!
//! Of a channel whose slow readers get only the newest publication, at most one is queued: a newer one replaces it. Either
//! outbox can reserve the place of a reply that is not ready yet, and holds back what is sent after it.
//!
//! Nothing here blocks. A full outbox disconnects its own client and no other.
//!
//! Messages of a channel are for its members only. Membership is checked under the outbox's lock, so everything that is
//! sent to a client after it has left a channel follows all that it got of it.

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

/// A queued message.
#[derive(Debug, Clone)]
struct Waiting {
    bytes: Bytes,
    /// The channel whose next publication replaces it; 0: none.
    latest_of: u64,
}

impl Waiting {
    fn new(bytes: Bytes) -> Self {
        Self {
            bytes,
            latest_of: 0,
        }
    }

    /// Its cost against the outbox's limit.
    fn cost(&self) -> usize {
        cost(&self.bytes)
    }
}

/// The cost of `bytes` against an outbox's limit: their length and the size of the handle, so that many tiny messages are
/// bounded too.
fn cost(bytes: &Bytes) -> usize {
    bytes.len() + mem::size_of::<Bytes>()
}
