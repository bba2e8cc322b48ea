//! Looking up the host names of backends.
//!
//! The answer is kept for a short while, so that a name costs no lookup for each request and a backend may still move. A lookup
//! that fails falls back to the last answer: a name server that is away must not take backends away that are not.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The most addresses of one name that are used.
pub(crate) const ADDRESSES_MAX: usize = 8;

/// How long an answer is used: long enough to spare lookups, and a backend that moved is found within it.
const FRESH: Duration = Duration::from_secs(5);

/// The names that were looked up. Bounded, since only configured names get here.
pub(super) struct Names {
    known: Mutex<HashMap<(String, u16), Known>>,
}

#[derive(Clone)]
struct Known {
    /// In the order in which they are to be dialled: one that failed is behind the others.
    addresses: Arc<[SocketAddr]>,
    until: Instant,
}

impl Names {
    pub(super) fn new() -> Self {
        Self {
            known: Mutex::default(),
        }
    }

    /// The addresses of `host` in the order in which they are to be dialled, at least one.
    pub(super) async fn resolve(&self, host: &str, port: u16) -> io::Result<Arc<[SocketAddr]>> {
        let key = (host.to_owned(), port);
        let known = self.known.lock().get(&key).cloned();
        if let Some(known) = &known
            && Instant::now() < known.until
        {
            return Ok(Arc::clone(&known.addresses));
        }
        let looked_up = tokio::net::lookup_host((host, port))
            .await
            .map(|found| found.take(ADDRESSES_MAX).collect::<Arc<[SocketAddr]>>());
        let addresses = match (looked_up, known) {
            (Ok(addresses), known) if !addresses.is_empty() => match known {
                Some(known) => beginning_with(addresses, known.addresses[0]),
                None => addresses,
            },
            (Ok(_), None) => return Err(io::ErrorKind::NotFound.into()),
            (Err(error), None) => return Err(error),
            (failed, Some(known)) => {
                tracing::warn!(host, error = ?failed.err(), "keeps the last addresses of a backend");
                known.addresses
            }
        };
        let known = Known {
            addresses: Arc::clone(&addresses),
            until: Instant::now() + FRESH,
        };
        self.known.lock().insert(key, known);
        Ok(addresses)
    }

    /// Takes note that `address` could not be connected to: the others of `host` are dialled before it from now on.
    pub(super) fn failed(&self, host: &str, port: u16, address: SocketAddr) {
        if let Some(known) = self.known.lock().get_mut(&(host.to_owned(), port))
            && known.addresses[0] == address
        {
            let mut addresses = known.addresses.to_vec();
            addresses.rotate_left(1);
            known.addresses = addresses.into();
        }
    }

    #[cfg(test)]
    pub(super) fn pin(&self, host: &str, port: u16, addresses: &[SocketAddr]) {
        let known = Known {
            addresses: addresses.into(),
            until: Instant::now() + Duration::from_secs(3600),
        };
        self.known.lock().insert((host.to_owned(), port), known);
    }
}

/// `addresses`, turned so that `first` comes first if it is among them.
fn beginning_with(addresses: Arc<[SocketAddr]>, first: SocketAddr) -> Arc<[SocketAddr]> {
    match addresses.iter().position(|address| *address == first) {
        None | Some(0) => addresses,
        Some(at) => {
            let mut addresses = addresses.to_vec();
            addresses.rotate_left(at);
            addresses.into()
        }
    }
}
