//! Serves a client connection, from the listener to its end.
//!
//! Reads each request head of HTTP/1 itself, under one deadline and one size limit, and converts each stream of HTTP/2 to the same
//! form. All requests are served by the same engine ([`forward`](crate::request::forward)), which turns upgrades into tunnels.

mod head;
mod redirect;
mod strict;

use std::future::poll_fn;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use h2::ext::Protocol;
use http::{HeaderValue, Method};
use pingora::apps::ServerApp;
use pingora::protocols::{ALPN, Stream};
use pingora::server::ShutdownWatch;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use crate::config::Timeouts;
use crate::downstream::acceptor::Acceptor;
use crate::downstream::acceptor::Acceptors;
use crate::downstream::acceptor::Admission;
use crate::downstream::open_connections::{Connections, IdleEnd};
use crate::downstream::{
    Connection, Downstream, Http2, Http2Request, Http2Stream, IdleConnection, IdleState, ParkedIdle,
};
use crate::http::fields::Fields;
use crate::http::http1::{BodyLength, NotHttp1, RequestHead};
use crate::limits::Limit;
use crate::limits::Permits;
use crate::request::error::Rejection;
use crate::request::exchange::ProxyState;
use crate::request::forward::{CannotAdopt, Engine, Incoming, Upgrade};
use crate::server::app::head::HeadError;
use crate::server::app::head::HeadLimits;
#[cfg(any(fuzzing, test))]
pub(crate) use crate::server::app::head::parse_head;
use crate::server::app::redirect::Decision;
use crate::tunnel::BareSocket;

/// How long writing the last response of a connection may take.
const LAST_RESPONSE_WRITE: Duration = Duration::from_secs(1);

const WEBSOCKET: &str = "websocket";

/// The application of the client listeners: what every client connection needs.
pub(crate) struct EdgeApp {
    pub(crate) engine: Engine,
    pub(crate) http2: Http2,
    pub(crate) proxy: Arc<ProxyState>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) acceptors: Arc<Acceptors>,
    /// Bounds the connections over a limit that get a response before they are closed: each holds a task and a descriptor.
    pub(crate) over_limit: Arc<Semaphore>,
    pub(crate) timeouts: Timeouts,
    pub(crate) head_size: usize,
    /// `limits.headers`.
    pub(crate) headers: usize,
    pub(crate) websockets_over_http2: bool,
}

impl EdgeApp {
    /// Rejects a connection with a response, or without one if too many are being rejected at once.
    async fn reject_over_limit(&self, stream: Stream, limit: Limit) {
        if let Ok(_turn) = self.over_limit.try_acquire() {
            let peer = peer_of_stream(&stream);
            self.reject(Connection::new(stream), peer, Rejection::Limited(limit))
                .await;
        }
    }

    /// Sends an error response on a connection whose request cannot be served, and closes it.
    async fn reject(&self, mut client: Connection, peer: Option<IpAddr>, rejection: Rejection) {
        self.respond_unparsed(&mut client, peer, &Method::GET, rejection);
        // The client may not read the response in time, or at all.
        let _ = timeout(LAST_RESPONSE_WRITE, poll_fn(|cx| client.poll_flush(cx))).await;
        client.close().await;
    }

    /// Queues the error response to a request that could not be parsed, for the next flush.
    fn respond_unparsed(
        &self,
        client: &mut impl Downstream,
        peer: Option<IpAddr>,
        method: &Method,
        rejection: Rejection,
    ) {
        let error = rejection.to_string();
        let (head, body) = self.proxy.own_response(rejection);
        self.proxy.log_unread(peer, head.status.as_u16(), &error);
        client.own_response(&head, body, method, true);
    }

    /// The protocol that this request asks to upgrade to, if its route allows it.
    fn upgrade_to(&self, head_info: &head::CheckedHead) -> Option<String> {
        let requested = head_info.upgrade.as_ref()?;
        self.proxy.allowed_upgrade(
            requested.host.as_deref(),
            &requested.target,
            &requested.protocols,
        )
    }

    /// Serves one stream of HTTP/2.
    async fn serve_stream(&self, accepted: Http2Request) {
        let Http2Request {
            request,
            mut stream,
        } = accepted;
        match self.incoming(&request, &stream) {
            Ok((head, body, upgrade)) => {
                let incoming = Incoming {
                    client: stream,
                    head,
                    body,
                    upgrade,
                };
                // The connection goes on with its other streams.
                let _ = self.engine.serve(incoming).await;
            }
            Err(rejection) => {
                let peer = Some(stream.origin().0);
                self.respond_unparsed(&mut stream, peer, &request.method, rejection);
                let _ = timeout(LAST_RESPONSE_WRITE, poll_fn(|cx| stream.poll_flush(cx))).await;
            }
        }
    }

