//! How far a feed is, and what follows from what happens to it: plain, time passed in.

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use super::sequence::Arrival;
use super::sequence::Keeping;
use super::sequence::Lost;
use super::sequence::Missed;
use super::sequence::Read;
use super::sequence::Stream;
use crate::broker::history::Unborn;
use crate::protocol::Position;
use crate::protocol::Publication;

/// How many publications may come while the stream is being read for the first time. What is more is
/// read once more.
const EARLY_MAX: usize = 256;

/// A feed from its opening to its end.
///
/// Invariant: a read of the stream is wanted whenever the stream has a gap, or may have one because the
/// connection was away.
#[derive(Debug)]
pub(super) struct State {
    phase: Phase,
    hearing: Hearing,
    /// How often the connection was lost.
    losses: u64,
    read: ReadState,
    /// Reads that have begun, and those that have been taken in.
    reads_begun: u64,
    reads_done: u64,
}

#[derive(Debug)]
enum Phase {
    /// Not subscribed yet, or the stream not read.
    Opening(Vec<Early>),
    /// The channel keeps no history.
    Unstored,
    Following(Box<Stream>),
    Ended,
}

#[derive(Debug)]
struct Early {
    position: Position,
    publication: Arc<Publication>,
}

/// Whether what is published comes here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hearing {
    Yes,
    /// It does again, but what was published before may be missing.
    Unproven,
    No,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadState {
    NotWanted,
    Wanted,
    UnderWay {
        /// Something has happened since it began that it cannot have seen.
        again: bool,
    },
}

/// What to do with a publication that came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Members are to get it.
    Deliver,
    /// They have had it.
    Repeat,
    /// It waits for what is missing before it. This is the moment at which that showed.
    Gap,
    /// It waits: for the opening, or for what is missing before it.
    Held,
    /// The feed has ended.
    Nobody,
}

/// A read of the stream that is to be made.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) since: Position,
    number: u64,
    losses: u64,
    was_unproven: bool,
}

/// What is known beyond the feed when somebody joins.
#[derive(Debug, Default)]
pub(super) struct Known<'a> {
    /// What the broker has of the stream, if it was asked because the feed said so.
    pub(super) older: Option<&'a Read>,
    /// The number of the read that tells whether a position is ahead of the stream.
    pub(super) proof: Option<u64>,
}

