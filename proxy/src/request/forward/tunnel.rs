//! The task of a tunnel, and what it keeps beside its two sockets: permits, and its line in the access log.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::balancer::pool::TunnelCount;
use crate::balancer::pool::TunnelSlot;
use crate::limits::Permits;
use crate::request::access_log::AccessLine;
use crate::request::access_log::Kind;
use crate::request::exchange::Exchange;
use crate::request::exchange::Outcome;
use crate::request::exchange::ProxyState;
use crate::tunnel::{Socket, Tunnel, TunnelEnd, TunnelGroup, TunnelInfo};

/// The close code of a server that is stopping (IANA, WebSocket close codes).
const SERVICE_RESTART: u16 = 1012;

/// The permits that a tunnel holds until it ends.
pub(crate) struct TunnelPermits {
    /// Of the client's connection. A stream of HTTP/2 has one of its own: each tunnel has a connection to its backend.
    pub(super) _connection: Permits,
    pub(super) _tunnel: Permits,
    pub(super) _at_backend: Option<TunnelSlot>,
}

/// What is logged and counted when the tunnel ends.
pub(super) struct TunnelRecord {
    proxy: Arc<ProxyState>,
    arrived: std::time::Instant,
    count: TunnelCount,
    _permits: TunnelPermits,
}

impl TunnelRecord {
    pub(super) fn new(
        proxy: Arc<ProxyState>,
        arrived: std::time::Instant,
        count: TunnelCount,
        permits: TunnelPermits,
    ) -> Self {
        Self {
            proxy,
            arrived,
            count,
            _permits: permits,
        }
    }

    fn finish(self, info: &TunnelInfo, end: &TunnelEnd) {
        let duration = self.arrived.elapsed();
        let backend = self.count.backend();
        backend.metrics.tunnel_closed(
            end.reason.as_str(),
            duration,
            end.bytes_from_client,
            end.bytes_from_backend,
        );
        let metrics = &self.proxy.metrics;
        metrics.close_seen("client", end.client_code);
        metrics.close_seen("backend", end.backend_code);
        if self.proxy.access.is_on() {
            self.proxy.access.write(line(info, duration, end));
        }
    }
}

/// What is known about the tunnel that `exchange` becomes.
pub(super) fn info(exchange: &Exchange, group: &Arc<TunnelGroup>) -> TunnelInfo {
    let line = exchange.line(Kind::Tunnel, Outcome::default());
    TunnelInfo {
        group: Arc::clone(group),
        client: exchange.client(),
        arrived: line.ts,
        request_id: line.request_id.unwrap_or_default(),
        method: line.method.unwrap_or_default(),
        host: line.host,
        path: line.path,
        affinity: line.affinity,
        attempts: line.attempts.and_then(|attempts| attempts.try_into().ok()),
        waited: line.waited_ms,
    }
}

/// The line of a tunnel that has ended.
fn line(info: &TunnelInfo, duration: Duration, end: &TunnelEnd) -> AccessLine {
    AccessLine {
        ts: info.arrived,
        kind: Kind::Tunnel,
        client: Some(info.client),
        request_id: Some(info.request_id.clone()),
        method: Some(info.method.clone()),
        host: info.host.clone(),
        path: info.path.clone(),
        status: Some(101),
        duration_ms: duration,
        bytes_in: end.bytes_from_client,
        bytes_out: end.bytes_from_backend,
        backend: Some(info.group.backend.as_str().into()),
        affinity: info.affinity,
        attempts: info.attempts.map(|attempts| attempts as usize),
        waited_ms: info.waited,
        close_reason: Some(end.reason.as_str()),
        close_code: end.close_code,
        client_code: end.client_code,
        backend_code: end.backend_code,
        error: None,
    }
}

/// The task of a tunnel. Its future is all the memory that an upgraded connection keeps.
pub(super) async fn run_tunnel(mut tunnel: Tunnel<Socket, Socket>, record: TunnelRecord) {
    let mut is_reported = false;
    // Reported when it is forwarded and not at the end: the client may reconnect as soon as it has read it.
    let end = poll_fn(|cx| {
        let end = Pin::new(&mut tunnel).poll(cx);
        if !is_reported && tunnel.closed_by_backend() == Some(SERVICE_RESTART) {
            is_reported = true;
            let backend = record.count.backend();
            record.proxy.pools().backend_stops(backend);
        }
        end
    })
    .await;
    record.finish(tunnel.info(), &end);
}
