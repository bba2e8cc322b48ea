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
use http::header::{HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{Method, StatusCode, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::ServerSession;
use tokio::io::{AsyncRead, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, duplex};

use crate::carrier::{peer_of, scheme_of};
use crate::error::Refusal;
use crate::exchange::{Exchange, Outcome};
use crate::takeover::record::{Places, Record, carry};
use crate::takeover::{Reply, Takeover};
use crate::tunnel::{Protocol, Socket, Tunnel, TunnelParts};
use crate::upstream::{HopByHop, RefusedUpgrade};

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
fn as_upgrade(mut request: RequestHeader) -> Result<RequestHeader, Refusal> {
    let malformed = |_| Refusal::Malformed("the request cannot be passed on");
    request.set_method(Method::GET);
    request.set_version(Version::HTTP_11);
    if let Some(authority) = request.uri.authority() {
        let host = authority.to_string();
        request.insert_header(HOST, host).map_err(malformed)?;
    }
    let key = STANDARD.encode(fastrand::u128(..).to_ne_bytes());
    request
        .insert_header(SEC_WEBSOCKET_KEY, key)
        .map_err(malformed)?;
    // Whoever asks for a tunnel is known by it.
    request
        .insert_header(UPGRADE, WEBSOCKET)
        .map_err(malformed)?;
    Ok(request)
}

impl Takeover {
    /// Serves the extended CONNECT of `downstream`, a stream of HTTP/2, and what passes through it until its end.
    ///
    /// # Cancel safety
    ///
    /// Dropping it ends the stream; the tunnel takes that for a client that has left.
    pub(crate) async fn take_over_stream(&self, downstream: &mut ServerSession) {
        let request = match as_upgrade(downstream.req_header().clone()) {
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
            reply = self.ask_backends(&mut exchange, request, WEBSOCKET) => reply,
            // Ready only if the client gives the stream up: it sends nothing before it has an answer.
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
                if !self.say_open(downstream, &exchange, *response).await {
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
                    backend: socket,
                    client_early: Vec::new(),
                    backend_early: early,
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
                self.pass_on_stream(downstream, &exchange, refused).await;
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
        mut response: ResponseHeader,
    ) -> bool {
        response.remove_hop_by_hop();
        response.remove_header(&SEC_WEBSOCKET_ACCEPT);
        self.policy.answered(exchange, &mut response);
        // A status of its own head is always valid.
        let _ = response.set_status(StatusCode::OK);
        let written = downstream.write_response_header(Box::new(response)).await;
        if let Err(error) = &written {
            let error = error.to_string();
            let outcome = Outcome {
                status: Some(499),
                error: Some(&error),
                ..Outcome::default()
            };
            self.policy.log(exchange, outcome);
        }
        written.is_ok()
    }

    /// Passes on an answer that is no 101, as it comes.
    async fn pass_on_stream(
        &self,
        downstream: &mut ServerSession,
        exchange: &Exchange,
        mut refused: RefusedUpgrade,
    ) {
        let mut response = refused.response.clone();
        response.remove_hop_by_hop();
        self.policy.answered_refusing(exchange, &mut *response);
        let status = response.status.as_u16();
        let passed = async {
            downstream.write_response_header(response).await?;
            while let Some(piece) = refused.read_body().await? {
                downstream.write_response_body(piece, false).await?;
            }
            downstream.write_response_body(Bytes::new(), true).await
        }
        .await;
        let error = passed.err().map(|error| error.to_string());
        let outcome = Outcome {
            status: Some(status),
            bytes_out: downstream.body_bytes_sent() as u64,
            error: error.as_deref(),
            ..Outcome::default()
        };
        self.policy.log(exchange, outcome);
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
