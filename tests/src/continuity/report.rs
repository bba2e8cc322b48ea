//! What a run comes to, and what of it is a failure.

use std::{collections::BTreeMap, fmt, ops::Deref, time::Duration};

use crate::{
    chaos::violation::Kind as Fault,
    continuity::{
        PauseLimits,
        events::Happened,
        other::Setup,
        pauses::Pauses,
        population::Kind,
        record::{Seen, Tally},
        requests::Outcomes,
        scene::{FilesMax, Handoffs},
    },
    harness::scratch::Scratch,
};

mod comparison;
mod markdown;
mod picture;

pub use comparison::comparison;
pub use markdown::markdown;
pub use picture::picture;

/// What came of it, and the files that go with it.
#[derive(Debug)]
pub struct Report {
    /// What came of it.
    pub outcome: Outcome,
    /// Configurations, and what the programs logged.
    pub files: Scratch,
}

impl Deref for Report {
    type Target = Outcome;

    fn deref(&self) -> &Outcome {
        &self.outcome
    }
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What happened.
    pub scenario: &'static str,
    /// What stood in the place of the edge.
    pub other: Option<Setup>,
    /// How many clients of each kind.
    pub clients: BTreeMap<Kind, usize>,
    /// How many channels.
    pub channels: usize,
    /// Messages a second, of all publishers together.
    pub rate: u32,
    /// How long it took until all clients were there.
    pub joined_after: Duration,
    /// How long there were clients.
    pub lasted: Duration,
    /// What became of each event.
    pub events: Vec<Happened>,
    /// What the edges counted.
    pub handoffs: Handoffs,
    /// What became of new connections and requests, if there were any.
    pub requests: Option<Outcomes>,
    /// The most open files.
    pub files_max: FilesMax,
    /// The longest that this program itself was late.
    pub stall_max: Duration,
    /// The longest pauses that are no failure.
    pub limits: Option<PauseLimits>,
    /// What the programs logged as errors.
    pub errors: Vec<String>,
    /// What the clients saw.
    pub seen: Seen,
}

impl Outcome {
    /// What was seen of clients over WebSocket, or of all others.
    #[must_use]
    pub fn sum(&self, is_websocket: bool) -> Tally {
        let mut sum = Tally::default();
        for (kind, tally) in &self.seen.kinds {
            if kind.is_websocket() != is_websocket {
                continue;
            }
            sum.messages += tally.messages;
            sum.ended += tally.ended;
            sum.refused += tally.refused;
            sum.missed_while_away += tally.missed_while_away;
            sum.presence += tally.presence;
            for (fault, count) in &tally.faults {
                *sum.faults.entry(*fault).or_default() += count;
            }
        }
        sum
    }

    /// The pauses of clients over WebSocket, or of all others, around all events.
    #[must_use]
    pub fn pauses(&self, is_websocket: bool) -> Pauses {
        let mut all = Pauses::default();
        // The first part is what comes before the events.
        for window in self.seen.windows.iter().skip(1) {
            all.add(if is_websocket {
                &window.websocket
            } else {
                &window.http
            });
        }
        all
    }

    /// How often a client found something of this kind.
    #[must_use]
    pub fn faults(&self, is_websocket: bool, fault: Fault) -> usize {
        let faults = self.sum(is_websocket).faults;
        faults.get(&fault).copied().unwrap_or(0)
    }

