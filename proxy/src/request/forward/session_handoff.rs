//! A SockJS session over HTTP whose backend drains: another backend continues it, and gets its requests from then on. And one whose
//! edge drains: its response ends, so that the next request comes by another edge.
//!
//! Requests of a session that is handed off wait meanwhile, so that none reaches a backend that no longer has it, or does not have
//! it yet. The crate `causeway-node` documents what is asked of the backend (`protocol::handoff::SESSION`).

use std::collections::hash_map::Entry;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::balancer::affinity::SessionKey;
use crate::balancer::pool::Backend;
use crate::balancer::pool::Pool;
use crate::balancer::pool::Tried;
use crate::http::fields::{Fields as _, Response as _};
use crate::http::http1::{ResponseHead, ResponseReader};
use crate::request::exchange::HANDOFF_HEADER;
use crate::request::exchange::HANDOFF_PATH;
use crate::request::exchange::PooledSession;
use crate::request::forward::handoff::BACKENDS_MAX;
use crate::request::forward::handoff::TunnelContext;
use crate::request::forward::handoff::attempt;

/// How long the backend may take to hand a session off: longer than a node takes if all goes as slowly as it may.
const RESPONSE_WAIT_MAX: Duration = Duration::from_secs(8);

/// Over which time the responses to receivers end when the edge drains. All of their clients come again.
const RECEIVERS_SPREAD: Duration = Duration::from_secs(2);

/// The response of the backend.
#[derive(Debug, PartialEq, Eq)]
enum Response {
    Moved,
    /// It was handed off before, to this instance.
    Elsewhere(String),
    /// It stays; the reason.
    Stays(String),
}

/// One handoff. Dropping it lets the requests go on that wait.
struct UnderWay {
    context: Arc<TunnelContext>,
    key: (String, SessionKey),
    _over: watch::Sender<()>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let handoffs = &self.context.session_handoffs;
        handoffs.0.lock().remove(&self.key);
    }
}

/// Hands the session off, or waits for that if another request has begun it. Afterwards the pool knows which backend has it.
///
/// # Cancel safety
///
/// The handoff goes on.
pub(super) async fn settle(context: &Arc<TunnelContext>, departing: PooledSession) {
    let PooledSession { pool, session } = departing;
    let mut over = {
        let mut under_way = context.session_handoffs.0.lock();
        match under_way.entry((pool.name.clone(), session)) {
            Entry::Occupied(entry) => entry.get().clone(),
            Entry::Vacant(entry) => {
                let (sender, over) = watch::channel(());
                let this = UnderWay {
                    context: Arc::clone(context),
                    key: entry.key().clone(),
                    _over: sender,
                };
                entry.insert(over.clone());
                context.tunnels.tasks().spawn(this.hand_off(pool));
                over
            }
        }
    };
    let _ = over.changed().await; // An error, as nothing is ever sent: it is over.
}

impl UnderWay {
    async fn hand_off(self, pool: Arc<Pool>) {
        let (context, session) = (&self.context, &self.key.1);
        let handoffs = Arc::clone(&context.handoffs);
        let Ok(_permit) = handoffs.acquire_owned().await else {
            return;
        };
        // It may have been handed off since the request that this is for has looked.
        let Some(from) = pool.departing_holder(session) else {
            return;
        };
        let metrics = &context.proxy.metrics;
        match move_session(context, &pool, &from, session).await {
            Ok(to) => {
                pool.move_session(session, &to);
                metrics.handoffs_moved.inc();
            }
            Err(reason) => {
                debug!(pool = pool.name, backend = %from.id, reason, "session not handed off");
                metrics.handoffs_stayed.inc();
            }
        }
    }
}

