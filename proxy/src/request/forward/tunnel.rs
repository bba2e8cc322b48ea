//! What outlives an upgrade beside its two sockets: enough for one line in the access log.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;

use crate::balancer::pool::TunnelCount;
use crate::balancer::pool::TunnelSlot;
use crate::limits::Pass;
use crate::request::access_log::AccessLine;
use crate::request::access_log::Kind;
use crate::request::exchange::Exchange;
use crate::request::exchange::Outcome;
use crate::request::exchange::ProxyState;
use crate::tunnel::Socket;
use crate::tunnel::Tunnel;
use crate::tunnel::TunnelEnd;

/// The close code with which a server that is stopping sends its clients away (IANA, WebSocket close codes).
const SERVICE_RESTART: u16 = 1012;

/// What a tunnel takes up of what there is only so much of: none can exist without them.
pub(crate) struct Permits {
    /// Of the client's connection, or, for a stream of HTTP/2, of one as good: each tunnel has a descriptor to its backend.
    pub(super) _connection: Pass,
    pub(super) _tunnel: Pass,
    pub(super) _at_backend: Option<TunnelSlot>,
}

/// What is kept of an upgrade for the end of its tunnel.
pub(super) struct TunnelRecord {
    proxy: Arc<ProxyState>,
    line: Box<AccessLine>,
    arrived: std::time::Instant,
    count: TunnelCount,
    _permits: Permits,
}

impl TunnelRecord {
    pub(super) fn new(
        proxy: Arc<ProxyState>,
        exchange: &Exchange,
        count: TunnelCount,
        permits: Permits,
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

/// The task of a tunnel: all that an upgraded connection keeps.
pub(super) async fn run_tunnel(mut tunnel: Tunnel<Socket, Socket>, record: TunnelRecord) {
    let mut is_noted = false;
    // Noted when it passes and not at the end: the client may come back as soon as it has read it.
    let end = poll_fn(|cx| {
        let end = Pin::new(&mut tunnel).poll(cx);
        if !is_noted && tunnel.backend_code() == Some(SERVICE_RESTART) {
            is_noted = true;
            let backend = record.count.backend();
            record.proxy.pools().backend_stops(backend);
        }
        end
    })
    .await;
    record.finish(&end);
}
