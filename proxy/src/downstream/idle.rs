//! An HTTP/1 connection between two requests as plain data beside its socket, to continue it in another process, or in this one if
//! that fails.
//!
//! Invariant: there is either a [`Connection`] or an [`IdleConnection`], never both, and nothing reads or writes the latter.

use std::net::SocketAddr;

use pingora::protocols::Stream;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::downstream::Connection;
use crate::limits::Permits;
use crate::net::accepted::Accepted;
use crate::tls::record::{RecordStream, StreamState};
use crate::tunnel::{BareSocket, Socket};

/// A connection without a request.
#[derive(Debug)]
pub(crate) struct IdleConnection {
    pub(crate) socket: BareSocket,
    pub(crate) state: IdleState,
}

/// What an idle connection is, without its socket. Its `Debug` shows no keys.
pub(crate) struct IdleState {
    /// The address of the client: that of the connection, or the one in its PROXY header.
    pub(crate) client: SocketAddr,
    /// The address at which it was accepted.
    pub(crate) local: SocketAddr,
    /// What was read of the next request.
    pub(crate) ahead: Vec<u8>,
    /// If it is over TLS.
    pub(crate) tls: Option<Box<StreamState>>,
}

/// An idle connection on its way to another process. When it is dropped, its task goes on with it.
#[derive(Debug)]
pub(crate) struct ParkedIdle {
    /// Until it is released.
    parked: Option<Parked>,
    task: Option<oneshot::Sender<Parked>>,
}

type Parked = (IdleConnection, Option<Permits>);

impl ParkedIdle {
    /// Parks a connection; the receiver has it if it stays, and an error if another process has it.
    pub(crate) fn new(
        connection: IdleConnection,
        permits: Option<Permits>,
    ) -> (Self, oneshot::Receiver<Parked>) {
        let (task, stays) = oneshot::channel();
        let parked = Self {
            parked: Some((connection, permits)),
            task: Some(task),
        };
        (parked, stays)
    }

    pub(crate) fn connection(&self) -> &IdleConnection {
        let (connection, _) = self.parked.as_ref().expect("only a release takes it");
        connection
    }

    /// What stands for the address that is counted for it.
    pub(crate) fn permit_source(&self) -> Option<u64> {
        let (_, permits) = self.parked.as_ref()?;
        permits.as_ref()?.source()
    }

    /// Gives it up: another process continues it. The socket is closed here, and stays open there.
    pub(crate) fn release(mut self) {
        self.parked = None;
    }
}

impl Drop for ParkedIdle {
    fn drop(&mut self) {
        if let Some((task, parked)) = self.task.take().zip(self.parked.take()) {
            let _ = task.send(parked); // Its task has been cancelled: then the connection is closed.
        }
    }
}

impl std::fmt::Debug for IdleState {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut state = formatter.debug_struct("IdleState");
        state.field("client", &self.client).finish_non_exhaustive()
    }
}

impl Connection {
    /// The idle connection as data. It can be continued by [`Connection::from_idle`], once.
    ///
    /// # Errors
    ///
    /// A connection that goes on here: its addresses are unknown, or its TLS state cannot be taken out of the TLS library.
    pub(crate) fn into_idle(self) -> Result<IdleConnection, Box<Self>> {
        let Some((client, local)) = self.addresses() else {
            return Err(Box::new(self));
        };
        let mut ahead = self.ahead.to_vec();
        let socket = Socket::from_pingora(self.into_io(), &mut ahead);
        let keep = |stream: Stream, ahead: &[u8]| {
            let mut kept = Self::new(stream);
            kept.ahead.extend_from_slice(ahead);
            Box::new(kept)
        };
        if !socket.can_be_bare() {
            return Err(keep(stream_of(socket, client, local), &ahead));
        }
        let (socket, tls) = socket.into_bare().expect("it was checked");
        let state = IdleState {
            client,
            local,
            ahead,
            tls,
        };
        Ok(IdleConnection { socket, state })
    }

    /// Continues an idle connection, on the current runtime; `None` if its state cannot be that of one.
    pub(crate) fn from_idle(idle: IdleConnection) -> Option<Self> {
        let IdleState {
            client,
            local,
            ahead,
            tls,
        } = idle.state;
        let BareSocket::Tcp(socket) = idle.socket else {
            return None;
        };
        let accepted = Accepted::new(socket, client, local);
        let stream: Stream = match tls {
            None => Box::new(accepted),
            Some(state) => Box::new(RecordStream::from_state(accepted, state)?),
        };
        let mut connection = Self::new(stream);
        connection.ahead.extend_from_slice(&ahead);
        Some(connection)
    }
}

/// A connection of a client without its task, as it was before [`Socket::from_pingora`], but without the TLS library.
fn stream_of(socket: Socket, client: SocketAddr, local: SocketAddr) -> Stream {
    let accepted = |socket: TcpStream| Accepted::new(socket, client, local);
    match socket {
        Socket::Tcp(socket) => Box::new(accepted(socket)),
        Socket::Wrapped(stream) => stream,
        Socket::Tls(tls) => Box::new(tls.map_transport(|below| match below {
            Socket::Tcp(socket) => accepted(socket),
            _ => unreachable!("clients connect over TCP"),
        })),
        Socket::Unix(_) => unreachable!("clients connect over TCP"),
    }
}
