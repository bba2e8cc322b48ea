//! The edge as part of another Pingora server: implements the phases of Pingora's proxy with the decisions of [`ProxyState`].
//!
//! Pingora reads the requests, HTTP/1 and HTTP/2, and forwards their bodies; the decisions are made by the same functions as for the
//! requests of the edge's own listeners. Upgrades are detached from Pingora here, and served by the same engine.

mod detach;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::TRANSFER_ENCODING;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::prelude::{HttpPeer, Result};
use pingora::protocols::http::ServerSession;
use pingora::{Error, ErrorSource, ErrorType, RetryType};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};

use crate::config::Timeouts;
use crate::downstream::open_connections::ConnectionGuard;
use crate::downstream::open_connections::Connections;
use crate::http::fields::Fields;
use crate::http::http1::{BadResponse, ResponseHeadError, ResponseLimits, settle_framing};
use crate::http::scheme::Scheme;
use crate::limits::Limit;
use crate::request::error::Rejection;
use crate::request::exchange::{AttemptError, Exchange, NewSession, Outcome, ProxyState, Replay};
use crate::request::forward::{Engine, STALE_MAX};
use crate::request::proxy_http::detach::{UpgradeOutcome, detach_upgrade};
#[cfg(any(fuzzing, test))]
pub(crate) use crate::request::proxy_http::detach::{has_no_body, requested_upgrades};
use crate::upstream::AddressCursor;
use crate::upstream::DialError;
use crate::upstream::Dialer;

/// How long discarding the rest of an unused request body may take before its connection is closed.
const BODY_REST: Duration = Duration::from_secs(5);

/// How long, and for how many bytes, a client may continue to send after the response that its body is too large.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 * 1024;

/// How often a parked or queued request with an unread body checks whether its client is still connected.
const CLIENT_CHECK: Duration = Duration::from_secs(1);

/// The edge as a Pingora proxy, made by [`Plugin`](crate::Plugin), whose documentation says how to use it.
pub struct Edge {
    pub(crate) proxy: Arc<ProxyState>,
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) timeouts: Timeouts,
    pub(crate) head_size: usize,
    pub(crate) response_limits: ResponseLimits,
    /// Serves upgrades.
    pub(crate) engine: Engine,
}

/// The state of one request across the phases.
#[derive(Default)]
pub struct RequestContext {
    /// `None` until it is admitted.
    exchange: Option<Exchange>,
    /// The error response, once that is decided.
    rejection: Option<Rejection>,
    /// The position in the addresses of the backend, for the current attempt.
    cursor: AddressCursor,
    /// Whether the attempt continues with the next address.
    try_next_address: bool,
    /// How many idle connections turned out to be closed.
    stale: usize,
    /// Whether the connection was detached from Pingora, for an upgrade.
    is_detached: bool,
    /// Delays the end of a drain for as long as the request lasts.
    counted: Option<ConnectionGuard>,
    /// Inspects the response body before it is sent to the client.
    new_session: Option<NewSession>,
}

impl RequestContext {
    /// Whether the request was an upgrade whose connection was detached from Pingora.
    ///
    /// The remaining session has the head of the request and the address of the client, and no response. The tunnel, if there is
    /// one, continues; the edge itself writes its line in the access log.
    #[must_use]
    pub fn is_detached(&self) -> bool {
        self.is_detached
    }

    /// The former name of [`RequestContext::is_detached`].
    #[must_use]
    #[deprecated = "renamed to `is_detached`"]
    pub fn taken_over(&self) -> bool {
        self.is_detached
    }
}

/// Why there is no peer for the next attempt.
enum NoPeer {
    Rejected(Rejection),
    /// The client has disconnected.
    ClientDisconnected,
}

