//! The stream of one channel in this process's memory. No I/O, time is passed in.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;

use super::Entry;
use super::Order;
use super::Page;
use super::Query;
use super::Retention;
use super::Unstarted;
use crate::protocol::Epoch;
use crate::protocol::Position;

/// The newest publications of a channel.
///
/// Invariant: offsets go up by one from entry to entry, and the last one's is `position.offset`.
#[derive(Debug)]
pub(crate) struct Log {
    position: Position,
    /// When it began, if known.
    origin: Option<Unstarted>,
    entries: VecDeque<Entry>,
    /// When the entries expire.
    expires_at: Instant,
    /// When the position expires too.
    forgotten_at: Instant,
}

impl Log {
    /// A stream that begins now, which is `origin`.
    pub(crate) fn new(origin: Option<Unstarted>, retention: &Retention, now: Instant) -> Self {
        Self {
            origin,
            position: Position {
                epoch: Epoch::random(),
                offset: 0,
            },
            entries: VecDeque::new(),
            expires_at: now,
            forgotten_at: now + retention.meta_ttl,
        }
    }

    /// Appends a publication; returns its position.
    pub(crate) fn append(&mut self, body: Bytes, retention: &Retention, now: Instant) -> Position {
        self.forget(retention, now);
        self.position.offset += 1;
        let offset = self.position.offset;
        self.entries.push_back(Entry { offset, body });
        while retention.size.get() < self.entries.len() {
            self.entries.pop_front();
        }
        self.expires_at = now + retention.ttl;
        self.position.clone()
    }

    /// The result of `query`.
    pub(crate) fn page(&mut self, query: &Query, retention: &Retention, now: Instant) -> Page {
        self.forget(retention, now);
        let position = self.position.clone();
        let origin = self.origin.clone();
        let is_elsewhere = |since: &Position| {
            since.epoch != position.epoch && Unstarted::of(&since.epoch).is_none()
        };
        if query.since.as_ref().is_some_and(is_elsewhere) {
            return Page {
                position,
                entries: Vec::new(),
                is_cut: false,
                origin,
            };
        }
        let since = query.since.as_ref().map(|since| since.offset);
        let (entries, is_cut) = match (query.order, since) {
            (Order::OldestFirst, since) => {
                let start = since.map_or(0, |since| self.index_of(since.saturating_add(1)));
                bounded(self.entries.range(start..), query)
            }
            (Order::NewestFirst, since) => {
                let end = since.map_or(self.entries.len(), |since| self.index_of(since));
                bounded(self.entries.range(..end).rev(), query)
            }
        };
        Page {
            position,
            entries,
            is_cut,
            origin,
        }
    }

    /// The index of the entry with `offset`, or of the next one after it.
    fn index_of(&self, offset: u64) -> usize {
        let first = self.entries.front().map_or(0, |first| first.offset);
        let index = usize::try_from(offset.saturating_sub(first)).unwrap_or(usize::MAX);
        index.min(self.entries.len())
    }

    /// Removes all publications. The position stays, so that offsets are not reused.
    pub(crate) fn clear(&mut self) {
        self.entries = VecDeque::new();
    }

    /// Whether the position has expired too.
    pub(crate) fn is_forgotten(&self, now: Instant) -> bool {
        self.forgotten_at <= now
    }

    /// Removes expired publications.
    pub(crate) fn expire(&mut self, now: Instant) {
        if self.expires_at <= now {
            self.clear();
        }
    }

    /// Removes what has expired, and restarts the lifetime of the position.
    fn forget(&mut self, retention: &Retention, now: Instant) {
        if self.is_forgotten(now) {
            *self = Self::new(None, retention, now);
        }
        self.expire(now);
        self.forgotten_at = now + retention.meta_ttl;
    }
}

