//! A client connection, from the listener to its end.
//!
//! Reads each request head itself, under one deadline and one size. Upgrades that a route allows are taken over and leave as
//! tunnels; plain requests are sent on, or, where more of a body is to come, go to Pingora's proxy with the same bytes.

mod head;
mod redirect;
mod strict;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::BytesMut;
use http::Method;
use pingora::apps::{HttpServerApp, ServerApp};
use pingora::protocols::http::ServerSession;
use pingora::protocols::{ALPN, Stream};
use pingora::server::ShutdownWatch;
use pingora_proxy::HttpProxy;
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::app::head::HeadError;
use crate::app::head::HeadLimits;
use crate::app::head::Shape;
#[cfg(any(fuzzing, test))]
pub(crate) use crate::app::head::shape;
use crate::app::redirect::Fate;
use crate::carrier::Carrier;
use crate::carrier::Unread;
use crate::carrier::peer_of;
use crate::config::Timeouts;
use crate::drain::Connections;
use crate::entrance::Admission;
use crate::entrance::Entrances;
use crate::error::Limit;
use crate::error::Refusal;
use crate::exchange::Policy;
use crate::forward::{After, Forward};
use crate::http1::write_own;
use crate::limits::Pass;
use crate::service::Edge;
use crate::service::Parsed;
use crate::service::WRONG_CHUNK;
use crate::takeover::Takeover;

/// How long the answer to a connection that is closed may take to be written.
const ANSWER_WRITE: Duration = Duration::from_secs(1);

/// What every client connection needs.
pub(crate) struct EdgeApp {
    pub(crate) proxy: Arc<HttpProxy<Edge>>,
    pub(crate) policy: Arc<Policy>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) entrances: Arc<Entrances>,
    /// Bounds the connections over a limit that are told so: each holds a task and a descriptor meanwhile.
    pub(crate) over_limit: Arc<Semaphore>,
    pub(crate) upgrades: Arc<Takeover>,
    pub(crate) forward: Forward,
    pub(crate) timeouts: Timeouts,
    pub(crate) head_size: usize,
}

impl EdgeApp {
    /// Serves one plain request that has come with all of its body. Gives the connection back if it can carry another.
    async fn forward(&self, mut carrier: Carrier, head: usize, shape: Shape) -> Option<Carrier> {
        let mut bytes = carrier.begin_request(head, shape.body).ok()?;
        let body = match head < bytes.len() {
            true => bytes.split_off(head),
            false => BytesMut::new(),
        };
        let head = shape.head.with(bytes);
        match self.forward.serve(&mut carrier, head, body).await {
            After::Kept => Some(carrier),
            After::Closes => {
                carrier.linger().await;
                None
            }
            After::Lost => None,
        }
    }

    /// Serves any other plain request. Gives the connection back if it can carry another.
    async fn plain(
        &self,
        mut carrier: Carrier,
        head: usize,
        body: Unread,
        peer: Option<IpAddr>,
        shutdown: &ShutdownWatch,
    ) -> Option<Carrier> {
        let request = match carrier.begin_request(head, body) {
            Ok(request) => request,
            Err(_) => {
                self.refuse(carrier, peer, WRONG_CHUNK).await;
                return None;
            }
        };
        let mut downstream = ServerSession::new_http1(Box::new(carrier));
        let keepalive = self.timeouts.keepalive.as_secs().max(1);
        downstream.set_keepalive((!self.connections.is_draining()).then_some(keepalive));
        downstream.set_pipelined_prefix(request);
        let parsed = Parsed::default();
        downstream.set_connection_user_context(Some(Box::new(parsed.clone())));
        let peer = peer_of(&downstream);
        let reused = self.proxy.process_new_http(downstream, shutdown).await;
        if !parsed.take() {
            // What Pingora answers to a head that it does not like.
            self.policy.log_unread(Some(peer), 400);
        }
        Carrier::from_pingora(reused?.consume().0)
    }

    /// Tells a connection that there is too much of its kind, if not too many are being told that.
    async fn turn_away(&self, stream: Stream, limit: Limit) {
        if let Ok(_turn) = self.over_limit.try_acquire() {
            let peer = peer_of_stream(&stream);
            self.refuse(Carrier::new(stream), peer, Refusal::Limited(limit))
                .await;
        }
    }

