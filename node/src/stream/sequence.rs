//! The publications of one channel as this node has received them: a plain type, time passed in.
//!
//! Detects gaps by the publications' offsets, and caches the newest ones for clients that recover.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use crate::broker::history;
use crate::broker::history::Unstarted;
use crate::protocol::Epoch;
use crate::protocol::Position;
use crate::protocol::Publication;

/// Memory that a publication takes in addition to its data.
const ENTRY_BYTES: usize = 200;

/// How much of a channel's history this node caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CacheLimits {
    /// In publications: the size of the channel's history.
    pub(super) size: usize,
    /// In bytes; older publications are read from the broker.
    pub(super) bytes_max: usize,
    /// How long after the newest publication.
    pub(super) ttl: Duration,
    pub(super) recovery: Recovery,
}

impl CacheLimits {
    /// The most that can be cached, in publications.
    pub(super) fn publications_max(&self) -> usize {
        self.size.min(self.bytes_max / ENTRY_BYTES)
    }
}

/// The limits of one recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Recovery {
    /// In publications.
    pub(super) publications_max: usize,
    /// In bytes; a single publication may be larger.
    pub(super) bytes_max: usize,
}

/// A channel's publications, complete and in order up to `position`.
///
/// Invariants: offsets in `ring` go up by one from entry to entry, and the last one's is
/// `position.offset`; `ring_bytes` is the summed cost of `ring` and at most `limits.bytes_max`, as
/// `held_bytes` is of `held`.
#[derive(Debug)]
pub(super) struct Sequence {
    limits: CacheLimits,
    position: Position,
    /// When the history began, or when it did not exist yet, if that is known.
    origin: Option<Unstarted>,
    /// While its first publication is missing here: the epoch of the later ones that were received.
    begun: Option<Epoch>,
    ring: VecDeque<Arc<Publication>>,
    ring_bytes: usize,
    /// When the publications in the ring expire.
    expires_at: Instant,
    /// Publications received after a gap.
    held: VecDeque<Arc<Publication>>,
    held_bytes: usize,
    /// The highest offset that was received or read, held or not.
    offset_seen: u64,
}

/// A read of the broker's history: its position at that moment, and the publications after `since`.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) since: u64,
    pub(super) position: Position,
    /// In order.
    pub(super) publications: Vec<Arc<Publication>>,
    /// Whether a limit may have left some out.
    pub(super) is_cut: bool,
    /// When the history began, or when it did not exist yet, if that is known.
    pub(super) origin: Option<Unstarted>,
}

/// How a received publication relates to those before it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It is the next one, to be delivered.
    Next,
    /// It was received before.
    Repeat,
    /// Publications before it are missing. It is held until the gap is filled.
    AfterGap,
}

/// Why the stream cannot continue. Its members have to be unsubscribed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Lost {
    /// The history has a new epoch.
    #[error("the history has a new epoch")]
    Restarted,
    /// The broker has lost publications: the history's offset is lower than before, or than that of a publication.
    #[error("the history's offset is lower than before")]
    Rewound,
    /// Missing publications are no longer in the history.
    #[error("missing publications are no longer in the history")]
    Trimmed,
    /// Missing publications could not be read within `gap_timeout`.
    #[error("the history could not be read in time")]
    Unreadable,
    /// The channel's batch in the hub was full, so a publication was dropped.
    #[error("the hub did not keep up")]
    Congested,
}

/// What a member that recovers from a position has missed.
#[derive(Debug, PartialEq)]
pub(super) enum Missed {
    /// These, in order.
    These(Vec<Arc<Publication>>),
    /// Some are older than this node's cache; the broker may still have them. Those before this offset have to be read.
    Older { before: u64 },
    /// More than the limits of a recovery.
    TooMuch,
    /// It is not known any more.
    Unknown,
}

