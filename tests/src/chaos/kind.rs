//! What is done to the programs.

use std::fmt;

use crate::chaos::topology::Topology;

/// The kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// kill -9 of a node; then a new one in its place.
    NodeKilled,
    /// SIGSTOP, then SIGCONT, now and then so late that its lease is over.
    NodeStopped,
    /// Redis killed, and started again with all its data.
    RedisKilled,
    /// Redis killed, and started again with nothing.
    RedisEmptied,
    /// `CLIENT KILL TYPE pubsub`.
    SubscribersKilled,
    /// The primary killed, and a replica in its place that had fallen behind.
    PrimaryReplaced,
    /// A replica that had fallen behind made the primary, and the old one its replica, whose connections stay open.
    PrimaryDemoted,
    /// The wires between nodes and Redis reset, and not there for a while.
    WireCut,
    /// A wire on which everything takes long.
    WireSlow,
    /// All connections of a wire closed or mute in one direction, until somebody notices.
    WireHalfClosed,
    /// Clients that stay connected and do not read.
    SlowReaders,
    /// Clients that go, and come back.
    ComeAndGo,
    /// Clients that unsubscribe and subscribe again on the same connection, again and again.
    Resubscribing,
    /// Redis has reached `maxmemory`, and refuses what would take more of it.
    RedisFull,
    /// Redis evicts keys one by one: streams, their positions, leases.
    KeysEvicted,
    /// The application takes longer to respond to a hook than `hooks.timeout`.
    SlowHook,
    /// A replica takes the place of its primary because it is told to.
    Failover,
    /// SIGSTOP of a primary, mostly until a replica has its place, then SIGCONT.
    PrimaryPaused,
    /// Slots of a cluster moved to other primaries, key by key.
    SlotsMoved,
}

impl Kind {
    /// All that nodes have to stand with one Redis and its replica.
    pub const ALL: [Self; 16] = [
        Self::NodeKilled,
        Self::NodeStopped,
        Self::RedisKilled,
        Self::RedisEmptied,
        Self::SubscribersKilled,
        Self::PrimaryReplaced,
        Self::PrimaryDemoted,
        Self::WireCut,
        Self::WireSlow,
        Self::WireHalfClosed,
        Self::SlowReaders,
        Self::ComeAndGo,
        Self::Resubscribing,
        Self::RedisFull,
        Self::KeysEvicted,
        Self::SlowHook,
    ];

    /// What only several servers have that agree which one is the primary.
    const OF_SEVERAL: [Self; 2] = [Self::Failover, Self::PrimaryPaused];

    /// All that nodes have to stand with such servers.
    #[must_use]
    pub fn on(topology: Topology) -> Vec<Self> {
        let mut kinds = Self::ALL.to_vec();
        match topology {
            Topology::One => {}
            Topology::Sentinel => kinds.extend(Self::OF_SEVERAL),
            Topology::Cluster => {
                kinds.extend(Self::OF_SEVERAL);
                kinds.push(Self::SlotsMoved);
            }
        }
        kinds
    }

    /// Those beside which another one may begin before they end.
    pub(super) const BESIDE_OTHERS: [Self; 5] = [
        Self::WireSlow,
        Self::SlowReaders,
        Self::ComeAndGo,
        Self::Resubscribing,
        Self::SlowHook,
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::NodeKilled => "node killed",
            Self::NodeStopped => "node stopped",
            Self::RedisKilled => "redis killed, data kept",
            Self::RedisEmptied => "redis killed, data gone",
            Self::SubscribersKilled => "CLIENT KILL TYPE pubsub",
            Self::PrimaryReplaced => "primary replaced by a replica that lagged",
            Self::PrimaryDemoted => "primary demoted behind a replica that lagged",
            Self::WireCut => "wire cut",
            Self::WireSlow => "wire slow",
            Self::WireHalfClosed => "wire half-closed",
            Self::SlowReaders => "slow readers",
            Self::ComeAndGo => "clients that come and go",
            Self::Resubscribing => "clients that subscribe again",
            Self::RedisFull => "redis at maxmemory",
            Self::KeysEvicted => "keys evicted one by one",
            Self::SlowHook => "slow hook",
            Self::Failover => "failover on purpose",
            Self::PrimaryPaused => "primary paused",
            Self::SlotsMoved => "slots moved",
        };
        f.pad(text)
    }
}
