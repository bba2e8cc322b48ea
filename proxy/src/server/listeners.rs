//! Listening sockets: bound before anything else starts, and accepted on by the edge itself rather than by Pingora.
//!
//! So a port in use is one clear error at the start (Pingora would retry for half a minute), the real address is known when
//! the kernel chooses the port, and a connection is dispatched as a bare socket to the thread with the fewest tasks.

mod bounded;
mod opening;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::FutureExt;
use pingora::apps::ServerApp;
use pingora::protocols::Stream;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Timeouts;
use crate::limits::ThrottledLog;
use crate::net::accepted::Accepted;
use crate::net::exhaustion::Exhaustion;
pub(crate) use crate::server::listeners::bounded::{BoundedConfig, BoundedConnections};
pub(crate) use crate::server::listeners::opening::Opening;
use crate::server::workers::Workers;
use crate::upstream;

/// The pause after an accept failed for lack of descriptors, in which open connections may end.
const EXHAUSTION_PAUSE: Duration = Duration::from_millis(100);

/// The listen backlog; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;

/// A listening socket could not be created.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
pub struct BindError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

/// A listening socket.
#[derive(Debug)]
pub(crate) struct BoundListener {
    socket: std::net::TcpListener,
    /// The address in the configuration.
    pub(crate) requested: SocketAddr,
    /// The real address, also where port 0 was requested.
    pub(crate) address: SocketAddr,
    /// If it comes from another process: the options for its connections, to be set when it accepts here.
    options: Option<Timeouts>,
}

/// A second descriptor of a listening socket, for another process.
#[derive(Debug)]
pub(crate) struct SharedListener {
    pub(crate) requested: SocketAddr,
    pub(crate) address: SocketAddr,
    pub(crate) socket: OwnedFd,
}

impl BoundListener {
    /// Listens on `address`. Accepted sockets inherit keepalive, user timeout and `TCP_NODELAY` from it, which saves six system
    /// calls each.
    pub(crate) fn new(address: SocketAddr, timeouts: &Timeouts) -> Result<Self, BindError> {
        let listen = || -> io::Result<Self> {
            let socket = socket2::Socket::new(
                socket2::Domain::for_address(address),
                socket2::Type::STREAM,
                None,
            )?;
            socket.set_reuse_address(true)?;
            socket.set_nonblocking(true)?;
            socket.set_tcp_nodelay(true)?;
            upstream::set_keepalive(socket2::SockRef::from(&socket), timeouts)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            let socket = std::net::TcpListener::from(socket);
            Ok(Self {
                requested: address,
                address: socket.local_addr()?,
                socket,
                options: None,
            })
        };
        listen().map_err(|source| BindError { address, source })
    }