    /// Converts the request of an HTTP/2 stream to HTTP/1.
    fn incoming(
        &self,
        request: &http::request::Parts,
        stream: &Http2Stream,
    ) -> Result<(RequestHead, BodyLength, Option<Upgrade>), Rejection> {
        let wanted = request.extensions.get::<Protocol>();
        let is_websocket =
            wanted.is_some_and(|wanted| wanted.as_str().eq_ignore_ascii_case(WEBSOCKET));
        if request.method == Method::CONNECT && !(is_websocket && self.websockets_over_http2) {
            return Err(Rejection::MethodNotAllowed);
        }
        let mut head =
            RequestHead::of_http2(request, self.headers).map_err(|error| match error {
                NotHttp1::TooManyHeaders => Rejection::HeadTooLarge,
                NotHttp1::Padding => Rejection::Malformed("a header begins or ends with a space"),
                NotHttp1::Hosts => Rejection::Malformed("Host differs from :authority"),
                NotHttp1::Length => {
                    Rejection::Malformed("Content-Length is not a number, or is repeated")
                }
                NotHttp1::Header => Rejection::Malformed("a header is not valid in HTTP/1"),
            })?;
        if request.method != Method::CONNECT {
            // h2 ensures that the body has exactly the announced length (RFC 9113, 8.1.1).
            let length = head
                .text("content-length")
                .and_then(|length| length.parse().ok());
            let body = match stream.body_is_over() {
                true => BodyLength::Bytes(0),
                false => length.map_or(BodyLength::Chunked, BodyLength::Bytes),
            };
            return Ok((head, body, None));
        }
        let target = request
            .uri
            .path_and_query()
            .map_or("/", |target| target.as_str());
        let protocols = [WEBSOCKET.to_owned()];
        let allowed = self
            .proxy
            .allowed_upgrade(head.text("host"), target, &protocols);
        let protocol = allowed.ok_or(Rejection::MethodNotAllowed)?;
        // Its tunnel has a backend connection of its own, so it counts as a connection.
        let permit = self
            .proxy
            .gate
            .connection(Some(stream.origin().0), Instant::now());
        let connection = Permits::new(permit.map_err(Rejection::Limited)?, None);
        let key = STANDARD.encode(fastrand::u128(..).to_ne_bytes());
        head.make_websocket_upgrade(HeaderValue::from_str(&key).expect("base64 is text"));
        let upgrade = Upgrade {
            protocol,
            connection,
        };
        Ok((head, BodyLength::Bytes(0), Some(upgrade)))
    }

    /// Serves the requests of a connection, one after the other, until it ends or another process has it.
    async fn serve_requests(
        &self,
        mut client: Connection,
        acceptor: &Acceptor,
        mut permits: Option<Permits>,
        peer: Option<IpAddr>,
    ) {
        let mut may_be_parked = true;
        let limits = HeadLimits {
            deadline: self.timeouts.head,
            idle: self.timeouts.keepalive,
            size_max: self.head_size,
        };
        loop {
            let mut end = IdleEnd::Close;
            let ended = async { end = self.connections.idle_ended(may_be_parked).await };
            let head = match head::read(&mut client, limits, ended).await {
                Ok(head) => head,
                Err(HeadError::NoRequest | HeadError::Broken) => return,
                Err(HeadError::Drained) => {
                    let IdleEnd::Park(parking) = end else { return };
                    let Some(stays) = Box::pin(park(client, permits, parking)).await else {
                        return;
                    };
                    (client, permits) = stays;
                    may_be_parked = false;
                    continue;
                }
                Err(HeadError::Timeout) => {
                    self.reject(client, peer, Rejection::HeadTimeout).await;
                    return;
                }
                Err(HeadError::TooLarge) => {
                    self.reject(client, peer, Rejection::HeadTooLarge).await;
                    return;
                }
                Err(HeadError::LineTooLong) => {
                    self.reject(client, peer, Rejection::TargetTooLong).await;
                    return;
                }
            };
            let head_info = match head::parse_head(&mut client.ahead[..head], self.headers) {
                Ok(head_info) => head_info,
                Err(rejection) => {
                    self.reject(client, peer, rejection).await;
                    return;
                }
            };
            if let Some(port) = acceptor.redirect_to_https
                && let Some(rejection) = https_redirect(&client.ahead[..head], port)
            {
                self.reject(client, peer, rejection).await;
                return;
            }
            let upgrade = match self.upgrade_to(&head_info) {
                Some(protocol) => permits.take().map(|connection| Upgrade {
                    protocol,
                    connection,
                }),
                None => None,
            };
            let bytes = client.begin_request(head, head_info.body, head_info.head.version());
            let incoming = Incoming {
                client,
                head: head_info.head.with(bytes),
                body: head_info.body,
                upgrade,
            };
            // Boxed: most connections of a busy edge wait for a request, and their future is then small.
            let Some(next) = Box::pin(self.engine.serve(incoming)).await else {
                return;
            };
            client = next;
        }
    }

