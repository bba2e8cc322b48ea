//! The kinds of faults, and which program each of them hits.

use std::fmt;

use crate::harness::output;

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The edge.
    Edge,
    /// The node with this index.
    Node(usize),
}

/// What fails, and for which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Standard error.
    Stderr(Victim, output::Fault),
    /// The edge's standard output, its access log.
    Stdout(output::Fault),
    /// There is no room left on the disk with the edge's access log and a node's standard error.
    Disk,
    /// There are no more descriptors than are open.
    Descriptors(Victim),
    /// Connections to the edge's admin listener send nothing.
    SilentAdmin,
    /// A node has as many connections as it may have.
    Connections(usize),
    /// There is no local port left from which nodes could be connected to.
    Ports,
    /// A client that does not read takes its node to `limits.memory`, through the edge. (An allocation that the system refuses ends
    /// any program, so that is not tried.)
    SlowReader,
    /// No name is known, and the DNS server does not reply.
    Names,
    /// The same, and all connections to Redis are reset.
    NamesAndRedis,
    /// The clock jumps ahead by ten years, or back.
    Clock(Victim, Jump),
    /// All connections to Redis are reset, and new ones too.
    RedisUnreachable,
    /// Redis is killed, and started again with its data.
    RedisKilled,
    /// Redis keeps its connections and does not reply.
    RedisStopped,
    /// Redis has reached `maxmemory`.
    RedisFull,
    /// The program gets no time: SIGSTOP, then SIGCONT.
    Stopped(Victim),
    /// SIGUSR1, which rotates logs.
    Rotate(Victim),
    /// The edge's configuration is a pipe to which nobody writes, and it is told to read it.
    Configuration,
}

/// Where to a clock jumps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jump {
    /// Into the future.
    Ahead,
    /// Into the past.
    Back,
}

/// What a fault may do to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// New clients may be refused. Those that are connected stay, and messages flow.
    NewClients,
    /// Messages may stop until it is over.
    Everyone,
}

/// What this machine has for faults.
#[derive(Clone, Copy, Debug)]
pub struct Means {
    /// Clocks can be turned.
    pub clocks: bool,
    /// Ports, disk and names are our own.
    pub machine: bool,
}

impl Kind {
    /// All that there are means for.
    #[must_use]
    pub fn all(means: Means) -> Vec<Self> {
        use Victim::{Edge, Node};
        use output::Fault::{Closed, Full, Unread};
        let mut all = vec![
            Self::Stderr(Edge, Closed),
            Self::Stderr(Edge, Unread),
            Self::Stderr(Node(0), Closed),
            Self::Stderr(Node(2), Unread),
            Self::Stderr(Node(1), Full),
            Self::Stdout(Full),
            Self::Descriptors(Edge),
            Self::Descriptors(Node(0)),
            Self::SilentAdmin,
            Self::Connections(1),
            Self::SlowReader,
            Self::RedisUnreachable,
            Self::RedisKilled,
            Self::RedisStopped,
            Self::RedisFull,
            Self::Stopped(Edge),
            Self::Stopped(Node(1)),
            Self::Rotate(Edge),
            Self::Rotate(Node(2)),
            Self::Configuration,
        ];
        if means.clocks {
            for jump in [Jump::Ahead, Jump::Back] {
                all.push(Self::Clock(Edge, jump));
                all.push(Self::Clock(Node(2), jump));
            }
        }
        if means.machine {
            all.extend([Self::Disk, Self::Ports, Self::Names, Self::NamesAndRedis]);
        }
        all
    }

    /// What it may do to clients.
    #[must_use]
    pub fn effect(self) -> Effect {
        match self {
            Self::Stderr(..)
            | Self::Stdout(_)
            | Self::Disk
            | Self::SilentAdmin
            | Self::Names
            | Self::Clock(..)
            | Self::Rotate(_)
            | Self::Configuration => Effect::None,
            Self::Descriptors(_) | Self::Connections(_) | Self::Ports | Self::SlowReader => {
                Effect::NewClients
            }
            Self::NamesAndRedis
            | Self::RedisUnreachable
            | Self::RedisKilled
            | Self::RedisStopped
            | Self::RedisFull
            | Self::Stopped(_) => Effect::Everyone,
        }
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Edge => f.write_str("edge"),
            Self::Node(index) => write!(f, "n{}", index + 1),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let output = |fault: &output::Fault| match fault {
            output::Fault::Closed => "is a closed pipe",
            output::Fault::Unread => "is a pipe that nobody reads",
            output::Fault::Full => "is a file that cannot grow",
        };
        match self {
            Self::Stderr(victim, fault) => write!(f, "stderr of {victim} {}", output(fault)),
            Self::Stdout(fault) => write!(f, "stdout of edge {}", output(fault)),
            Self::Disk => f.write_str("disk: no room for logs of edge and n2"),
            Self::Descriptors(victim) => write!(f, "descriptors: none left for {victim}"),
            Self::SilentAdmin => f.write_str("descriptors: silent connections to edge's admin"),
            Self::Connections(node) => write!(f, "connections: n{} has all it may have", node + 1),
            Self::Ports => f.write_str("ports: none left to reach nodes"),
            Self::SlowReader => f.write_str("memory: a slow reader fills its node"),
            Self::Names => f.write_str("DNS: names unknown, server does not reply"),
            Self::NamesAndRedis => f.write_str("DNS: names unknown, connections to Redis reset"),
            Self::Clock(victim, Jump::Ahead) => write!(f, "clock of {victim} 10 years ahead"),
            Self::Clock(victim, Jump::Back) => write!(f, "clock of {victim} 10 years back"),
            Self::RedisUnreachable => f.write_str("Redis: unreachable"),
            Self::RedisKilled => f.write_str("Redis: killed, then started again"),
            Self::RedisStopped => f.write_str("Redis: connected and silent"),
            Self::RedisFull => f.write_str("Redis: maxmemory reached"),
            Self::Stopped(victim) => write!(f, "{victim} stopped by SIGSTOP"),
            Self::Rotate(victim) => write!(f, "{victim} gets SIGUSR1"),
            Self::Configuration => f.write_str("edge reloads a file that blocks"),
        }
    }
}
