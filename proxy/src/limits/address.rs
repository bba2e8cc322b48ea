//! So many of something at a time, for each client address.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

/// Locks of a table; a power of two.
const SHARDS: usize = 16;

/// What counts as one client address.
///
/// Of IPv6 it is the first half: a subscriber has all of a /64, and would never meet a limit for one address of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Source(pub(super) u64);

impl Source {
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            // No client has an address in ::/32, whose halves these are.
            IpAddr::V4(address) => Self(u64::from(address.to_bits())),
            IpAddr::V6(address) => Self((address.to_bits() >> 64) as u64),
        }
    }
}

/// At most so many of something at a time for each client address.
///
/// An exact table: an address is in it only while it holds something, so that it is as large as what goes on now.
#[derive(Debug)]
pub(super) struct PerAddress {
    /// [`NO_LIMIT`] counts nothing.
    most: AtomicU32,
    held: Arc<Held>,
}

const NO_LIMIT: u32 = u32::MAX;

#[derive(Debug, Default)]
struct Held {
    hasher: RandomState,
    shards: [Mutex<HashMap<Source, u32>>; SHARDS],
}

/// One of an address's places, given back on drop.
#[derive(Debug)]
pub(crate) struct Place {
    held: Arc<Held>,
    source: Source,
}

impl PerAddress {
    /// At most `most` for each address, or any number.
    pub(super) fn new(most: Option<u32>) -> Self {
        Self {
            most: AtomicU32::new(most.unwrap_or(NO_LIMIT)),
            held: Arc::default(),
        }
    }

    /// At most `most` from now on. Those that came while there was no limit are not counted.
    pub(super) fn change(&self, most: Option<u32>) {
        self.most.store(most.unwrap_or(NO_LIMIT), Ordering::Relaxed);
    }

    /// A place for `address`, which is none where there is no limit.
    ///
    /// # Errors
    ///
    /// [`NoPlace`] while it has as many as it may.
    pub(super) fn enter(&self, address: IpAddr) -> Result<Option<Place>, NoPlace> {
        let most = self.most.load(Ordering::Relaxed);
        if most == NO_LIMIT {
            return Ok(None);
        }
        let source = Source::of(address);
        let mut held = self.held.shard(source).lock();
        let count = held.entry(source).or_insert(0);
        if most <= *count {
            return Err(NoPlace);
        }
        *count += 1;
        Ok(Some(Place {
            held: Arc::clone(&self.held),
            source,
        }))
    }
}

/// The address has as many as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoPlace;

impl Held {
    fn shard(&self, source: Source) -> &Mutex<HashMap<Source, u32>> {
        let hash = self.hasher.hash_one(source);
        &self.shards[usize::try_from(hash % SHARDS as u64).unwrap_or_default()]
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.held.shard(self.source).lock();
        if let Entry::Occupied(mut count) = held.entry(self.source) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        // A flood must not leave its table behind.
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

    /// How many addresses hold something.
    fn holders(places: &PerAddress) -> usize {
        let shards = places.held.shards.iter();
        shards.map(|shard| shard.lock().len()).sum()
    }

    #[test]
    fn an_address_has_so_many_places_and_takes_none_of_another() {
        let places = PerAddress::new(Some(2));
        let enter = |text| places.enter(address(text)).ok().map(Option::unwrap);
        let first = enter("192.0.2.1").unwrap();
        let _second = enter("::ffff:192.0.2.1").unwrap();
        assert!(enter("192.0.2.1").is_none());
        let _third = enter("192.0.2.2").unwrap();
        drop(first);
        assert!(enter("192.0.2.1").is_some());
        assert_eq!(holders(&places), 2);
        drop((_second, _third));
        assert_eq!(holders(&places), 0);
    }

    #[test]
    fn all_of_a_64_is_one_client_and_the_next_64_another() {
        let places = PerAddress::new(Some(1));
        let _one = places.enter(address("2001:db8:1:2::1")).unwrap();
        assert!(places.enter(address("2001:db8:1:2:ffff::7")).is_err());
        assert!(places.enter(address("2001:db8:1:3::1")).is_ok());
    }

    #[test]
    fn without_a_limit_nothing_is_counted_and_with_a_new_one_what_comes_then() {
        let places = PerAddress::new(None);
        let client = address("192.0.2.1");
        assert!(places.enter(client).unwrap().is_none());
        assert_eq!(holders(&places), 0);
        places.change(Some(1));
        let _held = places.enter(client).unwrap().unwrap();
        assert!(places.enter(client).is_err());
        places.change(Some(2));
        assert!(places.enter(client).is_ok());
    }
}
