//! The engine: serves one request of a client, plain or an upgrade, over connections of the edge's own.
//!
//! [`Engine::serve`] takes a request from any [`Downstream`] (HTTP/1.0, HTTP/1.1, HTTP/2); [`ProxyState`] has the decisions. There
//! is one loop of attempts, one place where a request is sent ([`upload`]) and one where a response is forwarded. Heads are kept as
//! the bytes that were received, bodies pass through a buffer of the thread, in both directions at the same time, and a request
//! that waits for its response holds little more than its own head.
//!
//! Invariant: a connection to a backend is reused only if all of the request was sent and all of the response was read.

mod adopt;
mod handoff;
mod parking;
mod session_handoff;
mod stall;
mod tunnel;
mod upload;

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, StatusCode};
use tokio::io::AsyncWrite;
use tokio::time::{sleep, timeout};

use crate::balancer::pool::Backend;
use crate::balancer::pool::Choice;
use crate::config::Timeouts;
use crate::downstream::open_connections::Connections;
use crate::downstream::{BodyError, BodyEvent, ClientEnd, Downstream, PassError};
use crate::http::fields::{Fields, Request as _, Response as _};
use crate::http::http1::{
    BadResponse, BodyLength, Framing, RequestHead, ResponseBody, ResponseHead, ResponseHeadError,
    ResponseLimits, ResponseReader, poll_read_scratch, settle_framing,
};
use crate::limits::Limit;
use crate::limits::Permits;
use crate::request::error::Rejection;
use crate::request::exchange::HANDOFF_HEADER;
use crate::request::exchange::{AttemptError, Exchange, NewSession, Outcome, ProxyState, Replay};
pub(crate) use crate::request::forward::adopt::{AdoptedTunnel, CannotAdopt, ForeignTunnel};
pub(crate) use crate::request::forward::handoff::{SessionHandoffs, TunnelContext};
pub(crate) use crate::request::forward::parking::{ParkReply, ParkedTunnel, Parking};
use crate::request::forward::stall::{StallTimer, WaitsFor};
pub(crate) use crate::request::forward::tunnel::TunnelPermits;
use crate::request::forward::tunnel::{TunnelRecord, run_tunnel};
use crate::request::forward::upload::{Framing as UploadFraming, Upload, UploadError};
use crate::tunnel::{Protocol, Tunnel, TunnelParts, Tunnels};
use crate::upstream::{Dialer, Repeatable, UpstreamConnection};

/// How many idle connections of one request may turn out to be closed before it counts as a failure of the backend.
///
/// When a backend restarts, all of them are closed, but most are removed before a request uses them.
pub(crate) const STALE_MAX: usize = 2;

/// How much of an unused request body is read and discarded, and for how long, so that its connection can be reused.
const DISCARD_BYTES: u64 = 64 * 1024;
const DISCARD_TIME: Duration = Duration::from_secs(1);

/// Texts for the access log.
const CLIENT_DISCONNECTED: &str = "the client disconnected before the response";
const CLIENT_DISCONNECTED_IN_BODY: &str = "the client disconnected before the end of its request";
const BACKEND_FAILED: &str = "the connection to the backend broke before the end of the response";

/// Serves requests.
pub(crate) struct Engine {
    pub(crate) proxy: Arc<ProxyState>,
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) tunnels: Arc<Tunnels>,
    pub(crate) tunnel_context: Arc<TunnelContext>,
    pub(crate) timeouts: Timeouts,
    pub(crate) response_limits: ResponseLimits,
    /// Whether a client that half-closes its connection counts as disconnected.
    pub(crate) abort_on_client_close: bool,
}

/// A request to be served.
pub(crate) struct Incoming<D> {
    pub(crate) client: D,
    pub(crate) head: RequestHead,
    pub(crate) body: BodyLength,
    /// Set for an upgrade that the route allows.
    pub(crate) upgrade: Option<Upgrade>,
}

/// The protocol of an upgrade, and the permit that its tunnel takes over.
pub(crate) struct Upgrade {
    /// In lower case.
    pub(crate) protocol: String,
    /// The permit of the client's connection.
    pub(crate) connection: Permits,
}

/// The response of a backend, with its head read.
struct BackendResponse {
    head: ResponseHead,
    framing: Framing,
    /// Bytes that were read after the head.
    early: Vec<u8>,
    upstream: UpstreamConnection,
    backend: Arc<Backend>,
}