/// As many of `entries` as `query` allows, and whether some may have been left out.
fn bounded<'a>(entries: impl Iterator<Item = &'a Entry>, query: &Query) -> (Vec<Entry>, bool) {
    let mut taken: Vec<Entry> = Vec::new();
    let mut bytes = 0;
    for entry in entries {
        bytes += entry.body.len();
        let is_too_large = !taken.is_empty() && query.bytes_max < bytes;
        if query.limit <= taken.len() || is_too_large {
            return (taken, 0 < query.limit);
        }
        taken.push(entry.clone());
    }
    (taken, false)
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A query for all that there is.
    pub(crate) fn everything() -> Query {
        Query {
            since: None,
            limit: usize::try_from(i32::MAX).unwrap(),
            bytes_max: usize::try_from(i32::MAX).unwrap(),
            order: Order::OldestFirst,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::time::Duration;

    use super::testing::everything;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn keeping(size: usize) -> Retention {
        Retention {
            size: NonZeroUsize::new(size).unwrap(),
            ttl: 10 * SECOND,
            meta_ttl: 100 * SECOND,
        }
    }

    /// A stream of `count` publications of which as many as `size` are kept.
    fn filled(count: u64, size: usize, now: Instant) -> Log {
        let mut log = Log::new(None, &keeping(size), now);
        for number in 1..=count {
            let position = log.append(number.to_string().into(), &keeping(size), now);
            assert_eq!(position.offset, number);
        }
        log
    }

    fn offsets(page: &Page) -> Vec<u64> {
        page.entries.iter().map(|entry| entry.offset).collect()
    }

    #[test]
    fn the_newest_are_kept_and_read_from_either_end() {
        let now = Instant::now();
        let mut log = filled(5, 3, now);
        let epoch = log.position.epoch.clone();
        let since = |offset| {
            let epoch = epoch.clone();
            Some(Position { epoch, offset })
        };
        let cases = [
            (None, 9, Order::OldestFirst, vec![3, 4, 5], false),
            (None, 9, Order::NewestFirst, vec![5, 4, 3], false),
            (None, 3, Order::OldestFirst, vec![3, 4, 5], false),
            (None, 2, Order::OldestFirst, vec![3, 4], true),
            (None, 2, Order::NewestFirst, vec![5, 4], true),
            (None, 0, Order::OldestFirst, vec![], false),
            (since(3), 9, Order::OldestFirst, vec![4, 5], false),
            (since(5), 9, Order::OldestFirst, vec![], false),
            (since(9), 9, Order::OldestFirst, vec![], false),
            (since(u64::MAX), 9, Order::OldestFirst, vec![], false),
            (since(1), 9, Order::OldestFirst, vec![3, 4, 5], false),
            (since(5), 1, Order::NewestFirst, vec![4], true),
            (since(3), 9, Order::NewestFirst, vec![], false),
            (since(1), 9, Order::NewestFirst, vec![], false),
            (since(u64::MAX), 9, Order::NewestFirst, vec![5, 4, 3], false),
        ];
        for (since, limit, order, expected, is_cut) in cases {
            let query = Query {
                since,
                limit,
                order,
                ..everything()
            };
            let page = log.page(&query, &keeping(3), now);
            assert_eq!(offsets(&page), expected, "{query:?}");
            assert_eq!(page.position.offset, 5);
            assert_eq!(page.is_cut, is_cut, "{query:?}");
        }
    }

    #[test]
    fn a_page_is_bounded_in_bytes_and_holds_one_publication_at_least() {
        let now = Instant::now();
        let mut log = filled(5, 5, now);
        for (bytes_max, count) in [(0, 1), (1, 1), (2, 2), (4, 4), (5, 5), (6, 5)] {
            for order in [Order::OldestFirst, Order::NewestFirst] {
                let query = Query {
                    bytes_max,
                    order,
                    ..everything()
                };
                let page = log.page(&query, &keeping(5), now);
                assert_eq!((page.entries.len(), page.is_cut), (count, count < 5));
            }
        }
    }

    #[test]
    fn a_position_of_another_epoch_leads_nowhere() {
        let now = Instant::now();
        let mut log = filled(5, 3, now);
        let since = Position {
            epoch: "other".into(),
            offset: 4,
        };
        let query = Query {
            since: Some(since.clone()),
            ..everything()
        };
        let page = log.page(&query, &keeping(3), now);
        assert_eq!(offsets(&page), [0; 0]);
    }

    #[test]
    fn publications_have_their_time_from_the_newest_on_and_the_position_outlives_them() {
        let now = Instant::now();
        let mut log = filled(2, 3, now);
        let all = everything();
        let page = log.page(
            &all,
            &keeping(3),
            now + 10 * SECOND - Duration::from_millis(1),
        );
        assert_eq!(offsets(&page), [1, 2]);
        let page = log.page(&all, &keeping(3), now + 10 * SECOND);
        assert_eq!((offsets(&page), page.position.offset), (vec![], 2));
        let position = log.append("x".into(), &keeping(3), now + 20 * SECOND);
        assert_eq!(
            position,
            Position {
                offset: 3,
                ..page.position
            }
        );
        let page = log.page(&all, &keeping(3), now + 20 * SECOND);
        assert_eq!(offsets(&page), [3]);
    }

    #[test]
    fn a_stream_that_was_forgotten_begins_another_epoch() {
        let now = Instant::now();
        let mut log = filled(2, 3, now);
        let old = log.position.clone();
        assert!(!log.is_forgotten(now + 100 * SECOND - Duration::from_millis(1)));
        assert!(log.is_forgotten(now + 100 * SECOND));
        let new = log.append("x".into(), &keeping(3), now + 100 * SECOND);
        assert_eq!(new.offset, 1);
        assert_ne!(new.epoch, old.epoch);
    }

    #[test]
    fn what_was_removed_is_gone_and_offsets_go_on() {
        let now = Instant::now();
        let mut log = filled(2, 3, now);
        log.clear();
        assert_eq!(offsets(&log.page(&everything(), &keeping(3), now)), [0; 0]);
        assert_eq!(log.append("x".into(), &keeping(3), now).offset, 3);
    }
}