impl Edge {
    async fn reject(&self, downstream: &mut Session, rejection: Rejection) -> Result<()> {
        let too_large = rejection == Rejection::Limited(Limit::BodySize);
        if too_large || matches!(rejection, Rejection::Malformed(_)) {
            downstream.set_keepalive(None);
        }
        let (head, body) = self.proxy.own_response(rejection);
        downstream.write_response_header(head, false).await?;
        downstream.write_response_body(Some(body), true).await?;
        if too_large {
            linger(downstream).await;
        }
        Ok(())
    }

    /// Chooses backends until one has an address to connect to. Waits while the request is parked or queued.
    async fn next_peer(
        &self,
        downstream: &mut Session,
        exchange: &mut Exchange,
        cursor: &mut AddressCursor,
        try_next_address: bool,
    ) -> Result<HttpPeer, NoPeer> {
        let mut backend = exchange
            .backend()
            .filter(|_| try_next_address)
            .map(Arc::clone);
        loop {
            let backend = match backend.take() {
                Some(backend) => backend,
                None => {
                    *cursor = AddressCursor::default();
                    if exchange.is_parked() {
                        tokio::select! {
                            biased;
                            due = self.proxy.attempt_due(exchange) => due.map_err(NoPeer::Rejected)?,
                            () = client_closed(downstream) => return Err(NoPeer::ClientDisconnected),
                        }
                    }
                    let backend = self.proxy.choose(exchange).map_err(NoPeer::Rejected)?;
                    if exchange.is_queued() {
                        let comes = tokio::select! {
                            biased;
                            comes = self.proxy.slot_granted(exchange) => comes,
                            () = client_closed(downstream) => return Err(NoPeer::ClientDisconnected),
                        };
                        if !comes {
                            continue;
                        }
                    }
                    backend
                }
            };
            let peer = self.dialer.peer(
                &backend.address,
                exchange.tls(),
                cursor,
                exchange.repeatable(),
            );
            match peer.await {
                Ok(peer) => return Ok(peer),
                Err(error) => {
                    let failed =
                        self.proxy
                            .attempt_failed(exchange, &error.into(), Replay::Possible);
                    failed.map_err(NoPeer::Rejected)?;
                }
            }
        }
    }

    /// Checks the response of a backend, and rewrites its head for the client.
    fn finalize(
        &self,
        downstream: &Session,
        exchange: &Exchange,
        response: &mut ResponseHeader,
    ) -> std::result::Result<(), AttemptError> {
        let limits = self.response_limits;
        if is_larger(&response.headers, limits.head_size, usize::MAX) {
            return Err(ResponseHeadError::TooLarge.into());
        }
        if is_larger(&response.headers, usize::MAX, limits.headers) {
            return Err(BadResponse::TooManyHeaders.into());
        }
        settle_framing(response, &downstream.req_header().method)?;
        self.proxy.finalize(exchange, response)?;
        Ok(())
    }

    /// The error response after `error`; `None` if the client has disconnected.
    fn rejection_of(error: &Error, context: &mut RequestContext) -> Option<Rejection> {
        if let Some(rejection) = context.rejection.take() {
            return Some(rejection);
        }
        match (error.esource(), error.etype()) {
            (
                ErrorSource::Downstream,
                ErrorType::WriteError
                | ErrorType::ReadError
                | ErrorType::ConnectionClosed
                | ErrorType::WriteTimedout
                | ErrorType::H2Error,
            ) => None,
            (ErrorSource::Downstream, ErrorType::ReadTimedout) => Some(Rejection::BodyTimeout(
                "nothing within timeouts.downstream_read",
            )),
            (ErrorSource::Downstream, _) => {
                Some(Rejection::Malformed("the request cannot be forwarded"))
            }
            (_, ErrorType::ReadTimedout | ErrorType::WriteTimedout) => {
                Some(Rejection::BackendTimeout("no response in time"))
            }
            // Pingora's own limit of attempts is reached.
            _ if matches!(error.retry, RetryType::Decided(true)) => {
                context.exchange.as_ref().map(Exchange::failure)
            }
            (ErrorSource::Upstream | ErrorSource::Internal | ErrorSource::Unset, _) => Some(
                Rejection::BackendFailed("the connection to the backend failed"),
            ),
        }
    }
}

