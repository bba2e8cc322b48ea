//! Addresses of this machine that nobody else uses.
//!
//! On Linux all of 127.0.0.0/8 is this machine, and connections leave from 127.0.0.1 unless they are told otherwise. So a
//! port of another address there stays free while its owner is down: no other test's listener gets it, no connection
//! leaves from it, and a client that dials it in vain cannot come to be connected to itself.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process,
    sync::atomic::{AtomicU16, Ordering},
};

/// An address that this process has not had yet, and most likely no other one.
///
/// # Panics
///
/// After 64,000 addresses.
#[must_use]
pub fn own() -> Ipv4Addr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let [round, number] = [number / 254, number % 254 + 1];
    let [round, number] = [round, number].map(|part| u8::try_from(part).expect("64,000 at most"));
    let [_, _, high, low] = process::id().to_be_bytes();
    // Rounds are far from each other: process ids that follow each other differ in their lowest bits.
    Ipv4Addr::new(
        127,
        high.max(1),
        low.wrapping_add(round.wrapping_mul(97)),
        number,
    )
}

/// Such an address with a port for the kernel to choose.
#[must_use]
pub fn own_any_port() -> SocketAddr {
    SocketAddr::from((own(), 0))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_are_alike_and_none_is_the_usual_one() {
        let all: BTreeSet<Ipv4Addr> = (0..1000).map(|_| own()).collect();
        assert_eq!(all.len(), 1000);
        assert!(all.iter().all(Ipv4Addr::is_loopback));
        assert!(!all.contains(&Ipv4Addr::LOCALHOST));
    }
}