/// Why there is no response of a backend to forward.
enum NoResponse {
    /// The client gets an error response.
    Rejected(Rejection),
    /// The client has disconnected.
    ClientDisconnected(&'static str),
}

impl From<Rejection> for NoResponse {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

/// Why one attempt was aborted.
enum Aborted {
    /// The attempt failed; another one may be made.
    Attempt(AttemptError),
    /// The request failed; no other backend can change that.
    Request(NoResponse),
}

impl From<AttemptError> for Aborted {
    fn from(error: AttemptError) -> Self {
        Self::Attempt(error)
    }
}

impl From<BadResponse> for Aborted {
    fn from(bad: BadResponse) -> Self {
        Self::Attempt(bad.into())
    }
}

impl From<ResponseHeadError> for Aborted {
    fn from(none: ResponseHeadError) -> Self {
        Self::Attempt(none.into())
    }
}

/// Why a response was not forwarded to its end.
enum Truncated {
    /// The backend failed; the client has to see that the response is incomplete.
    Backend(&'static str),
    /// The client disconnected, or did not read.
    Client(&'static str),
}

impl Engine {
    /// Serves one request to its end. Returns the client's connection if it can carry another request.
    ///
    /// # Cancel safety
    ///
    /// Dropping it closes both connections.
    pub(crate) async fn serve<D: Downstream>(&self, incoming: Incoming<D>) -> Option<D> {
        let Incoming {
            client,
            mut head,
            body,
            upgrade,
        } = incoming;
        let (peer, scheme) = client.origin();
        let closes = head.ends_connection();
        let protocol = upgrade.as_ref().map(|upgrade| &*upgrade.protocol);
        let admitted = match check_upgrade(&head, body, protocol) {
            Ok(()) => self.proxy.admit(&mut head, protocol, peer, scheme),
            Err(rejection) => Err(rejection),
        };
        let exchange = match admitted {
            Ok(exchange) => exchange,
            Err(rejection) => {
                return self.reject(client, &head, peer, rejection, closes).await;
            }
        };
        let expects = head.expects_continue() && !client.body_is_over();
        if !expects {
            head.remove("expect");
        }
        let upload = match &upgrade {
            Some(_) => Upload::without_body(),
            None => Upload::new(
                settle_request_framing(&mut head, body),
                self.timeouts.request_body_rate,
                exchange.repeatable() == Repeatable::Yes,
            ),
        };
        let mut request = Request {
            engine: self,
            client,
            head,
            exchange,
            upgrade,
            upload,
            closes,
            expects,
            half_closed: HalfClosed::No,
            stale: 0,
        };
        let tunnel = match &request.upgrade {
            Some(_) => match self.proxy.admit_tunnel(&request.exchange) {
                Ok(pass) => Some(pass),
                Err(rejection) => {
                    let ending = request.reject(rejection).await;
                    return finish(request.client, ending).await;
                }
            },
            None => None,
        };
        // What is moved into a future is copied twice, so the request is borrowed, except for the rare one that becomes a tunnel.
        let rejection = match request.response().await {
            Ok(response) if response.head.status() == StatusCode::SWITCHING_PROTOCOLS => {
                Box::pin(request.open_tunnel(response, tunnel)).await;
                return None;
            }
            Ok(response) => match request.forward_response(response).await {
                Ok(ending) => return finish(request.client, ending).await,
                Err(rejection) => rejection,
            },
            Err(NoResponse::Rejected(rejection)) => rejection,
            Err(NoResponse::ClientDisconnected(why)) => {
                request.log(Some(499), 0, Some(why));
                return None;
            }
        };
        let ending = request.reject(rejection).await;
        finish(request.client, ending).await
    }

    /// Rejects a request that is not admitted.
    async fn reject<D: Downstream>(
        &self,
        mut client: D,
        head: &RequestHead,
        peer: IpAddr,
        rejection: Rejection,
        closes: bool,
    ) -> Option<D> {
        let error = rejection.to_string();
        let last = self.is_last(&mut client, &rejection, closes).await;
        let status = self
            .send_error(&mut client, head.method(), rejection, last)
            .await;
        let logged = status.map_or(499, |status| status.as_u16());
        self.proxy.log_rejected(head, Some(peer), logged, &error);
        finish(client, Ending::of(status, last)).await
    }

    /// Whether the connection of `client` ends after the response for `rejection`: not if all of its request has been read.
    async fn is_last<D: Downstream>(
        &self,
        client: &mut D,
        rejection: &Rejection,
        closes: bool,
    ) -> bool {
        let is_unusable = matches!(
            rejection,
            Rejection::Malformed(_)
                | Rejection::BodyTimeout(_)
                | Rejection::Limited(Limit::BodySize)
        );
        if closes || is_unusable || self.connections.closes_after_response() || !D::REUSABLE {
            return true;
        }
        !discard_body(client).await
    }

    /// Sends the response of the edge for `rejection`. Its status, if it was sent.
    async fn send_error(
        &self,
        client: &mut impl Downstream,
        method: &Method,
        rejection: Rejection,
        last: bool,
    ) -> Option<StatusCode> {
        let (head, body) = self.proxy.own_response(rejection);
        client.own_response(&head, body, method, last);
        let flushed = flush(client, &self.timeouts).await;
        flushed.is_ok().then_some(head.status)
    }
}

/// How a request ended for its client.
#[derive(Clone, Copy, Debug)]
enum Ending {
    /// A response was sent; `last` if it is the last one of its connection.
    Response { last: bool },
    /// The client disconnected, or its response was cut off: nothing more is sent.
    NoResponse,
}

impl Ending {
    /// `status` is that of the response, if it was sent.
    fn of(status: Option<StatusCode>, last: bool) -> Self {
        match status {
            Some(_) => Self::Response { last },
            None => Self::NoResponse,
        }
    }
}

/// Keeps or closes the client's connection after a request.
async fn finish<D: Downstream>(client: D, ending: Ending) -> Option<D> {
    match ending {
        Ending::Response { last: false } if D::REUSABLE => Some(client),
        Ending::Response { .. } => {
            client.close().await;
            None
        }
        Ending::NoResponse => None,
    }
}

/// Reads and discards the rest of a short request body. Whether all of it was read.
async fn discard_body(client: &mut impl Downstream) -> bool {
    if client.body_is_over() {
        return true;
    }
    let mut length = 0;
    let reading = poll_fn(|cx| {
        loop {
            match client.poll_body(cx, |content| length += content.len() as u64) {
                Poll::Ready(Ok(BodyEvent::End(_))) => return Poll::Ready(true),
                Poll::Ready(Ok(BodyEvent::Content)) if length <= DISCARD_BYTES => {}
                Poll::Ready(_) => return Poll::Ready(false),
                Poll::Pending => return Poll::Pending,
            }
        }
    });
    timeout(DISCARD_TIME, reading).await.unwrap_or(false)
}

/// Flushes buffered output to the client, within `timeouts.downstream_write`.
async fn flush(client: &mut impl Downstream, timeouts: &Timeouts) -> io::Result<()> {
    let flushing = poll_fn(|cx| client.poll_flush(cx));
    let flushed = timeout(timeouts.downstream_write, flushing).await;
    flushed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Rejects an upgrade with a body, which parsers disagree about, and a WebSocket upgrade that is not a GET.
fn check_upgrade(
    head: &RequestHead,
    body: BodyLength,
    protocol: Option<&str>,
) -> Result<(), Rejection> {
    let Some(protocol) = protocol else {
        return Ok(());
    };
    if body != BodyLength::Bytes(0) && head.version() != http::Version::HTTP_2 {
        return Err(Rejection::Malformed("an upgrade with a body"));
    }
    if !may_upgrade(head.method().as_str(), protocol) {
        return Err(Rejection::Malformed(
            "a websocket upgrade that is not a GET",
        ));
    }
    Ok(())
}

/// Whether a request with this method may be an upgrade to `protocol`.
///
/// A WebSocket begins with a GET (RFC 6455, 4.1). With any other method the Upgrade header is ignored (RFC 9110, 7.8), and the
/// request is forwarded as a plain one.
pub(crate) fn may_upgrade(method: &str, protocol: &str) -> bool {
    protocol != "websocket" || method == "GET"
}

/// Gives the head for the backend exactly one framing of the body.
fn settle_request_framing(head: &mut RequestHead, body: BodyLength) -> UploadFraming {
    match body {
        BodyLength::Chunked => {
            head.remove("content-length");
            head.set("Transfer-Encoding", HeaderValue::from_static("chunked"));
            UploadFraming::Chunked
        }
        BodyLength::Bytes(_) => {
            let takes_body = [Method::POST, Method::PUT, Method::PATCH].contains(head.method());
            if takes_body && head.version() == http::Version::HTTP_2 && !head.has("content-length")
            {
                // RFC 9110, 8.6: HTTP/2 marks an empty body by the end of the stream.
                head.append("Content-Length", HeaderValue::from_static("0"));
            }
            UploadFraming::Length
        }
    }
}

/// Whether the client has half-closed its connection, and that was forwarded to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HalfClosed {
    No,
    /// It is still to be forwarded.
    Client,
    Both,
}

/// One admitted request.
struct Request<'a, D> {
    engine: &'a Engine,
    client: D,
    head: RequestHead,
    exchange: Exchange,
    upgrade: Option<Upgrade>,
    upload: Upload,
    /// Whether the client has asked to close the connection after the response.
    closes: bool,
    /// Whether the client waits for a 100 (Continue).
    expects: bool,
    half_closed: HalfClosed,
    /// How many idle connections turned out to be closed.
    stale: usize,
}

impl<D: Downstream> Request<'_, D> {
    /// Makes attempts until there is a response to forward.
    async fn response(&mut self) -> Result<BackendResponse, NoResponse> {
        let proxy = &*self.engine.proxy;
        if let Some(departing) = self.exchange.departing_session() {
            let settled = Box::pin(session_handoff::settle(
                &self.engine.tunnel_context,
                departing,
            ));
            let client = &mut self.client;
            tokio::select! {
                biased;
                () = settled => {}
                () = poll_fn(|cx| client.poll_end_unread(cx)) => {
                    return Err(NoResponse::ClientDisconnected("the client disconnected while its session was handed off"));
                }
            }
        }
        // A response that rejected an upgrade, while others are tried.
        let mut rejected_upgrade: Option<(BackendResponse, Option<Choice>)> = None;
        loop {
            let failed = match self.attempt_next().await {
                Ok(response) if self.tries_another(&response) => {
                    rejected_upgrade = Some((response, self.exchange.choice()));
                    continue;
                }
                Ok(response) => return Ok(response),
                Err(Aborted::Request(no_response)) => Err(no_response),
                Err(Aborted::Attempt(error)) => {
                    if self.half_closed == HalfClosed::Both && error.is_broken_connection() {
                        // The backend has closed the connection because of the forwarded half-close.
                        return Err(NoResponse::ClientDisconnected(CLIENT_DISCONNECTED));
                    }
                    let replay = self.upload.replay();
                    let next = proxy.attempt_failed(&mut self.exchange, &error, replay);
                    next.map_err(NoResponse::from)
                }
            };
            match (failed, rejected_upgrade.take()) {
                (Ok(()), kept) => rejected_upgrade = kept,
                // No other backend: the client gets the response that rejected its upgrade.
                (Err(NoResponse::Rejected(_)), Some((response, choice))) => {
                    self.exchange.restore_choice(choice);
                    return Ok(response);
                }
                (Err(no_response), _) => return Err(no_response),
            }
        }
    }

