//! The Redis servers of a run, the wires to them, and how they fail.

use std::{path::Path, time::Duration};

use anyhow::Result;
use serde_json::Value;

use crate::chaos::{kind::Kind, record::Record, topology::Topology, wire::Wire};

mod clustered;
mod pair;
mod watched;

use clustered::Clustered;
use pair::Pair;
use watched::Watched;

/// When a failover on purpose that is not done is requested again, and how often.
const REQUEST_AGAIN: Duration = Duration::from_secs(5);
const REQUESTS_MAX: usize = 5;

/// Those of one topology.
#[derive(Debug)]
pub enum Servers {
    /// See [`Topology::One`].
    Pair(Box<Pair>),
    /// See [`Topology::Sentinel`].
    Watched(Watched),
    /// See [`Topology::Cluster`].
    Clustered(Clustered),
}

impl Servers {
    /// Starts them, with wires for so many `nodes`, and waits until each replica is in sync.
    ///
    /// # Errors
    ///
    /// One of them does not start.
    pub async fn start(topology: Topology, nodes: usize, directory: &Path) -> Result<Self> {
        Ok(match topology {
            Topology::One => Self::Pair(Box::new(Pair::start(nodes, directory).await?)),
            Topology::Sentinel => Self::Watched(Watched::start(nodes, directory).await?),
            Topology::Cluster => Self::Clustered(Clustered::start(nodes, directory).await?),
        })
    }

    /// What `node` gets as its `broker`.
    #[must_use]
    pub fn broker(&self, node: usize) -> Value {
        match self {
            Self::Pair(servers) => servers.broker(node),
            Self::Watched(servers) => servers.broker(node),
            Self::Clustered(servers) => servers.broker(node),
        }
    }

    /// The wires of `node` to the servers.
    #[must_use]
    pub fn wires(&self, node: usize) -> &[Wire] {
        match self {
            Self::Pair(servers) => servers.wires(node),
            Self::Watched(servers) => servers.wires(node),
            Self::Clustered(servers) => servers.wires(node),
        }
    }

    /// The wires of `node` to what it may lose alone: all servers, or in a cluster those of one shard.
    ///
    /// # Errors
    ///
    /// No server says which ones these are.
    pub async fn part(&self, node: usize, dice: &mut fastrand::Rng) -> Result<Vec<&Wire>> {
        match self {
            Self::Clustered(servers) => servers.part(node, dice).await,
            _ => Ok(self.wires(node).iter().collect()),
        }
    }

    /// Has a fault of this kind begin. Returns how many acknowledged writes are lost by it already.
    ///
    /// # Errors
    ///
    /// A server does not obey.
    pub async fn begin(
        &mut self,
        kind: Kind,
        dice: &mut fastrand::Rng,
        record: &Record,
    ) -> Result<u64> {
        match self {
            Self::Pair(servers) => servers.begin(kind, dice).await.map(|()| 0),
            Self::Watched(servers) => servers.begin(kind, dice, record).await,
            Self::Clustered(servers) => servers.begin(kind, dice, record).await,
        }
    }

    /// Has it end: there is a primary again that takes writes, and the servers agree which one. Returns how many acknowledged
    /// writes are lost by that.
    ///
    /// # Errors
    ///
    /// A server does not obey.
    pub async fn end(
        &mut self,
        kind: Kind,
        dice: &mut fastrand::Rng,
        record: &Record,
    ) -> Result<u64> {
        match self {
            Self::Pair(servers) => servers.end(kind, dice, record).await,
            Self::Watched(servers) => servers.end(kind, dice).await.map(|()| 0),
            Self::Clustered(servers) => servers.end(kind).await.map(|()| 0),
        }
    }

    /// Makes everything as it was before, so that the next fault may come.
    ///
    /// # Errors
    ///
    /// A server does not obey.
    pub async fn restore(&mut self, kind: Kind) -> Result<()> {
        match self {
            Self::Pair(servers) => servers.restore(kind).await,
            Self::Watched(servers) => servers.restore(kind).await,
            Self::Clustered(servers) => servers.restore(kind).await,
        }
    }

    /// Deletes a key that belongs to a channel, or a lease if it has no channel.
    ///
    /// # Errors
    ///
    /// There is no primary.
    pub async fn evict(&self, key: &str, channel: Option<&str>) -> Result<()> {
        match self {
            Self::Pair(servers) => servers.evict(key).await,
            Self::Watched(servers) => servers.evict(key).await,
            Self::Clustered(servers) => servers.evict(key, channel).await,
        }
    }
}

/// The key of what says where the stream of a channel is.
fn meta(channel: &str) -> String {
    format!("causeway:me:{{{channel}}}")
}

/// Where the streams are at a server, channel by channel; none of those that it does not have.
async fn offsets(
    record: &Record,
    ask: impl AsyncFn(&[&str]) -> Result<String>,
) -> Result<Vec<Option<u64>>> {
    let mut offsets = Vec::new();
    for channel in 0..record.channels() {
        let key = meta(record.channel(channel));
        let offset = ask(&["HGET", &key, "offset"]).await?;
        offsets.push(match offset.is_empty() {
            true => Some(0),
            false => offset.parse().ok(),
        });
    }
    Ok(offsets)
}

/// How many acknowledged messages are behind these offsets.
fn acked_behind(record: &Record, offsets: &[Option<u64>]) -> u64 {
    let checker = record.checker();
    let known = { offsets.iter().enumerate() }.filter_map(|(channel, offset)| {
        let offset = (*offset)?;
        Some(checker.acked_last_behind(channel, offset))
    });
    known.sum()
}