/// Whether there are more than `lines` headers, or they are larger than `bytes` in the syntax of HTTP/1.
fn is_larger(headers: &HeaderMap, bytes: usize, lines: usize) -> bool {
    let size = |(name, value): (&HeaderName, &HeaderValue)| {
        name.as_str().len() + value.len() + ": \r\n".len()
    };
    lines < headers.len() || bytes < headers.iter().map(size).sum()
}

/// Rejects a Content-Length that is repeated or not a number: Pingora forwards equal ones.
fn check_lengths(request: &RequestHeader) -> Result<(), Rejection> {
    let mut lengths = request.values("content-length");
    let is_number = |length: &[u8]| !length.is_empty() && length.iter().all(u8::is_ascii_digit);
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(()),
        (Some(length), None) if is_number(length) => Ok(()),
        (Some(_), None) => Err(Rejection::Malformed("the length is not a number")),
        (Some(_), Some(_)) => Err(Rejection::Malformed("several lengths")),
    }
}

/// The address of the peer of the connection.
fn peer_of(downstream: &ServerSession) -> IpAddr {
    let address = downstream
        .client_addr()
        .and_then(|address| address.as_inet());
    // A connection without an IP address is local, over a unix socket.
    address.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip())
}

/// The scheme of the connection.
fn scheme_of(downstream: &ServerSession) -> Scheme {
    let encrypted = downstream
        .digest()
        .is_some_and(|digest| digest.ssl_digest.is_some());
    if encrypted {
        Scheme::Https
    } else {
        Scheme::Http
    }
}

/// Continues to read a body for a while after the response: closing a socket with unread bytes resets the connection, and the
/// client might lose the response.
async fn linger(downstream: &mut Session) {
    let mut remaining = LINGER_BYTES;
    let reading = async {
        while let Ok(Some(piece)) = downstream.read_request_body().await
            && piece.len() < remaining
        {
            remaining -= piece.len();
        }
    };
    // A client that still sends after that gets a reset.
    let _ = tokio::time::timeout(LINGER, reading).await;
}

/// Ready when the client has disconnected, as far as that is visible without reading its body.
async fn client_closed(downstream: &mut Session) {
    if !downstream.is_body_done() {
        while !is_closed(downstream) {
            tokio::time::sleep(CLIENT_CHECK).await;
        }
        return;
    }
    let Err(error) = downstream.read_body_or_idle(true).await else {
        return;
    };
    if *error.etype() == ErrorType::ConnectError {
        // A byte of its next request was read and is lost: it has to repeat that on another connection.
        downstream.set_keepalive(None);
        std::future::pending::<()>().await;
    }
}

/// Whether the peer has closed or half-closed the connection, by the state of the socket.
fn is_closed(downstream: &Session) -> bool {
    /// TCP_CLOSE and TCP_CLOSE_WAIT of the kernel's `tcp_states.h`.
    const CLOSED: [u8; 2] = [7, 8];
    let digest = downstream.digest();
    let socket = digest.and_then(|digest| digest.socket_digest.as_ref());
    let state = socket.and_then(|socket| socket.tcp_info());
    state.is_some_and(|info| CLOSED.contains(&info.tcpi_state))
}

/// An error that ends Pingora's attempts; the response for the client is in the context.
fn stop(rejection: &Rejection) -> Box<Error> {
    Error::explain(ErrorType::HTTPStatus(503), rejection.to_string())
}

#[async_trait]
impl ProxyHttp for Edge {
    type CTX = RequestContext;

    fn new_ctx(&self) -> RequestContext {
        RequestContext::default()
    }

