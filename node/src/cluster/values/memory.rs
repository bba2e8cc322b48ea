//! Values in the memory of a single node.

use std::collections::BTreeMap;
use std::collections::HashMap;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Owner;
use super::Put;
use super::VALUES_MAX;
use super::ValueError;

/// The overhead of a value besides its bytes and its name.
const VALUE_BYTES: usize = 128;

/// All values, bounded in bytes.
pub(super) struct Memory {
    bytes_max: usize,
    state: Mutex<State>,
}

/// Invariant: `bytes` is the summed cost of all values; every owner has a value.
#[derive(Default)]
struct State {
    owners: HashMap<Owner, BTreeMap<String, Kept>>,
    bytes: usize,
}

struct Kept {
    value: Bytes,
    ends_at: Instant,
}

impl Memory {
    pub(super) fn new(bytes_max: usize) -> Self {
        let state = Mutex::default();
        Self { bytes_max, state }
    }

    pub(super) fn put(&self, owner: &Owner, put: Put) -> Result<(), ValueError> {
        let now = Instant::now();
        let cost = cost(&put.name, &put.value);
        let mut state = self.state.lock();
        state.expire(owner, now);
        let values = state.owners.get(owner);
        let before = values.and_then(|values| values.get(&put.name));
        let freed = before.map_or(0, |kept| self::cost(&put.name, &kept.value));
        let is_one_more = before.is_none();
        if is_one_more && values.is_some_and(|values| VALUES_MAX <= values.len()) {
            return Err(ValueError::TooMany);
        }
        if self.bytes_max < state.bytes - freed + cost {
            state.expire_all(now);
            if self.bytes_max < state.bytes - freed + cost {
                return Err(ValueError::Full);
            }
        }
        state.bytes = state.bytes - freed + cost;
        let kept = Kept {
            // A slice would keep the whole request alive.
            value: Bytes::copy_from_slice(&put.value),
            ends_at: now + put.ttl,
        };
        let values = state.owners.entry(owner.clone()).or_default();
        values.insert(put.name, kept);
        Ok(())
    }

    pub(super) fn get(&self, owner: &Owner, name: &str) -> Option<Bytes> {
        let mut state = self.state.lock();
        state.expire(owner, Instant::now());
        let kept = state.owners.get(owner)?.get(name)?;
        Some(kept.value.clone())
    }

    pub(super) fn all(&self, owner: &Owner) -> Vec<(String, Bytes)> {
        let mut state = self.state.lock();
        state.expire(owner, Instant::now());
        let values = state.owners.get(owner).into_iter().flatten();
        let all = values.map(|(name, kept)| (name.clone(), kept.value.clone()));
        all.collect()
    }

    pub(super) fn delete(&self, owner: &Owner, name: &str) -> bool {
        let mut state = self.state.lock();
        state.expire(owner, Instant::now());
        state.remove(owner, |kept_name, _| kept_name == name)
    }
}

impl State {
    fn expire(&mut self, owner: &Owner, now: Instant) {
        self.remove(owner, |_, kept| kept.ends_at <= now);
    }

    fn expire_all(&mut self, now: Instant) {
        let owners: Vec<Owner> = self.owners.keys().cloned().collect();
        owners.iter().for_each(|owner| self.expire(owner, now));
    }

    /// Removes the values that match `is_match`; whether there were any.
    fn remove(&mut self, owner: &Owner, is_match: impl Fn(&str, &Kept) -> bool) -> bool {
        let Some(values) = self.owners.get_mut(owner) else {
            return false;
        };
        let mut freed = 0;
        values.retain(|name, kept| {
            let stays = !is_match(name, kept);
            if !stays {
                freed += cost(name, &kept.value);
            }
            stays
        });
        if values.is_empty() {
            self.owners.remove(owner);
        }
        self.bytes -= freed;
        0 < freed
    }
}

fn cost(name: &str, value: &Bytes) -> usize {
    VALUE_BYTES + name.len() + value.len()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn put(name: &str, bytes: usize, seconds: u64) -> Put {
        Put {
            name: name.to_owned(),
            value: vec![b'x'; bytes].into(),
            ttl: Duration::from_secs(seconds),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn values_expire_and_make_room_for_others() {
        let memory = Memory::new(2 * (VALUE_BYTES + 101));
        let (ann, bob) = (Owner::User("ann".to_owned()), Owner::User("bob".to_owned()));
        memory.put(&ann, put("a", 100, 5)).unwrap();
        memory.put(&bob, put("a", 100, 10)).unwrap();
        memory.put(&bob, put("a", 100, 10)).unwrap();
        let full = memory.put(&bob, put("b", 1, 10));
        assert!(matches!(full, Err(ValueError::Full)));
        tokio::time::advance(Duration::from_millis(4999)).await;
        assert!(memory.get(&ann, "a").is_some());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(memory.get(&ann, "a").is_none());
        memory.put(&bob, put("b", 100, 10)).unwrap();
        assert!(memory.delete(&bob, "a") && !memory.delete(&bob, "a"));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(memory.all(&bob).is_empty());
        let state = memory.state.lock();
        assert!(state.owners.is_empty() && state.bytes == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn expired_values_of_others_make_room_too() {
        let memory = Memory::new(VALUE_BYTES + 101);
        let (ann, bob) = (Owner::User("ann".to_owned()), Owner::User("bob".to_owned()));
        memory.put(&ann, put("a", 100, 5)).unwrap();
        tokio::time::advance(Duration::from_secs(5)).await;
        memory.put(&bob, put("a", 100, 5)).unwrap();
    }
}
