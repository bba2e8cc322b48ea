//! Another node hands a client off to this one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::broker::Broker;
use crate::client::channels::Admitted;
use crate::client::channels::ArrivingClient;
use crate::client::channels::ChannelClients;
use crate::client::relay::Client;
use crate::client::relay::Clients;
use crate::cluster::control::AcceptsClients;
use crate::cluster::control::CutAt;
use crate::cluster::registry::Registry;
use crate::config::Endpoint;
use crate::config::Mode;
use crate::handoff::Kind;
use crate::handoff::Marks;
use crate::handoff::Snapshot;
use crate::handoff::marks::Mark;
#[cfg(debug_assertions)]
use crate::handoff::sabotage;
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
    /// Channel clients that other nodes still serve.
    prepared: Mutex<HashMap<Token, Prepared>>,
}

/// What [`Arrivals`] is built from.
pub(crate) struct Components {
    pub(crate) instance: Instance,
    pub(crate) clients: Arc<Clients>,
    pub(crate) channel_clients: Arc<ChannelClients>,
    pub(crate) registry: Arc<Registry>,
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

/// What a snapshot's client is connected with.
struct Expected {
    endpoint: Arc<Endpoint>,
    outbox: Arc<SocketOutbox>,
    arrived: oneshot::Sender<Arrived>,
}

/// A channel client that is prepared, and its connection.
struct Prepared {
    client: Arc<ArrivingClient>,
    outbox: Arc<SocketOutbox>,
    arrived: oneshot::Sender<Arrived>,
}

/// A client that continues here.
pub(crate) struct Arrived {
    pub(crate) client: ArrivedClient,
    pub(crate) outbox: Arc<SocketOutbox>,
}

/// Of an endpoint of either kind.
pub(crate) enum ArrivedClient {
    /// A relay or echo endpoint.
    Plain(Arc<Client>),
    /// An endpoint with `mode: channels`.
    Channels(Admitted),
}

impl Arrivals {
    pub(crate) fn new(components: Components) -> Arc<Self> {
        Arc::new(Self {
            components,
            waiting: Mutex::default(),
            prepared: Mutex::default(),
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

    /// Finds the endpoint of a snapshot and the connection that waits for its client.
    fn expected(&self, token: Token, snapshot: &Snapshot) -> Result<Expected, String> {
        let Components {
            endpoints,
            broker,
            draining,
            ..
        } = &self.components;
        if draining.is_cancelled() {
            return Err("the other node drains too".to_owned());
        }
        broker.readiness().map_err(|reason| reason.to_string())?;
        let is_meant = |endpoint: &&Arc<Endpoint>| {
            endpoint.path == snapshot.endpoint
                && match snapshot.kind {
                    Kind::Plain { .. } => {
                        matches!(endpoint.mode, Mode::Relay { .. } | Mode::Echo)
                    }
                    Kind::Channels(_) => endpoint.mode == Mode::Channels,
                }
        };
        let endpoint = endpoints.iter().find(is_meant).cloned();
        let endpoint = endpoint
            .ok_or_else(|| format!("the other node has no endpoint {}", snapshot.endpoint))?;
        let format = match snapshot.transport {
            Transport::SockjsWebsocket => SocketFormat::Sockjs,
            Transport::ChannelsJson => SocketFormat::Json,
            Transport::ChannelsProtobuf => SocketFormat::Protobuf,
            _ => SocketFormat::Raw,
        };
        let waiting = self.waiting.lock().remove(&token);
        let Waiting { stream, arrived } =
            waiting.ok_or_else(|| "no connection waits for this client".to_owned())?;
        let outbox = SocketOutbox::new(stream, format, endpoint.outbox_bytes_max).with_handoff();
        Ok(Expected {
            endpoint,
            outbox: Arc::new(outbox),
            arrived,
        })
    }

    async fn prepare(&self, token: Token, snapshot: &[u8]) -> Result<(), String> {
        let snapshot = Snapshot::decode(snapshot).map_err(|error| error.to_string())?;
        let Expected {
            endpoint,
            outbox,
            arrived,
        } = self.expected(token, &snapshot)?;
        let transport = snapshot.transport;
        match snapshot.kind {
            Kind::Plain { rate_ahead } => {
                let clients = Arc::clone(&self.components.clients);
                self.components.marks.at(Mark::first(token), move || {
                    let member = Member::Socket(Arc::clone(&outbox));
                    let mut client = clients.connect(endpoint, transport, member);
                    client.set_rate_ahead(rate_ahead);
                    clients.metrics.handoffs.received.inc();
                    let client = ArrivedClient::Plain(Arc::new(client));
                    let _ = arrived.send(Arrived { client, outbox }); // The edge may have gone.
                });
                #[cfg(debug_assertions)]
                self.inject_early_begin(Mark::first(token));
                Ok(())
            }
            Kind::Channels(state) => {
                let registry = self.components.registry.readiness();
                registry.map_err(|_| "the registry of the other node is not ready")?;
                let member = Member::Socket(Arc::clone(&outbox));
                let clients = &self.components.channel_clients;
                let client = clients.prepare(endpoint, transport, member, *state).await?;
                let client = Arc::new(client);
                for number in 0..client.marks() {
                    let client = Arc::clone(&client);
                    let mark = Mark { token, number };
                    self.components.marks.at(mark, move || client.mark(number));
                    #[cfg(debug_assertions)]
                    self.inject_early_begin(mark);
                }
                let prepared = Prepared {
                    client,
                    outbox,
                    arrived,
                };
                let marks = prepared.client.marks();
                let is_closed = {
                    let mut all = self.prepared.lock();
                    all.entry(token).or_insert(prepared).arrived.is_closed()
                };
                if is_closed {
                    // What waited for it may have ended before it was listed.
                    let prepared = self.prepared.lock().remove(&token);
                    drop(prepared); // Outside the lock: it owns a socket.
                    self.components.marks.forget(token, marks);
                    return Err("no connection waits for this client".to_owned());
                }
                Ok(())
            }
        }
    }

    /// Begins before `mark`, if that is the fault to inject.
    #[cfg(debug_assertions)]
    fn inject_early_begin(&self, mark: Mark) {
        if sabotage::fault() == Some(sabotage::Fault::BeginsEarly) {
            self.components.marks.run(mark);
        }
    }

    async fn continue_prepared(&self, token: Token, cut: Vec<CutAt>) -> Result<(), String> {
        let prepared = self.prepared.lock().remove(&token);
        let prepared = prepared.ok_or_else(|| "no client is prepared".to_owned())?;
        let Prepared {
            client,
            outbox,
            arrived,
        } = prepared;
        let admitted = client.resume(cut).await?;
        let client = ArrivedClient::Channels(admitted);
        let gone = |_| "the edge has gone".to_owned();
        arrived.send(Arrived { client, outbox }).map_err(gone)?;
        self.components.clients.metrics.handoffs.received.inc();
        Ok(())
    }
}

#[async_trait]
impl AcceptsClients for Arrivals {
    async fn accept(&self, token: Token, snapshot: Bytes) -> Result<(), String> {
        self.prepare(token, &snapshot).await
    }

    async fn resume(&self, token: Token, cut: Vec<CutAt>) -> Result<(), String> {
        self.continue_prepared(token, cut).await
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
        let prepared = self.arrivals.prepared.lock().remove(&self.token);
        let marks = prepared.map_or(1, |prepared| prepared.client.marks());
        self.arrivals
            .components
            .marks
            .forget(self.token, marks.max(1));
    }
}
