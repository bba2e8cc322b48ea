//! The settings of the edge: checked, complete, and with every default in this file.
//!
//! A file becomes a [`Config`] in two steps: [`raw`] says what serde accepts, [`read`] checks it and
//! fills in what was left out. Whoever holds a `Config` checks nothing again. All mistakes of a file
//! are reported together, each with its line and column.

pub(crate) mod backend;
mod check;
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

use causeway_conf::{AddressRange, ConfErrors, Secret};
use http::{HeaderValue, Method, StatusCode};
use rustls::pki_types::ServerName;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::config::backend::{Address, BackendId};
use crate::config::routes::HeaderNameText;

pub(crate) use crate::config::routes::{Route, RouteRules, Routes, Stripped, without_query};

/// All settings of the edge.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where clients connect. Never empty.
    pub(crate) listeners: Vec<ListenerConfig>,
    /// Where `/live`, `/ready`, `/metrics` and `/backends` are answered; `None` switches that off.
    pub(crate) admin: Option<SocketAddr>,
    /// Whether WebSockets may come over HTTP/2 (RFC 8441).
    pub(crate) websockets_over_http2: bool,
    /// Whether a client that shuts down its sending side after the request counts as gone.
    pub(crate) abort_on_client_close: bool,
    /// Where this edge is: backends there come before others.
    pub(crate) zone: Option<Box<str>>,
    /// Never empty. A [`PoolId`] is an index into it.
    pub(crate) pools: Vec<PoolConfig>,
    pub(crate) routes: Routes,
    pub(crate) no_route: NoRoute,
    pub(crate) affinity: AffinityConfig,
    pub(crate) timeouts: Timeouts,
    pub(crate) limits: Limits,
    pub(crate) drain: DrainConfig,
    /// Whose `X-Forwarded-*`, `Forwarded` and `X-Request-Id` headers are believed.
    pub(crate) trusted_proxies: Vec<AddressRange>,
    pub(crate) log: Log,
    /// Worker threads; `None` takes one for each processor.
    pub(crate) threads: Option<usize>,
}

impl Config {
    /// Reads the file at `path`.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the file, each with its place, key and what would be right.
    pub fn load(path: &Path) -> Result<Self, ConfErrors> {
        read::config(causeway_conf::load(path)?)
    }

    /// Reads `text` as if it came from a file called `name`.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfErrors> {
        read::config(causeway_conf::parse(name, text)?)
    }
}

/// A place where clients connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListenerConfig {
    pub(crate) address: SocketAddr,
    /// The peers that begin with a header of the PROXY protocol.
    pub(crate) proxy_protocol: Vec<AddressRange>,
    pub(crate) tls: Option<TlsConfig>,
    /// The port of the https listener that everything is sent to; `None` serves here.
    pub(crate) redirect_to_https: Option<u16>,
}

impl ListenerConfig {
    /// Requests from the first byte on, from anybody.
    pub(crate) fn plain(address: SocketAddr) -> Self {
        Self {
            address,
            proxy_protocol: Vec::new(),
            tls: None,
            redirect_to_https: None,
        }
    }
}

/// How a listener speaks TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsConfig {
    pub(crate) certificates: CertificateSource,
    pub(crate) min_version: TlsVersion,
    /// Whether HTTP/2 is offered.
    pub(crate) http2: bool,
    /// For the whole handshake.
    pub(crate) handshake: Duration,
    /// Keys that sessions are resumed with, shared by edges; `None` takes keys of the process.
    pub(crate) ticket_keys: Option<PathBuf>,
    /// Who signs the certificates that clients have to show; `None` asks for none.
    pub(crate) client_ca: Option<PathBuf>,
}

impl TlsConfig {
    const MIN_VERSION: TlsVersion = TlsVersion::V1_2;
    const HTTP2: bool = true;
    const HANDSHAKE: Duration = Duration::from_secs(10);
}

/// Where certificates are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CertificateSource {
    /// Never empty. The first serves clients that name nobody.
    Files(Vec<CertificateFiles>),
    /// All of a folder, in the order of their names.
    Folder(PathBuf),
}