impl Sequence {
    /// Starts from a read of the newest publications.
    pub(super) fn new(limits: CacheLimits, read: Read, now: Instant) -> Self {
        let top = read.position.offset;
        let newest = read.publications.into_iter().rev();
        let following = newest.zip(0..).take_while(|(publication, age)| {
            publication.offset.checked_add(*age) == Some(top) // No gap after it.
        });
        let mut ring: Vec<_> = following.map(|(publication, _)| publication).collect();
        ring.reverse();
        let mut stream = Self {
            limits,
            offset_seen: top,
            position: read.position,
            origin: read.origin,
            begun: None,
            ring: VecDeque::new(),
            ring_bytes: 0,
            expires_at: now + limits.ttl,
            held: VecDeque::new(),
            held_bytes: 0,
        };
        ring.into_iter()
            .for_each(|publication| stream.push(publication, now));
        stream
    }

    pub(super) fn position(&self) -> &Position {
        &self.position
    }

    /// Whether the history does not exist yet, as far as this node knows.
    pub(super) fn is_empty_history(&self) -> bool {
        Unstarted::of(&self.position.epoch).is_some()
    }

    /// Whether `since` is a position in this stream.
    pub(super) fn continues(&self, since: &Position) -> bool {
        history::is_same_stream(since, &self.position, self.origin.as_ref())
    }

    /// The highest offset that was received or read.
    pub(super) fn offset_seen(&self) -> u64 {
        self.offset_seen
    }

    /// Whether publications are missing.
    pub(super) fn has_gap(&self) -> bool {
        self.position.offset < self.offset_seen
    }

    /// Handles a publication from the broker.
    ///
    /// # Errors
    ///
    /// [`Lost::Restarted`] if it belongs to another epoch.
    pub(super) fn arrive(
        &mut self,
        epoch: &Epoch,
        publication: &Arc<Publication>,
        now: Instant,
    ) -> Result<Arrival, Lost> {
        if *epoch != self.position.epoch {
            let is_other = self.begun.as_ref().is_some_and(|begun| begun != epoch);
            if !self.is_empty_history() || is_other {
                return Err(Lost::Restarted);
            }
            if publication.offset == 1 {
                // The first publication of a new history: none can be missing before it.
                self.position.epoch = epoch.clone();
            } else {
                self.begun = Some(epoch.clone());
            }
        }
        self.offset_seen = self.offset_seen.max(publication.offset);
        let next = self.position.offset + 1;
        if publication.offset < next {
            return Ok(Arrival::Repeat);
        }
        if publication.offset == next {
            self.push(Arc::clone(publication), now);
            return Ok(Arrival::Next);
        }
        self.hold(Arc::clone(publication));
        Ok(Arrival::AfterGap)
    }

    /// Applies a read. Returns the publications to deliver, in order.
    ///
    /// A gap may be left if more is missing than one read returns, or more was received meanwhile than can be held: then
    /// another read is needed.
    ///
    /// # Errors
    ///
    /// [`Lost`]: the stream cannot continue.
    pub(super) fn absorb(
        &mut self,
        read: Read,
        now: Instant,
    ) -> Result<Vec<Arc<Publication>>, Lost> {
        if read.position.epoch != self.position.epoch {
            let epoch = &read.position.epoch;
            let is_other = self.begun.take().is_some_and(|begun| begun != *epoch);
            let origin = read.origin.as_ref();
            if is_other || !history::is_same_stream(&self.position, &read.position, origin) {
                return Err(Lost::Restarted);
            }
            self.position.epoch = read.position.epoch;
            self.origin = read.origin;
        }
        if read.position.offset < read.since {
            return Err(Lost::Rewound);
        }
        self.offset_seen = self.offset_seen.max(read.position.offset);
        let is_whole = !read.is_cut || read.publications.is_empty();
        let mut found = Vec::new();
        for publication in read.publications {
            let next = self.position.offset + 1;
            if publication.offset == next {
                self.push(Arc::clone(&publication), now);
                found.push(publication);
            } else if next < publication.offset {
                return Err(Lost::Trimmed);
            }
        }
        if is_whole && self.position.offset < read.position.offset {
            return Err(Lost::Trimmed);
        }
        self.held_bytes = 0;
        for publication in mem::take(&mut self.held) {
            let next = self.position.offset + 1;
            if publication.offset == next {
                self.push(Arc::clone(&publication), now);
                found.push(publication);
            } else if next < publication.offset {
                self.hold(publication);
            }
        }
        Ok(found)
    }