    /// Whether our programs failed. What clients noticed of other programs is a result and no failure.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.other.is_none() && !self.failures().is_empty()
    }

    /// What is wrong; nothing if clients noticed nothing.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        let mut none = |what: &str, count: u64| {
            if 0 < count {
                failures.push(format!("{count} {what}"));
            }
        };
        let websocket = self.sum(true);
        none("WebSockets were disconnected", websocket.ended);
        none("clients were refused", websocket.refused);
        none("joins or leaves were told", websocket.presence);
        for (fault, count) in &websocket.faults {
            none(&format!("times {fault:?}, of WebSockets"), *count as u64);
        }
        // Their sessions may end. What is published within one has to arrive.
        for (fault, count) in self.sum(false).faults {
            none(
                &format!("times {fault:?}, of SockJS over HTTP"),
                count as u64,
            );
        }
        none(
            "contradictions in what was acknowledged",
            self.seen.of_nobody as u64,
        );
        none(
            "commands to publish were refused",
            self.seen.publishing.refused,
        );
        none("lines of errors were logged", self.errors.len() as u64);
        if let Some(requests) = &self.requests {
            none("connections were refused", requests.refused);
            none("requests were cut", requests.cut);
            none("requests failed", requests.failed);
        }
        failures.extend(self.events.iter().filter_map(|event| event.failure.clone()));
        if let Some(limits) = self.limits {
            let pauses = self.pauses(true);
            let (p99, most) = (pauses.quantile(990), pauses.most());
            if limits.p99 < p99 {
                failures.push(format!(
                    "the pause is {p99:.0?} at p99, more than {:?}",
                    limits.p99
                ));
            }
            if limits.most < most {
                failures.push(format!(
                    "the longest pause is {most:.0?}, more than {:?}",
                    limits.most
                ));
            }
        }
        failures
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clients: usize = self.clients.values().sum();
        let (scenario, rate, channels) = (self.scenario, self.rate, self.channels);
        writeln!(
            f,
            "{scenario}: {clients} clients, {rate} messages a second in {channels} channels"
        )?;
        writeln!(
            f,
            "  all were there after {:.1?}, the end came after {:.1?}",
            self.joined_after, self.lasted
        )?;
        for event in &self.events {
            writeln!(f, "  {}", event.line)?;
        }
        for (kind, tally) in &self.seen.kinds {
            writeln!(
                f,
                "  {kind:<30} {:>6} clients {:>9} messages {:>6} ended {:>4} refused {:>6} missed while away {:>4} joins and leaves {:?}",
                self.clients.get(kind).copied().unwrap_or(0),
                tally.messages,
                tally.ended,
                tally.refused,
                tally.missed_while_away,
                tally.presence,
                tally.faults,
            )?;
        }
        for window in &self.seen.windows {
            write!(f, "  {:<20}", window.name)?;
            for (name, pauses) in [("WebSocket", &window.websocket), ("HTTP", &window.http)] {
                let (p50, p99) = (pauses.quantile(500), pauses.quantile(990));
                write!(
                    f,
                    "  {name}: p50 {p50:>7.1?} p99 {p99:>7.1?} most {:>7.1?}",
                    pauses.most()
                )?;
            }
            writeln!(f)?;
        }
        let Handoffs { moved, stayed } = self.handoffs;
        writeln!(f, "  {moved} handoffs, {stayed} clients stayed")?;
        if let Some(requests) = &self.requests {
            let Outcomes {
                connections,
                requests,
                refused,
                cut,
                failed,
                longest,
                lasted,
                reasons,
            } = requests;
            let seconds = lasted.as_secs_f64();
            writeln!(
                f,
                "  {:.0} new connections and {:.0} requests a second; {refused} refused, {cut} cut, {failed} failed; at most {longest:.1?}",
                *connections as f64 / seconds,
                *requests as f64 / seconds,
            )?;
            for reason in reasons {
                writeln!(f, "    {reason}")?;
            }
        }
        writeln!(f, "  publishing: {:?}", self.seen.publishing)?;
        let FilesMax { load, edge, node } = self.files_max;
        writeln!(
            f,
            "  open files at most: {load} here, {edge} of the edge, {node} of a node"
        )?;
        writeln!(
            f,
            "  this program was late by at most {:.1?}",
            self.stall_max
        )?;
        for line in self.seen.reasons.iter().chain(&self.errors) {
            writeln!(f, "    {line}")?;
        }
        for violation in self.seen.violations.iter().take(10) {
            write!(f, "{violation}")?;
        }
        let verdict = match self.other {
            None => "FAILED",
            Some(_) => "noticed",
        };
        for failure in self.failures() {
            writeln!(f, "  {verdict}: {failure}")?;
        }
        Ok(())
    }
}
