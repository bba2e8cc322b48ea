//! Errors that mean that the process or machine has run out of descriptors or ports, and say nothing about the peer.

use std::io;

/// What is exhausted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exhaustion {
    /// Descriptors, socket memory, or connection tracking entries of the kernel (`EPERM`): no address can be dialled.
    Sockets,
    /// Local ports for this one address, or a local address of its family: other addresses can be dialled.
    Ports,
}

impl Exhaustion {
    /// What `error` says is exhausted, if anything.
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
