//! Taking an upgrade over: from the request to a tunnel of its own.
//!
//! Until the client has seen a 101, another backend may be asked. What either end sent early is in the tunnel before anything
//! else. An answer that is no 101 is passed on whole.

mod over_h2;
mod record;

use std::sync::Arc;

use bytes::BytesMut;
use http::HeaderValue;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::ServerSession;
use pingora::{Error, ErrorType, OrErr};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::carrier::Carrier;
use crate::carrier::Unread;
use crate::carrier::peer_of;
use crate::carrier::scheme_of;
use crate::config::Timeouts;
use crate::error::Refusal;
use crate::exchange::Again;
use crate::exchange::Exchange;
use crate::exchange::Outcome;
use crate::exchange::Policy;
use crate::limits::Pass;
use crate::pool::TunnelCount;
pub(crate) use crate::takeover::over_h2::asks_for_websocket;
use crate::takeover::record::Places;
use crate::takeover::record::Record;
use crate::takeover::record::carry;
use crate::tunnel::Protocol;
use crate::tunnel::Socket;
use crate::tunnel::Tunnel;
use crate::tunnel::TunnelParts;
use crate::tunnel::Tunnels;
use crate::upstream::AskLimits;
use crate::upstream::Asked;
use crate::upstream::Dialer;
use crate::upstream::HandshakeError;
use crate::upstream::HopByHop;
use crate::upstream::RefusedUpgrade;
use crate::upstream::ask;

/// Takes upgrades over.
pub(crate) struct Takeover {
    pub(crate) policy: Arc<Policy>,
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) tunnels: Arc<Tunnels>,
    pub(crate) timeouts: Timeouts,
}

/// The answer to an upgrade.
enum Reply {
    Switched {
        response: Box<ResponseHeader>,
        socket: Socket,
        early: Vec<u8>,
        count: TunnelCount,
    },
    Refused(RefusedUpgrade),
}

/// What became of asking one backend.
enum Attempt {
    /// It answered, and its answer counts.
    Over(Reply),
    /// It would not, and another may be asked before its answer is passed on.
    Refused(RefusedUpgrade),
    /// It gave no answer, and another may be asked.
    Failed,
}

impl Takeover {
    /// Serves the upgrade at the start of `carrier.ahead`, whatever comes of it.
    pub(crate) async fn take_over(
        &self,
        mut carrier: Carrier,
        head: usize,
        body: Unread,
        protocol: String,
        pass: Pass,
    ) {
        let Ok(request) = carrier.begin_request(head, Unread::Bytes(0)) else {
            return;
        };
        let mut downstream = ServerSession::new_http1(Box::new(carrier));
        downstream.set_read_timeout(Some(self.timeouts.head));
        downstream.set_write_timeout(Some(self.timeouts.downstream_write));
        downstream.set_pipelined_prefix(request);
        if !matches!(downstream.read_request().await, Ok(true)) {
            return self
                .answer_unadmitted(downstream, Refusal::Malformed("not HTTP"))
                .await;
        }
        self.serve(downstream, body, protocol, pass).await;
    }

    /// As [`Takeover::take_over`], for a request that somebody else has read: `request` without a body, and what came behind it
    /// in `carrier.ahead`.
    pub(crate) async fn take_over_read(
        &self,
        carrier: Carrier,
        request: RequestHeader,
        protocol: String,
        pass: Pass,
    ) {
        let mut downstream = ServerSession::new_http1(Box::new(carrier));
        downstream.set_write_timeout(Some(self.timeouts.downstream_write));
        if !set_request(&mut downstream, request).await {
            return;
        }
        self.serve(downstream, Unread::Bytes(0), protocol, pass)
            .await;
    }

