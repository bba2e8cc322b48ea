//! The state machine of a channel's stream: a plain type, time passed in.

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use super::sequence::Arrival;
use super::sequence::CacheLimits;
use super::sequence::Lost;
use super::sequence::Missed;
use super::sequence::Read;
use super::sequence::Sequence;
use crate::broker::history::Unstarted;
use crate::protocol::Position;
use crate::protocol::Publication;

/// How many publications are kept while the history is read for the first time. Those over the limit are read again.
const EARLY_MAX: usize = 256;

/// The state of a stream from its opening to its end.
///
/// Invariant: a read is wanted or under way whenever the stream has a gap, or may have one because the connection was
/// lost.
#[derive(Debug)]
pub(super) struct State {
    phase: Phase,
    receiving: Receiving,
    /// How often the broker's connection was lost, or the history changed while it was read for the first time.
    interruptions: u64,
    read: ReadState,
    /// How many reads have begun, and the number of the last one that was applied.
    reads_begun: u64,
    reads_done: u64,
}

#[derive(Debug)]
enum Phase {
    /// The subscription is not confirmed, or the history not read.
    Opening(Vec<Early>),
    /// The channel has no history.
    Unstored,
    Following(Box<Sequence>),
    Ended,
}

#[derive(Debug)]
struct Early {
    position: Position,
    publication: Arc<Publication>,
}

/// Whether publications are received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Receiving {
    Yes,
    /// Again, but earlier publications may be missing.
    Unverified,
    No,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadState {
    NotWanted,
    Wanted,
    UnderWay {
        /// Another read is needed: something has changed since this one began.
        again: bool,
    },
}

/// What to do with a publication that was received.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// Deliver it to the members.
    Deliver,
    /// Drop it: it was delivered before.
    Repeat,
    /// It is held, because publications before it are missing. This is the first one after the gap.
    Gap,
    /// It is held until the stream is open, or until the gap before it is filled.
    Held,
    /// The stream has ended.
    Ended,
}

/// A read of the history that has begun.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) since: Position,
    /// The highest offset that was received before it.
    offset_seen: u64,
    number: u64,
    interruptions: u64,
    was_unverified: bool,
}

/// What earlier steps of a join have found out.
#[derive(Debug, Default)]
pub(super) struct Known<'a> {
    /// Older publications, if they were read for this join.
    pub(super) older: Option<&'a Read>,
    /// The number of the read that verifies a position that is ahead of the stream.
    pub(super) verified_by: Option<u64>,
}

