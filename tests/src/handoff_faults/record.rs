//! What was published and what each client got of it: finds what is lost, repeated, out of order or at two places.
//!
//! Plain, with no sockets. A stream is a sequence of numbers from 1 on, from one publisher. A client that is connected gets each
//! number behind the first that it got, once and in order. What excuses a number that is missing:
//!
//! - its publisher does not know what became of it ([`Record::uncertain`]), or
//! - it was published without a history while the node's connection to Redis was interrupted, which nodes count and log and the
//!   documents say ([`Record::begin_gap`]), or
//! - the client was disconnected or was told that it could not recover, and begins anew.
//!
//! A number that comes twice, or behind a later one, is never excused.

use std::{collections::BTreeMap, fmt};

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// A number was passed over.
    Lost,
    /// A number came again.
    Repeated,
    /// A number came behind a later one.
    Reordered,
    /// A client has not got the last number in time, and was told nothing.
    Silent,
    /// A client was disconnected without a close code, or where nothing had happened to it.
    Disconnected,
    /// More nodes have clients than there are clients, or fewer, for longer than may be.
    Owners,
    /// Presence lists others than those who are there.
    Presence,
    /// A client that stayed was said to have left, or to have joined again.
    JoinLeave,
    /// Something is left of clients that have gone.
    Leak,
    /// A program ended, panicked or logged an error.
    Program,
    /// A client was treated in another way than the documents say.
    Refused,
}

/// One finding, for people.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which kind.
    pub finding: Finding,
    /// What was seen.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.finding, self.detail)
    }
}

/// Where a missing number is excused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// In a history: it can be recovered.
    History,
    /// Nowhere.
    Nowhere,
}

/// A sequence of numbers.
#[derive(Debug)]
struct Stream {
    name: String,
    kept: Kept,
    sent: u64,
    /// Numbers of which the publisher does not know what became.
    uncertain: Vec<u64>,
    /// Numbers in these ranges may be missing: first, and last once it is over.
    gaps: Vec<(u64, Option<u64>)>,
}

/// A client in one stream.
#[derive(Clone, Debug, Default)]
struct Follower {
    /// The last number; none before the first.
    last: Option<u64>,
    /// Those that were missing.
    missed: Vec<u64>,
}

/// All streams and all who follow them.
#[derive(Debug, Default)]
pub struct Record {
    streams: Vec<Stream>,
    followers: BTreeMap<(usize, usize), Follower>,
    violations: Vec<Violation>,
    /// Messages that reached somebody.
    pub messages: u64,
    /// Ends of connections of which clients were told, by the reason.
    pub told: BTreeMap<String, u64>,
    /// Numbers that were missing in a gap.
    pub excused: u64,
    excused_before: u64,
}

impl Record {
    /// Adds a stream and returns its number.
    pub fn add_stream(&mut self, name: String, kept: Kept) -> usize {
        self.streams.push(Stream {
            name,
            kept,
            sent: 0,
            uncertain: Vec::new(),
            gaps: Vec::new(),
        });
        self.streams.len() - 1
    }

    /// The next number of a stream, which is about to be sent.
    pub fn next(&mut self, stream: usize) -> u64 {
        self.streams[stream].sent += 1;
        self.streams[stream].sent
    }

    /// The last number that was sent.
    #[must_use]
    pub fn sent(&self, stream: usize) -> u64 {
        self.streams[stream].sent
    }

    /// Its publisher does not know what became of `number`.
    pub fn uncertain(&mut self, stream: usize, number: u64) {
        self.streams[stream].uncertain.push(number);
    }

    /// Its publisher knows after all that it was published.
    pub fn certain(&mut self, stream: usize, number: u64) {
        let uncertain = &mut self.streams[stream].uncertain;
        uncertain.retain(|other| *other != number);
    }

    /// All streams without a history may miss numbers from now on, also those that are on their way.
    pub fn begin_gap(&mut self) {
        const ON_THEIR_WAY: u64 = 20;
        self.excused_before = self.excused;
        let streams = self.streams.iter_mut();
        for stream in streams.filter(|stream| stream.kept == Kept::Nowhere) {
            let from = stream.sent.saturating_sub(ON_THEIR_WAY);
            stream.gaps.push((from, None));
        }
    }

    /// No longer. What was missing is excused only if a node has counted that it may be.
    pub fn end_gap(&mut self, is_counted: bool) {
        for stream in &mut self.streams {
            let sent = stream.sent;
            if is_counted {
                let open = stream.gaps.iter_mut().filter(|(_, end)| end.is_none());
                open.for_each(|(_, end)| *end = Some(sent));
            } else {
                stream.gaps.retain(|(_, end)| end.is_some());
            }
        }
        let excused = self.excused - self.excused_before;
        if !is_counted && 0 < excused {
            let detail = format!("{excused} numbers are missing, and no node has counted a gap");
            self.violation(Finding::Lost, detail);
        }
    }

    /// A client begins anew in a stream: its first number says where.
    pub fn begins(&mut self, client: usize, stream: usize) {
        self.followers.insert((client, stream), Follower::default());
    }

    /// A client begins anew in all streams but those in `except`.
    pub fn begins_all(&mut self, client: usize, except: Option<usize>) {
        let all = (client, 0)..(client + 1, 0);
        let followed: Vec<_> = self.followers.range(all).map(|(key, _)| *key).collect();
        for key in followed {
            if except != Some(key.1) {
                self.followers.remove(&key);
            }
        }
    }

