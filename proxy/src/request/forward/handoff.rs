//! The connection over which a tunnel continues when its backend drains: to another backend of the same pool that takes part.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use http::StatusCode;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tracing::debug;

use crate::balancer::affinity::SessionKey;
use crate::balancer::pool::Backend;
use crate::balancer::pool::Pool;
use crate::balancer::pool::Tried;
use crate::balancer::pool::TunnelSlot;
use crate::http::fields::{Fields as _, Response as _};
use crate::http::http1::ResponseLimits;
use crate::http::http1::ResponseReader;
use crate::request::exchange::HANDOFF_HEADER;
use crate::request::exchange::ProxyState;
use crate::request::forward::parking::Parking;
use crate::tunnel;
use crate::tunnel::Dialing;
use crate::tunnel::Socket;
use crate::tunnel::Successor;
use crate::tunnel::Tunnels;
use crate::upstream::Dialer;

/// To `HANDOFF_PATH`.
const REQUEST: &[u8] = b"GET /.causeway/handoff HTTP/1.1\r\nHost: causeway\r\n\
    Connection: Upgrade\r\nUpgrade: causeway-handoff\r\nCauseway-Handoff: 1\r\n\r\n";

/// How many backends are tried.
pub(super) const BACKENDS_MAX: usize = 3;

/// What the tunnels of the edge share: to log, to count, to dial the backend that one is handed off to, and to be parked.
pub(crate) struct TunnelContext {
    pub(crate) proxy: Arc<ProxyState>,
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) tunnels: Arc<Tunnels>,
    /// For tunnels that another process continues.
    pub(crate) parking: Parking,
    /// Handoffs at a time: clients of a backend that drains are asked for all at once.
    pub(crate) handoffs: Arc<Semaphore>,
    pub(crate) session_handoffs: SessionHandoffs,
    pub(crate) response_limits: ResponseLimits,
    /// For the response of the other backend.
    pub(crate) response_timeout: Duration,
}

/// The SockJS sessions over HTTP that are being handed off, by the name of the pool and the session. The channels close when the
/// handoff is over.
#[derive(Default)]
pub(crate) struct SessionHandoffs(
    pub(super) Mutex<HashMap<(String, SessionKey), watch::Receiver<()>>>,
);

/// The backend that a successor leads to, with the slot for its tunnel. Holds the permit of the handoff until that is over.
#[derive(Debug)]
pub(crate) struct Place {
    pub(super) backend: Arc<Backend>,
    pub(super) slot: Option<TunnelSlot>,
    _handoff: OwnedSemaphorePermit,
}

/// Dials another backend than `from`, when it is its turn.
pub(super) fn dial(context: Arc<TunnelContext>, from: Arc<Backend>) -> Dialing<Socket, Place> {
    Box::pin(async move {
        let handoffs = Arc::clone(&context.handoffs);
        let handoff = handoffs.acquire_owned().await.ok()?;
        let pool = context.proxy.pools().of(&from)?;
        let mut tried = Tried::default();
        tried.add(&from);
        for _ in 0..BACKENDS_MAX {
            let backend = pool.other_than(&tried, Instant::now())?;
            match attempt(&context, &pool, &backend).await {
                Ok(dialed) => {
                    return Some(Successor {
                        socket: dialed.socket,
                        early: dialed.early,
                        target: dialed.target,
                        place: Place {
                            backend,
                            slot: Some(dialed.place),
                            _handoff: handoff,
                        },
                    });
                }
                Err(reason) => {
                    debug!(pool = pool.name, backend = %backend.id, reason, "no handoff to this backend");
                    tried.add(&backend);
                }
            }
        }
        None
    })
}

/// Opens the connection over which `backend` continues a client.
pub(super) async fn attempt(
    context: &TunnelContext,
    pool: &Pool,
    backend: &Arc<Backend>,
) -> Result<Successor<Socket, TunnelSlot>, String> {
    let tunnels_max = context.proxy.gate.tunnels_of_backend();
    let slot = backend.reserve_tunnel(tunnels_max);
    let slot = slot.ok_or("it has as many tunnels as limits.tunnels_per_backend allows")?;
    let dialed = context.dialer.dial(&backend.address, pool.tls.as_deref());
    let mut socket = dialed.await.map_err(|error| error.to_string())?.socket;
    let mut reader = ResponseReader::new(context.response_limits);
    let exchanged = async {
        socket.write_all(REQUEST).await?;
        socket.flush().await?;
        std::io::Result::Ok(poll_fn(|cx| reader.poll(cx, &mut socket)).await)
    };
    let head = timeout(context.response_timeout, exchanged)
        .await
        .map_err(|_| "no response in time")?
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    let accepts = head.text(HANDOFF_HEADER) == Some("1");
    if head.status() != StatusCode::SWITCHING_PROTOCOLS || !accepts {
        return Err(format!("its response is {}", head.status()));
    }
    let mut early = reader.into_rest();
    let ready = timeout(
        context.response_timeout,
        read_target(&mut socket, &mut early),
    );
    let target = ready.await.map_err(|_| "it is not ready in time")??;
    Ok(Successor {
        socket,
        early,
        target,
        place: slot,
    })
}

/// Reads the first frame of the node, which names the target; what is behind it is left in `read`.
async fn read_target(socket: &mut Socket, read: &mut Vec<u8>) -> Result<String, String> {
    loop {
        if let Some((target, length)) = tunnel::target(read)? {
            read.drain(..length);
            return Ok(target);
        }
        let count = socket.read_buf(read).await;
        if count.map_err(|error| error.to_string())? == 0 {
            return Err("it has closed the connection".to_owned());
        }
    }
}
