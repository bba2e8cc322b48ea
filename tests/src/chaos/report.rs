//! What a run comes to, for people.

use std::{collections::BTreeMap, fmt, ops::Deref, time::Duration};

use crate::{
    chaos::{checker::Counts, kind::Kind, record::Tally, topology::Topology, violation::Violation},
    harness::scratch::Scratch,
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

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Which servers there were.
    pub topology: Topology,
    /// What the schedule follows from.
    pub seed: u64,
    /// How long there were faults.
    pub lasted: Duration,
    /// How often each kind of fault came.
    pub faults: BTreeMap<Kind, usize>,
    /// What publishers and clients counted.
    pub tally: Tally,
    /// What the checker counted.
    pub counts: Counts,
    /// Streams that began, in all channels together.
    pub epochs: usize,
    /// Acknowledged writes that a replaced primary took with it.
    pub lost_writes: u64,
    /// How long it took after the last fault until everybody had everything.
    pub settled_after: Duration,
    /// The longest that this program itself was late.
    pub stall_max: Duration,
    /// The first violations whole.
    pub violations: Vec<Violation>,
    /// All of them.
    pub violations_count: usize,
    /// What the programs logged as errors.
    pub errors: Vec<String>,
}

impl Outcome {
    /// How many faults there were.
    #[must_use]
    pub fn faults_count(&self) -> usize {
        self.faults.values().sum()
    }

    /// Acknowledged messages a second, faults included.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.tally.acked as f64 / self.lasted.as_secs_f64()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tally, counts, .. } = self;
        let (faults, lasted) = (self.faults_count(), self.lasted);
        let Self { topology, seed, .. } = self;
        writeln!(
            f,
            "{faults} faults in {lasted:.0?}, topology {topology}, seed {seed}"
        )?;
        for (kind, count) in &self.faults {
            writeln!(f, "  {kind:<45} {count:>6}")?;
        }
        let mut line = |what: &str, count: u64| writeln!(f, "  {what:<45} {count:>6}");
        line("messages published", tally.published)?;
        line("acknowledged", tally.acked)?;
        line("given up: not known what became of them", tally.given_up)?;
        line("attempts that failed", tally.failed_attempts)?;
        line("acknowledged, and lost by redis", self.lost_writes)?;
        line("publications heard", counts.heard)?;
        line("recovered", counts.recovered_publications)?;
        line("connections", tally.connected)?;
        line("connections refused", tally.refused_connections)?;
        line("subscriptions, without a position", counts.fresh)?;
        line("recovered: true", counts.recovered)?;
        line("recovered: false", counts.not_recovered)?;
        line("acknowledged messages behind those", counts.excused)?;
        line("refused for the moment", tally.refused_subscriptions)?;
        for (code, count) in &tally.unsubscribes {
            line(&format!("unsubscribed with {code}"), *count)?;
        }
        for (code, count) in &tally.closes {
            let code = code.map_or_else(
                || "without a code".to_owned(),
                |code| format!("with {code}"),
            );
            line(&format!("disconnected {code}"), *count)?;
        }
        line("epochs of all channels", self.epochs as u64)?;
        writeln!(f, "  {:.0} acknowledged a second", self.rate())?;
        writeln!(f, "  an acknowledgement took at most {:?}", tally.ack_max)?;
        let late = counts.lateness_max;
        writeln!(f, "  a publication came at most {late:?} after it")?;
        let settled = self.settled_after;
        writeln!(f, "  all had everything {settled:?} after the last fault")?;
        writeln!(f, "  this program was late by at most {:?}", self.stall_max)?;
        for error in &self.errors {
            writeln!(f, "  logged: {error}")?;
        }
        writeln!(f, "{} violations", self.violations_count)?;
        for violation in &self.violations {
            write!(f, "{violation}")?;
        }
        Ok(())
    }
}
