//! The listening socket.

use std::io;
use std::net::SocketAddr;

use socket2::Domain;
use socket2::Protocol;
use socket2::Socket;
use socket2::Type;
use tokio::net::TcpListener;

use crate::config::Tcp;
use crate::server::tcp;

/// How many connections may wait to be accepted; the kernel's own limit applies too.
const BACKLOG: i32 = 4096;

/// Listens on `address`.
///
/// # Errors
///
/// The address is in use, not of this machine, or not allowed.
pub(crate) fn bind(address: SocketAddr, config: &Tcp) -> io::Result<TcpListener> {
    TcpListener::from_std(listen(address, config)?.into())
}

/// Checks whether [`bind`] would work, outside of a runtime.
///
/// # Errors
///
/// As [`bind`].
pub(crate) fn check(address: SocketAddr, config: &Tcp) -> io::Result<()> {
    listen(address, config).map(drop)
}

fn listen(address: SocketAddr, config: &Tcp) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    tcp::tune(&socket, config)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}
