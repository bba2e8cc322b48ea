//! The cached addresses of one host name, and when the next lookup is due. Does no lookups itself.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::net::resolver::ADDRESSES_MAX;

/// How long a result is fresh: long enough to save lookups, and short enough to find a backend that moved.
const REFRESH: Duration = Duration::from_secs(5);

/// How soon a name is looked up again after a lookup or a connection attempt failed.
const RETRY: Duration = Duration::from_secs(1);

/// The cached addresses of one host name.
///
/// Invariant: once there are addresses, there always are some.
#[derive(Debug, Default)]
pub(super) struct CacheEntry {
    /// In the order in which to dial them: one that failed comes last.
    addresses: Option<Arc<[SocketAddr]>>,
    /// The error of the last lookup, if it failed.
    failure: Option<(io::ErrorKind, String)>,
    /// When the last lookup ended.
    looked_up: Option<Instant>,
    /// Whether connecting to an address has failed since then.
    address_failed: bool,
    lookup_running: bool,
}

impl CacheEntry {
    /// Whether there is a result, be it an error.
    pub(super) fn has_result(&self) -> bool {
        self.addresses.is_some() || !self.lookup_running
    }

    /// The current result.
    pub(super) fn addresses(&self) -> io::Result<Arc<[SocketAddr]>> {
        match (&self.addresses, &self.failure) {
            (Some(addresses), _) => Ok(Arc::clone(addresses)),
            (None, Some((kind, why))) => Err(io::Error::new(*kind, why.clone())),
            (None, None) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    pub(super) fn is_failing(&self) -> bool {
        self.failure.is_some()
    }

    pub(super) fn lookup_running(&self) -> bool {
        self.lookup_running
    }

    /// Whether a lookup is to be started at `now`. If so, it counts as running from then on.
    pub(super) fn start_lookup(&mut self, now: Instant) -> bool {
        let pause = if self.is_failing() || self.address_failed {
            RETRY
        } else {
            REFRESH
        };
        let due = self
            .looked_up
            .is_none_or(|looked_up| looked_up + pause <= now);
        let begins = due && !self.lookup_running;
        self.lookup_running |= begins;
        begins
    }

    /// Stores the result of the running lookup. A failure, or an empty result, leaves the cached addresses.
    pub(super) fn finish_lookup(&mut self, found: io::Result<Vec<SocketAddr>>, now: Instant) {
        debug_assert!(self.lookup_running, "a lookup ends once");
        self.lookup_running = false;
        self.address_failed = false;
        self.looked_up = Some(now);
        self.failure = match found {
            Ok(found) if found.is_empty() => Some((
                io::ErrorKind::NotFound,
                "the name has no address".to_owned(),
            )),
            Ok(found) => {
                self.replace(found);
                None
            }
            Err(error) => Some((error.kind(), error.to_string())),
        };
    }

    /// Moves `address` to the end if it is the first. Returns whether that changes anything.
    pub(super) fn demote(&mut self, address: SocketAddr) -> bool {
        let Some(addresses) = &mut self.addresses else {
            return false;
        };
        self.address_failed = true;
        if addresses.first() != Some(&address) {
            return false;
        }
        let mut rotated = addresses.to_vec();
        rotated.rotate_left(1);
        *addresses = rotated.into();
        true
    }

    /// Replaces the addresses. The one that came first before stays first, if it is among them: it is known to work.
    fn replace(&mut self, mut found: Vec<SocketAddr>) {
        found.truncate(ADDRESSES_MAX);
        let first = self.addresses.as_ref().and_then(|known| known.first());
        let at = first.and_then(|first| found.iter().position(|address| address == first));
        found.rotate_left(at.unwrap_or_default());
        self.addresses = Some(found.into());
    }

    #[cfg(test)]
    pub(super) fn pinned(addresses: &[SocketAddr]) -> Self {
        Self {
            addresses: Some(addresses.into()),
            lookup_running: true,
            ..Self::default()
        }
    }
}
