//! The listening socket, its connections, and how they end.
//!
//! Owns every connection's task, WebSockets included. Requests are dispatched in [`routing`]; the server API is in [`api`], the operators' paths in [`admin`].
//!
//! Invariant: a connection holds a permit of [`admission`] from the accept until its last task has ended, so the limits are
//! never exceeded.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::time;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;
use tracing::warn;

use crate::client::session::Session;
use crate::client::session::Sessions;
use crate::config::Drain;
use crate::config::Lead;
use crate::config::Limits;
use crate::config::Live;
use crate::hub::roster;
use crate::logging::Throttle;
use crate::metrics::Metrics;
use crate::protocol::disconnect::Disconnect;
use crate::server::admin::Admin;
use crate::server::memory_budget::Budget;
use crate::server::open_files::ConnectionLimits;
use crate::server::routing::Http;
use crate::server::routing::Purpose;
use crate::transport::websocket::WebSockets;

pub(crate) mod admin;
mod admission;
pub(crate) mod api;
mod connection;
mod listener;
pub(crate) mod memory_budget;
pub(crate) mod open_files;
mod operators;
pub(crate) mod routing;
pub(crate) mod tcp;

pub(crate) use listener::bind;
pub(crate) use listener::check;
pub(crate) use operators::AdminListener;

use admission::Admission;
use admission::Admitted;

/// The header with this node's id on every response.
pub(crate) const NODE: HeaderName = HeaderName::from_static("causeway-node");

/// How long accepting pauses when the process has no file descriptor left: until others close.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// How often a draining node checks whether all sessions were told that they are closed.
const DISCONNECT_POLL: Duration = Duration::from_millis(20);

/// The response to a connection over the limit, before it is closed.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\
    Connection: close\r\nContent-Length: 0\r\n\r\n";

/// What a server is built from.
pub(crate) struct ServerConfig {
    /// The node's id, as a header value.
    pub(crate) node_id: HeaderValue,
    /// Its limits.
    pub(crate) limits: Live<Limits>,
    /// The limits of connections.
    pub(crate) connections: ConnectionLimits,
    /// The limit of memory.
    pub(crate) budget: Arc<Budget>,
    /// How it stops.
    pub(crate) drain: Drain,
}

/// The services that respond to requests and serve clients.
pub(crate) struct Services {
    /// For load balancers.
    pub(crate) admin: Arc<Admin>,
    /// For clients.
    pub(crate) http: Http,
    /// For clients with a WebSocket.
    pub(crate) websockets: Arc<WebSockets>,
    /// For clients without.
    pub(crate) sessions: Vec<Arc<Sessions>>,
}

/// State that all connections share.
pub(crate) struct Server {
    config: ServerConfig,
    services: Services,
    admission: Admission,
    /// For the log lines about connections that cannot be accepted.
    accept_failures: Throttle,
    /// Every connection and every WebSocket.
    tasks: TaskTracker,
    /// Sessions are being closed: each response is the last of its connection.
    is_leaving: AtomicBool,
    /// Cancelled when the listener is closed: WebSockets are disconnected, and HTTP connections end after the
    /// current response.
    closing: CancellationToken,
}

/// How a server is told to stop.
pub(crate) struct Shutdown {
    /// Cancelled when it has to begin.
    pub(crate) draining: CancellationToken,
    /// Cancelled before that on Ctrl-C: probers are not waited for.
    pub(crate) interrupted: CancellationToken,
}

