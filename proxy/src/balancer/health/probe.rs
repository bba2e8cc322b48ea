//! One probe of one backend: which addresses, for how long, and what its failure means.
//!
//! What is sent is in [`http`] and [`websocket`]. The connection is made here, as for clients: what the system says when it cannot be
//! made tells what is the backend's fault and what is ours.

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
use crate::net::exhaustion::Shortage;
use crate::net::resolver::Names;
use crate::tls::{ConnectError, Connector};
use crate::tunnel::Socket;

/// The header with which a backend says that it drains, with value `1` and status 503.
const DRAIN: &str = "causeway-drain";

/// Who probes, as backends see it in their logs.
const USER_AGENT: &str = concat!("causeway-proxy/", env!("CARGO_PKG_VERSION"));

/// Sends the probes of one pool.
pub(super) struct Prober {
    check: Check,
    tls: Option<Arc<Connector>>,
    names: Arc<Names>,
    port: Option<u16>,
    /// Where `port` is another one: a connection where clients have theirs.
    entrance: Check,
    timeout: Duration,
}

enum Check {
    Http(HttpCheck),
    WebSocket(WebSocketCheck),
}

/// Why a probe says nothing about its backend: this process, or its machine, ran out of something.
#[derive(Debug, thiserror::Error)]
#[error("cannot probe: {0}")]
pub(super) struct CannotProbe(#[source] io::Error);

impl Prober {
    /// `tls` is how the backends are spoken to, if not in plain.
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
            entrance: Check::Http(HttpCheck::tcp(config)),
            timeout: config.timeout,
        }
    }

    /// Probes the backend at `address` once, which is in `state`, at most for `health.timeout`.
    ///
    /// A probe of another port than clients use says nothing about theirs. While dials of that succeed it need not, but a
    /// backend that is not up has to take a connection there too: or each probe would call up what each dial finds dead.
    ///
    /// # Errors
    ///
    /// [`CannotProbe`] if the fault is ours: nothing is known about the backend.
    ///
    /// # Cancel safety
    ///
    /// Dropping it closes the connection.
    pub(super) async fn probe(
        &self,
        address: &Address,
        state: State,
    ) -> Result<ProbeResult, CannotProbe> {
        let probing = async {
            match self.any(address, &self.check, self.port).await? {
                ProbeResult::Good if self.port.is_some() && state != State::Up => {
                    let found = self.any(address, &self.entrance, None).await?;
                    Ok(found.but("its probe passes on another port, but on its own "))
                }
                found => Ok(found),
            }
        };
        match timeout(self.timeout, probing).await {
            Ok(result) => result,
            Err(_) => Ok(ProbeResult::NoResponse(format!(
                "its probe was not answered within {:?}",
                self.timeout
            ))),
        }
    }

    /// Probes the addresses of a host name in turn, until one answers.
    async fn any(
        &self,
        address: &Address,
        check: &Check,
        port: Option<u16>,
    ) -> Result<ProbeResult, CannotProbe> {
        let addresses = match self.resolve(address, port).await {
            Ok(addresses) => addresses,
            Err(error) if is_ours(&error) => return Err(CannotProbe(error)),
            Err(error) => {
                let why = format!("its name does not resolve: {error}");
                return Ok(ProbeResult::Unreachable(why));
            }
        };
        let (mut found, mut ours) = (None, None);
        for at in addresses {
            let checked = Self::check_over(check, self.tls.as_deref(), address, &at).await;
            match checked {
                Ok(result) if result.is_response() => return Ok(result),
                Ok(result) => found = Some(result),
                // Another address may be of a family that this machine has.
                Err(error) => ours = Some(error),
            }
        }
        match (found, ours) {
            (None, Some(error)) => Err(error),
            (found, _) => Ok(found
                .unwrap_or_else(|| ProbeResult::Unreachable("its name has no address".to_owned()))),
        }
    }

    /// Does `check` on a connection to `at`, which is one of the addresses of the backend at `address`.
    async fn check_over(
        check: &Check,
        tls: Option<&Connector>,
        address: &Address,
        at: &PingoraAddr,
    ) -> Result<ProbeResult, CannotProbe> {
        let mut socket = match connect(at).await {
            Ok(socket) => socket,
            Err(error) => return not_connected(error),
        };
        if let Some(tls) = tls {
            socket = match tls.connect(address, socket).await {
                Ok(stream) => Socket::Wrapped(Box::new(stream)),
                Err(error @ ConnectError::Wrong(_)) => {
                    return Ok(ProbeResult::UnexpectedResponse(error.to_string()));
                }
                Err(error @ ConnectError::Broken(_)) => {
                    return Ok(ProbeResult::NoResponse(error.to_string()));
                }
            };
        }
        match check {
            Check::Http(check) => check.ask(Box::new(socket)).await,
            Check::WebSocket(check) => Ok(check.open(socket).await),
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
    if is_ours(&error) {
        return Err(CannotProbe(error));
    }
    Ok(match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            ProbeResult::Unreachable("it refuses connections".to_owned())
        }
        io::ErrorKind::TimedOut => ProbeResult::NoResponse("a dial took too long".to_owned()),
        _ => ProbeResult::Unreachable("it cannot be reached".to_owned()),
    })
}

/// Whether a dial failed for want of something of ours.
fn is_ours(error: &io::Error) -> bool {
    Shortage::of(error).is_some()
}

/// What an HTTP answer other than the expected one says.
fn unexpected(status: u16, drains: bool, hint: &str) -> ProbeResult {
    if drains && status == 503 {
        return ProbeResult::Draining;
    }
    ProbeResult::UnexpectedResponse(format!("its probe was answered with status {status}{hint}"))
}
