//! The steps (begin and end) of this node that are not in the log yet, in order. No I/O.

use std::collections::HashMap;
use std::collections::HashSet;
use std::collections::VecDeque;
use std::sync::Arc;

use crate::protocol::channel::ChannelName;
use crate::protocol::instance::ClientId;
use crate::protocol::instance::Instance;

/// The most steps that wait while Redis is unavailable or full: about 20 MB. Clients and channels beyond that have no events.
const QUEUE_MAX: usize = 100_000;

/// The subject of a step.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// A client is connected.
    Client(ClientId),
    /// This node has subscribers of a channel.
    Channel(ChannelName),
}

/// The details of a client in its events; empty for a channel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Subject {
    /// Empty for an anonymous client.
    pub(super) user: Arc<str>,
    pub(super) transport: &'static str,
    /// The node that has handed it off to this one: its entry there is continued.
    pub(super) from: Option<Instance>,
}

/// A begin or an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) key: Key,
    /// `None`: it ends.
    pub(super) begins: Option<Subject>,
}

/// Steps in their order, each at a position that counts from the start of the node.
///
/// Invariant: `live` holds the subjects that have begun and not ended; `entered` is the position of the first step in `queue`.
#[derive(Debug, Default)]
pub(super) struct Journal {
    live: HashMap<Key, Subject>,
    queue: VecDeque<Step>,
    entered: u64,
}

/// Too many steps wait.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Journal {
    /// Adds a begin. Returns the position after this step.
    ///
    /// # Errors
    ///
    /// [`Full`]: neither this nor its end will be in the log.
    pub(super) fn begin(&mut self, key: Key, subject: Subject) -> Result<u64, Full> {
        if QUEUE_MAX <= self.queue.len() {
            return Err(Full);
        }
        let lives_on = Subject {
            from: None,
            ..subject.clone()
        };
        self.live.insert(key.clone(), lives_on);
        let begins = Some(subject);
        self.queue.push_back(Step { key, begins });
        Ok(self.entered + self.queue.len() as u64)
    }

    /// Adds an end.
    pub(super) fn end(&mut self, key: &Key) {
        if self.live.remove(key).is_some() {
            let key = key.clone();
            self.queue.push_back(Step { key, begins: None });
        }
    }

    /// The next steps, and the position of the first. They stay until they are [entered](Self::advance).
    pub(super) fn next_batch(&self, steps_max: usize) -> (u64, Vec<Step>) {
        let steps = self.queue.iter().take(steps_max).cloned();
        (self.entered, steps.collect())
    }

    /// Removes all steps before `position`, which are in the log.
    pub(super) fn advance(&mut self, position: u64) {
        let steps = position.saturating_sub(self.entered) as usize;
        let steps = steps.min(self.queue.len());
        self.queue.drain(..steps);
        self.entered += steps as u64;
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
        }
    }

    /// How many steps are in the log.
    pub(super) fn entered(&self) -> u64 {
        self.entered
    }

    /// Whether a step of this subject waits.
    pub(super) fn is_waiting(&self, key: &Key) -> bool {
        self.queue.iter().any(|step| step.key == *key)
    }

    /// How many steps wait.
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Adds a begin for everything in `live` again: the log has ended all entries of this node.
    pub(super) fn begin_anew(&mut self) {
        let waiting = self.queue.iter().filter(|step| step.begins.is_some());
        let waiting: HashSet<&Key> = waiting.map(|step| &step.key).collect();
        let ended = self.live.iter().filter(|(key, _)| !waiting.contains(key));
        let anew: Vec<Step> = ended
            .map(|(key, subject)| Step {
                key: key.clone(),
                begins: Some(subject.clone()),
            })
            .collect();
        self.queue.extend(anew);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(name: &str) -> Key {
        Key::Channel(ChannelName::new(name).unwrap())
    }

    fn steps(journal: &Journal) -> Vec<String> {
        let show = |step: Step| {
            let Key::Channel(name) = step.key else {
                panic!("a channel is expected")
            };
            let sign = if step.begins.is_some() { '+' } else { '-' };
            format!("{sign}{name}")
        };
        journal
            .next_batch(usize::MAX)
            .1
            .into_iter()
            .map(show)
            .collect()
    }

    #[test]
    fn steps_stay_in_order_until_they_are_entered() {
        let mut journal = Journal::default();
        let first = journal.begin(channel("a"), Subject::default()).unwrap();
        journal.end(&channel("a"));
        journal.end(&channel("a"));
        let last = journal.begin(channel("b"), Subject::default()).unwrap();
        assert_eq!(steps(&journal), ["+a", "-a", "+b"]);
        assert!(journal.is_waiting(&channel("a")) && !journal.is_waiting(&channel("c")));
        let (place, batch) = journal.next_batch(2);
        assert_eq!((place, batch.len()), (0, 2));
        assert_eq!((first, last), (1, 3));
        journal.advance(2);
        journal.advance(1);
        assert_eq!(journal.entered(), 2);
        assert_eq!(steps(&journal), ["+b"]);
        journal.advance(last);
        assert_eq!((journal.entered(), journal.len()), (3, 0));
    }

    #[test]
    fn live_subjects_begin_again_once() {
        let mut journal = Journal::default();
        for name in ["a", "b", "c"] {
            journal.begin(channel(name), Subject::default()).unwrap();
        }
        journal.end(&channel("b"));
        journal.advance(4);
        journal.begin(channel("d"), Subject::default()).unwrap();
        journal.end(&channel("c"));
        journal.begin_anew();
        journal.begin_anew();
        assert_eq!(steps(&journal), ["+d", "-c", "+a"]);
    }

    #[test]
    fn a_rejected_begin_has_no_end_either() {
        let mut journal = Journal::default();
        for number in 0..QUEUE_MAX {
            journal
                .begin(channel(&number.to_string()), Subject::default())
                .unwrap();
        }
        assert_eq!(journal.begin(channel("a"), Subject::default()), Err(Full));
        journal.end(&channel("a"));
        journal.end(&channel("0"));
        assert_eq!(journal.next_batch(usize::MAX).1.len(), QUEUE_MAX + 1);
    }
}