    /// Whether another backend is tried after one that has rejected an upgrade.
    fn tries_another(&mut self, response: &BackendResponse) -> bool {
        let status = response.head.status();
        self.upgrade.is_some()
            && status != StatusCode::SWITCHING_PROTOCOLS
            && self
                .engine
                .proxy
                .upgrade_rejected(&mut self.exchange, status)
    }

    /// Makes the next attempt, once it is due and the backend has a free slot.
    async fn attempt_next(&mut self) -> Result<BackendResponse, Aborted> {
        let proxy = &*self.engine.proxy;
        if self.exchange.is_parked() {
            let client = &mut self.client;
            let due = tokio::select! {
                biased;
                due = proxy.attempt_due(&mut self.exchange) => due.map_err(NoResponse::from),
                // No connection to a backend exists yet: a half-close counts as a disconnect.
                () = poll_fn(|cx| client.poll_end_unread(cx)) => {
                    Err(NoResponse::ClientDisconnected("the client disconnected while its request was parked"))
                }
            };
            due.map_err(Aborted::Request)?;
        }
        loop {
            let chosen = proxy.choose(&mut self.exchange);
            let backend = chosen.map_err(|rejection| Aborted::Request(rejection.into()))?;
            if !self.exchange.is_queued() {
                return self.attempt(backend).await;
            }
            let client = &mut self.client;
            let comes = tokio::select! {
                biased;
                comes = proxy.slot_granted(&mut self.exchange) => comes,
                () = poll_fn(|cx| client.poll_end_unread(cx)) => {
                    let disconnected = NoResponse::ClientDisconnected("the client disconnected while its request was queued");
                    return Err(Aborted::Request(disconnected));
                }
            };
            if comes {
                return self.attempt(backend).await;
            }
        }
    }

