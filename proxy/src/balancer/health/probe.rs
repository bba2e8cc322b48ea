//! One probe of one backend: its addresses, its timeout, and the classification of failures.
//!
//! What is sent is in [`http`] and [`websocket`]. The connection is made here, in the same way as for requests: the error of the
//! system shows whether the backend is at fault, or this machine has run out of something.

mod http;
mod websocket;

use std::io;
use std::os::unix::net::SocketAddr as UnixAddr;
use std::sync::Arc;
use std::time::Duration;

use pingora::protocols::l4::socket::SocketAddr as PingoraAddr;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use self::http::HttpCheck;
use self::websocket::WebSocketCheck;
use crate::balancer::pool::{ProbeResult, State};
use crate::config::backend::Address;
use crate::config::{HealthConfig, ProbeKind};
use crate::net::exhaustion::Exhaustion;
use crate::net::resolver::Names;
use crate::tls::{ConnectError, Connector};
use crate::tunnel::Socket;

/// The header of a draining backend, with value `1` and status 503.
const DRAIN: &str = "causeway-drain";

/// The User-Agent of probes.
const USER_AGENT: &str = concat!("causeway-proxy/", env!("CARGO_PKG_VERSION"));

/// Sends the probes of one pool.
pub(super) struct Prober {
    check: Check,
    tls: Option<Arc<Connector>>,
    names: Arc<Names>,
    port: Option<u16>,
    /// A connection to the backend's own port, if `port` is another one.
    own_port_check: Check,
    timeout: Duration,
}

/// What a probe has found.
#[derive(Debug, PartialEq)]
pub(super) struct Probed {
    pub(super) result: ProbeResult,
    /// The deploy that the backend says it belongs to.
    pub(super) generation: Option<u64>,
}

impl From<ProbeResult> for Probed {
    fn from(result: ProbeResult) -> Self {
        Self {
            result,
            generation: None,
        }
    }
}

enum Check {
    Http(HttpCheck),
    WebSocket(WebSocketCheck),
}

