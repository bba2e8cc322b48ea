//! One client's view of one channel, and what in it must not be.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use super::ledger::Position;
use crate::chaos::violation::Kind;

/// How much of what it saw is kept for a report.
const AROUND: usize = 16;

/// What is wrong.
pub(super) type Finding = (Kind, String);

/// What a client is told when it subscribes.
#[derive(Clone, Debug)]
pub struct Subscribed {
    /// The position it came back with.
    pub since: Option<Position>,
    /// What the node says of it.
    pub recovered: bool,
    /// From where on it will hear everything.
    pub position: Position,
    /// What it missed: offsets and messages.
    pub publications: Vec<(u64, u64)>,
}

/// One client in one channel.
///
/// Within one epoch everything behind the first position has to come, each offset once and in order. Only a response that says that
/// not everything could be recovered makes another beginning.
#[derive(Debug, Default)]
pub(super) struct Follower {
    /// Up to where it has heard everything.
    pub(super) position: Option<Position>,
    /// Where that began.
    base: u64,
    /// Whether it is subscribed, as far as it knows.
    pub(super) is_subscribed: bool,
    /// Since when.
    pub(super) since: Duration,
    /// Offsets that were passed over, and when.
    missing: BTreeMap<u64, Duration>,
    /// Since when there are acknowledged messages in another epoch that were sent while it was subscribed.
    pub(super) elsewhere: Option<Duration>,
    /// What is overdue is reported once.
    pub(super) is_overdue: bool,
    around: VecDeque<String>,
}

impl Follower {
    pub(super) fn note(&mut self, at: Duration, what: &str) {
        if self.around.len() == AROUND {
            self.around.pop_front();
        }
        self.around
            .push_back(format!("{:9.3}s {what}", at.as_secs_f64()));
    }

    pub(super) fn around(&self) -> Vec<String> {
        self.around.iter().cloned().collect()
    }

    pub(super) fn subscribed(&mut self, told: &Subscribed, at: Duration) -> Vec<Finding> {
        let mut findings = Vec::new();
        let came_back_with = told.since.as_ref().map(ToString::to_string);
        self.note(
            at,
            &format!(
                "subscribed at {}, came back with {came_back_with:?}, recovered {}, {} publications",
                told.position,
                told.recovered,
                told.publications.len()
            ),
        );
        self.since = at;
        self.is_subscribed = true;
        self.is_overdue = false;
        self.elsewhere = None;
        let Position { epoch, offset } = &told.position;
        if told.since.is_some() && told.recovered {
            let is_same = |since: &Position| {
                since == &told.position || (since.is_unborn() && since.offset == *offset)
            };
            if !told.since.as_ref().is_some_and(is_same) {
                let what = format!(
                    "recovered from {came_back_with:?} and told {}",
                    told.position
                );
                findings.push((Kind::Rewound, what));
            }
        } else {
            findings.extend(self.passed_over());
            let before = self.position.as_ref();
            if let Some(before) =
                before.filter(|before| before.epoch == *epoch && *offset < before.offset)
            {
                let what = format!("was at {before} and is to go on from {}", told.position);
                findings.push((Kind::Rewound, what));
            }
            self.base = *offset;
        }
        self.position = Some(told.position.clone());
        for (offset, id) in &told.publications {
            findings.extend(self.heard(*offset, *id, at));
        }
        findings
    }

    pub(super) fn heard(&mut self, offset: u64, id: u64, at: Duration) -> Option<Finding> {
        self.note(at, &format!("offset {offset}, message {id}"));
        let Some(position) = self.position.as_mut().filter(|_| self.is_subscribed) else {
            let what = format!("offset {offset}, message {id}, while not subscribed");
            return Some((Kind::Uninvited, what));
        };
        if offset <= position.offset {
            let kind = if self.missing.remove(&offset).is_some() {
                Kind::Reordered
            } else {
                Kind::Repeated
            };
            let what = format!("offset {offset}, message {id}, after {position}");
            return Some((kind, what));
        }
        for missing in position.offset + 1..offset {
            self.missing.insert(missing, at);
        }
        position.offset = offset;
        self.is_overdue = false;
        None
    }

    /// What was passed over and can come late no more.
    pub(super) fn passed_over(&mut self) -> Vec<Finding> {
        let missing = std::mem::take(&mut self.missing);
        missing.into_keys().map(lost).collect()
    }

    /// What was passed over before `until` and will be counted as lost now.
    pub(super) fn passed_over_before(&mut self, until: Duration) -> Vec<Finding> {
        let old: Vec<u64> = self
            .missing
            .iter()
            .filter(|(_, at)| **at < until)
            .map(|(offset, _)| *offset)
            .collect();
        for offset in &old {
            self.missing.remove(offset);
        }
        old.into_iter().map(lost).collect()
    }

    /// A message that was sent at `sent_at` was acknowledged; whether it can never come to this client.
    pub(super) fn acked(
        &mut self,
        acked: &Position,
        sent_at: Duration,
        at: Duration,
    ) -> Option<Finding> {
        let position = self.position.as_mut()?;
        if !self.is_subscribed || sent_at <= self.since {
            return None;
        }
        if position.is_unborn() {
            // The stream that it was there before.
            position.epoch = Arc::clone(&acked.epoch);
        }
        if position.epoch != acked.epoch {
            self.elsewhere.get_or_insert(at);
            return None;
        }
        (acked.offset <= self.base).then(|| {
            let what = format!(
                "{acked} was sent after the client was told that it would hear all behind {}",
                self.base
            );
            (Kind::Lost, what)
        })
    }
}

fn lost(offset: u64) -> Finding {
    (Kind::Lost, format!("offset {offset} was passed over"))
}
