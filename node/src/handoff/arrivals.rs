//! Another node hands a client off to this one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;
use std::time::Instant;

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
use crate::client::session::Arriving;
use crate::client::session::Sessions;
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
use crate::hub::outbox::QueueOutbox;
use crate::hub::outbox::SocketOutbox;
use crate::metrics::Transport;
use crate::protocol::frame::websocket::SocketFormat;
use crate::protocol::handoff::Notice;
use crate::protocol::handoff::Target;
use crate::protocol::handoff::Token;
use crate::protocol::instance::Instance;

/// How long an edge's connection waits for its client: longer than a handoff may take at the other node.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// How long the mark of a session may take after its other node has seen it.
const MARK_WAIT_MAX: Duration = Duration::from_secs(1);

const NO_CONNECTION: &str = "no connection waits for this client";
const OTHER_KIND: &str = "a client of another kind is prepared";

/// The connections of edges over which clients of other nodes continue.
pub(crate) struct Arrivals {
    components: Components,
    waiting: Mutex<HashMap<Token, Waiting>>,
    /// Channel clients and sessions over HTTP that other nodes still serve.
    prepared: Mutex<HashMap<Token, Prepared>>,
    /// The sessions over HTTP of each endpoint that has some, by its path.
    sessions: OnceLock<HashMap<String, Arc<Sessions>>>,
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
    /// Gets the outbox of the client that is prepared, over `stream`.
    prepared: Arc<OnceLock<Arc<SocketOutbox>>>,
}

impl Waiting {
    /// Writes to the client that is prepared, over the edge's connection.
    fn outbox(
        self,
        transport: Transport,
        endpoint: &Endpoint,
    ) -> (Arc<SocketOutbox>, oneshot::Sender<Arrived>) {
        let format = match transport {
            Transport::SockjsWebsocket => SocketFormat::Sockjs,
            Transport::ChannelsJson => SocketFormat::Json,
            Transport::ChannelsProtobuf => SocketFormat::Protobuf,
            _ => SocketFormat::Raw,
        };
        let outbox = SocketOutbox::new(self.stream, format, endpoint.outbox_bytes_max);
        let outbox = Arc::new(outbox.with_handoff());
        let _ = self.prepared.set(Arc::clone(&outbox)); // Its connection waits for one client.
        (outbox, self.arrived)
    }
}

/// A client that is prepared, and its connection.
struct Prepared {
    client: PreparedClient,
    arrived: oneshot::Sender<Arrived>,
}

enum PreparedClient {
    Channels {
        client: Arc<ArrivingClient>,
        outbox: Arc<SocketOutbox>,
    },
    Session {
        place: Arriving,
        outbox: Arc<QueueOutbox>,
        /// Gets the client at the mark.
        client: oneshot::Receiver<Client>,
        /// The edge's connection, which only names the handoff.
        _stream: TcpStream,
    },
}

