//! WebSockets over HTTP/2 (RFC 8441): a CONNECT with a `:protocol`, which is an upgrade for the backend.
//!
//! The client's end of such a tunnel is one stream of a connection that carries others, and stays in Pingora's hands: what passes
//! goes through a pipe between that stream and a tunnel like any other.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use h2::ext::Protocol as Wanted;
use http::{HeaderValue, Method, StatusCode, Version};
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use pingora::{Error, ErrorType, OrErr};
use tokio::io::{AsyncRead, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, duplex};
use tokio::time::timeout;

use crate::carrier::{peer_of, scheme_of};
use crate::error::Refusal;
use crate::exchange::{Exchange, Outcome};
use crate::fields::{Answer, Fields, Request};
use crate::forward::Body;
use crate::http1::{AnswerHead, RequestHead, poll_come};
use crate::takeover::record::{Places, Record, carry};
use crate::takeover::{CLIENT_LEFT, Reply, Takeover};
use crate::tunnel::{Protocol, Socket, Tunnel, TunnelParts};
use crate::upstream::{Asked, HopByHop};

const WEBSOCKET: &str = "websocket";

/// What may be on its way between a stream and its tunnel, each way.
const PIPE: usize = 8 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; PIPE].into());
}

/// Whether `request` is a CONNECT that asks for a WebSocket.
pub(crate) fn asks_for_websocket(request: &RequestHeader) -> bool {
    let wanted = request.extensions.get::<Wanted>();
    request.method == Method::CONNECT
        && wanted.is_some_and(|wanted| wanted.as_str().eq_ignore_ascii_case(WEBSOCKET))
}

/// The same request as a client of HTTP/1.1 would have sent it (RFC 8441, 5.1).
fn as_upgrade(mut request: RequestHeader) -> Result<RequestHead, Refusal> {
    request.set_method(Method::GET);
    request.set_version(Version::HTTP_11);
    let key = STANDARD.encode(fastrand::u128(..).to_ne_bytes());
    let host = request.uri.authority().map(ToString::to_string);
    let host = host.map(HeaderValue::try_from).transpose();
    let (Ok(host), Ok(key)) = (host, HeaderValue::try_from(key)) else {
        return Err(Refusal::Malformed("the host is not one"));
    };
    if let Some(host) = host {
        request.set("Host", host);
    }
    request.set("Sec-WebSocket-Key", key);
    // Whoever asks for a tunnel is known by it.
    request.set("Upgrade", HeaderValue::from_static(WEBSOCKET));
    RequestHead::of(&request).ok_or(Refusal::Malformed("the request cannot be passed on"))
}

impl Takeover {
    /// Serves the extended CONNECT of `downstream`, a stream of HTTP/2, and what passes through it until its end.
    ///
    /// # Cancel safety
    ///
    /// Dropping it ends the stream; the tunnel takes that for a client that has left.
    pub(crate) async fn take_over_stream(&self, downstream: &mut ServerSession) {
        let mut request = match as_upgrade(downstream.req_header().clone()) {
            Ok(request) => request,
            Err(refusal) => return self.answer_stream(downstream, None, refusal).await,
        };
        let (peer, scheme) = (peer_of(downstream), scheme_of(downstream));
        let mut exchange = match self.policy.admit(&request, peer, scheme) {
            Ok(exchange) => exchange,
            Err(refusal) => return self.answer_stream(downstream, None, refusal).await,
        };
        let tunnel = match self.policy.admit_tunnel(&exchange) {
            Ok(tunnel) => tunnel,
            Err(refusal) => {
                return self
                    .answer_stream(downstream, Some(&exchange), refusal)
                    .await;
            }
        };
        let reply = tokio::select! {
            biased;
            reply = self.ask_backends(&mut exchange, &mut request, WEBSOCKET) => reply,
            // Ready only if the client gives the stream up: it sends nothing before it has an answer.
            _ = downstream.read_body_or_idle(true) => {
                let gone = Outcome { status: Some(499), error: Some(CLIENT_LEFT), ..Outcome::default() };
                return self.policy.log(&exchange, gone);
            }
        };
        match reply {
            Ok(Reply::Switched(asked, count)) => {
                if !self.say_open(downstream, &exchange, asked.answer).await {
                    return;
                }
                let places = Places {
                    _connection: None,
                    _tunnel: tunnel,
                    _at_backend: exchange.take_slot(),
                };
                let (near, far) = duplex(PIPE);
                let parts = TunnelParts {
                    client: Socket::Wrapped(Box::new(far)),
                    backend: asked.socket,
                    client_early: Vec::new(),
                    backend_early: asked.early,
                    protocol: Protocol::WebSocket,
                    entry: self.tunnels.register(),
                };
                exchange.switched();
                let policy = Arc::clone(&self.policy);
                let record = Record::new(policy, &exchange, count, places);
                drop(exchange);
                self.tunnels
                    .tasks()
                    .spawn(carry(Tunnel::new(parts), record));
                pump(downstream, near).await;
            }
            Ok(Reply::Refused(refused)) => {
                self.pass_on_stream(downstream, &request, &exchange, refused)
                    .await;
            }
            Err(refusal) => {
                self.answer_stream(downstream, Some(&exchange), refusal)
                    .await;
            }
        }
    }