    /// Sends the request to `backend`, over an idle connection if there is one.
    async fn attempt(&mut self, backend: Arc<Backend>) -> Result<BackendResponse, Aborted> {
        let Engine { dialer, proxy, .. } = self.engine;
        let repeatable = self.exchange.repeatable();
        let mut prepared = false;
        loop {
            let tls = self.exchange.tls();
            // Tunnels get a connection of their own.
            let idle = match self.upgrade {
                None => dialer.take_idle(&backend, tls, repeatable),
                Some(_) => None,
            };
            let was_idle = idle.is_some();
            let mut upstream = match idle {
                Some(idle) => idle,
                None => Box::pin(dialer.dial(&backend.address, tls))
                    .await
                    .map_err(AttemptError::from)?,
            };
            if !std::mem::replace(&mut prepared, true) {
                proxy.prepare(&mut self.exchange, &mut self.head);
                proxy.offer_session_handoff(&self.exchange, &mut self.head);
            }
            let head = &self.head;
            self.upload.begin(|out| head.write(out));
            match self.exchange_heads(&mut upstream, &backend).await {
                Ok((head, framing, early)) => {
                    return Ok(BackendResponse {
                        head,
                        framing,
                        early,
                        upstream,
                        backend,
                    });
                }
                // A reused connection that the backend had closed is no failure of the backend: send again over another one.
                // Not after a forwarded half-close, which may be the cause: each client that disconnects would cost a
                // second request.
                Err(Aborted::Attempt(error))
                    if was_idle
                        && error.is_broken_connection()
                        && repeatable == Repeatable::Yes
                        && self.upload.replay() == Replay::Possible
                        && self.half_closed != HalfClosed::Both
                        && self.stale < STALE_MAX =>
                {
                    self.stale += 1;
                }
                Err(aborted) => return Err(aborted),
            }
        }
    }