    /// Serves an upgrade whose head has been read. `downstream` stands on a [`Carrier`].
    async fn serve(
        &self,
        mut downstream: ServerSession,
        body: Unread,
        protocol: String,
        pass: Pass,
    ) {
        if let Err(refusal) = check(downstream.req_header(), body, &protocol) {
            return self.answer_unadmitted(downstream, refusal).await;
        }
        let admitted = self.policy.admit(
            downstream.req_header(),
            peer_of(&downstream),
            scheme_of(&downstream),
        );
        let mut exchange = match admitted {
            Ok(exchange) => exchange,
            Err(refusal) => return self.answer_unadmitted(downstream, refusal).await,
        };
        let tunnel = match self.policy.admit_tunnel(&exchange) {
            Ok(tunnel) => tunnel,
            Err(refusal) => return self.answer_finally(downstream, &exchange, refusal).await,
        };
        let request = downstream.req_header().clone();
        let reply = tokio::select! {
            biased;
            reply = self.ask_backends(&mut exchange, request, &protocol) => reply,
            // Ready only if the client leaves: its early bytes are kept by the carrier.
            _ = downstream.read_body_or_idle(true) => {
                let gone = Outcome { status: Some(499), error: Some("the client left before the answer"), ..Outcome::default() };
                return self.policy.log(&exchange, gone);
            }
        };
        match reply {
            Ok(Reply::Switched {
                response,
                socket,
                early,
                count,
            }) => {
                let opened = Opened {
                    response,
                    socket,
                    early,
                    count,
                    protocol,
                    places: Places {
                        _connection: Some(pass),
                        _tunnel: tunnel,
                        _at_backend: exchange.take_slot(),
                    },
                };
                self.open_tunnel(downstream, exchange, opened).await;
            }
            Ok(Reply::Refused(refused)) => self.pass_on(downstream, &exchange, refused).await,
            Err(refusal) => self.answer_finally(downstream, &exchange, refusal).await,
        }
    }

    /// Asks one backend after the other until one has answered.
    async fn ask_backends(
        &self,
        exchange: &mut Exchange,
        request: RequestHeader,
        protocol: &str,
    ) -> Result<Reply, Refusal> {
        let request = upgrade_request(request, protocol)?;
        let mut kept = None;
        loop {
            match self.ask_one(exchange, request.clone(), protocol).await {
                Ok(Attempt::Over(reply)) => return Ok(reply),
                Ok(Attempt::Failed) => {}
                Ok(Attempt::Refused(refused)) => kept = Some((refused, exchange.choice())),
                Err(refusal) => {
                    // An answer of a backend, if there was one, says more than that there is no other.
                    let (refused, choice) = kept.ok_or(refusal)?;
                    exchange.come_back_to(choice);
                    return Ok(Reply::Refused(refused));
                }
            }
        }
    }

    /// One attempt at the next backend. An error ends the attempts.
    async fn ask_one(
        &self,
        exchange: &mut Exchange,
        mut request: RequestHeader,
        protocol: &str,
    ) -> Result<Attempt, Refusal> {
        let limits = AskLimits {
            answer: self.timeouts.upgrade,
            read: self.timeouts.upstream_read,
        };
        self.policy.attempt_is_due(exchange).await?;
        let backend = self.policy.choose(exchange)?;
        let socket = match self.dialer.dial(&backend.address, exchange.tls()).await {
            Ok(socket) => socket,
            Err(error) => {
                self.policy.dial_failed(exchange, &error)?;
                return Ok(Attempt::Failed);
            }
        };
        self.policy.prepare(exchange, &mut request);
        let asked = tokio::select! {
            biased;
            asked = ask(socket, request, protocol, limits) => asked,
            () = backend.falls_silent() => Err(HandshakeError::GivenUp),
        };
        match asked {
            Ok(Asked::Switched {
                response,
                socket,
                early,
            }) => Ok(Attempt::Over(Reply::Switched {
                response,
                socket,
                early,
                count: backend.open_tunnel(),
            })),
            Ok(Asked::Refused(refused)) => {
                let status = refused.response.status;
                if self.policy.upgrade_refused(exchange, status) {
                    Ok(Attempt::Refused(refused))
                } else {
                    Ok(Attempt::Over(Reply::Refused(refused)))
                }
            }
            Err(error) => {
                tracing::debug!(backend = %backend.id, %error, "upgrade failed");
                let (again, refusal) = match error {
                    HandshakeError::Timeout(_) => (Again::Forbidden, Refusal::BackendTimeout),
                    HandshakeError::GivenUp => (exchange.again(), Refusal::BackendTimeout),
                    HandshakeError::Broken(_) | HandshakeError::OtherProtocol(_) => {
                        (exchange.again(), Refusal::BackendFailed)
                    }
                };
                self.policy.backend_failed(exchange, again, refusal)?;
                Ok(Attempt::Failed)
            }
        }
    }

