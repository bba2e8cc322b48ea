//! Another node hands a client off to this one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::broker::Broker;
use crate::client::relay::Client;
use crate::client::relay::Clients;
use crate::cluster::control::AcceptsClients;
use crate::config::Endpoint;
use crate::config::Mode;
use crate::handoff::Marks;
use crate::handoff::Snapshot;
use crate::hub::Member;
use crate::hub::outbox::SocketOutbox;
use crate::metrics::Transport;
use crate::protocol::frame::websocket::SocketFormat;
use crate::protocol::handoff::Notice;
use crate::protocol::handoff::Target;
use crate::protocol::handoff::Token;
use crate::protocol::instance::Instance;

/// How long an edge's connection waits for its client: longer than a handoff may take at the other node.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The connections of edges over which clients of other nodes continue.
pub(crate) struct Arrivals {
    components: Components,
    waiting: Mutex<HashMap<Token, Waiting>>,
}

/// What [`Arrivals`] is built from.
pub(crate) struct Components {
    pub(crate) instance: Instance,
    pub(crate) clients: Arc<Clients>,
    pub(crate) endpoints: Vec<Arc<Endpoint>>,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) marks: Arc<Marks>,
    pub(crate) draining: CancellationToken,
}

/// A connection without a client.
struct Waiting {
    stream: TcpStream,
    arrived: oneshot::Sender<Arrived>,
}

/// A client that continues here.
pub(crate) struct Arrived {
    pub(crate) client: Arc<Client>,
    pub(crate) outbox: Arc<SocketOutbox>,
}

impl Arrivals {
    pub(crate) fn new(components: Components) -> Arc<Self> {
        Arc::new(Self {
            components,
            waiting: Mutex::default(),
        })
    }

    /// Tells the edge that a client can be handed off to here over `stream`, and waits until one has arrived. `None` if none
    /// comes: the connection is closed then.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future closes the connection; no client arrives.
    pub(crate) async fn wait(&self, stream: TcpStream) -> Option<Arrived> {
        let token = Token::random();
        let ready = Notice::Ready(Target {
            instance: self.components.instance,
            token,
        });
        let ready = ready.frame();
        let (arrived, has_arrived) = oneshot::channel();
        {
            // Under the lock: the other node may ask for this token as soon as it is written.
            let mut waiting = self.waiting.lock();
            if !matches!(stream.try_write(&ready), Ok(written) if written == ready.len()) {
                return None; // The edge has gone: a new socket has room for one frame.
            }
            waiting.insert(token, Waiting { stream, arrived });
        }
        let _forget = Forget {
            arrivals: self,
            token,
        };
        time::timeout(WAIT_MAX, has_arrived).await.ok()?.ok()
    }

    fn prepare(&self, token: Token, snapshot: &[u8]) -> Result<(), String> {
        let Components {
            clients,
            endpoints,
            broker,
            marks,
            draining,
            ..
        } = &self.components;
        if draining.is_cancelled() {
            return Err("the other node drains too".to_owned());
        }
        broker.readiness().map_err(|reason| reason.to_string())?;
        let snapshot = Snapshot::decode(snapshot).map_err(|error| error.to_string())?;
        let is_meant = |endpoint: &&Arc<Endpoint>| {
            endpoint.path == snapshot.endpoint
                && matches!(endpoint.mode, Mode::Relay { .. } | Mode::Echo)
        };
        let endpoint = endpoints.iter().find(is_meant).cloned();
        let endpoint = endpoint
            .ok_or_else(|| format!("the other node has no endpoint {}", snapshot.endpoint))?;
        let format = match snapshot.transport {
            Transport::SockjsWebsocket => SocketFormat::Sockjs,
            _ => SocketFormat::Raw,
        };
        let waiting = self.waiting.lock().remove(&token);
        let Waiting { stream, arrived } =
            waiting.ok_or_else(|| "no connection waits for this client".to_owned())?;
        let outbox = SocketOutbox::new(stream, format, endpoint.outbox_bytes_max).with_handoff();
        let outbox = Arc::new(outbox);
        let clients = Arc::clone(clients);
        marks.at(token, move || {
            let member = Member::Socket(Arc::clone(&outbox));
            let client = clients.connect(endpoint, snapshot.transport, member);
            client.set_rate_ahead(snapshot.rate_ahead);
            clients.metrics.handoffs.received.inc();
            let client = Arc::new(client);
            let _ = arrived.send(Arrived { client, outbox }); // The edge may have gone.
        });
        Ok(())
    }
}

impl AcceptsClients for Arrivals {
    fn accept(&self, token: Token, snapshot: &[u8]) -> Result<(), String> {
        self.prepare(token, snapshot)
    }
}

/// Forgets a connection that no longer waits.
struct Forget<'a> {
    arrivals: &'a Arrivals,
    token: Token,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        let waiting = self.arrivals.waiting.lock().remove(&self.token);
        drop(waiting); // Outside the lock: it owns a socket.
        self.arrivals.components.marks.forget(self.token);
    }
}