/// A certificate with its chain, and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CertificateFiles {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// The oldest version of TLS that is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum TlsVersion {
    #[serde(rename = "1.2")]
    V1_2,
    #[serde(rename = "1.3")]
    V1_3,
}

/// Where clients connect when the file says nothing: loopback, so that nothing is exposed by accident.
const LISTENER: &str = "127.0.0.1:8080";

/// Where the admin answers are when the file says nothing.
const ADMIN: &str = "127.0.0.1:8081";

/// Off: a stream of HTTP/2 costs several times what a connection of its own does.
const WEBSOCKETS_OVER_HTTP2: bool = false;

/// Off: a half-closed connection still has a reader, as with `printf ... | nc`.
const ABORT_ON_CLIENT_CLOSE: bool = false;

/// Which pool: its index in [`Config::pools`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PoolId(pub(crate) usize);

/// Backends in one pool. The ring keeps 160 points for each, and numbers them in 16 bits.
pub(crate) const BACKENDS_MAX: usize = 10_000;

/// A set of backends that serve the same thing.
#[derive(Debug, Clone)]
pub(crate) struct PoolConfig {
    pub(crate) name: String,
    pub(crate) pick: Pick,
    /// The affinity cookie of this pool. `None`: no cookie is set, and none is looked at.
    pub(crate) cookie: Option<PoolCookie>,
    /// Never empty, unless others are looked for.
    pub(crate) backends: Vec<BackendConfig>,
    /// Where nodes say that they are there.
    pub(crate) discover: Option<DiscoverConfig>,
    pub(crate) health: HealthConfig,
    /// How its backends are spoken to; `None` is in plain.
    pub(crate) tls: Option<BackendTls>,
    /// What of them is not for clients: paths, and with `/*` behind them all below.
    closed_paths: Vec<String>,
}

impl PoolConfig {
    /// What common servers and Causeway's nodes keep for operators.
    const CLOSED_PATHS: [&str; 4] = ["/live", "/metrics", "/ready", "/slowest"];
    /// What Causeway's nodes alone keep for operators: with other apps this is where clients go.
    const CLOSED_PATH_OF_NODES: &str = "/api/*";
}

/// What the affinity cookie of one pool has of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PoolCookie {
    /// No two pools share one, or a page that uses both would be bound anew at every other request.
    pub(crate) name: String,
    /// Where browsers send it.
    pub(crate) path: Cow<'static, str>,
}

/// How TLS is spoken to the backends of a pool.
///
/// Invariant: with `verify`, each backend has a name to verify: `server_name`, or that of its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BackendTls {
    /// Whether they have to prove who they are.
    pub(crate) verify: bool,
    /// Who signs their certificates; `None` takes whom this machine trusts.
    pub(crate) ca: Option<PathBuf>,
    /// Whom their certificates name; `None` is the host of each one's address.
    pub(crate) server_name: Option<ServerName<'static>>,
    /// What the edge shows them.
    pub(crate) certificate: Option<CertificateFiles>,
}

impl BackendTls {
    const VERIFY: bool = true;
}

/// The registry of nodes that a pool takes backends from. `Debug` masks the URLs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DiscoverConfig {
    /// Which Redis, as URLs that were checked; never none. Each of them has the whole registry.
    pub(crate) servers: Vec<Secret>,
    /// Who may sign the certificates of those that speak TLS, in PEM; `None`: whom the system trusts.
    pub(crate) ca: Option<Arc<[u8]>>,
    pub(crate) every: Duration,
    /// Where nodes of the registry may be.
    pub(crate) allow: Arc<AllowedAddresses>,
}

impl DiscoverConfig {
    const EVERY: Duration = Duration::from_secs(2);

    /// Whether it is the registry that `other` means, whatever else differs: the login, say.
    pub(crate) fn is_registry_of(&self, other: &Self) -> bool {
        let servers = |config: &Self| -> Option<Vec<_>> {
            let urls = config.servers.iter();
            let server = |url: &Secret| {
                let info = redis::IntoConnectionInfo::into_connection_info(url.expose()).ok()?;
                Some((info.addr().to_string(), info.redis_settings().db()))
            };
            urls.map(server).collect()
        };
        servers(self) == servers(other)
    }
}