    /// Takes an idle connection of another process, to be continued on `runtime`. Nothing is read or written yet.
    ///
    /// # Errors
    ///
    /// [`CannotAdopt`]; its socket is as it was.
    pub(crate) fn adopt(
        self: &Arc<Self>,
        descriptor: OwnedFd,
        state: IdleState,
        permit_source: Option<u64>,
        runtime: &Handle,
    ) -> Result<AdoptedIdle, CannotAdopt> {
        let acceptor = self.acceptors.at(state.local);
        let acceptor = acceptor.filter(|it| it.is_tls() == state.tls.is_some());
        let acceptor = acceptor.ok_or(CannotAdopt::Listener)?;
        let permits = self.proxy.gate.adopt_connection(permit_source);
        let permits = permits.ok_or(CannotAdopt::Limit)?;
        // The socket is registered with it.
        let _runtime = runtime.enter();
        let peer = state.client.ip();
        let socket = BareSocket::from_descriptor(descriptor)?;
        let client = Connection::from_idle(IdleConnection { socket, state });
        Ok(AdoptedIdle {
            app: Arc::clone(self),
            client: client.ok_or(CannotAdopt::State)?,
            acceptor,
            permits,
            peer,
            runtime: runtime.clone(),
        })
    }
}

/// An idle connection of another process that can be continued here, and does not run yet. Dropped, it leaves its socket as it is.
pub(crate) struct AdoptedIdle {
    app: Arc<EdgeApp>,
    client: Connection,
    acceptor: Arc<Acceptor>,
    permits: Permits,
    peer: IpAddr,
    runtime: Handle,
}

impl AdoptedIdle {
    /// Runs it.
    pub(crate) fn start(self) {
        let Self {
            app,
            client,
            acceptor,
            permits,
            peer,
            runtime,
        } = self;
        let counted = app.connections.count();
        runtime.spawn(async move {
            let _counted = counted;
            app.serve_requests(client, &acceptor, Some(permits), Some(peer))
                .await;
        });
    }
}

/// Parks an idle connection, for another process to continue it; `None` when it does.
async fn park(
    client: Connection,
    permits: Option<Permits>,
    parking: mpsc::Sender<ParkedIdle>,
) -> Option<(Connection, Option<Permits>)> {
    let idle = match client.into_idle() {
        Ok(idle) => idle,
        Err(client) => return Some((*client, permits)),
    };
    let (parked, stays) = ParkedIdle::new(idle, permits);
    let _ = parking.send(parked).await; // An error: nobody takes connections any more, and it stays.
    let (idle, permits) = stays.await.ok()?;
    Some((Connection::from_idle(idle)?, permits))
}

/// The redirect of a plain HTTP request to https, unless it is to be served here.
fn https_redirect(head: &[u8], port: u16) -> Option<Rejection> {
    let Some((target, host)) = head::target(head) else {
        return Some(Rejection::Malformed("not an HTTP request"));
    };
    match redirect::decide(&target, host.as_deref(), port) {
        Decision::Serve => None,
        Decision::Redirect(location) => Some(Rejection::UseHttps(location)),
        Decision::Malformed => Some(Rejection::Malformed("no host to redirect to")),
    }
}

fn peer_of_stream(stream: &Stream) -> Option<IpAddr> {
    let digest = stream.get_socket_digest()?;
    digest.peer_addr()?.as_inet().map(|address| address.ip())
}

#[async_trait]
impl ServerApp for EdgeApp {
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        _shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let _counted = self.connections.count();
        let acceptor = self.acceptors.of(&stream)?;
        let from = peer_of_stream(&stream);
        let permit = match self.proxy.gate.connection(from, Instant::now()) {
            Ok(permit) => permit,
            Err(limit) => {
                // A client that expects TLS or sends a PROXY header first cannot read a response yet.
                if acceptor.is_plain_http() {
                    self.reject_over_limit(stream, limit).await;
                }
                return None;
            }
        };
        let (stream, address_permit) = match self.acceptors.admit(&acceptor, stream).await {
            Admission::Admitted { stream, permit } => (stream, permit),
            Admission::Rejected { stream, limit } => {
                drop(permit);
                self.reject_over_limit(stream, limit).await;
                return None;
            }
            Admission::Closed => return None,
        };
        let permits = Some(Permits::new(permit, address_permit));
        if matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
            let app = Arc::clone(self);
            let serve = |accepted| {
                let app = Arc::clone(&app);
                async move { app.serve_stream(accepted).await }
            };
            self.http2.serve(stream, serve).await;
            return None;
        }
        let peer = peer_of_stream(&stream);
        let client = Connection::new(stream);
        self.serve_requests(client, &acceptor, permits, peer).await;
        None
    }

    async fn cleanup(&self) {
        // Pingora's own clean-up would close connections with a request on its way: the drain closes them instead.
    }
}
