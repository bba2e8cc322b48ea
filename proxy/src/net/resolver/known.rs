//! What is known of one host name, and when it has to be looked up: no lookup is made here.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::net::resolver::ADDRESSES_MAX;

/// How long an answer counts as new: long enough to spare lookups, and a backend that moved is found within it.
const REFRESH: Duration = Duration::from_secs(5);

/// How soon a name is looked up again after a lookup that failed, or when an address does not answer.
const SOON: Duration = Duration::from_secs(1);

/// What is known of one host name.
///
/// Invariant: once there are addresses, there always are.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// In the order in which they are to be dialled: one that failed is behind the others.
    addresses: Option<Arc<[SocketAddr]>>,
    /// How the last lookup failed, if it did.
    failure: Option<(io::ErrorKind, String)>,
    /// When the last lookup ended.
    looked_up: Option<Instant>,
    /// Whether an address was found dead since then.
    doubtful: bool,
    under_way: bool,
}

impl Known {
    /// Whether there is an answer, if only a bad one.
    pub(super) fn is_settled(&self) -> bool {
        self.addresses.is_some() || !self.under_way
    }

    /// The answer as it stands.
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

    pub(super) fn is_under_way(&self) -> bool {
        self.under_way
    }

    /// Whether a lookup is to be started at `now`; from then on it is under way.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        let pause = if self.is_failing() || self.doubtful {
            SOON
        } else {
            REFRESH
        };
        let due = self
            .looked_up
            .is_none_or(|looked_up| looked_up + pause <= now);
        let begins = due && !self.under_way;
        self.under_way |= begins;
        begins
    }

    /// Takes in what the lookup under way found. A failure, or no address at all, leaves those that are known.
    pub(super) fn end(&mut self, found: io::Result<Vec<SocketAddr>>, now: Instant) {
        debug_assert!(self.under_way, "a lookup ends once");
        self.under_way = false;
        self.doubtful = false;
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

    /// Puts `address` behind the others if it is the first. Whether that changes anything.
    pub(super) fn set_back(&mut self, address: SocketAddr) -> bool {
        let Some(addresses) = &mut self.addresses else {
            return false;
        };
        self.doubtful = true;
        if addresses.first() != Some(&address) {
            return false;
        }
        let mut turned = addresses.to_vec();
        turned.rotate_left(1);
        *addresses = turned.into();
        true
    }

    /// The new addresses begin with the one that came first until now, if it is among them: it is the one that answers.
    fn replace(&mut self, mut found: Vec<SocketAddr>) {
        found.truncate(ADDRESSES_MAX);
        let first = self.addresses.as_ref().and_then(|known| known.first());
        let at = first.and_then(|first| found.iter().position(|address| address == first));
        found.rotate_left(at.unwrap_or_default());
        self.addresses = Some(found.into());
    }

    #[cfg(test)]
    pub(super) fn for_ever(addresses: &[SocketAddr]) -> Self {
        Self {
            addresses: Some(addresses.into()),
            under_way: true,
            ..Self::default()
        }
    }
}
