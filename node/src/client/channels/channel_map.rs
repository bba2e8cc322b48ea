//! A map by channel, for the subscriptions of one client.
//!
//! Most clients have one or a few channels, and there are many clients: so the entries are a sorted vector without spare
//! capacity.

use crate::protocol::channel::ChannelName;

/// Values by channel.
///
/// Invariant: sorted by the channels' names, each of which is there once.
pub(super) struct ChannelMap<T>(Vec<(ChannelName, T)>);

impl<T> ChannelMap<T> {
    /// Creates an empty map, which allocates nothing.
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn get(&self, channel: &ChannelName) -> Option<&T> {
        let at = self.find(channel).ok()?;
        Some(&self.0[at].1)
    }

    pub(super) fn get_mut(&mut self, channel: &ChannelName) -> Option<&mut T> {
        let at = self.find(channel).ok()?;
        Some(&mut self.0[at].1)
    }

    /// Inserts `value`, and replaces the key by this handle of the channel's name. Returns the previous value.
    pub(super) fn insert(&mut self, channel: ChannelName, value: T) -> Option<T> {
        match self.find(&channel) {
            Ok(at) => {
                let (_, before) = std::mem::replace(&mut self.0[at], (channel, value));
                Some(before)
            }
            Err(at) => {
                if self.0.is_empty() {
                    self.0.reserve_exact(1); // Most clients need only one.
                }
                self.0.insert(at, (channel, value));
                None
            }
        }
    }

    pub(super) fn remove(&mut self, channel: &ChannelName) -> Option<T> {
        let at = self.find(channel).ok()?;
        let (_, value) = self.0.remove(at);
        self.give_room_back();
        Some(value)
    }

    /// Removes and returns the values for which `is_meant` returns true.
    pub(super) fn take(&mut self, mut is_meant: impl FnMut(&T) -> bool) -> Vec<T> {
        let taken = self.0.extract_if(.., |(_, value)| is_meant(value));
        let taken = taken.map(|(_, value)| value).collect();
        self.give_room_back();
        taken
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&ChannelName, &T)> {
        self.0.iter().map(|(channel, value)| (channel, value))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&ChannelName, &mut T)> {
        self.0.iter_mut().map(|(channel, value)| (&*channel, value))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, value)| value)
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().map(|(_, value)| value)
    }

    fn find(&self, channel: &ChannelName) -> Result<usize, usize> {
        self.0.binary_search_by(|(name, _)| name.cmp(channel))
    }

    /// A client without channels has no memory for them.
    fn give_room_back(&mut self) {
        if self.0.is_empty() {
            self.0 = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn name(number: u8) -> ChannelName {
        ChannelName::new(&format!("channel-{number}")).unwrap()
    }

    #[test]
    fn one_channel_takes_the_memory_of_one() {
        let mut places = ChannelMap::new();
        places.insert(name(1), 1);
        assert_eq!(places.0.capacity(), 1);
        places.remove(&name(1));
        assert_eq!(places.0.capacity(), 0);
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_map(steps in proptest::collection::vec((0..4u8, 0..12u8), 0..60)) {
            let (mut places, mut map) = (ChannelMap::new(), BTreeMap::new());
            for (step, number) in steps {
                let channel = name(number);
                match step {
                    0 => prop_assert_eq!(places.insert(channel.clone(), number), map.insert(channel, number)),
                    1 => prop_assert_eq!(places.remove(&channel), map.remove(&channel)),
                    2 => prop_assert_eq!(places.get(&channel), map.get(&channel)),
                    _ => {
                        let taken = places.take(|value| *value < number);
                        prop_assert!(taken.iter().all(|value| *value < number));
                        map.retain(|_, value| number <= *value);
                    }
                }
                prop_assert!(places.iter().eq(map.iter()));
                prop_assert_eq!(places.len(), map.len());
            }
        }
    }
}
