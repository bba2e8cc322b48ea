//! Clients over WebSocket, with SockJS frames or without: from the 101 to the end of the TCP connection.
//!
//! Owns the sockets of these clients and one task for all of them ([`WebSockets::run`]) that pings the
//! silent ones and sends everyone away when the node stops. Each client has a task of its own
//! ([`Serving`]), which reads, and writes only what its outbox could not.
//!
//! Invariant: every end of ours is a close frame at a frame boundary, unless the socket is dead or the
//! client does not take it within [`CLOSE_TIMEOUT`].

use std::sync::Arc;
use std::time::Duration;

use ::http::HeaderMap;
use bytes::Bytes;
use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::client::channels::ChannelClients;
use crate::client::channels::Direction;
use crate::client::channels::Origin;
use crate::client::relay::Clients;
use crate::config::Endpoint;
use crate::config::Mode;
use crate::hub::Member;
use crate::hub::outbox::Queued;
use crate::hub::outbox::SocketOutbox;
use crate::hub::roster::Roster;
use crate::metrics::Transport;
use crate::protocol::disconnect::Disconnect;
use crate::protocol::frame::sockjs;
use crate::protocol::frame::websocket;
use crate::protocol::frame::websocket::MessageKind;
use crate::protocol::frame::websocket::SocketFormat;

mod connection;
mod ending;
mod peer;
mod pulse;
mod reader;
mod roster;
mod scratch;
mod serving;

use connection::Connection;
use peer::Peer;
use serving::Serving;

/// How long a client may take for the close handshake, once our close frame is on its way. Longer only
/// keeps sockets of clients that have vanished; shorter cuts those on bad networks before they hear why.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// All clients over WebSocket of this node.
pub(crate) struct WebSockets {
    clients: Arc<Clients>,
    /// They have pings of their own, and are sent away by themselves.
    channel_clients: Arc<ChannelClients>,
    roster: Arc<Roster<roster::Entry>>,
    drain_spread: Duration,
}

/// A connection on which the 101 has been sent.
pub(crate) struct Upgraded {
    pub(crate) stream: TcpStream,
    /// What the client sent behind its request.
    pub(crate) read_ahead: Bytes,
    pub(crate) endpoint: Arc<Endpoint>,
    /// Which of the WebSocket transports was asked for.
    pub(crate) transport: Transport,
    /// The request's, for channel clients.
    pub(crate) headers: HeaderMap,
}

impl WebSockets {
    /// Nobody yet. `drain_spread`: over what time [`run`](Self::run) sends clients away.
    pub(crate) fn new(
        clients: Arc<Clients>,
        channel_clients: Arc<ChannelClients>,
        drain_spread: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            clients,
            channel_clients,
            roster: Roster::new(),
            drain_spread,
        })
    }

    /// Pings silent clients and gives up those that do not answer. After `shutdown`, sends all of them
    /// away and returns; their tasks end by themselves, soon after.
    ///
    /// # Cancel safety
    ///
    /// Dropping it ends nothing: clients are no longer pinged.
    pub(crate) async fn run(&self, endpoints: &[Arc<Endpoint>], shutdown: CancellationToken) {
        let pings = endpoints.iter().map(|endpoint| endpoint.ping);
        let mut sweeps = time::interval(pulse::sweep_interval(pings));
        sweeps.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                now = sweeps.tick() => self.roster.sweep(now).await,
            }
        }
        self.roster.send_all_away(self.drain_spread).await;
    }

    /// Clients for which something waits, but for channel clients.
    pub(crate) fn queued(&self) -> Vec<Arc<dyn Queued>> {
        self.roster.queued()
    }

    /// A client from its 101 on: the task that polls what is returned reads it. `held` is dropped with it.
    pub(crate) fn serve<H>(&self, upgraded: Upgraded, held: H) -> Serving<H> {
        let transport = upgraded.transport;
        let format = format(transport);
        let outbox_bytes_max = upgraded.endpoint.outbox_bytes_max;
        let outbox = SocketOutbox::new(upgraded.stream, format, outbox_bytes_max);
        let outbox = Arc::new(outbox);
        if format == SocketFormat::Sockjs {
            outbox.send(&open_frame());
        }
        let peer = if upgraded.endpoint.mode == Mode::Channels {
            let origin = Origin {
                endpoint: upgraded.endpoint,
                transport,
                direction: Direction::TwoWay,
                member: Member::Socket(Arc::clone(&outbox)),
                headers: upgraded.headers,
            };
            Peer::Channels(self.channel_clients.admit(origin))
        } else {
            self.connect(upgraded.endpoint, transport, &outbox)
        };
        Serving::new(Connection::new(outbox, peer, &upgraded.read_ahead), held)
    }

    fn connect(
        &self,
        endpoint: Arc<Endpoint>,
        transport: Transport,
        outbox: &Arc<SocketOutbox>,
    ) -> Peer {
        let _place = self.roster.add(Arc::clone(outbox), Arc::clone(&endpoint));
        if endpoint.mode == Mode::Close {
            outbox.close(Disconnect::GO_AWAY);
        }
        let member = Member::Socket(Arc::clone(outbox));
        let client = Arc::new(self.clients.connect(endpoint, transport, member));
        Peer::Plain { client, _place }
    }
}

/// How messages stand in the WebSocket messages of a transport.
fn format(transport: Transport) -> SocketFormat {
    match transport {
        Transport::SockjsWebsocket => SocketFormat::Sockjs,
        Transport::ChannelsJson => SocketFormat::Json,
        Transport::ChannelsProtobuf => SocketFormat::Protobuf,
        _ => SocketFormat::Raw,
    }
}

fn open_frame() -> Bytes {
    let mut open = BytesMut::new();
    websocket::append_message(&mut open, MessageKind::Text, sockjs::OPEN.as_bytes());
    open.freeze()
}

#[cfg(test)]
mod tests;
