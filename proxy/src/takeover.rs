//! Taking an upgrade over: from the request to a tunnel of its own.
//!
//! Until the client has seen a 101, another backend may be asked. What either end sent early is in the tunnel before anything
//! else. An answer that is no 101 is passed on whole.

mod over_h2;
mod record;

use std::future::poll_fn;
use std::sync::Arc;

use bytes::BytesMut;
use http::HeaderValue;
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;

use crate::carrier::Carrier;
use crate::carrier::Unread;
use crate::config::Timeouts;
use crate::error::Refusal;
use crate::exchange::Again;
use crate::exchange::Exchange;
use crate::exchange::Outcome;
use crate::exchange::Policy;
use crate::fields::{Answer, Request};
use crate::forward::{Body, answer, flush, pass_body};
use crate::http1::RequestHead;
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
use crate::upstream::Asked;
use crate::upstream::Dialer;
use crate::upstream::HandshakeError;
use crate::upstream::HopByHop;
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
    Switched(Asked, TunnelCount),
    Refused(Asked),
}

/// What became of asking one backend.
enum Attempt {
    /// It answered, and its answer counts.
    Over(Reply),
    /// It would not, and another may be asked before its answer is passed on.
    Refused(Asked),
    /// It gave no answer, and another may be asked.
    Failed,
}

/// What is said of a client that did not wait for its answer.
const CLIENT_LEFT: &str = "the client left before the answer";

impl Takeover {
    /// Serves the upgrade whose head is `head`, whatever comes of it. What came behind it is in `carrier.ahead`.
    pub(crate) async fn take_over(
        &self,
        mut carrier: Carrier,
        head: RequestHead,
        body: Unread,
        protocol: String,
        pass: Pass,
    ) {
        let (peer, scheme) = carrier.origin();
        let admitted = check(&head, body, &protocol);
        let admitted = admitted.and_then(|()| self.policy.admit(&head, peer, scheme));
        let mut exchange = match admitted {
            Ok(exchange) => exchange,
            Err(refusal) => {
                let status = self.answer(&mut carrier, &head, refusal).await;
                self.policy.log_unread(Some(peer), status.unwrap_or(499));
                return carrier.linger().await;
            }
        };
        let tunnel = match self.policy.admit_tunnel(&exchange) {
            Ok(tunnel) => tunnel,
            Err(refusal) => {
                return self
                    .answer_finally(carrier, &head, &exchange, refusal)
                    .await;
            }
        };
        let mut request = head;
        let reply = tokio::select! {
            biased;
            reply = self.ask_backends(&mut exchange, &mut request, &protocol) => reply,
            // Its early bytes are kept by the carrier.
            () = poll_fn(|cx| carrier.poll_left(cx)) => {
                let gone = Outcome { status: Some(499), error: Some(CLIENT_LEFT), ..Outcome::default() };
                return self.policy.log(&exchange, gone);
            }
        };
        match reply {
            Ok(Reply::Switched(asked, count)) => {
                let opened = Opened {
                    asked,
                    count,
                    protocol,
                    places: Places {
                        _connection: Some(pass),
                        _tunnel: tunnel,
                        _at_backend: exchange.take_slot(),
                    },
                };
                self.open_tunnel(carrier, exchange, opened).await;
            }
            Ok(Reply::Refused(refused)) => {
                self.pass_on(carrier, &request, &exchange, refused).await;
            }
            Err(refusal) => {
                self.answer_finally(carrier, &request, &exchange, refusal)
                    .await;
            }
        }
    }

