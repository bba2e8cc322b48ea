//! Consistent hashing of SockJS sessions to backends: all edges find the same backend without a cookie.
//!
//! The Ketama ring of pingora-load-balancing hashes socket addresses, so each backend gets an artificial one that is derived from
//! its id: a backend whose address changes keeps its points.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use pingora_load_balancing::Backend as RingMember;
use pingora_load_balancing::selection::consistent::KetamaHashing;
use pingora_load_balancing::selection::{BackendIter, BackendSelection};
use ring::digest;

use crate::config::backend::BackendId;

/// The weight in the ring of the heaviest backend, if weights differ: each unit takes 160 points of 8 bytes.
const WEIGHT_MAX: usize = 16;

/// How many points are visited in search of an eligible backend. With 100 of 101 backends down the search still succeeds nearly
/// always; otherwise the pool picks as for a client without a session.
const STEPS_MAX: usize = 2048;

/// Points of all backends of a pool, as indices into its table.
pub(super) struct Ring(Arc<KetamaHashing>);

/// The index of the backend in the pool's table.
#[derive(Clone, Copy)]
struct Index(usize);

impl Ring {
    /// A ring of backends with their weights, which are at least 1 (Ketama panics at 0).
    pub(super) fn new<'a>(backends: impl Iterator<Item = (&'a BackendId, u32)> + Clone) -> Self {
        let heaviest = backends.clone().map(|(_, weight)| weight).max();
        let heaviest = heaviest.unwrap_or(1).max(1) as usize;
        let lightest = backends.clone().map(|(_, weight)| weight).min();
        let lightest = lightest.unwrap_or(1).max(1) as usize;
        let units = if lightest == heaviest { 1 } else { WEIGHT_MAX };
        let member = |(index, (id, weight)): (usize, (&BackendId, u32))| {
            let weight = (weight as usize * units).div_ceil(heaviest).max(1);
            let address = artificial_address(id).to_string();
            let mut member = RingMember::new_with_weight(&address, weight)
                .expect("the address of a SocketAddr parses");
            member.ext.insert(Index(index));
            member
        };
        let members: BTreeSet<RingMember> = backends.enumerate().map(member).collect();
        Self(Arc::new(KetamaHashing::build(&members)))
    }

    /// The first backend for `key` that is `eligible`.
    pub(super) fn find(&self, key: &str, eligible: impl Fn(usize) -> bool) -> Option<usize> {
        let mut points = self.0.iter(key.as_bytes());
        for _ in 0..STEPS_MAX {
            let Index(index) = *points.next()?.ext.get()?;
            if eligible(index) {
                return Some(index);
            }
        }
        None
    }
}

/// The artificial address of a backend.
fn artificial_address(id: &BackendId) -> SocketAddr {
    let digest = digest::digest(&digest::SHA256, id.as_str().as_bytes());
    let digest = digest.as_ref();
    let mut address = [0; 16];
    address.copy_from_slice(&digest[..16]);
    let port = u16::from_be_bytes([digest[16], digest[17]]);
    SocketAddr::from((Ipv6Addr::from(address), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(names: &[&str]) -> Vec<BackendId> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn ring(ids: &[BackendId], weight: impl Fn(usize) -> u32 + Clone) -> Ring {
        let weighted = ids.iter().enumerate();
        Ring::new(weighted.map(move |(index, id)| (id, weight(index))))
    }

    #[test]
    fn the_backend_of_a_session_does_not_depend_on_the_order_in_the_file() {
        let (one, other) = (ids(&["a", "b", "c"]), ids(&["c", "a", "b"]));
        let (first, second) = (ring(&one, |_| 1), ring(&other, |_| 1));
        for session in 0..500 {
            let key = format!("s{session}");
            let found = first.find(&key, |_| true).map(|index| &one[index]);
            assert_eq!(
                found,
                second.find(&key, |_| true).map(|index| &other[index])
            );
        }
    }

    #[test]
    fn an_ineligible_backend_moves_only_its_own_sessions() {
        let all = ids(&["a", "b", "c", "d"]);
        let ring = ring(&all, |_| 1);
        for session in 0..500 {
            let key = format!("s{session}");
            let before = ring.find(&key, |_| true).unwrap();
            let after = ring.find(&key, |index| index != 3).unwrap();
            assert!(before == 3 && after != 3 || before == after);
        }
    }

    #[test]
    fn sessions_spread_by_weight() {
        let all = ids(&["a", "b"]);
        let ring = ring(&all, |index| [1, 3][index]);
        let heavy = (0..4000)
            .filter(|session| ring.find(&format!("s{session}"), |_| true) == Some(1))
            .count();
        assert!((2600..3400).contains(&heavy), "{heavy}");
    }

    #[test]
    fn every_backend_has_a_point_with_extreme_weights() {
        let all = ids(&["a", "b"]);
        let ring = ring(&all, |index| [1, 1000][index]);
        assert_eq!(ring.find("s", |index| index == 0), Some(0));
    }

    #[test]
    fn nothing_is_found_if_no_backend_is_eligible() {
        let all = ids(&["a", "b"]);
        assert_eq!(ring(&all, |_| 1).find("s", |_| false), None);
        assert_eq!(Ring::new([].into_iter()).find("s", |_| true), None);
    }
}