    /// What a member has missed that has received everything up to `since`. `older`: older publications, in order, if
    /// they were read for it.
    pub(super) fn missed(&self, since: &Position, older: Option<&Read>, now: Instant) -> Missed {
        let top = self.position.offset;
        if !self.continues(since) || top < since.offset {
            return Missed::Unknown;
        }
        let missing = usize::try_from(top - since.offset).unwrap_or(usize::MAX);
        if missing == 0 {
            return Missed::These(Vec::new());
        }
        if self.limits.size < missing || self.expires_at <= now {
            return Missed::Unknown;
        }
        if self.limits.recovery.publications_max < missing {
            return Missed::TooMuch;
        }
        if let Some(first) = self.ring.len().checked_sub(missing) {
            return self.within_bounds(self.ring.range(first..));
        }
        if self.limits.recovery.bytes_max < self.ring_bytes {
            return Missed::TooMuch;
        }
        let ring_from = top + 1 - self.ring.len() as u64;
        // Half of the ring is read too: new publications may push it out meanwhile.
        let before = top + 1 - self.ring.len() as u64 / 2;
        let reaches_here = |older: &&Read| {
            let last = older.publications.last();
            last.is_none_or(|last| ring_from <= last.offset + 1)
        };
        let Some(older) = older.filter(reaches_here) else {
            return Missed::Older { before };
        };
        let offset_of = |at: u64| {
            let is_before = |one: &Arc<Publication>| one.offset < at;
            older.publications.partition_point(is_before)
        };
        let between = offset_of(since.offset + 1)..offset_of(ring_from);
        let older_ones = &older.publications[between];
        let are_all = (since.offset + 1..ring_from).eq(older_ones.iter().map(|one| one.offset));
        match (are_all, older.is_cut) {
            (true, _) => self.within_bounds(older_ones.iter().chain(&self.ring)),
            (false, true) => Missed::TooMuch,
            (false, false) => Missed::Unknown,
        }
    }

    /// `Missed::These`, or `TooMuch` if they are over the limit in bytes.
    fn within_bounds<'a>(
        &self,
        publications: impl Iterator<Item = &'a Arc<Publication>> + Clone,
    ) -> Missed {
        let bytes: usize = publications.clone().map(|one| cost(one)).sum();
        let these: Vec<_> = publications.cloned().collect();
        if 1 < these.len() && self.limits.recovery.bytes_max < bytes {
            return Missed::TooMuch;
        }
        Missed::These(these)
    }

    fn push(&mut self, publication: Arc<Publication>, now: Instant) {
        self.position.offset = publication.offset;
        self.ring_bytes += cost(&publication);
        self.ring.push_back(publication);
        while (self.limits.size < self.ring.len() || self.limits.bytes_max < self.ring_bytes)
            && let Some(oldest) = self.ring.pop_front()
        {
            self.ring_bytes -= cost(&oldest);
        }
        self.expires_at = now + self.limits.ttl;
    }

    /// Holds a publication received after a gap, if there is room and it follows the last held one. Otherwise it is
    /// read from the broker with the missing ones.
    fn hold(&mut self, publication: Arc<Publication>) {
        let follows = self
            .held
            .back()
            .is_none_or(|last| last.offset + 1 == publication.offset);
        let bytes = self.held_bytes + cost(&publication);
        if follows && bytes <= self.limits.bytes_max {
            self.held_bytes = bytes;
            self.held.push_back(publication);
        }
    }
}

fn cost(publication: &Publication) -> usize {
    ENTRY_BYTES + publication.data.len()
}

#[cfg(test)]
mod tests;