/// The addresses that are believed of nodes that a registry names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AllowedAddresses {
    /// Those in one of these ranges.
    Ranges(Vec<AddressRange>),
    /// Those that another machine can have, and with `loopback` those of this machine.
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
                    // A network's own addresses mean this machine, link-local ones what a cloud tells a machine of itself.
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

/// How a new client gets its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Pick {
    /// The one with the fewest live tunnels and recent bindings, by weight.
    Least,
    /// Any of them, by weight.
    Random,
    /// In turn, by weight.
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
    /// Where it is; what has no zone is near to every edge.
    pub(crate) zone: Option<Box<str>>,
    /// Which addresses its name may have; `None` is any: the file is believed.
    pub(crate) allowed: Option<Arc<AllowedAddresses>>,
    /// Whether it gets new clients only when no other backend is up.
    pub(crate) backup: bool,
    /// Configured, but out of service: never chosen and never probed.
    pub(crate) maintenance: bool,
}

impl BackendConfig {
    /// The largest weight.
    pub(crate) const WEIGHT_MAX: u32 = 1000;
    const WEIGHT: u32 = 1;
}

/// What answers a request that no route matches.
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

/// How clients are kept on their backend.
#[derive(Debug, Clone)]
pub(crate) struct AffinityConfig {
    pub(crate) domain: Option<String>,
    pub(crate) same_site: SameSite,
    /// Whether browsers keep it apart for each site that embeds this one.
    pub(crate) partitioned: bool,
    pub(crate) secure: Secure,
    pub(crate) http_only: bool,
    /// `None` is a cookie that ends with the browser's session.
    pub(crate) max_age: Option<Duration>,
    /// The first signs, all verify; none at all leaves cookies unsigned.
    pub(crate) keys: Vec<Secret>,
    /// Until when unsigned cookies are taken beside signed ones.
    pub(crate) accept_unsigned_until: Option<SystemTime>,
    /// Whether the session id in a SockJS path stands in for a cookie.
    pub(crate) sockjs_path: bool,
    /// The parameter of the query that names a session, if one does.
    pub(crate) query_parameter: Option<String>,
    /// How many sessions are remembered in each pool.
    pub(crate) sockjs_sessions: usize,
    /// How long clients of a backend that refuses connections wait for it. Zero is not at all.
    pub(crate) hold: Duration,
    /// The same, for a backend that does not answer at all.
    pub(crate) hold_timeout: Duration,
}

impl AffinityConfig {
    /// Clients give up on an answer about then.
    pub(crate) const HOLD_MAX: Duration = Duration::from_secs(60);
    const COOKIE: &str = "causeway";
    /// In place of a name: no cookie.
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
    /// Spelled as in the cookie or in lower case.
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

/// How backends of a pool are probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HealthConfig {
    pub(crate) kind: ProbeKind,
    /// How an HTTP probe asks.
    pub(crate) method: Method,
    /// What a probe over HTTP asks for, a WebSocket included.
    pub(crate) path: Cow<'static, str>,
    /// The `Host` header of such a probe.
    pub(crate) host: Cow<'static, str>,
    /// Other headers of such a probe.
    pub(crate) headers: Vec<(HeaderNameText, HeaderValue)>,
    /// The statuses that are good answers to an HTTP probe.
    pub(crate) expect: Statuses,
    /// The port to probe, if not the one of the backend's address.
    pub(crate) port: Option<u16>,
    /// Between two probes of a backend that is up (or draining).
    pub(crate) interval: Duration,
    /// Between two probes of a suspect or unknown backend.
    pub(crate) fast_interval: Duration,
    /// Between two probes of a backend that is down.
    pub(crate) down_interval: Duration,
    /// How long one probe may take, from the dial to the end of the answer.
    pub(crate) timeout: Duration,
    /// Good probes in a row that bring a backend that is down up again.
    pub(crate) rise: u32,
    /// Failed probes in a row that take a backend down.
    pub(crate) fall: u32,
    /// Over how long a backend that came back gets its full share of new clients again.
    pub(crate) slow_start: Duration,
    /// The percentage of backends that have to be up: below it health is ignored.
    pub(crate) ignore_below: u32,
}

