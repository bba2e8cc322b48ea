//! The node's settings: `node.yaml`, validated once, with every default filled in.
//!
//! Below this module nothing is checked again. [`settings`] holds all defaults and ranges, [`raw`] mirrors
//! the file for serde, [`check`] turns one into the other and reports every mistake with its place.
//! `conf/node.yaml` says of each setting what it is for; the docs here say it in short.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use causeway_conf::AddressRange;
use causeway_conf::ConfError;
use causeway_conf::ConfErrors;
use causeway_conf::Environment;
use causeway_conf::Positions;
use causeway_conf::RenamedSetting;
use causeway_conf::RenamedSettings;
use causeway_conf::Secret;

mod auth;
mod channels;
mod check;
mod effective;
mod endpoint;
mod generate;
mod hooks;
mod lifecycle;
mod live;
mod namespace;
mod raw;
mod restart;
mod settings;
mod transports;

pub(crate) use auth::{Auth, KeyFile, KeySetFile};
pub(crate) use channels::{ChannelStreams, Channels, ClientLimits, UserLimitPolicy};
pub(crate) use endpoint::{
    AllowedOrigins, ChannelsEndpoint, Endpoint, Mode, Ping, Protocol, PublishRate, Sockjs,
};
pub(crate) use hooks::{Hook, Hooks};
pub(crate) use lifecycle::Lifecycle;
pub(crate) use live::Live;
pub(crate) use namespace::{
    Ack, ChannelOptions, DataKind, HistoryOptions, Namespaces, PublishAccess, ReadAccess,
    SlowReader, SubscribeAccess,
};
pub(crate) use transports::{ChannelTransport, SockjsTransport};

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file it was read from; `None` for the defaults.
    pub(crate) file: Option<PathBuf>,
    id: Option<String>,
    /// Where clients and the edge connect; port 0 lets the kernel choose.
    pub(crate) listen: SocketAddr,
    /// Where operators connect, port 0 as above; `None`: nowhere.
    pub(crate) admin: Option<SocketAddr>,
    /// Worker threads; `None`: one for each core.
    pub(crate) threads: Option<usize>,
    /// The address at which edges reach this node; `None`: it is not published.
    pub(crate) advertise: Option<String>,
    /// Where this node runs.
    pub(crate) zone: Option<String>,
    /// The deploy that this node belongs to: edges prefer the newest.
    pub(crate) generation: Option<u64>,
    /// How messages reach other nodes.
    pub(crate) broker: Broker,
    /// Authentication of channel clients.
    pub(crate) auth: Auth,
    /// What the application's backend is asked about them.
    pub(crate) hooks: Hooks,
    pub(crate) registry: Registry,
    /// Lifecycle events of clients and channels.
    pub(crate) lifecycle: Lifecycle,
    /// What an application's backend can do, if it can do anything.
    pub(crate) api: Option<Api>,
    pub(crate) values: Values,
    /// What is served where; paths differ and none is empty.
    pub(crate) endpoints: Vec<Arc<Endpoint>>,
    /// What holds for endpoints with `mode: channels`.
    pub(crate) channels: Channels,
    /// Whether `/` is the chat page.
    pub(crate) page: bool,
    /// Peers whose X-Forwarded-* headers are trusted.
    pub(crate) trusted_proxies: Vec<AddressRange>,
    pub(crate) limits: Limits,
    pub(crate) tcp: Tcp,
    pub(crate) fanout: Fanout,
    pub(crate) drain: Drain,
    pub(crate) log: Log,
    /// Settings under old names, and what is no mistake and cannot work, one line each.
    pub(crate) warnings: Vec<ConfError>,
}

/// Which broker, and its settings.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Broker {
    /// This node alone.
    Memory,
    /// Redis Pub/Sub.
    Redis(Box<Redis>),
}

/// The Redis broker's settings.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Redis {
    /// What the names of all keys and of the node's own channels begin with; a `:` follows it.
    pub(crate) prefix: Arc<str>,
    /// The only server, or the first of those that share the channels.
    pub(crate) server: RedisServer,
    /// The others, in their order: it is the same on all nodes, and decides which channel is where.
    pub(crate) other_servers: Vec<RedisServer>,
    /// Publish queues, with one connection each.
    pub(crate) publish_queues: usize,
    /// The size of one publish queue, in bytes of messages.
    pub(crate) publish_queue_bytes_max: usize,
    /// How long a publication may wait for its publish queue and in it.
    pub(crate) publish_queue_wait: Duration,
    /// For a connection, from the first packet to the end of the login.
    pub(crate) connect_timeout: Duration,
    /// For the reply to a command.
    pub(crate) response_timeout: Duration,
    /// The longest pause between two attempts to connect.
    pub(crate) backoff_max: Duration,
    pub(crate) probe_interval: Duration,
    /// After which a probe that was not received counts as missed.
    pub(crate) probe_timeout: Duration,
    /// The largest publication that is accepted from Redis.
    pub(crate) message_bytes_max: usize,
    /// Whether a node that needs the registry is not ready while Redis is full.
    pub(crate) is_unready_when_full: bool,
}