/// Has `from` hand the session off, to the backend that is returned.
async fn move_session(
    context: &TunnelContext,
    pool: &Pool,
    from: &Arc<Backend>,
    session: &SessionKey,
) -> Result<Arc<Backend>, String> {
    let mut tried = Tried::default();
    tried.add(from);
    let mut failure = "no other backend takes part".to_owned();
    // The node to which another edge has had it handed off.
    let mut holder: Option<String> = None;
    let mut attempts = 0;
    while let Some(backend) = pool.other_than(&tried, Instant::now()) {
        if attempts == BACKENDS_MAX && holder.is_none() {
            break;
        }
        attempts += 1;
        tried.add(&backend);
        // Its connection names the handoff, and is held until the backend has responded.
        let place = match attempt(context, pool, &backend).await {
            Ok(place) => place,
            Err(reason) => {
                failure = reason;
                continue;
            }
        };
        if holder.is_none() {
            match ask(context, pool, from, session, &place.target).await? {
                Response::Moved => return Ok(backend),
                Response::Elsewhere(instance) => {
                    failure = format!("another edge has had it handed off, to the node {instance}");
                    holder = Some(instance);
                }
                Response::Stays(reason) => return Err(reason),
            }
        }
        if place.target.split(' ').next() == holder.as_deref() {
            return Ok(backend);
        }
    }
    Err(failure)
}

/// Asks `from` to hand the session off to `target`.
async fn ask(
    context: &TunnelContext,
    pool: &Pool,
    from: &Backend,
    session: &SessionKey,
    target: &str,
) -> Result<Response, String> {
    let handoff = format!("Causeway-Handoff: {target}\r\n");
    let (head, body) = post(context, pool, from, session, &handoff).await?;
    let status = head.status();
    Ok(match head.text(HANDOFF_HEADER) {
        _ if status == StatusCode::OK => Response::Moved,
        Some(instance) if status == StatusCode::TEMPORARY_REDIRECT => {
            Response::Elsewhere(instance.to_owned())
        }
        _ => Response::Stays(reason(status, &body)),
    })
}

/// When the edge drains, has `backend` end the response to the session's receiver as it ends any response, at some time within
/// [`RECEIVERS_SPREAD`]: the client sends its next request, to another edge or to the process that takes over from this one.
pub(super) async fn end_receiver_in_drain(
    context: Arc<TunnelContext>,
    draining: CancellationToken,
    backend: Arc<Backend>,
    session: PooledSession,
) {
    draining.cancelled().await;
    sleep(RECEIVERS_SPREAD.mul_f64(fastrand::f64())).await;
    let PooledSession { pool, session } = session;
    let asked = match post(&context, &pool, &backend, &session, "").await {
        Ok((head, _)) if head.status() == StatusCode::OK => Ok(()),
        Ok((head, body)) => Err(reason(head.status(), &body)),
        Err(reason) => Err(reason),
    };
    if let Err(reason) = asked {
        debug!(pool = pool.name, backend = %backend.id, reason, "the response to a session stays open");
    }
}

/// Posts a request about the session to `backend`, and returns its response: the head, and what came with it.
async fn post(
    context: &TunnelContext,
    pool: &Pool,
    backend: &Backend,
    session: &SessionKey,
    header: &str,
) -> Result<(ResponseHead, Vec<u8>), String> {
    let session = session.as_str();
    if !session.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("its name cannot be sent in a header".to_owned());
    }
    let request = format!(
        "POST {HANDOFF_PATH} HTTP/1.1\r\nHost: causeway\r\nConnection: close\r\nContent-Length: 0\r\n\
         {header}Causeway-Session: {session}\r\n\r\n"
    );
    let dialed = context.dialer.dial(&backend.address, pool.tls.as_deref());
    let mut socket = dialed.await.map_err(|error| error.to_string())?.socket;
    let mut reader = ResponseReader::new(context.response_limits);
    let exchanged = async {
        socket.write_all(request.as_bytes()).await?;
        socket.flush().await?;
        io::Result::Ok(poll_fn(|cx| reader.poll(cx, &mut socket)).await)
    };
    let head = timeout(RESPONSE_WAIT_MAX, exchanged)
        .await
        .map_err(|_| "no response of its backend in time")?
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    Ok((head, reader.into_rest()))
}

/// What a response of a backend that has not done what was asked says.
fn reason(status: StatusCode, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(200)]);
    format!("{status}: {}", text.trim())
}
