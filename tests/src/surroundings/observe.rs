//! What programs and clients did during a fault.

use std::{collections::BTreeMap, fmt, time::Duration};

use anyhow::{Context as _, Result};

use crate::{
    chaos::record::Record,
    surroundings::{faults::Kind, scene::Scene},
};

/// Parts of the names of metrics that count what was lost, refused, or put off.
const LOSSES: [&str; 7] = [
    "dropped", "refused", "rejected", "skipped", "missed", "losses", "lapses",
];

/// What the harness has them refuse, for a line in their logs.
const OURS: [&str; 2] = ["reason=\"origin\"", "reloads_total"];

/// What programs count of losses, by program.
type Losses = Vec<(String, BTreeMap<String, u64>)>;

/// What publishers and clients count.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flow {
    /// Messages that were acknowledged.
    pub acknowledged: u64,
    /// Publications that clients got.
    pub delivered: u64,
    /// Connections of clients that were established, and attempts at it that failed.
    pub connected: u64,
}

/// Clients that connected anew.
#[derive(Clone, Debug, Default)]
pub struct NewClients {
    /// Those that got through.
    pub connected: u64,
    /// Those that did not.
    pub refused: u64,
    /// Why the first of them did not.
    pub why: Option<String>,
}

impl NewClients {
    /// Notes one more.
    pub fn note(&mut self, connected: Result<()>) {
        match connected {
            Ok(()) => self.connected += 1,
            Err(error) => {
                self.refused += 1;
                self.why.get_or_insert_with(|| format!("{error:#}"));
            }
        }
    }
}

/// A fault, what all did, and how long it took afterwards until everything was as before. Displayed, it is one line.
#[derive(Clone, Debug)]
pub struct Inflicted {
    /// What failed.
    pub kind: Kind,
    /// For how long.
    pub lasted: Duration,
    /// What clients and publishers did meanwhile.
    pub flow: Flow,
    /// What new clients found meanwhile.
    pub new_clients: NewClients,
    /// Connections of clients that were established, or not, from its beginning until everything was as before.
    pub reconnects: u64,
    /// What programs have lost until then: only what became more.
    pub losses: Losses,
    /// From its end until everything was as before.
    pub normal_after: Duration,
}

impl Flow {
    /// What was counted so far.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        let (tally, delivered) = (record.tally().clone(), record.checker().counts.heard);
        Self {
            acknowledged: tally.acked,
            delivered,
            connected: tally.connected + tally.refused_connections,
        }
    }

    /// What has been counted since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            acknowledged: self.acknowledged - before.acknowledged,
            delivered: self.delivered - before.delivered,
            connected: self.connected - before.connected,
        }
    }
}

/// What the programs count of losses at this moment.
///
/// # Errors
///
/// A program does not tell its metrics.
pub async fn losses(scene: &Scene) -> Result<Losses> {
    let mut losses = Vec::new();
    for program in scene.programs() {
        let counters = program.counters().await;
        let mut counters = counters.with_context(|| format!("metrics of {}", program.name))?;
        counters.retain(|name, _| LOSSES.iter().any(|loss| name.contains(loss)));
        losses.push((program.name.clone(), counters));
    }
    Ok(losses)
}

/// What became more.
#[must_use]
pub fn grown(before: &Losses, after: &Losses) -> Losses {
    let pairs = before.iter().zip(after);
    let grown = pairs.map(|((program, before), (_, after))| {
        let grown = after.iter().filter_map(|(name, count)| {
            let more = count.saturating_sub(before.get(name).copied().unwrap_or(0));
            (0 < more).then(|| (name.clone(), more))
        });
        (program.clone(), grown.collect())
    });
    grown.collect()
}

impl fmt::Display for Inflicted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Flow {
            acknowledged,
            delivered,
            ..
        } = self.flow;
        write!(f, "{}: for {:.1?}; ", self.kind, self.lasted)?;
        write!(f, "{acknowledged} acknowledged, {delivered} delivered, ")?;
        let new_clients = self.new_clients.connected + self.new_clients.refused;
        let connected = self.new_clients.connected;
        write!(f, "{} lost connections, ", self.reconnects)?;
        write!(f, "{connected} of {new_clients} new clients; ")?;
        for (program, losses) in &self.losses {
            write!(f, "{program} alive")?;
            let losses = losses
                .iter()
                .filter(|(name, _)| !OURS.iter().any(|ours| name.contains(ours)));
            for (name, count) in losses {
                // The program is named already.
                let name = name.split_once('_').map_or(name.as_str(), |(_, name)| name);
                write!(f, ", {count} {}", name.replace("_total", ""))?;
            }
            f.write_str("; ")?;
        }
        write!(f, "normal after {:.1?}", self.normal_after)
    }
}
