//! The task of a tunnel, and what it keeps beside its two sockets: permits, and its line in the access log.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::balancer::pool::Backend;
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
use crate::request::forward::parking::{ParkReply, ParkedTunnel};
use crate::tunnel;
use crate::tunnel::Event;
use crate::tunnel::{Socket, Tunnel, TunnelEnd, TunnelGroup, TunnelInfo};

/// The close code of a server that is stopping (IANA, WebSocket close codes).
const SERVICE_RESTART: u16 = 1012;

/// The permits that a tunnel holds until it ends.
pub(crate) struct TunnelPermits {
    /// Of the client's connection. A stream of HTTP/2 has one of its own: each tunnel has a connection to its backend.
    pub(super) connection: Permits,
    pub(super) tunnel: Permits,
    pub(super) at_backend: Option<TunnelSlot>,
}

/// What is logged and counted when the tunnel ends.
pub(super) struct TunnelRecord {
    context: Arc<TunnelContext>,
    arrived: std::time::Instant,
    count: TunnelCount,
    permits: TunnelPermits,
}

impl TunnelRecord {
    pub(super) fn new(
        context: Arc<TunnelContext>,
        arrived: std::time::Instant,
        count: TunnelCount,
        permits: TunnelPermits,
    ) -> Self {
        Self {
            context,
            arrived,
            count,
            permits,
        }
    }

    fn backend_stops(&self) {
        let backend = self.count.backend();
        self.context.proxy.pools().backend_stops(backend);
    }

    /// Dials another backend for `tunnel`.
    fn hand_off(&self, tunnel: &mut Tunnel<Socket, Socket, Place>) {
        let (context, from) = (&self.context, self.count.backend());
        tunnel.hand_off(handoff::dial(Arc::clone(context), Arc::clone(from)));
    }

    /// The tunnel continues at another backend.
    fn moved_to(&mut self, place: Place, tunnel: &mut Tunnel<Socket, Socket, Place>) {
        self.context.proxy.metrics.handoffs_moved.inc();
        tunnel.set_group(&place.backend.tunnels);
        self.count = place.backend.open_tunnel();
        self.permits.at_backend = place.slot;
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
        let metrics = &self.context.proxy.metrics;
        metrics.close_seen("client", end.client_code);
        metrics.close_seen("backend", end.backend_code);
        if self.context.proxy.access.is_on() {
            self.context.proxy.access.write(line(info, duration, end));
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

/// Why a tunnel is not polled any further.
enum Stop {
    Ended(TunnelEnd),
    ParkRequested,
}

/// The task of a tunnel. Its future is all the memory that an upgraded connection keeps. It ends with the tunnel, or when that is
/// parked.
pub(super) async fn run_tunnel(
    mut tunnel: Tunnel<Socket, Socket, Place>,
    mut record: TunnelRecord,
) {
    let mut is_reported = false;
    let end = loop {
        let stop = poll_fn(|cx| {
            loop {
                let event = tunnel.poll_event(cx);
                // Reported when it is forwarded and not at the end: the client may reconnect as soon as it has read it.
                if !is_reported && tunnel.closed_by_backend() == Some(SERVICE_RESTART) {
                    is_reported = true;
                    record.backend_stops();
                }
                match ready!(event) {
                    Event::Ended(end) => return Poll::Ready(Stop::Ended(end)),
                    Event::ParkRequested => return Poll::Ready(Stop::ParkRequested),
                    Event::Leaving => {
                        record.backend_stops();
                        record.hand_off(&mut tunnel);
                    }
                    Event::MoveRequested => record.hand_off(&mut tunnel),
                    Event::Moved(place) => record.moved_to(place, &mut tunnel),
                    Event::Stayed => {
                        record.context.proxy.metrics.handoffs_stayed.inc();
                    }
                }
            }
        });
        match stop.await {
            Stop::Ended(end) => break end,
            Stop::ParkRequested => match park(tunnel, record) {
                Ok(()) => return,
                Err(stays) => (tunnel, record) = stays,
            },
        }
    };
    if tunnel.take_park_request()
        && let Some(reply) = record.context.parking.reserve()
    {
        reply.send(ParkReply::Stays);
    }
    record.finish(tunnel.info(), &end);
}

/// Runs a tunnel on this runtime.
pub(super) fn spawn(tunnel: Tunnel<Socket, Socket, Place>, record: TunnelRecord, runtime: &Handle) {
    let tunnels = Arc::clone(&record.context.tunnels);
    tunnels
        .tasks()
        .spawn_on(run_tunnel(tunnel, record), runtime);
}

/// A tunnel whose task has ended, and what it needs to go on.
struct Parked {
    tunnel: tunnel::ParkedTunnel,
    record: TunnelRecord,
    /// Where its task was.
    runtime: Handle,
    /// It counts as open.
    _open: TaskTrackerToken,
}

impl ParkedTunnel for Parked {
    fn tunnel(&self) -> &tunnel::ParkedTunnel {
        &self.tunnel
    }

    fn backend(&self) -> &Backend {
        self.record.count.backend()
    }

    fn request_age(&self) -> Duration {
        self.record.arrived.elapsed()
    }

    fn permit_sources(&self) -> [Option<u64>; 2] {
        let permits = &self.record.permits;
        [permits.connection.source(), permits.tunnel.source()]
    }

    fn resume(self: Box<Self>) {
        match Tunnel::unpark(self.tunnel) {
            Some(tunnel) => spawn(tunnel, self.record, &self.runtime),
            None => tracing::error!("a parked tunnel cannot be resumed, it is closed"),
        }
    }

    fn release(self: Box<Self>) {
        // Without a line in the log: its end is logged where it goes on.
        drop(self);
    }
}

/// Parks a tunnel.
///
/// # Errors
///
/// Both as they were, if it cannot be parked or nobody waits for it.
#[expect(
    clippy::result_large_err,
    reason = "it is moved once for a takeover; a box would be one more allocation for each tunnel"
)]
fn park(
    tunnel: Tunnel<Socket, Socket, Place>,
    record: TunnelRecord,
) -> Result<(), (Tunnel<Socket, Socket, Place>, TunnelRecord)> {
    let Some(reply) = record.context.parking.reserve() else {
        return Err((tunnel, record));
    };
    match tunnel.park() {
        Err(tunnel) => {
            reply.send(ParkReply::Stays);
            Err((tunnel, record))
        }
        Ok(tunnel) => {
            reply.send(ParkReply::Parked(Box::new(Parked {
                tunnel,
                _open: record.context.tunnels.tasks().token(),
                record,
                runtime: Handle::current(),
            })));
            Ok(())
        }
    }
}