/// Whether a member can join now.
#[derive(Debug, PartialEq)]
pub(super) enum JoinDecision {
    /// It can, and has missed these.
    Now(Missed),
    /// Once the stream's position is known.
    Later,
    /// Once the history was read: the member's position is ahead of this node's, and may be valid or not.
    Ahead,
    /// It cannot: the stream has ended.
    Never,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Opening(Vec::new()),
            receiving: Receiving::Yes,
            interruptions: 0,
            read: ReadState::NotWanted,
            reads_begun: 0,
            reads_done: 0,
        }
    }

    /// Must be called before waiting for the subscription; the result is passed to [`opened`](Self::opened).
    pub(super) fn open(&self) -> u64 {
        self.interruptions
    }

    /// Notes that the subscription is confirmed and that the history (if there is one) was read after that. Returns
    /// false if the connection was lost meanwhile: both must be repeated.
    ///
    /// # Errors
    ///
    /// [`Lost`]: the history has changed during the read.
    pub(super) fn opened(
        &mut self,
        interruptions: u64,
        stream: Option<(CacheLimits, Read)>,
        now: Instant,
    ) -> Result<bool, Lost> {
        let Phase::Opening(early) = &mut self.phase else {
            return Ok(true);
        };
        let early = mem::take(early);
        if interruptions != self.interruptions {
            return Ok(false);
        }
        self.receiving = Receiving::Yes;
        let Some((limits, read)) = stream else {
            self.phase = Phase::Unstored;
            return Ok(true);
        };
        let mut sequence = Sequence::new(limits, read, now);
        for Early {
            position,
            publication,
        } in early
        {
            sequence.arrive(&position.epoch, &publication, now)?;
        }
        if sequence.has_gap() {
            self.request_read();
        }
        self.phase = Phase::Following(Box::new(sequence));
        Ok(true)
    }

    /// Handles a publication from the broker, with its position if it is stored.
    ///
    /// # Errors
    ///
    /// [`Lost`]: the stream cannot continue.
    pub(super) fn receive(
        &mut self,
        position: Option<&Position>,
        publication: &Arc<Publication>,
        now: Instant,
    ) -> Result<Received, Lost> {
        match (&mut self.phase, position) {
            (Phase::Ended, _) => Ok(Received::Ended),
            (Phase::Opening(early), Some(position)) => {
                let early_publication = Early {
                    position: position.clone(),
                    publication: Arc::clone(publication),
                };
                if EARLY_MAX <= early.len() {
                    early.pop(); // The newest one suffices to detect the gap.
                }
                early.push(early_publication);
                Ok(Received::Held)
            }
            (Phase::Following(sequence), Some(position)) => {
                let had_gap = sequence.has_gap();
                match sequence.arrive(&position.epoch, publication, now)? {
                    Arrival::Next => Ok(Received::Deliver),
                    Arrival::Repeat => Ok(Received::Repeat),
                    Arrival::AfterGap if had_gap => Ok(Received::Held),
                    Arrival::AfterGap => {
                        self.request_read();
                        Ok(Received::Gap)
                    }
                }
            }
            (_, _) => Ok(Received::Deliver),
        }
    }

    /// Notes that the connection is lost.
    pub(super) fn interrupted(&mut self) {
        self.interruptions += 1;
        self.receiving = Receiving::No;
    }

    /// Notes that the connection is back. Returns true if publications may be missing, so that a read is wanted.
    pub(super) fn resumed(&mut self) -> bool {
        match self.phase {
            Phase::Following(_) => {
                self.receiving = Receiving::Unverified;
                self.request_read();
                true
            }
            Phase::Opening(_) | Phase::Unstored | Phase::Ended => {
                self.receiving = Receiving::Yes;
                false
            }
        }
    }

    /// Notes that the stream may have a new epoch. Returns true if a read is wanted.
    pub(super) fn doubt(&mut self) -> bool {
        match self.phase {
            Phase::Following(_) => {
                self.request_read();
                self.wants_read()
            }
            Phase::Opening(_) => {
                self.interruptions += 1; // What was read may be older.
                false
            }
            Phase::Unstored | Phase::Ended => false,
        }
    }

    /// Begins the read that is wanted, if any.
    pub(super) fn begin_read(&mut self) -> Option<Reading> {
        let Phase::Following(sequence) = &self.phase else {
            return None;
        };
        if self.read != ReadState::Wanted || self.receiving == Receiving::No {
            return None; // Resuming the connection requests a read of its own.
        }
        self.read = ReadState::UnderWay { again: false };
        self.reads_begun += 1;
        Some(Reading {
            number: self.reads_begun,
            since: sequence.position().clone(),
            offset_seen: sequence.offset_seen(),
            interruptions: self.interruptions,
            was_unverified: self.receiving == Receiving::Unverified,
        })
    }

    /// Notes that the read has failed and has to be repeated.
    pub(super) fn read_failed(&mut self) {
        self.read = ReadState::Wanted;
    }

    /// Applies a read. Returns the publications to deliver, in order.
    ///
    /// # Errors
    ///
    /// [`Lost`]: the stream cannot continue.
    pub(super) fn absorb(
        &mut self,
        reading: &Reading,
        read: Read,
        now: Instant,
    ) -> Result<Vec<Arc<Publication>>, Lost> {
        let Phase::Following(sequence) = &mut self.phase else {
            return Ok(Vec::new());
        };
        let is_behind = read.position.offset < reading.offset_seen;
        let found = sequence.absorb(read, now)?;
        if is_behind && found.is_empty() && sequence.has_gap() {
            // It lacks what was published before: further reads would find no more.
            return Err(Lost::Rewound);
        }
        self.reads_done = reading.number;
        let again = self.read == ReadState::UnderWay { again: true };
        self.read = if again || sequence.has_gap() {
            ReadState::Wanted
        } else {
            ReadState::NotWanted
        };
        if reading.was_unverified
            && reading.interruptions == self.interruptions
            && self.receiving == Receiving::Unverified
        {
            self.receiving = Receiving::Yes;
        }
        Ok(found)
    }

    /// Whether a read is wanted and can begin.
    pub(super) fn wants_read(&self) -> bool {
        self.read == ReadState::Wanted && self.receiving != Receiving::No
    }

    /// Decides whether a member can join that has received everything up to `since`.
    pub(super) fn join(
        &self,
        since: Option<&Position>,
        known: &Known<'_>,
        now: Instant,
    ) -> JoinDecision {
        let sequence = match &self.phase {
            Phase::Ended => return JoinDecision::Never,
            Phase::Opening(_) => return JoinDecision::Later,
            _ if self.receiving != Receiving::Yes => return JoinDecision::Later,
            Phase::Unstored => return JoinDecision::Now(Missed::Unknown),
            Phase::Following(sequence) if sequence.has_gap() => return JoinDecision::Later,
            Phase::Following(sequence) => sequence,
        };
        let Some(since) = since else {
            return JoinDecision::Now(Missed::These(Vec::new()));
        };
        let is_behind = sequence.position().offset < since.offset;
        let is_ahead = if sequence.is_empty_history() {
            // The stream may have begun already: other nodes may know its epoch before its first publication arrives here.
            is_behind || Unstarted::of(&since.epoch).is_none()
        } else {
            is_behind && sequence.continues(since)
        };
        match known.verified_by {
            None if is_ahead => JoinDecision::Ahead,
            Some(verified_by) if is_ahead && self.reads_done < verified_by => JoinDecision::Later,
            _ => JoinDecision::Now(sequence.missed(since, known.older, now)),
        }
    }

    /// Requests a read. Returns the number of the first read that sees everything that was published until now.
    pub(super) fn request_verification(&mut self) -> u64 {
        self.request_read();
        self.reads_begun + 1
    }

    /// The stream's position, if the channel has a history.
    pub(super) fn position(&self) -> Option<&Position> {
        match &self.phase {
            Phase::Following(sequence) => Some(sequence.position()),
            Phase::Opening(_) | Phase::Unstored | Phase::Ended => None,
        }
    }

    /// Whether publications are received, and none is missing as far as this node knows.
    pub(super) fn is_receiving(&self) -> bool {
        self.receiving == Receiving::Yes && !self.has_ended()
    }

    /// Ends the stream. Returns false if it had ended before.
    pub(super) fn end(&mut self) -> bool {
        !matches!(mem::replace(&mut self.phase, Phase::Ended), Phase::Ended)
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended)
    }

    fn request_read(&mut self) {
        self.read = match self.read {
            ReadState::UnderWay { .. } => ReadState::UnderWay { again: true },
            ReadState::NotWanted | ReadState::Wanted => ReadState::Wanted,
        };
    }
}

#[cfg(test)]
mod tests;
