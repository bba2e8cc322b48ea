//! Plain requests of HTTP/1: sent on and answered over connections of the edge's own.
//!
//! For those whose body, if they have one, has come with the head: nearly all. The others go through Pingora's proxy
//! ([`service`](crate::service)), as does HTTP/2; both ask [`Policy`] the same, and tests hold them to the same answers. What this
//! saves is half of the work on each request: heads stay the bytes that they are, bodies pass through memory of the thread, and a
//! request that waits for its answer holds little but its own head.

mod body;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use http::{HeaderValue, Method, StatusCode};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;

use crate::app::find_end;
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
use crate::forward::body::Body;
use crate::http1::{AnswerHead, BadAnswer, RequestHead, write_own};
use crate::pool::Backend;
use crate::service::STALE_MAX;
use crate::tunnel::Socket;
use crate::upstream::{DialError, Dialer, HopByHop, Repeatable};

/// The most that is read of an answer at once.
const SCRATCH: usize = 64 * 1024;

/// The most that the head of an answer may come to, which is kept until it is whole. Other proxies allow 8 to 64 KiB.
const HEAD_MAX: usize = 64 * 1024;

thread_local! {
    /// Where all answers of this thread are read to.
    static SCRATCH_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
}

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
    #[error("the connection broke or ended before the answer")]
    Broken(#[source] io::Error),
    #[error("the head of the answer is larger than {HEAD_MAX} bytes")]
    HeadTooLarge,
    #[error(transparent)]
    Bad(#[from] BadAnswer),
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
        let is_close = |token: &str| token.eq_ignore_ascii_case("close");
        let closes = head.elements("connection").any(is_close);
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
        let status = self.answer(carrier, head.method(), refusal, last).await;
        let logged = status.map_or(499, |status| status.as_u16());
        self.policy.log_refused(head, Some(peer), logged);
        After::answer(status.is_some(), last)
    }

    /// Gives an answer of the edge itself. Its status, if the client took it.
    async fn answer(
        &self,
        carrier: &mut Carrier,
        method: &Method,
        refusal: Refusal,
        last: bool,
    ) -> Option<StatusCode> {
        let (head, body) = self.policy.own_answer(refusal);
        let mut out = Vec::with_capacity(256 + body.len());
        write_own(&head, &body, method, last, &mut out);
        carrier.gather(out);
        self.flush(carrier).await.is_ok().then_some(head.status)
    }

    /// Sends what was gathered, within `timeouts.downstream_write`.
    async fn flush(&self, carrier: &mut Carrier) -> io::Result<()> {
        let flushed = timeout(self.timeouts.downstream_write, carrier.flush()).await;
        flushed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
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
                Err(Failed::Broken(_))
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
            Ok(sent) => sent.map_err(Failed::Broken)?,
            Err(_) => return Err(Failed::Timeout),
        }
        let mut come = Vec::new();
        loop {
            let head = self.read_head(&mut socket, &mut come).await?;
            let status = head.status();
            if status == StatusCode::SWITCHING_PROTOCOLS {
                return Err(Failed::Switched);
            }
            if !status.is_informational() {
                return Ok((head, come, socket));
            }
            // Nobody has asked for a 100: who waits for one is served elsewhere.
            if status != StatusCode::CONTINUE {
                let mut out = Vec::new();
                head.write(&mut out);
                self.carrier.gather(out);
                let flushed = self.forward.flush(self.carrier).await;
                flushed.map_err(|_| Failed::ClientLeft)?;
            }
        }
    }

    /// Reads one head; what comes behind it is left in `come`.
    async fn read_head(
        &mut self,
        socket: &mut Socket,
        come: &mut Vec<u8>,
    ) -> Result<AnswerHead, Failed> {
        let carrier = &mut *self.carrier;
        let mut searched = 0;
        let mut read = |cx: &mut Context<'_>| loop {
            if let Some(end) = find_end(come, searched) {
                let head = BytesMut::from(&come[..end]);
                *come = come.split_off(end);
                return Poll::Ready(Ok(AnswerHead::parse(head)?));
            }
            if HEAD_MAX <= come.len() {
                return Poll::Ready(Err(Failed::HeadTooLarge));
            }
            searched = come.len().saturating_sub(2);
            if carrier.poll_left(cx).is_ready() {
                return Poll::Ready(Err(Failed::ClientLeft));
            }
            let count = SCRATCH_BUFFER.with_borrow_mut(|scratch| {
                let mut buffer = ReadBuf::new(scratch);
                let read = Pin::new(&mut *socket).poll_read(cx, &mut buffer)?;
                come.extend_from_slice(buffer.filled());
                read.map(|()| Ok(buffer.filled().len()))
            });
            match ready!(count) {
                Ok(0) => {
                    let end = io::ErrorKind::UnexpectedEof;
                    return Poll::Ready(Err(Failed::Broken(end.into())));
                }
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(Failed::Broken(error))),
            }
        };
        let head = timeout(self.forward.timeouts.upstream_read, poll_fn(&mut read)).await;
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
            Failed::Broken(_) | Failed::HeadTooLarge | Failed::Bad(_) | Failed::Switched => false,
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
        let answered = self.forward.answer(self.carrier, method, refusal, true);
        let status = answered.await;
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
        let mut body = Body::new(framing);
        if body.is_wrapped() {
            answer.append("Transfer-Encoding", HeaderValue::from_static("chunked"));
        }
        let last = self.closes || self.forward.connections.is_draining();
        if last {
            answer.append("Connection", HeaderValue::from_static("close"));
        }
        let mut out = Vec::with_capacity(512 + early.len());
        answer.write(&mut out);
        self.carrier.gather(out);
        let passed = self.pass_body(&mut body, &early, socket).await;
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

    /// Passes the body on as it comes. Gives the connection back if nothing but the body has come on it.
    async fn pass_body(
        &mut self,
        body: &mut Body,
        early: &[u8],
        mut socket: Socket,
    ) -> Result<Option<Socket>, &'static str> {
        const WRONG_CHUNK: &str = "the backend sent a wrong chunk";
        const CLIENT_LEFT: &str = "the client left before the end of the answer";
        let timeouts = &self.forward.timeouts;
        let mut surplus = false;
        if !early.is_empty() {
            let piece = body.take(early).map_err(|_| WRONG_CHUNK)?;
            surplus = piece.is_part_of(early);
            self.carrier.gather(piece.as_ref().to_vec());
        }
        loop {
            if self.forward.flush(self.carrier).await.is_err() {
                return Err(CLIENT_LEFT);
            }
            if body.is_over() {
                return Ok((!surplus && !body.is_wrapped()).then_some(socket));
            }
            let carrier = &mut *self.carrier;
            let mut pass = |cx: &mut Context<'_>| {
                if carrier.poll_left(cx).is_ready() {
                    return Poll::Ready(Err(CLIENT_LEFT));
                }
                SCRATCH_BUFFER.with_borrow_mut(|scratch| {
                    let mut buffer = ReadBuf::new(scratch);
                    let read = ready!(Pin::new(&mut socket).poll_read(cx, &mut buffer));
                    let come = buffer.filled();
                    if read.is_err() || (come.is_empty() && !body.is_wrapped()) {
                        return Poll::Ready(Err("the backend failed before the end of its answer"));
                    }
                    let Ok(piece) = body.take(come) else {
                        return Poll::Ready(Err(WRONG_CHUNK));
                    };
                    surplus = piece.is_part_of(come);
                    Poll::Ready(carrier.pass(cx, piece.as_ref()).map_err(|_| CLIENT_LEFT))
                })
            };
            match timeout(timeouts.upstream_read, poll_fn(&mut pass)).await {
                Ok(passed) => passed?,
                Err(_) => return Err("the backend did not go on with its answer in time"),
            }
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