impl Redis {
    /// The settings of each server alone, in their order.
    pub(crate) fn shards(&self) -> Vec<Self> {
        let servers = [&self.server].into_iter().chain(&self.other_servers);
        let alone = |server: &RedisServer| Self {
            server: server.clone(),
            other_servers: Vec::new(),
            ..self.clone()
        };
        servers.map(alone).collect()
    }
}

/// Which Redis, and how to log in. `Debug` masks the password.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RedisServer {
    pub(crate) location: RedisLocation,
    /// `None`: in the clear. Never with a unix socket.
    pub(crate) tls: Option<RedisTls>,
    pub(crate) database: i64,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<Secret>,
}

/// How a Redis server is found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum RedisLocation {
    /// It is the one at this address.
    At(RedisAddress),
    /// It is the primary that Sentinels name.
    Sentinel(Arc<Sentinels>),
    /// They are the primaries of a Redis Cluster.
    Cluster(Arc<ClusterServers>),
}

impl fmt::Display for RedisLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(address) => address.fmt(f),
            Self::Sentinel(sentinels) => write!(f, "sentinel:{}", sentinels.master),
            Self::Cluster(cluster) => match cluster.servers.first() {
                Some(first) => write!(f, "cluster:{first}"),
                None => f.write_str("cluster"),
            },
        }
    }
}

/// Servers of a Redis Cluster, which name all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClusterServers {
    /// Never empty.
    pub(crate) servers: Vec<RedisAddress>,
    /// Where servers are reached from here, by the addresses that the cluster names.
    pub(crate) announce: Vec<(RedisAddress, RedisAddress)>,
    pub(crate) relay_pubsub: RelayPubSub,
    /// Whether the node is not ready while one of the primaries does not deliver.
    pub(crate) is_unready_when_partial: bool,
}

/// How the channels of relay endpoints travel through a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RelayPubSub {
    /// `SPUBLISH`: over the servers of the channel's slot.
    Sharded,
    /// `PUBLISH`: over all servers.
    Classic,
}

/// Sentinels that watch a primary, and the login to them. `Debug` masks the password.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sentinels {
    /// What they call the primary.
    pub(crate) master: String,
    /// Never empty.
    pub(crate) servers: Vec<RedisAddress>,
    pub(crate) tls: Option<RedisTls>,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<Secret>,
}

/// Which certificate authorities are trusted for a Redis server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RedisTls {
    /// Trusted CA certificates in PEM, at least one; `None`: those of the system.
    pub(crate) ca: Option<Arc<[u8]>>,
}

/// Where Redis listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum RedisAddress {
    /// Resolved again at each attempt to connect.
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
}

impl fmt::Display for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// How nodes know of each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registry {
    /// How often a node renews its lease.
    pub(crate) renew: Duration,
    /// After which one that has not said so is gone.
    pub(crate) lease: Duration,
    /// Within which everything that a node holds is compared with Redis once.
    pub(crate) verify: Duration,
}

/// The API for an application's backend.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Api {
    /// Where it is.
    pub(crate) path: String,
    /// Each gives full access; never empty.
    pub(crate) keys: Vec<Secret>,
    /// How far a publication gets before it is acknowledged, if it does not say so itself.
    pub(crate) ack: Ack,
    /// The largest number of publications in one `history` response.
    pub(crate) history_page: usize,
}

/// The longest name of a session value, in bytes: as for a channel.
pub(crate) const VALUE_NAME_BYTES_MAX: usize = 255;

/// What is kept for users and clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Values {
    /// The largest value.
    pub(crate) value_bytes_max: usize,
    /// What all values may take of a node that is alone.
    pub(crate) memory_bytes_max: usize,
}

/// The limits of the node.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Limits {
    /// TCP connections at a time; `None`: as many as the open-file limit allows.
    pub(crate) connections: Option<usize>,
    /// What the process may have in memory, in bytes; `None`: as much as there is.
    pub(crate) memory: Option<usize>,
    /// SockJS sessions over HTTP at a time.
    pub(crate) sessions: usize,
    /// Those of one client address on which no receiver waits.
    pub(crate) sessions_per_address: usize,
    /// The largest request head.
    pub(crate) head_bytes_max: usize,
    /// For a request head to be complete.
    pub(crate) head_timeout: Duration,
    /// How long a connection may wait for its next request.
    pub(crate) keepalive: Duration,
    /// The largest request body (`xhr_send`).
    pub(crate) body_bytes_max: usize,
    /// For a request body to be complete.
    pub(crate) body_timeout: Duration,
    /// For a client to read 16 KiB of a response, or the rest of it.
    pub(crate) send_timeout: Duration,
}

/// Socket options of client connections.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tcp {
    /// Idle time before the kernel probes the peer.
    pub(crate) keepalive: Duration,
    /// How long sent data may stay unacknowledged.
    pub(crate) user_timeout: Duration,
    /// SO_SNDBUF, in bytes.
    pub(crate) send_buffer_bytes: usize,
}

