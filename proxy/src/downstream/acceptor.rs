//! What an accepted connection goes through before its first request: the PROXY header, the limits for its address, TLS.
//!
//! Who is refused before it has shown that it speaks HTTP is closed without a word; others are for the caller to answer.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use causeway_conf::AddressRange;
use pingora::protocols::l4::socket::SocketAddr as PingoraAddress;
use pingora::protocols::l4::stream::Stream as Transport;
use pingora::protocols::{GetSocketDigest, SocketDigest, Stream};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::ListenerConfig;
use crate::downstream::proxy_protocol;
use crate::downstream::proxy_protocol::Header;
use crate::limits::Gate;
use crate::limits::Limit;
use crate::limits::Place;
use crate::metrics::Metrics;
use crate::net::accepted::Accepted;
use crate::tls;
use crate::tls::{HandshakeError, Terminator, TlsError};

/// What a listener on all interfaces has for an address, of either family where it takes both.
const EVERYWHERE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    IpAddr::V6(Ipv6Addr::UNSPECIFIED),
];

/// How many bytes are asked for while a PROXY header is awaited.
const READ: usize = 256;

/// Why a connection gets no further. Nothing is said to it: there is nothing yet that it would understand.
#[derive(Debug, thiserror::Error)]
enum Turned {
    #[error("PROXY header: {0}")]
    Header(#[from] proxy_protocol::HeaderError),
    #[error("no PROXY header within {0:?}")]
    HeaderTimeout(Duration),
    #[error("the connection ended: {0}")]
    Lost(#[from] io::Error),
    #[error("refused because of limits.{}", .0.name())]
    Limited(Limit),
    #[error("TLS handshake: {0}")]
    Handshake(#[from] HandshakeError),
    #[error("not a TCP connection")]
    NotTcp,
}

impl Turned {
    /// The name in the metrics.
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

/// The way in of one listener.
pub(crate) struct Entrance {
    /// The peers that begin with a PROXY header.
    announcing: Vec<AddressRange>,
    header_deadline: Duration,
    tls: Option<Arc<Terminator>>,
    /// The https port that requests are sent to instead of being served.
    pub(crate) redirect_to_https: Option<u16>,
}

impl Entrance {
    /// `header_deadline` is for a PROXY header to be complete.
    ///
    /// # Errors
    ///
    /// [`TlsError`] if the listener cannot speak TLS.
    pub(crate) fn new(
        config: &ListenerConfig,
        header_deadline: Duration,
    ) -> Result<Self, TlsError> {
        let tls = config.tls.as_ref().map(|tls| {
            let terminator = Terminator::new(config.address.to_string(), tls)?;
            Ok::<_, TlsError>(Arc::new(terminator))
        });
        Ok(Self {
            announcing: config.proxy_protocol.clone(),
            header_deadline,
            tls: tls.transpose()?,
            redirect_to_https: config.redirect_to_https,
        })
    }

    /// Its certificates that are not served as their files are, with the reason.
    pub(crate) fn wrong_certificates(&self, now: SystemTime) -> Vec<String> {
        let all = self.tls.iter().flat_map(|tls| tls.certificates(now));
        let wrong = all.filter(|certificate| !certificate.why.is_empty());
        wrong.map(|certificate| certificate.why).collect()
    }

    /// Whether connections carry requests from their first byte on.
    pub(crate) fn is_open(&self) -> bool {
        self.tls.is_none() && self.announcing.is_empty()
    }
}

/// The ways in of all listeners.
pub(crate) struct Entrances {
    by_address: HashMap<SocketAddr, Arc<Entrance>>,
    /// For all, if there is only one.
    only: Option<Arc<Entrance>>,
    gate: Arc<Gate>,
    metrics: Arc<Metrics>,
}

/// What becomes of a connection.
pub(crate) enum Admission {
    /// It carries requests from here on.
    Granted {
        stream: Stream,
        place: Option<Place>,
    },
    /// It is to be told that there is too much of its kind, and closed.
    Refused { stream: Stream, limit: Limit },
    /// It is closed.
    Closed,
}

impl Entrances {
    /// `entrances` by the addresses that are listened on.
    pub(crate) fn new(
        entrances: Vec<(SocketAddr, Entrance)>,
        gate: Arc<Gate>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let by_address: HashMap<_, _> = entrances
            .into_iter()
            .map(|(address, entrance)| (address, Arc::new(entrance)))
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

    /// What speaks TLS for the listeners that do, in the order of their names.
    pub(crate) fn terminators(&self) -> Vec<Arc<Terminator>> {
        let entrances = self.by_address.values();
        let mut terminators: Vec<_> = entrances
            .filter_map(|entrance| entrance.tls.clone())
            .collect();
        terminators.sort_by(|a, b| a.name().cmp(b.name()));
        terminators
    }

    /// Takes in certificates and ticket keys whose files have changed, until `stop`.
    pub(crate) async fn renew(&self, stop: CancellationToken) {
        let terminators = self.terminators();
        if terminators.is_empty() {
            stop.cancelled().await;
        } else {
            tls::watch(terminators, Arc::clone(&self.metrics), stop).await;
        }
    }

    /// The entrance that `stream` came through.
    pub(crate) fn of(&self, stream: &Stream) -> Option<Arc<Entrance>> {
        if let Some(only) = &self.only {
            return Some(Arc::clone(only));
        }
        let digest = stream.get_socket_digest()?;
        let address = *digest.local_addr()?.as_inet()?;
        std::iter::once(address.ip())
            .chain(EVERYWHERE)
            .find_map(|ip| {
                let listening = SocketAddr::new(ip, address.port());
                self.by_address.get(&listening).cloned()
            })
    }

    /// Lets a connection in, or not.
    ///
    /// # Cancel safety
    ///
    /// Dropping it closes the connection.
    pub(crate) async fn admit(&self, entrance: &Entrance, stream: Stream) -> Admission {
        if entrance.is_open() {
            return self.count(stream);
        }
        // Its own future: a connection is as large as its largest, and this one is over soon.
        Box::pin(self.pass(entrance, stream))
            .await
            .unwrap_or_else(|turned| {
                self.metrics.handshake(turned.result());
                tracing::debug!(%turned, "a connection was turned away");
                Admission::Closed
            })
    }

    /// Counts a connection whose next bytes are HTTP for the address it comes from.
    fn count(&self, stream: Stream) -> Admission {
        let peer = stream
            .get_socket_digest()
            .and_then(|digest| digest.peer_addr()?.as_inet().copied());
        self.count_for(peer.map(|peer| peer.ip()), stream)
    }

    fn count_for(&self, source: Option<IpAddr>, stream: Stream) -> Admission {
        match self.place_of(source) {
            Ok(place) => Admission::Granted { stream, place },
            Err(limit) => Admission::Refused { stream, limit },
        }
    }

    fn place_of(&self, source: Option<IpAddr>) -> Result<Option<Place>, Limit> {
        let place = source.map(|source| self.gate.connection_from(source, Instant::now()));
        place.unwrap_or(Ok(None))
    }

    async fn pass(&self, entrance: &Entrance, stream: Stream) -> Result<Admission, Turned> {
        let accepted = stream.into_any().downcast::<Accepted>();
        let mut transport = accepted.map_err(|_| Turned::NotTcp)?.into_transport();
        let peer = address_of(&transport);
        let announces = |peer: SocketAddr| {
            let mut ranges = entrance.announcing.iter();
            ranges.any(|range| range.contains(peer.ip()))
        };
        let mut source = peer.map(|peer| peer.ip());
        if peer.is_some_and(announces) {
            let reading = timeout(entrance.header_deadline, read_header(&mut transport));
            let client = reading
                .await
                .map_err(|_| Turned::HeaderTimeout(entrance.header_deadline))??;
            // A balancer that speaks for itself is nobody to be limited.
            source = client.map(|client| client.ip());
            if let Some(client) = client {
                speaks_for(&mut transport, client);
            }
        }
        let Some(tls) = &entrance.tls else {
            return Ok(self.count_for(source, Box::new(transport)));
        };
        let place = self.place_of(source).map_err(Turned::Limited)?;
        let handshake = source.map(|source| self.gate.handshake(source, Instant::now()));
        let slot = handshake.unwrap_or(Ok(None)).map_err(Turned::Limited)?;
        let stream = tls.accept(transport).await?;
        drop(slot);
        let result = if stream.is_resumed() {
            "resumed"
        } else {
            "full"
        };
        self.metrics.handshake(result);
        let stream = Box::new(stream);
        Ok(Admission::Granted { stream, place })
    }
}

fn address_of(transport: &Transport) -> Option<SocketAddr> {
    let digest = transport.get_socket_digest()?;
    digest.peer_addr()?.as_inet().copied()
}

/// Reads the PROXY header; what came behind it is put back.
async fn read_header(transport: &mut Transport) -> Result<Option<SocketAddr>, Turned> {
    let mut bytes = Vec::with_capacity(READ);
    loop {
        if transport.read_buf(&mut bytes).await? == 0 {
            return Err(Turned::Lost(io::ErrorKind::UnexpectedEof.into()));
        }
        if let Header::Complete { length, client } = proxy_protocol::parse(&bytes)? {
            transport.rewind(&bytes[length..]);
            return Ok(client);
        }
        debug_assert!(
            bytes.len() < proxy_protocol::BYTES_MAX,
            "a header is over by then"
        );
        bytes.reserve(READ);
    }
}

/// From here on the connection counts as the client's.
fn speaks_for(transport: &mut Transport, client: SocketAddr) {
    let digest = SocketDigest::from_raw_fd(transport.as_raw_fd());
    // It is new, so that nothing is set yet.
    let _ = digest.peer_addr.set(Some(PingoraAddress::Inet(client)));
    transport.set_socket_digest(digest);
}
