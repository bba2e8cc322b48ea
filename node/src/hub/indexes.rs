//! Allocates indexes for the members of one format: a plain type. The lowest free one is allocated, so that tables by
//! index stay short.

use std::collections::BTreeMap;

/// The allocated indexes: those below `end`, except the ones in `free`.
///
/// Invariant: the ranges in `free` are not empty, do not touch each other and do not touch `end`. So there are
/// at most as many of them as indexes are taken.
#[derive(Default)]
pub(super) struct Indexes {
    /// The end of each free range by its first index.
    free: BTreeMap<u32, u32>,
    end: u32,
}

impl Indexes {
    /// Allocates the lowest free index.
    pub(super) fn take(&mut self) -> u32 {
        let Some((index, end)) = self.free.pop_first() else {
            self.end += 1;
            return self.end - 1;
        };
        if index + 1 < end {
            self.free.insert(index + 1, end);
        }
        index
    }

    /// Frees an index that [`take`](Self::take) has allocated.
    pub(super) fn release(&mut self, index: u32) {
        let (mut start, mut end) = (index, index + 1);
        if let Some(next_end) = self.free.remove(&end) {
            end = next_end;
        }
        let before = self.free.range(..start).next_back();
        if let Some((&before_start, &before_end)) = before
            && before_end == start
        {
            start = before_start;
        }
        if end == self.end {
            self.free.remove(&start);
            self.end = start;
        } else {
            self.free.insert(start, end);
        }
    }

    /// Whether any index is allocated.
    pub(super) fn any_taken(&self) -> bool {
        0 < self.end // The highest allocated index is `end - 1`.
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_lowest_free_index_is_allocated(steps in proptest::collection::vec(0..12_usize, 0..200)) {
            let mut indexes = Indexes::default();
            let mut taken = BTreeSet::new();
            for step in steps {
                // Takes more often than it releases, so that there is something to release.
                match taken.iter().copied().nth(step) {
                    Some(index) if step < 6 => {
                        indexes.release(index);
                        taken.remove(&index);
                    }
                    _ => {
                        let lowest = (0..).find(|index| !taken.contains(index)).unwrap();
                        prop_assert_eq!(indexes.take(), lowest);
                        taken.insert(lowest);
                    }
                }
                prop_assert_eq!(indexes.any_taken(), !taken.is_empty());
                prop_assert_eq!(indexes.end, taken.last().map_or(0, |last| last + 1));
                prop_assert!(indexes.free.len() <= taken.len());
            }
        }
    }
}
