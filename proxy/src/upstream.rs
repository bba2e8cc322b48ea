//! Connects to a backend: with a socket, or, for the plugin, by a Pingora peer.
//!
//! Chooses no backend and retries nothing: one call is one attempt, which tries each address of a name until one accepts.

mod sweep;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pingora::ErrorType;
use pingora::protocols::TcpKeepalive;
use pingora::upstreams::peer::HttpPeer;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

pub(crate) use crate::balancer::idle::UpstreamConnection;
use crate::balancer::pool::Backend;
use crate::config::Timeouts;
use crate::config::backend::Address;
use crate::net::exhaustion::Exhaustion;
use crate::net::resolver::Names;
use crate::tls::{ConnectError, Connector};
use crate::tunnel::Socket;
pub(crate) use crate::upstream::sweep::sweep;

/// Unacknowledged keepalive probes after which the kernel closes a connection.
const KEEPALIVE_PROBES: u32 = 3;

/// Why a backend could not be reached. Nothing has been sent to it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// Nothing listens there, as during a restart.
    #[error("the connection was refused")]
    Refused(#[source] io::Error),
    /// There was no reply in time.
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    /// Its certificate was rejected, or the TLS handshake failed.
    #[error("TLS: {0}")]
    Tls(String),
    /// The name has no address, or the lookup failed.
    #[error("the name of the backend cannot be resolved")]
    Name(#[source] io::Error),
    /// This process, or its machine, has no descriptor or no memory left: no backend can be dialled.
    #[error("no descriptor is left to dial with")]
    Exhausted(#[source] io::Error),
    /// This machine has no local port left towards the backend. Others can be dialled.
    #[error("no local port is left towards the backend")]
    NoPort(#[source] io::Error),
    /// Any other error.
    #[error("the backend cannot be reached")]
    Unreachable(#[source] io::Error),
}

impl DialError {
    pub(crate) fn from_io(error: io::Error) -> Self {
        match (Exhaustion::of(&error), error.kind()) {
            (Some(Exhaustion::Sockets), _) => Self::Exhausted(error),
            (Some(Exhaustion::Ports), _) => Self::NoPort(error),
            // A unix socket that does not exist is a backend that does not listen.
            (_, io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => Self::Refused(error),
            _ => Self::Unreachable(error),
        }
    }

    /// Converts Pingora's error of connecting within `limit`.
    pub(crate) fn from_pingora(error: &pingora::Error, limit: Duration) -> Self {
        let code = error
            .root_cause()
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error);
        let short = code
            .map(io::Error::from_raw_os_error)
            .filter(|cause| Exhaustion::of(cause).is_some());
        if let Some(cause) = short {
            return Self::from_io(cause);
        }
        let cause = io::Error::other(error.to_string());
        match error.etype() {
            ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => Self::Timeout(limit),
            ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert => Self::Tls(error.to_string()),
            ErrorType::ConnectRefused => Self::Refused(cause),
            _ => Self::Unreachable(cause),
        }
    }

    /// Whether the dialled address is at fault, not this machine.
    fn is_of_address(&self) -> bool {
        !matches!(self, Self::Exhausted(_) | Self::NoPort(_))
    }
}

/// Whether a request may be sent again when its connection breaks: its method is idempotent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeatable {
    Yes,
    No,
}

/// How long a connection may have been idle for a request that cannot be repeated.
///
/// If a backend closes an idle connection while a POST is sent on it, the client gets a 502. Backends keep idle connections for
/// seconds (Node.js for five), so one that was in use a second ago is safe.
const FRESH: Duration = Duration::from_secs(1);

/// Whether `address` is one of the `current` addresses of the backend's name.
fn is_current(address: Option<SocketAddr>, current: Option<&[SocketAddr]>) -> bool {
    match (address, current) {
        (Some(address), Some(current)) => current.contains(&address),
        // Not a name, or its addresses are not known.
        _ => true,
    }
}

/// Makes connections to backends, and keeps idle ones.
pub(crate) struct Dialer {
    timeouts: Timeouts,
    names: Arc<Names>,
    /// One for each idle connection, to all backends.
    idle_permits: Arc<Semaphore>,
}

impl Dialer {
    /// Keeps at most `idle_max` idle connections in all.
    pub(crate) fn new(timeouts: Timeouts, names: Arc<Names>, idle_max: usize) -> Self {
        Self {
            timeouts,
            names,
            idle_permits: Arc::new(Semaphore::new(idle_max)),
        }
    }

    /// Takes an idle connection to `backend`, if there is a usable one.
    pub(crate) fn take_idle(
        &self,
        backend: &Backend,
        tls: Option<&Connector>,
        repeatable: Repeatable,
    ) -> Option<UpstreamConnection> {
        let number = tls.map_or(0, Connector::number);
        let current = self.current(&backend.address);
        let is_current = |address: Option<SocketAddr>| is_current(address, current.as_deref());
        backend
            .idle
            .take(self.age_max(repeatable), number, is_current)
    }

    /// Keeps an idle connection to `backend` for reuse.
    pub(crate) fn put_idle(
        &self,
        backend: &Backend,
        tls: Option<&Connector>,
        connection: UpstreamConnection,
    ) {
        let number = tls.map_or(0, Connector::number);
        backend.idle.put(connection, number, &self.idle_permits);
    }

    /// Closes the idle connections to `backend` that are older than `age`, were closed by it, or are connected to an address that
    /// its name no longer has.
    pub(crate) fn close_stale(&self, backend: &Backend, age: Duration) {
        let current = self.current(&backend.address);
        let is_current = |address: Option<SocketAddr>| is_current(address, current.as_deref());
        backend.idle.close_stale(age, is_current);
    }

    /// The current addresses of a host name, if they are known.
    fn current(&self, address: &Address) -> Option<Arc<[SocketAddr]>> {
        match address {
            Address::Name { host, port } => self.names.current(host, *port),
            Address::Ip(_) | Address::Unix(_) => None,
        }
    }

    /// How long a connection may have been idle.
    fn age_max(&self, repeatable: Repeatable) -> Duration {
        match repeatable {
            Repeatable::Yes => self.timeouts.upstream_keepalive,
            Repeatable::No => self.timeouts.upstream_keepalive.min(FRESH),
        }
    }

    /// Connects to `address`, the lookup of its name and the handshake of `tls` included, within `timeouts.connect`.
    pub(crate) async fn dial(
        &self,
        address: &Address,
        tls: Option<&Connector>,
    ) -> Result<UpstreamConnection, DialError> {
        let deadline = Instant::now() + self.timeouts.connect;
        let dialed = self.connect(address, deadline).await?;
        let Some(tls) = tls else {
            return Ok(dialed);
        };
        // Boxed, so that the future of a dial without TLS is not larger because of it.
        let secured = Box::pin(tls.connect(address, dialed.socket));
        match self.before(deadline, secured).await? {
            Ok(stream) => Ok(UpstreamConnection {
                socket: Socket::Wrapped(Box::new(stream)),
                address: dialed.address,
            }),
            Err(ConnectError::Broken(error)) => Err(DialError::from_io(error)),
            Err(ConnectError::Wrong(why)) => Err(DialError::Tls(why)),
        }
    }

    async fn connect(
        &self,
        address: &Address,
        deadline: Instant,
    ) -> Result<UpstreamConnection, DialError> {
        let fixed = |socket| UpstreamConnection {
            socket,
            address: None,
        };
        match address {
            Address::Unix(path) => {
                let connected = self.before(deadline, UnixStream::connect(path)).await?;
                let connected = connected.map(|socket| fixed(Socket::Unix(socket)));
                connected.map_err(DialError::from_io)
            }
            Address::Ip(address) => {
                let connected = self.before(deadline, self.connect_tcp(*address)).await?;
                connected.map(fixed).map_err(DialError::from_io)
            }
            Address::Name { host, port } => {
                let looked_up = self
                    .before(deadline, self.names.resolve(host, *port))
                    .await?;
                let (mut last, mut exhausted) = (None, None);
                for address in &*looked_up.map_err(DialError::Name)? {
                    let connected = self.before(deadline, self.connect_tcp(*address)).await;
                    match connected {
                        Ok(Ok(socket)) => {
                            return Ok(UpstreamConnection {
                                socket,
                                address: Some(*address),
                            });
                        }
                        // Another address may be of a family that works.
                        Ok(Err(error)) if Exhaustion::of(&error).is_some() => {
                            exhausted = Some(error)
                        }
                        Ok(Err(error)) => {
                            self.names.failed(host, *port, *address);
                            last = Some(error);
                        }
                        Err(error) => {
                            self.names.failed(host, *port, *address);
                            return Err(error);
                        }
                    }
                }
                let error = last.or(exhausted);
                Err(DialError::from_io(
                    error.unwrap_or_else(|| io::ErrorKind::NotFound.into()),
                ))
            }
        }
    }

    /// Runs `step`, which is part of a dial, until `deadline`.
    async fn before<T>(
        &self,
        deadline: Instant,
        step: impl Future<Output = T>,
    ) -> Result<T, DialError> {
        let done = timeout_at(deadline, step).await;
        done.map_err(|_| DialError::Timeout(self.timeouts.connect))
    }

    async fn connect_tcp(&self, address: SocketAddr) -> io::Result<Socket> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        set_keepalive(socket2::SockRef::from(&socket), &self.timeouts)?;
        Ok(Socket::Tcp(socket))
    }

    /// The peer by which Pingora connects to `address`. `cursor` is the position of this attempt in the addresses; an attempt starts
    /// with its default.
    pub(crate) async fn peer(
        &self,
        address: &Address,
        tls: Option<&Connector>,
        cursor: &mut AddressCursor,
        repeatable: Repeatable,
    ) -> Result<HttpPeer, DialError> {
        let mut peer = match address {
            Address::Ip(address) => HttpPeer::new(address, false, String::new()),
            Address::Name { host, port } => {
                if cursor.current().is_none() {
                    let deadline = Instant::now() + self.timeouts.connect;
                    let looked_up = self
                        .before(deadline, self.names.resolve(host, *port))
                        .await?;
                    cursor.addresses = looked_up.map_err(DialError::Name)?;
                    cursor.position = 0;
                }
                let current = cursor
                    .current()
                    .ok_or_else(|| DialError::Name(io::ErrorKind::NotFound.into()))?;
                HttpPeer::new(current, false, String::new())
            }
            Address::Unix(path) => HttpPeer::new_uds(&path.to_string_lossy(), false, String::new())
                .map_err(|error| DialError::Unreachable(io::Error::other(error.to_string())))?,
        };
        let options = &mut peer.options;
        options.connection_timeout = Some(self.timeouts.connect);
        options.total_connection_timeout = Some(self.timeouts.connect);
        options.read_timeout = Some(self.timeouts.upstream_read);
        options.write_timeout = Some(self.timeouts.upstream_write);
        options.idle_timeout = Some(self.age_max(repeatable));
        if !matches!(address, Address::Unix(_)) {
            options.tcp_keepalive = Some(keepalive(&self.timeouts));
        }
        // Separates the idle connections by how old they may be.
        peer.group_key = u64::from(repeatable == Repeatable::No);
        if let Some(tls) = tls {
            tls.prepare(&mut peer, address);
        }
        Ok(peer)
    }

    /// Reports that Pingora could not connect to the address at `cursor`, and advances to the next address of the same name.
    ///
    /// `false` if there is none, or no time left: the attempt has failed.
    pub(crate) fn advance(
        &self,
        address: &Address,
        cursor: &mut AddressCursor,
        error: &DialError,
    ) -> bool {
        let (Address::Name { host, port }, Some(current)) = (address, cursor.current()) else {
            return false;
        };
        if error.is_of_address() {
            self.names.failed(host, *port, current);
        }
        cursor.position += 1;
        cursor.current().is_some() && !matches!(error, DialError::Timeout(_))
    }
}

/// The addresses of a host name, and the position of one attempt in them.
#[derive(Debug, Default)]
pub(crate) struct AddressCursor {
    addresses: Arc<[SocketAddr]>,
    position: usize,
}

impl AddressCursor {
    fn current(&self) -> Option<SocketAddr> {
        self.addresses.get(self.position).copied()
    }
}

/// Sets TCP keepalive and the TCP user timeout of a socket. Accepted sockets inherit them from a listening one.
pub(crate) fn set_keepalive(socket: socket2::SockRef<'_>, timeouts: &Timeouts) -> io::Result<()> {
    let keepalive = keepalive(timeouts);
    socket.set_tcp_keepalive(
        &socket2::TcpKeepalive::new()
            .with_time(keepalive.idle)
            .with_interval(keepalive.interval)
            .with_retries(KEEPALIVE_PROBES),
    )?;
    socket.set_tcp_user_timeout(Some(keepalive.user_timeout))
}

/// TCP keepalive by `timeouts`.
pub(crate) fn keepalive(timeouts: &Timeouts) -> TcpKeepalive {
    TcpKeepalive {
        idle: timeouts.tcp_keepalive,
        interval: (timeouts.tcp_keepalive / KEEPALIVE_PROBES).max(Duration::from_secs(1)),
        count: KEEPALIVE_PROBES as usize,
        user_timeout: timeouts.tcp_user_timeout,
    }
}

#[cfg(test)]
mod tests;
