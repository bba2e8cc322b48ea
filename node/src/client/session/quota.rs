//! Limits for the number of sessions: in total, and half-open ones of one address.
//!
//! A session is half-open while no receiver waits on it. It costs its client no connection then, so nothing else limits how
//! many one address can open and abandon. Receivers that leave their sessions may raise an address above its limit: those
//! have cost a connection each.
//!
//! Invariant: an address is in the map if and only if a session of it lives.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Instant;

use parking_lot::Mutex;
use tracing::warn;

use crate::config::Live;
use crate::logging::Throttle;

/// Bits of an IPv6 address that identify its holder: providers assign at least a /64.
const IPV6_PREFIX_BITS: u32 = 64;

/// The limits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QuotaConfig {
    /// Sessions at a time.
    pub(crate) sessions_max: usize,
    /// Half-open sessions at a time of one address, at least 1.
    pub(crate) half_open_max: usize,
}

/// The sessions of a node, counted.
pub(crate) struct Quota {
    config: Live<QuotaConfig>,
    counts: Mutex<Counts>,
    refusals: Throttle,
}

#[derive(Default)]
struct Counts {
    sessions: usize,
    addresses: HashMap<IpAddr, Address>,
}

/// The sessions of one address.
#[derive(Default)]
struct Address {
    sessions: usize,
    half_open: Arc<AtomicUsize>,
}

/// Which limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// That of the node.
    Node,
    /// That of the address.
    Address,
}

/// Permits one session until it is dropped. The session is half-open at first.
pub(crate) struct Permit {
    quota: Arc<Quota>,
    address: IpAddr,
    half_open: Arc<AtomicUsize>,
    is_half_open: AtomicBool,
}

impl Quota {
    /// Creates the limits, without sessions.
    pub(crate) fn new(config: QuotaConfig) -> Arc<Self> {
        Arc::new(Self {
            config: Live::new(config),
            counts: Mutex::default(),
            refusals: Throttle::default(),
        })
    }

    /// Replaces the limits, for sessions that begin after this.
    pub(crate) fn reload(&self, config: QuotaConfig) {
        self.config.set(config);
    }

    /// Takes a permit for one session of `address`.
    ///
    /// # Errors
    ///
    /// [`Full`]; if it is the address's limit, other addresses may still get one.
    pub(crate) fn take(self: &Arc<Self>, address: IpAddr) -> Result<Permit, Full> {
        let address = holder(address);
        let counts = &mut *self.counts.lock();
        if self.config.get().sessions_max <= counts.sessions {
            return Err(Full::Node);
        }
        // Inserted only if the address has no session yet, and then the first one is within the limit.
        let known = counts.addresses.entry(address).or_default();
        if self.config.get().half_open_max <= known.half_open.load(Ordering::Relaxed) {
            return Err(Full::Address);
        }
        known.half_open.fetch_add(1, Ordering::Relaxed);
        known.sessions += 1;
        counts.sessions += 1;
        Ok(Permit {
            quota: Arc::clone(self),
            address,
            half_open: Arc::clone(&known.half_open),
            is_half_open: AtomicBool::new(true),
        })
    }

    /// How many sessions and how many addresses there are.
    #[cfg(test)]
    pub(crate) fn counted(&self) -> (usize, usize) {
        let counts = self.counts.lock();
        (counts.sessions, counts.addresses.len())
    }

    /// Logs which limit has rejected a session of `address`, at most once a second.
    pub(crate) fn log(&self, full: Full, address: IpAddr, now: Instant) {
        let Some(held_back) = self.refusals.admit(now) else {
            return;
        };
        match full {
            Full::Node => warn!(
                limit = self.config.get().sessions_max,
                setting = "limits.sessions",
                held_back,
                "session rejected: the node has too many",
            ),
            Full::Address => warn!(
                %address,
                limit = self.config.get().half_open_max,
                setting = "limits.sessions_per_address",
                held_back,
                "session rejected: the address has too many without a receiver; \
                 if it is a proxy, add it to trusted_proxies",
            ),
        }
    }
}

impl Permit {
    /// The address of the client.
    pub(crate) fn address(&self) -> IpAddr {
        self.address
    }

    /// Notes that a receiver waits on the session: it is not half-open.
    pub(crate) fn receiver_waits(&self) {
        if self.is_half_open.swap(false, Ordering::Relaxed) {
            self.half_open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Notes that no receiver waits any more: it is half-open.
    pub(crate) fn receiver_left(&self) {
        if !self.is_half_open.swap(true, Ordering::Relaxed) {
            self.half_open.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.receiver_waits(); // It no longer counts as half-open.
        let mut counts = self.quota.counts.lock();
        counts.sessions -= 1;
        if let Entry::Occupied(mut address) = counts.addresses.entry(self.address) {
            address.get_mut().sessions -= 1;
            if address.get().sessions == 0 {
                address.remove();
            }
        }
    }
}

/// The network that is counted as one address.
fn holder(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let prefix = u128::MAX << (128 - IPV6_PREFIX_BITS);
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & prefix))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(sessions_max: usize, half_open_max: usize) -> Arc<Quota> {
        Quota::new(QuotaConfig {
            sessions_max,
            half_open_max,
        })
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_may_have_half_open_sessions_up_to_its_limit_without_affecting_others() {
        let quota = quota(100, 2);
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(address);
        let first = quota.take(one).ok().unwrap();
        let _second = quota.take(one).ok().unwrap();
        assert_eq!(quota.take(one).err(), Some(Full::Address));
        assert!(quota.take(other).is_ok());
        drop(first);
        assert!(quota.take(one).is_ok());
    }

    #[test]
    fn a_session_counts_as_half_open_only_while_no_receiver_waits() {
        let quota = quota(100, 1);
        let one = address("192.0.2.1");
        let permit = quota.take(one).ok().unwrap();
        for _ in 0..2 {
            permit.receiver_waits();
        }
        let second = quota.take(one).ok().unwrap();
        assert_eq!(quota.take(one).err(), Some(Full::Address));
        drop(second);
        for _ in 0..2 {
            permit.receiver_left();
        }
        assert_eq!(quota.take(one).err(), Some(Full::Address));
        drop(permit);
        assert!(quota.take(one).is_ok());
    }

    #[test]
    fn the_node_has_a_limit_for_all_addresses_together() {
        let quota = quota(2, 100);
        let permits = ["192.0.2.1", "2001:db8::1"].map(|text| quota.take(address(text)).ok());
        assert!(permits.iter().all(Option::is_some));
        assert_eq!(quota.take(address("192.0.2.3")).err(), Some(Full::Node));
        drop(permits);
        assert!(quota.take(address("192.0.2.3")).is_ok());
    }

    #[test]
    fn addresses_of_one_network_count_as_one() {
        let quota = quota(100, 1);
        for [first, second] in [
            ["2001:db8::1", "2001:db8::2:0:0:1"],
            ["192.0.2.1", "::ffff:192.0.2.1"],
        ] {
            let _first = quota.take(address(first)).ok().unwrap();
            assert_eq!(quota.take(address(second)).err(), Some(Full::Address));
        }
        let _first = quota.take(address("2001:db8::1")).ok().unwrap();
        assert!(quota.take(address("2001:db8:0:1::1")).is_ok());
    }

    #[test]
    fn an_address_without_sessions_is_removed() {
        let quota = quota(100, 100);
        drop(quota.take(address("192.0.2.1")));
        assert_eq!(quota.counted(), (0, 0));
    }
}