    /// Sends the 101 and leaves the two sockets to a task of their own.
    async fn open_tunnel(&self, mut downstream: ServerSession, exchange: Exchange, opened: Opened) {
        let Opened {
            mut response,
            socket,
            early,
            count,
            protocol,
            places,
        } = opened;
        response.remove_hop_by_hop();
        let upgraded = HeaderValue::from_str(&protocol);
        response.set_upgrade(upgraded.expect("it came in a header"));
        self.policy.answered(&exchange, &mut *response);
        let sent = self
            .written(downstream.write_response_header(response))
            .await;
        let Some(mut carrier) = carrier_of(downstream) else {
            return;
        };
        let sent = match sent {
            Ok(()) => self.written(flush(&mut carrier)).await,
            failed => failed,
        };
        if let Err(error) = sent {
            let error = error.to_string();
            return self.policy.log(
                &exchange,
                Outcome {
                    status: Some(499),
                    error: Some(&error),
                    ..Outcome::default()
                },
            );
        }
        let (stream, ahead) = carrier.into_parts();
        let mut client_early = ahead.to_vec();
        let parts = TunnelParts {
            client: Socket::from_pingora(stream, &mut client_early),
            backend: socket,
            client_early,
            backend_early: early,
            protocol: if protocol == "websocket" {
                Protocol::WebSocket
            } else {
                Protocol::Opaque
            },
            entry: self.tunnels.register(),
        };
        exchange.switched();
        let record = Record::new(Arc::clone(&self.policy), &exchange, count, places);
        self.tunnels
            .tasks()
            .spawn(carry(Tunnel::new(parts), record));
    }

    /// Passes on an answer that is no 101, as it comes.
    async fn pass_on(
        &self,
        mut downstream: ServerSession,
        exchange: &Exchange,
        mut refused: RefusedUpgrade,
    ) {
        let mut response = refused.response.clone();
        response.remove_hop_by_hop();
        self.policy.answered_refusing(exchange, &mut *response);
        let status = response.status.as_u16();
        let passed = async {
            downstream.set_keepalive(None);
            self.written(downstream.write_response_header(response))
                .await?;
            while let Some(piece) = refused.read_body().await? {
                self.written(downstream.write_response_body(piece, false))
                    .await?;
            }
            self.written(downstream.finish_body()).await
        }
        .await;
        let error = passed.err().map(|error| error.to_string());
        let bytes_out = downstream.body_bytes_sent() as u64;
        self.policy.log(
            exchange,
            Outcome {
                status: Some(status),
                bytes_in: 0,
                bytes_out,
                error: error.as_deref(),
            },
        );
        close(downstream).await;
    }

    async fn answer_unadmitted(&self, mut downstream: ServerSession, refusal: Refusal) {
        let peer = peer_of(&downstream);
        let status = self.answer(&mut downstream, refusal).await;
        self.policy.log_unread(Some(peer), status.unwrap_or(499));
        close(downstream).await;
    }

