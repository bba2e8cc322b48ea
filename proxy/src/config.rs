//! The settings of the edge: validated and complete, with all defaults in this file.
//!
//! A file becomes a [`Config`] in two steps: [`raw`] has the structure for serde, [`read`] validates it and fills in defaults. Users
//! of a `Config` need not check it again. All errors of a file are reported together, each with its line and column.

pub(crate) mod backend;
mod check;
mod effective;
mod generate;
mod health;
mod limits;
mod raw;
mod read;
mod routes;
mod warnings;

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::{Duration, SystemTime};

use causeway_conf::{
    AddressRange, ConfError, ConfErrors, Environment, Positions, RenamedSettings, Secret,
};
use http::StatusCode;
use rustls::pki_types::ServerName;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::config::backend::{Address, BackendId};

pub(crate) use crate::config::health::{HealthConfig, ProbeKind, Statuses};
pub(crate) use crate::config::limits::{Limits, Rate};
pub(crate) use crate::config::routes::{Route, RouteRules, Routes, Stripped, without_query};

/// All settings of the edge.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where clients connect. Never empty.
    pub(crate) listeners: Vec<ListenerConfig>,
    /// Where operators look at the edge, and act on it.
    pub(crate) admin: AdminConfig,
    /// Where another process can take over.
    pub(crate) takeover: TakeoverConfig,
    /// Whether WebSockets over HTTP/2 (RFC 8441) are accepted.
    pub(crate) websockets_over_http2: bool,
    /// Whether a client that half-closes its connection after the request counts as disconnected.
    pub(crate) abort_on_client_close: bool,
    /// The zone of this edge: backends in the same zone are preferred.
    pub(crate) zone: Option<Box<str>>,
    /// Never empty. A [`PoolId`] is an index into it.
    pub(crate) pools: Vec<PoolConfig>,
    pub(crate) routes: Routes,
    pub(crate) no_route: NoRoute,
    pub(crate) affinity: AffinityConfig,
    pub(crate) timeouts: Timeouts,
    pub(crate) limits: Limits,
    pub(crate) drain: DrainConfig,
    pub(crate) rebalance: RebalanceConfig,
    /// The proxies whose `X-Forwarded-*`, `Forwarded` and `X-Request-Id` headers are trusted.
    pub(crate) trusted_proxies: Vec<AddressRange>,
    pub(crate) log: Log,
    /// Worker threads; `None` is one for each processor.
    pub(crate) threads: Option<usize>,
    /// A warning for each setting that is given under an old name.
    pub(crate) renamed: Vec<ConfError>,
}

/// What the names of environment variables with settings begin with.
const VARIABLES: &str = "CAUSEWAY_PROXY";

/// The settings that have another name since 0.1.0: none so far.
const RENAMED: RenamedSettings = &[];

/// The first lines of the effective configuration.
const PRINTED: &str = "The effective configuration of causeway-proxy. Behind each value is its source: file and line, environment variable or default.
Secrets that are given as text are shown as \"***\".";

impl Config {
    /// Reads the file at `path`.
    ///
    /// # Errors
    ///
    /// All errors of the file, each with its position, key and the expected value.
    pub fn load(path: &Path) -> Result<Self, ConfErrors> {
        let environment = Environment::default();
        let document = causeway_conf::load_with(Some(path), &environment, RENAMED)?;
        Ok(read::config(document)?.0)
    }

    /// Reads the file at `path`, if there is one, and the settings in the environment of this process, as the program does.
    ///
    /// # Errors
    ///
    /// As [`Config::load`]; for settings of the environment with the name of the variable.
    pub fn load_with_environment(path: Option<&Path>) -> Result<Self, ConfErrors> {
        Ok(Self::read(path)?.0)
    }

    /// The effective configuration as YAML: of the file, of the environment and of defaults, with the source of each value.
    /// Secrets are masked.
    ///
    /// # Errors
    ///
    /// As [`Config::load_with_environment`].
    pub fn print(path: Option<&Path>) -> Result<String, ConfErrors> {
        let (config, positions) = Self::read(path)?;
        Ok(config.effective(&positions).to_yaml(PRINTED, &positions))
    }

