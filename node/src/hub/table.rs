//! The members of one format by index, in chunks: an empty chunk takes no memory and is skipped.

use std::sync::Arc;

/// Members in one chunk.
pub(super) const CHUNK: usize = 64;

/// Members by index.
///
/// Invariant: a chunk without members is empty, and the last one is not; `members` counts those in all chunks.
pub(super) struct Table<T> {
    chunks: Vec<Vec<Option<Arc<T>>>>,
    members: usize,
}

impl<T> Table<T> {
    pub(super) fn new() -> Self {
        Self {
            chunks: Vec::new(),
            members: 0,
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.members
    }

    /// How many chunks there are, for [`chunk`](Self::chunk).
    pub(super) fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// The members of one chunk and their indexes.
    pub(super) fn chunk(&self, chunk: usize) -> impl Iterator<Item = (u32, &Arc<T>)> {
        let members = self.chunks[chunk].iter().zip(chunk * CHUNK..);
        members.filter_map(|(member, index)| {
            let index = u32::try_from(index).expect("indexes are below 2^32");
            Some((index, member.as_ref()?))
        })
    }

    /// Inserts a member at a free index.
    pub(super) fn insert(&mut self, index: u32, member: Arc<T>) {
        let (chunk, place) = (index as usize / CHUNK, index as usize % CHUNK);
        if self.chunks.len() <= chunk {
            if chunk == 0 {
                self.chunks.reserve_exact(1); // Most channels need only one.
            }
            self.chunks.resize_with(chunk + 1, Vec::new);
        }
        let chunk = &mut self.chunks[chunk];
        if chunk.len() <= place {
            chunk.resize_with(place + 1, || None);
        }
        debug_assert!(chunk[place].is_none(), "the index is in use");
        chunk[place] = Some(member);
        self.members += 1;
    }

    /// Removes a member, and returns it if it was there.
    pub(super) fn remove(&mut self, index: u32) -> Option<Arc<T>> {
        let (chunk, place) = (index as usize / CHUNK, index as usize % CHUNK);
        let members = self.chunks.get_mut(chunk)?;
        let member = members.get_mut(place)?.take()?;
        self.members -= 1;
        if members.iter().all(Option::is_none) {
            *members = Vec::new();
            self.shrink();
        }
        Some(member)
    }

    /// Removes all members.
    pub(super) fn clear(&mut self) {
        *self = Self::new();
    }

    fn shrink(&mut self) {
        while self.chunks.pop_if(|last| last.is_empty()).is_some() {}
        if self.chunks.len() < self.chunks.capacity() / 4 {
            self.chunks.shrink_to(self.chunks.len() * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn all(table: &Table<u32>) -> Vec<(u32, u32)> {
        let chunks = (0..table.chunks()).flat_map(|chunk| table.chunk(chunk));
        chunks.map(|(index, member)| (index, **member)).collect()
    }

    #[test]
    fn a_table_shrinks_to_the_members_that_are_left() {
        let mut table = Table::new();
        for index in 0..100_000 {
            table.insert(index, Arc::new(index));
        }
        for index in 10..100_000 {
            assert_eq!(table.remove(index).as_deref(), Some(&index));
        }
        assert_eq!(table.len(), 10);
        assert_eq!(table.chunks(), 1);
        assert!(table.chunks.capacity() < 10);
        table.insert(99_999, Arc::new(0));
        let in_memory: usize = table.chunks.iter().map(Vec::capacity).sum();
        assert!(in_memory <= 2 * CHUNK, "{in_memory}");
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_map(steps in proptest::collection::vec((proptest::bool::ANY, 0..400_u32), 0..400)) {
            let (mut table, mut map) = (Table::new(), BTreeMap::new());
            for (step, index) in steps {
                if step && !map.contains_key(&index) {
                    table.insert(index, Arc::new(index));
                    map.insert(index, index);
                } else {
                    table.remove(index);
                    map.remove(&index);
                }
                prop_assert_eq!(all(&table), map.clone().into_iter().collect::<Vec<_>>());
                prop_assert_eq!(table.len(), map.len());
            }
        }
    }
}