    /// Answers a request that goes nowhere any more, and closes its connection.
    async fn answer_finally(
        &self,
        mut downstream: ServerSession,
        exchange: &Exchange,
        refusal: Refusal,
    ) {
        let error = refusal.to_string();
        let status = self.answer(&mut downstream, refusal).await;
        let outcome = Outcome {
            status,
            error: Some(&error),
            ..Outcome::default()
        };
        self.policy.log(exchange, outcome);
        close(downstream).await;
    }

    /// Answers for the last time. The status, if the client was there to get it.
    async fn answer(&self, downstream: &mut ServerSession, refusal: Refusal) -> Option<u16> {
        let (head, body) = self.policy.own_answer(refusal);
        let status = head.status.as_u16();
        downstream.set_keepalive(None);
        let answered = self.written(async {
            downstream.write_response_header(head).await?;
            downstream.write_response_body(body, true).await
        });
        answered.await.is_ok().then_some(status)
    }

    /// What comes of one write to the client, which may be stuck for `timeouts.downstream_write`: Pingora sees to that for
    /// bodies alone.
    async fn written<T>(
        &self,
        write: impl Future<Output = pingora::Result<T>>,
    ) -> pingora::Result<T> {
        let done = timeout(self.timeouts.downstream_write, write).await;
        done.unwrap_or_else(|_| {
            Error::e_explain(ErrorType::WriteTimedout, "the client takes nothing")
        })
    }
}

async fn flush(carrier: &mut Carrier) -> pingora::Result<()> {
    let flushed = carrier.flush().await;
    flushed.or_err(ErrorType::WriteError, "flushing the 101")
}

fn carrier_of(downstream: ServerSession) -> Option<Carrier> {
    match downstream {
        ServerSession::H1(session) => Carrier::from_pingora(session.into_inner()),
        _ => None,
    }
}

/// Closes the connection once its last answer is written.
async fn close(downstream: ServerSession) {
    if let Some(carrier) = carrier_of(downstream) {
        carrier.linger().await;
    }
}

/// An upgrade that a backend has agreed to.
struct Opened {
    response: Box<ResponseHeader>,
    socket: Socket,
    early: Vec<u8>,
    count: TunnelCount,
    protocol: String,
    places: Places,
}

/// Has a session that has read nothing yet stand for `request`. Whether it does.
pub(crate) async fn set_request(session: &mut ServerSession, request: RequestHeader) -> bool {
    // Pingora takes a head only from bytes; these give way to the one that it has parsed already.
    session.set_pipelined_prefix(BytesMut::from(&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..]));
    let read = matches!(session.read_request().await, Ok(true));
    if read {
        *session.req_header_mut() = request;
    }
    read
}

/// Whether a request with this method may ask for `protocol`.
///
/// A WebSocket begins with a GET (RFC 6455, 4.1). Any other request that asks for one is an ordinary one, whose Upgrade is
/// ignored (RFC 9110, 7.8): the backend answers it.
pub(crate) fn can_begin(method: &str, protocol: &str) -> bool {
    protocol != "websocket" || method == "GET"
}

/// Refuses what two parsers could take for two different things: a body, or a method that has no business here.
///
/// # Errors
///
/// [`Refusal::Malformed`].
pub(crate) fn check(request: &RequestHeader, body: Unread, protocol: &str) -> Result<(), Refusal> {
    if body != Unread::Bytes(0) {
        return Err(Refusal::Malformed("an upgrade with a body"));
    }
    if !can_begin(request.method.as_str(), protocol) {
        return Err(Refusal::Malformed("a websocket upgrade that is no GET"));
    }
    Ok(())
}

/// The request as every backend gets it, but for who the client is.
fn upgrade_request(mut request: RequestHeader, protocol: &str) -> Result<RequestHeader, Refusal> {
    request.remove_hop_by_hop();
    let malformed = |_| Refusal::Malformed("the request cannot be passed on");
    request.set_upgrade(HeaderValue::from_str(protocol).map_err(malformed)?);
    Ok(request)
}
