//! What a process or its machine runs out of when it dials: failures that say nothing about who was dialled.

use std::io;

/// What was missing for a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// A descriptor, memory for one more socket, or the kernel's leave to send (its table of connections may be full): nobody
    /// can be dialled.
    Sockets,
    /// A local port towards this one address, or an address of our own in its family: others can be dialled.
    Ports,
}

impl Shortage {
    /// The one that `error` tells of, if any.
    pub(crate) fn of(error: &io::Error) -> Option<Self> {
        match error.raw_os_error()? {
            libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EPERM => {
                Some(Self::Sockets)
            }
            libc::EADDRNOTAVAIL => Some(Self::Ports),
            _ => None,
        }
    }
}