    /// Tells the client that it may send (RFC 8441, 5: 200 in the place of 101). Whether it could be told.
    async fn say_open(
        &self,
        downstream: &mut ServerSession,
        exchange: &Exchange,
        mut answer: AnswerHead,
    ) -> bool {
        answer.remove_hop_by_hop();
        answer.remove("sec-websocket-accept");
        self.policy.answered(exchange, &mut answer);
        let told = async {
            let head = answer.to_pingora(StatusCode::OK)?;
            downstream.write_response_header(Box::new(head)).await
        }
        .await;
        if let Err(error) = &told {
            let error = error.to_string();
            let outcome = Outcome {
                status: Some(499),
                error: Some(&error),
                ..Outcome::default()
            };
            self.policy.log(exchange, outcome);
        }
        told.is_ok()
    }

    /// Passes on an answer that is no 101, as it comes.
    async fn pass_on_stream(
        &self,
        downstream: &mut ServerSession,
        request: &RequestHead,
        exchange: &Exchange,
        refused: Asked,
    ) {
        let mut answer = refused.answer;
        let Ok(framing) = answer.framing(request.method()) else {
            let refusal = Refusal::BackendFailed;
            return self
                .answer_stream(downstream, Some(exchange), refusal)
                .await;
        };
        answer.remove_hop_by_hop();
        // What frames a body over HTTP/1 has no place in HTTP/2 (RFC 9113, 8.2.2).
        answer.remove("transfer-encoding");
        self.policy.answered_refusing(exchange, &mut answer);
        let passed = self.pass_stream(
            downstream,
            &answer,
            Body::new(framing),
            refused.early,
            refused.socket,
        );
        let error = passed.await.err().map(|error| error.to_string());
        let outcome = Outcome {
            status: Some(answer.status().as_u16()),
            bytes_out: downstream.body_bytes_sent() as u64,
            error: error.as_deref(),
            ..Outcome::default()
        };
        self.policy.log(exchange, outcome);
    }

    /// Passes on `answer` and its body, of which `come` has come.
    async fn pass_stream(
        &self,
        downstream: &mut ServerSession,
        answer: &AnswerHead,
        mut body: Body,
        mut come: Vec<u8>,
        mut socket: Socket,
    ) -> pingora::Result<()> {
        let broken = |why| Error::explain(ErrorType::ConnectionClosed, why);
        let head = answer.to_pingora(answer.status())?;
        downstream.write_response_header(Box::new(head)).await?;
        loop {
            let content = body.take_content(&come);
            let content = content.or_err(ErrorType::InvalidHTTPHeader, "a wrong chunk")?;
            if !content.is_empty() {
                let content = Bytes::from(content);
                downstream.write_response_body(content, false).await?;
            }
            if body.is_over() {
                return downstream.write_response_body(Bytes::new(), true).await;
            }
            let reading = poll_fn(|cx| poll_come(&mut socket, cx, |data, _| data.to_vec()));
            let read = timeout(self.timeouts.upstream_read, reading).await;
            let read = read.map_err(|_| broken("the backend did not go on in time"))?;
            come = read.or_err(ErrorType::ReadError, "the backend failed")?;
            if come.is_empty() && !body.is_wrapped() {
                return Err(broken("the backend failed before the end of its answer"));
            }
        }
    }

    async fn answer_stream(
        &self,
        downstream: &mut ServerSession,
        exchange: Option<&Exchange>,
        refusal: Refusal,
    ) {
        let error = refusal.to_string();
        let (head, body) = self.policy.own_answer(refusal);
        let status = head.status.as_u16();
        let answered = async {
            downstream.write_response_header(head).await?;
            downstream.write_response_body(body, true).await
        }
        .await;
        let status = answered.is_ok().then_some(status);
        match exchange {
            Some(exchange) => {
                let outcome = Outcome {
                    status,
                    error: Some(&error),
                    ..Outcome::default()
                };
                self.policy.log(exchange, outcome);
            }
            None => {
                let peer = Some(peer_of(downstream));
                self.policy.log_unread(peer, status.unwrap_or(499));
            }
        }
    }
}

/// Moves what comes between a stream and the pipe to its tunnel, until both directions have ended or the client is gone.
///
/// What the backend does not take yet holds up the client, and not what comes from the backend.
async fn pump(downstream: &mut ServerSession, pipe: DuplexStream) {
    let (mut from_tunnel, mut to_tunnel) = tokio::io::split(pipe);
    let mut came = Bytes::new();
    let (mut up, mut down) = (true, true);
    while up || down {
        tokio::select! {
            read = downstream.read_request_body(), if up && came.is_empty() => match read {
                Ok(Some(data)) => came = data,
                Ok(None) => {
                    up = false;
                    let _ = to_tunnel.shutdown().await;
                }
                // It has reset the stream.
                Err(_) => return,
            },
            sent = to_tunnel.write(&came), if !came.is_empty() => match sent {
                Ok(count) if count > 0 => drop(came.split_to(count)),
                // The tunnel is over: what still comes is dropped.
                _ => (up, came) = (false, Bytes::new()),
            },
            data = poll_fn(|cx| poll_piece(&mut from_tunnel, cx)), if down => {
                down = !data.is_empty();
                if downstream.write_response_body(data, !down).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// What is there, in one piece: peers may take many small DATA frames for an attack. Empty at the end.
fn poll_piece(pipe: &mut ReadHalf<DuplexStream>, cx: &mut Context<'_>) -> Poll<Bytes> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut buffer = ReadBuf::new(scratch);
        // A pipe knows no faults but its end.
        let _ = ready!(Pin::new(pipe).poll_read(cx, &mut buffer));
        Poll::Ready(Bytes::copy_from_slice(buffer.filled()))
    })
}