    /// Takes over a listening socket of another process, for `requested` in the configuration of this one.
    ///
    /// # Errors
    ///
    /// [`BindError`] if it is not listening on the address that it is said to.
    pub(crate) fn inherit(
        requested: SocketAddr,
        shared: SharedListener,
        timeouts: &Timeouts,
    ) -> Result<Self, BindError> {
        let take = || -> io::Result<Self> {
            let socket = socket2::Socket::from(shared.socket);
            let address = socket.local_addr()?.as_socket();
            if !socket.is_listener()? || address != Some(shared.address) {
                let why = "the socket from the running process does not listen there";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
            socket.set_nonblocking(true)?;
            Ok(Self {
                socket: socket.into(),
                requested,
                address: shared.address,
                options: Some(*timeouts),
            })
        };
        take().map_err(|source| BindError {
            address: requested,
            source,
        })
    }

    /// A second descriptor of it.
    ///
    /// # Errors
    ///
    /// [`BindError`] if there are no descriptors left.
    pub(crate) fn share(&self) -> Result<SharedListener, BindError> {
        let socket = self.socket.try_clone().map_err(|source| BindError {
            address: self.requested,
            source,
        })?;
        Ok(SharedListener {
            requested: self.requested,
            address: self.address,
            socket: socket.into(),
        })
    }

    /// Sets the options of a socket that comes from another process.
    fn set_options(&self) {
        let socket = socket2::SockRef::from(&self.socket);
        if let Some(timeouts) = &self.options
            && let Err(error) = upstream::set_keepalive(socket, timeouts)
        {
            tracing::warn!(address = %self.address, %error, "cannot set the options of a listener");
        }
    }

    /// Checks whether it could listen on `address`. An address in use is no error: the running edge may be using it.
    pub(crate) fn check(address: SocketAddr, timeouts: &Timeouts) -> Result<(), BindError> {
        match Self::new(address, timeouts) {
            Err(error) if error.source.kind() == io::ErrorKind::AddrInUse => Ok(()),
            bound => bound.map(drop),
        }
    }
}

/// A Pingora service that accepts on [`BoundListener`]s.
pub(crate) struct ListeningService<A> {
    name: &'static str,
    app: Arc<A>,
    bound: Vec<BoundListener>,
    threads: usize,
    bounded: Option<Arc<BoundedConnections>>,
    opening: Opening,
    closing: CancellationToken,
}

impl<A: ServerApp + Send + Sync + 'static> ListeningService<A> {
    /// Serves `app` on all of `bound` until `closing`, with `threads` of its own. `name` is also the listeners' name in the log.
    pub(crate) fn new(
        name: &'static str,
        app: A,
        bound: Vec<BoundListener>,
        threads: usize,
        closing: CancellationToken,
    ) -> Self {
        for BoundListener { address, .. } in &bound {
            tracing::info!(listener = name, %address, "listening");
        }
        Self {
            name,
            app: Arc::new(app),
            bound,
            threads,
            bounded: None,
            opening: Opening::at_once(),
            closing,
        }
    }

    /// Accepts only when `opening` says so.
    pub(crate) fn opened_by(self, opening: Opening) -> Self {
        Self { opening, ..self }
    }