    /// Whether the environment of this process has settings.
    #[must_use]
    pub fn is_in_environment() -> bool {
        !Environment::of_process(VARIABLES).is_empty()
    }

    fn read(path: Option<&Path>) -> Result<(Self, Positions), ConfErrors> {
        let environment = Environment::of_process(VARIABLES);
        read::config(causeway_conf::load_with(path, &environment, RENAMED)?)
    }

    /// Reads `text` as the content of a file called `name`.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfErrors> {
        let environment = Environment::default();
        let document = causeway_conf::parse_with(name, text, &environment, RENAMED)?;
        Ok(read::config(document)?.0)
    }
}

/// One listener for clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListenerConfig {
    pub(crate) address: SocketAddr,
    /// The peers whose connections start with a header of the PROXY protocol.
    pub(crate) proxy_protocol: Vec<AddressRange>,
    pub(crate) tls: Option<TlsConfig>,
    /// The port of the https listener to redirect to; `None` serves requests.
    pub(crate) redirect_to_https: Option<u16>,
}

impl ListenerConfig {
    /// A listener without TLS and PROXY protocol.
    pub(crate) fn plain(address: SocketAddr) -> Self {
        Self {
            address,
            proxy_protocol: Vec::new(),
            tls: None,
            redirect_to_https: None,
        }
    }
}

/// TLS of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsConfig {
    pub(crate) certificates: CertificateSource,
    pub(crate) min_version: TlsVersion,
    /// Whether HTTP/2 is offered.
    pub(crate) http2: bool,
    /// Timeout of the whole handshake.
    pub(crate) handshake: Duration,
    /// Keys for session tickets, shared by edges; `None` is keys of the process.
    pub(crate) ticket_keys: Option<PathBuf>,
    /// The CA of client certificates, which are required then; `None` requests none.
    pub(crate) client_ca: Option<PathBuf>,
}

impl TlsConfig {
    const MIN_VERSION: TlsVersion = TlsVersion::V1_2;
    const HTTP2: bool = true;
    const HANDSHAKE: Duration = Duration::from_secs(10);
}

/// Where the certificates of a listener are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CertificateSource {
    /// Never empty. The first is for clients without a server name (SNI).
    Files(Vec<CertificateFiles>),
    /// All in a folder, in the order of their names.
    Folder(PathBuf),
}

/// The files of a certificate with its chain, and of its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CertificateFiles {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// The oldest version of TLS that is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum TlsVersion {
    #[serde(rename = "1.2")]
    V1_2,
    #[serde(rename = "1.3")]
    V1_3,
}

/// The default listener: loopback, so that nothing is exposed by accident.
const LISTENER: &str = "127.0.0.1:8080";

/// The listeners for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AdminConfig {
    /// For `/live`, `/ready`, `/metrics`, `/backends` and, with `token`, actions; `None` is none.
    pub(crate) address: Option<SocketAddr>,
    /// Who knows it may act through `address`; `None` allows nobody.
    pub(crate) token: Option<Secret>,
    /// A unix socket for the same; its peers are of the same user, and need no token.
    pub(crate) socket: Option<PathBuf>,
}

impl AdminConfig {
    /// The default address: loopback, as of the listener for clients.
    const ADDRESS: &str = "127.0.0.1:8081";
    /// As long as a key of the affinity cookie.
    const TOKEN_BYTES_MIN: usize = 16;
}

/// How another process takes the sockets of this one over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TakeoverConfig {
    /// A unix socket for processes of the same user; `None` is none.
    pub(crate) socket: Option<PathBuf>,
}

/// Off: a WebSocket over HTTP/2 costs several times as much memory as one with its own connection.
const WEBSOCKETS_OVER_HTTP2: bool = false;

/// Off: the client of a half-closed connection may still read, as with `printf ... | nc`.
const ABORT_ON_CLIENT_CLOSE: bool = false;

/// The index of a pool in [`Config::pools`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PoolId(pub(crate) usize);