    /// Answers a connection whose request cannot be served, and closes it.
    async fn refuse(&self, mut carrier: Carrier, peer: Option<IpAddr>, refusal: Refusal) {
        let (head, body) = self.policy.own_answer(refusal);
        self.policy.log_unread(peer, head.status.as_u16());
        let mut answer = Vec::new();
        write_own(&head, &body, &Method::GET, true, &mut answer);
        carrier.gather(answer);
        // Whoever does not take the answer has lost it.
        let _ = timeout(ANSWER_WRITE, carrier.flush()).await;
        carrier.linger().await;
    }

    /// The upgrade that the route of this request lets through, if it wishes for one.
    fn upgrade_to(&self, shape: &head::Shape) -> Option<String> {
        let wish = shape.upgrade.as_ref()?;
        self.policy
            .allowed_upgrade(wish.host.as_deref(), &wish.target, &wish.protocols)
    }
}

/// Where a plain request is sent, unless it is to be served here.
fn elsewhere(head: &[u8], port: u16) -> Option<Refusal> {
    let Some((target, host)) = head::target(head) else {
        return Some(Refusal::Malformed("not HTTP"));
    };
    match redirect::fate(&target, host.as_deref(), port) {
        Fate::Serve => None,
        Fate::Redirect(location) => Some(Refusal::UseHttps(location)),
        Fate::Malformed => Some(Refusal::Malformed("no host to redirect to")),
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
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let counted = self.connections.count();
        let entrance = self.entrances.of(&stream)?;
        let from = peer_of_stream(&stream);
        let permit = match self.policy.gate.connection(from, Instant::now()) {
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
        let pass = Pass::new(permit, place);
        if matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
            // HTTP/2 has no upgrades: all of it is plain.
            ServerApp::process_new(&self.proxy, stream, shutdown).await;
            return None;
        }
        let peer = peer_of_stream(&stream);
        let mut carrier = Carrier::new(stream);
        let limits = HeadLimits {
            deadline: self.timeouts.head,
            idle: self.timeouts.keepalive,
            size_max: self.head_size,
        };
        loop {
            let head = match head::read(&mut carrier, limits, self.connections.too_late()).await {
                Ok(head) => head,
                Err(HeadError::Silent | HeadError::Broken) => return None,
                Err(HeadError::Timeout) => {
                    self.refuse(carrier, peer, Refusal::HeadTimeout).await;
                    return None;
                }
                Err(HeadError::TooLarge) => {
                    self.refuse(carrier, peer, Refusal::HeadTooLarge).await;
                    return None;
                }
                Err(HeadError::LineTooLong) => {
                    self.refuse(carrier, peer, Refusal::TargetTooLong).await;
                    return None;
                }
            };
            let shape = match head::shape(&mut carrier.ahead[..head]) {
                Ok(shape) => shape,
                Err(refusal) => {
                    self.refuse(carrier, peer, refusal).await;
                    return None;
                }
            };
            if let Some(port) = entrance.redirect_to_https
                && let Some(refusal) = elsewhere(&carrier.ahead[..head], port)
            {
                self.refuse(carrier, peer, refusal).await;
                return None;
            }
            if let Some(protocol) = self.upgrade_to(&shape) {
                let Ok(bytes) = carrier.begin_request(head, Unread::Bytes(0)) else {
                    return None;
                };
                let (head, body) = (shape.head.with(bytes), shape.body);
                // Its own future, so that the connection's is not as large as both.
                let taking = self.upgrades.take_over(carrier, head, body, protocol, pass);
                Box::pin(taking).await;
                drop(counted);
                return None;
            }
            // Futures of their own: most connections of a busy edge wait for a request.
            carrier = if shape.is_complete(carrier.ahead.len() - head) {
                Box::pin(self.forward(carrier, head, shape)).await?
            } else {
                Box::pin(self.plain(carrier, head, shape.body, peer, shutdown)).await?
            };
        }
    }

    async fn cleanup(&self) {
        // Pingora's own clean-up would cut connections whose request is on its way: the drain ends them.
    }
}
