//! What stood in whose way, and when.

use std::{collections::VecDeque, time::Duration};

/// Which clients a fault concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every client.
    Everyone,
    /// The clients of this node.
    Node(usize),
    /// This client.
    Client(usize),
}

/// For how long a fault is remembered after its end.
const REMEMBERED: Duration = Duration::from_secs(30);

/// A report names faults that ended at most so long ago.
const RECENT: Duration = Duration::from_secs(8);

#[derive(Debug)]
struct Trouble {
    number: u64,
    scopes: Vec<Scope>,
    label: String,
    began: Duration,
    ended: Option<Duration>,
}

/// The faults of the last moments.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    last: VecDeque<Trouble>,
    count: u64,
}

impl Troubles {
    pub(super) fn begin(&mut self, label: String, scopes: Vec<Scope>, began: Duration) -> u64 {
        self.last
            .retain(|trouble| trouble.ended.is_none_or(|ended| began < ended + REMEMBERED));
        self.count += 1;
        self.last.push_back(Trouble {
            number: self.count,
            scopes,
            label,
            began,
            ended: None,
        });
        self.count
    }

    pub(super) fn end(&mut self, number: u64, at: Duration) {
        let found = self
            .last
            .iter_mut()
            .find(|trouble| trouble.number == number);
        if let Some(trouble) = found {
            trouble.ended = Some(at);
        }
    }

    /// Since when nothing stands in the way of this client; none if something does.
    pub(super) fn clear_since(&self, client: usize, node: Option<usize>) -> Option<Duration> {
        let mut clear = Duration::ZERO;
        for trouble in &self.last {
            let concerns = trouble.scopes.iter().any(|scope| match scope {
                Scope::Everyone => true,
                Scope::Node(number) => node == Some(*number),
                Scope::Client(number) => client == *number,
            });
            if concerns {
                clear = clear.max(trouble.ended?);
            }
        }
        Some(clear)
    }

    /// For people.
    pub(super) fn recent(&self, now: Duration) -> Vec<String> {
        let recent = self
            .last
            .iter()
            .filter(|trouble| trouble.ended.is_none_or(|ended| now < ended + RECENT));
        recent
            .map(|trouble| {
                let ended = trouble.ended.map_or_else(
                    || "still there".to_owned(),
                    |ended| format!("until {:.3}s", ended.as_secs_f64()),
                );
                let began = trouble.began.as_secs_f64();
                format!("{} (from {began:.3}s, {ended})", trouble.label)
            })
            .collect()
    }
}