/// The most backends in one pool. The ring has 160 points for each, and numbers them with 16 bits.
pub(crate) const BACKENDS_MAX: usize = 10_000;

/// A set of backends that serve the same application.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PoolConfig {
    pub(crate) name: String,
    pub(crate) pick: Pick,
    /// The affinity cookie of this pool. `None`: no cookie is set or read.
    pub(crate) cookie: Option<PoolCookie>,
    /// Never empty, except with `discover`.
    pub(crate) backends: Vec<BackendConfig>,
    /// The registry to discover nodes in.
    pub(crate) discover: Option<DiscoverConfig>,
    pub(crate) health: HealthConfig,
    /// TLS to its backends; `None` is plain TCP.
    pub(crate) tls: Option<BackendTls>,
    /// Paths that are closed to clients; one that ends with `/*` includes all below it.
    closed_paths: Vec<String>,
}

impl PoolConfig {
    /// Paths that common servers and Causeway nodes have for operators.
    const CLOSED_PATHS: [&str; 4] = ["/live", "/metrics", "/ready", "/slowest"];
    /// Paths that Causeway nodes have for operators, and other apps for clients.
    const CLOSED_PATH_OF_NODES: &str = "/api/*";
}

/// The settings of the affinity cookie that each pool has of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PoolCookie {
    /// Unique: with the same cookie for two pools, a page that uses both would be bound again at every other request.
    pub(crate) name: String,
    /// The paths that browsers send it to.
    pub(crate) path: Cow<'static, str>,
}

/// TLS to the backends of a pool.
///
/// Invariant: with `verify`, each backend has a name to verify: `server_name`, or that of its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BackendTls {
    /// Whether their certificates are verified.
    pub(crate) verify: bool,
    /// The CA of their certificates; `None` is the trust store of the system.
    pub(crate) ca: Option<PathBuf>,
    /// The name in their certificates; `None` is the host of the address of each backend.
    pub(crate) server_name: Option<ServerName<'static>>,
    /// The client certificate of the edge.
    pub(crate) certificate: Option<CertificateFiles>,
}

impl BackendTls {
    const VERIFY: bool = true;
}

/// The registry that a pool discovers its backends in. `Debug` masks the URLs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DiscoverConfig {
    /// Validated URLs of Redis servers; empty only with `sentinel` or `cluster`. Each server has the whole registry.
    pub(crate) servers: Vec<Secret>,
    /// The Sentinels that name the server.
    pub(crate) sentinel: Option<Arc<SentinelConfig>>,
    /// The Redis Cluster that has it.
    pub(crate) cluster: Option<Arc<ClusterConfig>>,
    /// The CA certificates for servers with TLS, in PEM; `None` is the trust store of the system.
    pub(crate) ca: Option<Arc<[u8]>>,
    /// What the nodes' keys begin with: their `broker.prefix`.
    pub(crate) prefix: String,
    pub(crate) every: Duration,
    /// The addresses that nodes in the registry may have.
    pub(crate) allow: Arc<AllowedAddresses>,
}

/// Sentinels that name the Redis with the registry, and the logins. `Debug` masks the passwords.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SentinelConfig {
    /// What they call the primary.
    pub(crate) master: String,
    /// Hosts and ports; never empty.
    pub(crate) servers: Vec<(String, u16)>,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Secret>,
    pub(crate) database: i64,
    pub(crate) sentinel_user: Option<String>,
    pub(crate) sentinel_password: Option<Secret>,
    /// Whether the Sentinels and the servers are reached over TLS.
    pub(crate) is_tls: bool,
}

/// The Redis Cluster with the registry, and the login. `Debug` masks the password.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ClusterConfig {
    /// Hosts and ports of some of its servers; never empty.
    pub(crate) servers: Vec<(String, u16)>,
    /// Where servers are reached, by what the cluster calls them.
    pub(crate) announce: Vec<((String, u16), (String, u16))>,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Secret>,
    pub(crate) is_tls: bool,
}