    /// A client got a number.
    pub fn received(&mut self, client: usize, stream: usize, number: u64) {
        self.messages += 1;
        let about = &self.streams[stream];
        let follower = self.followers.entry((client, stream)).or_default();
        let Some(last) = follower.last else {
            follower.last = Some(number);
            return;
        };
        if number <= last {
            let finding = match follower.missed.contains(&number) {
                true => Finding::Reordered,
                false => Finding::Repeated,
            };
            let detail = format!(
                "client {client} got {number} of {} behind {last}",
                about.name
            );
            self.violations.push(Violation { finding, detail });
            return;
        }
        follower.last = Some(number);
        let missed: Vec<u64> = (last + 1..number).collect();
        let lost: Vec<u64> = { missed.iter().copied() }
            .filter(|number| !about.may_miss(*number))
            .collect();
        let excused = missed.iter().filter(|number| about.is_in_gap(**number));
        self.excused += excused.count() as u64;
        follower.missed.extend(missed);
        if let (Some(first), Some(end)) = (lost.first(), lost.last()) {
            let detail = format!(
                "client {client} got {number} of {} behind {last}: {} from {first} to {end} are missing",
                about.name,
                lost.len()
            );
            let finding = Finding::Lost;
            self.violations.push(Violation { finding, detail });
        }
    }

    /// Whether a client has got this number or a later one.
    #[must_use]
    pub fn has(&self, client: usize, stream: usize, number: u64) -> bool {
        let follower = self.followers.get(&(client, stream));
        follower
            .and_then(|follower| follower.last)
            .is_some_and(|last| number <= last)
    }

    /// The last number that a client has got, for people.
    #[must_use]
    pub fn last(&self, client: usize, stream: usize) -> Option<u64> {
        self.followers.get(&(client, stream))?.last
    }

    /// The name of a stream.
    #[must_use]
    pub fn name(&self, stream: usize) -> &str {
        &self.streams[stream].name
    }

    /// Something else is wrong.
    pub fn violation(&mut self, finding: Finding, detail: String) {
        self.violations.push(Violation { finding, detail });
    }

    /// What was found since the last call.
    pub fn take_violations(&mut self) -> Vec<Violation> {
        std::mem::take(&mut self.violations)
    }
}

impl Stream {
    fn may_miss(&self, number: u64) -> bool {
        self.uncertain.contains(&number) || self.is_in_gap(number)
    }

    fn is_in_gap(&self, number: u64) -> bool {
        let is_in = |(first, end): &(u64, Option<u64>)| {
            *first <= number && end.is_none_or(|end| number <= end)
        };
        self.gaps.iter().any(is_in)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> (Record, usize, usize) {
        let mut record = Record::default();
        let plain = record.add_stream("plain".to_owned(), Kept::Nowhere);
        let past = record.add_stream("past".to_owned(), Kept::History);
        for stream in [plain, past] {
            for _ in 0..100 {
                record.next(stream);
            }
        }
        (record, plain, past)
    }

    fn findings(record: &mut Record) -> Vec<Finding> {
        let violations = record.take_violations();
        violations.iter().map(|one| one.finding).collect()
    }

    #[test]
    fn the_first_number_says_where_a_client_begins_and_all_behind_it_have_to_come() {
        let (mut record, plain, _) = record();
        for number in [40, 41, 42] {
            record.received(0, plain, number);
        }
        assert_eq!(findings(&mut record), []);
        record.received(0, plain, 44);
        assert_eq!(findings(&mut record), [Finding::Lost]);
        record.received(0, plain, 44);
        record.received(0, plain, 43);
        assert_eq!(
            findings(&mut record),
            [Finding::Repeated, Finding::Reordered]
        );
        record.begins(0, plain);
        record.received(0, plain, 60);
        assert_eq!(findings(&mut record), []);
        assert!(record.has(0, plain, 60) && !record.has(0, plain, 61));
    }

    #[test]
    fn a_gap_excuses_what_is_missing_without_a_history_and_nothing_that_is_repeated() {
        let (mut record, plain, past) = record();
        record.begin_gap();
        for _ in 0..10 {
            record.next(plain);
            record.next(past);
        }
        record.end_gap(true);
        for _ in 0..10 {
            record.next(plain);
        }
        for stream in [plain, past] {
            record.received(0, stream, 100);
            record.received(0, stream, 106);
        }
        assert_eq!(findings(&mut record), [Finding::Lost]);
        record.received(0, plain, 106);
        assert_eq!(findings(&mut record), [Finding::Repeated]);
        record.received(0, plain, 112);
        assert_eq!(findings(&mut record), [Finding::Lost]);
    }

    #[test]
    fn a_gap_that_no_node_has_counted_excuses_nothing() {
        let (mut record, plain, _) = record();
        record.begin_gap();
        record.received(0, plain, 100);
        record.end_gap(false);
        assert_eq!(findings(&mut record), []);
        record.begin_gap();
        record.next(plain);
        record.next(plain);
        record.received(0, plain, 102);
        record.end_gap(false);
        assert_eq!(findings(&mut record), [Finding::Lost]);
    }

    #[test]
    fn a_number_of_which_nobody_knows_may_come_or_not() {
        let (mut record, _, past) = record();
        record.uncertain(past, 51);
        record.received(0, past, 50);
        record.received(0, past, 52);
        assert_eq!(findings(&mut record), []);
    }
}
