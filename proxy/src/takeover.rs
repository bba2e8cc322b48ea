//! Takeover: a new process takes over the sockets of the running one, and no client notices.
//!
//! The running process is the *predecessor*, the new one the *successor*. They talk over a unix socket (`takeover.socket`), to which
//! only processes of the same user can connect. The successor gets the listening sockets, and begins to accept; then the predecessor
//! stops accepting, and sends its idle connections and tunnels in batches. What cannot be sent stays where it is, and is drained.
//!
//! [`wire`] has the messages as bytes, [`channel`] carries them with their descriptors. [`Predecessor`] and [`Successor`] are the
//! services of both processes, [`transfer`] is what the former sends once the latter accepts, and [`launch`] starts a successor from
//! the file of this program.
//!
//! Invariant: of two processes one reads and writes a socket. The predecessor parks a tunnel or a connection, so that nothing reads
//! or writes it, before it sends it, and gives it up for good when it has sent the commit; the successor neither reads nor writes before it
//! has the commit. Until then the predecessor can continue everything, and does so if the successor fails.

mod channel;
mod launch;
mod predecessor;
mod successor;
mod transfer;
mod wire;

pub(crate) use crate::takeover::launch::Launcher;
pub(crate) use crate::takeover::predecessor::Predecessor;
pub(crate) use crate::takeover::successor::{Inheritance, Successor};

/// What the socket is called in errors.
pub(crate) const SOCKET_NAME: &str = "takeover socket";

/// The most tunnels of a batch that a successor takes: predecessors of older versions send so many.
const BATCH_TUNNELS_MAX: usize = 100;