impl DiscoverConfig {
    const EVERY: Duration = Duration::from_secs(2);
    const PREFIX: &str = "causeway";

    /// Whether both use the same registry, with other settings, such as the login, ignored.
    pub(crate) fn is_registry_of(&self, other: &Self) -> bool {
        let servers = |config: &Self| -> Option<Vec<_>> {
            let urls = config.servers.iter();
            let server = |url: &Secret| {
                let info = redis::IntoConnectionInfo::into_connection_info(url.expose()).ok()?;
                Some((info.addr().to_string(), info.redis_settings().db()))
            };
            urls.map(server).collect()
        };
        let sentinel = |config: &Self| {
            let config = config.sentinel.as_ref()?;
            Some((
                config.master.clone(),
                config.servers.clone(),
                config.database,
            ))
        };
        let cluster = |config: &Self| Some(config.cluster.as_ref()?.servers.clone());
        servers(self) == servers(other)
            && sentinel(self) == sentinel(other)
            && cluster(self) == cluster(other)
            && self.prefix == other.prefix
    }
}

/// The addresses that discovered nodes may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AllowedAddresses {
    /// Those in one of these ranges.
    Ranges(Vec<AddressRange>),
    /// Those of other machines, and loopback addresses if `loopback`.
    Routable { loopback: bool },
}

impl AllowedAddresses {
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        match self {
            Self::Ranges(ranges) => ranges.iter().any(|range| range.contains(address)),
            Self::Routable { loopback } => match address {
                address if address.is_loopback() => *loopback,
                IpAddr::V4(address) => {
                    // 0.0.0.0/8 is this machine, and link-local addresses are metadata services of clouds.
                    let is_of_no_host = address.octets()[0] == 0
                        || address.is_broadcast()
                        || address.is_multicast();
                    !is_of_no_host && !address.is_link_local()
                }
                IpAddr::V6(address) => {
                    let is_of_no_host = address.is_unspecified() || address.is_multicast();
                    !is_of_no_host && !address.is_unicast_link_local()
                }
            },
        }
    }
}

/// How a backend is picked for a new client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Pick {
    /// The one with the fewest live tunnels and recent bindings, by weight.
    Least,
    /// A random one, by weight.
    Random,
    /// Round robin, by weight.
    RoundRobin,
}

impl Pick {
    const DEFAULT: Self = Self::Least;
}

/// One server of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BackendConfig {
    pub(crate) id: BackendId,
    pub(crate) address: Address,
    /// Its share of new clients, 1 to [`BackendConfig::WEIGHT_MAX`].
    pub(crate) weight: u32,
    /// Its zone; a backend without a zone is local to every edge.
    pub(crate) zone: Option<Box<str>>,
    /// The deploy that it belongs to: of equals, new clients go to the newest. `None` if the file does not say: a node may say it itself.
    pub(crate) generation: Option<u64>,
    /// The addresses that its name may have; `None` is any: the file is trusted.
    pub(crate) allowed: Option<Arc<AllowedAddresses>>,
    /// Whether it gets new clients only when no primary is up.
    pub(crate) backup: bool,
    /// Configured, but out of service: never chosen and never probed.
    pub(crate) maintenance: bool,
}

impl BackendConfig {
    /// The largest weight.
    pub(crate) const WEIGHT_MAX: u32 = 1000;
    /// The newest generation: numbers up to it are exact in JSON (RFC 8259, section 6).
    pub(crate) const GENERATION_MAX: u64 = (1 << 53) - 1;
    const WEIGHT: u32 = 1;
}

/// The response to a request that no route matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NoRoute {
    pub(crate) status: StatusCode,
    pub(crate) body: Cow<'static, str>,
}

impl NoRoute {
    const DEFAULT: Self = Self {
        status: StatusCode::NOT_FOUND,
        body: Cow::Borrowed("no route\n"),
    };
}