/// How the hub gathers publications before it writes them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fanout {
    /// The longest that a publication waits for others; zero: never.
    pub(crate) window: Duration,
    /// Threads' time between two rounds, as a multiple of what the last one took.
    pub(crate) factor: f64,
    /// What may gather before the window is cut short.
    pub(crate) batch_bytes_max: usize,
}

/// How the node stops.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Drain {
    /// How long `/ready` responds 503 before clients are disconnected.
    pub(crate) lead: Lead,
    /// The time over which clients are disconnected.
    pub(crate) spread: Duration,
    /// After which what is still open is cut.
    pub(crate) timeout: Duration,
}

impl Drain {
    /// How long clients may be handed off at most: those that are left have to be disconnected before the timeout.
    pub(crate) fn handoffs_max(&self) -> Duration {
        self.timeout * 3 / 4
    }
}

/// How long a stopping node serves as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lead {
    /// Until every prober of `/ready` knows that it is stopping.
    UntilProbersKnow {
        /// And no longer than this.
        max: Duration,
    },
    Fixed(Duration),
}

impl fmt::Display for Lead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UntilProbersKnow { max } => write!(f, "until all probers know, {max:?} at most"),
            Self::Fixed(time) => write!(f, "{time:?}"),
        }
    }
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Log {
    /// A level, or `tracing` filter directives.
    pub(crate) level: String,
    pub(crate) format: LogFormat,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Human-readable text.
    Text,
}

/// What the names of environment variables with settings begin with.
const VARIABLES: &str = "CAUSEWAY_NODE";

/// The settings that have another name since 0.1.0.
const RENAMED: RenamedSettings = &[
    RenamedSetting {
        old: "broker.lanes",
        new: "publish_queues",
    },
    RenamedSetting {
        old: "broker.lane_bytes",
        new: "publish_queue_size",
    },
    RenamedSetting {
        old: "broker.lane_wait",
        new: "publish_queue_wait",
    },
    RenamedSetting {
        old: "hooks.answer_size",
        new: "response_size",
    },
    RenamedSetting {
        old: "limits.answer_timeout",
        new: "send_timeout",
    },
];

/// The first lines of the effective configuration.
const PRINTED: &str = "The effective configuration of causeway-node. Behind each value is its source: file and line, environment variable or default.
Secrets that are given as text are shown as \"***\".";

/// The settings in the environment of this process, as they are now.
fn environment() -> Environment {
    Environment::of_process(VARIABLES)
}

impl Config {
    /// Reads `path`, if there is one, and the settings in the environment of this process.
    ///
    /// # Errors
    ///
    /// Every mistake that was found, with file, line, column (or the environment variable), key and what would be right.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfErrors> {
        Ok(Self::read(path, &environment())?.0)
    }

    /// The effective configuration as YAML: of `path`, of the environment and of defaults, with the source of each value. Secrets
    /// are masked.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn print(path: Option<&Path>) -> Result<String, ConfErrors> {
        let (config, positions) = Self::read(path, &environment())?;
        Ok(config.effective(&positions).to_yaml(PRINTED, &positions))
    }

    fn read(
        path: Option<&Path>,
        environment: &Environment,
    ) -> Result<(Self, Positions), ConfErrors> {
        let document = causeway_conf::load_with::<raw::Config>(path, environment, RENAMED)?;
        let config = check::check(document.value, &document.positions)?;
        let file = path.map(Path::to_owned);
        Ok((Self { file, ..config }, document.positions))
    }

    /// Reads `text` as if it came from a file `name`.
    #[cfg(test)]
    pub(crate) fn parse(name: &str, text: &str) -> Result<Self, ConfErrors> {
        let environment = Environment::default();
        let document = causeway_conf::parse_with::<raw::Config>(name, text, &environment, RENAMED)?;
        check::check(document.value, &document.positions)
    }

    /// What applies when no file is given: the memory broker, `127.0.0.1:9000`, `/sockjs`, `/ws` and
    /// `/echo`.
    #[cfg(any(fuzzing, test))]
    pub(crate) fn default_without_file() -> Self {
        check::check(raw::Config::default(), &Positions::default())
            .expect("a test proves that the defaults pass their own checks")
    }

    /// Settings that are given under an old name, and what cannot work although it is valid, with its place and what would be right.
    #[must_use]
    pub fn warnings(&self) -> &[ConfError] {
        &self.warnings
    }

    /// The node's name: what `node.id` says, else host name and port.
    pub(crate) fn node_id(&self, bound: SocketAddr) -> String {
        match &self.id {
            Some(id) => id.clone(),
            None => format!("{}-{}", host_name(), bound.port()),
        }
    }
}

/// The kernel's host name, reduced to what a header value and a metric label take.
fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name
        .trim()
        .chars()
        .filter(|&c| check::fits_node_id(c))
        .take(check::NODE_ID_BYTES_MAX - "-65535".len())
        .collect();
    if name.is_empty() {
        "node".to_owned()
    } else {
        name
    }
}

#[cfg(test)]
mod tests;