    /// Sends the request and waits for the head of the response. Returns also the bytes read after it.
    async fn exchange_heads(
        &mut self,
        upstream: &mut UpstreamConnection,
        backend: &Backend,
    ) -> Result<(ResponseHead, Framing, Vec<u8>), Aborted> {
        let mut reader = ResponseReader::new(self.engine.response_limits);
        let mut sleep = pin!(sleep(Duration::ZERO));
        let mut timer = StallTimer::new(sleep.as_mut());
        loop {
            let is_upgrade = self.upgrade.is_some();
            let reading = poll_fn(|cx| self.poll_head(cx, upstream, &mut reader, &mut timer));
            let mut head = if is_upgrade {
                tokio::select! {
                    biased;
                    head = reading => head?,
                    () = backend.unresponsive() => return Err(AttemptError::WentDown.into()),
                }
            } else {
                reading.await?
            };
            let status = head.status();
            if status == StatusCode::SWITCHING_PROTOCOLS {
                self.check_switch(&head)?;
            } else if status.is_informational() {
                self.interim(&mut head, status);
                timer.restart();
                continue;
            }
            if is_upgrade && !D::REUSABLE && status.is_success() {
                // Over HTTP/2 the client would take it for an open tunnel (RFC 8441, 5).
                return Err(BadResponse::NotSwitched.into());
            }
            let framing = settle_framing(&mut head, self.head.method())?;
            let early = reader.into_rest();
            // Nothing has been sent to the client yet: an error response is still possible.
            if let Framing::Chunks(mut chunks) = framing
                && chunks.parse(&early).is_err()
            {
                return Err(BadResponse::Chunk.into());
            }
            return Ok((head, framing, early));
        }
    }

    /// Forwards an interim response.
    fn interim(&mut self, head: &mut ResponseHead, status: StatusCode) {
        if status == StatusCode::CONTINUE {
            // A second one, or one without `Expect: 100-continue`, is dropped.
            if std::mem::take(&mut self.expects) {
                self.client.interim_continue();
            }
        } else if self.upgrade.is_none() && self.engine.proxy.finalize_interim(head) {
            self.client.interim(head);
        }
    }

    /// Checks a 101 against the requested upgrade.
    fn check_switch(&self, head: &ResponseHead) -> Result<(), AttemptError> {
        let Some(upgrade) = &self.upgrade else {
            return Err(BadResponse::UnexpectedUpgrade.into());
        };
        let to = head.text("upgrade").unwrap_or_default().trim();
        if to.eq_ignore_ascii_case(&upgrade.protocol) {
            Ok(())
        } else {
            Err(AttemptError::OtherProtocol)
        }
    }

    /// Sends more of the request, and reads the head of the response.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        upstream: &mut UpstreamConnection,
        reader: &mut ResponseReader,
        timer: &mut StallTimer<'_>,
    ) -> Poll<Result<ResponseHead, Aborted>> {
        let mut unsent = None;
        match self.poll_upload(cx, upstream) {
            Poll::Pending | Poll::Ready(Ok(())) => {}
            // There may be a response that was sent before the connection was closed.
            Poll::Ready(Err(UploadError::Backend(error))) => unsent = Some(error),
            Poll::Ready(Err(error)) => {
                return Poll::Ready(Err(Aborted::Request(no_response(error))));
            }
        }
        if self.poll_client_end(cx, upstream).is_ready() {
            let disconnected = NoResponse::ClientDisconnected(CLIENT_DISCONNECTED);
            return Poll::Ready(Err(Aborted::Request(disconnected)));
        }
        if let Poll::Ready(Err(_)) = self.client.poll_flush(cx) {
            let disconnected = NoResponse::ClientDisconnected(CLIENT_DISCONNECTED);
            return Poll::Ready(Err(Aborted::Request(disconnected)));
        }
        match (reader.poll(cx, &mut upstream.socket), unsent) {
            (Poll::Ready(Err(ResponseHeadError::Broken(_))) | Poll::Pending, Some(error)) => {
                return Poll::Ready(Err(AttemptError::Unsent(error).into()));
            }
            (Poll::Ready(read), _) => return Poll::Ready(read.map_err(Aborted::from)),
            (Poll::Pending, None) => {}
        }
        let waits_for = self.waits_for_head();
        let (progress, timeouts) = (self.upload.progress(), &self.engine.timeouts);
        if timer.poll(cx, waits_for, progress, timeouts).is_pending() {
            return Poll::Pending;
        }
        if waits_for == WaitsFor::Continue {
            // The backend has not sent a 100 in time: the edge does.
            self.expects = false;
            self.client.interim_continue();
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Err(match waits_for {
            WaitsFor::ClientBody => {
                let slow = Rejection::BodyTimeout("nothing within timeouts.downstream_read");
                Aborted::Request(slow.into())
            }
            _ => AttemptError::Timeout.into(),
        }))
    }

    fn waits_for_head(&self) -> WaitsFor {
        match &self.upload {
            _ if self.upgrade.is_some() => WaitsFor::Upgrade,
            upload if upload.is_sent() => WaitsFor::Response,
            upload if !upload.waits_for_client() => WaitsFor::BackendRead,
            upload if self.expects && upload.received() == 0 => WaitsFor::Continue,
            _ => WaitsFor::ClientBody,
        }
    }