/// How clients are bound to their backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AffinityConfig {
    pub(crate) domain: Option<String>,
    pub(crate) same_site: SameSite,
    /// Whether browsers keep a separate cookie for each site that embeds this one.
    pub(crate) partitioned: bool,
    pub(crate) secure: Secure,
    pub(crate) http_only: bool,
    /// `None` is a session cookie.
    pub(crate) max_age: Option<Duration>,
    /// The first signs, all verify; without keys, cookies are not signed.
    pub(crate) keys: Vec<Secret>,
    /// Until when unsigned cookies are accepted besides signed ones.
    pub(crate) accept_unsigned_until: Option<SystemTime>,
    /// Whether the session id in a SockJS path is used like a cookie.
    pub(crate) sockjs_path: bool,
    /// The query parameter with the session id, if there is one.
    pub(crate) query_parameter: Option<String>,
    /// How many sessions are remembered in each pool.
    pub(crate) sockjs_sessions: usize,
    /// How long clients of a backend that refuses connections wait for it. Zero disables it.
    pub(crate) hold: Duration,
    /// The same, for a backend that does not respond.
    pub(crate) hold_timeout: Duration,
}

impl AffinityConfig {
    /// Clients time out at about this time.
    pub(crate) const HOLD_MAX: Duration = Duration::from_secs(60);
    const COOKIE: &str = "causeway";
    /// The name that means: no cookie.
    const NO_COOKIE: &str = "none";
    const PATH: &str = "/";
    const DEFAULT: Self = Self {
        domain: None,
        same_site: SameSite::Lax,
        partitioned: false,
        secure: Secure::Auto,
        http_only: true,
        max_age: None,
        keys: Vec::new(),
        accept_unsigned_until: None,
        sockjs_path: true,
        query_parameter: None,
        sockjs_sessions: 65_536,
        hold: Duration::from_secs(10),
        hold_timeout: Duration::from_secs(2),
    };
}

/// The `SameSite` attribute of the cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SameSite {
    Lax,
    Strict,
    None,
}

impl<'de> Deserialize<'de> for SameSite {
    /// In any case: as in the cookie, or in lower case.
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        match text.to_ascii_lowercase().as_str() {
            "lax" => Ok(Self::Lax),
            "strict" => Ok(Self::Strict),
            "none" => Ok(Self::None),
            _ => Err(D::Error::unknown_variant(&text, &["lax", "strict", "none"])),
        }
    }
}

/// When the cookie has the `Secure` attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Secure {
    /// On https.
    Auto,
    Always,
    Never,
}

/// Timeouts. `conf/proxy.yaml` has the reasons for the defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timeouts {
    /// From the first byte of a request head to its end, 408 after it.
    pub(crate) head: Duration,
    /// From the end of the TLS handshake, or the first byte in plain, to the end of the HTTP/2 connection preface and the
    /// first SETTINGS frame. Default: as `head`.
    pub(crate) http2_preface: Duration,
    /// How long an idle client connection stays open.
    pub(crate) keepalive: Duration,
    /// Between two reads of a request body.
    pub(crate) downstream_read: Duration,
    /// The lowest rate of a request body; `None` is limited by `downstream_read` alone.
    pub(crate) request_body_rate: Option<BodyRate>,
    /// How long one write to a client may block.
    pub(crate) downstream_write: Duration,
    /// One dial of a backend, its name lookup included.
    pub(crate) connect: Duration,
    /// Between two reads from a backend. Longer than 25 s, for which a SockJS long poll is silent.
    pub(crate) upstream_read: Duration,
    /// How long one write to a backend may block.
    pub(crate) upstream_write: Duration,
    /// How long an idle connection to a backend is kept for the next request.
    pub(crate) upstream_keepalive: Duration,
    /// From the upgrade request to the end of the response head of the backend.
    pub(crate) upgrade: Duration,
    /// How long a tunnel may be idle in both directions.
    pub(crate) tunnel_idle: Duration,
    /// How long a tunnel may last; `None` is unlimited.
    pub(crate) tunnel_lifetime: Option<Duration>,
    /// How long a connection is idle before the kernel sends keepalive probes.
    pub(crate) tcp_keepalive: Duration,
    /// How long sent bytes may stay unacknowledged before the kernel closes a connection.
    pub(crate) tcp_user_timeout: Duration,
}