/// How somebody may join.
#[derive(Debug, PartialEq)]
pub(super) enum Joining {
    /// Now, having missed these.
    Now(Missed),
    /// Once the feed knows where it is.
    Later,
    /// Once the stream was read: another node has heard more than this one, or nobody has.
    Ahead,
    /// Not this feed: it has ended.
    Never,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Opening(Vec::new()),
            hearing: Hearing::Yes,
            losses: 0,
            read: ReadState::NotWanted,
            reads_begun: 0,
            reads_done: 0,
        }
    }

    /// To be called before the broker is asked whether it hears the channel; the result goes into
    /// [`opened`](Self::opened).
    pub(super) fn open(&self) -> u64 {
        self.losses
    }

    /// The channel is heard, and its stream (if it has one) was read after that. Whether that holds: if the
    /// connection was lost meanwhile, all is to be done again.
    ///
    /// # Errors
    ///
    /// [`Lost`]: the stream has changed under the reader's eyes.
    pub(super) fn opened(
        &mut self,
        losses: u64,
        stream: Option<(Keeping, Read)>,
        now: Instant,
    ) -> Result<bool, Lost> {
        let Phase::Opening(early) = &mut self.phase else {
            return Ok(true);
        };
        let early = mem::take(early);
        if losses != self.losses {
            return Ok(false);
        }
        self.hearing = Hearing::Yes;
        let Some((keeping, read)) = stream else {
            self.phase = Phase::Unstored;
            return Ok(true);
        };
        let mut stream = Stream::new(keeping, read, now);
        for Early {
            position,
            publication,
        } in early
        {
            stream.arrive(&position.epoch, &publication, now)?;
        }
        if stream.has_gap() {
            self.want_read();
        }
        self.phase = Phase::Following(Box::new(stream));
        Ok(true)
    }

    /// Takes a publication, with its position if it is stored.
    ///
    /// # Errors
    ///
    /// [`Lost`]: the stream cannot be followed any longer.
    pub(super) fn hear(
        &mut self,
        position: Option<&Position>,
        publication: &Arc<Publication>,
        now: Instant,
    ) -> Result<Heard, Lost> {
        match (&mut self.phase, position) {
            (Phase::Ended, _) => Ok(Heard::Nobody),
            (Phase::Opening(early), Some(position)) => {
                let early_publication = Early {
                    position: position.clone(),
                    publication: Arc::clone(publication),
                };
                if EARLY_MAX <= early.len() {
                    early.pop(); // The last one shows that there is a gap.
                }
                early.push(early_publication);
                Ok(Heard::Held)
            }
            (Phase::Following(stream), Some(position)) => {
                let had_gap = stream.has_gap();
                match stream.arrive(&position.epoch, publication, now)? {
                    Arrival::Next => Ok(Heard::Deliver),
                    Arrival::Repeat => Ok(Heard::Repeat),
                    Arrival::BehindGap if had_gap => Ok(Heard::Held),
                    Arrival::BehindGap => {
                        self.want_read();
                        Ok(Heard::Gap)
                    }
                }
            }
            (_, _) => Ok(Heard::Deliver),
        }
    }

    /// Nothing comes any more.
    pub(super) fn interrupted(&mut self) {
        self.losses += 1;
        self.hearing = Hearing::No;
    }

    /// What is published comes again. Whether something may be missing, so that a read is wanted.
    pub(super) fn resumed(&mut self) -> bool {
        match self.phase {
            Phase::Following(_) => {
                self.hearing = Hearing::Unproven;
                self.want_read();
                true
            }
            Phase::Opening(_) | Phase::Unstored | Phase::Ended => {
                self.hearing = Hearing::Yes;
                false
            }
        }
    }

    /// The read that is wanted now, if any; it counts as under way.
    pub(super) fn begin_read(&mut self) -> Option<Reading> {
        let Phase::Following(stream) = &self.phase else {
            return None;
        };
        if self.read != ReadState::Wanted || self.hearing == Hearing::No {
            return None; // Who is away has to be resumed first, and that wants a read of its own.
        }
        self.read = ReadState::UnderWay { again: false };
        self.reads_begun += 1;
        Some(Reading {
            number: self.reads_begun,
            since: stream.position().clone(),
            losses: self.losses,
            was_unproven: self.hearing == Hearing::Unproven,
        })
    }

    /// The read that was under way has failed: it is wanted still.
    pub(super) fn read_failed(&mut self) {
        self.read = ReadState::Wanted;
    }

    /// Takes what was read; what is to be delivered, in order.
    ///
    /// # Errors
    ///
    /// [`Lost`]: the stream cannot be followed any longer.
    pub(super) fn absorb(
        &mut self,
        reading: &Reading,
        read: Read,
        now: Instant,
    ) -> Result<Vec<Arc<Publication>>, Lost> {
        let Phase::Following(stream) = &mut self.phase else {
            return Ok(Vec::new());
        };
        let found = stream.absorb(read, now)?;
        self.reads_done = reading.number;
        let again = self.read == ReadState::UnderWay { again: true };
        self.read = if again || stream.has_gap() {
            ReadState::Wanted
        } else {
            ReadState::NotWanted
        };
        if reading.was_unproven
            && reading.losses == self.losses
            && self.hearing == Hearing::Unproven
        {
            self.hearing = Hearing::Yes;
        }
        Ok(found)
    }

    /// Whether a read is wanted and could begin.
    pub(super) fn wants_read(&self) -> bool {
        self.read == ReadState::Wanted && self.hearing != Hearing::No
    }

    /// How somebody may join who has heard everything up to `since`.
    pub(super) fn join(
        &self,
        since: Option<&Position>,
        known: &Known<'_>,
        now: Instant,
    ) -> Joining {
        let stream = match &self.phase {
            Phase::Ended => return Joining::Never,
            Phase::Opening(_) => return Joining::Later,
            _ if self.hearing != Hearing::Yes => return Joining::Later,
            Phase::Unstored => return Joining::Now(Missed::Unknown),
            Phase::Following(stream) if stream.has_gap() => return Joining::Later,
            Phase::Following(stream) => stream,
        };
        let Some(since) = since else {
            return Joining::Now(Missed::These(Vec::new()));
        };
        let is_behind = stream.position().offset < since.offset;
        let is_ahead = if stream.is_unborn() {
            // The stream may have begun already: others have its epoch before its first publication is here.
            is_behind || Unborn::of(&since.epoch).is_none()
        } else {
            is_behind && stream.continues(since)
        };
        match known.proof {
            None if is_ahead => Joining::Ahead,
            Some(proof) if is_ahead && self.reads_done < proof => Joining::Later,
            _ => Joining::Now(stream.missed(since, known.older, now)),
        }
    }

    /// Has the stream read; the number of the read that sees everything that there was until now.
    pub(super) fn prove(&mut self) -> u64 {
        self.want_read();
        self.reads_begun + 1
    }

    /// Where the stream is, if there is one.
    pub(super) fn position(&self) -> Option<&Position> {
        match &self.phase {
            Phase::Following(stream) => Some(stream.position()),
            Phase::Opening(_) | Phase::Unstored | Phase::Ended => None,
        }
    }

    /// Ends the feed; whether it had not ended yet.
    pub(super) fn end(&mut self) -> bool {
        !matches!(mem::replace(&mut self.phase, Phase::Ended), Phase::Ended)
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended)
    }

    fn want_read(&mut self) {
        self.read = match self.read {
            ReadState::UnderWay { .. } => ReadState::UnderWay { again: true },
            ReadState::NotWanted | ReadState::Wanted => ReadState::Wanted,
        };
    }
}

#[cfg(test)]
mod tests;
