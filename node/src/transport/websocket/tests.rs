//! Raw frames over real sockets: every rule of RFC 6455 for a server.

use std::time::Duration;

use async_trait::async_trait;
use bytes::BufMut;
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::*;
use crate::broker::Broker;
use crate::broker::Deliver;
use crate::broker::NotReady;
use crate::broker::PublishError;
use crate::broker::TryPublishError;
use crate::client::channels;
use crate::config::Config;
use crate::config::Drain;
use crate::config::Lead;
use crate::config::Mode;
use crate::config::Ping;
use crate::hub::Hub;
use crate::hub::HubConfig;
use crate::metrics::Metrics;
use crate::protocol::channel::ChannelName;
use crate::protocol::frame::websocket::testing::masked;
use crate::protocol::frame::websocket::testing::masked_close;
use crate::protocol::frame::websocket::testing::masked_text;
use crate::protocol::frame::websocket::testing::split;
use crate::protocol::publication::Publication;

mod ends;
mod relays;
mod rules;

const DEADLINE: Duration = Duration::from_secs(20);

/// A broker for one node whose publish queue can be blocked: publications then wait until it is unblocked.
struct FakeBroker {
    hub: Arc<Hub>,
    open: Mutex<bool>,
    opened: Notify,
    waited: Notify,
}

#[async_trait]
impl Broker for FakeBroker {
    fn try_publish(&self, channel: &ChannelName, data: Bytes) -> Result<(), TryPublishError> {
        if !*self.open.lock() {
            return Err(TryPublishError::Full(data));
        }
        self.hub.deliver(vec![Publication {
            channel: channel.clone(),
            data,
        }]);
        Ok(())
    }

    async fn publish(&self, channel: &ChannelName, data: Bytes) -> Result<(), PublishError> {
        let opened = self.opened.notified();
        if !*self.open.lock() {
            self.waited.notify_one();
            opened.await;
        }
        self.hub.deliver(vec![Publication {
            channel: channel.clone(),
            data,
        }]);
        Ok(())
    }

    fn subscribe(&self, _: &ChannelName) {}

    fn unsubscribe(&self, _: &ChannelName) {}

    fn readiness(&self) -> Result<(), NotReady> {
        Ok(())
    }
}

/// WebSockets, hub and broker of a node, without its HTTP.
struct Node {
    fake: Arc<FakeBroker>,
    metrics: Arc<Metrics>,
    web_sockets: Arc<WebSockets>,
    shutdown: CancellationToken,
    background: JoinSet<()>,
    /// One for each connection.
    serving: JoinSet<()>,
}

impl Node {
    fn start() -> Self {
        let metrics = Metrics::new();
        let fanout = Config::default_without_file().fanout;
        let hub = Hub::new(
            HubConfig {
                fanout,
                pinned: Vec::new(),
            },
            Arc::clone(&metrics),
        );
        let fake = Arc::new(FakeBroker {
            hub: Arc::clone(&hub),
            open: Mutex::new(true),
            opened: Notify::new(),
            waited: Notify::new(),
        });
        let broker: Arc<dyn Broker> = Arc::clone(&fake) as _;
        let clients = Clients::new(Arc::clone(&hub), Arc::clone(&broker), Arc::clone(&metrics));
        let channel_clients = channels::testing::no_clients(Arc::clone(&hub), Arc::clone(&metrics));
        let drain = Drain {
            lead: Lead::Fixed(Duration::ZERO),
            spread: Duration::ZERO,
            timeout: Duration::from_secs(10),
        };
        let web_sockets = WebSockets::new(clients, channel_clients, None, drain);
        let mut background = JoinSet::new();
        background.spawn(hub.run(broker, CancellationToken::new()));
        Self {
            fake,
            metrics,
            web_sockets,
            shutdown: CancellationToken::new(),
            background,
            serving: JoinSet::new(),
        }
    }

    /// Starts the task that pings and drains.
    fn start_run(&mut self, endpoint: &Arc<Endpoint>) {
        let web_sockets = Arc::clone(&self.web_sockets);
        let (endpoints, shutdown) = ([Arc::clone(endpoint)], self.shutdown.clone());
        self.background
            .spawn(async move { web_sockets.run(&endpoints, shutdown).await });
    }

    async fn connect(&mut self, endpoint: &Arc<Endpoint>, transport: Transport) -> Peer {
        self.connect_with(endpoint, transport, Bytes::new()).await
    }

    async fn connect_with(
        &mut self,
        endpoint: &Arc<Endpoint>,
        transport: Transport,
        read_ahead: Bytes,
    ) -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let endpoint = Arc::clone(endpoint);
        let upgraded = Upgraded {
            can_hand_off: false,
            stream,
            read_ahead,
            endpoint,
            transport,
            headers: HeaderMap::new(),
        };
        self.serving.spawn(self.web_sockets.serve(upgraded, ()));
        Peer(peer)
    }

    /// Waits until every connection's task has ended.
    async fn all_served(&mut self) {
        let ended = async { while self.serving.join_next().await.is_some() {} };
        timeout(DEADLINE, ended).await.unwrap();
    }
}

/// The client's end of a connection.
struct Peer(TcpStream);

impl Peer {
    async fn send(&mut self, frames: &[u8]) {
        self.0.write_all(frames).await.unwrap();
    }

    /// Reads until the received data ends with `last`; panics if the connection ends before.
    async fn read_until(&mut self, last: &str) -> Vec<(u8, Bytes)> {
        let mut received = Vec::new();
        let read = async {
            while !received.ends_with(last.as_bytes()) {
                assert_ne!(
                    self.0.read_buf(&mut received).await.unwrap(),
                    0,
                    "the end came first"
                );
            }
        };
        timeout(DEADLINE, read)
            .await
            .expect("the frames should come");
        split(received.into())
    }

    /// Reads to the end of the connection, which must not be a reset.
    async fn read_to_end(&mut self) -> Vec<(u8, Bytes)> {
        let mut received = Vec::new();
        let read = self.0.read_to_end(&mut received);
        timeout(DEADLINE, read)
            .await
            .expect("the connection should end")
            .expect("without a reset");
        split(received.into())
    }
}

/// The endpoint at `path` of a node without a file, changed by `change`.
fn endpoint(path: &str, change: impl FnOnce(&mut Endpoint)) -> Arc<Endpoint> {
    let config = Config::default_without_file();
    let found = config
        .endpoints
        .iter()
        .find(|endpoint| endpoint.path == path);
    let mut endpoint = Endpoint::clone(found.unwrap());
    change(&mut endpoint);
    Arc::new(endpoint)
}

fn echo() -> Arc<Endpoint> {
    endpoint("/ws", |it| it.mode = Mode::Echo)
}

fn text(text: &str) -> (u8, Bytes) {
    (0x81, Bytes::copy_from_slice(text.as_bytes()))
}

/// A close frame with the reason that goes with the code.
fn close(disconnect: crate::protocol::disconnect::Disconnect) -> (u8, Bytes) {
    let mut payload = BytesMut::new();
    payload.put_u16(disconnect.code);
    payload.put_slice(disconnect.reason.as_bytes());
    (0x88, payload.freeze())
}