impl Timeouts {
    const DEFAULT: Self = Self {
        head: Duration::from_secs(10),
        http2_preface: Duration::from_secs(10),
        keepalive: Duration::from_secs(75),
        downstream_read: Duration::from_secs(60),
        request_body_rate: Some(BodyRate::DEFAULT),
        downstream_write: Duration::from_secs(60),
        connect: Duration::from_secs(2),
        upstream_read: Duration::from_secs(60),
        upstream_write: Duration::from_secs(60),
        upstream_keepalive: Duration::from_secs(30),
        upgrade: Duration::from_secs(30),
        tunnel_idle: Duration::from_secs(3600),
        tunnel_lifetime: None,
        tcp_keepalive: Duration::from_secs(60),
        tcp_user_timeout: Duration::from_secs(30),
    };
}

/// The lowest rate of a request body, averaged over a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BodyRate {
    /// Bytes a second, 1 to [`BodyRate::MAX`].
    pub(crate) per_second: u64,
    /// The time over which they are averaged, never zero: no body is too slow before that.
    pub(crate) window: Duration,
}

impl BodyRate {
    const MAX: u64 = 1 << 20;
    const DEFAULT: Self = Self {
        per_second: 500,
        window: Duration::from_secs(30),
    };
}

/// How the edge shuts down, and how single backends are drained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DrainConfig {
    /// How long idle client connections are kept for one more request.
    pub(crate) late: Duration,
    /// Over how long the tunnels are closed.
    pub(crate) spread: Duration,
    /// When the process ends even with open connections.
    pub(crate) timeout: Duration,
    /// Over how long the tunnels of one backend are closed.
    pub(crate) backend_spread: Duration,
    /// Which drains of a backend, besides an operator's, close its tunnels.
    pub(crate) close_tunnels: Vec<DrainCause>,
}

impl DrainConfig {
    const DEFAULT: Self = Self {
        late: Duration::from_secs(1),
        spread: Duration::from_secs(5),
        timeout: Duration::from_secs(30),
        backend_spread: Duration::from_secs(5),
        close_tunnels: Vec::new(),
    };
}

/// Why a backend drains, if no operator has asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DrainCause {
    /// It has announced that it is stopping.
    Announced,
    /// A reload has removed it, or changed its address.
    Reload,
    /// It is no longer in its registry.
    Discovery,
}

impl DrainCause {
    /// The name in logs and metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Announced => "announced",
            Self::Reload => "reload",
            Self::Discovery => "discovery",
        }
    }
}

/// How a rebalance moves clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RebalanceConfig {
    /// Over how long the tunnels are closed.
    pub(crate) spread: Duration,
    /// No client is moved twice within this time.
    pub(crate) quiet: Duration,
    /// By how many percent a backend may exceed its share before its pool is rebalanced by itself; `None` for never.
    pub(crate) threshold: Option<u32>,
    /// For how long the same backends must have had the new clients of the pool by then.
    pub(crate) after: Duration,
}

impl RebalanceConfig {
    const DEFAULT: Self = Self {
        spread: Duration::from_secs(5),
        quiet: Duration::from_secs(600),
        threshold: None,
        after: Duration::from_secs(30),
    };
}

/// The program log and the access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Log {
    pub(crate) level: LogLevel,
    pub(crate) format: LogFormat,
    pub(crate) access: AccessLog,
}

impl Config {
    /// The number of threads that serve connections.
    pub(crate) fn worker_threads(&self) -> usize {
        let processors = || available_parallelism().map_or(1, NonZero::get);
        self.threads.unwrap_or_else(processors)
    }
}

impl Log {
    const DEFAULT: Self = Self {
        level: LogLevel::Info,
        format: LogFormat::Json,
        access: AccessLog::Stdout,
    };
}

/// The least severe line that is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// The format of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    Json,
    Text,
}

/// Where access-log lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AccessLog {
    Stdout,
    Stderr,
    Off,
    /// Appended to.
    File(PathBuf),
}

#[cfg(test)]
mod tests;
