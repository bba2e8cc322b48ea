//! A client connection, from the listener to its end.
//!
//! Reads each request head of HTTP/1 itself, under one deadline and one size, and takes each stream of HTTP/2 for a request as
//! good. All of them are served by the same engine ([`forward`](crate::request::forward)); upgrades that a route allows leave as tunnels.

mod head;
mod redirect;
mod strict;

use std::future::poll_fn;
use std::net::IpAddr;
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
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::config::Timeouts;
use crate::downstream::acceptor::Admission;
use crate::downstream::acceptor::Entrances;
use crate::downstream::open_connections::Connections;
use crate::downstream::{Accepted, BodyLength, Connection, Downstream, Http2, Http2Stream};
use crate::http::fields::Fields;
use crate::http::http1::{NotHttp1, RequestHead};
use crate::limits::Limit;
use crate::limits::Pass;
use crate::request::error::Rejection;
use crate::request::exchange::ProxyState;
use crate::request::forward::{Engine, Incoming, Upgrade};
use crate::server::app::head::HeadError;
use crate::server::app::head::HeadLimits;
#[cfg(any(fuzzing, test))]
pub(crate) use crate::server::app::head::shape;
use crate::server::app::redirect::Fate;

/// How long the response to a connection that is closed may take to be written.
const ANSWER_WRITE: Duration = Duration::from_secs(1);

const WEBSOCKET: &str = "websocket";

/// What every client connection needs.
pub(crate) struct EdgeApp {
    pub(crate) engine: Engine,
    pub(crate) http2: Http2,
    pub(crate) proxy: Arc<ProxyState>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) entrances: Arc<Entrances>,
    /// Bounds the connections over a limit that are told so: each holds a task and a descriptor meanwhile.
    pub(crate) over_limit: Arc<Semaphore>,
    pub(crate) timeouts: Timeouts,
    pub(crate) head_size: usize,
    /// `limits.headers`.
    pub(crate) headers: usize,
    pub(crate) websockets_over_http2: bool,
}

impl EdgeApp {
    /// Tells a connection that there is too much of its kind, if not too many are being told that.
    async fn turn_away(&self, stream: Stream, limit: Limit) {
        if let Ok(_turn) = self.over_limit.try_acquire() {
            let peer = peer_of_stream(&stream);
            self.reject(Connection::new(stream), peer, Rejection::Limited(limit))
                .await;
        }
    }

    /// Answers a connection whose request cannot be served, and closes it.
    async fn reject(&self, mut client: Connection, peer: Option<IpAddr>, rejection: Rejection) {
        self.answer_unread(&mut client, peer, &Method::GET, rejection);
        // Whoever does not take the response has lost it.
        let _ = timeout(ANSWER_WRITE, poll_fn(|cx| client.poll_flush(cx))).await;
        client.close().await;
    }

    /// Has the response to what could not be read as a request go out with the next flush.
    fn answer_unread(
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

    /// The upgrade that the route of this request lets through, if it wishes for one.
    fn upgrade_to(&self, shape: &head::Shape) -> Option<String> {
        let wish = shape.upgrade.as_ref()?;
        self.proxy
            .allowed_upgrade(wish.host.as_deref(), &wish.target, &wish.protocols)
    }

    /// Serves one stream of HTTP/2.
    async fn serve_stream(&self, accepted: Accepted) {
        let Accepted {
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
                // Its connection carries others as it is.
                let _ = self.engine.serve(incoming).await;
            }
            Err(rejection) => {
                let peer = Some(stream.origin().0);
                self.answer_unread(&mut stream, peer, &request.method, rejection);
                let _ = timeout(ANSWER_WRITE, poll_fn(|cx| stream.poll_flush(cx))).await;
            }
        }
    }