    /// No modules: the default ones cost memory for each request.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn request_filter(
        &self,
        downstream: &mut Session,
        context: &mut RequestContext,
    ) -> Result<bool> {
        downstream.set_read_timeout(Some(self.timeouts.downstream_read));
        downstream.set_write_timeout(Some(self.timeouts.downstream_write));
        downstream.set_total_drain_timeout(Some(BODY_REST));
        if downstream.req_header().method == Method::CONNECT {
            // Pingora accepts CONNECT only if the server has enabled it.
            downstream.set_keepalive(None);
            self.reject(downstream, Rejection::MethodNotAllowed).await?;
            return Ok(true);
        }
        context.counted = Some(self.connections.count());
        if downstream.get_keepalive().is_some() {
            downstream.set_keepalive(Some(self.timeouts.keepalive.as_secs().max(1)));
        }
        // Boxed, so that the future of a plain request is not larger because of it.
        match Box::pin(detach_upgrade(&self.engine, downstream)).await {
            UpgradeOutcome::NotUpgrade => {}
            UpgradeOutcome::Detached => {
                context.is_detached = true;
                return Ok(true);
            }
            UpgradeOutcome::Rejected(rejection) => {
                downstream.set_keepalive(None);
                self.reject(downstream, rejection).await?;
                return Ok(true);
            }
        }
        // Pingora evaluates only the first `Connection` header.
        if downstream.req_header().lists("connection", "close") {
            downstream.set_keepalive(None);
        }
        if downstream.req_header().version == Version::HTTP_10
            && let ServerSession::H1(session) = downstream.as_downstream_mut()
        {
            session.set_ignore_info_resp(true);
        }
        if is_larger(
            &downstream.req_header().headers,
            self.head_size,
            self.response_limits.headers,
        ) {
            downstream.set_keepalive(None);
            self.reject(downstream, Rejection::HeadTooLarge).await?;
            return Ok(true);
        }
        if let Err(rejection) = check_lengths(downstream.req_header()) {
            downstream.set_keepalive(None);
            self.reject(downstream, rejection).await?;
            return Ok(true);
        }
        let (peer, scheme) = (
            peer_of(downstream.as_downstream()),
            scheme_of(downstream.as_downstream()),
        );
        // An upgrade that gets here is not allowed by its route: it is served as a plain request.
        match self
            .proxy
            .admit(downstream.req_header_mut(), None, peer, scheme)
        {
            Ok(exchange) => {
                context.exchange = Some(exchange);
                Ok(false)
            }
            Err(rejection) => {
                self.reject(downstream, rejection).await?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(
        &self,
        downstream: &mut Session,
        context: &mut RequestContext,
    ) -> Result<Box<HttpPeer>> {
        let Some(exchange) = &mut context.exchange else {
            return Err(stop(&Rejection::NoBackend));
        };
        let try_next_address = std::mem::take(&mut context.try_next_address);
        let cursor = &mut context.cursor;
        match self
            .next_peer(downstream, exchange, cursor, try_next_address)
            .await
        {
            Ok(peer) => Ok(Box::new(peer)),
            Err(NoPeer::ClientDisconnected) => Err(Error::explain(
                ErrorType::ConnectionClosed,
                "the client disconnected while its request was parked or queued",
            )
            .into_down()),
            Err(NoPeer::Rejected(rejection)) => {
                let error = stop(&rejection);
                context.rejection = Some(rejection);
                Err(error)
            }
        }
    }

    async fn request_body_filter(
        &self,
        downstream: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        context: &mut RequestContext,
    ) -> Result<()> {
        // Pingora would write an empty piece as the last chunk, and the end of the body as another one, which the backend would
        // read as the start of the next request.
        if end_of_stream && body.as_ref().is_some_and(Bytes::is_empty) {
            *body = None;
        }
        let Some(exchange) = &context.exchange else {
            return Ok(());
        };
        // Not the bytes of this call: a retry repeats them.
        let received = downstream.body_bytes_read() as u64;
        self.proxy
            .check_body_size(exchange, received)
            .map_err(|rejection| {
                let error = stop(&rejection).into_down();
                context.rejection = Some(rejection);
                error
            })
    }

    async fn upstream_request_filter(
        &self,
        _downstream: &mut Session,
        request: &mut RequestHeader,
        context: &mut RequestContext,
    ) -> Result<()> {
        if let Some(exchange) = &mut context.exchange {
            self.proxy.prepare(exchange, request);
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        downstream: &mut Session,
        response: &mut ResponseHeader,
        context: &mut RequestContext,
    ) -> Result<()> {
        if self.connections.closes_after_response() {
            downstream.set_keepalive(None);
        }
        // HTTP/1.0 has no chunks: the end of the connection is the end of the body (RFC 9112, 6.1).
        let knows_chunks = downstream.req_header().version != Version::HTTP_10;
        if !knows_chunks && response.remove_header(&TRANSFER_ENCODING).is_some() {
            downstream.set_keepalive(None);
        }
        let Some(exchange) = &mut context.exchange else {
            return Ok(());
        };
        let finalized = match response.status {
            // Upgrades are detached before.
            StatusCode::SWITCHING_PROTOCOLS => Err(BadResponse::UnexpectedUpgrade.into()),
            status if status.is_informational() => {
                self.proxy.finalize_interim(response);
                Ok(())
            }
            _ => self.finalize(downstream, exchange, response),
        };
        let Err(error) = finalized else {
            context.new_session = self.proxy.new_session(exchange, response);
            return Ok(());
        };
        let failed = self
            .proxy
            .attempt_failed(exchange, &error, Replay::Impossible);
        let rejection = failed.err().unwrap_or(Rejection::NoBackend);
        let stopped = stop(&rejection);
        context.rejection = Some(rejection);
        Err(stopped)
    }

    fn response_body_filter(
        &self,
        _downstream: &mut Session,
        body: &mut Option<Bytes>,
        _end_of_stream: bool,
        context: &mut RequestContext,
    ) -> Result<Option<Duration>> {
        if let (Some(new_session), Some(body)) = (&mut context.new_session, &body) {
            new_session.inspect(body);
        }
        Ok(None)
    }

    fn fail_to_connect(
        &self,
        _downstream: &mut Session,
        _peer: &HttpPeer,
        context: &mut RequestContext,
        mut error: Box<Error>,
    ) -> Box<Error> {
        let Some(exchange) = &mut context.exchange else {
            return error;
        };
        let failed = DialError::from_pingora(&error, self.timeouts.connect);
        context.try_next_address = exchange.backend().is_some_and(|backend| {
            self.dialer
                .advance(&backend.address, &mut context.cursor, &failed)
        });
        if context.try_next_address {
            error.set_retry(true);
            return error;
        }
        match self
            .proxy
            .attempt_failed(exchange, &failed.into(), Replay::Possible)
        {
            Ok(()) => error.set_retry(true),
            Err(rejection) => {
                error.set_retry(false);
                context.rejection = Some(rejection);
            }
        }
        error
    }

    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        downstream: &mut Session,
        error: Box<Error>,
        context: &mut RequestContext,
        client_reused: bool,
    ) -> Box<Error> {
        let mut error = error.more_context(format!("Peer: {peer}"));
        let of_backend = *error.esource() == ErrorSource::Upstream;
        let repeatable = downstream.req_header().method.is_idempotent()
            && !downstream.as_ref().retry_buffer_truncated();
        let has_response = downstream
            .response_written()
            .is_some_and(|head| !head.status.is_informational());
        if !of_backend || has_response {
            error.set_retry(false);
            return error;
        }
        // A reused connection that the backend had closed is no failure of the backend: send again over a new one.
        error.retry.decide_reuse(client_reused);
        if repeatable && error.retry() && context.stale < STALE_MAX {
            context.stale += 1;
            return error;
        }
        let timed_out = matches!(
            error.etype(),
            ErrorType::ReadTimedout | ErrorType::WriteTimedout
        );
        if timed_out && !downstream.is_body_done() {
            // The client has not sent its body.
            error.set_retry(false);
            let slow = Rejection::BodyTimeout("nothing within timeouts.upstream_read");
            context.rejection = Some(slow);
            return error;
        }
        let Some(exchange) = &mut context.exchange else {
            return error;
        };
        let replay = if repeatable {
            Replay::Possible
        } else {
            Replay::Impossible
        };
        let failed = if timed_out {
            AttemptError::Timeout
        } else {
            AttemptError::Failed
        };
        match self.proxy.attempt_failed(exchange, &failed, replay) {
            Ok(()) => error.set_retry(true),
            Err(rejection) => {
                error.set_retry(false);
                context.rejection = Some(rejection);
            }
        }
        error
    }

    async fn fail_to_proxy(
        &self,
        downstream: &mut Session,
        error: &Error,
        context: &mut RequestContext,
    ) -> FailToProxy {
        let no_response_yet = downstream
            .response_written()
            .is_none_or(|head| head.status.is_informational());
        let rejection = Self::rejection_of(error, context).filter(|_| no_response_yet);
        let Some(rejection) = rejection else {
            return FailToProxy {
                error_code: 0,
                can_reuse_downstream: false,
            };
        };
        tracing::debug!(%error, %rejection, "request failed");
        let too_large = rejection == Rejection::Limited(Limit::BodySize);
        let (head, body) = self.proxy.own_response(rejection);
        let error_code = head.status.as_u16();
        // Reusable if all of the request was read.
        let is_reusable = downstream.is_body_done() && !self.connections.closes_after_response();
        if !is_reusable {
            downstream.set_keepalive(None);
        }
        let written = match downstream.write_response_header(head, false).await {
            Ok(()) => downstream.write_response_body(Some(body), true).await,
            failed => failed,
        };
        match written {
            Ok(()) => {
                if too_large {
                    linger(downstream).await;
                }
                if !is_reusable && let ServerSession::H1(session) = downstream.as_downstream_mut() {
                    // Pingora would drop it without the close_notify that TLS requires (RFC 8446, 6.1).
                    session.shutdown().await;
                }
            }
            Err(error) => tracing::debug!(%error, "cannot send the error response to the client"),
        }
        FailToProxy {
            error_code,
            can_reuse_downstream: is_reusable,
        }
    }

    async fn logging(
        &self,
        downstream: &mut Session,
        error: Option<&Error>,
        context: &mut RequestContext,
    ) {
        if context.is_detached {
            return;
        }
        let status = downstream
            .response_written()
            .map(|head| head.status.as_u16());
        let error = error.map(ToString::to_string);
        let outcome = Outcome {
            // 499 as in nginx: the client disconnected before the response.
            status: status.or(Some(499)),
            bytes_in: downstream.body_bytes_read() as u64,
            bytes_out: downstream.body_bytes_sent() as u64,
            error: error.as_deref(),
        };
        match &context.exchange {
            Some(exchange) => self.proxy.log(exchange, outcome),
            None => {
                let peer = peer_of(downstream.as_downstream());
                let status = status.unwrap_or(499);
                let error = error.as_deref().unwrap_or("rejected");
                self.proxy
                    .log_rejected(downstream.req_header(), Some(peer), status, error);
            }
        }
    }

    /// Failures are in the access log, and changes of a backend's state are logged by its pool.
    fn suppress_error_log(
        &self,
        _downstream: &Session,
        _context: &RequestContext,
        _error: &Error,
    ) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _downstream: &Session,
        _context: &RequestContext,
        _error: &Error,
        _place: ProxyWarnLogContext,
    ) -> bool {
        true
    }
}
