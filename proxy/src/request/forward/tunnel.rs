//! The task of a tunnel, and what it keeps beside its two sockets: permits, and its line in the access log.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;

use crate::balancer::pool::TunnelCount;
use crate::balancer::pool::TunnelSlot;
use crate::limits::Permits;
use crate::request::access_log::AccessLine;
use crate::request::access_log::Kind;
use crate::request::exchange::Exchange;
use crate::request::exchange::Outcome;
use crate::request::exchange::ProxyState;
use crate::tunnel::Socket;
use crate::tunnel::Tunnel;
use crate::tunnel::TunnelEnd;

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
    line: Box<AccessLine>,
    arrived: std::time::Instant,
    count: TunnelCount,
    _permits: TunnelPermits,
}

impl TunnelRecord {
    pub(super) fn new(
        proxy: Arc<ProxyState>,
        exchange: &Exchange,
        count: TunnelCount,
        permits: TunnelPermits,
    ) -> Self {
        let line = exchange.line(
            Kind::Tunnel,
            Outcome {
                status: Some(101),
                ..Outcome::default()
            },
        );
        Self {
            proxy,
            line: Box::new(line),
            arrived: exchange.arrived(),
            count,
            _permits: permits,
        }
    }

    fn finish(mut self, end: &TunnelEnd) {
        self.line.duration_ms = self.arrived.elapsed();
        let backend = self.count.backend();
        backend.metrics.tunnel_closed(
            end.reason.as_str(),
            self.line.duration_ms,
            end.bytes_from_client,
            end.bytes_from_backend,
        );
        self.line.bytes_in = end.bytes_from_client;
        self.line.bytes_out = end.bytes_from_backend;
        self.line.close_reason = Some(end.reason.as_str());
        self.line.close_code = end.close_code;
        self.line.client_code = end.client_code;
        self.line.backend_code = end.backend_code;
        let metrics = &self.proxy.metrics;
        metrics.close_seen("client", end.client_code);
        metrics.close_seen("backend", end.backend_code);
        self.proxy.access.write(*self.line);
    }
}

/// The task of a tunnel. Its future is all the memory that an upgraded connection keeps.
pub(super) async fn run_tunnel(mut tunnel: Tunnel<Socket, Socket>, record: TunnelRecord) {
    let mut is_reported = false;
    // Reported when it is forwarded and not at the end: the client may reconnect as soon as it has read it.
    let end = poll_fn(|cx| {
        let end = Pin::new(&mut tunnel).poll(cx);
        if !is_reported && tunnel.backend_code() == Some(SERVICE_RESTART) {
            is_reported = true;
            let backend = record.count.backend();
            record.proxy.pools().backend_stops(backend);
        }
        end
    })
    .await;
    record.finish(&end);
}
