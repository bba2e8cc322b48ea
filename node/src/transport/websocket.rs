//! Clients over WebSocket, with SockJS frames or without: from the 101 to the end of the TCP connection.
//!
//! Owns the sockets of these clients and one task for all of them ([`WebSockets::run`]) that pings silent clients and
//! disconnects all of them when the node drains. Each client has a task of its own ([`Serving`]), which reads, and writes
//! only what its outbox has queued.
//!
//! Invariant: the node ends a connection with a close frame at a frame boundary, unless the socket has failed or the client
//! does not accept it within [`CLOSE_TIMEOUT`].

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
use crate::config::Drain;
use crate::config::Endpoint;
use crate::config::Mode;
use crate::handoff::Arrivals;
use crate::handoff::Arrived;
use crate::handoff::ArrivedClient;
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
mod keepalive;
mod peer;
mod reader;
mod roster;
mod scratch;
mod serving;

use connection::Connection;
use peer::Peer;
use serving::Serving;

/// How long the close handshake may take after our close frame is queued. Longer keeps sockets of clients that have vanished;
/// shorter disconnects clients on slow networks before they get the reason.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// All clients over WebSocket of this node.
pub(crate) struct WebSockets {
    clients: Arc<Clients>,
    /// Channel clients, which have their own pings and drain.
    channel_clients: Arc<ChannelClients>,
    roster: Arc<Roster<roster::Entry>>,
    /// Missing in a node without a broker for several.
    arrivals: Option<Arc<Arrivals>>,
    drain: Drain,
}

/// A connection on which the 101 has been sent.
pub(crate) struct Upgraded {
    pub(crate) stream: TcpStream,
    /// What the client sent behind its request.
    pub(crate) read_ahead: Bytes,
    pub(crate) endpoint: Arc<Endpoint>,
    /// The WebSocket transport that was requested.
    pub(crate) transport: Transport,
    /// Whether the edge can hand the client off to another node.
    pub(crate) can_hand_off: bool,
    /// The request's, for channel clients.
    pub(crate) headers: HeaderMap,
}

impl WebSockets {
    /// Creates an empty list. `drain`: how [`run`](Self::run) sends clients away.
    pub(crate) fn new(
        clients: Arc<Clients>,
        channel_clients: Arc<ChannelClients>,
        arrivals: Option<Arc<Arrivals>>,
        drain: Drain,
    ) -> Arc<Self> {
        Arc::new(Self {
            clients,
            channel_clients,
            roster: Roster::new(),
            arrivals,
            drain,
        })
    }

    /// Pings silent clients and disconnects those that do not respond. After `shutdown`, disconnects all of them and
    /// returns; their tasks end soon after.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future disconnects no client: they are no longer pinged.
    pub(crate) async fn run(&self, endpoints: &[Arc<Endpoint>], shutdown: CancellationToken) {
        let pings = endpoints.iter().map(|endpoint| endpoint.ping);
        let mut sweeps = time::interval(keepalive::sweep_interval(pings));
        sweeps.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                now = sweeps.tick() => self.roster.sweep(now).await,
            }
        }
        self.roster.drain_or_hand_off(self.drain.spread).await;
        self.roster
            .wait_for_handoffs(self.drain.handoffs_max())
            .await;
        self.roster.disconnect_all(self.drain.spread).await;
    }

    /// Clients with queued output, without channel clients.
    pub(crate) fn queued(&self) -> Vec<Arc<dyn Queued>> {
        self.roster.queued()
    }

    /// Starts a client after its 101. The caller's task polls the returned future; `held` is dropped with it.
    pub(crate) fn serve<H>(&self, upgraded: Upgraded, held: H) -> Serving<H> {
        let transport = upgraded.transport;
        let format = format(transport);
        let outbox_bytes_max = upgraded.endpoint.outbox_bytes_max;
        let outbox = SocketOutbox::new(upgraded.stream, format, outbox_bytes_max);
        let outbox = Arc::new(match upgraded.can_hand_off {
            true => outbox.with_handoff(),
            false => outbox,
        });
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

    /// Serves the client of another node that is handed off to this one, once it has arrived; `held` is dropped with it.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future closes the connection.
    pub(crate) async fn serve_handed_off<H: Unpin>(self: Arc<Self>, stream: TcpStream, held: H) {
        let Some(arrivals) = &self.arrivals else {
            return;
        };
        let Arrived { client, outbox } = match arrivals.wait(stream).await {
            Ok(arrived) => arrived,
            Err(None) => return,
            Err(Some(outbox)) => return ending::turn_away(&outbox).await,
        };
        let peer = match client {
            ArrivedClient::Plain(client) => {
                let endpoint = Arc::clone(client.endpoint());
                let _in_roster = self.roster.add(Arc::clone(&outbox), endpoint);
                Peer::Plain { client, _in_roster }
            }
            ArrivedClient::Channels(admitted) => Peer::Channels(admitted),
        };
        drop(self);
        Serving::new(Connection::new(outbox, peer, &[]), held).await;
    }

    fn connect(
        &self,
        endpoint: Arc<Endpoint>,
        transport: Transport,
        outbox: &Arc<SocketOutbox>,
    ) -> Peer {
        let _in_roster = self.roster.add(Arc::clone(outbox), Arc::clone(&endpoint));
        if endpoint.mode == Mode::Close {
            outbox.close(Disconnect::GO_AWAY);
        }
        let member = Member::Socket(Arc::clone(outbox));
        let client = Arc::new(self.clients.connect(endpoint, transport, member));
        Peer::Plain { client, _in_roster }
    }
}

/// The encoding of messages of a transport.
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