    /// Sends more of the request.
    fn poll_upload(
        &mut self,
        cx: &mut Context<'_>,
        upstream: &mut UpstreamConnection,
    ) -> Poll<Result<(), UploadError>> {
        let (proxy, exchange) = (&*self.engine.proxy, &self.exchange);
        let check = |bytes| proxy.check_body_size(exchange, bytes);
        self.upload
            .poll(cx, &mut self.client, &mut upstream.socket, check)
    }

    /// Ready when the client has disconnected. A half-close is forwarded to the backend, unless `abort_on_client_close` is set or it
    /// is an upgrade.
    fn poll_client_end(
        &mut self,
        cx: &mut Context<'_>,
        upstream: &mut UpstreamConnection,
    ) -> Poll<()> {
        match self.client.poll_end(cx) {
            Poll::Pending => {}
            Poll::Ready(ClientEnd::HalfClosed)
                if !self.engine.abort_on_client_close && self.upgrade.is_none() =>
            {
                self.half_closed = HalfClosed::Client;
            }
            Poll::Ready(_) => return Poll::Ready(()),
        }
        if self.half_closed == HalfClosed::Client
            && self.upload.is_sent()
            && Pin::new(&mut upstream.socket).poll_shutdown(cx).is_ready()
        {
            self.half_closed = HalfClosed::Both;
        }
        Poll::Pending
    }

    /// Whether the client still waits for a 100: it may omit its body, so that the body and the next request are ambiguous.
    fn may_skip_body(&self) -> bool {
        self.expects && !self.client.body_is_over()
    }

    /// Sends the response of the edge for `rejection`.
    async fn reject(&mut self, rejection: Rejection) -> Ending {
        let error = rejection.to_string();
        let closes = self.closes || self.may_skip_body() || self.upgrade.is_some();
        let engine = self.engine;
        let last = engine.is_last(&mut self.client, &rejection, closes).await;
        let method = self.head.method();
        let status = engine
            .send_error(&mut self.client, method, rejection, last)
            .await;
        let logged = status.map_or(499, |status| status.as_u16());
        self.log(Some(logged), 0, Some(&error));
        Ending::of(status, last)
    }

    /// Forwards the response of a backend to the client.
    ///
    /// # Errors
    ///
    /// The response must not be forwarded: the client gets this rejection instead.
    async fn forward_response(&mut self, response: BackendResponse) -> Result<Ending, Rejection> {
        let BackendResponse {
            mut head,
            framing,
            early,
            mut upstream,
            backend,
        } = response;
        if let Err(bad) = self.engine.proxy.finalize(&self.exchange, &mut head) {
            let failed = self.engine.proxy.attempt_failed(
                &mut self.exchange,
                &bad.into(),
                Replay::Impossible,
            );
            return Err(failed.err().unwrap_or(Rejection::NoBackend));
        }
        let new_session = self.engine.proxy.new_session(&self.exchange, &head);
        let persists = head.persists();
        let status = head.status().as_u16();
        // After a response that is earlier than the end of the body, the rest of the body may never come. The connection closes then,
        // and the response has to say so.
        let is_early = D::REUSABLE && !self.client.body_is_over();
        let last = self.closes
            || is_early
            || self.upgrade.is_some()
            || self.half_closed != HalfClosed::No
            || self.engine.connections.closes_after_response();
        let mut body = ResponseBody::new(framing);
        let last = self.client.begin_response(&mut head, &body, last);
        let ending = self.end_receiver_in_drain(&body, &backend);
        let passed = self
            .forward_body(&mut body, early, new_session, &mut upstream, ending)
            .await;
        let reusable = persists
            && self.upgrade.is_none()
            && self.upload.is_sent()
            && !body.ends_with_connection()
            && self.half_closed == HalfClosed::No;
        if reusable && matches!(passed, Ok(Surplus::None)) {
            let tls = self.exchange.tls();
            self.engine.dialer.put_idle(&backend, tls, upstream);
        } else {
            drop(upstream);
        }
        let error = match &passed {
            Ok(_) => None,
            Err(Truncated::Backend(why) | Truncated::Client(why)) => Some(*why),
        };
        self.log(Some(status), body.content(), error);
        Ok(match passed {
            Ok(_) => Ending::Response { last },
            Err(Truncated::Backend(_)) => {
                // Send what was received; the aborted connection shows that it is incomplete.
                let _ = flush(&mut self.client, &self.engine.timeouts).await;
                self.client.cut_off();
                Ending::NoResponse
            }
            Err(Truncated::Client(_)) => Ending::NoResponse,
        })
    }

