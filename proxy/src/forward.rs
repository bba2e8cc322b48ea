//! Plain requests of HTTP/1: sent on and answered over connections of the edge's own.
//!
//! For those whose body, if they have one, has come with the head: nearly all. The others go through Pingora's proxy
//! ([`service`](crate::service)), as does HTTP/2; both ask [`Policy`] the same, and tests hold them to the same answers. What this
//! saves is half of the work on each request: heads stay the bytes that they are, bodies pass through memory of the thread, and a
//! request that waits for its answer holds little but its own head.

mod body;

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::Poll;

use bytes::BytesMut;
use http::{Method, StatusCode};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::carrier::Carrier;
use crate::config::Timeouts;
use crate::drain::Connections;
use crate::error::Limit;
use crate::error::Refusal;
use crate::exchange::Again;
use crate::exchange::Exchange;
use crate::exchange::Outcome;
use crate::exchange::Policy;
use crate::fields::{Answer, Fields, Request};
pub(crate) use crate::forward::body::{Body, flush, pass_body};
use crate::http1::{AnswerHead, AnswerReader, NoHead, RequestHead, write_own};
use crate::pool::Backend;
use crate::tunnel::Socket;
use crate::upstream::{DialError, Dialer, HopByHop, Repeatable};

/// How many kept connections may turn out to be closed before that speaks against their backend.
///
/// All of them do when it restarts, but each is noticed as it closes: a request rarely meets one.
pub(crate) const STALE_MAX: usize = 2;

/// Sends requests on.
pub(crate) struct Forward {
    pub(crate) policy: Arc<Policy>,
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) timeouts: Timeouts,
}

/// Whether a client's connection can carry another request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    Kept,
    /// It has got its last answer.
    Closes,
    /// There is nobody at its other end.
    Lost,
}

/// The head of an answer, with what is behind it.
struct Reply {
    answer: AnswerHead,
    /// What came of the body in the same read.
    early: Vec<u8>,
    socket: Socket,
    backend: Arc<Backend>,
}

/// Why there is no answer of a backend.
enum NoReply {
    /// The client gets this one.
    Refused(Refusal),
    /// Nor anybody to give it to.
    ClientLeft(&'static str),
}

impl From<Refusal> for NoReply {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Why one attempt came to nothing.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the request could not be sent")]
    Unsent(#[source] io::Error),
    #[error(transparent)]
    NoHead(#[from] NoHead),
    #[error("a 101 that nobody asked for")]
    Switched,
    #[error("no answer in time")]
    Timeout,
    #[error("the client left before the answer")]
    ClientLeft,
}

impl Forward {
    /// Serves the request whose head is `head`, with all of its body.
    ///
    /// # Cancel safety
    ///
    /// Dropping it closes the connection to the backend, which sees that the client has left.
    pub(crate) async fn serve(
        &self,
        carrier: &mut Carrier,
        mut head: RequestHead,
        body: BytesMut,
    ) -> After {
        let (peer, scheme) = carrier.origin();
        let closes = head.lists("connection", "close");
        // What `Connection` names goes with it, and an upgrade that gets here is none.
        head.remove_hop_by_hop();
        let exchange = match self.policy.admit(&head, peer, scheme) {
            Ok(exchange) => exchange,
            Err(refusal) => return self.turn_away(carrier, &head, peer, refusal, closes).await,
        };
        let mut errand = Errand {
            forward: self,
            carrier,
            head,
            body,
            exchange,
            closes,
            stale: 0,
        };
        match errand.reply().await {
            Ok(reply) => errand.pass_on(reply).await,
            Err(NoReply::Refused(refusal)) => errand.refuse(refusal).await,
            Err(NoReply::ClientLeft(why)) => {
                errand.log(Some(499), 0, Some(why));
                After::Lost
            }
        }
    }

    /// Answers a request that is not let in.
    async fn turn_away(
        &self,
        carrier: &mut Carrier,
        head: &RequestHead,
        peer: IpAddr,
        refusal: Refusal,
        closes: bool,
    ) -> After {
        let too_large = refusal == Refusal::Limited(Limit::BodySize);
        let malformed = matches!(refusal, Refusal::Malformed(_));
        let last = closes || too_large || malformed || self.connections.is_draining();
        let by = (&*self.policy, &self.timeouts);
        let status = answer(by, carrier, head.method(), refusal, last).await;
        let logged = status.map_or(499, |status| status.as_u16());
        self.policy.log_refused(head, Some(peer), logged);
        After::answer(status.is_some(), last)
    }
}

/// Gives an answer of the edge itself to a request with `method`, whose connection ends with it if it is the `last`. Its status, if
/// the client took it.
pub(crate) async fn answer(
    (policy, timeouts): (&Policy, &Timeouts),
    carrier: &mut Carrier,
    method: &Method,
    refusal: Refusal,
    last: bool,
) -> Option<StatusCode> {
    let (head, body) = policy.own_answer(refusal);
    let mut out = Vec::with_capacity(256 + body.len());
    write_own(&head, &body, method, last, &mut out);
    carrier.gather(out);
    let flushed = flush(carrier, timeouts).await;
    flushed.is_ok().then_some(head.status)
}

impl After {
    fn answer(taken: bool, last: bool) -> Self {
        match (taken, last) {
            (true, false) => Self::Kept,
            (true, true) => Self::Closes,
            (false, _) => Self::Lost,
        }
    }
}

/// One request that was let in.
struct Errand<'a> {
    forward: &'a Forward,
    carrier: &'a mut Carrier,
    head: RequestHead,
    body: BytesMut,
    exchange: Exchange,
    /// Whether the client wants its connection closed behind the answer.
    closes: bool,
    /// How many kept connections turned out to be closed.
    stale: usize,
}

impl Errand<'_> {
    /// Asks one backend after the other until one has answered.
    async fn reply(&mut self) -> Result<Reply, NoReply> {
        let policy = &*self.forward.policy;
        loop {
            if self.exchange.waits() {
                let carrier = &mut *self.carrier;
                tokio::select! {
                    biased;
                    due = policy.attempt_is_due(&mut self.exchange) => due?,
                    () = poll_fn(|cx| carrier.poll_left(cx)) => {
                        return Err(NoReply::ClientLeft("the client left while it waited for its backend"));
                    }
                }
            }
            let backend = policy.choose(&mut self.exchange)?;
            match self.attempt(&backend).await {
                Ok(reply) => return Ok(reply),
                Err(failed) => self.failed(&backend, failed)?,
            }
        }
    }

