//! What a run comes to, for people.

use std::{collections::BTreeMap, fmt, ops::Deref, time::Duration};

use crate::{
    chaos::{checker::Counts, record::Tally, violation::Violation},
    harness::scratch::Scratch,
    surroundings::observe::Inflicted,
};

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

/// One kind of fault.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tried {
    /// How often.
    pub times: usize,
    /// The longest that it took afterwards until everything was as before.
    pub normal_after_max: Duration,
    /// Connections of clients that were lost.
    pub reconnects: u64,
    /// New clients meanwhile that got through, and that did not.
    pub new_clients: (u64, u64),
}

impl Tried {
    /// Notes one more.
    pub fn note(&mut self, inflicted: &Inflicted) {
        self.times += 1;
        self.normal_after_max = self.normal_after_max.max(inflicted.normal_after);
        self.reconnects += inflicted.reconnects;
        self.new_clients.0 += inflicted.new_clients.connected;
        self.new_clients.1 += inflicted.new_clients.refused;
    }
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What the faults follow from.
    pub seed: u64,
    /// How long there were faults.
    pub lasted: Duration,
    /// The kinds of faults.
    pub tried: BTreeMap<String, Tried>,
    /// What publishers and clients counted.
    pub tally: Tally,
    /// What the checker counted.
    pub counts: Counts,
    /// How long it took after the last fault until everybody had everything.
    pub settled_after: Duration,
    /// The longest that this program itself was late.
    pub stall_max: Duration,
    /// Log lines that the programs say they have lost.
    pub lost_lines: u64,
    /// The first violations whole.
    pub violations: Vec<Violation>,
    /// All of them.
    pub violations_count: usize,
    /// What the programs logged of panics.
    pub panics: Vec<String>,
}

impl Outcome {
    /// Acknowledged messages a second, faults included.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.tally.acked as f64 / self.lasted.as_secs_f64()
    }

    /// How many faults there were.
    #[must_use]
    pub fn faults_count(&self) -> usize {
        self.tried.values().map(|tried| tried.times).sum()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (faults, lasted) = (self.faults_count(), self.lasted);
        writeln!(f, "{faults} faults in {lasted:.0?}, seed {}", self.seed)?;
        let (lost, new) = ("lost connections", "new clients, refused");
        writeln!(f, "  {:<50} times  {lost}  {new}  normal after", "")?;
        for (name, tried) in &self.tried {
            let (times, lost) = (tried.times, tried.reconnects);
            let (connected, refused) = tried.new_clients;
            write!(f, "  {name:<50} {times:>5}  {lost:>16}  ")?;
            writeln!(
                f,
                "{connected:>11}, {refused:>7}  {:.1?}",
                tried.normal_after_max
            )?;
        }
        let mut line = |what: &str, count: u64| writeln!(f, "  {what:<50} {count:>5}");
        line("log lines lost, counted and reported", self.lost_lines)?;
        line("messages acknowledged", self.tally.acked)?;
        line("publications delivered", self.counts.heard)?;
        line("connections of clients", self.tally.connected)?;
        line("connections refused", self.tally.refused_connections)?;
        line("panics", self.panics.len() as u64)?;
        for panic in &self.panics {
            writeln!(f, "    {panic}")?;
        }
        writeln!(f, "  {:.0} acknowledged a second", self.rate())?;
        let late = self.counts.lateness_max;
        writeln!(f, "  a publication came at most {late:?} after it")?;
        let settled = self.settled_after;
        writeln!(f, "  all had everything {settled:?} after the last fault")?;
        writeln!(f, "  this program was late by at most {:?}", self.stall_max)?;
        writeln!(f, "{} violations", self.violations_count)?;
        for violation in &self.violations {
            write!(f, "{violation}")?;
        }
        Ok(())
    }
}