    /// For a response of a SockJS session that may last: what has it end when the edge drains.
    fn end_receiver_in_drain(
        &self,
        body: &ResponseBody,
        backend: &Arc<Backend>,
    ) -> Option<BoxFuture<'static, ()>> {
        let session = self.exchange.session().filter(|_| !body.has_length())?;
        let ending = session_handoff::end_receiver_in_drain(
            Arc::clone(&self.engine.tunnel_context),
            self.engine.connections.draining(),
            Arc::clone(backend),
            session,
        );
        Some(Box::pin(ending))
    }

    /// Forwards the body of a response, of which `early` was read with its head, and continues to send the request body. `beside` runs
    /// meanwhile.
    async fn forward_body(
        &mut self,
        body: &mut ResponseBody,
        early: Vec<u8>,
        new_session: Option<NewSession>,
        upstream: &mut UpstreamConnection,
        mut beside: Option<BoxFuture<'static, ()>>,
    ) -> Result<Surplus, Truncated> {
        let mut sleep = pin!(sleep(Duration::ZERO));
        let mut passing = Passing {
            timer: StallTimer::new(sleep.as_mut()),
            early,
            new_session,
            passed: 0,
            progress: 0,
            surplus: Surplus::None,
            has_ended: false,
            uploads: !self.upload.is_sent(),
        };
        poll_fn(|cx| {
            if let Some(running) = &mut beside
                && running.as_mut().poll(cx).is_ready()
            {
                beside = None;
            }
            self.poll_forward(cx, body, upstream, &mut passing)
        })
        .await
    }

    fn poll_forward(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut ResponseBody,
        upstream: &mut UpstreamConnection,
        passing: &mut Passing<'_>,
    ) -> Poll<Result<Surplus, Truncated>> {
        const CLIENT_DISCONNECTED: &str = "the client disconnected before the end of the response";
        let client_disconnected = || Poll::Ready(Err(Truncated::Client(CLIENT_DISCONNECTED)));
        if passing.uploads {
            match self.poll_upload(cx, upstream) {
                Poll::Pending => {}
                // The backend may stop reading the request and still send its response.
                Poll::Ready(Ok(()) | Err(UploadError::Backend(_))) => passing.uploads = false,
                Poll::Ready(Err(UploadError::Client(BodyError::ClientLeft))) => {
                    return client_disconnected();
                }
                Poll::Ready(Err(_)) => {
                    let why = "the rest of the request body cannot be forwarded";
                    return Poll::Ready(Err(Truncated::Backend(why)));
                }
            }
        }
        if self.poll_client_end(cx, upstream).is_ready() {
            return client_disconnected();
        }
        let waits_for = loop {
            if body.is_over() {
                passing.surplus.note(passing.passed < passing.early.len());
                if !std::mem::replace(&mut passing.has_ended, true)
                    && self.client.end_response(body).is_err()
                {
                    return client_disconnected();
                }
                match self.client.poll_flush(cx) {
                    Poll::Ready(Ok(())) => return Poll::Ready(Ok(passing.surplus)),
                    Poll::Ready(Err(_)) => return client_disconnected(),
                    Poll::Pending => break WaitsFor::ClientRead,
                }
            }
            let room = match self.client.poll_room(cx) {
                Poll::Ready(Ok(room)) => room,
                Poll::Ready(Err(_)) => return client_disconnected(),
                Poll::Pending => break WaitsFor::ClientRead,
            };
            match self.poll_piece(cx, body, upstream, passing, room) {
                Poll::Ready(Ok(())) => passing.progress += 1,
                Poll::Ready(Err(cut)) => return Poll::Ready(Err(cut)),
                Poll::Pending => match self.client.poll_flush(cx) {
                    Poll::Ready(Ok(())) => break WaitsFor::Response,
                    Poll::Ready(Err(_)) => return client_disconnected(),
                    Poll::Pending => break WaitsFor::ClientRead,
                },
            }
        };
        let timeouts = &self.engine.timeouts;
        let progress = passing.progress + self.upload.progress();
        if passing
            .timer
            .poll(cx, waits_for, progress, timeouts)
            .is_pending()
        {
            return Poll::Pending;
        }
        Poll::Ready(Err(match waits_for {
            WaitsFor::ClientRead => Truncated::Client(
                "the client did not read the response within timeouts.downstream_write",
            ),
            _ => Truncated::Backend("the response stalled for timeouts.upstream_read"),
        }))
    }