/// A probe could not be sent: this process, or its machine, has run out of descriptors, ports or memory.
#[derive(Debug, thiserror::Error)]
#[error("cannot probe: {0}")]
pub(super) struct CannotProbe(#[source] io::Error);

impl Prober {
    /// `tls` connects to the backends, if they use TLS.
    pub(super) fn new(
        config: &HealthConfig,
        tls: Option<Arc<Connector>>,
        names: Arc<Names>,
    ) -> Self {
        Self {
            check: match config.kind {
                ProbeKind::Node | ProbeKind::Http => Check::Http(HttpCheck::http(config)),
                ProbeKind::Tcp => Check::Http(HttpCheck::tcp(config)),
                ProbeKind::Websocket => Check::WebSocket(WebSocketCheck::new(config)),
            },
            tls,
            names,
            port: config.port,
            own_port_check: Check::Http(HttpCheck::tcp(config)),
            timeout: config.timeout,
        }
    }

    /// Probes the backend at `address`, which is in `state`, once, for at most `health.timeout`.
    ///
    /// With `health.port`, a backend that is not up has to accept a connection on its own port too: otherwise each probe would mark
    /// it up, and each failed dial down again. While it is up, the dials of requests check that port.
    ///
    /// # Errors
    ///
    /// [`CannotProbe`] if the probe could not be sent: nothing is known about the backend.
    ///
    /// # Cancel safety
    ///
    /// Dropping it closes the connection.
    pub(super) async fn probe(
        &self,
        address: &Address,
        state: State,
    ) -> Result<Probed, CannotProbe> {
        let probing = async {
            let mut found = self.probe_any(address, &self.check, self.port).await?;
            if found.result == ProbeResult::Good && self.port.is_some() && state != State::Up {
                let own_port = self.probe_any(address, &self.own_port_check, None).await?;
                found.result = own_port.result.with_prefix(
                    "the probe passes on health.port, but not on the own port of the backend: ",
                );
            }
            Ok(found)
        };
        match timeout(self.timeout, probing).await {
            Ok(result) => result,
            Err(_) => {
                let why = format!("no response to the probe within {:?}", self.timeout);
                Ok(ProbeResult::NoResponse(why).into())
            }
        }
    }

    /// Probes the addresses of a host name in turn, until one responds.
    async fn probe_any(
        &self,
        address: &Address,
        check: &Check,
        port: Option<u16>,
    ) -> Result<Probed, CannotProbe> {
        let addresses = match self.resolve(address, port).await {
            Ok(addresses) => addresses,
            Err(error) if is_exhaustion(&error) => return Err(CannotProbe(error)),
            Err(error) => {
                let why = format!("the name does not resolve: {error}");
                return Ok(ProbeResult::Unreachable(why).into());
            }
        };
        let (mut found, mut exhausted) = (None, None);
        for at in addresses {
            let checked = Self::check_at(check, self.tls.as_deref(), address, &at).await;
            match checked {
                Ok(probed) if probed.result.is_response() => return Ok(probed),
                Ok(probed) => found = Some(probed),
                // Another address may be of a family that works.
                Err(error) => exhausted = Some(error),
            }
        }
        match (found, exhausted) {
            (None, Some(error)) => Err(error),
            (found, _) => Ok(found.unwrap_or_else(|| {
                ProbeResult::Unreachable("the name has no address".to_owned()).into()
            })),
        }
    }

    /// Makes `check` on a connection to `at`, one of the addresses of the backend at `address`.
    async fn check_at(
        check: &Check,
        tls: Option<&Connector>,
        address: &Address,
        at: &PingoraAddr,
    ) -> Result<Probed, CannotProbe> {
        let mut socket = match connect(at).await {
            Ok(socket) => socket,
            Err(error) => return not_connected(error).map(Into::into),
        };
        if let Some(tls) = tls {
            socket = match tls.connect(address, socket).await {
                Ok(stream) => Socket::Wrapped(Box::new(stream)),
                Err(error @ ConnectError::Wrong(_)) => {
                    return Ok(ProbeResult::UnexpectedResponse(error.to_string()).into());
                }
                Err(error @ ConnectError::Broken(_)) => {
                    return Ok(ProbeResult::NoResponse(error.to_string()).into());
                }
            };
        }
        match check {
            Check::Http(check) => check.run(Box::new(socket)).await,
            Check::WebSocket(check) => Ok(check.run(socket).await.into()),
        }
    }

    async fn resolve(&self, address: &Address, port: Option<u16>) -> io::Result<Vec<PingoraAddr>> {
        let mut addresses: Vec<PingoraAddr> = match address {
            Address::Ip(address) => vec![PingoraAddr::Inet(*address)],
            Address::Name { host, port } => {
                let addresses = self.names.resolve(host, *port).await?;
                addresses.iter().copied().map(PingoraAddr::Inet).collect()
            }
            Address::Unix(path) => vec![PingoraAddr::Unix(UnixAddr::from_pathname(path)?)],
        };
        if let Some(port) = port {
            addresses.iter_mut().for_each(|addr| addr.set_port(port));
        }
        Ok(addresses)
    }
}

async fn connect(address: &PingoraAddr) -> io::Result<Socket> {
    match address {
        PingoraAddr::Inet(address) => TcpStream::connect(address).await.map(Socket::Tcp),
        PingoraAddr::Unix(address) => {
            let path = address.as_pathname().unwrap_or("".as_ref());
            UnixStream::connect(path).await.map(Socket::Unix)
        }
    }
}

fn not_connected(error: io::Error) -> Result<ProbeResult, CannotProbe> {
    if is_exhaustion(&error) {
        return Err(CannotProbe(error));
    }
    Ok(match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            ProbeResult::Unreachable("connection refused".to_owned())
        }
        io::ErrorKind::TimedOut => ProbeResult::NoResponse("connecting timed out".to_owned()),
        _ => ProbeResult::Unreachable("the backend is unreachable".to_owned()),
    })
}

/// Whether `error` is that this process or machine has run out of descriptors, ports or memory.
fn is_exhaustion(error: &io::Error) -> bool {
    Exhaustion::of(error).is_some()
}

/// The result for an HTTP response with another status than the expected ones.
fn unexpected(status: u16, drains: bool, hint: &str) -> ProbeResult {
    if drains && status == 503 {
        return ProbeResult::Draining;
    }
    ProbeResult::UnexpectedResponse(format!("the probe got status {status}{hint}"))
}
