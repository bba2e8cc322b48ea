//! The task of a tunnel, and what it keeps beside its two sockets: permits, and its line in the access log.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, ready};

use crate::balancer::pool::TunnelCount;
use crate::balancer::pool::TunnelSlot;
use crate::limits::Permits;
use crate::request::access_log::AccessLine;
use crate::request::access_log::Kind;
use crate::request::exchange::Exchange;
use crate::request::exchange::Outcome;
use crate::request::forward::handoff;
use crate::request::forward::handoff::Place;
use crate::request::forward::handoff::TunnelContext;
use crate::tunnel::Event;
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
    pub(super) at_backend: Option<TunnelSlot>,
}

/// What is logged and counted when the tunnel ends.
pub(super) struct TunnelRecord {
    context: Arc<TunnelContext>,
    line: Box<AccessLine>,
    arrived: std::time::Instant,
    count: TunnelCount,
    permits: TunnelPermits,
}

impl TunnelRecord {
    pub(super) fn new(
        context: Arc<TunnelContext>,
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
            context,
            line: Box::new(line),
            arrived: exchange.arrived(),
            count,
            permits,
        }
    }

    fn backend_stops(&self) {
        let backend = self.count.backend();
        self.context.proxy.pools().backend_stops(backend);
    }

    /// The tunnel continues at another backend.
    fn moved_to(&mut self, place: Place) {
        self.line.backend = Some(place.backend.id.as_str().into());
        self.count = place.backend.open_tunnel();
        self.permits.at_backend = place.slot;
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
        let metrics = &self.context.proxy.metrics;
        metrics.close_seen("client", end.client_code);
        metrics.close_seen("backend", end.backend_code);
        self.context.proxy.access.write(*self.line);
    }
}

/// The task of a tunnel. Its future is all the memory that an upgraded connection keeps.
pub(super) async fn run_tunnel(
    mut tunnel: Tunnel<Socket, Socket, Place>,
    mut record: TunnelRecord,
) {
    let mut is_reported = false;
    let end = poll_fn(|cx| {
        loop {
            let event = tunnel.poll_event(cx);
            // Reported when it is forwarded and not at the end: the client may reconnect as soon as it has read it.
            if !is_reported && tunnel.backend_code() == Some(SERVICE_RESTART) {
                is_reported = true;
                record.backend_stops();
            }
            match ready!(event) {
                Event::Ended(end) => return Poll::Ready(end),
                Event::Leaving => {
                    record.backend_stops();
                    let (context, from) = (&record.context, record.count.backend());
                    tunnel.hand_off(handoff::dial(Arc::clone(context), Arc::clone(from)));
                }
                Event::Moved(place) => {
                    record.context.proxy.metrics.handoffs_moved.inc();
                    record.moved_to(place);
                }
                Event::Stayed => {
                    record.context.proxy.metrics.handoffs_stayed.inc();
                }
            }
        }
    })
    .await;
    record.finish(&end);
}