    /// Asks one backend after the other until one has answered.
    async fn ask_backends(
        &self,
        exchange: &mut Exchange,
        request: &mut RequestHead,
        protocol: &str,
    ) -> Result<Reply, Refusal> {
        let malformed = |_| Refusal::Malformed("the request cannot be passed on");
        request.remove_hop_by_hop();
        request.set_upgrade(HeaderValue::from_str(protocol).map_err(malformed)?);
        let mut kept = None;
        loop {
            match self.ask_one(exchange, request, protocol).await {
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
        request: &mut RequestHead,
        protocol: &str,
    ) -> Result<Attempt, Refusal> {
        self.policy.attempt_is_due(exchange).await?;
        let backend = self.policy.choose(exchange)?;
        let socket = match self.dialer.dial(&backend.address, exchange.tls()).await {
            Ok(socket) => socket,
            Err(error) => {
                self.policy.dial_failed(exchange, &error)?;
                return Ok(Attempt::Failed);
            }
        };
        self.policy.prepare(exchange, request);
        let mut written = Vec::with_capacity(1024);
        request.write(&mut written);
        let asked = tokio::select! {
            biased;
            asked = ask(socket, &written, protocol, self.timeouts.upgrade) => asked,
            () = backend.falls_silent() => Err(HandshakeError::GivenUp),
        };
        match asked {
            Ok(asked) if asked.has_switched() => {
                Ok(Attempt::Over(Reply::Switched(asked, backend.open_tunnel())))
            }
            Ok(refused) => {
                let status = refused.answer.status();
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
                    HandshakeError::Unsent(_)
                    | HandshakeError::NoHead(_)
                    | HandshakeError::OtherProtocol(_) => {
                        (exchange.again(), Refusal::BackendFailed)
                    }
                };
                self.policy.backend_failed(exchange, again, refusal)?;
                Ok(Attempt::Failed)
            }
        }
    }

    /// Sends the 101 and leaves the two sockets to a task of their own.
    async fn open_tunnel(&self, mut carrier: Carrier, exchange: Exchange, opened: Opened) {
        let Opened {
            asked,
            count,
            protocol,
            places,
        } = opened;
        let mut answer = asked.answer;
        answer.remove_hop_by_hop();
        let upgraded = HeaderValue::from_str(&protocol);
        answer.set_upgrade(upgraded.expect("it came in a header"));
        self.policy.answered(&exchange, &mut answer);
        let mut out = Vec::with_capacity(512);
        answer.write(&mut out);
        carrier.gather(out);
        if let Err(error) = flush(&mut carrier, &self.timeouts).await {
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
            backend: asked.socket,
            client_early,
            backend_early: asked.early,
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
        mut carrier: Carrier,
        request: &RequestHead,
        exchange: &Exchange,
        refused: Asked,
    ) {
        let mut answer = refused.answer;
        let Ok(framing) = answer.framing(request.method()) else {
            let refusal = Refusal::BackendFailed;
            return self
                .answer_finally(carrier, request, exchange, refusal)
                .await;
        };
        answer.remove_hop_by_hop();
        self.policy.answered_refusing(exchange, &mut answer);
        let mut body = Body::new(framing);
        body.announce(&mut answer, true);
        let mut out = Vec::with_capacity(512);
        answer.write(&mut out);
        carrier.gather(out);
        let (early, socket) = (&refused.early, refused.socket);
        let passed = pass_body(&mut carrier, &self.timeouts, &mut body, early, socket).await;
        self.policy.log(
            exchange,
            Outcome {
                status: Some(answer.status().as_u16()),
                bytes_in: 0,
                bytes_out: body.content(),
                error: passed.err(),
            },
        );
        carrier.linger().await;
    }

    /// Answers a request that goes nowhere any more, and closes its connection.
    async fn answer_finally(
        &self,
        mut carrier: Carrier,
        request: &RequestHead,
        exchange: &Exchange,
        refusal: Refusal,
    ) {
        let error = refusal.to_string();
        let status = self.answer(&mut carrier, request, refusal).await;
        let outcome = Outcome {
            status,
            error: Some(&error),
            ..Outcome::default()
        };
        self.policy.log(exchange, outcome);
        carrier.linger().await;
    }

    /// Answers for the last time. The status, if the client was there to get it.
    async fn answer(
        &self,
        carrier: &mut Carrier,
        request: &RequestHead,
        refusal: Refusal,
    ) -> Option<u16> {
        let by = (&*self.policy, &self.timeouts);
        let status = answer(by, carrier, request.method(), refusal, true).await;
        status.map(|status| status.as_u16())
    }
}

/// An upgrade that a backend has agreed to.
struct Opened {
    asked: Asked,
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
pub(crate) fn check(request: &impl Request, body: Unread, protocol: &str) -> Result<(), Refusal> {
    if body != Unread::Bytes(0) {
        return Err(Refusal::Malformed("an upgrade with a body"));
    }
    if !can_begin(request.method().as_str(), protocol) {
        return Err(Refusal::Malformed("a websocket upgrade that is no GET"));
    }
    Ok(())
}
