//! Listening sockets: bound by us before anything else starts, and accepted on by us.
//!
//! So a port in use is one clear error at the start (Pingora would retry for half a minute), the real address is known when
//! the port is the kernel's choice, and a connection comes as the bare socket that it is.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::apps::ServerApp;
use pingora::protocols::Stream;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accepted::Accepted;
use crate::config::Timeouts;
use crate::shortage::Shortage;
use crate::upstream;

/// How long nothing is accepted while there are no descriptors: some of what is open ends meanwhile.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

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

/// A service of Pingora's server that accepts on sockets of ours.
pub(crate) struct ListeningService<A> {
    name: &'static str,
    app: Arc<A>,
    bound: Vec<Bound>,
    closing: CancellationToken,
}

impl<A: ServerApp + Send + Sync + 'static> ListeningService<A> {
    /// Serves `app` on all of `bound` until `closing`. `name` is also what the log calls these listeners.
    pub(crate) fn new(
        name: &'static str,
        app: A,
        bound: Vec<Bound>,
        closing: CancellationToken,
    ) -> Self {
        for Bound { address, .. } in &bound {
            tracing::info!(listener = name, %address, "listening");
        }
        Self {
            name,
            app: Arc::new(app),
            bound,
            closing,
        }
    }
}

#[async_trait]
impl<A: ServerApp + Send + Sync + 'static> Service for ListeningService<A> {
    async fn start_service(
        &mut self,
        _none: Option<ListenFds>,
        shutdown: ShutdownWatch,
        _listeners_per_fd: usize,
    ) {
        let mut listening = JoinSet::new();
        for bound in self.bound.drain(..) {
            let (app, closing) = (Arc::clone(&self.app), self.closing.clone());
            listening.spawn(accept(bound, app, closing, shutdown.clone()));
        }
        listening.join_all().await;
        self.app.cleanup().await;
    }

    fn name(&self) -> &str {
        self.name
    }
}

/// Serves what comes on one listening socket, until `closing`.
async fn accept<A: ServerApp + Send + Sync + 'static>(
    bound: Bound,
    app: Arc<A>,
    closing: CancellationToken,
    shutdown: ShutdownWatch,
) {
    let address = bound.address;
    let listener = match tokio::net::TcpListener::from_std(bound.socket) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%address, %error, "cannot listen"),
    };
    // Connections outlive it: the drain sees to their end.
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = closing.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, peer)) => {
                // Without it, a connection that is gone already is the worst that can be.
                let _ = socket.set_nodelay(true);
                let (app, shutdown) = (Arc::clone(&app), shutdown.clone());
                connections.spawn(async move {
                    let mut stream: Option<Stream> = Some(Box::new(Accepted::new(socket, peer)));
                    while let Some(next) = stream.take() {
                        stream = app.process_new(next, &shutdown).await;
                    }
                });
            }
            Err(error) if Shortage::of(&error).is_some() => {
                tracing::error!(%address, %error, "cannot accept");
                tokio::time::sleep(SHORTAGE_PAUSE).await;
            }
            // It was gone before it was accepted.
            Err(error) => tracing::debug!(%address, %error, "a connection was lost"),
        }
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