    /// Asks `backend`, over a kept connection if there is one.
    async fn attempt(&mut self, backend: &Arc<Backend>) -> Result<Reply, Failed> {
        let Forward { dialer, policy, .. } = self.forward;
        let repeatable = self.exchange.repeatable();
        let mut request = Vec::new();
        loop {
            let tls = self.exchange.tls();
            let kept = dialer.take_kept(&backend.kept, tls, repeatable);
            let is_kept = kept.is_some();
            let socket = match kept {
                Some(socket) => socket,
                None => Box::pin(dialer.dial(&backend.address, tls)).await?,
            };
            if request.is_empty() {
                policy.prepare(&mut self.exchange, &mut self.head);
                request.reserve(1024 + self.body.len());
                self.head.write(&mut request);
                request.extend_from_slice(&self.body);
            }
            match self.ask(socket, &request).await {
                Ok((answer, early, socket)) => {
                    return Ok(Reply {
                        answer,
                        early,
                        socket,
                        backend: Arc::clone(backend),
                    });
                }
                // That the backend has closed it meanwhile says nothing about the backend: once more, with another one.
                Err(Failed::Unsent(_) | Failed::NoHead(NoHead::Broken(_)))
                    if is_kept && repeatable == Repeatable::Yes && self.stale < STALE_MAX =>
                {
                    self.stale += 1;
                }
                Err(failed) => return Err(failed),
            }
        }
    }

    /// Sends `request` and waits for the head of the answer.
    async fn ask(
        &mut self,
        mut socket: Socket,
        request: &[u8],
    ) -> Result<(AnswerHead, Vec<u8>, Socket), Failed> {
        let timeouts = &self.forward.timeouts;
        let sending = async {
            socket.write_all(request).await?;
            socket.flush().await
        };
        match timeout(timeouts.upstream_write, sending).await {
            Ok(sent) => sent.map_err(Failed::Unsent)?,
            Err(_) => return Err(Failed::Timeout),
        }
        let mut reader = AnswerReader::default();
        loop {
            let head = self.read_head(&mut socket, &mut reader).await?;
            let status = head.status();
            if status == StatusCode::SWITCHING_PROTOCOLS {
                return Err(Failed::Switched);
            }
            if !status.is_informational() {
                return Ok((head, reader.into_rest(), socket));
            }
            // Nobody has asked for a 100: who waits for one is served elsewhere.
            if status != StatusCode::CONTINUE {
                let mut out = Vec::new();
                head.write(&mut out);
                self.carrier.gather(out);
                let flushed = flush(self.carrier, timeouts).await;
                flushed.map_err(|_| Failed::ClientLeft)?;
            }
        }
    }

