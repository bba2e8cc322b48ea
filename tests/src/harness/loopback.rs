//! Addresses of this machine that nobody else uses.
//!
//! On Linux all of 127.0.0.0/8 is this machine, and connections leave from 127.0.0.1 unless they are told otherwise. So a
//! port of another address there stays free while its owner is down: no other test's listener gets it, no connection
//! leaves from it, and a client that dials it in vain cannot come to be connected to itself.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process,
    sync::atomic::{AtomicU8, Ordering},
};

/// An address that this process has not had yet (within 254 calls), and most likely no other one.
#[must_use]
pub fn own() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed) % 254 + 1;
    let [_, _, high, low] = process::id().to_be_bytes();
    Ipv4Addr::new(127, high.max(1), low, number)
}

/// Such an address with a port for the kernel to choose.
#[must_use]
pub fn own_any_port() -> SocketAddr {
    SocketAddr::from((own(), 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_are_alike_and_none_is_the_usual_one() {
        let (one, other) = (own(), own());
        assert_ne!(one, other);
        assert!(one.is_loopback() && one != Ipv4Addr::LOCALHOST);
    }
}