impl Server {
    /// A server without connections.
    pub(crate) fn new(
        config: ServerConfig,
        services: Services,
        metrics: Arc<Metrics>,
        closing: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            admission: Admission::new(config.connections, Arc::clone(&config.budget), metrics),
            accept_failures: Throttle::default(),
            config,
            services,
            tasks: TaskTracker::new(),
            is_leaving: AtomicBool::new(false),
            closing,
        })
    }

    /// Replaces the limits, except for the number of connections.
    pub(crate) fn reload(&self, limits: Limits) {
        self.config.limits.set(limits);
    }

    /// Serves the clients' requests.
    pub(crate) fn http(&self) -> &Http {
        &self.services.http
    }

    /// Accepts connections until `shutdown`, then for as long as the edges need to notice it and sessions over
    /// HTTP to be closed: a client between two polls has to make another request. Then disconnects all others
    /// and waits for their connections to end.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future closes the listener; connections continue until the runtime ends.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener, shutdown: Shutdown) {
        let end = tokio::select! {
            biased;
            end = self.send_sessions_away(&shutdown) => end,
            never = self.accept_all(&listener) => match never {},
        };
        drop(listener); // New connections are refused while clients are disconnected.
        self.drain(end).await;
    }

    /// Waits for `shutdown` and the lead, closes all sessions over HTTP and gives their clients time to make
    /// another request. Returns when the drain has to end.
    async fn send_sessions_away(&self, shutdown: &Shutdown) -> Instant {
        shutdown.draining.cancelled().await;
        let drain = &self.config.drain;
        info!(
            lead = %drain.lead,
            "draining: not ready from now on, clients are disconnected after the lead"
        );
        match drain.lead {
            Lead::Fixed(lead) => time::sleep(lead).await,
            Lead::UntilProbersKnow { .. } if shutdown.interrupted.is_cancelled() => {}
            Lead::UntilProbersKnow { max } => {
                self.services.admin.wait_until_probers_know(max).await;
            }
        }
        let start = Instant::now();
        self.is_leaving.store(true, Ordering::Relaxed);
        let tables = &self.services.sessions;
        self.hand_sessions_off().await;
        for table in tables {
            table.close_new(Disconnect::RESTART);
        }
        let close = |session: &Arc<Session>| session.close(Disconnect::RESTART);
        let spread = drain.spread.min(drain.timeout / 4);
        roster::evenly(self.sessions(), spread, close).await;
        // WebSockets need their time too.
        let end = start + drain.timeout / 2;
        while tables.iter().any(|table| table.has_unsent_close()) && Instant::now() < end {
            time::sleep(DISCONNECT_POLL).await;
        }
        start + drain.timeout
    }

    /// Has the receivers of sessions end, so that edges have the sessions handed off at the next request, and waits for that: until
    /// no session is left whose client comes by an edge, or none has left for a while, and for a quarter of the drain at most.
    async fn hand_sessions_off(&self) {
        let drain = &self.config.drain;
        let end = Instant::now() + drain.timeout / 4;
        for table in &self.services.sessions {
            table.send_new_away();
        }
        let spread = drain.spread.min(drain.timeout / 8);
        roster::evenly(self.sessions(), spread, |session| session.send_away()).await;
        let left = || {
            let all = self.sessions().into_iter();
            all.filter(|session| session.can_be_handed_off()).count()
        };
        roster::wait_while_fewer(left, end - Instant::now()).await;
    }

    /// All sessions over HTTP.
    fn sessions(&self) -> Vec<Arc<Session>> {
        let tables = self.services.sessions.iter();
        tables.flat_map(|table| table.all()).collect()
    }

    async fn accept_all(self: &Arc<Self>, listener: &TcpListener) -> Infallible {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => self.admit(stream, peer),
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => {
                    if let Some(held_back) = self.accept_failures.admit(std::time::Instant::now()) {
                        warn!(%error, held_back, "cannot accept connections, retrying");
                    }
                    time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }

    fn admit(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let admitted = self.admission.admit();
        let connection = connection::run(Arc::clone(self), stream, peer, admitted);
        self.tasks.spawn(connection);
    }

    /// Rejects a connection before its first request.
    fn evict(&self, stream: &TcpStream, admitted: &Admitted) {
        self.admission.evicted(admitted);
        refuse(stream);
    }

    /// The purpose of a request.
    fn purpose(&self, path: &str, headers: &HeaderMap) -> Purpose {
        if Admin::is_probe(path) {
            return Purpose::Operator;
        }
        self.services.http.purpose(path, headers)
    }

    async fn drain(&self, end: Instant) {
        info!(
            connections = self.tasks.len(),
            "draining: the listener is closed"
        );
        self.closing.cancel();
        self.tasks.close();
        if time::timeout_at(end, self.tasks.wait()).await.is_err() {
            let timeout = self.config.drain.timeout;
            warn!(
                connections = self.tasks.len(),
                ?timeout,
                "drain timed out, closing the remaining connections"
            );
        }
    }

    /// Sets the headers that name the node and mark it as stopping; returns whether the connection may be
    /// kept.
    fn sign(&self, headers: &mut HeaderMap) -> bool {
        headers.insert(NODE, self.config.node_id.clone());
        self.services.admin.announce_drain(headers);
        !self.is_leaving.load(Ordering::Relaxed)
    }
}

/// Sends a peer the response that there are too many connections. Best effort: a new socket has room for it, and
/// it is not waited for.
fn refuse(stream: &TcpStream) {
    // Without tokio, which has not polled the socket yet and does not know that it is writable.
    let socket = SockRef::from(stream);
    let _ = socket.send(FULL);
    let _ = socket.shutdown(std::net::Shutdown::Write);
}

/// Whether `accept` failed because of one connection, and not for lack of resources.
fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}
