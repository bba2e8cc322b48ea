//! Limits on concurrent use per client address.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

/// Locks of a table; a power of two.
const SHARDS: usize = 16;

/// The key of a client address.
///
/// For IPv6 it is the first half: a subscriber has a whole /64, so limits on single addresses would have no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Source(pub(super) u64);

impl Source {
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            // Cannot collide with IPv6: no client has an address in ::/32.
            IpAddr::V4(address) => Self(u64::from(address.to_bits())),
            IpAddr::V6(address) => Self((address.to_bits() >> 64) as u64),
        }
    }
}

/// A limit on the permits that each client address holds at a time.
///
/// The table is exact: it has an entry for each address that holds a permit, and no others.
#[derive(Debug)]
pub(super) struct PerAddress {
    /// With [`NO_LIMIT`] permits are not counted.
    most: AtomicU32,
    held: Arc<Held>,
}

const NO_LIMIT: u32 = u32::MAX;

#[derive(Debug, Default)]
struct Held {
    hasher: RandomState,
    shards: [Mutex<HashMap<Source, u32>>; SHARDS],
}

/// One permit of an address, released on drop.
#[derive(Debug)]
pub(crate) struct AddressPermit {
    held: Arc<Held>,
    source: Source,
}

impl PerAddress {
    /// At most `most` permits per address; `None` is no limit.
    pub(super) fn new(most: Option<u32>) -> Self {
        Self {
            most: AtomicU32::new(most.unwrap_or(NO_LIMIT)),
            held: Arc::default(),
        }
    }

    /// Changes the limit. What was allowed while there was no limit is not counted.
    pub(super) fn change(&self, most: Option<u32>) {
        self.most.store(most.unwrap_or(NO_LIMIT), Ordering::Relaxed);
    }

    /// A permit for `address`; `Ok(None)` if there is no limit.
    ///
    /// # Errors
    ///
    /// [`AddressLimitReached`] while the address holds as many permits as it may.
    pub(super) fn try_acquire(
        &self,
        address: IpAddr,
    ) -> Result<Option<AddressPermit>, AddressLimitReached> {
        let most = self.most.load(Ordering::Relaxed);
        if most == NO_LIMIT {
            return Ok(None);
        }
        let source = Source::of(address);
        let mut held = self.held.shard(source).lock();
        let count = held.entry(source).or_insert(0);
        if most <= *count {
            return Err(AddressLimitReached);
        }
        *count += 1;
        Ok(Some(AddressPermit {
            held: Arc::clone(&self.held),
            source,
        }))
    }
}

impl PerAddress {
    /// A permit beyond any limit, for the address with this [`AddressPermit::source`]; `None` if there is no limit.
    pub(super) fn acquire(&self, source: u64) -> Option<AddressPermit> {
        if self.most.load(Ordering::Relaxed) == NO_LIMIT {
            return None;
        }
        let source = Source(source);
        *self.held.shard(source).lock().entry(source).or_insert(0) += 1;
        Some(AddressPermit {
            held: Arc::clone(&self.held),
            source,
        })
    }
}

impl AddressPermit {
    /// What stands for the address, also in another process.
    pub(super) fn source(&self) -> u64 {
        self.source.0
    }
}

/// The address holds as many permits as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AddressLimitReached;

impl Held {
    fn shard(&self, source: Source) -> &Mutex<HashMap<Source, u32>> {
        let hash = self.hasher.hash_one(source);
        &self.shards[usize::try_from(hash % SHARDS as u64).unwrap_or_default()]
    }
}

impl Drop for AddressPermit {
    fn drop(&mut self) {
        let mut held = self.held.shard(self.source).lock();
        if let Entry::Occupied(mut count) = held.entry(self.source) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        // Frees the memory of a flood.
        if held.len() * 4 < held.capacity() {
            let room = held.len() * 2;
            held.shrink_to(room);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// The number of addresses that hold permits.
    fn holders(limit: &PerAddress) -> usize {
        let shards = limit.held.shards.iter();
        shards.map(|shard| shard.lock().len()).sum()
    }

    #[test]
    fn each_address_has_its_own_permits() {
        let limit = PerAddress::new(Some(2));
        let acquire = |text| limit.try_acquire(address(text)).ok().map(Option::unwrap);
        let first = acquire("192.0.2.1").unwrap();
        let _second = acquire("::ffff:192.0.2.1").unwrap();
        assert!(acquire("192.0.2.1").is_none());
        let _third = acquire("192.0.2.2").unwrap();
        drop(first);
        assert!(acquire("192.0.2.1").is_some());
        assert_eq!(holders(&limit), 2);
        drop((_second, _third));
        assert_eq!(holders(&limit), 0);
    }

    #[test]
    fn an_ipv6_64_counts_as_one_client() {
        let limit = PerAddress::new(Some(1));
        let _one = limit.try_acquire(address("2001:db8:1:2::1")).unwrap();
        assert!(limit.try_acquire(address("2001:db8:1:2:ffff::7")).is_err());
        assert!(limit.try_acquire(address("2001:db8:1:3::1")).is_ok());
    }

    #[test]
    fn only_what_is_acquired_under_a_limit_is_counted() {
        let limit = PerAddress::new(None);
        let client = address("192.0.2.1");
        assert!(limit.try_acquire(client).unwrap().is_none());
        assert_eq!(holders(&limit), 0);
        limit.change(Some(1));
        let _held = limit.try_acquire(client).unwrap().unwrap();
        assert!(limit.try_acquire(client).is_err());
        limit.change(Some(2));
        assert!(limit.try_acquire(client).is_ok());
    }
}