    /// Limits the number of connections, and how long each may last.
    pub(crate) fn bounded(self, connections: Arc<BoundedConnections>) -> Self {
        Self {
            bounded: Some(connections),
            ..self
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
        let workers = Workers::start(self.name, self.threads);
        self.opening.opened().await;
        self.opening.expect(self.bound.len(), &workers);
        for (number, bound) in self.bound.drain(..).enumerate() {
            let dispatcher = Dispatcher {
                app: Arc::clone(&self.app),
                workers: workers.clone(),
                bounded: self.bounded.clone(),
                failures: ThrottledLog::new(Instant::now()),
                shutdown: shutdown.clone(),
                connections: TaskTracker::new(),
            };
            let accepting = dispatcher.accept_on(bound, self.opening.clone(), self.closing.clone());
            listening.spawn_on(accepting, workers.for_listener(number));
        }
        while listening.join_next().await.is_some() {}
        self.app.cleanup().await;
    }

    fn name(&self) -> &str {
        self.name
    }

    fn threads(&self) -> Option<usize> {
        Some(1) // Pingora's thread only waits for the service's own threads.
    }
}

/// Accepts on one listening socket, and dispatches the connections to the worker threads.
struct Dispatcher<A> {
    app: Arc<A>,
    workers: Workers,
    bounded: Option<Arc<BoundedConnections>>,
    /// Logs failed accepts.
    failures: ThrottledLog,
    shutdown: ShutdownWatch,
    /// They outlive the dispatcher: the drain closes them.
    connections: TaskTracker,
}

impl<A: ServerApp + Send + Sync + 'static> Dispatcher<A> {
    /// Accepts and dispatches connections until `closing`.
    async fn accept_on(self, bound: BoundListener, opening: Opening, closing: CancellationToken) {
        let address = bound.address;
        bound.set_options();
        let listener = match TcpListener::from_std(bound.socket) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%address, %error, "cannot listen"),
        };
        opening.note_accepting();
        loop {
            let accepting = AssertUnwindSafe(self.accept_all(&listener, address));
            match closing.run_until_cancelled(accepting.catch_unwind()).await {
                None => return,
                Some(Ok(never)) => match never {},
                // Without a restart, this listener would never accept again.
                Some(Err(_)) => tracing::error!(%address, "accept loop panicked, restarting it"),
            }
        }
    }

    async fn accept_all(&self, listener: &TcpListener, address: SocketAddr) -> Infallible {
        loop {
            let accepted = listener.accept().await;
            match accepted.and_then(|(socket, peer)| self.dispatch(socket, peer, address)) {
                Ok(()) => {}
                Err(error) if Exhaustion::of(&error).is_some() => {
                    if let Some(times) = self.failures.note(Instant::now()) {
                        tracing::error!(%address, %error, times, "cannot accept");
                    }
                    tokio::time::sleep(EXHAUSTION_PAUSE).await;
                }
                // The client was gone before its connection was accepted.
                Err(error) => {
                    tracing::debug!(%address, %error, "connection closed before it was accepted")
                }
            }
        }
    }

    /// Dispatches a connection to the thread with the fewest tasks.
    fn dispatch(
        &self,
        socket: TcpStream,
        peer: SocketAddr,
        listening: SocketAddr,
    ) -> io::Result<()> {
        let (app, shutdown) = (Arc::clone(&self.app), self.shutdown.clone());
        let worker = self.workers.least_busy();
        if let Some(bounded) = &self.bounded {
            let bounded = Arc::clone(bounded);
            // On this thread: such a listener has only one.
            let accepted = Accepted::new(socket, peer, listening);
            let serving = bounded.run(serve(app, shutdown, accepted));
            self.connections.spawn(serving);
            return Ok(());
        }
        if worker.id() == Handle::current().id() {
            let accepted = Accepted::new(socket, peer, listening);
            self.connections
                .spawn_on(serve(app, shutdown, accepted), worker);
            return Ok(());
        }
        let socket = socket.into_std()?;
        let serving = async move {
            match TcpStream::from_std(socket) {
                Ok(socket) => serve(app, shutdown, Accepted::new(socket, peer, listening)).await,
                // It cannot be registered with the runtime of its thread: the client sees it closed.
                Err(error) => tracing::debug!(%peer, %error, "cannot serve a connection"),
            }
        };
        self.connections.spawn_on(serving, worker);
        Ok(())
    }
}

/// Serves one connection to its end.
async fn serve<A: ServerApp + Send + Sync + 'static>(
    app: Arc<A>,
    shutdown: ShutdownWatch,
    accepted: Accepted,
) {
    let mut stream: Option<Stream> = Some(Box::new(accepted));
    while let Some(next) = stream.take() {
        stream = app.process_new(next, &shutdown).await;
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
        let first = BoundListener::new("127.0.0.1:0".parse().unwrap(), &timeouts()).unwrap();
        assert_ne!(first.address.port(), 0);
        let error = BoundListener::new(first.address, &timeouts())
            .unwrap_err()
            .to_string();
        let start = format!("cannot listen on {}: ", first.address);
        assert!(error.starts_with(&start), "{error}");
    }

    #[test]
    fn accepted_sockets_have_keepalive_nodelay_and_the_user_timeout() {
        let timeouts = timeouts();
        let bound = BoundListener::new("127.0.0.1:0".parse().unwrap(), &timeouts).unwrap();
        let _client = std::net::TcpStream::connect(bound.address).unwrap();
        bound.socket.set_nonblocking(false).unwrap();
        let (accepted, _) = bound.socket.accept().unwrap();
        let options = socket2::SockRef::from(&accepted);
        assert!(options.keepalive().unwrap());
        assert!(options.tcp_nodelay().unwrap());
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
