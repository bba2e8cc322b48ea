//! The stream of one channel in this process's memory: plain, time passed in.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;

use super::Entry;
use super::Order;
use super::Page;
use super::Query;
use super::Retention;
use crate::protocol::Epoch;
use crate::protocol::Position;

/// The newest publications of a channel.
///
/// Invariant: offsets go up by one from entry to entry, and the last one's is `position.offset`.
#[derive(Debug)]
pub(crate) struct Log {
    position: Position,
    entries: VecDeque<Entry>,
    /// When the entries are gone.
    expires_at: Instant,
    /// When the position is gone too.
    forgotten_at: Instant,
}

impl Log {
    /// A stream that begins now.
    pub(crate) fn new(retention: &Retention, now: Instant) -> Self {
        Self {
            position: Position {
                epoch: Epoch::random(),
                offset: 0,
            },
            entries: VecDeque::new(),
            expires_at: now,
            forgotten_at: now + retention.meta_ttl,
        }
    }

    /// Appends a publication; where it stands.
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

    /// What `query` asks for.
    pub(crate) fn page(&mut self, query: &Query, retention: &Retention, now: Instant) -> Page {
        self.forget(retention, now);
        let limit = query.limit.unwrap_or(usize::MAX);
        let position = self.position.clone();
        let since = match &query.since {
            Some(since) if since.epoch != position.epoch => {
                let entries = Vec::new();
                return Page { position, entries };
            }
            Some(since) => Some(since.offset),
            None => None,
        };
        let entries = self.entries.iter();
        let entries = match query.order {
            Order::OldestFirst => entries
                .filter(|entry| since.is_none_or(|since| since < entry.offset))
                .take(limit)
                .cloned()
                .collect(),
            Order::NewestFirst => entries
                .rev()
                .filter(|entry| since.is_none_or(|since| entry.offset < since))
                .take(limit)
                .cloned()
                .collect(),
        };
        Page { position, entries }
    }

    /// Drops all publications. The position stays, so that nobody takes what follows for what was.
    pub(crate) fn clear(&mut self) {
        self.entries = VecDeque::new();
    }

    /// Whether nothing is left of the channel.
    pub(crate) fn is_forgotten(&self, now: Instant) -> bool {
        self.forgotten_at <= now
    }

    /// Lets go of publications that have had their time.
    pub(crate) fn expire(&mut self, now: Instant) {
        if self.expires_at <= now {
            self.clear();
        }
    }

    /// Lets go of what has had its time, and counts the position's anew.
    fn forget(&mut self, retention: &Retention, now: Instant) {
        if self.is_forgotten(now) {
            *self = Self::new(retention, now);
        }
        self.expire(now);
        self.forgotten_at = now + retention.meta_ttl;
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::time::Duration;

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
        let mut log = Log::new(&keeping(size), now);
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
            (None, None, Order::OldestFirst, vec![3, 4, 5]),
            (None, None, Order::NewestFirst, vec![5, 4, 3]),
            (None, Some(2), Order::OldestFirst, vec![3, 4]),
            (None, Some(2), Order::NewestFirst, vec![5, 4]),
            (None, Some(0), Order::OldestFirst, vec![]),
            (since(3), None, Order::OldestFirst, vec![4, 5]),
            (since(5), None, Order::OldestFirst, vec![]),
            (since(1), None, Order::OldestFirst, vec![3, 4, 5]),
            (since(5), Some(1), Order::NewestFirst, vec![4]),
            (since(3), None, Order::NewestFirst, vec![]),
        ];
        for (since, limit, order, expected) in cases {
            let query = Query {
                since,
                limit,
                order,
            };
            let page = log.page(&query, &keeping(3), now);
            assert_eq!(offsets(&page), expected, "{query:?}");
            assert_eq!(page.position.offset, 5);
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
            ..Query::default()
        };
        let page = log.page(&query, &keeping(3), now);
        assert_eq!(offsets(&page), [0; 0]);
    }

    #[test]
    fn publications_have_their_time_from_the_newest_on_and_the_position_outlives_them() {
        let now = Instant::now();
        let mut log = filled(2, 3, now);
        let all = Query::default();
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
        assert_eq!(
            offsets(&log.page(&Query::default(), &keeping(3), now)),
            [0; 0]
        );
        assert_eq!(log.append("x".into(), &keeping(3), now).offset, 3);
    }
}
