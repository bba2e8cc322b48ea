//! A channel's stream as this node has heard it: plain, time passed in.
//!
//! Every publication has an offset, so that what is missing shows. The newest ones stay here, for
//! clients that come back.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use crate::broker::history;
use crate::broker::history::Unborn;
use crate::protocol::Epoch;
use crate::protocol::Position;
use crate::protocol::Publication;

/// What a publication costs besides its data.
const ENTRY_BYTES: usize = 200;

/// How much of a stream stays in this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Keeping {
    /// In number: as many as the channel keeps.
    pub(super) size: usize,
    /// In bytes; what is older is read from the broker.
    pub(super) bytes_max: usize,
    /// After the newest publication.
    pub(super) ttl: Duration,
    pub(super) recovery: Recovery,
}

impl Keeping {
    /// The most that can stay here, in number.
    pub(super) fn publications_max(&self) -> usize {
        self.size.min(self.bytes_max / ENTRY_BYTES)
    }
}

/// What somebody who comes back gets at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Recovery {
    /// In number.
    pub(super) publications_max: usize,
    /// In bytes, but one publication whatever its size.
    pub(super) bytes_max: usize,
}

/// What was heard of a stream, all of it and in order up to `position`.
///
/// Invariants: offsets in `ring` go up by one from entry to entry, and the last one's is
/// `position.offset`; `ring_bytes` is the summed cost of `ring` and at most `keeping.bytes_max`, as
/// `held_bytes` is of `held`.
#[derive(Debug)]
pub(super) struct Stream {
    keeping: Keeping,
    position: Position,
    /// When it began, or when it was not there, if that is known.
    origin: Option<Unborn>,
    /// As long as it has not begun for this node: the epoch of what came behind its beginning.
    begun: Option<Epoch>,
    ring: VecDeque<Arc<Publication>>,
    ring_bytes: usize,
    /// After which nothing in the ring counts.
    expires_at: Instant,
    /// What came behind a gap.
    held: VecDeque<Arc<Publication>>,
    held_bytes: usize,
    /// The highest offset that was heard, held or not.
    heard: u64,
}

/// What the broker has of a stream: its position at that moment, and what comes after `since`.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) since: u64,
    pub(super) position: Position,
    /// In order.
    pub(super) publications: Vec<Arc<Publication>>,
    /// Whether there may be more than was read at once.
    pub(super) is_cut: bool,
    /// When the stream began, or that it has not, if that is known.
    pub(super) origin: Option<Unborn>,
}

/// What a publication that came is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// The next one: it is to be delivered.
    Next,
    /// One that was there before.
    Repeat,
    /// Something before it is missing. It is held until the gap is filled; this is where the gap begins.
    BehindGap,
}

/// Why what is missing cannot be had: members have to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Lost {
    /// The stream has begun a new epoch.
    #[error("the stream has begun anew")]
    Restarted,
    /// The stream is shorter than it was: the broker has lost some of it.
    #[error("the stream is shorter than it was")]
    Rewound,
    /// The stream no longer has what is missing.
    #[error("the stream no longer has what is missing")]
    Trimmed,
    /// The stream could not be read for too long.
    #[error("the stream could not be read")]
    Unreadable,
    /// So much waits for the members already that one publication found no room.
    #[error("the hub did not keep up")]
    Congested,
}

/// What somebody who was at a position before has missed.
#[derive(Debug, PartialEq)]
pub(super) enum Missed {
    /// These, in order.
    These(Vec<Arc<Publication>>),
    /// Some of it is too old for this node; the broker may still have it. It is to be read back from this
    /// offset on.
    Older { before: u64 },
    /// More than somebody who comes back gets.
    TooMuch,
    /// It can no longer be told.
    Unknown,
}