impl HealthConfig {
    const DEFAULT: Self = Self {
        kind: ProbeKind::Node,
        method: ProbeKind::Node.method(),
        path: Cow::Borrowed(ProbeKind::Node.path()),
        host: Cow::Borrowed("localhost"),
        headers: Vec::new(),
        expect: ProbeKind::Node.expect(),
        port: None,
        interval: Duration::from_secs(2),
        fast_interval: Duration::from_millis(500),
        down_interval: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        rise: 2,
        fall: 3,
        slow_start: Duration::from_secs(10),
        ignore_below: 0,
    };
}

/// What a probe is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ProbeKind {
    /// A request as Causeway nodes answer it.
    Node,
    /// A request as most apps answer it.
    Http,
    /// A connection that is accepted is enough.
    Tcp,
    /// A WebSocket that opens.
    Websocket,
}

impl ProbeKind {
    const fn method(self) -> Method {
        match self {
            Self::Http => Method::HEAD,
            Self::Node | Self::Tcp | Self::Websocket => Method::GET,
        }
    }

    const fn path(self) -> &'static str {
        match self {
            Self::Node => "/ready",
            Self::Http | Self::Tcp | Self::Websocket => "/",
        }
    }

    const fn expect(self) -> Statuses {
        match self {
            Self::Node => Statuses(Cow::Borrowed(&[(200, 200)])),
            Self::Http => Statuses(Cow::Borrowed(&[(200, 399)])),
            Self::Websocket => Statuses(Cow::Borrowed(&[(101, 101)])),
            Self::Tcp => Statuses(Cow::Borrowed(&[])),
        }
    }
}

/// Ranges of statuses, first and last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Statuses(Cow<'static, [(u16, u16)]>);

impl Statuses {
    pub(crate) fn contains(&self, status: StatusCode) -> bool {
        let holds = |(first, last): &(u16, u16)| (*first..=*last).contains(&status.as_u16());
        self.0.iter().any(holds)
    }
}

/// How long things may take. The reasons are in `conf/proxy.yaml`.
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
    /// How slowly a request body may arrive at the least; `None` is as slowly as `downstream_read` allows.
    pub(crate) request_body_rate: Option<BodyRate>,
    /// How long one write to a client may be stuck.
    pub(crate) downstream_write: Duration,
    /// One dial of a backend, its name lookup included.
    pub(crate) connect: Duration,
    /// Between two reads from a backend. Longer than 25 s: so long a parked poll says nothing.
    pub(crate) upstream_read: Duration,
    /// How long one write to a backend may be stuck.
    pub(crate) upstream_write: Duration,
    /// How long an idle connection to a backend is kept for the next request.
    pub(crate) upstream_keepalive: Duration,
    /// From the request for an upgrade to the end of the backend's answer head.
    pub(crate) upgrade: Duration,
    /// How long a tunnel may carry nothing, either way.
    pub(crate) tunnel_idle: Duration,
    /// How long a tunnel may last; `None` is for ever.
    pub(crate) tunnel_lifetime: Option<Duration>,
    /// How long a connection is silent before the kernel asks whether its peer still lives.
    pub(crate) tcp_keepalive: Duration,
    /// How long sent bytes may stay unacknowledged before the kernel gives a connection up.
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

/// The least rate of a request body, averaged over a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BodyRate {
    /// Bytes a second, 1 to [`BodyRate::MAX`].
    pub(crate) per_second: u64,
    /// The time over which they are averaged, never zero: no body is too slow before it has lasted so long.
    pub(crate) window: Duration,
}

impl BodyRate {
    const MAX: u64 = 1 << 20;
    const DEFAULT: Self = Self {
        per_second: 500,
        window: Duration::from_secs(30),
    };
}