    /// Forwards one piece of the response body.
    fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut ResponseBody,
        upstream: &mut UpstreamConnection,
        passing: &mut Passing<'_>,
        room: usize,
    ) -> Poll<Result<(), Truncated>> {
        let client = &mut self.client;
        if passing.passed < passing.early.len() {
            let rest = &passing.early[passing.passed..];
            let piece = &rest[..rest.len().min(room)];
            passing.passed += piece.len();
            if let Some(new_session) = &mut passing.new_session {
                new_session.inspect(piece);
            }
            let passed = client.pass(cx, body, piece);
            let surplus = passed.map_err(Truncated::from)?;
            passing.surplus.note(surplus);
            return Poll::Ready(Ok(()));
        }
        let new_session = &mut passing.new_session;
        // `None` is the end of the connection.
        let read = poll_read_scratch(&mut upstream.socket, cx, room, |bytes, cx| {
            if let Some(new_session) = new_session {
                new_session.inspect(bytes);
            }
            (!bytes.is_empty()).then(|| client.pass(cx, body, bytes))
        });
        let Poll::Ready(read) = read else {
            return Poll::Pending;
        };
        let passed = match read.map_err(|_| Truncated::Backend(BACKEND_FAILED))? {
            Some(passed) => passed,
            None if !body.ends_with_connection() => {
                return Poll::Ready(Err(Truncated::Backend(BACKEND_FAILED)));
            }
            None if upstream.was_truncated() => {
                return Poll::Ready(Err(Truncated::Backend(
                    "the TLS connection ended without close_notify, so the response may be incomplete",
                )));
            }
            None => client.pass(cx, body, &[]),
        };
        passing.surplus.note(passed?);
        Poll::Ready(Ok(()))
    }

    /// Sends the 101, and spawns the task of the tunnel.
    async fn open_tunnel(self, response: BackendResponse, tunnel: Option<Permits>) {
        let Self {
            engine,
            mut client,
            mut exchange,
            upgrade,
            ..
        } = self;
        let (Some(upgrade), Some(tunnel)) = (upgrade, tunnel) else {
            debug_assert!(false, "a 101 is checked against the requested upgrade");
            return;
        };
        let proxy = &engine.proxy;
        let mut head = response.head;
        let can_hand_off = exchange.offers_handoff() && head.text(HANDOFF_HEADER) == Some("1");
        let sent = async {
            let finalized = proxy.finalize(&exchange, &mut head);
            finalized.map_err(io::Error::other)?;
            client.accept_upgrade(&mut head, &upgrade.protocol)?;
            flush(&mut client, &engine.timeouts).await
        };
        if let Err(error) = sent.await {
            let error = error.to_string();
            let outcome = Outcome {
                status: Some(499),
                error: Some(&error),
                ..Outcome::default()
            };
            return proxy.log(&exchange, outcome);
        }
        let permits = TunnelPermits {
            connection: upgrade.connection,
            tunnel,
            at_backend: exchange.take_tunnel_slot(),
        };
        let count = response.backend.open_tunnel();
        let info = tunnel::info(&exchange, &response.backend.tunnels);
        let (client, client_early) = client.into_tunnel();
        let parts = TunnelParts {
            client,
            backend: response.upstream.socket.without_rustls(),
            client_early,
            backend_early: response.early,
            protocol: match &*upgrade.protocol {
                "websocket" if can_hand_off => Protocol::WebSocketWithHandoff,
                "websocket" => Protocol::WebSocket,
                _ => Protocol::Opaque,
            },
            entry: engine.tunnels.register(info, exchange.arrived()),
        };
        exchange.switched();
        let context = Arc::clone(&engine.tunnel_context);
        let record = TunnelRecord::new(context, exchange.arrived(), count, permits);
        drop(exchange);
        let carried = run_tunnel(Tunnel::new(parts), record);
        engine.tunnels.tasks().spawn(carried);
    }

    fn log(&self, status: Option<u16>, bytes_out: u64, error: Option<&str>) {
        let outcome = Outcome {
            status,
            bytes_in: self.upload.received(),
            bytes_out,
            error,
        };
        self.engine.proxy.log(&self.exchange, outcome);
    }
}

/// How far a response body has been forwarded.
struct Passing<'a> {
    timer: StallTimer<'a>,
    /// What was read with the head; `passed` bytes of it have been forwarded.
    early: Vec<u8>,
    passed: usize,
    /// Inspects the body before it is sent to the client.
    new_session: Option<NewSession>,
    progress: u64,
    surplus: Surplus,
    /// Whether the end of the body was sent to the client.
    has_ended: bool,
    /// Whether the request is still being sent.
    uploads: bool,
}

/// Whether more bytes than the response were received: then the connection cannot be reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Surplus {
    None,
    Some,
}

impl Surplus {
    fn note(&mut self, has_more: bool) {
        if has_more {
            *self = Self::Some;
        }
    }
}

impl From<PassError> for Truncated {
    fn from(error: PassError) -> Self {
        match error {
            PassError::Client(_) => {
                Self::Client("the client disconnected before the end of the response")
            }
            PassError::Chunk(_) => Self::Backend("the backend sent a malformed chunk"),
        }
    }
}

/// The result for a request whose body cannot be forwarded to any backend.
fn no_response(error: UploadError) -> NoResponse {
    match error {
        UploadError::Client(BodyError::ClientLeft) => {
            NoResponse::ClientDisconnected(CLIENT_DISCONNECTED_IN_BODY)
        }
        UploadError::Client(BodyError::Chunk(_)) => {
            Rejection::Malformed("a malformed chunk").into()
        }
        UploadError::Rejected(rejection) => rejection.into(),
        // Handled by the callers.
        UploadError::Backend(_) => Rejection::NoBackend.into(),
    }
}