impl Stream {
    /// The stream as the broker has it now: its position and the newest publications.
    pub(super) fn new(keeping: Keeping, read: Read, now: Instant) -> Self {
        let top = read.position.offset;
        let newest = read.publications.into_iter().rev();
        let following = newest.zip(0..).take_while(|(publication, age)| {
            publication.offset.checked_add(*age) == Some(top) // Nothing is missing behind it.
        });
        let mut ring: Vec<_> = following.map(|(publication, _)| publication).collect();
        ring.reverse();
        let mut stream = Self {
            keeping,
            heard: top,
            position: read.position,
            origin: read.origin,
            begun: None,
            ring: VecDeque::new(),
            ring_bytes: 0,
            expires_at: now + keeping.ttl,
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

    /// Whether it has not begun, as far as this node has heard.
    pub(super) fn is_unborn(&self) -> bool {
        Unborn::of(&self.position.epoch).is_some()
    }

    /// Whether `since` is a position in this stream.
    pub(super) fn continues(&self, since: &Position) -> bool {
        history::is_same_stream(since, &self.position, self.origin.as_ref())
    }

    /// Whether something is missing that others have heard.
    pub(super) fn has_gap(&self) -> bool {
        self.position.offset < self.heard
    }

    /// Takes a publication that came.
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
            if !self.is_unborn() || is_other {
                return Err(Lost::Restarted);
            }
            if publication.offset == 1 {
                // The first one of a stream that was not there: nothing can be missing before it.
                self.position.epoch = epoch.clone();
            } else {
                self.begun = Some(epoch.clone());
            }
        }
        self.heard = self.heard.max(publication.offset);
        let next = self.position.offset + 1;
        if publication.offset < next {
            return Ok(Arrival::Repeat);
        }
        if publication.offset == next {
            self.push(Arc::clone(publication), now);
            return Ok(Arrival::Next);
        }
        self.hold(Arc::clone(publication));
        Ok(Arrival::BehindGap)
    }

    /// Takes what the broker has; what is to be delivered, in order.
    ///
    /// A gap may be left if more is missing than is read at once, or more has come meanwhile than could be held:
    /// then the broker is to be read again.
    ///
    /// # Errors
    ///
    /// [`Lost`]: the stream cannot be followed any longer.
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
        self.heard = self.heard.max(read.position.offset);
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

    /// What somebody has missed who has heard everything up to `since`. `older` is what the broker had of
    /// the stream a moment ago, if it was asked: the newest part, in order.
    pub(super) fn missed(&self, since: &Position, older: Option<&Read>, now: Instant) -> Missed {
        let top = self.position.offset;
        if !self.continues(since) || top < since.offset {
            return Missed::Unknown;
        }
        let missing = usize::try_from(top - since.offset).unwrap_or(usize::MAX);
        if missing == 0 {
            return Missed::These(Vec::new());
        }
        if self.keeping.size < missing || self.expires_at <= now {
            return Missed::Unknown;
        }
        if self.keeping.recovery.publications_max < missing {
            return Missed::TooMuch;
        }
        if let Some(first) = self.ring.len().checked_sub(missing) {
            return self.within_bounds(self.ring.range(first..));
        }
        if self.keeping.recovery.bytes_max < self.ring_bytes {
            return Missed::TooMuch;
        }
        let ring_from = top + 1 - self.ring.len() as u64;
        // Half of what is here is read too: the stream goes on meanwhile.
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

    /// What was missed, if it is not more than somebody who comes back gets.
    fn within_bounds<'a>(
        &self,
        publications: impl Iterator<Item = &'a Arc<Publication>> + Clone,
    ) -> Missed {
        let bytes: usize = publications.clone().map(|one| cost(one)).sum();
        let these: Vec<_> = publications.cloned().collect();
        if 1 < these.len() && self.keeping.recovery.bytes_max < bytes {
            return Missed::TooMuch;
        }
        Missed::These(these)
    }

    fn push(&mut self, publication: Arc<Publication>, now: Instant) {
        self.position.offset = publication.offset;
        self.ring_bytes += cost(&publication);
        self.ring.push_back(publication);
        while (self.keeping.size < self.ring.len() || self.keeping.bytes_max < self.ring_bytes)
            && let Some(oldest) = self.ring.pop_front()
        {
            self.ring_bytes -= cost(&oldest);
        }
        self.expires_at = now + self.keeping.ttl;
    }

    /// Keeps what came behind a gap, if there is room and nothing is missing among it. What does not fit
    /// is read from the broker with the rest.
    fn hold(&mut self, publication: Arc<Publication>) {
        let follows = self
            .held
            .back()
            .is_none_or(|last| last.offset + 1 == publication.offset);
        let bytes = self.held_bytes + cost(&publication);
        if follows && bytes <= self.keeping.bytes_max {
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