/// How much of everything there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Client connections; `None` takes what the open-file limit allows.
    pub(crate) connections: Option<usize>,
    /// Client connections for each address.
    pub(crate) connections_per_address: Option<u32>,
    /// New client connections for each address.
    pub(crate) connection_rate_per_address: Option<Rate>,
    /// The largest request head in bytes, 431 above it.
    pub(crate) head_size: usize,
    /// The largest response head in bytes, 502 above it.
    pub(crate) response_head_size: usize,
    /// The most header lines in the head of a request (431 above it) or of a response (502), at most [`Limits::HEADERS_MAX`].
    pub(crate) headers: usize,
    /// The most streams that one HTTP/2 connection of a client may have open.
    pub(crate) http2_streams: u32,
    /// How many bytes one HTTP/2 stream holds for a client that does not read.
    pub(crate) http2_send_buffer: usize,
    /// How many more backends one request may be sent to after the first.
    pub(crate) retries: usize,
    /// Requests that are sent a second time, for each 100 requests of a pool.
    pub(crate) retry_budget: u32,
    /// How many requests wait at a time for a backend that may come back.
    pub(crate) waiting: usize,
    /// TLS handshakes at a time for each client address.
    pub(crate) handshakes_per_address: u32,
    /// New TLS handshakes for each client address.
    pub(crate) handshake_rate_per_address: Option<Rate>,
    /// The largest request body in bytes, 413 above it.
    pub(crate) body_size: Option<u64>,
    /// Requests in flight; `None` takes what the open-file limit allows.
    pub(crate) requests: Option<usize>,
    /// Requests in flight for each client.
    pub(crate) requests_per_address: Option<u32>,
    pub(crate) tunnels: Option<usize>,
    /// Tunnels for each client.
    pub(crate) tunnels_per_address: Option<u32>,
    /// Tunnels to each backend.
    pub(crate) tunnels_per_backend: Option<u32>,
    /// Requests in flight at each backend.
    pub(crate) requests_per_backend: Option<u32>,
    /// Requests that wait for a backend which has as many as that.
    pub(crate) queue_per_backend: u32,
    /// How long each waits at most.
    pub(crate) queue_time: Duration,
}

/// So many a second, and so many at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    /// 1 to [`Rate::MAX`].
    pub(crate) per_second: u32,
    /// 1 to [`Rate::MAX`].
    pub(crate) burst: u32,
}

impl Rate {
    const MAX: u32 = 1_000_000;
}

impl Limits {
    /// The most that `limits.retries` may be.
    pub(crate) const RETRIES_MAX: usize = 10;
    /// The most that `limits.headers` may be.
    pub(crate) const HEADERS_MAX: usize = 1024;
    const DEFAULT: Self = Self {
        connections: None,
        connections_per_address: None,
        connection_rate_per_address: None,
        head_size: 16 << 10,
        response_head_size: 64 << 10,
        headers: 256,
        http2_streams: 100,
        http2_send_buffer: 64 << 10,
        retries: 2,
        retry_budget: 20,
        waiting: 4096,
        handshakes_per_address: 256,
        handshake_rate_per_address: None,
        body_size: None,
        requests: None,
        requests_per_address: None,
        tunnels: None,
        tunnels_per_address: None,
        tunnels_per_backend: None,
        requests_per_backend: None,
        queue_per_backend: 100,
        queue_time: Duration::from_secs(5),
    };
}

/// How the edge ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DrainConfig {
    /// How long idle client connections may still send a request.
    pub(crate) late: Duration,
    /// Over how long the tunnels are closed.
    pub(crate) spread: Duration,
    /// When the process ends whatever is still open.
    pub(crate) timeout: Duration,
}

impl DrainConfig {
    const DEFAULT: Self = Self {
        late: Duration::from_secs(1),
        spread: Duration::from_secs(5),
        timeout: Duration::from_secs(30),
    };
}

/// What is logged, and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Log {
    pub(crate) level: LogLevel,
    pub(crate) format: LogFormat,
    pub(crate) access: AccessLog,
}

impl Config {
    /// The threads that serve connections.
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

/// How a log line looks.
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
