//! Which backend holds which SockJS session, for sessions that were seen lately.
//!
//! Bounded: two generations of at most half the size each. What is asked for in the old one moves to the
//! young one; when that is full, the old one is forgotten and the young one grows old. So the sessions
//! that are forgotten are those unused for longest, more or less. Their clients then go where the ring says.

use std::collections::HashMap;
use std::hash::RandomState;

use parking_lot::Mutex;

use crate::affinity::SessionKey;
use crate::backend::BackendId;

/// Locks are spread over so many shards.
const SHARDS: usize = 16;

/// The table of one pool.
pub(super) struct Sessions {
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
}

/// Invariant: both generations have at most `half` entries.
struct Shard {
    half: usize,
    young: HashMap<u64, BackendId>,
    old: HashMap<u64, BackendId>,
}

impl Sessions {
    /// An empty table for about `most` sessions.
    pub(super) fn new(most: usize) -> Self {
        Self {
            hasher: RandomState::new(),
            shards: std::array::from_fn(|_| {
                Mutex::new(Shard {
                    half: (most / SHARDS / 2).max(1),
                    young: HashMap::new(),
                    old: HashMap::new(),
                })
            }),
        }
    }

    /// The backend that holds `session`, as far as is remembered.
    pub(super) fn get(&self, session: &SessionKey) -> Option<BackendId> {
        let hash = session.hash(&self.hasher);
        let mut shard = self.shard(hash).lock();
        if let Some(id) = shard.young.get(&hash) {
            return Some(id.clone());
        }
        let id = shard.old.get(&hash).cloned()?;
        shard.insert(hash, id.clone());
        Some(id)
    }

    /// Remembers that `id` holds `session`.
    pub(super) fn insert(&self, session: &SessionKey, id: BackendId) {
        let hash = session.hash(&self.hasher);
        self.shard(hash).lock().insert(hash, id);
    }

    fn shard(&self, hash: u64) -> &Mutex<Shard> {
        &self.shards[(hash >> 32) as usize % SHARDS]
    }
}

impl Shard {
    fn insert(&mut self, hash: u64, id: BackendId) {
        if self.half <= self.young.len() && !self.young.contains_key(&hash) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(hash, id);
        debug_assert!(self.young.len() <= self.half && self.old.len() <= self.half);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> BackendId {
        name.parse().unwrap()
    }

    #[test]
    fn the_last_word_on_a_session_counts() {
        let sessions = Sessions::new(1024);
        let session = SessionKey::new("abc");
        assert_eq!(sessions.get(&session), None);
        sessions.insert(&session, id("n1"));
        sessions.insert(&session, id("n2"));
        assert_eq!(sessions.get(&session), Some(id("n2")));
    }

    #[test]
    fn the_table_is_bounded_and_keeps_what_is_used() {
        let sessions = Sessions::new(1024);
        let used = SessionKey::new("used");
        sessions.insert(&used, id("n1"));
        for other in 0..100_000 {
            sessions.insert(&SessionKey::new(&format!("s{other}")), id("n2"));
            assert_eq!(sessions.get(&used), Some(id("n1")));
        }
        let held = |shard: &Mutex<Shard>| {
            let shard = shard.lock();
            shard.young.len() + shard.old.len()
        };
        assert!(sessions.shards.iter().map(held).sum::<usize>() <= 1024);
        assert_eq!(sessions.get(&SessionKey::new("s0")), None);
    }
}
