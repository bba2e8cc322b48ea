//! A tunnel as plain data beside its two sockets, to continue it in another process, or in this one if that fails.
//!
//! Invariant: there is either a [`Tunnel`] or its state, never both, so that at no time two tunnels read or write one socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tokio::net::{TcpStream, UnixStream};

use crate::tls::record::RecordStream;
use crate::tls::record::StreamState;
use crate::tunnel::EndReason;
use crate::tunnel::Phase;
use crate::tunnel::Protocol;
use crate::tunnel::Tunnel;
use crate::tunnel::flow::{Flow, FlowState};
use crate::tunnel::readiness::ReadinessTracked;
use crate::tunnel::registry::Entry;
use crate::tunnel::socket::Socket;

/// What a tunnel is, without its sockets and its entry in the registry.
pub(crate) struct TunnelState {
    pub(crate) protocol: Protocol,
    /// From the client to the backend.
    pub(crate) up: FlowState,
    /// From the backend to the client.
    pub(crate) down: FlowState,
    pub(crate) end_reason: Option<EndReason>,
    /// The code of the first Close frame.
    pub(crate) close_code: Option<u16>,
    /// If the connection to the client is over TLS.
    pub(crate) client_tls: Option<Box<StreamState>>,
    /// If the connection to the backend is over TLS.
    pub(crate) backend_tls: Option<Box<StreamState>>,
}

/// A socket without what is layered on it.
#[derive(Debug)]
pub(crate) enum BareSocket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A tunnel that nothing polls.
pub(crate) struct ParkedTunnel {
    pub(crate) client: BareSocket,
    pub(crate) backend: BareSocket,
    pub(crate) state: TunnelState,
    pub(crate) entry: Entry,
}

impl BareSocket {
    /// The socket with this descriptor, on the current runtime.
    ///
    /// # Errors
    ///
    /// It is no connected stream socket of TCP or of a unix socket, or cannot be registered with the runtime.
    pub(crate) fn from_descriptor(descriptor: OwnedFd) -> io::Result<Self> {
        let socket = socket2::Socket::from(descriptor);
        if socket.r#type()? != socket2::Type::STREAM {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        socket.set_nonblocking(true)?;
        match socket.local_addr()?.domain() {
            socket2::Domain::IPV4 | socket2::Domain::IPV6 => {
                TcpStream::from_std(socket.into()).map(Self::Tcp)
            }
            socket2::Domain::UNIX => UnixStream::from_std(socket.into()).map(Self::Unix),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn into_socket(self, tls: Option<Box<StreamState>>) -> Option<Socket> {
        let bare = match self {
            Self::Tcp(socket) => Socket::Tcp(socket),
            Self::Unix(socket) => Socket::Unix(socket),
        };
        match tls {
            None => Some(bare),
            Some(state) => {
                RecordStream::from_state(bare, state).map(|tls| Socket::Tls(Box::new(tls)))
            }
        }
    }
}

impl AsFd for BareSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}

impl Socket {
    /// Whether [`Socket::into_bare`] is possible.
    pub(crate) fn can_be_bare(&self) -> bool {
        match self {
            Self::Tcp(_) | Self::Unix(_) => true,
            Self::Tls(tls) => {
                tls.has_state() && matches!(tls.transport(), Self::Tcp(_) | Self::Unix(_))
            }
            Self::Wrapped(_) => false,
        }
    }

    /// The bare socket, and the state of the TLS connection over it, which is no more.
    pub(crate) fn into_bare(self) -> Option<(BareSocket, Option<Box<StreamState>>)> {
        match self {
            Self::Tcp(socket) => Some((BareSocket::Tcp(socket), None)),
            Self::Unix(socket) => Some((BareSocket::Unix(socket), None)),
            Self::Tls(tls) => {
                let (transport, state) = tls.into_state().ok()?;
                let (bare, _) = transport.into_bare()?;
                Some((bare, Some(state)))
            }
            Self::Wrapped(_) => None,
        }
    }
}

impl<P> Tunnel<Socket, Socket, P> {
    /// Whether [`Tunnel::park`] is possible: not while it is handed off or closed, or has a socket that is no bare one underneath.
    pub(crate) fn can_be_parked(&self) -> bool {
        matches!(self.phase, Phase::Forwarding)
            && !self.up.is_muted()
            && !self.down.is_muted()
            && self.client.get().can_be_bare()
            && self.backend.get().can_be_bare()
    }

    /// The tunnel as data. It can be continued by [`Tunnel::unpark`], once.
    ///
    /// # Errors
    ///
    /// The tunnel as it is, without [`Tunnel::can_be_parked`].
    #[expect(
        clippy::result_large_err,
        reason = "it is moved once for a takeover; a box would be one more allocation for each tunnel"
    )]
    pub(crate) fn park(self) -> Result<ParkedTunnel, Self> {
        if !self.can_be_parked() {
            return Err(self);
        }
        let protocol = match (self.can_hand_off, self.down.tracks_frames()) {
            (true, _) => Protocol::WebSocketWithHandoff,
            (false, true) => Protocol::WebSocket,
            (false, false) => Protocol::Opaque,
        };
        let bare = |socket: ReadinessTracked<Socket>| {
            let bare = socket.into_inner().into_bare();
            bare.expect("its kind was checked")
        };
        let (client, client_tls) = bare(self.client);
        let (backend, backend_tls) = bare(self.backend);
        Ok(ParkedTunnel {
            client,
            backend,
            state: TunnelState {
                protocol,
                up: self.up.into_state(),
                down: self.down.into_state(),
                end_reason: self.end_reason,
                close_code: self.close_code,
                client_tls,
                backend_tls,
            },
            entry: self.entry,
        })
    }

    /// Continues a tunnel; `None` if the state cannot be that of one.
    pub(crate) fn unpark(parked: ParkedTunnel) -> Option<Self> {
        let ParkedTunnel {
            client,
            backend,
            state,
            entry,
        } = parked;
        let tracks_frames = state.protocol != Protocol::Opaque;
        let (up, down) = (Flow::from_state(state.up)?, Flow::from_state(state.down)?);
        if up.tracks_frames() != tracks_frames || down.tracks_frames() != tracks_frames {
            return None;
        }
        Some(Self {
            client: ReadinessTracked::new(client.into_socket(state.client_tls)?),
            backend: ReadinessTracked::new(backend.into_socket(state.backend_tls)?),
            up,
            down,
            entry,
            close_request_task: 0,
            can_hand_off: state.protocol == Protocol::WebSocketWithHandoff,
            has_tried_to_move: false,
            end_reason: state.end_reason,
            close_code: state.close_code,
            phase: Phase::Forwarding,
        })
    }
}
