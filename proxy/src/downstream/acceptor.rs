//! Prepares an accepted connection for its first request: the PROXY header, the limits for its address, the TLS handshake.
//!
//! A connection that is rejected before it can read HTTP is closed without a response; for others the caller sends one.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use causeway_conf::AddressRange;
use pingora::protocols::l4::socket::SocketAddr as PingoraAddress;
use pingora::protocols::{GetSocketDigest, SocketDigest, Stream, UniqueID};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::ListenerConfig;
use crate::downstream::proxy_protocol;
use crate::downstream::proxy_protocol::Header;
use crate::limits::AddressPermit;
use crate::limits::Gate;
use crate::limits::Limit;
use crate::metrics::Metrics;
use crate::net::accepted::Accepted;
use crate::tls;
use crate::tls::{HandshakeError, Terminator, TlsError};

/// The addresses of listeners on all interfaces; one for IPv6 may accept both families.
const EVERYWHERE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    IpAddr::V6(Ipv6Addr::UNSPECIFIED),
];

/// How many bytes are read at a time while a PROXY header is incomplete.
const READ: usize = 256;

/// Why a connection is closed before its first request, without a response.
#[derive(Debug, thiserror::Error)]
enum RejectReason {
    #[error("PROXY header: {0}")]
    Header(#[from] proxy_protocol::HeaderError),
    #[error("no PROXY header within {0:?}")]
    HeaderTimeout(Duration),
    #[error("the connection ended: {0}")]
    Lost(#[from] io::Error),
    #[error("limits.{} is reached", .0.name())]
    Limited(Limit),
    #[error("TLS handshake: {0}")]
    Handshake(#[from] HandshakeError),
    #[error("not a TCP connection")]
    NotTcp,
}

impl RejectReason {
    /// The label in the metrics.
    fn result(&self) -> &'static str {
        match self {
            Self::Header(_) | Self::HeaderTimeout(_) => "proxy_header",
            Self::Lost(_) | Self::NotTcp => "lost",
            Self::Limited(_) => "limited",
            Self::Handshake(HandshakeError::Timeout(_)) => "timeout",
            Self::Handshake(HandshakeError::Failed(error)) => tls::reason(error),
        }
    }
}

/// The settings of one listener for new connections.
pub(crate) struct Acceptor {
    /// The peers that send a PROXY header.
    proxy_protocol_peers: Vec<AddressRange>,
    header_deadline: Duration,
    tls: Option<Arc<Terminator>>,
    /// The https port to redirect requests to instead of serving them.
    pub(crate) redirect_to_https: Option<u16>,
}

impl Acceptor {
    /// `header_deadline` is the time in which a PROXY header has to be complete.
    ///
    /// # Errors
    ///
    /// [`TlsError`] if the TLS settings of the listener cannot be used.
    pub(crate) fn new(
        config: &ListenerConfig,
        header_deadline: Duration,
    ) -> Result<Self, TlsError> {
        let tls = config.tls.as_ref().map(|tls| {
            let terminator = Terminator::new(config.address.to_string(), tls)?;
            Ok::<_, TlsError>(Arc::new(terminator))
        });
        Ok(Self {
            proxy_protocol_peers: config.proxy_protocol.clone(),
            header_deadline,
            tls: tls.transpose()?,
            redirect_to_https: config.redirect_to_https,
        })
    }

    /// The problems of its certificates: one text for each that is not served as its files are.
    pub(crate) fn certificate_problems(&self, now: SystemTime) -> Vec<String> {
        let all = self.tls.iter().flat_map(|tls| tls.certificates(now));
        let with_problems = all.filter(|certificate| !certificate.why.is_empty());
        with_problems.map(|certificate| certificate.why).collect()
    }

    /// Whether connections are over TLS.
    pub(crate) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether connections start with HTTP: without TLS and without PROXY headers.
    pub(crate) fn is_plain_http(&self) -> bool {
        self.tls.is_none() && self.proxy_protocol_peers.is_empty()
    }
}

/// The acceptors of all listeners.
pub(crate) struct Acceptors {
    by_address: HashMap<SocketAddr, Arc<Acceptor>>,
    /// The acceptor for all connections, if there is only one.
    only: Option<Arc<Acceptor>>,
    gate: Arc<Gate>,
    metrics: Arc<Metrics>,
}

/// The result of accepting a connection.
pub(crate) enum Admission {
    /// It is ready for its first request.
    Admitted {
        stream: Stream,
        permit: Option<AddressPermit>,
    },
    /// It is over a limit: the caller sends a response and closes it.
    Rejected { stream: Stream, limit: Limit },
    /// It was closed.
    Closed,
}

impl Acceptors {
    /// `acceptors`, with the addresses of their listeners.
    pub(crate) fn new(
        acceptors: Vec<(SocketAddr, Acceptor)>,
        gate: Arc<Gate>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let by_address: HashMap<_, _> = acceptors
            .into_iter()
            .map(|(address, acceptor)| (address, Arc::new(acceptor)))
            .collect();
        let only = match by_address.len() {
            1 => by_address.values().next().cloned(),
            _ => None,
        };
        Self {
            by_address,
            only,
            gate,
            metrics,
        }
    }

    /// The terminators of the listeners with TLS, sorted by name.
    pub(crate) fn terminators(&self) -> Vec<Arc<Terminator>> {
        let acceptors = self.by_address.values();
        let mut terminators: Vec<_> = acceptors
            .filter_map(|acceptor| acceptor.tls.clone())
            .collect();
        terminators.sort_by(|a, b| a.name().cmp(b.name()));
        terminators
    }

    /// Reloads certificates and ticket keys when their files change, until `stop`.
    pub(crate) async fn watch_certificates(&self, stop: CancellationToken) {
        let terminators = self.terminators();
        if terminators.is_empty() {
            stop.cancelled().await;
        } else {
            tls::watch(terminators, Arc::clone(&self.metrics), stop).await;
        }
    }

    /// The acceptor of the listener that accepted `stream`.
    pub(crate) fn of(&self, stream: &Stream) -> Option<Arc<Acceptor>> {
        if let Some(only) = &self.only {
            return Some(Arc::clone(only));
        }
        let digest = stream.get_socket_digest()?;
        self.at(*digest.local_addr()?.as_inet()?)
    }

    /// The acceptor of the listener that accepts connections to `address`.
    pub(crate) fn at(&self, address: SocketAddr) -> Option<Arc<Acceptor>> {
        std::iter::once(address.ip())
            .chain(EVERYWHERE)
            .find_map(|ip| {
                let listening = SocketAddr::new(ip, address.port());
                self.by_address.get(&listening).cloned()
            })
    }

    /// Prepares a connection for its first request, or rejects it.
    ///
    /// # Cancel safety
    ///
    /// Dropping it closes the connection.
    pub(crate) async fn admit(&self, acceptor: &Acceptor, stream: Stream) -> Admission {
        if acceptor.is_plain_http() {
            return self.admit_plain(stream);
        }
        // Boxed: it is short-lived, and would make the future of each connection larger.
        Box::pin(self.prepare(acceptor, stream))
            .await
            .unwrap_or_else(|reason| {
                self.metrics.handshake(reason.result());
                tracing::debug!(%reason, "connection rejected before its first request");
                Admission::Closed
            })
    }

    /// Applies the limits for the address of a plain HTTP connection.
    fn admit_plain(&self, stream: Stream) -> Admission {
        let peer = stream
            .get_socket_digest()
            .and_then(|digest| digest.peer_addr()?.as_inet().copied());
        self.admit_from(peer.map(|peer| peer.ip()), stream)
    }

    fn admit_from(&self, source: Option<IpAddr>, stream: Stream) -> Admission {
        match self.permit_for(source) {
            Ok(permit) => Admission::Admitted { stream, permit },
            Err(limit) => Admission::Rejected { stream, limit },
        }
    }

    fn permit_for(&self, source: Option<IpAddr>) -> Result<Option<AddressPermit>, Limit> {
        let permit = source.map(|source| self.gate.connection_from(source, Instant::now()));
        permit.unwrap_or(Ok(None))
    }

    async fn prepare(
        &self,
        acceptor: &Acceptor,
        stream: Stream,
    ) -> Result<Admission, RejectReason> {
        let accepted = stream.into_any().downcast::<Accepted>();
        let mut accepted = *accepted.map_err(|_| RejectReason::NotTcp)?;
        let peer = address_of(&accepted);
        let sends_header = |peer: SocketAddr| {
            let mut ranges = acceptor.proxy_protocol_peers.iter();
            ranges.any(|range| range.contains(peer.ip()))
        };
        let mut source = peer.map(|peer| peer.ip());
        let mut early = Vec::new();
        if peer.is_some_and(sends_header) {
            let reading = timeout(acceptor.header_deadline, read_header(&mut accepted));
            let (client, rest) = reading
                .await
                .map_err(|_| RejectReason::HeaderTimeout(acceptor.header_deadline))??;
            early = rest;
            // Without a client (a health check of the balancer itself) no limit applies.
            source = client.map(|client| client.ip());
            if let Some(client) = client {
                set_client_address(&mut accepted, client);
            }
        }
        let Some(tls) = &acceptor.tls else {
            let mut transport = accepted.into_transport();
            transport.rewind(&early);
            return Ok(self.admit_from(source, Box::new(transport)));
        };
        let permit = self.permit_for(source).map_err(RejectReason::Limited)?;
        let handshake = source.map(|source| self.gate.handshake(source, Instant::now()));
        let handshake_permit = handshake
            .unwrap_or(Ok(None))
            .map_err(RejectReason::Limited)?;
        let stream = tls.accept(accepted, early).await?;
        drop(handshake_permit);
        let result = if stream.is_resumed() {
            "resumed"
        } else {
            "full"
        };
        self.metrics.handshake(result);
        let stream = Box::new(stream);
        Ok(Admission::Admitted { stream, permit })
    }
}

fn address_of(accepted: &Accepted) -> Option<SocketAddr> {
    let digest = accepted.get_socket_digest()?;
    digest.peer_addr()?.as_inet().copied()
}

/// Reads the PROXY header. Returns the client and the bytes after it.
async fn read_header(
    accepted: &mut Accepted,
) -> Result<(Option<SocketAddr>, Vec<u8>), RejectReason> {
    let mut bytes = Vec::with_capacity(READ);
    loop {
        if accepted.read_buf(&mut bytes).await? == 0 {
            return Err(RejectReason::Lost(io::ErrorKind::UnexpectedEof.into()));
        }
        if let Header::Complete { length, client } = proxy_protocol::parse(&bytes)? {
            return Ok((client, bytes.split_off(length)));
        }
        debug_assert!(
            bytes.len() < proxy_protocol::BYTES_MAX,
            "a header is complete or invalid by then"
        );
        bytes.reserve(READ);
    }
}

/// Makes `client` the peer address of the connection.
fn set_client_address(accepted: &mut Accepted, client: SocketAddr) {
    let digest = SocketDigest::from_raw_fd(accepted.id());
    // The digest is new, so no address is set yet.
    let _ = digest.peer_addr.set(Some(PingoraAddress::Inet(client)));
    accepted.set_socket_digest(digest);
}