impl PreparedClient {
    /// How many marks it has.
    fn marks(&self) -> u16 {
        match self {
            Self::Channels { client, .. } => client.marks(),
            Self::Session { .. } => 1,
        }
    }
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
            sessions: OnceLock::new(),
        })
    }

    /// Accepts sessions over HTTP at these endpoints. Called once, before the node serves.
    pub(crate) fn set_sessions(&self, sessions: impl Iterator<Item = (String, Arc<Sessions>)>) {
        let _ = self.sessions.set(sessions.collect());
    }

    /// Tells the edge that a client can be handed off to here over `stream`, and waits until one has arrived.
    ///
    /// # Errors
    ///
    /// None has come. The outbox is that of a client that was prepared: the other node may have left it to this one.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future closes the connection; no client arrives.
    pub(crate) async fn wait(
        &self,
        stream: TcpStream,
    ) -> Result<Arrived, Option<Arc<SocketOutbox>>> {
        let token = Token::random();
        let ready = Notice::Ready(Target {
            instance: self.components.instance,
            token,
        });
        let ready = ready.frame();
        let (arrived, has_arrived) = oneshot::channel();
        let prepared = Arc::new(OnceLock::new());
        {
            // Under the lock: the other node may ask for this token as soon as it is written.
            let mut waiting = self.waiting.lock();
            if !matches!(stream.try_write(&ready), Ok(written) if written == ready.len()) {
                return Err(None); // The edge has gone: a new socket has room for one frame.
            }
            let connection = Waiting {
                stream,
                arrived,
                prepared: Arc::clone(&prepared),
            };
            waiting.insert(token, connection);
        }
        let _forget = Forget {
            arrivals: self,
            token,
        };
        let arrived = time::timeout(WAIT_MAX, has_arrived).await;
        let arrived = arrived.ok().and_then(Result::ok);
        arrived.ok_or_else(|| prepared.get().cloned())
    }

    /// Finds the endpoint of a snapshot.
    fn endpoint(&self, snapshot: &Snapshot) -> Result<Arc<Endpoint>, String> {
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
                    Kind::Session(_) => matches!(endpoint.mode, Mode::Relay { .. }),
                }
        };
        let endpoint = endpoints.iter().find(is_meant).cloned();
        endpoint.ok_or_else(|| format!("the other node has no endpoint {}", snapshot.endpoint))
    }

    /// The connection that waits for the client with this token.
    fn connection(&self, token: Token) -> Result<Waiting, String> {
        let waiting = self.waiting.lock().remove(&token);
        waiting.ok_or_else(|| NO_CONNECTION.to_owned())
    }

    async fn prepare(&self, token: Token, snapshot: &[u8]) -> Result<(), String> {
        let snapshot = Snapshot::decode(snapshot).map_err(|error| error.to_string())?;
        let endpoint = self.endpoint(&snapshot)?;
        let connection = self.connection(token)?;
        let transport = snapshot.transport;
        match snapshot.kind {
            Kind::Plain { rate_ahead } => {
                let (outbox, arrived) = connection.outbox(transport, &endpoint);
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
                let (outbox, arrived) = connection.outbox(transport, &endpoint);
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
                let client = PreparedClient::Channels { client, outbox };
                self.list(token, Prepared { client, arrived })
            }
            Kind::Session(state) => {
                let sessions = self.sessions.get();
                let sessions = sessions.and_then(|sessions| sessions.get(&endpoint.path));
                let sessions =
                    sessions.ok_or_else(|| "the other node has no sessions there".to_owned())?;
                let place = sessions.expect(state.id, state.address, Instant::now())?;
                let outbox = Arc::new(QueueOutbox::new(endpoint.outbox_bytes_max));
                let member = Member::Queue(Arc::clone(&outbox));
                let clients = Arc::clone(&self.components.clients);
                let (connected, client) = oneshot::channel();
                self.components.marks.at(Mark::first(token), move || {
                    let mut client = clients.connect(endpoint, transport, member);
                    client.set_rate_ahead(state.rate_ahead);
                    let _ = connected.send(client); // The handoff may have been given up.
                });
                #[cfg(debug_assertions)]
                self.inject_early_begin(Mark::first(token));
                let Waiting {
                    stream, arrived, ..
                } = connection;
                let client = PreparedClient::Session {
                    place,
                    outbox,
                    client,
                    _stream: stream,
                };
                self.list(token, Prepared { client, arrived })
            }
        }
    }

    /// Keeps a client until it is continued, or until what waits for it ends.
    fn list(&self, token: Token, prepared: Prepared) -> Result<(), String> {
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
            return Err(NO_CONNECTION.to_owned());
        }
        Ok(())
    }

    /// Begins before `mark`, if that is the fault to inject.
    #[cfg(debug_assertions)]
    fn inject_early_begin(&self, mark: Mark) {
        if sabotage::fault() == Some(sabotage::Fault::BeginsEarly) {
            self.components.marks.run(mark);
        }
    }

    async fn continue_prepared(&self, token: Token, cut: Vec<CutAt>) -> Result<(), String> {
        let Prepared { client, arrived } = self.take_prepared(token)?;
        let PreparedClient::Channels { client, outbox } = client else {
            return Err(OTHER_KIND.to_owned());
        };
        let admitted = client.resume(cut).await?;
        let client = ArrivedClient::Channels(admitted);
        let gone = |_| "the edge has gone".to_owned();
        arrived.send(Arrived { client, outbox }).map_err(gone)?;
        self.components.clients.metrics.handoffs.received.inc();
        Ok(())
    }

    async fn continue_session(&self, token: Token, queued: Vec<Bytes>) -> Result<(), String> {
        // What waits for the client ends with `_arrived`, and forgets the mark.
        let Prepared {
            client,
            arrived: _arrived,
        } = self.take_prepared(token)?;
        let PreparedClient::Session {
            place,
            outbox,
            client,
            _stream,
        } = client
        else {
            return Err(OTHER_KIND.to_owned());
        };
        // The mark travels apart from this request, and may come later.
        let Ok(Ok(client)) = time::timeout(MARK_WAIT_MAX, client).await else {
            return Err("the mark has not come".to_owned());
        };
        outbox.prepend(queued);
        place.arrive(outbox, Arc::new(client), Instant::now())?;
        self.components.clients.metrics.handoffs.received.inc();
        Ok(())
    }

    fn take_prepared(&self, token: Token) -> Result<Prepared, String> {
        let prepared = self.prepared.lock().remove(&token);
        prepared.ok_or_else(|| "no client is prepared".to_owned())
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

    async fn resume_session(&self, token: Token, queued: Vec<Bytes>) -> Result<(), String> {
        self.continue_session(token, queued).await
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
