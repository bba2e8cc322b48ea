//! The unix socket for operators: only the user of the edge can connect, and the kernel tells who does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora::apps::ServerApp;
use pingora::protocols::l4::stream::Stream as Transport;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::limits::ThrottledLog;
use crate::net::descriptors::ADMIN_SOCKET_MAX;
use crate::net::exhaustion::Exhaustion;
use crate::net::owner_socket::OwnerSocket;
use crate::server::admin::access::Credentials;
use crate::server::listeners::{BoundedConfig, BoundedConnections};

/// Its name in errors.
pub(crate) const NAME: &str = "admin socket";

/// The limits of the socket.
pub(crate) const LIMITS: BoundedConfig = BoundedConfig {
    connections: ADMIN_SOCKET_MAX,
    lifetime: Duration::from_secs(30),
};

/// The pause after an accept failed for lack of descriptors.
const EXHAUSTION_PAUSE: Duration = Duration::from_millis(100);

/// A Pingora service that accepts on an [`OwnerSocket`], with an application for each connection.
pub(crate) struct SocketService<F> {
    /// Makes the application of a connection from this peer.
    app: F,
    socket: Option<OwnerSocket>,
    connections: Arc<BoundedConnections>,
}

impl<F> SocketService<F> {
    pub(crate) fn new(app: F, socket: OwnerSocket, connections: Arc<BoundedConnections>) -> Self {
        tracing::info!(path = %socket.file().path().display(), "admin socket");
        Self {
            app,
            socket: Some(socket),
            connections,
        }
    }
}

#[async_trait]
impl<A, F> Service for SocketService<F>
where
    A: ServerApp + Send + Sync + 'static,
    F: Fn(Credentials) -> A + Send + Sync + 'static,
{
    async fn start_service(
        &mut self,
        _none: Option<ListenFds>,
        shutdown: ShutdownWatch,
        _listeners_per_fd: usize,
    ) {
        let Some(socket) = self.socket.take() else {
            return;
        };
        let user = socket.user;
        let listener = match UnixListener::from_std(socket.socket) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "cannot listen on the admin socket"),
        };
        let (bounded, failures) = (&self.connections, ThrottledLog::new(Instant::now()));
        let mut connections = JoinSet::new();
        // It stays open until the process exits.
        loop {
            let accepted = tokio::select! {
                biased;
                Some(_) = connections.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let Some(peer) = peer_of(&stream, user) else {
                        continue;
                    };
                    let serving = serve((self.app)(peer), stream, shutdown.clone());
                    connections.spawn(Arc::clone(bounded).run(serving));
                }
                Err(error) => {
                    if let Some(times) = failures.note(Instant::now()) {
                        tracing::error!(%error, times, "cannot accept on the admin socket");
                    }
                    if Exhaustion::of(&error).is_some() {
                        tokio::time::sleep(EXHAUSTION_PAUSE).await;
                    }
                }
            }
        }
    }

    fn name(&self) -> &str {
        "admin socket"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}

/// The process at the other side, if the kernel can tell.
fn peer_of(stream: &UnixStream, own_user: u32) -> Option<Credentials> {
    match stream.peer_cred() {
        Ok(peer) => Some(Credentials {
            user: peer.uid(),
            process: peer.pid(),
            is_own_user: peer.uid() == own_user || peer.uid() == 0,
        }),
        Err(error) => {
            tracing::warn!(%error, "cannot tell who connects to the admin socket");
            None
        }
    }
}

async fn serve<A: ServerApp + Send + Sync + 'static>(
    app: A,
    stream: UnixStream,
    shutdown: ShutdownWatch,
) {
    let app = Arc::new(app);
    app.process_new(Box::new(Transport::from(stream)), &shutdown)
        .await;
}
