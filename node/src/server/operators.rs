//! The admin listener: requests of operators, on a separate port.
//!
//! A connection carries one request and has a maximum lifetime. Above a small limit the oldest is closed, so that idle ones use up
//! no descriptors and do not block operators.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use http::HeaderValue;
use http::Request;
use http::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::task::JoinSet;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tracing::warn;

use crate::logging::Throttle;
use crate::server::ACCEPT_BACKOFF;
use crate::server::NODE;
use crate::server::admin::Admin;
use crate::server::admin::Asked;
use crate::server::is_about_one_connection;
use crate::transport::Body;

/// As many as the admin listener of the edge has.
const CONNECTIONS_MAX: usize = 32;
const LIFETIME: Duration = Duration::from_secs(30);

/// The smallest buffer that hyper accepts: larger heads are rejected.
const HEAD_BYTES_MAX: usize = 8 << 10;

/// Serves operators.
pub(crate) struct AdminListener {
    pub(crate) listener: TcpListener,
    pub(crate) admin: Arc<Admin>,
    /// The node's id, as a header value.
    pub(crate) node_id: HeaderValue,
}

impl AdminListener {
    /// Accepts connections until `shutdown`, which ends them as well.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future closes the listener and all connections.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let accept_failures = Throttle::default();
        let mut connections = JoinSet::new();
        let mut open: VecDeque<AbortHandle> = VecDeque::new();
        loop {
            let accepted = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                Some(_) = connections.join_next() => continue, // A panic is logged by the panic hook.
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    open.retain(|connection| !connection.is_finished());
                    if CONNECTIONS_MAX <= open.len()
                        && let Some(oldest) = open.pop_front()
                    {
                        oldest.abort();
                    }
                    let (admin, node_id) = (Arc::clone(&self.admin), self.node_id.clone());
                    let serving = time::timeout(LIFETIME, serve(admin, node_id, stream, peer));
                    open.push_back(connections.spawn(async move {
                        if serving.await.is_err() {
                            debug!(%peer, "connection to the admin listener closed: maximum lifetime reached");
                        }
                    }));
                }
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => {
                    if let Some(held_back) = accept_failures.admit(Instant::now()) {
                        warn!(%error, held_back, listener = "admin", "cannot accept connections, retrying");
                    }
                    time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }
}

async fn serve(admin: Arc<Admin>, node_id: HeaderValue, stream: TcpStream, peer: SocketAddr) {
    let service = service_fn(async |request: Request<Incoming>| {
        let mut response: Response<Body> = admin.respond(&Asked {
            method: request.method(),
            path: request.uri().path(),
            headers: request.headers(),
            peer: peer.ip(),
        });
        response.headers_mut().insert(NODE, node_id.clone());
        admin.announce_drain(response.headers_mut());
        Ok::<_, Infallible>(response)
    });
    let served = http1::Builder::new()
        .keep_alive(false)
        .header_read_timeout(None) // The connection has a lifetime.
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        debug!(%peer, %error, "connection to the admin listener ended");
    }
}
