//! Socket options of client connections.
//!
//! Linux gives the options of a listening socket to every connection that it accepts, so they are set
//! once and cost no system calls later.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::SockRef;
use socket2::TcpKeepalive;

use crate::config::Tcp;

/// Sets the options of a socket and of all connections that it will accept.
///
/// # Errors
///
/// The kernel refuses a value.
pub(crate) fn tune(socket: &impl AsFd, config: &Tcp) -> io::Result<()> {
    let socket = SockRef::from(socket);
    // A frame is whole when it is written: there is nothing to wait for.
    socket.set_tcp_nodelay(true)?;
    // Else the kernel lets it grow to megabytes for a client that does not read.
    socket.set_send_buffer_size(config.send_buffer_bytes)?;
    let keepalive = TcpKeepalive::new()
        .with_time(config.keepalive)
        .with_interval((config.keepalive / 4).max(Duration::from_secs(1)));
    socket.set_tcp_keepalive(&keepalive)?;
    // Without it, bytes that are not acknowledged keep a dead connection for a quarter of an hour.
    socket.set_tcp_user_timeout(Some(config.user_timeout))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn a_connection_has_every_option_of_its_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = Tcp {
            keepalive: Duration::from_secs(1),
            user_timeout: Duration::from_secs(30),
            send_buffer_bytes: 64 << 10,
        };
        tune(&listener, &config).unwrap();
        let (_peer, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (stream, _) = accepted.unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        // The kernel doubles it for its own bookkeeping.
        assert_eq!(socket.send_buffer_size().unwrap(), 128 << 10);
        assert_eq!(
            socket.tcp_user_timeout().unwrap(),
            Some(config.user_timeout)
        );
    }
}
