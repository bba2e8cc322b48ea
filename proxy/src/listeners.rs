//! Listening sockets: bound by us before anything else starts, and given to Pingora as descriptors.
//!
//! So a port in use is one clear error at the start (Pingora would retry for half a minute), the real address is known when
//! the port is the kernel's choice, and sockets can be handed to a successor.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::apps::ServerApp;
use pingora::listeners::{L4BufferSettings, ListenerConfig};
use pingora::server::{Fds, ListenFds, ShutdownWatch};
use pingora::services::{Service, listening};
use tokio::sync::watch;

use crate::config::Timeouts;
use crate::upstream;

/// Connections that wait to be accepted, before the kernel cuts it down to `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;

/// A listening socket could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
pub struct BindError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

/// A socket that listens already.
#[derive(Debug)]
pub(crate) struct Bound {
    socket: TcpListener,
    /// The real one, also where port 0 was asked for.
    pub(crate) address: SocketAddr,
}

impl Bound {
    /// Listens on `address`. What it accepts inherits how the kernel watches over it, which spares five calls each.
    pub(crate) fn new(address: SocketAddr, timeouts: &Timeouts) -> Result<Self, BindError> {
        let listen = || -> io::Result<Self> {
            let socket = socket2::Socket::new(
                socket2::Domain::for_address(address),
                socket2::Type::STREAM,
                None,
            )?;
            socket.set_reuse_address(true)?;
            socket.set_nonblocking(true)?;
            upstream::watch_over(socket2::SockRef::from(&socket), timeouts)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            let socket = TcpListener::from(socket);
            Ok(Self {
                address: socket.local_addr()?,
                socket,
            })
        };
        listen().map_err(|source| BindError { address, source })
    }
}

/// A Pingora service that accepts on sockets of ours.
pub(crate) struct ListeningService<A> {
    inner: listening::Service<A>,
    descriptors: ListenFds,
    /// A shutdown that never comes, for listeners that outlive Pingora's.
    never: Option<watch::Sender<bool>>,
}

impl<A: ServerApp + Send + Sync + 'static> ListeningService<A> {
    /// Serves `app` on all of `bound`. `name` is also what the log calls these listeners.
    pub(crate) fn new(name: &'static str, app: A, bound: Vec<Bound>) -> Self {
        let mut inner = listening::Service::new(name.to_owned(), app);
        let mut descriptors = Fds::new();
        for Bound { socket, address } in bound {
            tracing::info!(listener = name, %address, "listening");
            // Pingora finds a descriptor by the text of its address, and owns it from then on.
            descriptors.add(address.to_string(), socket.into_raw_fd());
            inner.add_listener(
                ListenerConfig::tcp(address.to_string()).l4_buffer(L4BufferSettings::unbuffered()),
            );
        }
        Self {
            inner,
            descriptors: Arc::new(Mutex::new(descriptors)),
            never: None,
        }
    }
}

impl<A> ListeningService<A> {
    /// Goes on listening while the edge drains.
    pub(crate) fn until_the_process_ends(mut self) -> Self {
        self.never = Some(watch::Sender::new(false));
        self
    }
}

#[async_trait]
impl<A: ServerApp + Send + Sync + 'static> Service for ListeningService<A> {
    async fn start_service(
        &mut self,
        _none: Option<ListenFds>,
        shutdown: ShutdownWatch,
        listeners_per_fd: usize,
    ) {
        let shutdown = self
            .never
            .as_ref()
            .map_or(shutdown, watch::Sender::subscribe);
        Service::start_service(
            &mut self.inner,
            Some(Arc::clone(&self.descriptors)),
            shutdown,
            listeners_per_fd,
        )
        .await;
    }

    fn name(&self) -> &str {
        Service::name(&self.inner)
    }

    fn threads(&self) -> Option<usize> {
        self.inner.threads
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn timeouts() -> Timeouts {
        let text = "pools: [{name: p, backends: [{id: a, address: 127.0.0.1:1}]}]\nroutes: [{path: /, pool: p}]\n";
        Config::parse("test.yaml", text).unwrap().timeouts
    }

    #[test]
    fn a_port_in_use_is_an_error_at_once_that_names_it() {
        let first = Bound::new("127.0.0.1:0".parse().unwrap(), &timeouts()).unwrap();
        assert_ne!(first.address.port(), 0);
        let error = Bound::new(first.address, &timeouts())
            .unwrap_err()
            .to_string();
        let start = format!("cannot listen on {}: ", first.address);
        assert!(error.starts_with(&start), "{error}");
    }

    #[test]
    fn what_is_accepted_is_watched_over_by_the_kernel() {
        let timeouts = timeouts();
        let bound = Bound::new("127.0.0.1:0".parse().unwrap(), &timeouts).unwrap();
        let _client = std::net::TcpStream::connect(bound.address).unwrap();
        bound.socket.set_nonblocking(false).unwrap();
        let (accepted, _) = bound.socket.accept().unwrap();
        let options = socket2::SockRef::from(&accepted);
        assert!(options.keepalive().unwrap());
        assert_eq!(
            options.tcp_keepalive_time().unwrap(),
            timeouts.tcp_keepalive
        );
        assert_eq!(
            options.tcp_user_timeout().unwrap(),
            Some(timeouts.tcp_user_timeout)
        );
    }
}