    /// Reads one head, unless the client leaves.
    async fn read_head(
        &mut self,
        socket: &mut Socket,
        reader: &mut AnswerReader,
    ) -> Result<AnswerHead, Failed> {
        let carrier = &mut *self.carrier;
        let read = poll_fn(|cx| match carrier.poll_left(cx) {
            Poll::Ready(()) => Poll::Ready(Err(Failed::ClientLeft)),
            Poll::Pending => reader.poll(cx, socket).map_err(Failed::from),
        });
        let head = timeout(self.forward.timeouts.upstream_read, read).await;
        head.unwrap_or(Err(Failed::Timeout))
    }

    /// Whether another attempt may be made after one that came to nothing.
    fn failed(&mut self, backend: &Backend, failed: Failed) -> Result<(), NoReply> {
        let policy = &*self.forward.policy;
        tracing::debug!(backend = %backend.id, error = %failed, "no answer");
        let timed_out = match failed {
            Failed::ClientLeft => {
                return Err(NoReply::ClientLeft("the client left before the answer"));
            }
            Failed::Dial(error) => return Ok(policy.dial_failed(&mut self.exchange, &error)?),
            Failed::Timeout => true,
            Failed::Unsent(_) | Failed::NoHead(_) | Failed::Switched => false,
        };
        // A backend that is well may be slow with this request, and another would be as slow.
        let again = match timed_out && !backend.is_silent() {
            true => Again::Forbidden,
            false => self.exchange.again(),
        };
        let refusal = match timed_out {
            true => Refusal::BackendTimeout,
            false => Refusal::BackendFailed,
        };
        Ok(policy.backend_failed(&mut self.exchange, again, refusal)?)
    }

    /// Answers for the backends, none of which has.
    async fn refuse(&mut self, refusal: Refusal) -> After {
        let error = refusal.to_string();
        let method = self.head.method();
        let by = (&*self.forward.policy, &self.forward.timeouts);
        let status = answer(by, self.carrier, method, refusal, true).await;
        let logged = status.map_or(499, |status| status.as_u16());
        self.log(Some(logged), 0, Some(&error));
        After::answer(status.is_some(), true)
    }

    /// Gives the client what a backend has answered.
    async fn pass_on(&mut self, reply: Reply) -> After {
        let Reply {
            mut answer,
            early,
            socket,
            backend,
        } = reply;
        let framing = match answer.framing(self.head.method()) {
            Ok(framing) => framing,
            Err(bad) => {
                tracing::debug!(backend = %backend.id, error = %bad, "an answer that cannot be passed on");
                return self.refuse(Refusal::BackendFailed).await;
            }
        };
        let persists = answer.persists();
        let status = answer.status().as_u16();
        answer.remove_hop_by_hop();
        self.forward.policy.answered(&self.exchange, &mut answer);
        let last = self.closes || self.forward.connections.is_draining();
        let mut body = Body::new(framing);
        body.announce(&mut answer, last);
        let mut out = Vec::with_capacity(512 + early.len());
        answer.write(&mut out);
        self.carrier.gather(out);
        let timeouts = &self.forward.timeouts;
        let passed = pass_body(self.carrier, timeouts, &mut body, &early, socket).await;
        let error = match passed {
            Ok(Some(socket)) if persists => {
                let tls = self.exchange.tls();
                self.forward.dialer.keep(&backend.kept, tls, socket);
                None
            }
            Ok(_) => None,
            Err(error) => Some(error),
        };
        self.log(Some(status), body.content(), error);
        match error {
            None => After::answer(true, last),
            Some(_) => After::Lost,
        }
    }

    fn log(&self, status: Option<u16>, bytes_out: u64, error: Option<&str>) {
        let outcome = Outcome {
            status,
            bytes_in: self.body.len() as u64,
            bytes_out,
            error,
        };
        self.forward.policy.log(&self.exchange, outcome);
    }
}