    /// What a stream of HTTP/2 asks for, as a request of HTTP/1 says it.
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
                NotHttp1::Hosts => Rejection::Malformed("the host is not the one in :authority"),
                NotHttp1::Length => {
                    Rejection::Malformed("the length is not a number, or said twice")
                }
                NotHttp1::Header => Rejection::Malformed("a header that cannot be passed on"),
            })?;
        if request.method != Method::CONNECT {
            // The stream carries neither more nor less than it says (RFC 9113, 8.1.1).
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
        // Its tunnel has a descriptor of its own, as that of a connection has.
        let permit = self
            .proxy
            .gate
            .connection(Some(stream.origin().0), Instant::now());
        let connection = Pass::new(permit.map_err(Rejection::Limited)?, None);
        let key = STANDARD.encode(fastrand::u128(..).to_ne_bytes());
        head.make_websocket_upgrade(HeaderValue::from_str(&key).expect("base64 is text"));
        let upgrade = Upgrade {
            protocol,
            connection,
        };
        Ok((head, BodyLength::Bytes(0), Some(upgrade)))
    }
}

/// Where a plain request is sent, unless it is to be served here.
fn elsewhere(head: &[u8], port: u16) -> Option<Rejection> {
    let Some((target, host)) = head::target(head) else {
        return Some(Rejection::Malformed("not HTTP"));
    };
    match redirect::fate(&target, host.as_deref(), port) {
        Fate::Serve => None,
        Fate::Redirect(location) => Some(Rejection::UseHttps(location)),
        Fate::Malformed => Some(Rejection::Malformed("no host to redirect to")),
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
        let entrance = self.entrances.of(&stream)?;
        let from = peer_of_stream(&stream);
        let permit = match self.proxy.gate.connection(from, Instant::now()) {
            Ok(permit) => permit,
            Err(limit) => {
                // Whoever expects TLS would not understand an answer.
                if entrance.is_open() {
                    self.turn_away(stream, limit).await;
                }
                return None;
            }
        };
        let (stream, place) = match self.entrances.admit(&entrance, stream).await {
            Admission::Granted { stream, place } => (stream, place),
            Admission::Refused { stream, limit } => {
                drop(permit);
                self.turn_away(stream, limit).await;
                return None;
            }
            Admission::Closed => return None,
        };
        let mut pass = Some(Pass::new(permit, place));
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
        let mut client = Connection::new(stream);
        let limits = HeadLimits {
            deadline: self.timeouts.head,
            idle: self.timeouts.keepalive,
            size_max: self.head_size,
        };
        loop {
            let head = match head::read(&mut client, limits, self.connections.too_late()).await {
                Ok(head) => head,
                Err(HeadError::Silent | HeadError::Broken) => return None,
                Err(HeadError::Timeout) => {
                    self.reject(client, peer, Rejection::HeadTimeout).await;
                    return None;
                }
                Err(HeadError::TooLarge) => {
                    self.reject(client, peer, Rejection::HeadTooLarge).await;
                    return None;
                }
                Err(HeadError::LineTooLong) => {
                    self.reject(client, peer, Rejection::TargetTooLong).await;
                    return None;
                }
            };
            let shape = match head::shape(&mut client.ahead[..head], self.headers) {
                Ok(shape) => shape,
                Err(rejection) => {
                    self.reject(client, peer, rejection).await;
                    return None;
                }
            };
            if let Some(port) = entrance.redirect_to_https
                && let Some(rejection) = elsewhere(&client.ahead[..head], port)
            {
                self.reject(client, peer, rejection).await;
                return None;
            }
            let upgrade = match self.upgrade_to(&shape) {
                Some(protocol) => pass.take().map(|connection| Upgrade {
                    protocol,
                    connection,
                }),
                None => None,
            };
            let bytes = client.begin_request(head, shape.body, shape.head.version());
            let incoming = Incoming {
                client,
                head: shape.head.with(bytes),
                body: shape.body,
                upgrade,
            };
            // A future of its own: most connections of a busy edge wait for a request.
            client = Box::pin(self.engine.serve(incoming)).await?;
        }
    }

    async fn cleanup(&self) {
        // Pingora's own clean-up would cut connections whose request is on its way: the drain ends them.
    }
}
