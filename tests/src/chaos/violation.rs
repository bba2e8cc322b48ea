//! What a client saw and must not have seen, with what is needed to find out why.

use std::{fmt, time::Duration};

/// The kinds of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A publication was passed over.
    Lost,
    /// A publication came again.
    Repeated,
    /// A publication came behind a later one.
    Reordered,
    /// Two publications at one place of the stream, or one at two places of it.
    Muddled,
    /// An acknowledged publication neither came, nor was the client told, within the time that is promised.
    Overdue,
    /// A position went back without a new epoch, or came with another epoch than the one that was recovered.
    Rewound,
    /// A publication of a channel that the client was not subscribed to at the moment.
    Uninvited,
    /// A client was not where everybody has to be once all is quiet.
    Unsettled,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Since the run began.
    pub at: Duration,
    /// Which kind.
    pub kind: Kind,
    /// In which channel.
    pub channel: String,
    /// Which client saw it; none if it showed in what was acknowledged.
    pub client: Option<usize>,
    /// The node that the client was connected to.
    pub node: Option<usize>,
    /// Offsets, messages, times.
    pub detail: String,
    /// The faults in progress, and those that had just ended.
    pub faults: Vec<String>,
    /// What the client had seen of the channel before.
    pub around: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, channel, .. } = self;
        write!(f, "{:9.3}s {kind:?} in {channel}", self.at.as_secs_f64())?;
        if let Some(client) = self.client {
            write!(f, ", client {client}")?;
        }
        if let Some(node) = self.node {
            write!(f, " on node {}", node + 1)?;
        }
        writeln!(f, ": {}", self.detail)?;
        for fault in &self.faults {
            writeln!(f, "           during {fault}")?;
        }
        for line in &self.around {
            writeln!(f, "           saw {line}")?;
        }
        Ok(())
    }
}
